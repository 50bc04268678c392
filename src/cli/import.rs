//! `pillion import`: routes that were written for Istio or a gateway, as pillion's config.

use super::{EXIT_FAILED, EXIT_USAGE};
use crate::import::{self, Imported, Options, Source};
use clap::Args;
use std::{
    io::{self, Read},
    path::PathBuf,
    process::ExitCode,
};

/// Turn Istio's VirtualService and DestinationRule, and the Gateway API's HTTPRoute, into pillion's config.
///
/// The config goes to standard output. What cannot be carried over, or means something slightly different, is told on
/// standard error, each with its place and what to do instead.
#[derive(Debug, Args)]
pub struct Import {
    /// YAML or JSON, with any number of objects in each; `-` is standard input.
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Services of this namespace are called by their names alone, all others `NAME.NAMESPACE`.
    #[arg(long, value_name = "NAMESPACE", default_value = "default")]
    namespace: String,
    /// A registry for the config, as `pillion run --registry` takes it. Can be given several times.
    #[arg(long, value_name = "URL")]
    registry: Vec<String>,
    /// Fail where anything is not carried over as it was, and print no config.
    #[arg(long)]
    strict: bool,
}

impl Import {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let mut sources = Vec::new();
        for file in &self.files {
            match read(file) {
                Ok(source) => sources.push(source),
                Err(error) => {
                    eprintln!("{}: cannot be read: {error}", file.display());
                    return Ok(ExitCode::from(EXIT_USAGE));
                }
            }
        }
        let options = Options { namespace: self.namespace, registries: self.registry };
        let Imported { config, notes } = match import::import(&sources, &options) {
            Ok(imported) => imported,
            Err(errors) => {
                errors.iter().for_each(|error| eprintln!("{error}"));
                return Ok(ExitCode::from(EXIT_USAGE));
            }
        };
        notes.iter().for_each(|note| eprintln!("{note}"));
        if self.strict && !notes.is_empty() {
            return Ok(ExitCode::from(EXIT_FAILED));
        }
        super::say(&config)?;
        Ok(ExitCode::SUCCESS)
    }
}

fn read(file: &PathBuf) -> io::Result<Source> {
    if file.as_os_str() != "-" {
        return Ok(Source { name: file.display().to_string(), text: std::fs::read(file)? });
    }
    let mut text = Vec::new();
    io::stdin().lock().read_to_end(&mut text)?;
    Ok(Source { name: "standard input".into(), text })
}
