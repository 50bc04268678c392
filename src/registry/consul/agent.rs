//! What an agent is asked about services that are registered with it.

use super::{
    client::{Client, MARGIN, SEGMENT},
    encode::{Description, Service, check_id},
};
use crate::registry::{RegistryError, http::Answer};
use bytes::Bytes;
use http::{Method, StatusCode};
use percent_encoding::utf8_percent_encode;
use serde::{Deserialize, Serialize};

/// A service as its agent tells it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct There {
    /// That of all of its checks.
    aggregated_status: String,
    service: Named,
    #[serde(default)]
    checks: Option<Vec<Check>>,
}

#[derive(Debug, Deserialize)]
struct Named {
    #[serde(rename = "Service")]
    name: String,
    #[serde(flatten)]
    description: Description,
}

#[derive(Debug, Deserialize)]
struct Check {
    #[serde(rename = "CheckID")]
    id: String,
    #[serde(rename = "Status")]
    status: String,
}

impl There {
    pub fn name(&self) -> &str {
        &self.service.name
    }

    pub fn description(&self) -> &Description {
        &self.service.description
    }

    /// Whether nobody should use it.
    pub fn is_critical(&self) -> bool {
        self.aggregated_status == "critical"
    }

    /// The status of the check `id`, if it is there.
    pub fn check(&self, id: &str) -> Option<&str> {
        self.checks.iter().flatten().find(|check| check.id == id).map(|check| check.status.as_str())
    }
}

impl Client {
    /// The service `id`. `None`: there is no such.
    pub async fn own(&self, name: &str, id: &str) -> Result<Option<There>, RegistryError> {
        let path = format!("/v1/agent/health/service/id/{}", utf8_percent_encode(id, SEGMENT));
        let answer = self.send(Method::GET, &path, Bytes::new(), MARGIN).await?;
        match answer.status {
            // The status tells its health; but some of these are refusals, too.
            StatusCode::OK | StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                match serde_json::from_slice(&answer.body) {
                    Ok(there) => Ok(Some(there)),
                    Err(error) if answer.status == StatusCode::OK => {
                        Err(self.protocol(format!("{error}; is it a Consul agent?")))
                    }
                    Err(_) => Err(self.refusal(&answer)),
                }
            }
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(self.refused(&answer, name)),
        }
    }

    pub async fn register(&self, name: &str, service: &Service<'_>) -> Result<(), RegistryError> {
        let answer = self.put("/v1/agent/service/register?replace-existing-checks=true", service).await?;
        if answer.status == StatusCode::OK { Ok(()) } else { Err(self.refused(&answer, name)) }
    }

    /// Says how the service `id` is, for the length of its TTL. False: it has no such check.
    pub async fn tell(&self, name: &str, id: &str, status: &str, output: &str) -> Result<bool, RegistryError> {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Update<'a> {
            status: &'a str,
            output: &'a str,
        }
        let path = format!("/v1/agent/check/update/{}", utf8_percent_encode(&check_id(id), SEGMENT));
        let answer = self.put(&path, &Update { status, output }).await?;
        match answer.status {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            // It is there, and is another kind of check.
            StatusCode::INTERNAL_SERVER_ERROR if is_no_ttl(&answer.body) => Ok(false),
            _ => Err(self.refused(&answer, name)),
        }
    }

    /// Takes the service `id` out, if it is there.
    pub async fn deregister(&self, name: &str, id: &str) -> Result<(), RegistryError> {
        let path = format!("/v1/agent/service/deregister/{}", utf8_percent_encode(id, SEGMENT));
        let answer = self.send(Method::PUT, &path, Bytes::new(), MARGIN).await?;
        match answer.status {
            StatusCode::OK | StatusCode::NOT_FOUND => Ok(()),
            _ => Err(self.refused(&answer, name)),
        }
    }

    async fn put(&self, path: &str, body: &impl Serialize) -> Result<Answer, RegistryError> {
        let body = serde_json::to_vec(body).map_err(|error| self.protocol(error))?;
        self.send(Method::PUT, path, body.into(), MARGIN).await
    }

    /// What a status other than 200 means to whoever registers.
    fn refused(&self, answer: &Answer, name: &str) -> RegistryError {
        match self.refusal(answer) {
            RegistryError::Refused { server, cause } if answer.status != StatusCode::BAD_REQUEST => {
                let cause = format!("{cause}; needed are service:write and service:read for `{name}`");
                RegistryError::Refused { server, cause }
            }
            other => other,
        }
    }
}

fn is_no_ttl(body: &[u8]) -> bool {
    String::from_utf8_lossy(body).contains("does not have associated TTL")
}
