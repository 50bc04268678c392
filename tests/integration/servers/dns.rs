//! DNS servers, and what stands between them and those who ask.

use super::{Process, free_port, program};
use std::{fs, path::Path, process::Command};
use tempfile::TempDir;
use tokio::net::UdpSocket;

/// A question for the root, with the id 1.
const PING: [u8; 17] = [0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Bind,
    CoreDns,
    Dnsmasq,
}

/// A server of the zone `test`, alone with what it knows.
pub struct DnsServer {
    kind: Kind,
    dir: TempDir,
    pub port: u16,
    serial: u32,
    /// Of BIND, beside what all have.
    options: String,
    process: Process,
}

impl DnsServer {
    /// With these records, as in a zone file. To dnsmasq, as in its own.
    pub async fn start(kind: Kind, records: &str) -> Self {
        Self::start_with(kind, records, "").await
    }

    pub async fn start_with(kind: Kind, records: &str, options: &str) -> Self {
        let (dir, port) = (TempDir::new().unwrap(), free_port());
        write(kind, dir.path(), port, 1, records, options);
        let process = spawn(kind, dir.path());
        let mut server = Self { kind, dir, port, serial: 1, options: options.into(), process };
        server.ready().await;
        server
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Other records, without a break. (dnsmasq is restarted: it reads some of them only then.)
    pub async fn change(&mut self, records: &str) {
        self.rewrite(records);
        match self.kind {
            Kind::Bind => self.process.signal("HUP"),
            // It looks by itself.
            Kind::CoreDns => {}
            Kind::Dnsmasq => self.restart().await,
        }
    }

    /// Other records after the next start.
    pub fn rewrite(&mut self, records: &str) {
        self.serial += 1;
        write(self.kind, self.dir.path(), self.port, self.serial, records, &self.options);
    }

    pub fn set_options(&mut self, options: &str) {
        self.options = options.into();
    }

    pub fn kill(&mut self) {
        self.process.kill();
    }

    pub async fn restart(&mut self) {
        self.process.kill();
        self.process = spawn(self.kind, self.dir.path());
        self.ready().await;
    }

    async fn ready(&mut self) {
        let port = self.port;
        self.process.until(async || answers(port).await).await;
    }
}

/// Whether somebody answers there at all.
pub async fn answers(port: u16) -> bool {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(("127.0.0.1", port)).await.unwrap();
    let asked = async {
        socket.send(&PING).await?;
        socket.recv(&mut [0; 2000]).await
    };
    matches!(tokio::time::timeout(std::time::Duration::from_secs(2), asked).await, Ok(Ok(_)))
}

fn write(kind: Kind, dir: &Path, port: u16, serial: u32, records: &str, options: &str) {
    let folder = dir.display();
    let zone = format!(
        "$ORIGIN test.\n@ 3600 IN SOA ns admin {serial} 7200 3600 1209600 2\n@ 3600 IN NS ns\nns 3600 IN A 127.0.0.1\n{records}\n"
    );
    // At once: CoreDNS may read it at any time.
    let put = |name: &str, text: &str| {
        fs::write(dir.join("new"), text).unwrap();
        fs::rename(dir.join("new"), dir.join(name)).unwrap();
    };
    match kind {
        Kind::Bind => {
            let zones =
                if options.contains("NO ZONE") { "" } else { "zone \"test\" { type primary; file \"zone\"; };" };
            let config = format!(
                "options {{ directory \"{folder}\"; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; \
                 pid-file none; session-keyfile none; managed-keys-directory \"{folder}\"; recursion no; {options} }};\n\
                 controls {{}};\n{zones}\n"
            );
            put("config", &config);
            put("zone", &zone);
        }
        Kind::CoreDns => {
            put("zone", &zone);
            let config = format!(
                ".:{port} {{\n bind 127.0.0.1\n errors\n loadbalance\n file {folder}/zone test {{\n reload 100ms\n }}\n}}\n"
            );
            put("config", &config);
        }
        Kind::Dnsmasq => {
            let config = format!(
                "no-resolv\nno-hosts\nport={port}\nlisten-address=127.0.0.1\nbind-interfaces\nuser=\n\
                 pid-file={folder}/pid\n{records}\n"
            );
            put("config", &config);
        }
    }
}

fn spawn(kind: Kind, dir: &Path) -> Process {
    let mut command = match kind {
        Kind::Bind => Command::new(program("named")),
        Kind::CoreDns => Command::new(program("coredns")),
        Kind::Dnsmasq => Command::new(program("dnsmasq")),
    };
    match kind {
        Kind::Bind => command.args(["-g", "-n", "1", "-c"]),
        Kind::CoreDns => command.arg("-conf"),
        Kind::Dnsmasq => command.args(["--keep-in-foreground", "-C"]),
    };
    command.arg(dir.join("config"));
    Process::start(command, &dir.join("log"))
}
