//! One pillion takes another one's place.

use super::super::human;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, time::Duration};

/// How a new pillion takes over from the one that runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Upgrade {
    /// A unix socket. Whoever is started with the same one takes the listening sockets over from the one that runs, which then
    /// finishes its requests and ends. Only for the same user and root. Its folder is created if it is not there.
    pub socket: PathBuf,
    /// So long the new one may take to be ready; after that it ends, and the old one goes on.
    #[serde(with = "human", default = "Upgrade::default_timeout")]
    #[schemars(with = "human::Text")]
    pub timeout: Duration,
}

impl Upgrade {
    /// Through the socket at this path.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), timeout: Self::default_timeout() }
    }

    fn default_timeout() -> Duration {
        Duration::from_secs(30)
    }
}
