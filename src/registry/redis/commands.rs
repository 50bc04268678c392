//! The connection for commands, which all services share: pipelines go out as they come, answers come back in order.

use super::{
    end::End,
    resp::{Pipeline, Value},
    wire::{ANSWER_LIMIT, Wire, no_answer},
};
use crate::registry::RegistryError;
use std::{collections::VecDeque, sync::Arc};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

/// Pipelines under way at one time; further ones wait their turn.
const MOST_UNDER_WAY: usize = 64;

struct Ask {
    pipeline: Pipeline,
    answer: oneshot::Sender<Vec<Value>>,
}

struct Waiting {
    missing: usize,
    answers: Vec<Value>,
    answer: oneshot::Sender<Vec<Value>>,
    until: Instant,
}

/// The way to the task that holds the connection.
#[derive(Clone)]
pub struct Commands {
    server: Arc<str>,
    asks: mpsc::Sender<Ask>,
    end: End,
}

/// What holds `wire` until it breaks or nobody can ask any more, and the way to it.
pub fn commands(wire: Wire, end: End) -> (Commands, impl Future<Output = RegistryError>) {
    let (asks, queue) = mpsc::channel(MOST_UNDER_WAY);
    (Commands { server: wire.server().clone(), asks, end }, serve(wire, queue))
}

impl Commands {
    /// As errors name it.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The answers to all commands, errors of the server's among them.
    pub async fn ask(&self, pipeline: Pipeline) -> Result<Vec<Value>, RegistryError> {
        let (answer, answers) = oneshot::channel();
        if self.asks.send(Ask { pipeline, answer }).await.is_err() {
            return Err(self.end.reached().await);
        }
        match answers.await {
            Ok(answers) => Ok(answers),
            Err(_) => Err(self.end.reached().await),
        }
    }
}

async fn serve(mut wire: Wire, mut asks: mpsc::Receiver<Ask>) -> RegistryError {
    let server = wire.server().clone();
    let mut waiting: VecDeque<Waiting> = VecDeque::new();
    loop {
        let until = waiting.front().map(|first| first.until);
        let value = tokio::select! {
            // An answer before a new question, so that no time runs out on one that is there.
            biased;
            value = wire.next() => match value {
                Ok(value) => value,
                Err(error) => return error,
            },
            () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => return no_answer(&server),
            ask = asks.recv(), if waiting.len() < MOST_UNDER_WAY => {
                let Some(Ask { pipeline, answer }) = ask else {
                    return RegistryError::Unreachable { server: server.to_string(), cause: "not used any more".into() };
                };
                if let Err(error) = wire.send(&pipeline).await {
                    return error;
                }
                let missing = pipeline.commands();
                let answers = Vec::with_capacity(missing);
                waiting.push_back(Waiting { missing, answers, answer, until: Instant::now() + ANSWER_LIMIT });
                continue;
            }
        };
        let Some(first) = waiting.front_mut() else {
            let cause = "an answer that nobody asked for".into();
            return RegistryError::Protocol { server: server.to_string(), cause };
        };
        first.answers.push(value);
        first.missing -= 1;
        if first.missing == 0
            && let Some(Waiting { answers, answer, .. }) = waiting.pop_front()
        {
            // Whoever asked may be gone.
            let _ = answer.send(answers);
        }
        // It is at work: what waits behind a long answer has its full time from here.
        if let Some(first) = waiting.front_mut() {
            first.until = first.until.max(Instant::now() + ANSWER_LIMIT);
        }
    }
}
