use super::*;
use crate::{
    cluster::table::Settings,
    telemetry::{labels::WORDS, metrics::Metrics},
};
use http::{Request, header::CACHE_CONTROL};
use http_body_util::BodyExt;
use std::collections::VecDeque;

type Fields<'f> = &'f [(&'f str, &'f str)];

fn cluster(name: &str) -> Arc<Cluster> {
    let settings = Arc::new(Settings::default());
    Arc::new(Cluster::new(name, settings, Metrics::new(WORDS).service(name), Arc::default()))
}

fn request(method: &str, path: &str, fields: Fields<'_>) -> request::Parts {
    let builder = Request::builder().method(method).uri(path).header("host", "users");
    fields.iter().fold(builder, |b, (name, value)| b.header(*name, *value)).body(()).unwrap().into_parts().0
}

/// One that says nothing of caches says at least that it may be kept.
fn response(status: u16, fields: Fields<'_>, body: Body) -> Response<Body> {
    let says = fields.iter().any(|(name, _)| *name == "cache-control");
    let builder = Response::builder().status(status);
    let builder = if says { builder } else { builder.header("cache-control", "max-age=60") };
    fields.iter().fold(builder, |b, (name, value)| b.header(*name, *value)).body(body).unwrap()
}

async fn text(response: Response<Body>) -> String {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.into()).unwrap()
}

/// One service's responses, under small limits.
struct Kept {
    all: LastGood,
    cluster: Arc<Cluster>,
    limits: config::LastGood,
}

impl Kept {
    fn new() -> Self {
        let limits = config::LastGood { max_bytes: 8192, max_body: 1000, max_age: Duration::from_secs(600) };
        Self { all: LastGood::default(), cluster: cluster("users"), limits }
    }

    /// Lets a response pass as a whole.
    async fn pass(&self, request: &request::Parts, response: Response<Body>) -> String {
        text(self.all.keep(&self.cluster, &self.limits, request, response)).await
    }

    fn find(&self, request: &request::Parts) -> Option<Response<Body>> {
        self.all.find(&self.cluster, &self.limits, request)
    }

    /// Whether what came of such a request is there for the next one like it.
    async fn keeps(&self, asked: Fields<'_>, answered: Fields<'_>) -> bool {
        let request = request("GET", &format!("/{}", fastrand::u64(..)), asked);
        assert_eq!(self.pass(&request, response(200, answered, Body::Full("body".into()))).await, "body");
        self.find(&request).is_some()
    }
}

#[tokio::test]
async fn what_a_shared_cache_may_store_is_kept() {
    let kept = Kept::new();
    let control = |text| [("cache-control", text)];
    let cases: &[(Fields<'_>, Fields<'_>, bool)] = &[
        (&[], &[], true),
        (&[], &control("max-age=0"), true),
        (&[], &control("public"), true),
        // Who asked may stand in a header that nobody here knows.
        (&[], &control(""), false),
        (&[("x-user-id", "ann")], &control("stale-if-error=60"), false),
        (&[], &control("private"), false),
        (&[], &control("max-age=60, Private=\"set-cookie\""), false),
        (&[], &control("no-store"), false),
        (&[], &control("no-cache"), false),
        (&[], &[("cache-control", "max-age=60"), ("cache-control", "no-store")], false),
        (&[], &[("set-cookie", "a=b")], false),
        (&[], &[("vary", "Accept-Encoding")], true),
        (&[], &[("vary", "accept-encoding, accept")], false),
        (&[], &[("vary", "*")], false),
        (&control("no-store"), &[], false),
        (&[("range", "bytes=0-1")], &[], false),
        (&[("authorization", "Bearer x")], &[], false),
        (&[("authorization", "Bearer x")], &control("max-age=60"), false),
        (&[("authorization", "Bearer x")], &control("public"), true),
        (&[("authorization", "Bearer x")], &control("s-maxage=60"), true),
        (&[("authorization", "Bearer x")], &control("must-revalidate, max-age=60"), true),
        (&[("cookie", "a=b")], &[], false),
        (&[("cookie", "a=b")], &control("public"), true),
        // Once these are stale they must not be given at all, and these are stale at once.
        (&[], &control("must-revalidate"), false),
        (&[], &control("must-revalidate, max-age=0"), false),
        (&[], &control("s-maxage=oops"), false),
        (&[], &[("cache-control", "max-age=60, proxy-revalidate"), ("age", "60")], false),
        (&[], &[("cache-control", "max-age=60, proxy-revalidate"), ("age", "59")], true),
    ];
    for (asked, answered, expected) in cases {
        assert_eq!(kept.keeps(asked, answered).await, *expected, "{asked:?} {answered:?}");
    }
    for status in [201, 203, 206, 301, 404, 500] {
        let request = request("GET", &format!("/{status}"), &[]);
        kept.pass(&request, response(status, &[], Body::Full("x".into()))).await;
        assert!(kept.find(&request).is_none(), "{status}");
    }
    let post = request("POST", "/", &[]);
    kept.pass(&post, response(200, &[], Body::Full("x".into()))).await;
    assert!(kept.find(&post).is_none() && kept.find(&request("GET", "/", &[])).is_none());
}

#[tokio::test(start_paused = true)]
async fn it_is_given_with_its_age_until_it_is_too_old() {
    let kept = Kept::new();
    let page = request("GET", "/page?a=1", &[]);
    let fields = [("age", "7"), ("etag", "\"1\""), ("warning", "199 - x"), ("content-length", "4")];
    kept.pass(&page, response(200, &fields, Body::Full("body".into()))).await;
    tokio::time::advance(Duration::from_secs(100)).await;
    let found = kept.find(&page).unwrap();
    let expected = [
        ("age", "107"),
        ("cache-control", "max-age=60"),
        ("content-length", "4"),
        ("etag", "\"1\""),
        ("warning", "110 - \"Response is Stale\""),
    ];
    let mut fields: Vec<_> =
        found.headers().iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    fields.sort_unstable();
    assert_eq!(fields, expected);
    assert_eq!(text(found).await, "body");
    // HEAD gets the same without the body; other targets and hosts get nothing.
    let found = kept.find(&request("HEAD", "/page?a=1", &[])).unwrap();
    assert_eq!(found.headers()["content-length"], "4");
    assert_eq!(text(found).await, "");
    assert!(kept.find(&request("GET", "/page?a=2", &[])).is_none());
    assert!(kept.find(&request("POST", "/page?a=1", &[])).is_none());
    let mut elsewhere = page.clone();
    elsewhere.headers.insert("host", HeaderValue::from_static("other"));
    assert!(kept.find(&elsewhere).is_none());
    assert!(kept.all.find(&cluster("other"), &kept.limits, &page).is_none());
    tokio::time::advance(Duration::from_secs(500)).await;
    assert!(kept.find(&page).is_some());
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(kept.find(&page).is_none());
}

#[tokio::test(start_paused = true)]
async fn an_age_beyond_all_numbers_is_old() {
    let kept = Kept::new();
    let page = request("GET", "/", &[]);
    let age = u64::MAX.to_string();
    kept.pass(&page, response(200, &[("age", &age)], Body::Full("body".into()))).await;
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(kept.find(&page).unwrap().headers()["age"], age.as_str());
}

#[tokio::test(start_paused = true)]
async fn what_forbids_to_be_given_stale_is_given_only_while_fresh() {
    let kept = Kept::new();
    let page = request("GET", "/", &[]);
    let fields = [("cache-control", "s-maxage=60, max-age=300"), ("age", "10")];
    kept.pass(&page, response(200, &fields, Body::Full("body".into()))).await;
    tokio::time::advance(Duration::from_secs(49)).await;
    assert!(kept.find(&page).is_some());
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(kept.find(&page).is_none());
}

#[tokio::test(start_paused = true)]
async fn who_asks_decides_too() {
    let kept = Kept::new();
    let page = |fields: Fields<'_>| request("GET", "/", fields);
    kept.pass(&page(&[]), response(200, &[], Body::Full("body".into()))).await;
    tokio::time::advance(Duration::from_secs(10)).await;
    for (fields, given) in [
        (&[("cache-control", "max-age=10")][..], true),
        (&[("cache-control", "max-age=9")], false),
        (&[("cache-control", "no-cache")], false),
        (&[("cookie", "a=b")], false),
        (&[("authorization", "Basic x")], false),
        (&[("accept-encoding", "gzip")], false),
        (&[("if-none-match", "\"1\"")], true),
    ] {
        assert_eq!(kept.find(&page(fields)).is_some(), given, "{fields:?}");
    }
    // Each coding has its own.
    let gzip = page(&[("accept-encoding", "gzip")]);
    kept.pass(&gzip, response(200, &[("vary", "accept-encoding")], Body::Full("zip".into()))).await;
    assert_eq!(text(kept.find(&gzip).unwrap()).await, "zip");
    assert_eq!(text(kept.find(&page(&[])).unwrap()).await, "body");
}

#[tokio::test]
async fn what_changes_a_resource_makes_an_end_of_its_responses() {
    let kept = Kept::new();
    for (method, status, gone) in
        [("PUT", 204, true), ("POST", 303, true), ("DELETE", 500, false), ("GET", 404, true), ("GET", 503, false)]
    {
        for coding in ["gzip", "br"] {
            let page = request("GET", "/page", &[("accept-encoding", coding)]);
            kept.pass(&page, response(200, &[], Body::Full("x".into()))).await;
        }
        let other = request("GET", "/pages", &[]);
        kept.pass(&other, response(200, &[], Body::Full("x".into()))).await;
        kept.pass(&request(method, "/page", &[]), response(status, &[], Body::Empty)).await;
        for coding in ["gzip", "br"] {
            let page = request("GET", "/page", &[("accept-encoding", coding)]);
            assert_eq!(kept.find(&page).is_none(), gone, "{method} {status}");
        }
        assert!(kept.find(&other).is_some());
    }
}

#[tokio::test]
async fn a_body_passes_as_it_comes_and_only_a_whole_one_is_kept() {
    let kept = Kept::new();
    let pieces = |texts: &[&'static str], rest| {
        let pieces: VecDeque<Bytes> = texts.iter().map(|text| Bytes::from_static(text.as_bytes())).collect();
        Body::Again(Box::new((pieces, rest)))
    };
    let page = |path: &str| request("GET", path, &[]);
    assert_eq!(kept.pass(&page("/whole"), response(200, &[], pieces(&["a", "bc"], Body::Empty))).await, "abc");
    assert_eq!(text(kept.find(&page("/whole")).unwrap()).await, "abc");
    // The reader went away, the head promised more, or it is too long.
    let halfway = kept.all.keep(
        &kept.cluster,
        &kept.limits,
        &page("/left"),
        response(200, &[], pieces(&["a"], Body::Full("bc".into()))),
    );
    let mut body = halfway.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "a");
    drop(body);
    let promised = response(200, &[("content-length", "4")], pieces(&["a", "bc"], Body::Empty));
    assert_eq!(kept.pass(&page("/short"), promised).await, "abc");
    let long = "x".repeat(1001);
    let larger = response(200, &[], Body::Full(long.clone().into()));
    assert_eq!(kept.pass(&page("/long"), larger).await, long);
    for path in ["/left", "/short", "/long"] {
        assert!(kept.find(&page(path)).is_none(), "{path}");
    }
    // One without a body, and one to HEAD, whose length is that of another's.
    kept.pass(&page("/empty"), response(200, &[("content-length", "0")], Body::Empty)).await;
    assert_eq!(text(kept.find(&page("/empty")).unwrap()).await, "");
    let head = request("HEAD", "/head", &[]);
    kept.pass(&head, response(200, &[("content-length", "5000")], Body::Empty)).await;
    assert_eq!(kept.find(&head).unwrap().headers()["content-length"], "5000");
    assert!(kept.find(&page("/head")).is_none());
}

#[test]
fn the_bytes_are_bounded_and_the_longest_unused_goes() {
    let mut store = Store::default();
    let entry = |length: usize| Entry {
        fields: vec![(CACHE_CONTROL, HeaderValue::from_static("public"))],
        body: vec![b'x'; length].into(),
        stored: Instant::now(),
        age: Duration::ZERO,
        valid: None,
        shared: false,
    };
    for number in 0..100 {
        store.put(format!("key{number}"), entry(500), 10_000);
        // Used again and again.
        assert!(store.get("key0", Instant::now()).is_some());
        assert!(store.bytes() <= 10_000, "{}", store.bytes());
    }
    let there = |store: &mut Store| -> Vec<u32> {
        (0..100).filter(|number| store.get(&format!("key{number}"), Instant::now()).is_some()).collect()
    };
    let left = there(&mut store);
    assert!(
        left.len() >= 9 && left[0] == 0 && left[1..].iter().copied().eq(100 - left.len() as u32 + 1..100),
        "{left:?}"
    );
    // One that is larger than all together takes nobody's place but its own.
    store.put("key0".into(), entry(20_000), 10_000);
    assert_eq!(there(&mut store), left[1..]);
    store.remove_all("key");
    assert_eq!((there(&mut store), store.bytes()), (Vec::new(), 0));
}

#[test]
fn a_service_that_is_no_longer_followed_leaves_nothing() {
    let mut kept = Kept::new();
    let page = request("GET", "/", &[]);
    let keep = |kept: &Kept| drop(kept.all.keep(&kept.cluster, &kept.limits, &page, response(200, &[], Body::Empty)));
    keep(&kept);
    assert!(kept.find(&page).is_some());
    // Followed anew, or another one.
    kept.cluster = cluster("users");
    assert!(kept.find(&page).is_none());
    kept.cluster = cluster("orders");
    keep(&kept);
    assert!(kept.find(&page).is_some());
    assert_eq!(kept.all.stores.borrow().len(), 1);
}
