//! Calls on one gRPC connection, with the access token that they need and what their failures mean.

use super::{
    login::{self, Login},
    message::Outcome,
    poll,
    proto::{self, Payload},
};
use crate::registry::{RegistryError, grpc::Channel, http::Answer, watch::Failure};
use http::Method;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tonic::{Code, Status};

/// Nacos' numbers for what may be wrong with a request.
const STARTING: i64 = 300;
const UNREGISTERED: i64 = 301;
const BAD_PARAMETER: i64 = 400;
const NO_RIGHT: i64 = 403;

/// The requests that change something.
const REGISTERING: [&str; 2] = ["InstanceRequest", "BatchInstanceRequest"];

/// What went wrong with a call.
#[derive(Debug)]
pub enum CallError {
    /// The connection broke, or its server cannot serve: worth trying another one.
    Server(RegistryError),
    /// The server has no such connection: it has not seen to it yet, or has dropped it.
    Unregistered(RegistryError),
    /// This call was refused; another server would say the same.
    Call(RegistryError),
}

impl CallError {
    pub fn into_error(self) -> RegistryError {
        match self {
            Self::Server(error) | Self::Unregistered(error) | Self::Call(error) => error,
        }
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        Self::Error(error.into_error())
    }
}

/// One connection, as far as calls go.
pub struct Calls {
    pub channel: Channel,
    login: Login,
}

impl Calls {
    pub fn new(channel: Channel, login: Login) -> Self {
        Self { channel, login }
    }

    /// One request about services or configs, one answer.
    pub async fn call<A: DeserializeOwned>(&self, kind: &str, body: &Value) -> Result<A, CallError> {
        let (outcome, answer) = self.ask(kind, body).await?;
        if outcome.is_success() { self.read(&answer) } else { Err(self.failed(kind, outcome)) }
    }

    /// The same, where failures are answers as well. That the rights are missing is an error.
    pub async fn ask(&self, kind: &str, body: &Value) -> Result<(Outcome, Payload), CallError> {
        let mut first = true;
        loop {
            // A server that cannot be logged in to is of no use; another one may be.
            let (cell, token) = self.login.token().await.map_err(CallError::Server)?;
            let mut payload = Payload::new(kind, body);
            if let Some(token) = token {
                payload = payload.with_header(login::HEADER, &token);
            }
            let (outcome, answer) = self.exchange(payload).await?;
            if outcome.is_success() || outcome.error_code != NO_RIGHT {
                return Ok((outcome, answer));
            }
            if !std::mem::take(&mut first) || !self.login.renew(&cell) {
                return Err(match cell.get().and_then(|token| token.refused.clone()) {
                    Some(refused) => CallError::Call(refused),
                    None => self.failed(kind, outcome),
                });
            }
        }
    }

    /// One request about the connection, which needs no rights and has no answer but success.
    pub async fn check(&self, kind: &str) -> Result<(), CallError> {
        let (outcome, _) = self.exchange(Payload::new(kind, &json!({}))).await?;
        if outcome.is_success() { Ok(()) } else { Err(self.failed(kind, outcome)) }
    }

    async fn exchange(&self, payload: Payload) -> Result<(Outcome, Payload), CallError> {
        let answer = self.channel.unary(proto::REQUEST, tonic::Request::new(payload)).await;
        let answer: Payload = answer.map_err(|status| CallError::Server(self.broken(&status)))?;
        Ok((self.read(&answer)?, answer))
    }

    /// The error that a status other than OK is, which only gRPC itself makes here: Nacos has numbers of its own.
    pub fn broken(&self, status: &Status) -> RegistryError {
        if let Some(broken) = self.channel.broken(status) {
            return broken;
        }
        let (server, cause) = (self.server(), status.message().to_owned());
        match status.code() {
            Code::DeadlineExceeded | Code::Cancelled => RegistryError::Unreachable { server, cause },
            Code::Unavailable | Code::ResourceExhausted => RegistryError::Busy { server, cause },
            code => RegistryError::Protocol { server, cause: format!("{code:?}: {cause}") },
        }
    }

    pub fn server(&self) -> String {
        self.channel.server().to_owned()
    }

    /// What can be had over HTTP only.
    pub async fn get(&self, path: &str) -> Result<Answer, CallError> {
        self.login.send(Method::GET, path).await.map_err(poll::call_error)
    }

    pub fn read<T: DeserializeOwned>(&self, answer: &Payload) -> Result<T, CallError> {
        serde_json::from_slice(answer.json()).map_err(|error| {
            let cause = format!("{}: {error}", answer.kind());
            CallError::Call(RegistryError::Protocol { server: self.server(), cause })
        })
    }

    pub fn failed(&self, kind: &str, outcome: Outcome) -> CallError {
        let server = self.server();
        let message = outcome.message.filter(|message| !message.is_empty());
        let cause = message.unwrap_or_else(|| format!("{kind} failed with the number {}", outcome.error_code));
        match outcome.error_code {
            STARTING => CallError::Server(RegistryError::Busy { server, cause }),
            UNREGISTERED => CallError::Unregistered(RegistryError::Unreachable { server, cause }),
            NO_RIGHT if !self.login.has_credentials() => {
                let cause = format!("{cause} (there is no `user`, and the server wants one)");
                CallError::Call(RegistryError::Refused { server, cause })
            }
            NO_RIGHT if REGISTERING.contains(&kind) => {
                let cause = format!("{cause} (to register takes the right to write the service, not only to read it)");
                CallError::Call(RegistryError::Refused { server, cause })
            }
            NO_RIGHT | BAD_PARAMETER => CallError::Call(RegistryError::Refused { server, cause }),
            _ => CallError::Call(RegistryError::Busy { server, cause }),
        }
    }
}
