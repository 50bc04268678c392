//! Following one service by blocking queries.

use super::{
    Consul,
    client::{Ask, Page},
    decode::{self, Row},
};
use crate::{
    backoff::Backoff,
    registry::{
        Instance, RegistryError,
        watch::{Failure, Found, News, Watch},
    },
};
use std::{sync::Arc, time::Duration};
use tokio::time::sleep;

/// Wake-ups without a change that are answered at once, as Consul's documentation allows.
const FREE_WAKE_UPS: u32 = 2;

/// Consul wakes a query also for changes elsewhere: of a check's output, or of any service when this one does not exist. Such
/// wake-ups in a row are slowed down; a real change is not, for it resets this.
pub struct Pace {
    idle: Backoff,
    in_vain: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self { idle: Backoff::new(Duration::from_millis(50), Duration::from_secs(2)), in_vain: 0 }
    }
}

impl Pace {
    pub async fn slow_down(&mut self) {
        self.in_vain += 1;
        if self.in_vain > FREE_WAKE_UPS {
            sleep(self.idle.next_wait()).await;
        }
    }

    pub fn real_change(&mut self) {
        self.in_vain = 0;
        self.idle.reset();
    }
}

/// How far one query has come: the newest index that was heard.
#[derive(Default)]
pub struct Progress(u64);

impl Progress {
    pub fn newest(&self) -> u64 {
        self.0
    }

    /// What waits for news.
    pub fn news(&self, wait: Duration) -> Ask {
        Ask::After(self.0, wait)
    }

    /// The first answer comes from the leader, and so does one instead of an answer that is older than what was heard before:
    /// a server that is restarted answers while it reads its log, from as much of that as it has read, and would take the
    /// service back through all it has ever been. An index that goes back for another reason means that the server's state
    /// was replaced, and then the leader's counts.
    pub async fn ask<R, F>(&mut self, ask: Ask, query: impl Fn(Ask) -> F) -> Result<R, RegistryError>
    where
        F: Future<Output = Result<Page<R>, RegistryError>>,
    {
        let first = if self.0 == 0 { Ask::Leader } else { ask };
        let mut page = query(first).await?;
        if page.index < self.0 {
            page = query(Ask::Leader).await?;
        }
        // Never to wait on 0, which would not wait.
        self.0 = page.index.max(1);
        Ok(page.rows)
    }
}

/// What is known of one service.
pub struct Queries {
    consul: Arc<Consul>,
    service: String,
    progress: Progress,
    last: Vec<Instance>,
    pace: Pace,
}

impl Queries {
    pub fn new(consul: Arc<Consul>, service: &str) -> Self {
        Self { consul, service: service.into(), progress: Progress::default(), last: Vec::new(), pace: Pace::default() }
    }

    async fn ask(&mut self, ask: Ask) -> Result<Vec<Row>, RegistryError> {
        let client = &self.consul.client;
        self.progress.ask(ask, |ask| client.health(&self.service, ask)).await
    }

    fn read(&mut self, rows: Vec<Row>) -> Found {
        let (instances, unreadable) = decode::instances(rows, self.consul.only_passing);
        self.last.clone_from(&instances);
        Found { instances, unreadable }
    }
}

impl Watch for Queries {
    /// Asks for what is current, and does not wait: the agent may have been replaced meanwhile.
    async fn list(&mut self) -> Result<Found, Failure> {
        let rows = self.ask(Ask::Any).await?;
        Ok(self.read(rows))
    }

    async fn next(&mut self) -> Result<News, Failure> {
        let asked = self.progress.newest();
        let rows = self.ask(self.progress.news(self.consul.wait)).await?;
        if rows.is_empty() && !self.last.is_empty() {
            // All gone: true perhaps, or the token lost its rights, which only a query that does not wait will tell.
            return Ok(News::Set(self.list().await?));
        }
        let before = std::mem::take(&mut self.last);
        let found = self.read(rows);
        if found.instances != before {
            self.pace.real_change();
            return Ok(News::Set(found));
        }
        if self.progress.newest() == asked {
            self.pace.real_change()
        } else {
            self.pace.slow_down().await
        }
        Ok(News::Set(found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{cell::RefCell, future::ready};

    #[tokio::test]
    async fn the_leader_is_asked_instead_of_who_is_behind() {
        let mut progress = Progress::default();
        let asked = RefCell::new(Vec::new());
        let mut ask = async |any: u64, leader: u64| {
            let answer = |ask| {
                let (who, index) = match ask {
                    Ask::Leader => ("leader".to_owned(), leader),
                    Ask::After(index, _) => (format!("after {index}"), any),
                    Ask::Any => ("any".to_owned(), any),
                };
                asked.borrow_mut().push(who);
                ready(Ok(Page { rows: index, index }))
            };
            let rows = progress.ask(progress.news(Duration::from_secs(1)), answer).await;
            (rows.unwrap(), asked.take().join(", "))
        };
        assert_eq!(ask(3, 7).await, (7, "leader".into()), "the first");
        assert_eq!(ask(7, 9).await, (7, "after 7".into()), "the time was over");
        assert_eq!(ask(8, 9).await, (8, "after 7".into()));
        assert_eq!(ask(5, 9).await, (9, "after 8, leader".into()), "a server that reads its log");
        assert_eq!(ask(2, 2).await, (2, "after 9, leader".into()), "a state that was replaced");
        assert_eq!(ask(0, 0).await, (0, "after 2, leader".into()));
        assert_eq!(ask(1, 0).await, (1, "after 1".into()), "never after 0");
    }
}
