//! The first bytes of real clients and proxies, as they come over a socket: TLS of curl and OpenSSL, HTTP of curl, and the
//! PROXY protocol of HAProxy and curl.

use crate::{
    programs::run,
    servers::{Process, free_port, program},
    socket::Socket,
};
use bytes::BytesMut;
use pillion::net::{
    client_hello::HANDSHAKE,
    detect::{Detector, Protocol},
    proxy_protocol::{Addresses, decode, write_v1, write_v2},
};
use std::{fs, net::SocketAddr, process::Command};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// At 127.0.0.1, clients of servers that other tests have killed go on trying their ports, and one of them may be ours by now.
const HERE: &str = "127.0.0.33";

async fn listen() -> Socket<TcpListener> {
    Socket(TcpListener::bind((HERE, 0)).await.unwrap())
}

async fn accept(listener: &TcpListener) -> Socket<TcpStream> {
    Socket(listener.accept().await.unwrap().0)
}

/// What a tool sends that is run with a port, and what it is found to be. Then it is left alone.
async fn first_bytes(tool: &str, args: &[&str]) -> (Vec<u8>, Protocol) {
    let listener = listen().await;
    let port = listener.local_addr().unwrap().port().to_string();
    let args: Vec<_> = args.iter().map(|arg| arg.replace("127.0.0.1", HERE).replace("PORT", &port)).collect();
    let read = async {
        let (mut client, mut detector, mut start) = (accept(&listener).await, Detector::default(), Vec::new());
        loop {
            let read = client.read_buf(&mut start).await.unwrap();
            assert_ne!(read, 0, "it is gone after {start:x?}");
            match detector.look(&start) {
                Protocol::Unsure => {}
                // Whoever writes a header by itself has not said anything yet.
                Protocol::Other if decode(&start).is_ok_and(|it| it.is_none_or(|it| it.length == start.len())) => {}
                protocol => return (start, protocol),
            }
        }
    };
    let (read, _) = tokio::join!(read, run(tool, args));
    read
}

/// How many records there are at the start.
fn records(mut wire: &[u8]) -> usize {
    let mut records = 0;
    while let [HANDSHAKE, 3, _, high, low, rest @ ..] = wire {
        records += 1;
        wire = &rest[usize::from(u16::from_be_bytes([*high, *low]))..];
    }
    records
}

#[tokio::test]
async fn client_hellos_of_openssl_and_curl() {
    let many: Vec<_> = (0..30).map(|number| format!("protocol-{number:030}")).collect();
    let many = many.join(",");
    let openssl = ["s_client", "-connect", "127.0.0.1:PORT"];
    let curl = ["-sk", "--noproxy", "*", "--resolve", "users.example:PORT:127.0.0.1"];
    let named = ["-servername", "Users.example"];
    for (tool, common, more, name, alpn, cut) in [
        ("openssl", &openssl[..], &["-noservername"][..], None, "", false),
        ("openssl", &openssl, &named, Some("users.example"), "", false),
        ("openssl", &openssl, &["-tls1_2", "-servername", "a.b", "-alpn", "h2"], Some("a.b"), "h2", false),
        ("openssl", &openssl, &["-tls1_3", "-servername", "a.b", "-alpn", "h2,x"], Some("a.b"), "h2,x", false),
        // In several records.
        ("openssl", &openssl, &["-servername", "a", "-alpn", &many, "-max_send_frag", "512"], Some("a"), &many, true),
        ("curl", &curl, &["https://users.example:PORT/"], Some("users.example"), "h2,http/1.1", false),
        ("curl", &curl, &["--http1.1", "--tls-max", "1.2", "https://127.0.0.1:PORT/"], None, "http/1.1", false),
    ] {
        let (wire, protocol) = first_bytes(tool, &[common, more].concat()).await;
        let Protocol::Tls(hello) = protocol else { panic!("{tool} {more:?}: {protocol:?} of {wire:x?}") };
        let offered: Vec<_> = hello.alpn().map(|name| str::from_utf8(name).unwrap()).collect();
        assert_eq!((hello.server_name.as_deref(), &offered.join(",")[..]), (name, alpn), "{tool} {more:?}");
        assert_eq!(records(&wire) > 1, cut, "{tool} {more:?}");
    }
}

#[tokio::test]
async fn http_of_curl() {
    let common = ["-s", "--noproxy", "*", "http://127.0.0.1:PORT/"];
    for (more, expected) in [
        (&["--http1.1"][..], Protocol::Http1),
        (&["--http1.0", "-d", "hello"], Protocol::Http1),
        (&["-x", "http://127.0.0.1:PORT", "--proxytunnel", "--noproxy", ""], Protocol::Http1),
        (&["--http2-prior-knowledge"], Protocol::Http2),
        (&["--haproxy-protocol"], Protocol::Other),
    ] {
        let (wire, protocol) = first_bytes("curl", &[&common[..], more].concat()).await;
        assert_eq!(protocol, expected, "{more:?}: {}", wire.escape_ascii());
        if expected == Protocol::Other {
            let header = decode(&wire).unwrap().unwrap();
            assert!(header.addresses.is_some() && wire[header.length..].starts_with(b"GET /"));
        }
    }
}

/// HAProxy with these sections in its config; `address` is one that it listens on.
async fn haproxy(dir: &TempDir, address: SocketAddr, sections: &str) -> Process {
    let config = format!("defaults\n timeout connect 60s\n timeout client 60s\n timeout server 60s\n{sections}");
    let path = dir.path().join("haproxy.cfg");
    fs::write(&path, config).unwrap();
    let mut command = Command::new(program("haproxy"));
    command.arg("-db").arg("-f").arg(path);
    let mut process = Process::start(command, &dir.path().join("log"));
    process.until(async || TcpStream::connect(address).await.is_ok()).await;
    process
}

#[tokio::test]
async fn headers_of_haproxy_are_read() {
    let dir = TempDir::new().unwrap();
    let at = || SocketAddr::from(([127, 0, 0, 1], free_port()));
    // A header of version 2 has a checksum, and so 35 bytes.
    let kinds = [("send-proxy", None), ("send-proxy-v2 proxy-v2-options crc32c", Some(16 + 12 + 7))];
    let ready = at();
    let mut sections = format!("listen ready\n mode http\n bind {ready}\n");
    let mut listeners = Vec::new();
    for (options, length) in kinds {
        let (listener, address) = (listen().await, at());
        let upstream = listener.local_addr().unwrap();
        sections += &format!("listen {}\n mode tcp\n bind {address}\n server s {upstream} {options}\n", address.port());
        listeners.push((listener, address, length));
    }
    let _haproxy = haproxy(&dir, ready, &sections).await;
    for (listener, address, length) in listeners {
        let mut client = Socket(TcpStream::connect(address).await.unwrap());
        client.write_all(b"hello").await.unwrap();
        let (mut server, mut start) = (accept(&listener).await, Vec::new());
        let header = loop {
            assert_ne!(server.read_buf(&mut start).await.unwrap(), 0);
            if let Some(header) = decode(&start).unwrap() {
                break header;
            }
        };
        let expected = Addresses { source: client.local_addr().unwrap(), destination: address };
        assert_eq!(header.addresses, Some(expected));
        assert!(length.is_none_or(|length| header.length == length), "{} bytes", header.length);
        while start.len() < header.length + 5 {
            assert_ne!(server.read_buf(&mut start).await.unwrap(), 0);
        }
        assert_eq!(&start[header.length..], b"hello");
    }
}

#[tokio::test]
async fn haproxy_reads_ours() {
    let dir = TempDir::new().unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let answer = "http-request return status 200 content-type text/plain lf-string";
    let sections = format!(
        "frontend told\n mode http\n bind {address} accept-proxy\n \
         {answer} \"%[src] %[src_port] %[dst] %[dst_port]\"\n"
    );
    let _haproxy = haproxy(&dir, address, &sections).await;
    for (source, destination, expected) in [
        ("192.0.2.1:56324", "198.51.100.2:443", "192.0.2.1 56324 198.51.100.2 443"),
        ("[2001:db8::1]:56324", "[2001:db8::2]:443", "2001:db8::1 56324 2001:db8::2 443"),
        ("[::ffff:192.0.2.1]:1", "[::ffff:192.0.2.2]:2", "192.0.2.1 1 192.0.2.2 2"),
        ("[2001:db8::1]:1", "198.51.100.2:2", "2001:db8::1 1 ::ffff:198.51.100.2 2"),
        ("", "", ""),
    ] {
        let addresses = source.parse().ok().zip(destination.parse().ok());
        let addresses = addresses.map(|(source, destination)| Addresses { source, destination });
        for write in [write_v1, write_v2] {
            let mut client = Socket(TcpStream::connect(address).await.unwrap());
            let own = client.local_addr().unwrap();
            let mut bytes = BytesMut::new();
            write(&mut bytes, addresses);
            bytes.extend_from_slice(b"GET / HTTP/1.1\r\nHost: users\r\nConnection: close\r\n\r\n");
            client.write_all(&bytes).await.unwrap();
            let mut response = String::new();
            client.read_to_string(&mut response).await.unwrap();
            let own = format!("{} {} {} {}", own.ip(), own.port(), address.ip(), address.port());
            let expected = if addresses.is_some() { expected } else { &own };
            assert_eq!(response.split("\r\n\r\n").nth(1), Some(expected), "{bytes:?}: {response}");
        }
    }
}
