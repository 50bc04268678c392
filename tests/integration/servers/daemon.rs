//! Databases, brokers and a mail server: what people have behind TCP. Each in a network namespace of the tests', on the port
//! that everybody knows, and with nothing left of it when it is dropped.

use super::{Certificates, Process, program};
use crate::netns::Namespace;
use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

/// The user and the group of those that refuse to be root.
const NOBODY: u32 = 65534;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Postgresql,
    Mariadb,
    Redis,
    Nats,
    Rabbitmq,
    Mail,
}

impl Kind {
    pub fn port(self) -> u16 {
        match self {
            Self::Postgresql => 5432,
            Self::Mariadb => 3306,
            Self::Redis => 6379,
            Self::Nats => 4222,
            Self::Rabbitmq => 5672,
            Self::Mail => 25,
        }
    }

    /// What it waits for before it says something; nothing where it speaks first.
    pub fn opening(self) -> &'static [u8] {
        match self {
            // An SSLRequest, which is answered by `S` or `N`.
            Self::Postgresql => b"\0\0\0\x08\x04\xd2\x16\x2f",
            Self::Redis => b"PING\r\n",
            Self::Rabbitmq => b"AMQP\0\0\x09\x01",
            Self::Mariadb | Self::Nats | Self::Mail => b"",
        }
    }

    /// What is in its log once it serves.
    fn ready(self) -> &'static str {
        match self {
            Self::Postgresql => "database system is ready to accept connections",
            Self::Mariadb => "ready for connections",
            Self::Redis => "Ready to accept connections",
            Self::Nats => "Server is ready",
            Self::Rabbitmq => "Server startup complete",
            Self::Mail => "listening for SMTP",
        }
    }

    /// A script for `sh`, whose last command is the server.
    fn script(self, at: &Path) -> String {
        let path = |name| program(name).display().to_string();
        let script = match self {
            Self::Postgresql => {
                // Without safety from a loss of power, which nobody tests here.
                format!(
                    "setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups {} -D AT/data \
                     -c listen_addresses='*' -c unix_socket_directories= -c dynamic_shared_memory_type=mmap -c fsync=off \
                     -c ssl=on -c ssl_cert_file=AT/server.pem -c ssl_key_file=AT/server.key -c max_connections=200",
                    genuine("postgres").display(),
                )
            }
            Self::Mariadb => format!(
                "{} --no-defaults --user=root --datadir=AT/data --socket=AT/socket --bind-address='*' \
                 --skip-name-resolve --innodb-log-file-size=4M --max-connect-errors=1000000 --max-connections=500 \
                 --init-file=AT/init.sql",
                path("mariadbd"),
            ),
            Self::Redis => {
                format!("{} --bind '*' '-::*' --protected-mode no --save '' --dir AT/", path("redis-server"))
            }
            Self::Nats => format!("{} -a ::", path("nats-server")),
            // A daemon of its own that tells nodes' ports; else it would start one that stays.
            Self::Rabbitmq => format!(
                "export HOME=AT/ ERL_EPMD_ADDRESS=127.0.0.1 RABBITMQ_NODENAME=test@localhost \
                 RABBITMQ_MNESIA_BASE=AT/mnesia RABBITMQ_LOG_BASE=AT/log RABBITMQ_LOGS=- RABBITMQ_CONF_ENV_FILE=AT/environment \
                 RABBITMQ_CONFIG_FILE=AT/rabbitmq RABBITMQ_ENABLED_PLUGINS_FILE=AT/plugins RABBITMQ_ALLOW_INPUT=1 \
                 RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-noinput\n\
                 {} -address 127.0.0.1 &\n{}",
                path("epmd"),
                genuine("rabbitmq-server").display(),
            ),
            // It wants a user of its own, whom only an installation makes.
            Self::Mail => "for list in passwd group; do mount --bind AT/$list /etc/$list || exit; done\n\
                 AT/exim4 -C AT/exim.conf -bdf"
                .into(),
        };
        script.replace("AT/", &format!("{}/", at.display()))
    }

    /// What it needs to be there before it starts.
    fn prepare(self, at: &Path) {
        match self {
            Self::Postgresql => prepare_postgresql(at),
            Self::Mariadb => {
                let data = format!("--datadir={}", at.join("data").display());
                run(Command::new(program("mariadb-install-db"))
                    .args(["--no-defaults", &data, "--user=root", "--auth-root-authentication-method=normal"])
                    .args(["--skip-test-db", "--innodb-log-file-size=4M"]));
                let users = "create user test@'%';\ngrant all on *.* to test@'%';\ncreate database test;\n";
                fs::write(at.join("init.sql"), users).unwrap();
            }
            Self::Redis | Self::Nats => {}
            Self::Rabbitmq => {
                // Guests from elsewhere than this machine, too.
                fs::write(at.join("rabbitmq.conf"), "loopback_users = none\n").unwrap();
                fs::write(at.join("environment"), "").unwrap();
                fs::write(at.join("plugins"), "[].").unwrap();
            }
            Self::Mail => prepare_mail(at),
        }
    }
}

fn prepare_postgresql(at: &Path) {
    Certificates::make(at);
    let key = at.join("server.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    chown(&key, Some(NOBODY), Some(NOBODY)).unwrap();
    let data = at.join("data");
    fs::create_dir(&data).unwrap();
    chown(&data, Some(NOBODY), Some(NOBODY)).unwrap();
    let user = NOBODY.to_string();
    run(Command::new("setpriv")
        .args(["--reuid", &user, "--regid", &user, "--clear-groups"])
        .arg(genuine("initdb"))
        .args(["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "-D"])
        .arg(&data));
    let allowed = data.join("pg_hba.conf");
    let everybody = "host all all 0.0.0.0/0 trust\nhost all all ::/0 trust\n";
    fs::write(&allowed, fs::read_to_string(&allowed).unwrap() + everybody).unwrap();
}

fn prepare_mail(at: &Path) {
    for (list, line) in [("passwd", "Debian-exim:x:65534:65534::/:/bin/false"), ("group", "Debian-exim:x:65534:")] {
        let there = fs::read_to_string(format!("/etc/{list}")).unwrap();
        let others = there.lines().filter(|line| !line.starts_with("Debian-exim:"));
        let lines: Vec<_> = others.chain([line]).map(|line| format!("{line}\n")).collect();
        fs::write(at.join(list), lines.concat()).unwrap();
    }
    // That user starts it again and again, and need not be allowed to see where it was installed.
    fs::copy(program("exim4"), at.join("exim4")).unwrap();
    for folder in ["spool", "mail"] {
        fs::create_dir(at.join(folder)).unwrap();
        chown(at.join(folder), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let config = "exim_path = AT/exim4\nspool_directory = AT/spool\nlog_file_path = AT/spool/%slog\npid_file_path = AT/pid\n\
         primary_hostname = mail.example\nsmtp_accept_max = 0\nkeep_environment =\n\
         # Nobody is asked who a client is.\nhost_lookup =\nrfc1413_query_timeout = 0s\ntls_advertise_hosts =\n\
         acl_smtp_rcpt = accept\nacl_smtp_data = accept\n\
         begin routers\nall:\n  driver = accept\n  transport = inbox\n\
         begin transports\ninbox:\n  driver = appendfile\n  file = AT/mail/inbox\n  user = nobody\n";
    fs::write(at.join("exim.conf"), config.replace("AT/", &format!("{}/", at.display()))).unwrap();
}

/// Where that program really is, beside other files that it needs, and where everybody may look.
fn genuine(name: &str) -> PathBuf {
    fs::canonicalize(program(name)).unwrap()
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&said));
}

pub struct Daemon {
    pub kind: Kind,
    process: Process,
    dir: TempDir,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Daemon {
    /// On all addresses of that namespace.
    pub async fn start(kind: Kind, namespace: &Namespace) -> Self {
        let dir = TempDir::new().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        kind.prepare(dir.path());
        // The script is the first process of a namespace, and whatever it started ends with it.
        let mut command = namespace.command("unshare");
        let script = kind.script(dir.path()) + " &\nwait $!";
        command.args(["--mount", "--ipc", "--pid", "--fork", "--kill-child", "sh", "-c", &script]);
        let log = dir.path().join("log.txt");
        let mut process = Process::start(command.into_std(), &log);
        let logs = [log, dir.path().join("spool/mainlog")];
        let is_ready = || logs.iter().any(|log| fs::read_to_string(log).is_ok_and(|log| log.contains(kind.ready())));
        process.until(async || is_ready()).await;
        Self { kind, process, dir }
    }

    /// As `kill -9` does, with all that it started.
    pub fn kill(&mut self) {
        let outside = self.process.child.id();
        let inside = fs::read_to_string(format!("/proc/{outside}/task/{outside}/children")).unwrap_or_default();
        for first in inside.split_whitespace() {
            let _ = Command::new("kill").args(["-KILL", first]).status();
        }
        // Which waits for the first process of its namespace, and that for all others.
        let _ = self.process.child.wait();
    }

    /// A file of its own.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}
