//! `pillion register`: the registrar alone, and the application as its child if it is to run it.

use super::{
    ConfigArgs, EXIT_FAILED, EXIT_USAGE,
    supervise::{Source, Supervisor},
};
use crate::{
    app::{App, ConfigFile},
    config::{self, Config, Env, Overrides, RegisterPort},
    drain::{End, Step},
    net::descriptors,
    telemetry::log,
};
use anyhow::Context;
use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Map, Value, json};
use std::{
    os::unix::process::ExitStatusExt,
    process::{ExitCode, ExitStatus},
};
use tokio::process::{Child, Command};

/// Register an application while it passes its checks, and run it if COMMAND is given.
///
/// Without COMMAND it watches an application that runs elsewhere on this machine. SIGTERM deregisters it, waits until its
/// callers know, and only then ends COMMAND. When COMMAND ends, it is deregistered, and its exit code is pillion's;
/// 0 if it ended by the SIGTERM that pillion sent it.
#[derive(Debug, Args)]
pub struct Register {
    #[command(flatten)]
    config: ConfigArgs,
    /// What the application is called. Without it, `register` in the config file says what is registered.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["file", "config"], required_unless_present_any = ["file", "config"])]
    service: Option<String>,
    /// Where it listens; without it, the port on which COMMAND listens.
    #[arg(long, value_name = "PORT", requires = "service")]
    port: Option<u16>,
    /// Where others reach it: an IP address or a host name; by default the address from which this machine reaches others.
    #[arg(long, value_name = "HOST", requires = "service")]
    address: Option<String>,
    /// Unique within the service; NAME-HOST-PORT by default.
    #[arg(long, requires = "service")]
    id: Option<String>,
    /// The version of the instance, for callers that choose by it.
    #[arg(long, value_name = "VERSION", requires = "service", id = "app-version")]
    version: Option<String>,
    /// The zone of the instance, for callers that prefer their own.
    #[arg(long, requires = "service")]
    zone: Option<String>,
    /// Share of the traffic relative to the service's other instances.
    #[arg(long, requires = "service")]
    weight: Option<u32>,
    /// What it speaks: http1 or http2.
    #[arg(long, requires = "service")]
    protocol: Option<String>,
    /// A tag, where the registry has such. Can be given several times.
    #[arg(long = "tag", value_name = "TAG", requires = "service")]
    tags: Vec<String>,
    /// Metadata of the instance. Can be given several times.
    #[arg(long = "meta", value_name = "KEY=VALUE", requires = "service")]
    metadata: Vec<String>,
    /// How it is checked: `tcp` (by default), a path for HTTP, `grpc`, or `grpc:SERVICE`.
    #[arg(long, value_name = "CHECK", requires = "service")]
    health: Option<String>,
    /// From one check to the next, e.g. 5s.
    #[arg(long, value_name = "TIME", requires = "service")]
    interval: Option<String>,
    /// When pillion is killed, the registry forgets the entry after this; 15s by default.
    #[arg(long, value_name = "TIME", requires = "service")]
    ttl: Option<String>,
    /// The application with its arguments.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Register {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let file = self.config.file().cloned().map(ConfigFile::new);
        let config = self.load()?;
        if let Some(mistake) = self.mistake(&config) {
            eprintln!("{mistake}");
            return Ok(ExitCode::from(EXIT_USAGE));
        }
        let log = log::install(&config.log).map_err(anyhow::Error::msg)?;
        let control = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        control.block_on(async {
            let mut supervisor = Supervisor::new()?;
            if self.command.is_empty() {
                let app = App::start(config, log).await?;
                return Ok(supervisor.supervise(app, Source { load: &|| self.load(), file }).await);
            }
            // pillion first: the application may call others as soon as it runs.
            let mut app = App::start(Config { register: Vec::new(), ..config.clone() }, log).await?;
            let application = Application::start(&self.command)?;
            let id = application.id;
            app.reload(of_process(config, id)).await?;
            let load = || self.load().map(|config| of_process(config, id));
            accompany(app, application, &mut supervisor, Source { load: &load, file }).await
        })
    }

    /// What is wrong with how it was called, where the config itself is good.
    fn mistake(&self, config: &Config) -> Option<String> {
        if self.service.is_none() && self.describes() {
            return Some(
                "flags that describe the application go with --service; the config file says it in `register`".into(),
            );
        }
        if let Some(pair) = self.metadata.iter().find(|pair| !pair.contains('=')) {
            return Some(format!("--meta {pair}: expected KEY=VALUE"));
        }
        if config.register.is_empty() {
            return Some("the config registers nothing; expected `register`, or --service".into());
        }
        let of_command = config.register.iter().any(|register| register.port == Some(RegisterPort::Command));
        (self.command.is_empty() && of_command)
            .then(|| "it is not known on which port the application is; expected --port, or `-- COMMAND`".into())
    }

    /// Whether any flag says something of the application.
    fn describes(&self) -> bool {
        let texts = [
            &self.address,
            &self.id,
            &self.version,
            &self.zone,
            &self.protocol,
            &self.health,
            &self.interval,
            &self.ttl,
        ];
        self.port.is_some()
            || self.weight.is_some()
            || !self.tags.is_empty()
            || !self.metadata.is_empty()
            || texts.iter().any(|text| text.is_some())
    }

    fn load(&self) -> Result<Config, config::Errors> {
        if self.service.is_none() {
            // Upgrades are for `pillion run`: the process of an application cannot go to another parent.
            return Ok(Config { upgrade: None, ..self.config.load()?.config });
        }
        let overrides: Overrides = self.config.overrides();
        let has_listener = overrides.listen.is_some() || std::env::var_os("PILLION_LISTEN").is_some();
        let env: &Env = &|name| std::env::var(name).ok();
        let text = self.written().to_string();
        let mut config = config::load(config::Origin::text("the flags", text).with(overrides), env)?.config;
        if !has_listener {
            config.listeners.clear();
        }
        Ok(config)
    }

    /// What the flags say, as the config file would.
    fn written(&self) -> Value {
        let mut register = Map::new();
        let mut set = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                register.insert(key.into(), value);
            }
        };
        let text = |text: &Option<String>| text.clone().map(Value::from);
        set("service", text(&self.service));
        set("port", Some(self.port.map_or_else(|| "command".into(), Value::from)));
        set("address", text(&self.address));
        set("id", text(&self.id));
        set("version", text(&self.version));
        set("zone", text(&self.zone));
        set("weight", self.weight.map(Value::from));
        set("protocol", text(&self.protocol));
        set("ttl", text(&self.ttl));
        set("tags", (!self.tags.is_empty()).then(|| json!(self.tags)));
        let pairs = self.metadata.iter().map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let metadata: Map<_, _> = pairs.map(|(key, value)| (key.to_owned(), value.into())).collect();
        set("metadata", (!metadata.is_empty()).then(|| Value::Object(metadata)));
        let mut health = Map::new();
        match self.health.as_deref() {
            None | Some("tcp") => {}
            Some("grpc") => drop(health.insert("grpc".into(), json!({}))),
            Some(check) => match check.strip_prefix("grpc:") {
                Some(service) => drop(health.insert("grpc".into(), json!({ "service": service }))),
                None => drop(health.insert("http".into(), check.into())),
            },
        }
        if let Some(interval) = &self.interval {
            health.insert("interval".into(), interval.as_str().into());
        }
        set("health", (!health.is_empty()).then(|| Value::Object(health)));
        // Several on one machine must not be in each other's way.
        json!({ "register": [register], "admin": { "listen": "127.0.0.1:0" } })
    }
}

/// Until the application and pillion have ended, whichever is the first.
async fn accompany(
    app: App,
    mut application: Application,
    supervisor: &mut Supervisor,
    source: Source<'_>,
) -> anyhow::Result<ExitCode> {
    let (drain, timeout) = (app.drain().clone(), app.drain_timeout());
    let mut ended = None;
    let code = {
        let ending = async {
            tokio::select! {
                status = application.process.wait() => return status.map(|status| (status, false)),
                () = drain.reached(Step::Finish) => {}
            }
            application.end().await.map(|status| (status, true))
        };
        let supervising = supervisor.supervise(app, source);
        tokio::pin!(ending, supervising);
        tokio::select! {
            code = &mut supervising => code,
            status = &mut ending => {
                ended = Some(status.context("the application cannot be waited for")?);
                // Nobody needs pillion any more.
                drain.ask(End::Quit, "the end of the application", timeout());
                supervising.await
            }
        }
    };
    let Some((status, asked)) = ended else {
        tracing::warn!("the application did not end in time, and is killed");
        application.process.kill().await.context("the application cannot be killed")?;
        return Ok(ExitCode::from(EXIT_FAILED));
    };
    tracing::info!(%status, "the application has ended");
    Ok(if code == ExitCode::SUCCESS { exit_code(status, asked) } else { code })
}

/// The same config, with the process `id` as the command. It goes before pillion does.
fn of_process(mut config: Config, id: u32) -> Config {
    for register in &mut config.register {
        if register.port == Some(RegisterPort::Command) {
            register.port = Some(RegisterPort::Pid(id));
        }
    }
    config.drain.wait_for_app = true;
    config
}

/// The application as a child.
struct Application {
    process: Child,
    id: u32,
}

impl Application {
    fn start(command: &[String]) -> anyhow::Result<Self> {
        let (program, arguments) = command.split_first().context("expected a command")?;
        let mut command = Command::new(program);
        // It would tell the service manager things in our name, and take our sockets for its own.
        for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"] {
            command.env_remove(name);
        }
        command.args(arguments).kill_on_drop(true);
        let process = descriptors::with_the_limit_found(|| command.spawn());
        let process = process.with_context(|| format!("cannot run `{program}`"))?;
        let id = process.id().context("it has ended at once")?;
        tracing::info!(id, program, "the application was started");
        Ok(Self { process, id })
    }

    /// Asks it to end, and waits for it. Whoever drops this kills it.
    async fn end(&mut self) -> std::io::Result<ExitStatus> {
        if let Some(id) = self.process.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
            tracing::info!("asking the application to end");
            // It may have ended just now.
            let _ = kill_process(id, Signal::TERM);
        }
        self.process.wait().await
    }
}

/// As shells do: the exit code, or 128 and the signal. One that was asked to end and has no answer of its own to that signal
/// did as it was told.
fn exit_code(status: ExitStatus, asked: bool) -> ExitCode {
    if asked && status.signal() == Some(Signal::TERM.as_raw()) {
        return ExitCode::SUCCESS;
    }
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_own_end_is_told_and_the_one_that_was_asked_for_is_none() {
        let (term, kill, three) = (ExitStatus::from_raw(15), ExitStatus::from_raw(9), ExitStatus::from_raw(3 << 8));
        assert_eq!(exit_code(term, true), ExitCode::SUCCESS);
        assert_eq!(exit_code(term, false), ExitCode::from(143));
        assert_eq!((exit_code(kill, true), exit_code(three, true)), (ExitCode::from(137), ExitCode::from(3)));
    }
}
