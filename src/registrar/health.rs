//! Whether the local application is fit to serve: its checks, one after the other, for as long as it is registered.

use crate::{
    cluster::{
        Endpoint, Live,
        check::{self, Checked, Failure, Layer, State},
        table::Settings,
    },
    config::{HealthCheck, LocalHealth, NOT_FOR_CHILDREN, Protocol},
    registry::{Address, Instance},
};
use std::{
    pin::pin,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Command,
    sync::watch,
    time::{Instant, timeout},
};

/// What is kept of what a command says.
const SAID: usize = 200;
/// How long what it has said is waited for once it has ended.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// What the checks have shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    pub state: State,
    /// Why the last check failed, if it did.
    pub failure: Option<String>,
}

impl Health {
    pub const UNKNOWN: Self = Self { state: State::Unknown, failure: None };

    /// Whether it has passed, and has not failed often enough since.
    pub fn is_fit(&self) -> bool {
        matches!(self.state, State::Healthy | State::Suspect { .. })
    }
}

/// The checks of one application.
pub struct Checks {
    service: String,
    endpoint: Endpoint,
    settings: Settings,
    timing: HealthCheck,
    /// Those over the network, in their order: a request each, or only a connection.
    requests: Vec<HealthCheck>,
    command: Vec<String>,
}

impl Checks {
    /// Of the application that is at `address` and speaks `protocol`.
    pub fn new(service: &str, config: &LocalHealth, address: Address, protocol: Option<Protocol>) -> Self {
        let timing = HealthCheck {
            interval: config.interval,
            max_interval: config.interval,
            timeout: config.timeout,
            rise: config.rise,
            fall: config.fall,
            ..HealthCheck::default()
        };
        let http = config.http.clone().map(|http| HealthCheck { http: Some(http), ..timing.clone() });
        let grpc = config.grpc.clone().map(|grpc| HealthCheck { grpc: Some(grpc), ..timing.clone() });
        let mut requests: Vec<_> = http.into_iter().chain(grpc).collect();
        if requests.is_empty() && config.command.is_empty() {
            requests.push(timing.clone());
        }
        let instance = Instance { protocol, ..Instance::new("local", address) };
        Self {
            service: service.into(),
            endpoint: Endpoint { instance, live: Arc::new(Live::new(None)) },
            settings: Settings::default(),
            timing,
            requests,
            command: config.command.clone(),
        }
    }

    /// Checks for ever, and tells what changes.
    pub async fn run(self, health: watch::Sender<Health>) {
        let mut checked = Checked::new(Instant::now());
        loop {
            checked = check::once_more(&checked, &self.timing, self.check()).await;
            let failure = checked.last.as_ref().and_then(|last| last.failure.as_ref()).map(ToString::to_string);
            let seen = Health { state: checked.state, failure };
            health.send_if_modified(|health| {
                let changed = *health != seen;
                *health = seen;
                changed
            });
        }
    }

    async fn check(&self) -> check::Outcome {
        for request in &self.requests {
            check::perform(&self.service, &self.endpoint, &self.settings, request).await?;
        }
        if let Some((program, arguments)) = self.command.split_first() {
            run(program, arguments, self.timing.timeout)
                .await
                .map_err(|cause| Failure { layer: Layer::Command, cause })?;
        }
        Ok(())
    }
}

/// Runs a command to its end; fails unless it exits with 0 in time, with the first line of what it said on stderr.
async fn run(program: &str, arguments: &[String], limit: Duration) -> Result<(), String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    for name in NOT_FOR_CHILDREN {
        command.env_remove(name);
    }
    let mut child = command.spawn().map_err(|error| format!("`{program}` cannot be run: {error}"))?;
    let (stderr, mut said) = (child.stderr.take(), Vec::new());
    let ended = async {
        let mut reading = pin!(keep_beginning(stderr, &mut said));
        tokio::select! {
            status = child.wait() => {
                // What it has started may hold its stderr open for ever.
                let _ = timeout(LAST_WORDS, reading).await;
                status
            }
            () = &mut reading => child.wait().await,
        }
    };
    match timeout(limit, ended).await {
        Err(_) => Err(format!("`{program}` did not end within {limit:?}")),
        Ok(Err(error)) => Err(format!("`{program}`: {error}")),
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(format!("`{program}` {}{}", how(status), first_line(&said))),
    }
}

fn how(status: ExitStatus) -> String {
    status.code().map_or_else(|| format!("was ended: {status}"), |code| format!("gave exit code {code}"))
}

/// Keeps how it begins. Reads to the end, lest the program wait for a reader.
async fn keep_beginning(from: Option<impl AsyncRead + Unpin>, said: &mut Vec<u8>) {
    let Some(mut from) = from else { return };
    let mut chunk = [0; 512];
    while let Ok(count @ 1..) = from.read(&mut chunk).await {
        said.extend_from_slice(&chunk[..count]);
        said.truncate(SAID);
    }
}

/// The first line, after a colon.
fn first_line(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    text.lines().next().filter(|line| !line.is_empty()).map(|line| format!(": {line}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_command_decides_by_its_exit_code() {
        let limit = Duration::from_secs(20);
        let sh = |script: &str| ["-c".to_owned(), script.to_owned()];
        assert_eq!(run("sh", &sh("exit 0"), limit).await, Ok(()));
        let failed = run("sh", &sh("echo no database >&2; echo more >&2; exit 3"), limit).await;
        assert_eq!(failed.unwrap_err(), "`sh` gave exit code 3: no database");
        assert!(run("sh", &sh("kill -9 $$"), limit).await.unwrap_err().contains("signal: 9"));
        assert!(run("/no/such/program", &[], limit).await.unwrap_err().starts_with("`/no/such/program` cannot be run"));
        let late = run("sleep", &["60".into()], Duration::from_millis(50)).await;
        assert_eq!(late.unwrap_err(), "`sleep` did not end within 50ms");
    }

    #[tokio::test]
    async fn what_a_command_leaves_running_is_not_waited_for() {
        let limit = Duration::from_secs(20);
        let sh = |script: &str| ["-c".to_owned(), script.to_owned()];
        assert_eq!(run("sh", &sh("sleep 60 & exit 0"), limit).await, Ok(()));
        let failed = run("sh", &sh("echo no database >&2; sleep 60 & exit 3"), limit).await;
        assert_eq!(failed.unwrap_err(), "`sh` gave exit code 3: no database");
    }

    #[tokio::test]
    async fn all_checks_that_are_given_must_pass() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::Ip(listener.local_addr().unwrap());
        let check = async |config: &LocalHealth| Checks::new("web", config, address.clone(), None).check().await;
        assert_eq!(check(&LocalHealth::default()).await, Ok(()));
        let command = |program: &str| LocalHealth { command: vec![program.into()], ..LocalHealth::default() };
        assert_eq!(check(&command("true")).await, Ok(()));
        assert_eq!(check(&command("false")).await.unwrap_err().layer, Layer::Command);
        // Even if a process that is being started holds a copy of it.
        socket2::SockRef::from(&listener).shutdown(std::net::Shutdown::Both).unwrap();
        assert_eq!(check(&LocalHealth::default()).await.unwrap_err().layer, Layer::Tcp);
        assert_eq!(check(&command("true")).await, Ok(()), "nothing was said of a connection");
    }
}
