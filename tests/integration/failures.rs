//! What docs/failures.md shows is what is shown.

use crate::{
    e2e::{ANY, Pillion, get, output, pillion, until},
    socket::free_port,
};
use std::{fs, path::Path};
use tempfile::TempDir;
use tokio::net::TcpListener;

fn guide() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/failures.md")).unwrap()
}

/// A text without what differs from run to run: numbers, and how wide columns are.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    for c in text.trim().chars() {
        let c = if c.is_ascii_digit() { '#' } else { c };
        // `0.5` and `12` alike.
        let repeats = plain.ends_with(c) && matches!(c, ' ' | '#') || c == '.' && plain.ends_with('#');
        if !repeats {
            plain.push(c);
        }
    }
    plain.replace(" \n", "\n")
}

/// What the guide shows after a command.
fn shown(command: &str) -> String {
    let guide = guide();
    let (_, rest) = guide.split_once(&format!("$ {command}\n")).unwrap_or_else(|| panic!("no `{command}`"));
    let end = rest.find("```").unwrap().min(rest.find("\n$ ").unwrap_or(usize::MAX));
    rest[..end].to_owned()
}

async fn said(args: &[&str]) -> String {
    let output = output(&mut pillion(args)).await;
    String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
}

/// A pillion with this config, whose interfaces are at ports of the system's choice.
async fn started(dir: &TempDir, config: &str) -> Pillion {
    let path = dir.path().join("pillion.yaml");
    let ports = format!("admin: {{ listen: {ANY} }}\nlisteners:\n  - {{ name: egress, listen: {ANY} }}\n");
    fs::write(&path, ports + config).unwrap();
    Pillion::with_config(&path).await
}

#[tokio::test]
async fn what_pillion_answers_itself_is_as_in_the_guide() {
    // Takes connections, and says nothing.
    let silent = TcpListener::bind(ANY).await.unwrap();
    let closed = format!("127.0.0.1:{}", free_port());
    let dir = TempDir::new().unwrap();
    let (instances, silent) = (dir.path().join("instances.yaml"), silent.local_addr().map(|at| (silent, at)).unwrap());
    let at = silent.1;
    fs::write(
        &instances,
        format!("services:\n  closed: [{closed}]\n  short: [{at}]\n  tight: [{at}]\n  rated: [{closed}]\n"),
    )
    .unwrap();
    let pillion = started(
        &dir,
        "registries: { main: { kind: file, path: instances.yaml } }\n\
         services:\n  empty: {}\n  short: { timeouts: { request: 1s } }\n  tight: { limits: { requests: 1 } }\n  \
         rated: { limits: { rate: { per_second: 1 } } }\n",
    )
    .await;
    let (egress, guide) = (pillion.egress(), plain(&guide()));
    let holding = tokio::spawn(get(egress, "tight"));
    for (host, reason) in
        [("closed", "connect_failed"), ("short", "request_timeout"), ("tight", "overloaded"), ("rated", "rate_limited")]
    {
        let mut body = String::new();
        // The one that is held may come later, and a second may pass between two requests.
        until(reason, async || {
            body = get(egress, host).await.unwrap().1;
            body.contains(reason)
        })
        .await;
        assert!(guide.contains(&format!("\n{}\n", plain(&body))), "not in the guide: {body}");
    }
    holding.abort();

    let admin = pillion.admin().to_string();
    let explained = said(&["explain", "GET", "http://nobody/", "--admin", &admin]).await;
    assert_eq!(explained.trim(), shown("pillion explain GET http://nobody/").trim());
    let (status, _) = get(egress, "empty").await.unwrap();
    assert_eq!(status, 503);
    let endpoints = said(&["endpoints", "empty", "--why", "--admin", &admin]).await;
    assert_eq!(plain(&endpoints), plain(&shown("pillion endpoints empty --why")));
}

#[tokio::test]
async fn what_is_missing_before_ready_is_said_as_in_the_guide() {
    let closed = format!("127.0.0.1:{}", free_port());
    let dir = TempDir::new().unwrap();
    let pillion = started(
        &dir,
        &format!(
            "  - {{ name: inbound, listen: {ANY}, app: {{ address: {closed}, health_check: {{ http: / }} }} }}\n\
             registries: {{ main: {{ kind: consul, address: 'http://{closed}' }} }}\nservices: {{ users: {{}} }}\n"
        ),
    )
    .await;
    let admin = pillion.admin().to_string();
    let expected = plain(&shown("pillion wait --timeout 3s"));
    // Before the first check, the application is not known to fail.
    until("all to have failed", async || {
        plain(&said(&["wait", "--timeout", "3s", "--admin", &admin]).await) == expected
    })
    .await;
}

#[tokio::test]
async fn every_question_to_the_admin_interface_is_answered() {
    let dir = TempDir::new().unwrap();
    let pillion = started(&dir, "registries: { main: { kind: embedded, listen: '127.0.0.1:0' } }\n").await;
    let guide = guide();
    let docs = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")).unwrap();
    let docs =
        docs.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|ending| ending == "md"));
    let all: String = docs.map(|path| fs::read_to_string(path).unwrap()).collect();
    let questions = all.split("curl -s http://127.0.0.1:4191").skip(1);
    let questions: Vec<_> = questions.filter_map(|rest| rest.split_whitespace().next()).collect();
    assert!(questions.len() > 3, "{questions:?}");
    for path in questions {
        let (status, body) = pillion.admin_text(path.trim_end_matches('`')).await;
        assert_eq!(status, 200, "{path}: {body}");
    }
    let (_, rest) = guide.split_once("curl -X PUT 'http://127.0.0.1:4191").unwrap();
    let (path, _) = rest.split_once('\'').unwrap();
    let url = format!("http://{}{path}", pillion.admin());
    let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build_http();
    let request = http::Request::put(url).body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap();
    assert_eq!(client.request(request).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_bad_config_is_told_as_in_the_guide() {
    let dir = TempDir::new().unwrap();
    let config = "registries: { main: { kind: consul } }\nrouting: { rollouts: { registry: main } }\nservices:\n  web:\n    \
                  subsets: { stable: { version: v1 }, canary: { version: v2 } }\n    routes: [{ split: { stable: 100, canary: 0 } }]\n    \
                  rollout: { interval: 2m }\n";
    fs::write(dir.path().join("pillion.yaml"), config).unwrap();
    let output = output(pillion(&["check", "pillion.yaml"]).current_dir(dir.path())).await;
    assert_eq!(output.status.code(), Some(64));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(plain(&guide()).contains(&plain(&told)), "not in the guide: {told}");
}

#[test]
fn what_the_log_is_said_to_say_it_says() {
    fn sources(folder: &Path, text: &mut String) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, text);
            } else {
                text.push_str(&fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut source = String::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut source);
    // Of what stands between backticks, commands and keys look otherwise.
    let is_said = |text: &&str| {
        text.matches(' ').count() > 1
            && text.chars().all(|c| c.is_ascii_lowercase() || " ,;:".contains(c))
            && !text.starts_with("pillion ")
    };
    let prose: String = guide().split("```").step_by(2).collect();
    let prose = prose.split_whitespace().collect::<Vec<_>>().join(" ");
    let said: Vec<_> = prose.split('`').skip(1).step_by(2).filter(is_said).collect();
    assert!(said.len() > 4, "{said:?}");
    for text in said {
        assert!(source.contains(text), "nobody says `{text}`");
    }
}
