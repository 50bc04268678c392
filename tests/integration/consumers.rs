//! Frameworks' own clients, which find a service in a registry and call it: `tests/clients/registrant/consumer`, and those in
//! Java in `tests/clients/registrant-curator`.

use crate::{
    e2e::{PATIENCE, soon},
    servers::program,
};
use std::process::Stdio;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::{Duration, Instant, sleep},
};

/// One client. It is killed, by its own id, when dropped.
pub struct Consumer {
    _child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Consumer {
    /// One in Go.
    pub async fn start(framework: &str, args: &[&str]) -> Self {
        Self::run(Command::new(program("consumer")).args(["-framework", framework]).args(args)).await
    }

    /// One of Curator's service discovery, in Java.
    pub async fn curator(framework: &str, args: &[&str]) -> Self {
        let mut command = Command::new(program("registrant-curator"));
        Self::run(command.args(["consumer", "-framework", framework]).args(args)).await
    }

    async fn run(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut consumer = Self { _child: child, input, output };
        assert_eq!(consumer.says().await, "ready");
        consumer
    }

    async fn says(&mut self) -> String {
        soon("the consumer", self.output.next_line()).await.unwrap().expect("the consumer lives")
    }

    /// Makes one call, and returns what came of it.
    pub async fn call(&mut self) -> String {
        self.input.write_all(b"call /from-consumer\n").await.unwrap();
        self.says().await
    }

    /// Calls until the answer is this one.
    pub async fn until_called(&mut self, answer: &str) {
        self.until(&format!("called {answer}"), |said| said == format!("called {answer}")).await;
    }

    /// Calls until there is nobody to call.
    pub async fn until_failed(&mut self) {
        self.until("failed", |said| said.starts_with("failed: ")).await;
    }

    async fn until(&mut self, what: &str, fits: impl Fn(&str) -> bool) {
        let start = Instant::now();
        loop {
            let said = self.call().await;
            if fits(&said) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "waited in vain for `{what}`; the consumer said `{said}`");
            sleep(Duration::from_millis(20)).await;
        }
    }
}
