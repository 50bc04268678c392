//! Which servers are asked, and in which order: those that did not answer rest for a while.

use arc_swap::ArcSwap;
use std::{
    fs,
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::time::Instant;

pub const PORT: u16 = 53;

/// After its first silence; doubles with each further one.
const SHORTEST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(30);

/// The servers of one registry, for all of its services.
pub struct Servers {
    list: ArcSwap<Vec<Arc<Server>>>,
    /// Where they are listed, if not in the config.
    file: Option<PathBuf>,
    start: Instant,
}

pub struct Server {
    pub address: SocketAddr,
    /// Silences in a row.
    silences: AtomicU32,
    /// In milliseconds since the start.
    rests_until: AtomicU64,
}

impl Servers {
    pub fn fixed(addresses: Vec<SocketAddr>) -> Self {
        Self { list: ArcSwap::from_pointee(servers(addresses)), file: None, start: Instant::now() }
    }

    /// Those of a `resolv.conf`; `None` if there are none in it.
    pub fn of_file(path: &Path) -> Option<Self> {
        let addresses = name_servers(&fs::read_to_string(path).ok()?);
        let named = !addresses.is_empty();
        named.then(|| Self { file: Some(path.to_owned()), ..Self::fixed(addresses) })
    }

    /// Those to ask, in this order, with the one last whose rest is over first: as a last resort. Before that a server gets
    /// one question when its rest is over, if it comes before those that are well.
    pub fn in_turn(&self) -> Vec<Arc<Server>> {
        let now = self.now();
        let (mut turn, mut resting) = (Vec::new(), Vec::new());
        for server in self.list.load().iter() {
            let is_asked = server.is_well() || turn.is_empty() && server.is_due(now);
            if is_asked { &mut turn } else { &mut resting }.push(server.clone());
        }
        turn.extend(resting.into_iter().min_by_key(|server| server.rests_until.load(Relaxed)));
        turn
    }

    /// `server` was silent: it rests. Of many questions at one time the first one counts.
    pub fn silent(&self, server: &Server) {
        let (now, until) = (self.now(), server.rests_until.load(Relaxed));
        if until <= now {
            server.rest(now, until);
        }
    }

    /// After a question that none could answer: the network may be another one now, with other servers.
    pub async fn look_again(&self) {
        let Some(file) = &self.file else { return };
        let Ok(text) = tokio::fs::read_to_string(file).await else { return };
        let addresses = name_servers(&text);
        let same = self.list.load().iter().map(|server| &server.address).eq(&addresses);
        if !addresses.is_empty() && !same {
            self.list.store(Arc::new(servers(addresses)));
        }
    }

    fn now(&self) -> u64 {
        millis(self.start.elapsed())
    }
}

impl Server {
    pub fn answered(&self) {
        self.silences.store(0, Relaxed);
        self.rests_until.store(0, Relaxed);
    }

    fn is_well(&self) -> bool {
        self.silences.load(Relaxed) == 0
    }

    /// Whether its rest is over. For others than who is told so the next one begins: one question is enough to find out.
    fn is_due(&self, now: u64) -> bool {
        let until = self.rests_until.load(Relaxed);
        until <= now && self.rest(now, until)
    }

    /// Begins the next rest after the one `until` then, unless another has.
    fn rest(&self, now: u64, until: u64) -> bool {
        let next = now + millis(rest(self.silences.load(Relaxed)));
        let is_first = self.rests_until.compare_exchange(until, next, Relaxed, Relaxed).is_ok();
        if is_first {
            self.silences.fetch_add(1, Relaxed);
        }
        is_first
    }
}

fn servers(addresses: Vec<SocketAddr>) -> Vec<Arc<Server>> {
    let server = |address| Server { address, silences: AtomicU32::new(0), rests_until: AtomicU64::new(0) };
    addresses.into_iter().map(|address| Arc::new(server(address))).collect()
}

fn rest(silences: u32) -> Duration {
    SHORTEST_REST.saturating_mul(1u32.checked_shl(silences).unwrap_or(u32::MAX)).min(LONGEST_REST)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The `nameserver` lines of a `resolv.conf`.
fn name_servers(text: &str) -> Vec<SocketAddr> {
    let value = |line: &str| {
        let mut words = line.split_whitespace();
        let is_one = words.next() == Some("nameserver");
        words.next().filter(|_| is_one).and_then(name_server)
    };
    text.lines().filter_map(value).collect()
}

/// An address as it may stand there: `fe80::1%2` names the network interface as well.
fn name_server(text: &str) -> Option<SocketAddr> {
    if let Some((ip, scope)) = text.split_once('%') {
        let ip: Ipv6Addr = ip.parse().ok()?;
        let index = scope.parse().ok().or_else(|| interface(scope))?;
        return Some(SocketAddrV6::new(ip, PORT, 0, index).into());
    }
    text.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, PORT))
}

/// The number of a network interface, as Linux shows it.
fn interface(name: &str) -> Option<u32> {
    let is_name = name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/') && !matches!(name, "." | "..");
    fs::read_to_string(format!("/sys/class/net/{name}/ifindex")).ok().filter(|_| is_name)?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    fn servers_of(names: &[u16]) -> Servers {
        Servers::fixed(names.iter().map(|port| SocketAddr::from(([127, 0, 0, 1], *port))).collect())
    }

    fn turn(servers: &Servers) -> Vec<u16> {
        servers.in_turn().iter().map(|server| server.address.port()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_silent_rests_longer_each_time() {
        let servers = servers_of(&[1, 2]);
        assert_eq!(turn(&servers), [1, 2]);
        let first = servers.in_turn()[0].clone();
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            // Many asked it at one time, or one did when its rest was over.
            (0..20).for_each(|_| servers.silent(&first));
            assert_eq!(turn(&servers), [2, 1], "a last resort while it rests");
            advance(Duration::from_millis(seconds * 1000 - 1)).await;
            assert_eq!(turn(&servers), [2, 1], "{seconds} s");
            advance(Duration::from_millis(1)).await;
            assert_eq!(turn(&servers), [1, 2], "{seconds} s");
            assert_eq!(turn(&servers), [2, 1], "one question finds out");
        }
        first.answered();
        assert_eq!((turn(&servers), turn(&servers)), (vec![1, 2], vec![1, 2]));
        servers.silent(&first);
        advance(Duration::from_secs(1)).await;
        assert_eq!(turn(&servers), [1, 2], "an answer makes rests short again");
    }

    #[tokio::test(start_paused = true)]
    async fn while_all_rest_one_is_asked() {
        let servers = servers_of(&[1, 2, 3]);
        for server in servers.in_turn() {
            servers.silent(&server);
            advance(Duration::from_millis(100)).await;
        }
        assert_eq!(turn(&servers), [1]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_system_s_servers_are_read_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        assert!(Servers::of_file(&file).is_none());
        fs::write(&file, "search a.b\n# nameserver 9.9.9.9\nnameserver\nnameserver x\n").unwrap();
        assert!(Servers::of_file(&file).is_none());
        fs::write(&file, "nameserver 10.0.0.53\n nameserver\t::1 # own\nnameserver fe80::1%7\noptions edns0\n")
            .unwrap();
        let servers = Servers::of_file(&file).unwrap();
        let shown = || servers.in_turn().iter().map(|server| server.address.to_string()).collect::<Vec<_>>();
        assert_eq!(shown(), ["10.0.0.53:53", "[::1]:53", "[fe80::1%7]:53"]);
        servers.silent(&servers.in_turn()[0]);
        servers.look_again().await;
        assert_eq!(
            shown(),
            ["[::1]:53", "[fe80::1%7]:53", "10.0.0.53:53"],
            "the same servers, and what is known of them"
        );
        fs::write(&file, "nameserver 10.1.0.53\n").unwrap();
        servers.look_again().await;
        assert_eq!(shown(), ["10.1.0.53:53"]);
        fs::write(&file, "").unwrap();
        servers.look_again().await;
        assert_eq!(shown(), ["10.1.0.53:53"], "it is being written");
        assert!(name_server("fe80::1%lo").is_some() && name_server("fe80::1%no-such").is_none());
    }
}
