//! Between a DNS server and those who ask it: a relay that counts and can fall silent; and an answerer that follows a
//! script, for what a real server cannot be made to do.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::watch,
    task::JoinSet,
    time::timeout,
};

/// A UDP socket and a TCP listener on the same port.
async fn both() -> (UdpSocket, TcpListener, u16) {
    loop {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = tcp.local_addr().unwrap().port();
        if let Ok(udp) = UdpSocket::bind(("127.0.0.1", port)).await {
            return (udp, tcp, port);
        }
    }
}

/// Passes questions on until it is dropped.
pub struct DnsRelay {
    port: u16,
    counts: Arc<Counts>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct Counts {
    questions: AtomicUsize,
    labels: watch::Sender<Vec<String>>,
    connections: AtomicUsize,
    silent: AtomicBool,
    without_tcp: AtomicBool,
}

impl DnsRelay {
    pub async fn to(server_port: u16) -> Self {
        let (udp, tcp, port) = both().await;
        let (udp, counts) = (Arc::new(udp), Arc::<Counts>::default());
        let mut tasks = JoinSet::new();
        let seen = counts.clone();
        tasks.spawn(async move {
            let mut bytes = [0; 4096];
            loop {
                let (length, from) = udp.recv_from(&mut bytes).await.unwrap();
                let asked = Asked { bytes: bytes[..length].to_vec(), from, over_tcp: false };
                seen.labels.send_modify(|labels| labels.push(asked.label()));
                seen.questions.fetch_add(1, Relaxed);
                if !seen.silent.load(Relaxed) {
                    tokio::spawn(pass_on(udp.clone(), bytes[..length].to_vec(), from, server_port));
                }
            }
        });
        let seen = counts.clone();
        tasks.spawn(async move {
            loop {
                let (mut client, _) = tcp.accept().await.unwrap();
                seen.connections.fetch_add(1, Relaxed);
                if !seen.without_tcp.load(Relaxed) {
                    tokio::spawn(async move {
                        let mut server = TcpStream::connect(("127.0.0.1", server_port)).await?;
                        copy_bidirectional(&mut client, &mut server).await
                    });
                }
            }
        });
        Self { port, counts, _tasks: tasks }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Datagrams since the start.
    pub fn questions(&self) -> usize {
        self.counts.questions.load(Relaxed)
    }

    /// The first label of the name that each of them asked for.
    pub fn labels(&self) -> Vec<String> {
        self.counts.labels.borrow().clone()
    }

    /// TCP connections since the start.
    pub fn connections(&self) -> usize {
        self.counts.connections.load(Relaxed)
    }

    /// From now on every question is lost, or no longer.
    pub fn silence(&self, silent: bool) {
        self.counts.silent.store(silent, Relaxed);
    }

    /// From now on TCP connections are closed at once.
    pub fn without_tcp(&self) {
        self.counts.without_tcp.store(true, Relaxed);
    }
}

async fn pass_on(udp: Arc<UdpSocket>, question: Vec<u8>, from: SocketAddr, server_port: u16) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(("127.0.0.1", server_port)).await.unwrap();
    socket.send(&question).await.unwrap();
    let mut bytes = [0; 4096];
    // It may be down.
    if let Ok(Ok(length)) = timeout(Duration::from_secs(5), socket.recv(&mut bytes)).await {
        udp.send_to(&bytes[..length], from).await.unwrap();
    }
}

/// A question as it came, and who asked.
#[derive(Debug, Clone)]
pub struct Asked {
    pub bytes: Vec<u8>,
    pub from: SocketAddr,
    pub over_tcp: bool,
}

impl Asked {
    pub fn id(&self) -> u16 {
        u16::from_be_bytes([self.bytes[0], self.bytes[1]])
    }

    pub fn has_edns(&self) -> bool {
        self.bytes[11] == 1
    }

    /// The first label of the name.
    pub fn label(&self) -> String {
        let length = usize::from(self.bytes[12]);
        String::from_utf8(self.bytes[13..13 + length].to_vec()).unwrap()
    }

    /// The name, the type and the class.
    pub fn question(&self) -> &[u8] {
        let name = self.bytes[12..].iter().position(|byte| *byte == 0).unwrap();
        &self.bytes[12..12 + name + 5]
    }

    /// An answer with these flags and records, which are bytes after each other.
    pub fn answer(&self, flags: u16, records: &[&[u8]]) -> Vec<u8> {
        let counts = [self.id(), 0x8180 | flags, 1, records.len() as u16, 0, 0];
        let head = counts.iter().flat_map(|count| count.to_be_bytes());
        head.chain(self.question().iter().copied()).chain(records.concat()).collect()
    }
}

/// A record for the name that was asked for.
pub fn record(of: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let length = data.len() as u16;
    [&[0xC0, 12], &of.to_be_bytes()[..], &[0, 1], &ttl.to_be_bytes(), &length.to_be_bytes(), data].concat()
}

/// A name as it is sent.
pub fn name(text: &str) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        text.split('.').flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat()).collect();
    bytes.push(0);
    bytes
}

/// Answers by script until it is dropped.
pub struct Answerer {
    pub port: u16,
    _tasks: JoinSet<()>,
}

impl Answerer {
    /// `script` gives what is sent, one after the other.
    pub async fn start(script: impl Fn(&Asked) -> Vec<Vec<u8>> + Send + Sync + 'static) -> Self {
        let (udp, tcp, port) = both().await;
        let script = Arc::new(script);
        let mut tasks = JoinSet::new();
        let answers = script.clone();
        tasks.spawn(async move {
            let mut bytes = [0; 4096];
            loop {
                let (length, from) = udp.recv_from(&mut bytes).await.unwrap();
                for answer in answers(&Asked { bytes: bytes[..length].to_vec(), from, over_tcp: false }) {
                    udp.send_to(&answer, from).await.unwrap();
                }
            }
        });
        tasks.spawn(async move {
            loop {
                let (mut client, from) = tcp.accept().await.unwrap();
                let mut bytes = vec![0; usize::from(client.read_u16().await.unwrap())];
                client.read_exact(&mut bytes).await.unwrap();
                for answer in script(&Asked { bytes, from, over_tcp: true }) {
                    client.write_u16(answer.len() as u16).await.unwrap();
                    client.write_all(&answer).await.unwrap();
                }
            }
        });
        Self { port, _tasks: tasks }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}
