//! Which requests a rule is for.

use crate::{
    config::{PathMatch, RouteMatch, ValueMatch},
    import::reader::{At, Log},
};
use indexmap::IndexMap;

/// Istio's `StringMatch`.
#[derive(Debug, PartialEq, Eq)]
pub enum Text {
    Exact(String),
    /// By characters.
    Prefix(String),
    Regex(String),
    /// Nothing is said.
    Any,
}

/// How the path was matched, which decides what a rewrite does.
#[derive(Debug, PartialEq, Eq)]
pub enum By {
    Whole,
    Prefix(String),
    /// By a prefix that pillion can match only as a regular expression.
    LoosePrefix,
}

pub fn text(at: &At<'_>, log: &mut Log) -> Text {
    if at.node.is_null() {
        return Text::Any;
    }
    at.others(&["exact", "prefix", "regex"], log);
    if let Some(text) = at.text("exact", log) {
        Text::Exact(text)
    } else if let Some(text) = at.text("prefix", log) {
        Text::Prefix(text)
    } else {
        at.text("regex", log).map_or(Text::Any, Text::Regex)
    }
}

const LEFT_OUT: &str = "so this alternative is left out";

/// Conditions that pillion does not have, and what to do instead. Without one of them a route would take more than it should.
const UNKNOWN: [(&str, &str); 5] = [
    ("scheme", "pillion does not tell schemes apart"),
    ("port", "pillion does not look at the port that was asked for; give that port a listener with `service`"),
    (
        "sourceLabels",
        "pillion does not know its caller's labels; `match.caller` is the caller's name \
         (`node.service`)",
    ),
    ("sourceNamespace", "pillion does not know namespaces; `match.caller` is the caller's name (`node.service`)"),
    ("gateways", "pillion has no gateways"),
];

/// An alternative's conditions; `None`, with a note, where one cannot be carried over.
pub fn conditions(at: &At<'_>, log: &mut Log) -> Option<(RouteMatch, By)> {
    at.others(
        &[
            "name",
            "uri",
            "scheme",
            "method",
            "authority",
            "headers",
            "port",
            "sourceLabels",
            "gateways",
            "queryParams",
            "ignoreUriCase",
            "withoutHeaders",
            "sourceNamespace",
            "statPrefix",
        ],
        log,
    );
    let mut whole = true;
    for (key, why) in UNKNOWN {
        // For those of the mesh: that is what a sidecar is.
        let holds = key == "gateways" && at.texts(key, log).iter().any(|gateway| gateway == "mesh");
        if let Some(at) = at.get(key).filter(|_| !holds) {
            log.note(&at, format!("{why}, {LEFT_OUT}"));
            whole = false;
        }
    }
    if let Some(at) = at.get("statPrefix") {
        log.note(&at, "not carried over: routes have no metrics of their own; their names are in the access log");
    }
    let any_case = at.bool("ignoreUriCase", log).unwrap_or(false);
    let (path, by) = at.get("uri").map_or((None, By::Prefix("/".into())), |uri| path(&uri, any_case, log));
    let matches = RouteMatch {
        host: at.get("authority").map_or(Some(Vec::new()), |at| host(&at, log))?,
        path,
        method: at.get("method").map_or(Some(Vec::new()), |at| methods(&at, log))?,
        headers: headers(at, log)?,
        query: values(at, "queryParams", log),
        caller: Vec::new(),
    };
    whole.then_some((matches, by))
}

fn path(at: &At<'_>, any_case: bool, log: &mut Log) -> (Option<PathMatch>, By) {
    let regex = |regex| Some(PathMatch { regex: Some(regex), ..PathMatch::default() });
    match text(at, log) {
        Text::Any => (None, By::Prefix("/".into())),
        Text::Prefix(prefix) if prefix == "/" => (None, By::Prefix(prefix)),
        Text::Exact(exact) if any_case => (regex(format!("(?i){}", escaped(&exact))), By::Whole),
        Text::Prefix(prefix) if any_case => (regex(format!("(?i){}.*", escaped(&prefix))), By::LoosePrefix),
        Text::Regex(text) => (regex(text), By::Whole),
        Text::Exact(exact) => (Some(PathMatch { exact: Some(exact), ..PathMatch::default() }), By::Whole),
        Text::Prefix(prefix) => {
            let differs = match prefix.strip_suffix('/') {
                Some(bare) => format!("`{bare}` itself is taken as well"),
                None => format!("`{prefix}x` is not taken any more"),
            };
            let exactly = escaped(&prefix);
            log.note(
                at,
                format!(
                    "a prefix is by characters in Istio and by whole segments here: {differs}; the same as \
                     before is `regex: {exactly}.*`"
                ),
            );
            (Some(PathMatch { prefix: Some(prefix.clone()), ..PathMatch::default() }), By::Prefix(prefix))
        }
    }
}

/// For a regular expression that is this text.
fn escaped(text: &str) -> String {
    let special = |c: char| r"\.+*?()|[]{}^$".contains(c);
    text.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
}

fn host(at: &At<'_>, log: &mut Log) -> Option<Vec<String>> {
    match text(at, log) {
        Text::Any => Some(Vec::new()),
        Text::Exact(authority) => {
            let (host, port) = authority.rsplit_once(':').unwrap_or((&authority, ""));
            if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) {
                log.note(at, "pillion matches hosts without their port, and so on each port");
                return Some(vec![host.into()]);
            }
            Some(vec![authority])
        }
        Text::Prefix(_) | Text::Regex(_) => {
            log.note(at, format!("pillion matches hosts whole, or by their end (`*.example.com`), {LEFT_OUT}"));
            None
        }
    }
}

fn methods(at: &At<'_>, log: &mut Log) -> Option<Vec<String>> {
    let is_word = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_uppercase());
    match text(at, log) {
        Text::Any => Some(Vec::new()),
        Text::Exact(method) => Some(vec![method]),
        Text::Regex(words) if words.split('|').all(is_word) => Some(words.split('|').map(Into::into).collect()),
        Text::Prefix(_) | Text::Regex(_) => {
            log.note(at, format!("pillion matches methods whole, from a list, {LEFT_OUT}"));
            None
        }
    }
}

/// Those that must be there, and those that must not.
fn headers(at: &At<'_>, log: &mut Log) -> Option<IndexMap<String, ValueMatch>> {
    let mut headers = values(at, "headers", log);
    let Some(without) = at.get("withoutHeaders") else { return Some(headers) };
    for (name, at) in without.map(log) {
        if text(&at, log) != Text::Any {
            log.note(
                &at,
                format!(
                    "pillion cannot ask for a header not to have a certain value, {LEFT_OUT}; put a \
                     route for that value before it"
                ),
            );
            return None;
        }
        if headers.insert(name.into(), ValueMatch::Present(false)).is_some() {
            log.note(&at, format!("no request can have a header and not have it, {LEFT_OUT}"));
            return None;
        }
    }
    Some(headers)
}

fn values(at: &At<'_>, key: &str, log: &mut Log) -> IndexMap<String, ValueMatch> {
    let Some(map) = at.get(key) else { return IndexMap::new() };
    let value = |(name, at): (&str, At<'_>)| {
        let value = match text(&at, log) {
            Text::Exact(text) => ValueMatch::Exact(text),
            Text::Prefix(text) => ValueMatch::Prefix(text),
            Text::Regex(text) => ValueMatch::Regex(text),
            Text::Any => ValueMatch::Present(true),
        };
        (name.to_owned(), value)
    };
    map.entries().into_iter().map(value).collect()
}
