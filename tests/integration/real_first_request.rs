//! docs/first-request.md and docs/registering.md: the commands as they stand there, in a network namespace where all ports are free.

use crate::{
    e2e::{PATIENCE, serve},
    netns::Namespace,
    pillion::tested,
    servers::{Process, program},
};
use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use std::{
    convert::Infallible,
    env,
    ffi::OsString,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::Stdio,
};
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    sync::watch,
    time::{Duration, Instant, sleep},
};

/// What is not to end by itself.
const RUNNING: [&str; 7] =
    ["consul agent", "coredns", "docker run", "etcd", "pillion register", "pillion run", "redis-server"];

/// `docker`, with the servers that the tests have; they are told where they may write, and of nothing else but their ports.
const DOCKER: &str = r#"#!/bin/sh
for image; do :; done
case "$image" in
zookeeper:*)
  printf 'tickTime=500\ndataDir=%s/data\nclientPort=2181\nadmin.enableServer=false\n' "$PWD" > zoo.cfg
  exec zookeeper-3.9 "$PWD/zoo.cfg" ;;
nacos/nacos-server:v2.*)
  exec nacos-2 nacos.standalone=true nacos.functionMode=naming "nacos.home=$PWD/home" server.port=8848 nacos.server.main.port=8848 \
    server.address=127.0.0.1 nacos.core.auth.enabled=false db.pool.config.connectionTimeout=60000 ;;
springcloud/eureka)
  exec eureka-server --server.port=8761 "--server.tomcat.basedir=$PWD" ;;
esac
echo "no $image here" >&2
exit 1
"#;

const ZKCLI: &str = "#!/bin/sh\nexec registrant-curator cli \"$@\"\n";

/// Far longer than an answer takes, and less than any instance lives without a renewal.
const AGAIN: Duration = Duration::from_secs(10);

const FIRST_REQUEST: &str = "first-request.md";

fn document(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name)).unwrap()
}

/// The blocks of a language in a part of the document.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let open = format!("```{language}\n");
    text.split(open.as_str()).skip(1).map(|rest| rest.split_once("```").expect("a block ends").0.to_owned()).collect()
}

/// The part below a heading; with none, what comes before the first.
fn section(name: &str, heading: &str) -> String {
    let text = document(name);
    let mut parts = text.split("\n## ");
    if heading.is_empty() {
        return parts.next().unwrap().to_owned();
    }
    let found = parts.find_map(|part| part.strip_prefix(heading)?.strip_prefix('\n').map(ToOwned::to_owned));
    found.unwrap_or_else(|| panic!("no section `{heading}`"))
}

/// A machine of the reader's.
struct Desk {
    namespace: Namespace,
    dir: TempDir,
    path: OsString,
    running: Vec<Running>,
}

/// With all that it started.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(id) = self.0.id() {
            let _ = std::process::Command::new("kill").args(["-9", "--", &format!("-{id}")]).status();
        }
    }
}

impl Desk {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        for (name, text) in [("docker", DOCKER), ("zkCli.sh", ZKCLI)] {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        symlink(tested(), dir.path().join("pillion")).unwrap();
        let installed =
            ["consul", "etcd", "redis-server", "curl"].map(|name| program(name).parent().unwrap().to_owned());
        let usual = env::var_os("PATH").unwrap_or_default();
        let path = [dir.path().to_owned()].into_iter().chain(installed).chain(env::split_paths(&usual));
        let path = env::join_paths(path).unwrap();
        Self { namespace: Namespace::new(), dir, path, running: Vec::new() }
    }

    /// What is to be called.
    fn serve(&self, answer: String) {
        let listener = self.namespace.listen("127.0.0.1:8080".parse().unwrap());
        tokio::spawn(async move {
            // Nobody leaves before the test ends.
            let (_leave, leaving) = watch::channel(false);
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, leaving) = (answer.clone(), leaving.clone());
                tokio::spawn(serve(
                    stream,
                    move |_| {
                        let answer = Bytes::from(answer.clone());
                        async { Ok::<_, Infallible>(Response::new(Full::new(answer))) }
                    },
                    leaving,
                ));
            }
        });
    }

    fn command(&self, block: &str) -> Command {
        let mut command = self.namespace.command("sh");
        command.args(["-c", block]).current_dir(self.dir.path()).env("PATH", &self.path).process_group(0);
        command
    }

    fn start(&mut self, block: &str) {
        let log = fs::File::options().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let mut command = self.command(block);
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.running.push(Running(command.spawn().unwrap()));
    }

    /// What a block that ends says.
    async fn run(&self, block: &str) -> Result<String, String> {
        let output = self.command(block).stdin(Stdio::null()).output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = || format!("{said}{}", String::from_utf8_lossy(&output.stderr));
        if output.status.success() { Ok(said) } else { Err(error()) }
    }

    /// Runs a block until what it says is good, and these again when that takes long.
    async fn until(&self, block: &str, is_good: impl Fn(&Result<String, String>) -> bool, again: &[&str]) {
        let (begin, mut since) = (Instant::now(), Instant::now());
        loop {
            let said = self.run(block).await;
            if is_good(&said) {
                return;
            }
            if begin.elapsed() > 3 * PATIENCE {
                let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
                let lines: Vec<_> = log.lines().collect();
                panic!("{block}\n{said:#?}\n{}", lines[lines.len().saturating_sub(20)..].join("\n"));
            }
            sleep(Duration::from_millis(200)).await;
            if since.elapsed() > AGAIN {
                since = Instant::now();
                for other in again {
                    let _ = self.run(other).await;
                }
            }
        }
    }
}

/// Does what stands below a heading, and then asks as the document does: there, or where it begins.
async fn follow(name: &str, heading: &str) {
    let (part, head) = (section(name, heading), section(FIRST_REQUEST, ""));
    let (mut steps, answers) = (blocks(&part, "sh"), blocks(&part, "text"));
    assert!(steps.len() > 1, "{steps:#?}");
    let [_, ask] = &blocks(&head, "sh")[..] else { panic!("the document begins with two commands") };
    let [hello] = &blocks(&head, "text")[..] else { panic!("and with one answer") };
    let (ask, answer) = match answers.into_iter().next() {
        Some(answer) => (steps.pop().unwrap(), answer),
        None => (ask.clone(), hello.clone()),
    };
    let mut desk = Desk::new();
    desk.serve(hello.clone());
    let _start =
        if steps.iter().any(|step| step.contains("docker")) { Some(Process::java_start().await) } else { None };
    let mut ending = Vec::new();
    for step in &steps {
        let last = step.lines().rev().find(|line| !line.starts_with(' ')).unwrap();
        if RUNNING.iter().any(|command| last == *command || last.starts_with(&format!("{command} "))) {
            desk.start(step);
        } else {
            // What it talks to takes its time to start.
            desk.until(step, Result::is_ok, &[]).await;
            ending.push(step.as_str());
        }
    }
    // An instance that nobody renews is gone after a while, and is put in again.
    desk.until(&ask, |said| said.as_ref() == Ok(&answer), &ending).await;
}

macro_rules! sections {
    ($($test:ident $heading:literal)*) => {
        const TESTED: &[&str] = &[$($heading),*];
        $(#[tokio::test]
        async fn $test() {
            follow(FIRST_REQUEST, $heading).await;
        })*
    };
}

sections! {
    with_consul "Consul"
    with_etcd "etcd"
    with_zookeeper "ZooKeeper"
    with_redis "Redis"
    with_nacos "Nacos"
    with_eureka "Eureka"
    with_dns "DNS"
    with_a_file "A file"
    with_the_embedded_one "Embedded"
}

#[test]
fn no_section_with_commands_goes_untested() {
    let text = document(FIRST_REQUEST);
    let parts = text.split("\n## ").skip(1).filter(|part| !blocks(part, "sh").is_empty());
    let headings: Vec<_> = parts.map(|part| part.lines().next().unwrap()).collect();
    assert_eq!(headings, TESTED);
}

#[tokio::test]
async fn an_application_is_registered() {
    follow("registering.md", "By a command").await;
}
