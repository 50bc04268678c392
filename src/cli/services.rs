//! `pillion services`: what a running pillion follows.

use super::client::{self, Align, Asking, Table, age, printable};
use crate::admin::view::{self, NotFollowed, Source, State, Summary};
use std::{collections::BTreeMap, fmt::Write};

/// List the services that a running pillion follows, and where it learns about them.
#[derive(Debug, Clone, clap::Args)]
pub struct Services {
    #[command(flatten)]
    asking: Asking,
    /// Also those that the registries know and nobody has asked for yet.
    #[arg(long)]
    all: bool,
}

impl Services {
    pub fn run(self) -> anyhow::Result<()> {
        client::run(self.output())
    }

    pub(super) async fn output(self) -> anyhow::Result<String> {
        let path = if self.all { "/api/services?all=1" } else { "/api/services" };
        let answer = self.asking.get(path).await?.good()?;
        if self.asking.json { Ok(answer.text()) } else { Ok(show(&answer.read()?)) }
    }
}

fn show(view::Services { services, not_followed }: &view::Services) -> String {
    let mut out = if services.is_empty() {
        let more = if not_followed.is_some() { "" } else { ". What the registries know: pillion services --all" };
        format!(
            "no services are followed yet: pillion follows those that the config names, and others from their first \
             request on{more}\n"
        )
    } else {
        followed(services)
    };
    if let Some(not_followed) = not_followed {
        out.push('\n');
        out.push_str(&others(not_followed));
    }
    out
}

fn followed(services: &[Summary]) -> String {
    let mut table = Table::new([
        ("SERVICE", Align::Left),
        ("STATE", Align::Left),
        ("AVAILABLE", Align::Right),
        ("IN FLIGHT", Align::Right),
        ("REQUESTS", Align::Right),
        ("FAILED", Align::Right),
        ("SOURCES", Align::Left),
    ]);
    let mut sorted: Vec<_> = services.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    for service in sorted {
        table.row([
            service.name.clone(),
            state(service.state).into(),
            format!("{}/{}", service.available, service.endpoints),
            service.in_flight.to_string(),
            service.requests.to_string(),
            service.failures.to_string(),
            service.origin.sources.iter().map(source).collect::<Vec<_>>().join(", "),
        ]);
    }
    let mut out = table.print();
    // Under the table, because they are long and mostly the same for all services of a registry.
    let mut failing: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for service in services {
        for Source { source, failure, .. } in &service.origin.sources {
            if let Some(failure) = failure {
                failing.entry((source, failure)).or_default().push(&service.name);
            }
        }
    }
    if !failing.is_empty() {
        out.push('\n');
    }
    for ((source, failure), names) in failing {
        let _ = writeln!(out, "{}: {} ({})", printable(source), printable(failure), some(&names));
    }
    out
}

fn others(NotFollowed { services, failures }: &NotFollowed) -> String {
    let mut out = if services.is_empty() {
        "the registries know no further services\n".to_owned()
    } else {
        let mut table = Table::new([("NOT FOLLOWED YET", Align::Left), ("REGISTRIES", Align::Left)]);
        for service in services {
            table.row([service.name.clone(), service.registries.join(", ")]);
        }
        table.print()
    };
    if !failures.is_empty() {
        out.push('\n');
    }
    for failure in failures {
        let _ = writeln!(
            out,
            "{} did not list its services: {}",
            printable(&failure.registry),
            printable(&failure.failure)
        );
    }
    out
}

/// The same word as in the JSON.
pub(super) fn state(state: State) -> &'static str {
    match state {
        State::Pending => "pending",
        State::Unknown => "unknown",
        State::Known => "known",
    }
}

/// `main 3s`: how old its word is; marked when it is failing.
pub(super) fn source(source: &Source) -> String {
    let age = source.age_seconds.map_or_else(|| "no answer".to_owned(), age);
    let failing = if source.failure.is_some() { " failing" } else { "" };
    format!("{} {age}{failing}", source.source)
}

/// The first few of many names.
pub(super) fn some(names: &[&str]) -> String {
    const SHOWN: usize = 10;
    let shown = names.iter().take(SHOWN).map(|name| printable(name)).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use view::{ListFailure, Listed};

    fn summary(name: &str, sources: Vec<Source>) -> Summary {
        Summary {
            name: name.into(),
            state: State::Known,
            endpoints: 4,
            available: 3,
            in_flight: 2,
            requests: 1_204_551,
            failures: 17,
            errors: BTreeMap::new(),
            origin: view::Origin { sources, ..view::Origin::default() },
        }
    }

    fn from(source: &str, age: Option<f64>, failure: Option<&str>) -> Source {
        Source { source: source.into(), age_seconds: age, failure: failure.map(Into::into), ..Source::default() }
    }

    #[test]
    fn services_are_a_table_with_failures_below_it() {
        let refused = Some("cannot reach 10.0.0.1:2379: connection refused");
        let pending = Summary {
            state: State::Pending,
            endpoints: 0,
            available: 0,
            in_flight: 0,
            requests: 0,
            failures: 0,
            ..summary("users", vec![from("main", None, refused)])
        };
        let orders = summary("orders-service", vec![from("main", Some(312.0), refused), from("old", Some(3.4), None)]);
        let shown = show(&view::Services { services: vec![pending, orders], not_followed: None });
        let expected = "\
SERVICE         STATE    AVAILABLE  IN FLIGHT  REQUESTS  FAILED  SOURCES
orders-service  known          3/4          2   1204551      17  main 5m failing, old 3s
users           pending        0/0          0         0       0  main no answer failing

main: cannot reach 10.0.0.1:2379: connection refused (users, orders-service)
";
        assert_eq!(shown, expected);
    }

    #[test]
    fn what_is_not_followed_comes_after_it() {
        let listed = |name: &str, by: &[&str]| Listed {
            name: name.into(),
            registries: by.iter().map(|name| (*name).to_owned()).collect(),
        };
        let not_followed = NotFollowed {
            services: vec![listed("billing", &["main"]), listed("mail", &["main", "old"])],
            failures: vec![ListFailure { registry: "dr".into(), failure: "no answer within 3s".into() }],
        };
        let shown = show(&view::Services { services: Vec::new(), not_followed: Some(not_followed) });
        let expected = "\
no services are followed yet: pillion follows those that the config names, and others from their first request on

NOT FOLLOWED YET  REGISTRIES
billing           main
mail              main, old

dr did not list its services: no answer within 3s
";
        assert_eq!(shown, expected);
    }

    #[test]
    fn nothing_is_said_in_a_sentence() {
        let shown = show(&view::Services { services: Vec::new(), not_followed: None });
        assert!(shown.starts_with("no services are followed yet: "), "{shown}");
        assert!(shown.ends_with("pillion services --all\n"), "{shown}");
        assert_eq!(others(&NotFollowed::default()), "the registries know no further services\n");
    }

    #[test]
    fn of_many_names_a_few_are_shown() {
        assert_eq!(some(&["a", "b"]), "a, b");
        assert_eq!(some(&["x"; 12]), "x, x, x, x, x, x, x, x, x, x and 2 more");
    }
}
