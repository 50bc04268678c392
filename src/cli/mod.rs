//! The command line: one file per command.

mod check;
mod client;
mod demo;
#[cfg(test)]
mod documents;
mod endpoints;
mod explain;
mod import;
mod net;
mod origin;
mod register;
mod rollout;
mod run;
mod schema;
mod services;
mod supervise;
mod wait;

use crate::config::{self, Env, Overrides};
use clap::{Args, Parser, Subcommand};
use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

/// Bad usage or a bad config (`EX_USAGE` of sysexits.h).
pub const EXIT_USAGE: u8 = 64;
/// It did not work.
pub const EXIT_FAILED: u8 = 1;

/// A sidecar proxy that learns where services live straight from the service registry.
#[derive(Debug, Parser)]
#[command(name = "pillion", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Run),
    Register(Box<register::Register>),
    Check(check::Check),
    Demo(demo::Demo),
    Schema(schema::Schema),
    Services(services::Services),
    Endpoints(endpoints::Endpoints),
    Explain(explain::Explain),
    Rollout(rollout::Rollout),
    Wait(wait::Wait),
    Import(import::Import),
    Net(net::Net),
}

/// Runs the program. Exit codes: 0 done, 64 bad usage or config, 1 failed.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { EXIT_USAGE } else { 0 };
            // Nothing can be done when the terminal is gone.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let done = |()| ExitCode::SUCCESS;
    let ended = match cli.command {
        Command::Run(run) => run.run(),
        Command::Register(register) => register.run(),
        Command::Check(check) => check.run().map(done),
        Command::Demo(demo) => demo.run().map(done),
        Command::Schema(schema) => schema.run().map(done),
        Command::Services(services) => services.run().map(done),
        Command::Endpoints(endpoints) => endpoints.run().map(done),
        Command::Explain(explain) => explain.run().map(done),
        Command::Rollout(rollout) => rollout.run().map(done),
        Command::Wait(wait) => wait.run().map(done),
        Command::Import(import) => import.run(),
        Command::Net(net) => net.run(),
    };
    match ended {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(if error.is::<config::Errors>() { EXIT_USAGE } else { EXIT_FAILED })
        }
    }
}

/// Prints what was asked for.
fn say(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // `pillion services | head -1` got what it wanted.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

/// Where the config comes from.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// The config file. Without it, a registry is enough.
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The same as FILE.
    #[arg(short, long = "config", value_name = "FILE", env = "PILLION_CONFIG", conflicts_with = "file")]
    config: Option<PathBuf>,
    /// A registry, instead of those in the file: `consul://HOST:PORT`, `etcd://HOST:PORT/PREFIX?layout=LAYOUT`,
    /// `zookeeper://HOST:PORT?layout=LAYOUT`, `nacos://HOST:PORT/NAMESPACE?group=GROUP`, `eureka://HOST:PORT`, `kubernetes:`,
    /// `redis://HOST:PORT`, `dns://IP/NAME`, `xds://HOST:PORT`, `file:PATH`, `embedded:`. Can be given several times [env:
    /// PILLION_REGISTRY].
    #[arg(long, value_name = "URL")]
    registry: Vec<String>,
    /// Where the egress listener listens, e.g. 127.0.0.1:4140 [env: PILLION_LISTEN].
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<String>,
    /// Where the admin interface listens, e.g. 127.0.0.1:4191 [env: PILLION_ADMIN].
    #[arg(long, value_name = "IP:PORT")]
    admin: Option<String>,
    /// Threads that carry traffic: a number or `auto` [env: PILLION_WORKERS].
    #[arg(long, value_name = "N")]
    workers: Option<String>,
    /// `error`, `warn`, `info`, `debug`, `trace`, or per module [env: PILLION_LOG].
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

impl ConfigArgs {
    fn file(&self) -> Option<&PathBuf> {
        self.file.as_ref().or(self.config.as_ref())
    }

    fn overrides(&self) -> Overrides {
        Overrides {
            registry: self.registry.clone(),
            listen: self.listen.clone(),
            admin: self.admin.clone(),
            workers: self.workers.clone(),
            log_level: self.log_level.clone(),
        }
    }

    fn load(&self) -> Result<config::Loaded, config::Errors> {
        let source = match self.file() {
            Some(file) => config::Origin::file(file),
            None => config::Origin::default(),
        };
        let env: &Env = &|name| std::env::var(name).ok();
        config::load(source.with(self.overrides()), env)
    }
}
