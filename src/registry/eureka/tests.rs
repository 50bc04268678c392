//! What is asked of which server, and what becomes of the answers. How real servers answer is in `tests/integration`.

use super::*;
use crate::{
    config::Secret,
    registry::{Observation, sink},
};
use axum::{Router, extract::Request, http::StatusCode};
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};

/// What a server is asked, as `all` or `delta`, and its login.
type Asked = (&'static str, Option<String>);

/// A server that answers as `answer` says, which is told what is asked and how often something was before.
struct Scripted {
    url: String,
    asked: mpsc::UnboundedReceiver<Asked>,
    task: JoinHandle<()>,
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Scripted {
    async fn start(answer: impl Fn(&str, usize) -> (u16, String) + Clone + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/eureka", listener.local_addr().unwrap());
        let (tell, asked) = mpsc::unbounded_channel();
        let count = Arc::new(AtomicUsize::new(0));
        let router = Router::new().fallback(move |request: Request| {
            let what = match request.uri().path() {
                "/eureka/apps" => "all",
                "/eureka/apps/delta" => "delta",
                path => panic!("{path}"),
            };
            let login = request.headers().get("authorization").map(|login| login.to_str().unwrap().to_owned());
            tell.send((what, login)).unwrap();
            let (status, text) = answer(what, count.fetch_add(1, Ordering::Relaxed));
            async move { (StatusCode::from_u16(status).unwrap(), text) }
        });
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, asked, task }
    }

    /// The next `count` questions.
    async fn asked(&mut self, count: usize) -> Vec<&'static str> {
        let mut all = Vec::new();
        for _ in 0..count {
            all.push(timeout(Duration::from_secs(60), self.asked.recv()).await.expect("a question").unwrap().0);
        }
        all
    }
}

/// The users with these ids, all up; the hash says so if it is `None`.
fn listing(ids: &[&str], hash: Option<&str>) -> String {
    let instances: Vec<_> = ids
        .iter()
        .map(|id| {
            serde_json::json!({"instanceId": id, "ipAddr": "10.0.0.1", "status": "UP",
                "port": {"$": 80, "@enabled": "true"}})
        })
        .collect();
    let hash = hash.map_or_else(|| format!("UP_{}_", ids.len()), str::to_owned);
    serde_json::json!({"applications": {"apps__hashcode": hash,
        "application": [{"name": "USERS", "instance": instances}]}})
    .to_string()
}

fn to(servers: &[&Scripted]) -> EurekaRegistry {
    let servers = servers.iter().map(|server| server.url.clone()).collect();
    EurekaRegistry { servers, interval: Duration::from_millis(10), ..EurekaRegistry::default() }
}

fn follow(config: &EurekaRegistry) -> (JoinHandle<()>, watch::Receiver<Observation>) {
    let eureka = Arc::new(Eureka::new("main", config).unwrap());
    let (sink, seen) = sink();
    (tokio::spawn(eureka.follow("users".into(), sink)), seen)
}

async fn until(seen: &mut watch::Receiver<Observation>, fits: impl Fn(&Observation) -> bool) -> Observation {
    timeout(Duration::from_secs(60), seen.wait_for(|seen| fits(seen))).await.expect("in time").unwrap().clone()
}

fn ids(seen: &Observation) -> Vec<&str> {
    seen.instances.iter().flat_map(|set| set.iter()).map(|instance| instance.id.as_str()).collect()
}

async fn failure(config: &EurekaRegistry) -> RegistryError {
    let (_task, mut seen) = follow(config);
    until(&mut seen, |seen| seen.failure.is_some()).await.failure.unwrap()
}

#[tokio::test]
async fn all_then_what_changes_then_all_again_now_and_then() {
    let mut server = Scripted::start(|what, _| match what {
        "all" => (200, listing(&["a"], None)),
        _ => (200, listing(&[], Some("UP_1_"))),
    })
    .await;
    let (_task, mut seen) = follow(&to(&[&server]));
    let asked = server.asked(2 * FULL_EVERY as usize).await;
    for (n, what) in asked.into_iter().enumerate() {
        assert_eq!(what, if n.is_multiple_of(FULL_EVERY as usize) { "all" } else { "delta" }, "{n}");
    }
    assert_eq!(ids(&until(&mut seen, |seen| seen.instances.is_some()).await), ["a"]);
}

#[tokio::test]
async fn a_delta_that_does_not_add_up_is_replaced_by_all_at_once() {
    let mut server = Scripted::start(|what, before| match (what, before) {
        ("all", 0) => (200, listing(&["a"], None)),
        ("all", _) => (200, listing(&["a", "b", "c"], None)),
        // First the news of `b` alone, of three.
        _ => (200, listing(&["b"], Some("UP_3_"))),
    })
    .await;
    let (_task, mut seen) = follow(&to(&[&server]));
    let seen = until(&mut seen, |seen| ids(seen).len() > 1).await;
    assert_eq!(ids(&seen), ["a", "b", "c"], "what does not add up is not shown");
    assert_eq!(server.asked(5).await, ["all", "delta", "all", "delta", "delta"]);
}

#[tokio::test]
async fn a_server_without_deltas_is_not_asked_for_them_again() {
    for refusal in [403, 404] {
        let mut server = Scripted::start(move |what, _| match what {
            "all" => (200, listing(&["a"], None)),
            _ => (refusal, String::new()),
        })
        .await;
        let (_task, seen) = follow(&to(&[&server]));
        assert_eq!(server.asked(5).await, ["all", "delta", "all", "all", "all"]);
        assert_eq!(seen.borrow().failures, 0);
    }
}

#[tokio::test]
async fn one_server_is_used_until_it_fails() {
    // Which of the two is the first is left to chance: whoever is asked the tenth time fails from then on.
    let total = Arc::new(AtomicUsize::new(0));
    let answer = {
        let total = total.clone();
        move |what: &str, before: usize| match (total.fetch_add(1, Ordering::Relaxed), what) {
            (..9, "all") => (200, listing(&["a"], None)),
            (..9, _) => (200, listing(&[], Some("UP_1_"))),
            (9, _) => (500, "out of order".to_owned()),
            // The other one knows more, and is new.
            (_, "all") if before == 0 => (200, listing(&["a", "b"], None)),
            (_, "all") => (500, "out of order".to_owned()),
            _ => (200, listing(&[], Some("UP_2_"))),
        }
    };
    let (mut one, mut other) = (Scripted::start(answer.clone()).await, Scripted::start(answer).await);
    let (_task, mut seen) = follow(&to(&[&one, &other]));
    until(&mut seen, |seen| seen.failures == 1).await;
    assert_eq!(ids(&seen.borrow()), ["a"], "a failure keeps the set");
    until(&mut seen, |seen| ids(seen) == ["a", "b"] && seen.failure.is_none()).await;
    if one.asked.len() < 10 {
        std::mem::swap(&mut one, &mut other);
    }
    assert_eq!((one.asked.len(), seen.borrow().failures), (10, 1), "only one server at a time");
    assert_eq!(other.asked(3).await, ["all", "delta", "delta"]);
}

#[tokio::test]
async fn who_is_refused_is_told_what_is_expected() {
    let mut server = Scripted::start(|_, _| (401, String::new())).await;
    let refused = failure(&to(&[&server])).await;
    assert!(matches!(refused, RegistryError::Refused { .. }));
    assert!(
        refused.to_string().ends_with("refused: 401 Unauthorized; expected a `user` and a `password`"),
        "{refused}"
    );
    assert_eq!(server.asked.recv().await.unwrap().1, None);
    let login = EurekaRegistry { user: Some("me".into()), password: Some(Secret::new("p:ss")), ..to(&[&server]) };
    let refused = failure(&login).await.to_string();
    assert!(refused.ends_with("refused: 401 Unauthorized; expected another `user` or `password`"), "{refused}");
    while let Some((_, login)) = server.asked.recv().await {
        // The first follower may have asked more than once.
        if let Some(login) = login {
            assert_eq!(login, "Basic bWU6cDpzcw==");
            break;
        }
    }
}

#[tokio::test]
async fn what_no_eureka_answers_empties_nothing() {
    for (status, body, expected) in [
        (200, "<applications/>".to_owned(), "is it a Eureka server?"),
        (200, listing(&[], Some("UP_3_")), "no instances, but `UP_3_` for their number"),
        (404, String::new(), "is the path of `servers` right?"),
        (503, String::new(), "is not able to answer: 503 Service Unavailable"),
    ] {
        let server = Scripted::start(move |_, before| match before {
            0 => (200, listing(&["a"], None)),
            _ => (status, body.clone()),
        })
        .await;
        // So that it is not asked for deltas, whose absence is no failure.
        let (_task, mut seen) = follow(&to(&[&server]));
        let seen =
            until(&mut seen, |seen| seen.failure.as_ref().is_some_and(|error| error.to_string().contains(expected)));
        assert_eq!(ids(&seen.await), ["a"]);
    }
}

#[tokio::test]
async fn all_followers_share_the_polls() {
    let mut server = Scripted::start(|what, _| match what {
        "all" => (200, listing(&["a"], None)),
        _ => (200, listing(&[], Some("UP_1_"))),
    })
    .await;
    let config = EurekaRegistry { interval: Duration::from_secs(3600), ..to(&[&server]) };
    let eureka = Arc::new(Eureka::new("main", &config).unwrap());
    let mut seen = Vec::new();
    for n in 0..100 {
        let (sink, observed) = sink();
        let service = if n == 0 { "users".to_owned() } else { format!("s{n}") };
        tokio::spawn(eureka.clone().follow(service, sink));
        seen.push(observed);
    }
    for (n, seen) in seen.iter_mut().enumerate() {
        let seen = until(seen, |seen| seen.instances.is_some()).await;
        assert_eq!(ids(&seen).len(), usize::from(n == 0));
    }
    assert_eq!(server.asked(1).await, ["all"]);
    assert!(server.asked.try_recv().is_err());
    assert_eq!(eureka.list().await.unwrap(), ["USERS"]);
}

#[test]
fn servers_are_urls_with_a_path() {
    let open = |server: &str| {
        Eureka::new("main", &EurekaRegistry { servers: vec![server.into()], ..EurekaRegistry::default() })
    };
    assert!(open("https://eureka.example:443/eureka/v2/").is_ok());
    for server in ["", "127.0.0.1:8761", "http://u:p@a:1/eureka"] {
        let error = open(server).err().unwrap().to_string();
        assert!(error.contains("expected `http://HOST:PORT/eureka`"), "{server}: {error}");
    }
}
