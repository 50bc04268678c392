//! How frameworks write into key-value registries.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a framework writes an instance into a key-value registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// `PREFIX/SERVICE/ID` → `host:port`, or JSON of the same map as in the `file` registry. Default prefix `/pillion`.
    #[default]
    Plain,
    /// go-kratos: `/microservices/SERVICE/ID`.
    Kratos,
    /// go-micro: `/micro/registry/SERVICE/NODE`.
    GoMicro,
    /// go-zero: `SERVICE/LEASE` → `host:port`. No prefix by default.
    GoZero,
    /// etcd's own naming format, which grpc-go resolves: `SERVICE/ANY`. No prefix by default.
    Grpc,
    /// Curator's service discovery, as Spring Cloud ZooKeeper and Dubbo's application level use it: `/services/SERVICE/ID`.
    Curator,
    /// Dubbo's interface level: `/dubbo/INTERFACE/providers/URL`. The service is the interface, or `INTERFACE:VERSION` or
    /// `INTERFACE:VERSION:GROUP`.
    Dubbo,
}

impl Layout {
    /// The key prefix that the framework uses unless told otherwise.
    pub fn default_prefix(self) -> &'static str {
        match self {
            Self::Plain => "/pillion",
            Self::Kratos => "/microservices",
            Self::GoMicro => "/micro/registry",
            Self::GoZero | Self::Grpc => "",
            Self::Curator => "/services",
            Self::Dubbo => "/dubbo",
        }
    }
}
