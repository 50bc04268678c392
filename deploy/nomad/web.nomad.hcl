# pillion beside an application in Nomad, in one network namespace. Prestart tasks start first, and `wait` holds the application
# back until pillion has started. At the end Nomad takes the group out of Consul, waits for `shutdown_delay`, ends the
# application, and then pillion.
job "web" {
  datacenters = ["dc1"]

  update {
    max_parallel = 1
  }

  group "web" {
    count = 2

    network {
      mode = "bridge"
      port "inbound" {
        to = 4143
      }
      port "admin" {
        to = 4191
      }
    }

    # pillion's `/ready` tells whether the application is healthy.
    service {
      name = "web"
      port = "inbound"

      check {
        type     = "http"
        path     = "/ready"
        port     = "admin"
        interval = "5s"
        timeout  = "2s"
      }
    }

    # As long as callers may take to hear that it is no longer in Consul.
    shutdown_delay = "5s"

    task "pillion" {
      driver = "docker"

      lifecycle {
        hook    = "prestart"
        sidecar = true
      }

      config {
        image = "registry.example.com/pillion:0.1.0"
        args  = ["run", "--config", "/local/pillion.yaml"]
        ports = ["inbound", "admin"]
      }

      # Consul's agent on this machine.
      env {
        CONSUL_HTTP_ADDR = "http://${attr.unique.network.ip-address}:8500"
      }

      template {
        data        = file("pillion.yaml")
        destination = "local/pillion.yaml"
        # pillion sees a change itself.
        change_mode = "noop"
      }

      # Longer than `drain.timeout`. The client's `max_kill_timeout` must allow it; its default is 30s.
      kill_timeout = "28s"

      resources {
        cpu    = 100
        memory = 64
      }
    }

    task "wait" {
      driver = "docker"

      lifecycle {
        hook    = "prestart"
        sidecar = false
      }

      config {
        image = "registry.example.com/pillion:0.1.0"
        args  = ["wait", "--for", "startup", "--timeout", "60s"]
      }

      resources {
        cpu    = 50
        memory = 32
      }
    }

    task "web" {
      driver = "docker"
      # When it ends, so does the rest of the group.
      leader = true

      config {
        image = "registry.example.com/web:1.0.0"
      }

      # It listens on 127.0.0.1:8080, and finds pillion here.
      env {
        http_proxy = "http://127.0.0.1:4140"
      }

      kill_timeout = "15s"

      resources {
        cpu    = 200
        memory = 256
      }
    }
  }
}
