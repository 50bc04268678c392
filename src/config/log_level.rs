//! Levels of the log, as text.

use super::error::{did_you_mean, one_of, shorten};
use tracing_subscriber::filter::{LevelFilter, Targets};

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// What `log.level` stands for. Read by hand because `Targets` and `EnvFilter` take a misspelt level (`inof`) for a module's name and then log
/// everything of that module and nothing else.
pub fn log_filter(text: &str) -> Result<Targets, String> {
    let level = |word: &str| match word.trim().to_ascii_lowercase().as_str() {
        "off" => Ok(LevelFilter::OFF),
        "error" => Ok(LevelFilter::ERROR),
        "warn" => Ok(LevelFilter::WARN),
        "info" => Ok(LevelFilter::INFO),
        "debug" => Ok(LevelFilter::DEBUG),
        "trace" => Ok(LevelFilter::TRACE),
        _ => Err(format!(
            "found `{}`; expected {}, or per module like `info,pillion::registry=debug`{}",
            shorten(word),
            one_of(LEVELS),
            did_you_mean(word, LEVELS)
        )),
    };
    let mut targets = Targets::new();
    for part in text.split(',') {
        targets = match part.split_once('=') {
            None => targets.with_default(level(part)?),
            Some((module, word)) if !module.trim().is_empty() => targets.with_target(module.trim(), level(word)?),
            Some(_) => return Err(format!("`{part}` has no module before the `=`")),
        };
    }
    Ok(targets)
}
