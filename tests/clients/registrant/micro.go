package main

import (
	"fmt"
	"os"
	"sync"
	"time"

	microconsul "github.com/go-micro/plugins/v4/registry/consul"
	microetcd "github.com/go-micro/plugins/v4/registry/etcd"
	"github.com/hashicorp/consul/api"
	"go-micro.dev/v4/registry"
)

// micro registers again at a third of the TTL, as a go-micro service does: its registries renew nothing themselves.
type micro struct {
	registry.Registry
	ttl time.Duration

	mu sync.Mutex
	of *registry.Service
}

func newMicroEtcd(o options) registrar {
	options := []registry.Option{registry.Addrs(o.etcd...)}
	if o.user != "" {
		options = append(options, microetcd.Auth(o.user, o.pass))
	}
	return startMicro(microetcd.NewRegistry(options...), o.ttl)
}

func newMicroConsul(o options) registrar {
	config := api.DefaultConfig()
	config.Address, config.Token = o.consul, o.consulToken
	return startMicro(microconsul.NewRegistry(microconsul.Config(config), registry.Addrs(o.consul)), o.ttl)
}

func startMicro(r registry.Registry, ttl time.Duration) *micro {
	m := &micro{Registry: r, ttl: ttl}
	go func() {
		for range time.Tick(ttl / 3) {
			m.mu.Lock()
			if m.of != nil {
				if err := m.Register(m.of, registry.RegisterTTL(ttl)); err != nil {
					fmt.Fprintln(os.Stderr, "registrant: renew:", err)
				}
			}
			m.mu.Unlock()
		}
	}()
	return m
}

func (m *micro) register(i instance) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.of = &registry.Service{
		Name: i.service, Version: i.version,
		// What go-micro's server writes beside the user's metadata.
		Nodes: []*registry.Node{{Id: i.id, Address: i.addr, Metadata: with(i.meta, map[string]string{
			"broker": "http", "protocol": "mucp", "registry": m.String(), "server": "mucp", "transport": "http",
		})}},
		Endpoints: []*registry.Endpoint{{
			Name:     "Greeter.Hello",
			Request:  &registry.Value{Name: "Request", Type: "Request", Values: []*registry.Value{{Name: "name", Type: "string"}}},
			Response: &registry.Value{Name: "Response", Type: "Response", Values: []*registry.Value{{Name: "greeting", Type: "string"}}},
			Metadata: map[string]string{"stream": "false"},
		}},
	}
	return m.Register(m.of, registry.RegisterTTL(m.ttl))
}

func (m *micro) deregister(instance) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	of := m.of
	m.of = nil
	return m.Deregister(of)
}

func with(own, more map[string]string) map[string]string {
	all := map[string]string{}
	for k, v := range more {
		all[k] = v
	}
	for k, v := range own {
		all[k] = v
	}
	return all
}
