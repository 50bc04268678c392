//! What a service manager is told: systemd's notification protocol (sd_notify(3)), one datagram per message to the socket
//! that `NOTIFY_SOCKET` names.

use crate::config::Env;
use anyhow::{Context, bail};
use rustix::time::{ClockId, clock_gettime};
use std::{
    io,
    os::unix::net::{SocketAddr, UnixDatagram},
    time::Duration,
};

/// Where messages go; nowhere without a service manager.
#[derive(Debug, Default)]
pub struct Notifier {
    socket: Option<UnixDatagram>,
    /// How long the service manager bears silence.
    watchdog: Option<Duration>,
}

impl Notifier {
    /// As the environment says. What it says wrong is told in the log: pillion works as well without a service manager.
    pub fn new(env: &Env) -> Self {
        Self::open(env).unwrap_or_else(|error| {
            tracing::warn!("the service manager hears nothing of this pillion: {error:#}");
            Self::default()
        })
    }

    fn open(env: &Env) -> anyhow::Result<Self> {
        let Some(address) = env("NOTIFY_SOCKET").filter(|address| !address.is_empty()) else {
            return Ok(Self::default());
        };
        let socket = UnixDatagram::unbound()?;
        // A service manager that does not read must not stop the control thread.
        socket.set_nonblocking(true)?;
        socket.connect_addr(&parse(&address)?).with_context(|| format!("NOTIFY_SOCKET is `{address}`"))?;
        let for_us = env("WATCHDOG_PID").is_none_or(|process| process == std::process::id().to_string());
        let watchdog = match env("WATCHDOG_USEC").filter(|_| for_us) {
            None => None,
            Some(text) => match text.parse() {
                Ok(time) if time > 0 => Some(Duration::from_micros(time)),
                _ => bail!("WATCHDOG_USEC is `{text}`; expected a number of microseconds"),
            },
        };
        Ok(Self { socket: Some(socket), watchdog })
    }

    /// pillion can take traffic.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}", line(status)));
    }

    /// Another config is being taken over; [`Self::ready`] says that this is over, however it went.
    pub fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let micros = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={micros}\nSTATUS=taking another config over"));
    }

    /// This process is the service's main one from now on.
    pub fn is_main_process(&self) {
        self.send(&format!("MAINPID={}", std::process::id()));
    }

    /// pillion is about to end.
    pub fn stopping(&self, status: &str) {
        self.send(&format!("STOPPING=1\nSTATUS={}", line(status)));
    }

    /// What is going on, for people.
    pub fn status(&self, status: &str) {
        self.send(&format!("STATUS={}", line(status)));
    }

    /// Says again and again that it lives, if somebody wants to hear that. Run on the control thread, so that the service
    /// manager notices when that hangs.
    pub async fn keep_alive(&self) {
        let Some(limit) = self.watchdog else { return };
        loop {
            self.send("WATCHDOG=1");
            tokio::time::sleep(limit / 3).await;
        }
    }

    fn send(&self, message: &str) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = socket.send(message.as_bytes()) {
            tracing::warn!(%error, message, "the service manager could not be told");
        }
    }
}

/// A path, or with `@` in front a name in the abstract namespace.
fn parse(address: &str) -> anyhow::Result<SocketAddr> {
    let parsed = match address.strip_prefix('@') {
        Some(name) => abstract_name(name),
        None if address.starts_with('/') => SocketAddr::from_pathname(address),
        None => bail!("NOTIFY_SOCKET is `{address}`; expected an absolute path, or `@` and a name"),
    };
    parsed.with_context(|| format!("NOTIFY_SOCKET is `{address}`"))
}

#[cfg(target_os = "linux")]
fn abstract_name(name: &str) -> io::Result<SocketAddr> {
    use std::os::linux::net::SocketAddrExt;
    SocketAddr::from_abstract_name(name)
}

#[cfg(not(target_os = "linux"))]
fn abstract_name(_: &str) -> io::Result<SocketAddr> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "only Linux has abstract names"))
}

/// A message has one assignment per line.
fn line(text: &str) -> String {
    text.trim_end().replace('\n', "; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The other end, and the message that came last.
    fn manager(address: &SocketAddr) -> impl Fn() -> String + use<> {
        let socket = UnixDatagram::bind_addr(address).unwrap();
        move || {
            let mut buf = [0; 4096];
            let length = socket.recv(&mut buf).unwrap();
            String::from_utf8(buf[..length].to_vec()).unwrap()
        }
    }

    fn notifier(env: &[(&str, &str)]) -> anyhow::Result<Notifier> {
        Notifier::open(&|name| env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn messages_arrive_at_paths_and_abstract_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify").to_str().unwrap().to_owned();
        let name = format!("@pillion-test-{}", std::process::id());
        for address in [path, name] {
            let received = manager(&parse(&address).unwrap());
            let notifier = notifier(&[("NOTIFY_SOCKET", &address)]).unwrap();
            notifier.ready("one\ntwo\n");
            assert_eq!(received(), "READY=1\nSTATUS=one; two");
            notifier.is_main_process();
            assert_eq!(received(), format!("MAINPID={}", std::process::id()));
            notifier.stopping("closing");
            assert_eq!(received(), "STOPPING=1\nSTATUS=closing");
            notifier.reloading();
            let message = received();
            let (_, rest) = message.split_once("RELOADING=1\nMONOTONIC_USEC=").unwrap();
            let micros: i64 = rest.lines().next().unwrap().parse().unwrap();
            let now = clock_gettime(ClockId::Monotonic);
            assert!((0..60_000_000).contains(&(now.tv_sec * 1_000_000 + now.tv_nsec / 1000 - micros)), "{micros}");
        }
    }

    #[test]
    fn without_a_service_manager_nobody_is_told() {
        assert!(notifier(&[]).unwrap().socket.is_none());
        assert!(notifier(&[("NOTIFY_SOCKET", ""), ("WATCHDOG_USEC", "x")]).unwrap().socket.is_none());
        let wrong = |env| format!("{:#}", notifier(env).unwrap_err());
        let expected = "NOTIFY_SOCKET is `vsock:2:9`; expected an absolute path, or `@` and a name";
        assert_eq!(wrong(&[("NOTIFY_SOCKET", "vsock:2:9")]), expected);
        let nobody = wrong(&[("NOTIFY_SOCKET", "/no/such/socket")]);
        assert!(nobody.starts_with("NOTIFY_SOCKET is `/no/such/socket`: No such file"), "{nobody}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_hears_three_times_within_its_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let received = manager(&SocketAddr::from_pathname(&path).unwrap());
        let path = path.to_str().unwrap();
        let us = std::process::id().to_string();
        let with = |pid, time| notifier(&[("NOTIFY_SOCKET", path), ("WATCHDOG_PID", pid), ("WATCHDOG_USEC", time)]);
        let kept = with(&us, "3000000").unwrap();
        let told = tokio::time::timeout(Duration::from_millis(2500), kept.keep_alive());
        assert!(told.await.is_err());
        kept.status("end");
        assert_eq!(
            [received(), received(), received(), received()].join(" "),
            "WATCHDOG=1 WATCHDOG=1 WATCHDOG=1 STATUS=end"
        );
        // That is meant for another process.
        with("1", "3000000").unwrap().keep_alive().await;
        let error = with(&us, "soon").unwrap_err().to_string();
        assert_eq!(error, "WATCHDOG_USEC is `soon`; expected a number of microseconds");
    }
}
