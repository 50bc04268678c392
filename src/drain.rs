//! The end of the process, as everybody sees it: who asked for it, and how far it is. Signals and the admin interface ask,
//! `app` carries it out.

use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::{sync::watch, time::Instant};

/// What kind of end is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// The application still works on what it has, and its callers must hear that it leaves.
    Drain,
    /// The application is done, as a job is. Only requests in progress are waited for.
    Quit,
}

/// What is going on. In this order; some are left out where there is nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Nobody asked for the end.
    Running,
    /// The application is being taken out of its registries.
    Deregister,
    /// Callers hear of that.
    Spread,
    /// No new inbound connections. Outbound ones as before, for as long as there are requests.
    Finish,
    /// No new connections at all. Requests in progress end.
    Close,
    /// What was in progress at the deadline is cut off.
    Cut,
}

/// Who asked for which end, and when it is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    pub end: End,
    pub by: &'static str,
    pub at: Instant,
    pub deadline: Instant,
}

impl Asked {
    /// All the time there is. The config may say something else by now.
    pub fn timeout(&self) -> Duration {
        self.deadline - self.at
    }
}

/// The end, or that there is none yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub asked: Option<Asked>,
    pub step: Step,
    /// The steps so far, each with its beginning.
    pub steps: Vec<(Step, Instant)>,
}

/// Where it is asked for and looked at.
#[derive(Debug)]
pub struct Drain {
    state: watch::Sender<State>,
}

impl Default for Drain {
    fn default() -> Self {
        Self { state: watch::Sender::new(State { asked: None, step: Step::Running, steps: Vec::new() }) }
    }
}

impl Drain {
    /// Asks for the end. It has one deadline, that of the first who asks; who asks again can only shorten it: after
    /// [`End::Quit`] nothing but requests is waited for. Gives what is so now.
    pub fn ask(&self, end: End, by: &'static str, timeout: Duration) -> State {
        let now = Instant::now();
        self.state.send_if_modified(|state| match &mut state.asked {
            Some(asked) if asked.end >= end => false,
            Some(asked) => {
                asked.end = end;
                true
            }
            None => {
                state.asked = Some(Asked { end, by, at: now, deadline: now + timeout });
                true
            }
        });
        self.state()
    }

    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    pub fn is_asked(&self) -> bool {
        self.state.borrow().asked.is_some()
    }

    /// Returns when at least this end is asked for.
    pub async fn asked(&self, end: End) -> Asked {
        let mut state = self.state.subscribe();
        loop {
            if let Some(asked) = state.borrow_and_update().asked.filter(|asked| asked.end >= end) {
                return asked;
            }
            // The sender is `self`.
            let _ = state.changed().await;
        }
    }

    /// Returns when it is as far as `step`, or further.
    pub async fn reached(&self, step: Step) {
        // The sender is `self`.
        let _ = self.state.subscribe().wait_for(|state| state.step >= step).await;
    }

    /// A step begins. Gives the time that the one before took.
    pub fn enter(&self, step: Step) -> Duration {
        let now = Instant::now();
        let mut before = Duration::ZERO;
        self.state.send_modify(|state| {
            let since = state.steps.last().map(|(_, since)| *since).or(state.asked.map(|asked| asked.at));
            before = since.map_or(before, |since| now - since);
            state.step = step;
            state.steps.push((step, now));
        });
        before
    }
}

impl Step {
    /// For people.
    pub const fn what(self) -> &'static str {
        match self {
            Self::Running => "pillion takes traffic",
            Self::Deregister => "the application is being taken out of its registries",
            Self::Spread => "callers hear that the application leaves",
            Self::Finish => "no new inbound connections; requests in progress finish, and outbound ones are taken",
            Self::Close => "no new connections; requests in progress finish",
            Self::Cut => "requests that are still in progress are cut off",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_asks_again_can_only_shorten_it() {
        let drain = Drain::default();
        assert_eq!((drain.is_asked(), drain.state().step), (false, Step::Running));
        let first = drain.ask(End::Drain, "SIGTERM", Duration::from_secs(30)).asked.unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        let again = drain.ask(End::Drain, "SIGINT", Duration::from_secs(300)).asked.unwrap();
        assert_eq!((again, first.deadline - first.at), (first, Duration::from_secs(30)));
        let quit = drain.ask(End::Quit, "POST /api/quit", Duration::from_secs(300)).asked.unwrap();
        assert_eq!(quit, Asked { end: End::Quit, ..first });
        drain.ask(End::Drain, "SIGTERM", Duration::from_secs(1));
        assert_eq!(drain.asked(End::Quit).await, quit);
    }

    #[tokio::test(start_paused = true)]
    async fn a_quit_is_a_drain_and_a_drain_is_no_quit() {
        let drain = Drain::default();
        drain.ask(End::Drain, "SIGTERM", Duration::from_secs(30));
        assert_eq!(drain.asked(End::Drain).await.end, End::Drain);
        let hour = Duration::from_secs(3600);
        assert!(tokio::time::timeout(hour, drain.asked(End::Quit)).await.is_err());
        let quit = async {
            tokio::time::sleep(hour).await;
            drain.ask(End::Quit, "POST /api/quit", hour);
        };
        assert_eq!(tokio::join!(drain.asked(End::Quit), quit).0.by, "SIGTERM");
    }

    #[tokio::test(start_paused = true)]
    async fn steps_have_their_times() {
        let drain = Drain::default();
        drain.ask(End::Drain, "SIGTERM", Duration::from_secs(30));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(drain.enter(Step::Deregister), Duration::from_secs(1));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(drain.enter(Step::Close), Duration::from_secs(2));
        let state = drain.state();
        let asked = state.asked.unwrap().at;
        let times: Vec<_> = state.steps.iter().map(|(step, at)| (*step, (*at - asked).as_secs())).collect();
        assert_eq!((state.step, times), (Step::Close, vec![(Step::Deregister, 1), (Step::Close, 3)]));
    }
}
