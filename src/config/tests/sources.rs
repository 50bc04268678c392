//! Where services are looked for: what is right, and what is said of the rest.

use super::load_text;
use crate::config::Source;

const REGISTRIES: &str =
    "registries: { a: { kind: file, path: a }, b: { kind: file, path: b }, c: { kind: file, path: c } }";

/// What is said of `discovery.sources`.
fn said(sources: &str) -> Vec<String> {
    let errors = load_text(&format!("{REGISTRIES}\ndiscovery: {{ sources: {sources} }}\n")).unwrap_err();
    let lines = errors.lines().map(|line| line.split_once(": ").map_or(line, |(_, rest)| rest).to_owned());
    lines.filter(|line| !line.ends_with(" in f")).collect()
}

#[test]
fn a_source_is_a_registry_or_several_as_one() {
    let text = format!("{REGISTRIES}\ndiscovery: {{ sources: [{{ nearest: [a, b] }}, c] }}\n");
    let discovery = load_text(&text).unwrap().config.discovery;
    assert_eq!(discovery.sources, [Source::Nearest(vec!["a".into(), "b".into()]), "c".into()]);
    let text = format!("{REGISTRIES}\nservices: {{ s: {{ sources: [{{ merge: [c, b, a] }}] }} }}\n");
    let config = load_text(&text).unwrap().config;
    assert_eq!(config.services["s"].sources, [Source::Merge(vec!["c".into(), "b".into(), "a".into()])]);
}

#[test]
fn what_is_wrong_with_sources_is_said_where_it_is() {
    for (sources, expected) in [
        ("[a, { merge: [a, b] }]", "discovery.sources[1].merge[0]: `a` is there twice"),
        (
            "[{ merge: [a] }]",
            "discovery.sources[0].merge: expected at least two registries; one alone stands in the list by its name",
        ),
        (
            "[{ nearest: [a, x] }]",
            "discovery.sources[0].nearest[1]: no registry is named `x`; expected `a`, `b` or `c`",
        ),
        ("[{ merge: [a, b], nearest: [c] }]", "discovery.sources[0]: expected one of `merge` and `nearest`, not both"),
        (
            "[{}]",
            "discovery.sources[0].merge: expected at least two registries; one alone stands in the list by its name",
        ),
        (
            "[{ nearst: [a, b] }]",
            "discovery.sources[0].nearst: unknown key; did you mean `nearest`? known here: `merge`, `nearest`",
        ),
    ] {
        assert_eq!(said(sources), [expected], "{sources}");
    }
    let [list] = &said("[[a, b]]")[..] else { panic!("one error") };
    assert!(list.contains("a registry's name, `{ merge: [NAME, …] }` or `{ nearest: [NAME, …] }`"), "{list}");
}

#[test]
fn scopes_and_guards_are_checked() {
    let text = "\
registries:
  a: { kind: file, path: a, scope: { prefix: 'a b', names: { s: '' }, env_label: env } }
defaults:
  guard: { lost: 0, grace: 1m, longest: 30s }
";
    let errors = load_text(text).unwrap_err();
    for expected in [
        "2:46: registries.a.scope.prefix: expected at most 100 bytes without spaces",
        "registries.a.scope.names.s: `` is no name for a service",
        "registries.a.scope.env_label: it is compared with `node.env`, which is not set",
        "4:18: defaults.guard.lost: found `0`; expected a number from 1 to 100",
        "defaults.guard.longest: found `30s`; expected at least `1m`",
    ] {
        assert!(errors.contains(expected), "{expected}\n{errors}");
    }
}
