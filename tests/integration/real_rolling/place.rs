//! A real registry on the machine with the callers, and what it has, without pillion's help.

use crate::{
    netns::{Caller, Namespace},
    peer::Peer,
    servers::{Process, program},
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};
use std::{fs, path::Path};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Consul,
    Etcd,
}

pub struct Place {
    kind: Kind,
    #[allow(dead_code, reason = "held for its drop")]
    process: Process,
}

impl Place {
    /// On all addresses of that namespace.
    pub async fn start(kind: Kind, namespace: &Namespace, dir: &Path) -> Self {
        let data = dir.join("registry");
        fs::create_dir_all(&data).unwrap();
        let mut command = match kind {
            Kind::Consul => {
                let mut command = namespace.command(program("consul"));
                command.args(["agent", "-dev", "-node=n1", "-bind=127.0.0.1", "-client=0.0.0.0"]);
                command
            }
            Kind::Etcd => {
                let mut command = namespace.command(program("etcd"));
                let client =
                    ["--listen-client-urls", "http://0.0.0.0:2379", "--advertise-client-urls", "http://127.0.0.1:2379"];
                command.args(client).arg("--data-dir").arg(data.join("data"));
                command
            }
        };
        command.current_dir(&data);
        let mut process = Process::start(command.into_std(), &data.join("log"));
        let (path, ready) = match kind {
            // The agent's own node in the catalog: the leader has done its first work.
            Kind::Consul => ("/v1/health/node/n1", "serfHealth"),
            Kind::Etcd => ("/health", "\"true\""),
        };
        process
            .until(async || ask(kind, namespace, "GET", path, "").await.is_some_and(|said| said.contains(ready)))
            .await;
        Self { kind, process }
    }

    /// Its settings under `registries`, for who reaches it at `host`.
    pub fn settings(&self, host: &str) -> String {
        let port = port(self.kind);
        match self.kind {
            Kind::Consul => format!("kind: consul, address: \"http://{host}:{port}\""),
            Kind::Etcd => format!("kind: etcd, endpoints: [\"http://{host}:{port}\"]"),
        }
    }

    /// All that it has of the service, whatever their checks say: `ADDRESS VERSION` of each.
    pub async fn entries(&self, namespace: &Namespace) -> Vec<String> {
        let (method, path, body) = match self.kind {
            Kind::Consul => ("GET", format!("/v1/health/service/{}", super::SERVICE), String::new()),
            Kind::Etcd => {
                let (from, to) = (format!("/pillion/{}/", super::SERVICE), format!("/pillion/{}0", super::SERVICE));
                let range = json!({"key": BASE64.encode(from), "range_end": BASE64.encode(to)});
                ("POST", "/v3/kv/range".into(), range.to_string())
            }
        };
        let said = ask(self.kind, namespace, method, &path, &body).await.expect("the registry answers");
        let said: Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
        let (list, entry): (_, fn(&Value) -> String) = match self.kind {
            Kind::Consul => (&said, |row| {
                let service = &row["Service"];
                format!("{}:{} {}", text(&service["Address"]), service["Port"], text(&service["Meta"]["version"]))
            }),
            Kind::Etcd => (&said["kvs"], |row| {
                let value: Value = serde_json::from_slice(&BASE64.decode(text(&row["value"])).unwrap()).unwrap();
                format!("{} {}", text(&value["address"]), text(&value["labels"]["version"]))
            }),
        };
        let mut entries: Vec<_> = list.as_array().into_iter().flatten().map(entry).collect();
        entries.sort_unstable();
        entries
    }
}

fn port(kind: Kind) -> u16 {
    match kind {
        Kind::Consul => 8500,
        Kind::Etcd => 2379,
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("a text: {value}"))
}

/// `None` where nobody answers, or with something other than 200.
async fn ask(kind: Kind, namespace: &Namespace, method: &str, path: &str, body: &str) -> Option<String> {
    let stream = namespace.connect(Caller::default(), ([127, 0, 0, 1], port(kind)).into()).ok()?;
    let mut peer = Peer::new(stream);
    let length = body.len();
    peer.send(format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    ))
    .await;
    let answer = peer.response().await;
    (answer.status() == 200).then(|| answer.text())
}
