//! The DNS registry when servers fail, are cut off, or answer what no server should.

use crate::{
    dns_relay::{Answerer, DnsRelay, name, record},
    e2e::{Pillion, Upstream, get, until, until_answer},
    following::Following,
    real_dns::{addresses, open, srv},
    servers::{
        dns::{DnsServer, Kind},
        eventually, free_port,
    },
};
use pillion::config::{DnsRecord, DnsRegistry};
use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    net::UdpSocket,
    sync::mpsc,
    time::{Instant, sleep},
};

const USERS: &str = "10.0.0.1:80 10.0.0.1:80 100";
const A: u16 = 1;
const CNAME: u16 = 5;
const SRV: u16 = 33;

fn only(address: String) -> DnsRegistry {
    addresses(&[address], DnsRecord::A)
}

#[tokio::test]
async fn a_failing_server_empties_nothing() {
    let mut server = DnsServer::start(Kind::Bind, "users 1 A 10.0.0.1").await;
    let mut users = Following::start(&open(only(server.address())), "users");
    users.until_set(&[USERS]).await;
    // A zone that cannot be loaded.
    server.rewrite("users 1 A no address");
    server.restart().await;
    let failure = until_failure(&mut users, "SERVFAIL").await;
    assert_eq!(failure, format!("{} is not able to answer: SERVFAIL for `users.test`", server.address()));
    server.rewrite("users 1 A 10.0.0.1");
    server.restart().await;
    users.until_set(&[USERS]).await;
    // We have no rights.
    server.set_options("allow-query { none; };");
    server.rewrite("users 1 A 10.0.0.2");
    server.restart().await;
    let failure = until_failure(&mut users, "REFUSED").await;
    assert!(failure.contains("refused: REFUSED for `users.test`; expected a server that"), "{failure}");
    server.set_options("");
    // The name is another server's now.
    server.rewrite("users 1 NS ns.elsewhere.invalid.");
    server.restart().await;
    let failure = until_failure(&mut users, "whom else").await;
    assert!(failure.contains("it only says whom else to ask for `users.test`; expected a server"), "{failure}");
    server.rewrite("users 1 A 10.0.0.2");
    server.restart().await;
    users.until_set(&["10.0.0.2:80 10.0.0.2:80 100"]).await;
}

/// Waits for a failure with this word in it, which must have left one instance.
async fn until_failure(users: &mut Following, word: &str) -> String {
    let fits = |failure: &str| failure.contains(word);
    let seen = users.until(word, |seen| seen.failure.as_ref().is_some_and(|why| fits(&why.to_string()))).await;
    assert_eq!(seen.instances.unwrap().len(), 1, "a failure keeps the last set");
    seen.failure.unwrap().to_string()
}

#[tokio::test]
async fn a_server_that_is_cut_off_is_noticed_and_found_again() {
    let mut server = DnsServer::start(Kind::Bind, "users 1 A 10.0.0.1").await;
    let relay = DnsRelay::to(server.port).await;
    let config = DnsRegistry { timeout: Duration::from_secs(3), ..only(relay.address()) };
    let mut users = Following::start(&open(config), "users");
    users.until_set(&[USERS]).await;
    relay.silence(true);
    let silenced = Instant::now();
    let failure = users.until_failure(&[USERS]).await;
    println!("dns: a silent server is told after {:.2?}: {failure}", silenced.elapsed());
    assert_eq!(failure, format!("cannot reach {}: no answer within 3s", relay.address()));
    server.change("users 1 A 10.0.0.2").await;
    relay.silence(false);
    users.until_set(&["10.0.0.2:80 10.0.0.2:80 100"]).await;
}

#[tokio::test]
async fn the_next_server_is_asked_and_the_first_one_again() {
    let server = DnsServer::start(Kind::CoreDns, "users 1 A 10.0.0.1").await;
    let (first, second) = (DnsRelay::to(server.port).await, DnsRelay::to(server.port).await);
    first.silence(true);
    // Nobody is at the first of them at all.
    let nobody = format!("127.0.0.1:{}", free_port());
    let timeout = Duration::from_secs(3);
    let config = DnsRegistry { timeout, ..addresses(&[nobody, first.address(), second.address()], DnsRecord::A) };
    let registry = open(config);
    let start = Instant::now();
    let mut users = Following::start(&registry, "users");
    users.until_set(&[USERS]).await;
    println!("dns: the third of three servers answered after {:.2?}", start.elapsed());
    // The silent one is waited for once.
    assert!(start.elapsed() < 3 * timeout, "{:?}", start.elapsed());
    // Thirty more services do not ask the silent one.
    let asked = first.questions();
    let mut others: Vec<_> = (0..30).map(|_| Following::start(&registry, "users")).collect();
    for other in &mut others {
        other.until_set(&[USERS]).await;
    }
    let seen = others[0].until("no failure", |seen| seen.failure.is_none()).await;
    assert_eq!(seen.failures, 0);
    sleep(Duration::from_secs(4)).await;
    let hammered = first.questions() - asked;
    println!("dns: the silent server got {hammered} datagrams, the other one {}", second.questions());
    assert!(second.questions() >= 31, "{}", second.questions());
    // Two per attempt, and one attempt after 1, 2, 4 s and so on.
    let attempts = 2 + start.elapsed().as_secs().ilog2() as usize;
    assert!(hammered <= 2 * attempts, "{hammered} in {:?}", start.elapsed());
    first.silence(false);
    let before = first.questions();
    eventually("the first one to be in use again", async || first.questions() > before + 30).await;
}

#[tokio::test]
async fn that_a_name_is_gone_takes_two_answers() {
    let mut whole = DnsServer::start(Kind::CoreDns, "users 1 A 10.0.0.1").await;
    let mut other = DnsServer::start(Kind::CoreDns, "users 1 A 10.0.0.1").await;
    let relays = [DnsRelay::to(whole.port).await, DnsRelay::to(other.port).await];
    let both = addresses(&[relays[0].address(), relays[1].address()], DnsRecord::A);
    let mut users = Following::start(&open(both), "users");
    users.until_set(&[USERS]).await;
    users.mark_seen();
    // One server lost the name; the other one is asked, and knows it.
    whole.change("").await;
    eventually("the second one to be asked", async || relays[1].questions() >= 3).await;
    let seen = users.until("still there", |seen| seen.instances.is_some()).await;
    assert_eq!((seen.instances.unwrap().len(), seen.failures), (1, 0));
    // Both have.
    other.change("").await;
    users.until_set(&[]).await;
}

#[tokio::test]
async fn only_the_answer_to_the_question_counts() {
    let (ask, mut asked) = mpsc::unbounded_channel();
    let answerer = Answerer::start(move |question| {
        ask.send(question.clone()).unwrap();
        let right = question.answer(0, &[&record(A, 1, &[10, 0, 0, 1])]);
        let wrong = question.answer(0, &[&record(A, 1, &[10, 6, 6, 6])]);
        let mut other_id = wrong.clone();
        other_id[1] ^= 1;
        let mut other_name = wrong.clone();
        other_name[13] = b'x';
        let mut other_type = wrong.clone();
        let end = 12 + question.question().len();
        other_type[end - 3] = 28;
        let mut question_back = wrong.clone();
        question_back[2] &= 0x7F;
        let mut upper = right.clone();
        upper[13..18].make_ascii_uppercase();
        vec![
            Vec::new(),
            b"no DNS at all".to_vec(),
            wrong[..wrong.len() - 1].to_vec(),
            other_id,
            other_name,
            other_type,
            question_back,
            upper,
            wrong,
        ]
    })
    .await;
    let mut users = Following::start(&open(only(answerer.address())), "users");
    users.until_set(&[USERS]).await;
    // What comes from elsewhere does not even get in.
    let question = asked.recv().await.unwrap();
    assert!(question.has_edns() && !question.over_tcp);
    let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut ports = HashSet::from([question.from.port()]);
    let mut ids = HashSet::from([question.id()]);
    for n in 0..30 {
        let config = DnsRegistry { timeout: Duration::from_millis(500), ..only(answerer.address()) };
        let _follower = Following::start(&open(config), &format!("u{n}"));
        let question = asked.recv().await.unwrap();
        let _ = stranger.send_to(&question.answer(0, &[&record(A, 1, &[10, 6, 6, 6])]), question.from).await;
        ports.insert(question.from.port());
        ids.insert(question.id());
    }
    println!("dns: {} ports and {} ids in 31 questions", ports.len(), ids.len());
    assert!(ports.len() >= 28 && ids.len() >= 28);
}

#[tokio::test]
async fn an_answer_from_another_address_is_not_heard() {
    let stranger = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let sent = Arc::new(AtomicUsize::new(0));
    let answerer = Answerer::start({
        let sent = sent.clone();
        move |question| {
            let forged = question.answer(0, &[&record(A, 1, &[10, 6, 6, 6])]);
            sent.fetch_add(stranger.try_send_to(&forged, question.from).map_or(0, |_| 1), Relaxed);
            vec![]
        }
    })
    .await;
    let config = DnsRegistry { timeout: Duration::from_secs(4), ..only(answerer.address()) };
    let failure = Following::start(&open(config), "users").until_failure(&[]).await;
    assert_eq!(failure, format!("cannot reach {}: no answer within 4s", answerer.address()));
    eventually("the question again, after half of the time", async || sent.load(Relaxed) >= 2).await;
}

#[tokio::test]
async fn what_cannot_be_used_is_told() {
    let answerer = Answerer::start(|question| vec![question.answer(0, &[b"no record"])]).await;
    let config = DnsRegistry { timeout: Duration::from_secs(4), ..only(answerer.address()) };
    let failure = Following::start(&open(config), "users").until_failure(&[]).await;
    assert!(failure.contains("no answer within 4s that can be used; there was one that is malformed"), "{failure}");
}

#[tokio::test]
async fn a_server_from_before_edns_is_asked_without() {
    let answerer = Answerer::start(|question| {
        vec![match question.has_edns() {
            // FORMERR, and nothing but the head.
            true => [&question.id().to_be_bytes(), &[0x80, 1][..], &[0; 8]].concat(),
            false => question.answer(0, &[&record(A, 1, &[10, 0, 0, 1])]),
        }]
    })
    .await;
    Following::start(&open(only(answerer.address())), "users").until_set(&[USERS]).await;
}

#[tokio::test]
async fn aliases_are_followed_to_where_they_end() {
    let answerer = Answerer::start(|question| {
        let to = |next: &str| record(CNAME, 1, &name(next));
        vec![match question.label().as_str() {
            // As servers do that answer for their own zones only.
            "users" => question.answer(0, &[&to("one.elsewhere")]),
            "one" => question.answer(0, &[&to("two.elsewhere")]),
            "two" => question.answer(0, &[&record(A, 1, &[10, 0, 0, 1])]),
            _ => question.answer(0, &[&to("x.circle")]),
        }]
    })
    .await;
    let registry = open(only(answerer.address()));
    Following::start(&registry, "users").until_set(&[USERS]).await;
    let failure = Following::start(&registry, "circle").until_failure(&[]).await;
    assert!(failure.contains("`circle.test` has more than 8 aliases in a row"), "{failure}");
}

#[tokio::test]
async fn truncation_ends_with_an_error_where_tcp_truncates_too() {
    let answerer = Answerer::start(|question| vec![question.answer(0x0200, &[])]).await;
    let failure = Following::start(&open(only(answerer.address())), "users").until_failure(&[]).await;
    assert!(failure.contains("the answer needs TCP: truncated over TCP, too"), "{failure}");
}

#[tokio::test]
async fn the_next_priority_takes_over_without_a_change_in_dns() {
    let (first, second) = (Upstream::start("first").await, Upstream::start("second").await);
    let records = |first: &Upstream, second: &Upstream| {
        let (first, second) = (first.address.port(), second.address.port());
        format!("here 1 A 127.0.0.1\n_users._tcp 1 SRV 1 0 {first} here\n_users._tcp 1 SRV 2 0 {second} here")
    };
    let server = DnsServer::start(Kind::CoreDns, &records(&first, &second)).await;
    let pillion = Pillion::with_registry(&format!("dns://{}/_{{service}}._tcp.test", server.address())).await;
    until_answer(pillion.egress(), "users", |status, name| (status, name) == (200, "first")).await;
    for _ in 0..50 {
        assert_eq!(get(pillion.egress(), "users").await.unwrap(), (200, "first".into()));
    }
    assert_eq!(second.requests(), 0);
    first.leave().await;
    until_answer(pillion.egress(), "users", |status, name| (status, name) == (200, "second")).await;
    until("all to go there", async || {
        let before = second.requests();
        for _ in 0..20 {
            assert_eq!(get(pillion.egress(), "users").await.unwrap(), (200, "second".into()));
        }
        second.requests() == before + 20
    })
    .await;
}

#[tokio::test]
async fn a_target_that_fails_stays_where_it_was() {
    let fails = Arc::new(AtomicBool::new(false));
    let answerer = Answerer::start({
        let fails = fails.clone();
        move |question| {
            let target = |host: &str| record(SRV, 0, &[&[0, 0, 0, 1, 0, 80][..], &name(host)].concat());
            vec![match question.label().as_str() {
                "_users" => question.answer(0, &[&target("a.test"), &target("b.test")]),
                "_lone" => question.answer(0, &[&target("b.test")]),
                "a" => question.answer(0, &[&record(A, 0, &[10, 0, 0, 1])]),
                // SERVFAIL
                _ if fails.load(Relaxed) => question.answer(2, &[]),
                _ => question.answer(0, &[&record(A, 0, &[10, 0, 0, 2])]),
            }]
        }
    })
    .await;
    let config = DnsRegistry { min_ttl: Duration::from_millis(100), ..srv(&[answerer.address()]) };
    let registry = open(config);
    let mut users = Following::start(&registry, "users");
    let both = ["10.0.0.1:80 10.0.0.1:80 1", "10.0.0.2:80 10.0.0.2:80 1"];
    users.until_set(&both).await;
    fails.store(true, Relaxed);
    users.mark_seen();
    sleep(Duration::from_millis(500)).await;
    users.until_set(&both).await;
    // To who never knew where it is, it is missing; and if that is all there is, it is an error.
    Following::start(&registry, "users").until_set(&both[..1]).await;
    let failure = Following::start(&registry, "lone").until_failure(&[]).await;
    assert!(failure.contains("SERVFAIL for `b.test`"), "{failure}");
    fails.store(false, Relaxed);
    Following::start(&registry, "lone").until_set(&both[1..]).await;
}
