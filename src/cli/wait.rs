//! `pillion wait`: until a pillion is ready, for hooks and units that start something after it.

use super::client::{self, Answer, Target};
use crate::{admin::view::NotReady, config::human};
use anyhow::bail;
use http::StatusCode;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(100);

const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// Wait until a pillion is ready. It need not even run yet.
#[derive(Debug, Clone, clap::Args)]
pub struct Wait {
    #[command(flatten)]
    target: Target,
    /// Fail after this time, saying what is missing.
    #[arg(long, value_name = "TIME", value_parser = limit, default_value = "60s")]
    timeout: Duration,
    /// What to wait for.
    #[arg(long = "for", value_name = "STATE", value_enum, default_value_t = Goal::Ready)]
    goal: Goal,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Goal {
    /// It can take traffic.
    Ready,
    /// The same, and the application is in all its registries, so that an older one of it may end.
    Registered,
    /// It runs.
    Live,
    /// It could take traffic once, whatever is so now.
    Startup,
}

impl Wait {
    pub fn run(self) -> anyhow::Result<()> {
        client::run(self.output())
    }

    async fn output(self) -> anyhow::Result<String> {
        let deadline = Instant::now() + self.timeout;
        let (path, is) = match self.goal {
            Goal::Ready => ("/ready", "is ready"),
            Goal::Registered => ("/registered", "is ready, and its application registered"),
            Goal::Live => ("/live", "is live"),
            Goal::Startup => ("/startup", "has started"),
        };
        let mut missing = "it has not answered yet".to_owned();
        let asking = async {
            loop {
                match self.target.get(path).await {
                    Ok(answer) if answer.status == StatusCode::OK && answer.text().starts_with("ok") => return,
                    Ok(answer) => missing = why_not(&answer),
                    Err(error) => missing = format!("{error:#}"),
                }
                sleep(PAUSE).await;
            }
        };
        if timeout_at(deadline, asking).await.is_err() {
            bail!("waited {} in vain: {missing}", human::format(self.timeout));
        }
        Ok(format!("pillion at {} {is}\n", self.target.admin))
    }
}

/// A time that can be added to the clock.
fn limit(text: &str) -> Result<Duration, String> {
    let time = human::parse(text)?;
    if time > LONGEST { Err(format!("`{text}` is longer than a year; expected at most `365d`")) } else { Ok(time) }
}

fn why_not(answer: &Answer) -> String {
    answer.read::<NotReady>().map_or_else(|error| format!("{error:#}"), |missing| client::printable(&missing.error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        wait: Wait,
    }

    fn parse(args: &[&str]) -> Wait {
        Line::try_parse_from([&["wait"], args].concat()).unwrap_or_else(|error| panic!("{error}")).wait
    }

    #[test]
    fn it_waits_a_minute_for_readiness_unless_told_otherwise() {
        let wait = parse(&["--admin", "127.0.0.1:1"]);
        assert_eq!((wait.timeout, wait.goal), (Duration::from_secs(60), Goal::Ready));
        let wait = parse(&["--admin", "127.0.0.1:1", "--timeout", "5s", "--for", "startup"]);
        assert_eq!((wait.timeout, wait.goal), (Duration::from_secs(5), Goal::Startup));
    }

    #[test]
    fn a_time_that_no_clock_has_is_refused() {
        assert_eq!(parse(&["--timeout", "365d"]).timeout, LONGEST);
        let found = Line::try_parse_from(["wait", "--timeout", "200000000000d"]).err().unwrap().to_string();
        assert!(found.contains("is longer than a year; expected at most `365d`"), "{found}");
        let found = Line::try_parse_from(["wait", "--timeout", "soon"]).err().unwrap().to_string();
        assert!(found.contains("`soon`") && !found.contains("year"), "{found}");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_there_is_asked_again_until_the_time_is_up() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let begun = Instant::now();
        let wait = parse(&["--admin", &format!("127.0.0.1:{port}"), "--timeout", "10s"]);
        let error = wait.output().await.unwrap_err().to_string();
        assert_eq!(begun.elapsed().as_secs(), 10);
        let expected = format!("waited 10s in vain: cannot reach pillion's admin interface at 127.0.0.1:{port}: ");
        assert!(error.starts_with(&expected), "{error}");
    }
}
