//! Routes from a store: read as strictly as the config.

use super::{REGISTRY, config_of, faults::table};
use crate::config::{Config, Registry, StoredRoutes, read_stored};
use std::time::Duration;

const CONFIG: &str = "
services:
  users:
    timeouts: { request: 5s, idle: 20s }
    retry: { attempts: 1 }
    subsets: { old: { version: v0 } }
    routes: [ { to: old } ]
  other: { subsets: { v2: { version: v2 } } }
";

fn config() -> Config {
    config_of(&format!("{REGISTRY}{CONFIG}"))
}

fn read(text: &str) -> Result<StoredRoutes, String> {
    read_stored("pillion/routes/users", text.as_bytes(), "users", &config()).map_err(|errors| errors.to_string())
}

#[test]
fn it_takes_the_place_of_the_services_own_and_adds_to_its_settings() {
    let text = "
subsets: { stable: { version: v1 }, canary: { version: v2 } }
when_empty: { canary: stable }
routes:
  - match: { headers: { x-tester: yes } }
    to: canary
    timeouts: { request: 1s }
    respond:
  - split: { stable: 90, other/v2: 10 }
    headers: { response: { set: { x-plain: '$${x}' } } }
";
    let stored = read(text).unwrap();
    let whole = stored.clone().over(&config().services["users"]);
    assert_eq!(whole.subsets.keys().collect::<Vec<_>>(), ["stable", "canary"]);
    let timeouts = whole.routes[0].timeouts.as_ref().unwrap();
    assert_eq!((timeouts.request, timeouts.idle), (Duration::from_secs(1), Duration::from_secs(20)));
    assert_eq!(whole.retry.attempts, 1, "all else is the config's");
    assert_eq!(whole.routes[1].headers.response.set["x-plain"], "${x}");
    let json = r#"{"routes": [{"respond": {"status": 403, "body": "no"}}]}"#;
    let stored = read(json).unwrap();
    assert_eq!(stored.routes[0].respond.as_ref().unwrap().content, "no");
    assert!(stored.subsets.is_empty(), "what is not there is not taken from the config");
    assert_eq!(read("{}").unwrap(), StoredRoutes::default());
    // The same text in the config gives the same.
    let inside = text.replace('\n', "\n    ");
    let as_config = config_of(&format!(
        "{REGISTRY}services:\n  other: {{ subsets: {{ v2: {{ version: v2 }} }} }}\n  users:\n    timeouts: {{ request: 5s, idle: 20s }}\n    retry: {{ attempts: 1 }}{inside}"
    ));
    assert_eq!(as_config.services["users"].routes, whole.routes);
}

#[test]
fn all_mistakes_are_told_at_once_and_with_their_places() {
    let error = read(
        "subsets: { canary: { version: v2 } }
routes:
  - { match: { method: GET }, to: cannary }
  - split: { canary: -1 }
    timeouts: { request: 1 }
  - { respond: { file: /etc/passwd } }
  - { respond: { status: 200, body: '${HOME}' } }
timeouts: { request: 1s }
",
    )
    .unwrap_err();
    for line in [
        "pillion/routes/users:3:35: routes[0].to: `cannary` is no subset of the service; expected `canary`; did you mean `canary`?",
        "pillion/routes/users:4:22: routes[1].split.canary: ",
        "pillion/routes/users:5:26: routes[1].timeouts.request: ",
        "pillion/routes/users:6:24: routes[2].respond.file: a store cannot name files of this machine; expected `body`",
        "pillion/routes/users:7:37: routes[3].respond.body: variables are not expanded in a store",
        "pillion/routes/users:8:1: timeouts: unknown key; known here: `subsets`, `when_empty`, `version_override`, `routes`",
    ] {
        assert!(error.lines().any(|there| there.starts_with(line)), "{line}\n{error}");
    }
}

#[test]
fn what_no_request_reaches_is_a_mistake() {
    let error = read("routes: [ { respond: { body: a } }, { match: { path: { exact: /b } }, respond: { body: b } } ]")
        .unwrap_err();
    assert!(error.contains("routes[1]: no request gets here: route 0"), "{error}");
}

#[test]
fn nothing_and_half_of_something_are_not_no_routes() {
    for text in ["", "# nothing\n", "routes", "[]", "null", "7", "routes: [", "\u{0}", "--- {}\n--- {}"] {
        assert!(read(text).is_err(), "{text:?}");
    }
    let bytes = read_stored("k", b"\xff", "users", &config()).unwrap_err().to_string();
    assert!(bytes.contains("UTF-8"), "{bytes}");
}

#[test]
fn what_is_laid_under_a_route_has_no_place_in_its_text() {
    let error = read("routes: [ { timeouts: { request: 10ms }, retry: { per_try_timeout: 1s } } ]").unwrap_err();
    assert!(error.contains("pillion/routes/users:1:"), "{error}");
    // Here what is wrong is the config's part, beside this.
    let config = config_of(&format!("{REGISTRY}services: {{ users: {{ retry: {{ per_try_timeout: 2s }} }} }}"));
    let text = "routes: [ { timeouts: { request: 1s }, retry: { attempts: 1 } } ]";
    let error = read_stored("k", text.as_bytes(), "users", &config).unwrap_err().to_string();
    assert!(error.starts_with("k: routes[0].retry.per_try_timeout: found `2s`"), "{error}");
}

#[test]
fn the_store_is_checked_with_the_config() {
    table(&[
        (
            "routing: { store: { registry: mian } }",
            &["2:31: routing.store.registry: no registry is named `mian`; expected `main`; did you mean `main`?"],
        ),
        ("routing: { store: { path: a } }", &["2:19: routing.store: `registry` is missing"]),
        (
            "routing: { store: { registry: main, path: /a/ } }",
            &[
                "2:43: routing.store.path: found `/a/`; expected names of letters, digits, `-`, `_` and `.` with `/` between them, like `pillion/routes`",
            ],
        ),
        (
            "routing: { stroe: {} }",
            &["2:12: routing.stroe: unknown key; did you mean `store`? known here: `store`, `rollouts`"],
        ),
        (
            "routing: { rollouts: { registry: mian, path: '' } }",
            &[
                "2:34: routing.rollouts.registry: no registry is named `mian`; expected `main`; did you mean `main`?",
                "2:46: routing.rollouts.path: found ``; expected names of letters, digits, `-`, `_` and `.` with `/` between them, like `pillion/routes`",
            ],
        ),
    ]);
    let with = |kind: &str| {
        super::load_text(&format!("registries: {{ main: {{ {kind} }} }}\nrouting: {{ store: {{ registry: main }} }}"))
    };
    assert_eq!(with("kind: etcd").unwrap().config.routing.store.unwrap().path, "pillion/routes");
    for kind in Registry::WITH_STORE.split([',', ' ']).filter(|word| !matches!(*word, "" | "or")) {
        let path = if kind == "file" { ", path: f" } else { "" };
        with(&format!("kind: {kind}{path}")).unwrap();
    }
    assert!(with("kind: kubernetes, servers: ['https://a']").is_ok());
    let path =
        "registries: { main: { kind: kubernetes } }\nrouting: { store: { registry: main, path: pillion/Routes } }";
    let error = super::load_text(path).unwrap_err();
    assert!(
        error.starts_with("f:2:43: routing.store.path: found `pillion/Routes`; expected names of lower-case"),
        "{error}"
    );
    let error = with("kind: eureka, servers: ['http://a:1/eureka']").unwrap_err();
    let expected =
        "f:2:31: routing.store.registry: `main` is of a kind that has no store of its own; expected one of kind consul";
    assert!(error.starts_with(expected), "{error}");
}
