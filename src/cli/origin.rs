//! Where a service's endpoints come from, in words: for `pillion endpoints`.

use super::{
    client::{Align, Table, age, printable},
    services::source,
};
use crate::admin::view::{Held, Origin, Snapshot, Source, SourceState};
use std::fmt::Write;

/// A line per source, and what is not as it should be.
pub(super) fn lines(origin: &Origin) -> String {
    let mut out = String::new();
    for one in &origin.sources {
        let count = one.instances.map_or_else(String::new, |count| format!(", {}", instances(count)));
        let failure = one.failure.as_ref().map_or_else(String::new, |failure| format!(": {failure}"));
        let _ = writeln!(out, "  {}", printable(&format!("{}{count}{failure}", source(one))));
    }
    if let Some(Snapshot { source, age_seconds }) = &origin.snapshot {
        let (source, age) = (printable(source), age(*age_seconds));
        let _ = writeln!(out, "  no source has answered: in use is what {source} said {age} ago, as kept on disk");
    }
    if let Some(Held { endpoints, before, since_seconds }) = &origin.held {
        let (before, age) = (instances(*before), age(*since_seconds));
        let _ = writeln!(
            out,
            "  far fewer than the {before} of {age} ago are listed: {endpoints} that are gone stay in use while they answer"
        );
    }
    out
}

fn instances(count: usize) -> String {
    if count == 1 { "1 instance".into() } else { format!("{count} instances") }
}

/// How each source does, and what that means for it.
pub(super) fn why(origin: &Origin) -> String {
    if origin.sources.is_empty() {
        return "there is no registry to ask\n".into();
    }
    let mut table = Table::new([
        ("SOURCE", Align::Left),
        ("IN USE", Align::Left),
        ("WHY", Align::Left),
        ("INSTANCES", Align::Right),
        ("CONFIRMED", Align::Right),
        ("CHANGED", Align::Right),
        ("DISTANCE", Align::Right),
        ("FAILURES", Align::Right),
    ]);
    let ago = |seconds: Option<f64>| seconds.map_or_else(|| "never".into(), |seconds| format!("{} ago", age(seconds)));
    for one in &origin.sources {
        table.row([
            one.source.clone(),
            if one.in_use { "yes" } else { "no" }.into(),
            reason(one, origin).into(),
            one.instances.map_or_else(|| "-".into(), |count| count.to_string()),
            ago(one.age_seconds),
            ago(one.unchanged_seconds),
            one.latency_ms.map_or_else(|| "-".into(), |ms| format!("{ms:.1}ms")),
            one.failures.to_string(),
        ]);
    }
    table.print()
}

fn reason(source: &Source, origin: &Origin) -> &'static str {
    match (source.state, source.in_use, source.instances) {
        (SourceState::Waiting, _, _) => "it has not answered yet",
        (SourceState::Failing, _, None) => "it fails, and has never answered",
        (SourceState::GivenUp, _, None) => "it has failed for long, and has never answered",
        (_, _, Some(0)) if origin.held.is_some() => "it lists none now; those that are gone are asked themselves",
        (_, _, Some(0)) if source.out_of_scope > 0 => "none of those that it lists are in its scope",
        (_, _, Some(0)) => "it lists none",
        (SourceState::Answering, true, _) => "it answers",
        (SourceState::Answering, false, _) => "another one goes before it",
        (SourceState::Failing, true, _) => "it fails, and what it said last counts",
        (SourceState::Failing, false, _) => "it fails, and another one goes before it",
        (SourceState::GivenUp, true, _) => "it fails, and no other one does better",
        (SourceState::GivenUp, false, _) if source.failure.is_some() => "it fails, and another one takes its place",
        (SourceState::GivenUp, false, _) if origin.sources.iter().any(|other| other.latency_ms.is_some()) => {
            "its instances cannot be reached, or only since just now"
        }
        (SourceState::GivenUp, false, _) => "it answers again, and is used once it has done so for a while",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_as_it_should_be_is_said() {
        let main = Source { source: "main".into(), instances: Some(0), age_seconds: Some(1.0), ..Source::default() };
        let origin = Origin {
            sources: vec![main],
            snapshot: Some(Snapshot { source: "main".into(), age_seconds: 3700.0 }),
            held: Some(Held { endpoints: 3, before: 4, since_seconds: 20.0 }),
        };
        let expected = "  main 1s, 0 instances\n  \
            no source has answered: in use is what main said 1h ago, as kept on disk\n  \
            far fewer than the 4 instances of 20s ago are listed: 3 that are gone stay in use while they answer\n";
        assert_eq!(lines(&origin), expected);
    }

    #[test]
    fn why_a_source_is_in_use_or_not() {
        let source = |name: &str, state, in_use, instances| Source {
            source: name.into(),
            state,
            in_use,
            instances,
            failures: 2,
            failure: (state == SourceState::GivenUp).then(|| "refused".into()),
            ..Source::default()
        };
        let sources = vec![
            source("etcd", SourceState::GivenUp, false, Some(3)),
            Source {
                age_seconds: Some(2.0),
                unchanged_seconds: Some(7200.0),
                latency_ms: Some(0.42),
                ..source("redis", SourceState::Answering, true, Some(3))
            },
            source("dns", SourceState::Waiting, false, None),
        ];
        let expected = "\
SOURCE  IN USE  WHY                                                         INSTANCES  CONFIRMED  CHANGED  DISTANCE  FAILURES
etcd    no      it fails, and another one takes its place          3      never    never         -         2
redis   yes     it answers                                                           3     2s ago   2h ago     0.4ms         2
dns     no      it has not answered yet                                              -      never    never         -         2
";
        let shown = why(&Origin { sources, ..Origin::default() });
        let words = |text: &str| {
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
        };
        assert_eq!(words(&shown), words(expected));
    }
}
