//! Looking names up: server after server, alias after alias.

use super::{
    answer::{Finding, NO_ERROR, NO_SUCH_NAME, REFUSED, SERVER_FAILURE, finding},
    exchange::exchange,
    message::{Data, Message, Question, Record, Type},
    servers::{Server, Servers},
};
use crate::registry::RegistryError;
use rustls::crypto::{SecureRandom, ring};
use std::{net::IpAddr, time::Duration};
use tokio::sync::Semaphore;

/// Questions at one time, over all services: servers drop what comes in larger bursts.
const MOST_AT_ONCE: usize = 32;
/// Aliases that are followed with a question of their own.
const MOST_ALIASES: usize = 8;

pub struct Resolver {
    servers: Servers,
    /// For one try at one server.
    limit: Duration,
    turns: Semaphore,
    random: &'static dyn SecureRandom,
}

/// What there is under a name.
#[derive(Debug)]
pub struct Found {
    /// Of the type that was asked for; none if there is nothing.
    pub data: Vec<Data>,
    /// For how many seconds it holds. Nothing may hold for a time that is not told.
    pub ttl: Option<u32>,
    /// What came along.
    pub additionals: Vec<Record>,
}

impl Resolver {
    pub fn new(servers: Servers, limit: Duration) -> Self {
        let random = ring::default_provider().secure_random;
        Self { servers, limit, turns: Semaphore::new(MOST_AT_ONCE), random }
    }

    /// Looks `name` up. The first `passed_over` of the servers are asked last.
    pub async fn lookup(&self, name: &str, of: Type, passed_over: usize) -> Result<Found, RegistryError> {
        let mut asked = name.to_owned();
        let mut longest = u32::MAX;
        for _ in 0..=MOST_ALIASES {
            let question = Question::new(&asked, of).map_err(|error| strange(format!("`{asked}`: {error}")))?;
            let message = self.ask(&question, passed_over).await?;
            match finding(&message, &question) {
                Finding::Records { data, ttl } => {
                    let data = data.into_iter().cloned().collect();
                    return Ok(Found { data, ttl: Some(ttl.min(longest)), additionals: message.additionals });
                }
                Finding::Nothing { ttl } => {
                    let ttl = ttl.map(|ttl| ttl.min(longest));
                    return Ok(Found { data: Vec::new(), ttl, additionals: Vec::new() });
                }
                Finding::Alias { name, ttl } => {
                    longest = longest.min(ttl);
                    asked = name.to_owned();
                }
            }
        }
        Err(strange(format!("`{name}` has more than {MOST_ALIASES} aliases in a row")))
    }

    /// The addresses of a host, IPv6 only where there are none of IPv4: a host with both is not two hosts.
    pub async fn addresses(&self, name: &str, passed_over: usize) -> Result<(Vec<IpAddr>, Option<u32>), RegistryError> {
        let v4 = self.lookup(name, Type::A, passed_over).await?;
        let found = if v4.data.is_empty() { self.lookup(name, Type::Aaaa, passed_over).await? } else { v4 };
        Ok((found.data.iter().filter_map(Data::address).collect(), found.ttl))
    }

    /// The answer of the first server that has one.
    async fn ask(&self, question: &Question, passed_over: usize) -> Result<Message, RegistryError> {
        // It is never closed.
        let _turn = self.turns.acquire().await;
        let mut turn = self.servers.in_turn();
        let passed_over = passed_over % turn.len().max(1);
        turn.rotate_left(passed_over);
        let mut errors = Vec::new();
        for server in &turn {
            match self.try_one(server, question).await {
                Ok(message) => return Ok(message),
                Err(error) => errors.push(error),
            }
        }
        self.servers.look_again().await;
        Err(together(errors))
    }

    async fn try_one(&self, server: &Server, question: &Question) -> Result<Message, RegistryError> {
        let name = || server.address.to_string();
        let asked = exchange(server.address, question, self.limit, &|| self.id()).await;
        let message = match asked {
            Ok(message) => message,
            Err(cause) => {
                self.servers.silent(server);
                return Err(RegistryError::Unreachable { server: name(), cause });
            }
        };
        server.answered();
        let about = format!("for `{}`", question.name);
        match message.code {
            NO_ERROR if message.answers.is_empty() && !message.informed => Err(RegistryError::Refused {
                server: name(),
                cause: format!("it only says whom else to ask {about}; expected a server that asks others itself"),
            }),
            NO_ERROR | NO_SUCH_NAME => Ok(message),
            SERVER_FAILURE => Err(RegistryError::Busy { server: name(), cause: format!("SERVFAIL {about}") }),
            REFUSED => Err(RegistryError::Refused {
                server: name(),
                cause: format!(
                    "REFUSED {about}; expected a server that knows the name, or asks others, and lets us ask"
                ),
            }),
            code => Err(RegistryError::Protocol { server: name(), cause: format!("response code {code} {about}") }),
        }
    }

    /// A number that nobody can guess.
    fn id(&self) -> u16 {
        let mut bytes = [0; 2];
        // It fails on machines without a source of random numbers, on which TLS does not work, either.
        if self.random.fill(&mut bytes).is_err() {
            return fastrand::u16(..);
        }
        u16::from_be_bytes(bytes)
    }
}

fn strange(cause: String) -> RegistryError {
    RegistryError::Protocol { server: "DNS".into(), cause }
}

/// The last error, with what was tried before it.
fn together(mut errors: Vec<RegistryError>) -> RegistryError {
    let Some(mut last) = errors.pop() else {
        return RegistryError::Unreachable { server: "DNS".into(), cause: "there are no servers".into() };
    };
    if let RegistryError::Unreachable { cause, .. }
    | RegistryError::Refused { cause, .. }
    | RegistryError::Busy { cause, .. }
    | RegistryError::Protocol { cause, .. } = &mut last
    {
        for before in errors {
            cause.push_str(&format!("; before that {before}"));
        }
    }
    last
}
