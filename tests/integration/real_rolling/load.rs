//! Requests from the callers' machine without a pause, over both versions of HTTP, and what came of each.

use crate::{
    e2e::{Client, soon},
    netns::{Caller, Namespace},
};
use bytes::Bytes;
use http::{Method, Request, StatusCode, Version, header::HOST};
use http_body_util::{BodyExt, Empty};
use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep},
};

/// One request, as its caller saw it.
struct Answer {
    asked: Instant,
    came: Instant,
    said: Result<String, String>,
}

/// Connections that ask one thing after the other, until it is ended.
pub struct Load {
    ended: watch::Sender<bool>,
    done: watch::Sender<u64>,
    tasks: JoinSet<()>,
    coming: mpsc::UnboundedReceiver<Answer>,
    answers: Vec<Answer>,
}

/// All that came of a load.
pub struct Answers(Vec<Answer>);

impl Load {
    /// Each of `connections` of every kind waits for `pause` after an answer. A POST is executed once or not at all, so that it
    /// cannot be tried again wherever a GET can.
    pub fn start(namespace: &Arc<Namespace>, address: SocketAddr, connections: usize, pause: Duration) -> Self {
        let (ended, done) = (watch::Sender::new(false), watch::Sender::new(0));
        let (tell, coming) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        for version in [Version::HTTP_11, Version::HTTP_2] {
            for (method, path, connections) in
                [(Method::GET, "/", connections), (Method::POST, "/", connections), (Method::POST, "/long", 2)]
            {
                for _ in 0..connections {
                    let (namespace, method) = (namespace.clone(), method.clone());
                    let (ended, done, tell) = (ended.subscribe(), done.clone(), tell.clone());
                    tasks.spawn(async move {
                        let mut client = None;
                        while !*ended.borrow() {
                            let asked = Instant::now();
                            let said = ask(&mut client, &namespace, address, version, &method, path).await;
                            let wait = if said.is_err() { pause.max(Duration::from_millis(10)) } else { pause };
                            done.send_modify(|done| *done += 1);
                            let _ = tell.send(Answer { asked, came: Instant::now(), said });
                            sleep(wait).await;
                        }
                    });
                }
            }
        }
        Self { ended, done, tasks, coming, answers: Vec::new() }
    }

    /// Waits until so many more requests are over.
    pub async fn more(&self, count: u64) {
        let mut done = self.done.subscribe();
        let wanted = *done.borrow() + count;
        soon("requests to end", done.wait_for(|done| *done >= wanted)).await.unwrap();
    }

    /// Waits until each of these has answered something that was asked from now on.
    pub async fn until_said(&mut self, names: &BTreeSet<String>) {
        let begun = Instant::now();
        let mut missing = names.clone();
        let said = async {
            while !missing.is_empty() {
                let answer = self.coming.recv().await.expect("the load goes on");
                if let (true, Ok(name)) = (answer.asked >= begun, &answer.said) {
                    missing.remove(name);
                }
                self.answers.push(answer);
            }
        };
        soon(&format!("answers of all of {names:?}"), said).await;
    }

    pub async fn end(mut self) -> Answers {
        self.ended.send_replace(true);
        soon("the load to end", self.tasks.join_all()).await;
        while let Ok(answer) = self.coming.try_recv() {
            self.answers.push(answer);
        }
        self.answers.sort_by_key(|answer| answer.came);
        Answers(self.answers)
    }
}

/// The body of the answer; an error is whatever is not 200.
async fn ask(
    client: &mut Option<Client>,
    namespace: &Namespace,
    address: SocketAddr,
    version: Version,
    method: &Method,
    path: &str,
) -> Result<String, String> {
    let usable = match client {
        Some(client) => client.is_usable().await,
        None => false,
    };
    if !usable {
        let stream = namespace.connect(Caller::default(), address).map_err(|error| format!("connect: {error}"))?;
        *client = Some(Client::over(stream, version).await?);
    }
    let answered = send(client.as_mut().unwrap(), method, path).await;
    if answered.is_err() {
        *client = None;
    }
    match answered.map_err(|error| format!("{version:?} {method} {path}: {error:?}"))? {
        (StatusCode::OK, body) => Ok(body),
        (status, body) => Err(format!("{version:?} {method} {path}: {status} {body}")),
    }
}

async fn send(client: &mut Client, method: &Method, path: &str) -> Result<(StatusCode, String), hyper::Error> {
    let request = Request::builder().method(method);
    let response = match client {
        Client::H1(sender) => {
            let request = request.uri(path).header(HOST, super::SERVICE);
            sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await?
        }
        Client::H2(sender) => {
            let request = request.uri(format!("http://{}{path}", super::SERVICE));
            sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await?
        }
    };
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

impl Answers {
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Those that were no answers of an application, and when they came.
    pub fn failures(&self) -> Vec<(Duration, &str)> {
        let begin = self.0[0].came;
        let failed =
            self.0.iter().filter_map(|answer| Some((answer.came - begin, answer.said.as_ref().err()?.as_str())));
        failed.collect()
    }

    /// All that was said to what was asked since `from` and had come by `to`.
    pub fn said(&self, from: Option<Instant>, to: Option<Instant>) -> BTreeSet<String> {
        let within =
            |answer: &&Answer| from.is_none_or(|from| answer.asked >= from) && to.is_none_or(|to| answer.came <= to);
        self.0.iter().filter(within).filter_map(|answer| answer.said.clone().ok()).collect()
    }

    /// The longest time in which no good answer came, and the longest that one took.
    pub fn longest(&self) -> (Duration, Duration) {
        let good: Vec<_> = self.0.iter().filter(|answer| answer.said.is_ok()).collect();
        let gap = good.windows(2).map(|pair| pair[1].came - pair[0].came).max();
        let took = good.iter().map(|answer| answer.came - answer.asked).max();
        (gap.unwrap_or_default(), took.unwrap_or_default())
    }

    pub fn per_second(&self) -> usize {
        let took = self.0[self.0.len() - 1].came - self.0[0].came;
        (self.0.len() as f64 / took.as_secs_f64()) as usize
    }
}
