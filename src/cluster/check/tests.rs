use super::*;
use crate::{
    config::{GrpcCheck, Service},
    registry::Instance,
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

const SECOND: Duration = Duration::from_secs(1);

fn failure() -> Failure {
    Failure::new(Layer::Http, "status 503")
}

fn last(passed: bool, at: Instant) -> Last {
    Last { at, took: Duration::ZERO, failure: (!passed).then(failure) }
}

/// The states that a row of results goes through: `+` passed, `-` failed; H, S, U.
fn states(results: &str, rise: u32, fall: u32) -> String {
    let check = HealthCheck { rise, fall, ..HealthCheck::default() };
    let now = Instant::now();
    let mut checked = Checked::new(now);
    let letter = |state| match state {
        State::Unknown => '?',
        State::Healthy => 'H',
        State::Suspect { .. } => 'S',
        State::Unhealthy { .. } => 'U',
    };
    let mut after = |result| {
        checked = checked.after(last(result == '+', now), &check, false, 0.5);
        letter(checked.state)
    };
    results.chars().map(&mut after).collect()
}

#[tokio::test(start_paused = true)]
async fn rise_and_fall() {
    for (rise, fall, results, expected) in [
        (2, 3, "+", "H"),
        (2, 3, "-", "U"),
        (2, 3, "+---", "HSSU"),
        (2, 3, "+--+--+---", "HSSHSSHSSU"),
        (2, 3, "-+", "UU"),
        (2, 3, "-++", "UUH"),
        (2, 3, "-+-++", "UUUUH"),
        (2, 3, "-++-", "UUHS"),
        (1, 1, "+-+-", "HUHU"),
        (3, 1, "+-+++", "HUUUH"),
        (1, 2, "+--+", "HSUH"),
    ] {
        assert_eq!(states(results, rise, fall), expected, "rise {rise}, fall {fall}: {results}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_to_the_next_check() {
    let check = HealthCheck { interval: 6 * SECOND, ..HealthCheck::default() };
    let waits = |results: &str, gone: bool| {
        let mut checked = Checked::new(Instant::now());
        let mut after = |result| {
            let now = checked.next;
            checked = checked.after(last(result == '+', now), &check, gone, 0.5);
            (checked.next - now).as_secs_f64()
        };
        results.chars().map(&mut after).collect::<Vec<_>>()
    };
    assert_eq!(waits("+++", false), [6.0, 6.0, 6.0]);
    assert_eq!(waits("+--+", false), [6.0, 2.0, 2.0, 6.0], "suspect: three times as often");
    assert_eq!(waits("-------", false), [6.0, 9.0, 13.5, 20.25, 30.0, 30.0, 30.0], "half as much more, up to the most");
    assert_eq!(waits("---+-", false), [6.0, 9.0, 13.5, 6.0, 9.0], "the first that passes, and what follows it");
    assert_eq!(waits("+++", true), [2.0, 2.0, 2.0], "gone from its registry");
    let now = Instant::now();
    let next = |chance| Checked::new(now).after(last(true, now), &check, false, chance).next - now;
    assert_eq!((next(0.0), next(1.0)), (6 * SECOND * 9 / 10, 6 * SECOND * 11 / 10));
}

#[tokio::test(start_paused = true)]
async fn a_thousand_endpoints_never_fire_at_once() {
    let (check, begin) = (HealthCheck::default(), Instant::now());
    let mut due: Vec<Instant> = Vec::new();
    for index in 0..1000 {
        let mut checked = Checked::new(begin + first_wait(index, 1000, check.interval, fastrand::f64()));
        assert!(checked.next - begin <= check.interval);
        while checked.next - begin < 120 * SECOND {
            due.push(checked.next);
            checked = checked.after(last(true, checked.next), &check, false, fastrand::f64());
        }
    }
    let mut per_tenth = BTreeMap::new();
    for at in &due {
        *per_tenth.entry((*at - begin).as_millis() / 100).or_insert(0) += 1;
    }
    // 20 in each tenth of a second would be even.
    let most = per_tenth.values().max().unwrap();
    assert!(*most <= 60, "{most} within a tenth of a second");
    assert!((20_000..=25_000).contains(&due.len()), "{}", due.len());
    let few: Vec<_> = (0..3).map(|index| first_wait(index, 3, check.interval, 1.0)).collect();
    assert_eq!(few, [50, 100, 150].map(Duration::from_millis), "few are checked soon");
}

#[tokio::test(start_paused = true)]
async fn the_gate_follows_the_state() {
    let (live, check) = (Live::new(None), HealthCheck::default());
    let now = Instant::now();
    assert_eq!(record(&live, &check, Ok(()), now, now), None, "it is not checked");
    schedule(&live, now);
    let after = |outcome: Outcome| {
        let change = record(&live, &check, outcome, now, now).map(|change| (change.from, change.to));
        (change, live.health.is_available())
    };
    let (unhealthy, suspect) = (State::Unhealthy { passes: 0 }, State::Suspect { failures: 1 });
    assert_eq!(after(Err(failure())), (Some((State::Unknown, unhealthy)), false));
    assert_eq!(after(Err(failure())), (None, false), "told once");
    assert_eq!(after(Ok(())), (None, false));
    assert_eq!(after(Ok(())), (Some((State::Unhealthy { passes: 1 }, State::Healthy)), true));
    assert_eq!(after(Err(failure())), (Some((State::Healthy, suspect)), true));
    assert_eq!(after(Err(failure())), (None, true));
    assert_eq!(after(Err(failure())), (Some((State::Suspect { failures: 2 }, unhealthy)), false));
    assert!(forget(&live, now) && live.health.is_available() && live.checked().is_none());
}

fn endpoint(address: &str, labels: &[(&str, &str)]) -> Endpoint {
    let mut instance = Instance::new("a", address.parse().unwrap());
    instance.labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Endpoint { instance, live: Arc::new(Live::new(None)) }
}

#[tokio::test]
async fn each_kind_of_endpoint_is_asked_what_it_can_answer() {
    let http = || Some(HttpCheck::default());
    let grpc = || Some(GrpcCheck { service: "a.B".into() });
    let [plain, for_http, for_grpc] =
        [&[][..], &[("scheme", "http")], &[("scheme", "grpc")]].map(|labels| endpoint("10.0.0.1:1", labels));
    let both = HealthCheck { http: http(), grpc: grpc(), ..HealthCheck::default() };
    let only_http = HealthCheck { grpc: None, ..both.clone() };
    let only_grpc = HealthCheck { http: None, ..both.clone() };
    let by_http = Question::Http(both.http.as_ref().unwrap());
    let by_grpc = Question::Grpc("a.B");
    for (check, expected) in [
        (&both, [by_http, by_http, by_grpc]),
        (&only_http, [by_http, by_http, Question::Nothing]),
        (&only_grpc, [by_grpc, Question::Nothing, by_grpc]),
        (&HealthCheck::default(), [Question::Nothing; 3]),
    ] {
        assert_eq!([&plain, &for_http, &for_grpc].map(|endpoint| question(endpoint, check)), expected);
    }
}

/// That the machine is busy is no failure.
fn patient() -> HealthCheck {
    HealthCheck { timeout: Duration::from_secs(20), ..HealthCheck::default() }
}

/// What an HTTP check says of a server that answers every connection with `answer`, and what the server was asked.
async fn asked(answer: &'static str, check: HttpCheck) -> (Result<(), String>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = tokio::spawn(async move {
        let mut stream = listener.accept().await.unwrap().0;
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            assert!(stream.read_buf(&mut request).await.unwrap() > 0);
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8(request).unwrap()
    });
    let check = HealthCheck { http: Some(check), ..patient() };
    let settings = Settings::default();
    let outcome = perform("user-service", &endpoint(&address, &[]), &settings, &check).await;
    (outcome.map_err(|failure| failure.to_string()), server.await.unwrap())
}

#[tokio::test]
async fn an_http_check_asks_and_judges() {
    let get = || HttpCheck { path: "/health?deep=1".into(), ..HttpCheck::default() };
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\nall is well";
    let (outcome, request) = asked(ok, get()).await;
    assert_eq!(outcome, Ok(()));
    let request = request.to_lowercase();
    assert!(request.starts_with("get /health?deep=1 http/1.1\r\n"), "{request}");
    assert!(request.contains("\r\nhost: user-service\r\n") && request.contains("pillion-health-check/"), "{request}");
    let named = HttpCheck { host: Some("a.example:80".into()), method: "HEAD".into(), ..get() };
    let (outcome, request) = asked("HTTP/1.1 204 No Content\r\n\r\n", named).await;
    assert_eq!(outcome, Ok(()));
    assert!(request.starts_with("HEAD ") && request.to_lowercase().contains("\r\nhost: a.example:80\r\n"), "{request}");
    let statuses = vec!["204".parse().unwrap(), "300-302".parse().unwrap()];
    for (answer, check, expected) in [
        (ok, HttpCheck { statuses, ..get() }, "HTTP: status 200; expected 204, 300-302"),
        ("HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n", get(), "HTTP: status 503; expected 200-399"),
        (ok, HttpCheck { body: Some("ill".into()), ..get() }, "HTTP: the body does not contain `ill`"),
        ("SSH-2.0-x\r\n\r\n", get(), "HTTP: no response: invalid HTTP version parsed"),
        ("", get(), "HTTP: no response: connection closed before message completed"),
    ] {
        assert_eq!(asked(answer, check).await.0, Err(expected.to_owned()), "{answer}");
    }
    assert_eq!(asked(ok, HttpCheck { body: Some("is w".into()), ..get() }).await.0, Ok(()));
}

/// A server that speaks HTTP/2, with TLS if it has the settings, and answers everything with a body of two pieces.
async fn http2_server(tls: Option<Arc<rustls::ServerConfig>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            match &tls {
                None => serve_http2(tcp).await,
                Some(tls) => match tokio_rustls::TlsAcceptor::from(tls.clone()).accept(tcp).await {
                    Ok(stream) => serve_http2(stream).await,
                    Err(_) => continue,
                },
            }
        }
    });
    address
}

async fn serve_http2(stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        assert_eq!(request.uri().authority().unwrap(), "user-service");
        let mut body = respond.send_response(::http::Response::new(()), false).unwrap();
        body.send_data("all is ".into(), false).unwrap();
        body.send_data("well".into(), true).unwrap();
    }
}

#[tokio::test]
async fn http2_is_spoken_where_the_endpoint_speaks_it() {
    let mut endpoint = endpoint(&http2_server(None).await, &[]);
    let settings = Settings::default();
    let check = |body: &str| HealthCheck {
        http: Some(HttpCheck { body: Some(body.into()), ..HttpCheck::default() }),
        ..patient()
    };
    assert!(perform("user-service", &endpoint, &settings, &check("is w")).await.is_err(), "it is no HTTP/1 server");
    endpoint.instance.protocol = Some(Protocol::Http2);
    assert_eq!(perform("user-service", &endpoint, &settings, &check("is w")).await, Ok(()));
    let failure = perform("user-service", &endpoint, &settings, &check("ill")).await.unwrap_err();
    assert_eq!(failure.to_string(), "HTTP: the body does not contain `ill`");
}

#[tokio::test]
async fn the_tls_settings_of_the_service_count() {
    let dir = tempfile::tempdir().unwrap();
    let [signed, other] = [(); 2].map(|()| rcgen::generate_simple_self_signed(["users.example".into()]).unwrap());
    let trusting = |certificate: &rcgen::Certificate| {
        let ca = dir.path().join("ca.pem");
        std::fs::write(&ca, certificate.pem()).unwrap();
        let tls = crate::config::Tls { ca: Some(ca), ..Default::default() };
        let offering = |alpn: &[&str]| Arc::new(crate::net::tls::client_config(&tls, alpn).unwrap());
        let upstream = crate::cluster::table::UpstreamTls {
            http1: offering(&["http/1.1"]),
            http2: offering(&["h2"]),
            either: offering(&["h2", "http/1.1"]),
            bare: offering(&[]),
            server_name: Some("users.example".into()),
        };
        Settings {
            service: Service { tls: Some(tls), ..Service::default() },
            tls: Some(Arc::new(upstream)),
            zone: None,
            ..Settings::default()
        }
    };
    let key = rustls::pki_types::PrivateKeyDer::try_from(signed.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut server = server.with_no_client_auth().with_single_cert(vec![signed.cert.der().clone()], key).unwrap();
    server.alpn_protocols = vec![b"h2".to_vec()];
    let endpoint = endpoint(&http2_server(Some(Arc::new(server))).await, &[]);
    let check = HealthCheck { http: Some(HttpCheck::default()), ..patient() };
    assert_eq!(perform("user-service", &endpoint, &trusting(&signed.cert), &check).await, Ok(()), "by ALPN");
    let failure = perform("user-service", &endpoint, &trusting(&other.cert), &check).await.unwrap_err();
    assert!(failure.to_string().starts_with("TLS: invalid peer certificate"), "{failure}");
}

#[tokio::test]
async fn the_layer_that_failed_is_named() {
    let refused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let settings = Settings::default();
    let (check, hasty) = (patient(), HealthCheck { timeout: Duration::from_millis(50), ..HealthCheck::default() });
    let failed = async |endpoint: &Endpoint, check: &HealthCheck| {
        perform("s", endpoint, &settings, check).await.unwrap_err().to_string()
    };
    assert_eq!(failed(&endpoint(&refused, &[]), &check).await, "TCP: Connection refused (os error 111)");
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut endpoint = endpoint(&silent.local_addr().unwrap().to_string(), &[]);
    assert_eq!(perform("s", &endpoint, &settings, &check).await, Ok(()), "it accepts");
    let http = HealthCheck { http: Some(HttpCheck::default()), ..hasty.clone() };
    assert_eq!(failed(&endpoint, &http).await, "HTTP: no answer within 50ms");
    let grpc = HealthCheck { grpc: Some(GrpcCheck::default()), ..hasty };
    assert_eq!(failed(&endpoint, &grpc).await, "gRPC: no answer within 50ms");
    let port = refused.rsplit_once(':').unwrap().1.parse().unwrap();
    assert!(failed(&endpoint, &HealthCheck { port: Some(port), ..check.clone() }).await.starts_with("TCP: "));
    endpoint.instance.tls = Some(true);
    assert!(failed(&endpoint, &check).await.starts_with("TLS: the instance asks for TLS"));
}
