//! A server that may be believed, and the connections to it: one for commands, one for messages, and where sentinels say
//! which server it is, one to a sentinel.

use super::{
    commands::{Commands, commands},
    end::End,
    events::{Events, events},
    keys::Keys,
    resp::{Pipeline, Value},
    sentinel::{Master, Sentinels},
    sweep::{Sweeps, scan, sweeps},
    wire::{Access, Wire, refusal},
};
use crate::registry::{RegistryError, link, server::Server};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::{task::JoinSet, time::timeout};

/// From nothing to a session: the sentinel, the server, both connections.
const OPEN_LIMIT: Duration = Duration::from_secs(12);

/// How sessions are opened.
#[derive(Clone)]
pub struct Connect {
    pub access: Access,
    pub db: u32,
    /// Whom to ask for the server, where the servers of the link are sentinels.
    pub sentinels: Option<Arc<Sentinels>>,
    /// Replicas will not do.
    pub only_masters: bool,
    pub keys: Arc<Keys>,
    pub interval: Duration,
}

/// Dropping it closes its connections.
pub struct Session {
    server: Arc<str>,
    commands: Commands,
    pub events: Events,
    pub sweeps: Sweeps,
    pub end: End,
    must_be_master: bool,
    /// What it was when the session began.
    is_master: bool,
    _tasks: JoinSet<()>,
}

impl link::Connect for Connect {
    type Connection = Session;

    async fn connect(&self, server: &Server) -> Result<Session, RegistryError> {
        timeout(OPEN_LIMIT, self.open(server)).await.unwrap_or_else(|_| {
            let cause = format!("not connected within {OPEN_LIMIT:?}");
            Err(RegistryError::Unreachable { server: server.text.clone(), cause })
        })
    }
}

impl link::Connection for Session {
    fn is_closed(&self) -> bool {
        self.end.is_set()
    }

    fn has_worked(&self) -> bool {
        // It told its role before it became one.
        true
    }
}

impl Connect {
    async fn open(&self, server: &Server) -> Result<Session, RegistryError> {
        let Some(sentinels) = &self.sentinels else { return self.session(&server.host, server.port, None).await };
        let master = sentinels.master(server).await?;
        let (host, port) = (master.host.clone(), master.port);
        self.session(&host, port, Some((sentinels.clone(), server.clone(), master))).await
    }

    async fn session(
        &self,
        host: &str,
        port: u16,
        said_by: Option<(Arc<Sentinels>, Server, Master)>,
    ) -> Result<Session, RegistryError> {
        let mut wire = Wire::open(host, port, &self.access).await?;
        let server = wire.server().clone();
        let must_be_master = said_by.is_some() || self.only_masters;
        if self.db != 0
            && let [Value::Error(text)] = wire.ask(&Pipeline::one(&["SELECT", &self.db.to_string()])).await?.as_slice()
        {
            return Err(refusal(&server, text));
        }
        let role = wire.ask(&Pipeline::one(&["ROLE"])).await?;
        check_role(&server, role.first(), must_be_master)?;
        let is_master = role.first().and_then(Value::array).and_then(<[_]>::first);
        let is_master = is_master.and_then(Value::text) == Some("master");
        check_mode(&server, wire.ask(&Pipeline::one(&["HELLO", "2"])).await?.first())?;
        let messages = Wire::open(host, port, &self.access).await?;

        let end = End::new();
        let mut tasks = JoinSet::new();
        let mut run = |task: futures_util::future::BoxFuture<'static, RegistryError>| {
            let end = end.clone();
            tasks.spawn(async move { end.set(task.await) });
        };
        let (commands, task) = commands(wire, end.clone());
        run(Box::pin(task));
        let (events, task) = events(messages, end.clone());
        run(Box::pin(task));
        let (sweeps, task) = sweeps(commands.clone(), self.keys.clone(), self.interval, end.clone());
        run(Box::pin(task));
        if let Some((sentinels, sentinel, master)) = said_by {
            run(Box::pin(async move { sentinels.until_switched(&sentinel, &master).await }));
        }
        Ok(Session { server, commands, events, sweeps, end, must_be_master, is_master, _tasks: tasks })
    }
}

impl Session {
    /// As errors name it.
    pub fn server(&self) -> &str {
        &self.server
    }

    pub fn is_master(&self) -> bool {
        self.is_master
    }

    /// The answers to commands that are all to succeed, on a server that is a master: what others write is lost.
    pub async fn write(&self, pipeline: Pipeline) -> Result<Vec<Value>, RegistryError> {
        let answers = self.read(pipeline).await?;
        let inner = answers.iter().filter_map(Value::array).flatten();
        match answers
            .iter()
            .chain(inner)
            .find_map(|answer| if let Value::Error(text) = answer { Some(text) } else { None })
        {
            Some(text) => Err(refusal(&self.server, text)),
            None => Ok(answers),
        }
    }

    /// All services that have a key.
    pub async fn services(&self, keys: &Keys) -> Result<Vec<String>, RegistryError> {
        let mut services = BTreeSet::new();
        scan(&self.commands, &keys.pattern(), |key| {
            if let Some((service, _)) = keys.split(key)
                && !services.contains(service)
            {
                services.insert(service.to_owned());
            }
        })
        .await?;
        self.read(Pipeline::new()).await?;
        Ok(services.into_iter().collect())
    }

    /// The answers to commands that read. The server was what it should be after it gave them, or there are none: a
    /// replica that lost its master lets keys expire that live on, and an old master may come back empty.
    pub async fn read(&self, mut pipeline: Pipeline) -> Result<Vec<Value>, RegistryError> {
        pipeline.add(&["ROLE"]);
        let mut answers = self.commands.ask(pipeline).await?;
        let role = answers.pop();
        let out_of_order = answers.iter().find_map(|answer| match answer {
            Value::Error(text) => Some(refusal(&self.server, text)).filter(|e| matches!(e, RegistryError::Busy { .. })),
            _ => None,
        });
        let checked = match out_of_order {
            Some(error) => Err(error),
            None => check_role(&self.server, role.as_ref(), self.must_be_master),
        };
        checked.inspect_err(|error| self.end.set(error.clone()))?;
        Ok(answers)
    }

    /// The error that this answer is for the one command that it was given to.
    pub fn unexpected(&self, command: &str, answer: Option<&Value>) -> RegistryError {
        let server = self.server.to_string();
        match answer {
            Some(Value::Error(text)) => refusal(&server, text),
            _ => RegistryError::Protocol { server, cause: format!("no answer to `{command}` that makes sense") },
        }
    }
}

/// Whether the server that says this about itself may be believed.
fn check_role(server: &str, role: Option<&Value>, must_be_master: bool) -> Result<(), RegistryError> {
    let busy = |cause: String| Err(RegistryError::Busy { server: server.into(), cause });
    let words: Vec<_> = role.and_then(Value::array).unwrap_or_default().iter().map(Value::text).collect();
    match (words.as_slice(), role) {
        ([Some("master"), ..], _) => Ok(()),
        ([Some("slave"), ..], _) if must_be_master => busy("it should be the master, and is a replica".into()),
        ([Some("slave"), _, _, Some("connected"), ..], _) => Ok(()),
        ([Some("slave"), _, _, Some(state), ..], _) => {
            busy(format!("it is a replica without its master (its link is in state `{state}`)"))
        }
        ([Some("sentinel"), ..], _) => Err(RegistryError::Refused {
            server: server.into(),
            cause: "it is a Sentinel; expected a Redis (sentinels go under `sentinels`)".into(),
        }),
        (_, Some(Value::Error(text))) if text.starts_with("NOPERM") => Err(RegistryError::Refused {
            server: server.into(),
            cause: format!("{text} (the user must be allowed `+role`, to tell a master from what is none)"),
        }),
        (_, Some(Value::Error(text))) => Err(refusal(server, text)),
        _ => Err(RegistryError::Protocol { server: server.into(), cause: "no role in its answer to `ROLE`".into() }),
    }
}

/// Refuses a node of a cluster, which shows its own keys and hides those of the others. A server that is too old to say
/// what it is, or may not, is taken for a single one.
fn check_mode(server: &str, hello: Option<&Value>) -> Result<(), RegistryError> {
    let words: Vec<_> = hello.and_then(Value::array).unwrap_or_default().iter().map(Value::text).collect();
    if !words.chunks(2).any(|pair| pair == [Some("mode"), Some("cluster")]) {
        return Ok(());
    }
    Err(RegistryError::Refused {
        server: server.into(),
        cause: "it is a node of a Redis Cluster; expected a single Redis, or a master behind Sentinels".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(words: &[&str]) -> Value {
        Value::Array(words.iter().map(|word| Value::Bulk(word.to_string().into())).collect())
    }

    #[test]
    fn only_a_master_or_a_replica_that_has_one_is_believed() {
        let connected = role(&["slave", "10.0.0.1", "6379", "connected", "1"]);
        for (role, must_be_master, expected) in [
            (role(&["master", "1"]), true, ""),
            (role(&["master", "1"]), false, ""),
            (connected.clone(), false, ""),
            (connected, true, "should be the master, and is a replica"),
            (role(&["slave", "10.0.0.1", "6379", "connect", "-1"]), false, "in state `connect`"),
            (role(&["slave", "10.0.0.1", "6379", "sync", "-1"]), false, "in state `sync`"),
            (role(&["sentinel"]), false, "it is a Sentinel"),
            (
                Value::Error("LOADING Redis is loading the dataset in memory".into()),
                true,
                "not able to answer: LOADING",
            ),
            (Value::Error("NOPERM no permissions to run 'role'".into()), true, "must be allowed `+role`"),
            (Value::Nil, false, "no role"),
        ] {
            let error = check_role("s", Some(&role), must_be_master).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(error.contains(expected) && error.is_empty() == expected.is_empty(), "{role:?}: {error}");
        }
        assert!(check_role("s", None, false).is_err());
    }

    #[test]
    fn a_cluster_is_told_from_a_single_server() {
        let cluster = role(&["server", "redis", "proto", "2", "mode", "cluster", "role", "master"]);
        assert!(check_mode("s", Some(&cluster)).unwrap_err().to_string().contains("a node of a Redis Cluster"));
        let unknown = Value::Error("ERR unknown command `HELLO`".into());
        for single in [Some(role(&["mode", "standalone"])), Some(role(&["mode"])), Some(unknown), None] {
            check_mode("s", single.as_ref()).unwrap();
        }
    }
}
