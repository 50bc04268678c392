//! What it costs to find a request's route.

use super::*;
use crate::config::{self, read};
use allocation_counter::AllocationInfo;
use http::{HeaderValue, Request};
use std::{fmt::Write as _, hint::black_box, time::Duration};
use tokio::time::Instant;

fn table(text: &str) -> Table {
    let service: config::Service = read("service", text.as_bytes()).unwrap_or_else(|errors| panic!("{errors}"));
    Table::new("web", &service).unwrap()
}

/// Which route takes a request, and what was allocated to find it.
fn find(table: &Table, request: &Request<()>) -> (Option<String>, AllocationInfo) {
    let caller = HeaderValue::from_static("shop");
    let mut found = None;
    let allocated = allocation_counter::measure(|| {
        found = table.find(&Asked::new(request, Some(&caller))).map(|(_, route)| &route.name);
    });
    (found.map(ToString::to_string), allocated)
}

/// The routes before the last one have all kinds of conditions and fail at the last of them, so that each is compared.
#[test]
fn no_condition_allocates() {
    let table = table(
        r"routes:
           - { name: host, match: { host: [other.example, '*.web.example'], path: { exact: /no } } }
           - { name: exact, match: { path: { exact: /users/7 }, query: { q: no } } }
           - { name: prefix, match: { path: { prefix: /users }, method: [POST, GET], query: { q: { prefix: 'a bd' } } } }
           - { name: regex, match: { path: { regex: '/users/[0-9]+' }, query: { q: { regex: 'a b[^c]' } } } }
           - { name: header, match: { headers: { x-a: no } } }
           - { name: header-prefix, match: { headers: { x-a: '1', x-b: { prefix: twos } } } }
           - { name: header-regex, match: { headers: { x-b: { regex: 'tw[^o]' } } } }
           - { name: absent, match: { headers: { x-b: { present: false } } } }
           - { name: query, match: { query: { plain: '2', q: { present: true } } } }
           - { name: caller, match: { caller: [bank] } }
           - { name: all, match: { host: '*.Web.Example', path: { regex: '/users/[0-9]+' }, method: GET, caller: shop,
               headers: { x-a: '1', x-b: { prefix: tw }, x-c: { regex: 't.*e' }, x-d: { present: false } },
               query: { q: 'a bc', plain: { prefix: '1' }, r: { prefix: 'ä/' }, s: { regex: '(x y)+' } } } }",
    );
    let request = Request::get("http://A.WEB.example:80/users/7?plain=1&q=%61%20bc&r=%C3%A4%2F1&s=x%20yx%20y")
        .header("x-a", "0")
        .header("x-a", "1")
        .header("x-b", "two")
        .header("x-c", "three")
        .body(())
        .unwrap();
    let (taker, allocated) = find(&table, &request);
    assert_eq!(taker.as_deref(), Some("all"));
    assert_eq!((allocated.count_total, allocated.bytes_total), (0, 0), "{allocated:?}");
}

#[test]
fn neither_does_asking_for_a_version_or_the_choice_of_a_target() {
    let table = table(
        "{ subsets: { stable: { v: '1' }, canary: { v: '2' } }, routes: [
           { split: { stable: 50, canary: 50 }, sticky: { header: x-user } },
           { match: { method: GET }, split: { stable: 50, canary: 50 }, sticky: { cookie: uid } },
           { match: { path: { prefix: /a } }, split: { stable: 50, canary: 50 }, sticky: { baggage: user } },
           { match: { path: { prefix: /b } }, split: { stable: 50, canary: 50 }, sticky: { source: true } } ] }",
    );
    let request = Request::get("/")
        .header("x-user", "7")
        .header("cookie", "a=b; uid=7")
        .header("baggage", "a=b, user=7, pillion.version=canary")
        .body(())
        .unwrap();
    let (headers, source) = (request.headers(), "10.0.0.7".parse().unwrap());
    let mut wanted = None;
    let allocated = allocation_counter::measure(|| wanted = table.asked_for(headers));
    assert_eq!((wanted.map(|name| &**name), allocated.count_total), (Some("canary"), 0));
    for route in &table.routes {
        let Action::Split(split) = &route.action else { panic!("{route:?}") };
        let key = split.key.as_ref().unwrap();
        let mut chosen = None;
        let allocated = allocation_counter::measure(|| chosen = key.with(headers, source, |key| split.choose(key)));
        assert_eq!((chosen.is_some(), allocated.count_total), (true, 0), "{key:?}");
    }
}

#[test]
fn the_allocations_of_a_test_are_counted() {
    let allocated = allocation_counter::measure(|| drop(black_box(String::from("text"))));
    assert_eq!((allocated.count_total, allocated.bytes_total), (1, 4));
}

/// So many virtual hosts with three routes each.
fn virtual_hosts(count: usize) -> Table {
    let mut text = String::from("routes:\n");
    for host in 0..count {
        for path in ["/a", "/b", "/c"] {
            let name = format!("{host}{path}");
            writeln!(text, "- {{ name: {name}, match: {{ host: h{host}.example, path: {{ prefix: {path} }} }} }}")
                .unwrap();
        }
    }
    table(&text)
}

#[test]
fn a_thousand_hosts_cost_about_as_much_as_ten() {
    let (few, many) = (virtual_hosts(10), virtual_hosts(1000));
    let requests = |hosts: usize| -> Vec<Request<()>> {
        let one = |number: usize| {
            let host = number * (hosts - 1) / 9;
            Request::get("/c/1").header("host", format!("h{host}.example")).body(()).unwrap()
        };
        (0..10).map(one).collect()
    };
    // From the first host to the last.
    let (to_few, to_many) = (requests(10), requests(1000));
    for (table, request, name) in
        [(&few, &to_few[9], "9/c"), (&many, &to_many[9], "999/c"), (&many, &to_many[0], "0/c")]
    {
        assert_eq!(find(table, request).0.as_deref(), Some(name));
    }
    let time = |table: &Table, requests: &[Request<()>]| {
        let begun = Instant::now();
        for request in requests.iter().cycle().take(200) {
            assert!(black_box(table).find(&Asked::new(black_box(request), None)).is_some());
        }
        begun.elapsed()
    };
    // By turns, and the best of many: what else the machine does slows only some of them.
    let mut best = [Duration::MAX; 2];
    for _ in 0..100 {
        best = [best[0].min(time(&few, &to_few)), best[1].min(time(&many, &to_many))];
    }
    // One after the other they would cost a hundred times as much; caches that others use as well cost something, too.
    assert!(best[1] < best[0] * 10, "200 requests take {:?} with 10 hosts and {:?} with 1,000", best[0], best[1]);
}
