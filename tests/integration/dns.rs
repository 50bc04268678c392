//! pillion answers DNS questions: services' names itself, others by asking a server.

use crate::{
    explain::explained,
    peer::PATIENCE,
    pillion::{Pillion, Setup},
};
use pillion::registry::dns::message::{Message, Question, Type, query, read};
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::watch,
    task::JoinSet,
    time::timeout,
};

const FAILED: u16 = 2;
const NO_SUCH_NAME: u16 = 3;

/// A server that answers by script, and remembers what it was asked.
struct Server {
    address: SocketAddr,
    asked: watch::Receiver<Vec<Vec<u8>>>,
    _tasks: JoinSet<()>,
}

impl Server {
    /// `script`: the answer to a question over TCP or not; without one, it is silent.
    async fn start(script: impl Fn(&[u8], bool) -> Option<Vec<u8>> + Send + Sync + 'static) -> Self {
        let (tcp, udp) = loop {
            let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
                break (tcp, udp);
            }
        };
        let (address, script) = (udp.local_addr().unwrap(), Arc::new(script));
        let (note, asked) = watch::channel(Vec::new());
        let (note, mut tasks) = (Arc::new(note), JoinSet::new());
        let (noted, answers) = (note.clone(), script.clone());
        tasks.spawn(async move {
            let mut space = [0; 4096];
            loop {
                let (length, from) = udp.recv_from(&mut space).await.unwrap();
                noted.send_modify(|asked| asked.push(space[..length].to_vec()));
                if let Some(answer) = answers(&space[..length], false) {
                    udp.send_to(&answer, from).await.unwrap();
                }
            }
        });
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                let mut bytes = vec![0; stream.read_u16().await.unwrap().into()];
                stream.read_exact(&mut bytes).await.unwrap();
                note.send_modify(|asked| asked.push(bytes.clone()));
                if let Some(answer) = script(&bytes, true) {
                    stream.write_u16(answer.len().try_into().unwrap()).await.unwrap();
                    stream.write_all(&answer).await.unwrap();
                }
            }
        });
        Self { address, asked, _tasks: tasks }
    }

    fn asked(&self) -> Vec<Vec<u8>> {
        self.asked.borrow().clone()
    }
}

/// The question with the flags of an answer and this after it, which nobody but the client is to understand.
fn answer(question: &[u8], flags: u16, rest: &[u8]) -> Vec<u8> {
    let mut bytes = [question, rest].concat();
    bytes[2..4].copy_from_slice(&(0x8180 | flags).to_be_bytes());
    bytes
}

async fn address_of(pillion: &mut Pillion) -> SocketAddr {
    let line = pillion.logged("answering DNS questions").await;
    line.split_once("address=").unwrap().1.split_whitespace().next().unwrap().parse().unwrap()
}

async fn over_udp(at: SocketAddr, question: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(at).await.unwrap();
    socket.send(question).await.unwrap();
    let mut space = vec![0; 65_536];
    let length = timeout(PATIENCE, socket.recv(&mut space)).await.expect("an answer").unwrap();
    space.truncate(length);
    space
}

async fn over_tcp(stream: &mut TcpStream, question: &[u8]) -> Vec<u8> {
    let asked = async {
        stream.write_u16(question.len().try_into().unwrap()).await.unwrap();
        stream.write_all(question).await.unwrap();
        let mut bytes = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut bytes).await.unwrap();
        bytes
    };
    timeout(PATIENCE, asked).await.expect("an answer")
}

fn question(name: &str, of: Type) -> Vec<u8> {
    query(fastrand::u16(..), &Question::new(name, of).unwrap(), true)
}

async fn ask(at: SocketAddr, name: &str, of: Type) -> Message {
    read(&over_udp(at, &question(name, of)).await).unwrap()
}

fn addresses(message: &Message) -> Vec<IpAddr> {
    message.answers.iter().map(|record| record.data.address().unwrap()).collect()
}

/// With listeners for what is called.
fn setup(dns: &str) -> Setup {
    Setup::users(["10.0.0.1:80"])
        .instances("a.b.c", ["10.0.0.2:80"])
        .listener("out", "protocol: auto, transparent: {}")
        .dns(&format!("listen: ['127.0.0.1:0'], {dns}"))
}

#[tokio::test]
async fn a_service_has_the_same_address_in_every_pillion() {
    let other = Server::start(|_, _| None).await;
    let config = format!("upstreams: ['{}'], ttl: 1m", other.address);
    let mut found = Vec::new();
    for names in [["user-service.mesh", "a.b.c.mesh"], ["A.B.C.mesh", "User-Service.MESH"]] {
        let mut pillion = setup(&config).start().await;
        let at = address_of(&mut pillion).await;
        let mut pairs = Vec::new();
        for name in names {
            let (v4, v6) = (ask(at, name, Type::A).await, ask(at, name, Type::Aaaa).await);
            assert!(
                [&v4, &v6].iter().all(|message| message.code == 0 && message.answers[0].ttl == 60),
                "{v4:?} {v6:?}"
            );
            pairs.push([addresses(&v4), addresses(&v6)].concat());
        }
        if names[0] != "user-service.mesh" {
            pairs.reverse();
        }
        found.push(pairs);
        // Over TCP as well, one question after the other.
        let mut stream = TcpStream::connect(at).await.unwrap();
        for of in [Type::A, Type::Aaaa] {
            let message = read(&over_tcp(&mut stream, &question(names[0], of)).await).unwrap();
            assert!(found.last().unwrap().concat().contains(&addresses(&message)[0]));
        }
        pillion.until_metric("pillion_dns_queries_total", &["outcome=\"answered\""], 6.0).await;
    }
    assert_eq!(found[0], found[1]);
    // One in which nobody has asked for a name yet finds it by what its registry lists.
    let pillion = setup(&config).start().await;
    for (name, ip) in [("user-service", found[0][0][0]), ("a.b.c", found[0][1][1])] {
        let called = SocketAddr::new(ip, 5432).to_string();
        let said = explained(&pillion, &["GET", "http://any/", "--listener", "out", "--called", &called]).await;
        assert!(said.contains(&format!("  called was {called}, which {name} has by its DNS name\n")), "{said}");
        assert!(said.contains(&format!("→ {name}")), "{said}");
    }
    let said = explained(&pillion, &["GET", "http://any/", "--listener", "out", "--called", "240.0.0.1:80"]).await;
    assert!(said.contains("no registry lists a service whose it is\n"), "{said}");
    assert!(
        said.contains("→ refused, unknown_service: the address that was called is of those that DNS answers"),
        "{said}"
    );
    let all = found[0].concat();
    assert!(
        all.iter()
            .filter(|ip| ip.is_ipv4())
            .all(|ip| ip.to_string().starts_with("24") || ip.to_string().starts_with("25"))
    );
    assert!(
        all.iter().filter(|ip| ip.is_ipv6()).all(|ip| ip.to_string().starts_with("fd70:696c:6c69:6f6e:")),
        "{all:?}"
    );
    assert_eq!(all.len(), 4);
    assert_eq!(other.asked(), Vec::<Vec<u8>>::new(), "nobody else is asked about services");
}

#[tokio::test]
async fn what_is_no_service_does_not_exist() {
    let mut pillion = setup("upstreams: [192.0.2.1]")
        .service("fixed: { addresses: [10.96.0.1:80, 10.96.0.1:81, 10.96.0.2] }")
        .start()
        .await;
    let at = address_of(&mut pillion).await;
    let code = async |name, of| ask(at, name, of).await.code;
    for name in ["nobody.mesh", "not\u{e4}.mesh"] {
        assert_eq!(code(name, Type::A).await, NO_SUCH_NAME, "{name}");
    }
    // There are names below it, and records of other kinds might be there.
    for (name, of) in [("mesh", Type::A), ("user-service.mesh", Type::Srv), ("fixed.mesh", Type::Aaaa)] {
        let message = ask(at, name, of).await;
        assert_eq!((message.code, message.answers.len()), (0, 0), "{name}");
    }
    let fixed = addresses(&ask(at, "fixed.mesh", Type::A).await);
    assert_eq!(fixed, ["10.96.0.1", "10.96.0.2"].map(|ip| ip.parse::<IpAddr>().unwrap()));
    pillion.until_metric("pillion_dns_queries_total", &["outcome=\"nxdomain\""], 2.0).await;
    pillion.until_metric("pillion_dns_queries_total", &["outcome=\"no_data\""], 3.0).await;
    // A new one is there at once.
    pillion.write_instances("services: { nobody: [\"10.0.0.9:80\"] }\n");
    let appeared = async {
        while code("nobody.mesh", Type::A).await != 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, appeared).await.expect("the new service");
    assert_eq!(addresses(&ask(at, "nobody.mesh", Type::A).await).len(), 1);
}

#[tokio::test]
async fn while_a_registry_is_silent_nothing_is_said_not_to_exist() {
    // Nobody listens there.
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut pillion = setup("upstreams: [192.0.2.1]")
        .registry("silent", &format!("kind: consul, address: 'http://{closed}'"))
        .start()
        .await;
    let at = address_of(&mut pillion).await;
    assert_eq!(ask(at, "nobody.mesh", Type::A).await.code, FAILED);
    assert_eq!(ask(at, "user-service.mesh", Type::A).await.code, 0, "the other one knows it");
    pillion.until_metric("pillion_dns_queries_total", &["outcome=\"failed\""], 1.0).await;
}

#[tokio::test]
async fn other_names_are_asked_of_others_and_their_answers_arrive_untouched() {
    let rest = [0xC0, 12, 0, 16, 0, 1, 0, 0, 0, 9, 0, 4, 3, b'a', 0, 0xFF];
    // Over UDP it says that there is more.
    let server = Server::start(move |question, tcp| Some(answer(question, if tcp { 0 } else { 0x0200 }, &rest))).await;
    let mut pillion = setup(&format!("upstreams: ['{}']", server.address)).start().await;
    let at = address_of(&mut pillion).await;
    let asked = question("Www.Example.com", Type::Srv);
    assert_eq!(over_udp(at, &asked).await, answer(&asked, 0x0200, &rest));
    let mut stream = TcpStream::connect(at).await.unwrap();
    assert_eq!(over_tcp(&mut stream, &asked).await, answer(&asked, 0, &rest));
    let seen = server.asked();
    assert_eq!(seen.len(), 2);
    assert!(seen.iter().all(|seen| seen[2..] == asked[2..]), "{seen:?}");
    // Nobody can guess them.
    for _ in 0..20 {
        over_udp(at, &asked).await;
    }
    let mut ids: Vec<_> = server.asked().iter().map(|seen| [seen[0], seen[1]]).collect();
    ids.sort_unstable();
    ids.dedup();
    assert!(ids.len() > 15, "{ids:?}");
    pillion.until_metric("pillion_dns_queries_total", &["outcome=\"forwarded\""], 22.0).await;
}

#[tokio::test]
async fn the_next_server_is_asked_when_one_fails() {
    let silent = Server::start(|_, _| None).await;
    // What is no answer to the question is not taken for one, so this one is as good as silent.
    let confused = Server::start(|question, _| {
        let mut other = answer(question, 0, &[]);
        other[13] ^= 1;
        Some(other)
    })
    .await;
    let refusing = Server::start(|question, _| Some(answer(question, 5, &[]))).await;
    let good = Server::start(|question, _| Some(answer(question, 3, &[]))).await;
    let with = async |servers: &[&Server]| {
        let servers: Vec<_> = servers.iter().map(|server| format!("'{}'", server.address)).collect();
        let mut pillion = setup(&format!("upstreams: [{}], timeout: 2s", servers.join(", "))).start().await;
        let at = address_of(&mut pillion).await;
        (pillion, at)
    };
    let (_pillion, at) = with(&[&silent, &confused, &refusing, &good]).await;
    assert_eq!(ask(at, "www.example.com", Type::A).await.code, NO_SUCH_NAME);
    assert!([&silent, &confused, &refusing, &good].iter().all(|server| !server.asked().is_empty()));
    assert!(silent.asked().len() >= 2, "datagrams get lost, so it is asked once more");
    // If none knows better, what there was is the answer; and if nobody says anything, nobody can help.
    let (_pillion, at) = with(&[&silent, &refusing]).await;
    assert_eq!(ask(at, "www.example.com", Type::A).await.code, 5);
    let (pillion, at) = with(&[&silent]).await;
    assert_eq!(ask(at, "www.example.com", Type::A).await.code, FAILED);
    pillion.until_metric("pillion_dns_queries_total", &["outcome=\"failed\""], 1.0).await;
}

#[tokio::test]
async fn what_is_no_question_is_told_so_or_ignored() {
    let mut pillion = setup("upstreams: [192.0.2.1]").start().await;
    let at = address_of(&mut pillion).await;
    let good = question("user-service.mesh", Type::A);
    let refused = over_udp(at, &good[..20]).await;
    assert_eq!((&refused[..2], refused[3] & 0xF), (&good[..2], 1));
    let mut update = good.clone();
    update[2] |= 0x28;
    assert_eq!(over_udp(at, &update).await[3] & 0xF, 4);
    // To an answer there is no answer: the next thing that is heard is what comes of the question after it.
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(at).await.unwrap();
    let mut echo = good.clone();
    echo[2] |= 0x80;
    for bytes in [&echo[..], &[], &[1, 2, 3]] {
        socket.send(bytes).await.unwrap();
    }
    pillion.until_metric("pillion_dns_queries_total", &["outcome=\"malformed\""], 5.0).await;
    socket.send(&good).await.unwrap();
    let mut space = [0; 4096];
    let length = timeout(PATIENCE, socket.recv(&mut space)).await.expect("an answer").unwrap();
    assert_eq!(addresses(&read(&space[..length]).unwrap()).len(), 1);
    // Over TCP such a connection ends.
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(&[0, 2, 1, 1]).await.unwrap();
    assert_eq!(timeout(PATIENCE, stream.read(&mut space)).await.expect("its end").unwrap(), 0);
}
