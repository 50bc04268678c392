//! Registries of every kind behind the same few calls.

use super::{
    ConsulServer, EtcdServer, EurekaServer, NacosServer, RedisServer,
    kubernetes::{ADMIN, KubernetesServer, NAMESPACE, slice},
    program,
    zookeeper::{ZOOKEEPERS, ZookeeperClient, ZookeeperServer},
};
use serde_json::{Value, json};
use std::net::SocketAddr;

/// One registry.
pub enum AnyServer {
    Etcd(EtcdServer),
    Consul(ConsulServer),
    Nacos(NacosServer),
    Zookeeper(ZookeeperServer, ZookeeperClient),
    Eureka(EurekaServer),
    Redis(RedisServer),
    Kubernetes(Box<KubernetesServer>),
}

impl AnyServer {
    pub async fn etcd() -> Self {
        Self::Etcd(EtcdServer::start(&program("etcd")).await)
    }

    pub async fn consul() -> Self {
        Self::Consul(ConsulServer::start_with_data().await)
    }

    pub async fn kubernetes() -> Self {
        Self::Kubernetes(Box::new(KubernetesServer::start().await))
    }

    /// All in which instances on this machine can be registered, which Kubernetes' API server refuses.
    pub async fn all() -> Vec<Self> {
        let nacos = NacosServer::start("nacos-3");
        let zookeeper = async {
            let server = ZookeeperServer::start(ZOOKEEPERS[0]).await;
            let client = server.client().await;
            Self::Zookeeper(server, client)
        };
        let (etcd, consul, nacos, zookeeper, eureka, redis) = tokio::join!(
            Self::etcd(),
            Self::consul(),
            nacos,
            zookeeper,
            EurekaServer::start(),
            RedisServer::notifying()
        );
        vec![etcd, consul, Self::Nacos(nacos), zookeeper, Self::Eureka(eureka), Self::Redis(redis)]
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Etcd(_) => "etcd",
            Self::Consul(_) => "consul",
            Self::Nacos(_) => "nacos",
            Self::Zookeeper(..) => "zookeeper",
            Self::Eureka(_) => "eureka",
            Self::Redis(_) => "redis",
            Self::Kubernetes(_) => "kubernetes",
        }
    }

    /// Where services are followed.
    pub fn port(&self) -> u16 {
        match self {
            Self::Etcd(server) => server.port,
            Self::Consul(server) => server.port,
            Self::Nacos(server) => server.port + 1000,
            Self::Zookeeper(server, _) => server.port,
            Self::Eureka(server) => server.port,
            Self::Redis(server) => server.port,
            Self::Kubernetes(server) => server.port,
        }
    }

    /// For `--registry`, at [`Self::port`] or at a relay that stands before it.
    pub fn url(&self, port: u16) -> String {
        match self {
            Self::Etcd(_) => format!("etcd://127.0.0.1:{port}"),
            Self::Consul(_) => format!("consul://127.0.0.1:{port}"),
            Self::Nacos(server) => format!("nacos://127.0.0.1:{}?transport=grpc&grpc_port={port}", server.port),
            Self::Zookeeper(..) => format!("zookeeper://127.0.0.1:{port}"),
            // As often as it is allowed: the tests' server tells of changes after a second at most.
            Self::Eureka(_) => format!("eureka://127.0.0.1:{port}?interval=1s"),
            Self::Redis(_) => format!("redis://127.0.0.1:{port}"),
            Self::Kubernetes(server) => {
                let ca = server.path("ca.pem");
                format!("kubernetes://127.0.0.1:{port}?token={ADMIN}&namespace={NAMESPACE}&ca={}", ca.display())
            }
        }
    }

    pub async fn register(&mut self, service: &str, name: &str, address: SocketAddr) {
        let (ip, port) = (address.ip().to_string(), address.port());
        match self {
            Self::Etcd(server) => drop(server.put(&key(service, name), address.to_string()).await),
            Self::Consul(server) => {
                server.register(&json!({"ID": name, "Name": service, "Address": ip, "Port": port})).await;
            }
            Self::Nacos(server) => server.register(service, &address.to_string(), "").await,
            Self::Zookeeper(_, client) => client.create(&key(service, name), &address.to_string(), false).await,
            Self::Eureka(server) => server.register(service, name, port, json!({"ipAddr": ip})).await,
            Self::Redis(server) => drop(server.cli(&["SET", &key(service, name), &address.to_string()])),
            Self::Kubernetes(server) => {
                let endpoint = json!([{"addresses": [ip], "conditions": {"ready": true}}]);
                let mut slice = slice(service, &format!("{service}-{name}"), endpoint);
                slice["ports"][0]["port"] = port.into();
                server.put(&slice).await;
            }
        }
    }

    pub async fn deregister(&mut self, service: &str, name: &str, address: SocketAddr) {
        match self {
            Self::Etcd(server) => server.delete(&key(service, name)).await,
            Self::Consul(server) => {
                server.put(&format!("/v1/agent/service/deregister/{name}"), &Value::Null).await;
            }
            Self::Nacos(server) => server.deregister(service, &address.to_string(), "").await,
            Self::Zookeeper(_, client) => client.delete(&key(service, name)).await,
            Self::Eureka(server) => server.remove(service, name).await,
            Self::Redis(server) => drop(server.cli(&["DEL", &key(service, name)])),
            Self::Kubernetes(server) => server.delete(&format!("{service}-{name}")).await,
        }
    }

    /// Whether a restart empties it: what these keep in memory is registered again by the instances themselves.
    pub fn forgets(&self) -> bool {
        matches!(self, Self::Nacos(_) | Self::Eureka(_) | Self::Redis(_))
    }

    /// Whether it is up again in less than about two seconds.
    pub fn is_quick(&self) -> bool {
        matches!(self, Self::Etcd(_) | Self::Consul(_) | Self::Redis(_))
    }

    pub fn kill(&mut self) {
        match self {
            Self::Etcd(server) => server.kill(),
            Self::Consul(server) => server.kill(),
            Self::Nacos(server) => server.kill(),
            Self::Zookeeper(server, _) => server.kill(),
            Self::Eureka(server) => server.kill(),
            Self::Redis(server) => server.kill(),
            Self::Kubernetes(server) => server.kill(),
        }
    }

    /// On the same port.
    pub async fn restart(&mut self) {
        match self {
            Self::Etcd(server) => server.restart().await,
            Self::Consul(server) => server.restart().await,
            Self::Nacos(server) => server.restart().await,
            Self::Zookeeper(server, client) => {
                server.restart().await;
                *client = server.client().await;
            }
            Self::Eureka(server) => server.restart_with(&[]).await,
            Self::Redis(server) => server.restart().await,
            Self::Kubernetes(server) => server.restart().await,
        }
    }
}

/// In the plain layout.
fn key(service: &str, name: &str) -> String {
    format!("/pillion/{service}/{name}")
}
