//! pillion's own log on standard error. Its level can be changed while it runs.

use crate::config::{Log, LogFormat, log_filter};
use arc_swap::ArcSwap;
use std::{io::IsTerminal, sync::Arc};
use tracing::Subscriber;
use tracing_subscriber::{
    Layer, Registry,
    filter::Targets,
    fmt::{self, MakeWriter},
    layer::SubscriberExt,
    reload,
};

/// Changes the level of the log.
#[derive(Debug, Clone)]
pub struct LogHandle {
    filter: reload::Handle<Targets, Registry>,
    current: Arc<ArcSwap<String>>,
}

impl LogHandle {
    /// Sets the level: `info`, or per module `info,pillion::registry=debug`. A text that cannot be read changes nothing.
    pub fn set(&self, level: &str) -> Result<(), String> {
        let filter = log_filter(level)?;
        self.filter.reload(filter).map_err(|error| error.to_string())?;
        self.current.store(Arc::new(level.trim().to_owned()));
        Ok(())
    }

    /// The level as it was set last.
    pub fn current(&self) -> String {
        self.current.load().as_ref().clone()
    }
}

/// Starts the log for the whole process. Only the first call in a process can succeed.
pub fn install(config: &Log) -> Result<LogHandle, String> {
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let (subscriber, handle) = subscriber(config, std::io::stderr, colour)?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| "the log is already running".to_owned())?;
    Ok(handle)
}

fn subscriber<W>(
    config: &Log,
    writer: W,
    colour: bool,
) -> Result<(impl Subscriber + Send + Sync + 'static, LogHandle), String>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    // A filter for the whole subscriber and not for one layer, so that what is off costs a caller one load.
    let (filter, handle) = reload::Layer::new(log_filter(&config.level)?);
    let handle = LogHandle { filter: handle, current: Arc::new(ArcSwap::from_pointee(config.level.trim().to_owned())) };
    let lines = match config.format {
        LogFormat::Text => fmt::layer().with_ansi(colour).with_writer(writer).boxed(),
        LogFormat::Json => fmt::layer().json().flatten_event(true).with_writer(writer).boxed(),
    };
    Ok((Registry::default().with(filter).with(lines), handle))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{self, Write},
        sync::mpsc,
    };

    #[derive(Clone)]
    struct Lines(mpsc::Sender<Vec<u8>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).unwrap();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn start(
        level: &str,
        format: LogFormat,
    ) -> (tracing::subscriber::DefaultGuard, LogHandle, mpsc::Receiver<Vec<u8>>) {
        let (sender, receiver) = mpsc::channel();
        let lines = Lines(sender);
        let (subscriber, handle) =
            subscriber(&Log { level: level.into(), format }, move || lines.clone(), false).unwrap();
        (tracing::subscriber::set_default(subscriber), handle, receiver)
    }

    fn read(lines: &mpsc::Receiver<Vec<u8>>) -> String {
        String::from_utf8(lines.try_iter().flatten().collect()).unwrap()
    }

    #[test]
    fn the_level_changes_while_it_runs() {
        let (_guard, handle, lines) = start("info", LogFormat::Text);
        tracing::debug!("quiet");
        tracing::info!(service = "users", "loud");
        let text = read(&lines);
        assert!(text.contains("loud") && text.contains("users") && !text.contains("quiet"), "{text}");
        handle.set("warn,pillion::telemetry=debug").unwrap();
        tracing::debug!("now heard");
        tracing::info!(target: "pillion::registry", "no longer heard");
        let text = read(&lines);
        assert!(text.contains("now heard") && !text.contains("no longer"), "{text}");
        assert!(handle.set("loud").unwrap_err().contains("found `loud`; expected"));
        assert_eq!(handle.current(), "warn,pillion::telemetry=debug", "a bad level changes nothing");
    }

    #[test]
    fn a_json_line_is_one_object() {
        let (_guard, _handle, lines) = start("info", LogFormat::Json);
        tracing::warn!(service = "a\"b\n", "with a \u{1} control character");
        let text = read(&lines);
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((line["level"].as_str(), line["service"].as_str()), (Some("WARN"), Some("a\"b\n")));
    }

    #[test]
    fn levels_that_are_none_are_refused() {
        for text in ["", "inof", "info,", "info,pillion=", "=debug", "pillion::registry", "info;debug"] {
            assert!(log_filter(text).is_err(), "{text}");
        }
        for text in ["off", "INFO", "info, hyper=warn", "pillion=trace"] {
            assert!(log_filter(text).is_ok(), "{text}");
        }
    }
}
