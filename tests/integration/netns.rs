//! Network namespaces of the tests' own, with cables between them. What goes on in them touches nothing else on this machine.

use crate::{
    e2e::{self, PATIENCE, soon},
    pillion::tested,
    servers,
};
use rustix::{
    process::{Gid, Uid},
    thread::{LinkNameSpaceType, move_into_link_name_space, set_thread_gid, set_thread_uid},
};
use socket2::{Domain, Socket, Type};
use std::{
    ffi::OsStr,
    fs::File,
    io,
    net::SocketAddr,
    os::fd::AsFd,
    process,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::Command,
};

/// Gone when dropped, with all cables to it.
pub struct Namespace {
    name: String,
}

/// Who opens a connection.
#[derive(Debug, Clone, Copy, Default)]
pub struct Caller {
    pub user: u32,
    pub group: u32,
    /// Only root can mark sockets.
    pub mark: u32,
}

impl Namespace {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("pillion-test-{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        if let Err(error) = ip(&["netns", "add", &name]) {
            panic!(
                "no network namespace can be made here: {error}\nThese tests need root (`sudo -E make test`); in a container also \
                 the capabilities SYS_ADMIN and NET_ADMIN."
            );
        }
        let namespace = Self { name };
        namespace.ip("link set lo up");
        namespace
    }

    /// A cable from here to `other`. This end has the addresses 10.77.NUMBER.1 and fd77:NUMBER::1, the other one .2 and ::2, and
    /// the interface is called cableNUMBER on both sides.
    pub fn cable(&self, other: &Self, number: u8) {
        let end = format!("cable{number}");
        self.ip(&format!("link add {end} type veth peer name {end} netns {}", other.name));
        for (namespace, host) in [(self, 1), (other, 2)] {
            namespace.ip(&format!("addr add 10.77.{number}.{host}/24 dev {end}"));
            // Without looking for others with this address, which takes a second.
            namespace.ip(&format!("addr add fd77:{number}::{host}/64 dev {end} nodad"));
            namespace.ip(&format!("link set {end} up"));
        }
    }

    /// `ip` on what is in here; its words are separated by blanks.
    pub fn ip(&self, line: &str) {
        let args: Vec<_> = ["-n", &self.name].into_iter().chain(line.split_whitespace()).collect();
        ip(&args).unwrap_or_else(|error| panic!("ip {line}: {error}"));
    }

    /// A program that runs in here, without what the caller's environment would tell a pillion.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = e2e::program(&servers::program("ip"), &["netns", "exec", &self.name]);
        command.arg(program);
        command
    }

    pub fn pillion(&self, args: &[&str]) -> Command {
        let mut command = self.command(tested());
        command.args(args);
        command
    }

    /// Does something on a thread that is in here. Sockets stay in the namespace in which they were opened.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.name)).unwrap();
        let inside = || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join()).unwrap()
    }

    /// Where an IPv6 address has no bits set, IPv4 is accepted as well.
    pub fn listen(&self, address: SocketAddr) -> TcpListener {
        let bound =
            self.enter(|| std::net::TcpListener::bind(address)).unwrap_or_else(|error| panic!("{address}: {error}"));
        bound.set_nonblocking(true).unwrap();
        TcpListener::from_std(bound).unwrap()
    }

    pub fn connect(&self, caller: Caller, address: SocketAddr) -> io::Result<TcpStream> {
        let stream = self.open_as(caller, || {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
            if caller.mark != 0 {
                socket.set_mark(caller.mark)?;
            }
            socket.connect_timeout(&address.into(), PATIENCE)?;
            Ok(socket)
        })?;
        stream.set_nonblocking(true)?;
        TcpStream::from_std(stream.into())
    }

    /// Opens a socket in here that is that user's and group's from then on.
    pub fn open_as<T: Send>(&self, caller: Caller, open: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        self.enter(|| {
            // The group first: the user may not change it.
            set_thread_gid(Gid::from_raw(caller.group))?;
            set_thread_uid(Uid::from_raw(caller.user))?;
            open()
        })
    }

    /// Sends something to whoever takes connections there and resets them, perhaps before their client knows of them.
    pub async fn reset(&self, caller: Caller, address: &str, sent: &[u8]) {
        let mut stream = match self.connect(caller, address.parse().unwrap()) {
            Ok(stream) => stream,
            Err(error) => return assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{address}"),
        };
        let _ = stream.write_all(sent).await;
        let mut heard = String::new();
        let _ = soon("the end", stream.read_to_string(&mut heard)).await;
        assert_eq!(heard, "", "{address}");
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "delete", &self.name]) {
            eprintln!("the network namespace {} stays: {error}", self.name);
        }
    }
}

fn ip(args: &[&str]) -> Result<(), String> {
    let output =
        process::Command::new(servers::program("ip")).args(args).output().map_err(|error| error.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
}
