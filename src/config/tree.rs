//! A YAML or JSON text as a tree in which every node and key knows where it was written.
//!
//! Plain scalars are resolved by YAML 1.2's core schema only when they are read, so their text is never lost:
//! `version: 1.10` is still `1.10` where text is wanted.

use super::error::{Faults, Path, Place, Step};
use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Tag};
use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
};

/// Maps and lists in one another; no config comes near, and it bounds the stack that reading takes.
const MOST_DEPTH: usize = 64;
/// Nodes that aliases may add, against files that unfold without end ("billion laughs").
const MOST_ALIASED: usize = 100_000;

#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub value: Value,
    pub place: Place,
    pub(super) fate: Fate,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Scalar(Scalar),
    List(Vec<Node>),
    /// In the order of the file; keys are unique.
    Map(Vec<Entry>),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub key: String,
    pub place: Place,
    pub node: Node,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Scalar {
    pub text: String,
    /// Written without quotes, so that it may be a number, a boolean or null.
    pub plain: bool,
    /// Came out of a `${VAR}`.
    pub expanded: bool,
}

/// What became of a node while the faults were gathered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Live,
    /// Reported as wrong, and passed over since.
    Pruned,
    /// Reported as wrong or missing, but needed: read as a made-up value (the n-th of those to try).
    StandIn(u8),
}

/// A scalar's type and value by the core schema.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Resolved<'a> {
    Null,
    Bool(bool),
    Unsigned(u64),
    Negative(i64),
    Float(f64),
    Text(&'a str),
}

impl Scalar {
    pub fn resolve(&self) -> Resolved<'_> {
        if self.plain { resolve_plain(&self.text) } else { Resolved::Text(&self.text) }
    }

    /// Like [`Self::resolve`] where a number or boolean is wanted: `"${N}"` may be one, because inside `{ }` a `${N}`
    /// cannot go without the quotes.
    pub fn resolve_loosely(&self) -> Resolved<'_> {
        if self.plain || self.expanded { resolve_plain(&self.text) } else { Resolved::Text(&self.text) }
    }
}

/// By section 10.3.2 of YAML 1.2.2.
pub(super) fn resolve_plain(text: &str) -> Resolved<'_> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Resolved::Null,
        "true" | "True" | "TRUE" => return Resolved::Bool(true),
        "false" | "False" | "FALSE" => return Resolved::Bool(false),
        ".nan" | ".NaN" | ".NAN" => return Resolved::Float(f64::NAN),
        _ => {}
    }
    let radix = |prefix, radix| {
        let digits: &str = text.strip_prefix(prefix)?;
        // `from_str_radix` would take a sign.
        digits.chars().all(|c| c.is_digit(radix)).then(|| u64::from_str_radix(digits, radix).ok())?
    };
    if let Some(number) = radix("0x", 16).or_else(|| radix("0o", 8)) {
        return Resolved::Unsigned(number);
    }
    let (negative, unsigned) = match text.strip_prefix(['-', '+']) {
        Some(rest) => (text.starts_with('-'), rest),
        None => (false, text),
    };
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") {
        return Resolved::Float(if negative { f64::NEG_INFINITY } else { f64::INFINITY });
    }
    // Rust also reads `inf`, `nan` and `infinity`, which are words here.
    let number_like = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && unsigned.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-'));
    if !number_like {
        return Resolved::Text(text);
    }
    if unsigned.bytes().all(|b| b.is_ascii_digit()) {
        if negative {
            if let Ok(number) = text.parse::<i64>() {
                return if number < 0 { Resolved::Negative(number) } else { Resolved::Unsigned(0) };
            }
        } else if let Ok(number) = unsigned.parse() {
            return Resolved::Unsigned(number);
        }
    }
    text.parse().map_or(Resolved::Text(text), Resolved::Float)
}

impl Node {
    pub fn new(value: Value, place: Place) -> Self {
        Self { value, place, fate: Fate::Live }
    }

    pub fn map(place: Place) -> Self {
        Self::new(Value::Map(Vec::new()), place)
    }

    /// A plain scalar.
    pub fn scalar(text: impl Into<String>, place: Place) -> Self {
        Self::new(Value::Scalar(Scalar { text: text.into(), plain: true, expanded: false }), place)
    }

    /// Written as `null`, `~` or nothing at all.
    pub fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(scalar) if scalar.resolve() == Resolved::Null)
    }

    /// Nothing written where a value could be.
    pub fn is_blank(&self) -> bool {
        matches!(&self.value, Value::Scalar(scalar) if scalar.plain && scalar.text.is_empty())
    }

    /// A scalar's text.
    pub fn text(&self) -> Option<&str> {
        if let Value::Scalar(scalar) = &self.value { Some(&scalar.text) } else { None }
    }

    /// The entries of a map; none for anything else.
    pub fn entries(&self) -> &[Entry] {
        if let Value::Map(entries) = &self.value { entries } else { &[] }
    }

    /// The elements of a list; none for anything else.
    pub fn elements(&self) -> &[Node] {
        if let Value::List(elements) = &self.value { elements } else { &[] }
    }

    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entries().iter().find(|entry| entry.key == key).map(|entry| &entry.node)
    }

    pub fn get_mut(&mut self, key: &str) -> Option<&mut Node> {
        let Value::Map(entries) = &mut self.value else { return None };
        entries.iter_mut().find(|entry| entry.key == key).map(|entry| &mut entry.node)
    }

    /// Puts `node` under `key` of a map, in place of what was there. Blank becomes a map first; all else stays as it is.
    pub fn set(&mut self, key: &str, node: Node) {
        if self.is_null() {
            self.value = Value::Map(Vec::new());
        }
        let Value::Map(entries) = &mut self.value else { return };
        match entries.iter_mut().find(|entry| entry.key == key) {
            Some(entry) => (entry.place, entry.node) = (node.place, node),
            None => entries.push(Entry { key: key.into(), place: node.place, node }),
        }
    }

    pub fn remove(&mut self, key: &str) {
        if let Value::Map(entries) = &mut self.value {
            entries.retain(|entry| entry.key != key);
        }
    }

    pub(super) fn at_mut(&mut self, path: &Path) -> Option<&mut Node> {
        path.0.iter().try_fold(self, |node, step| match (step, &mut node.value) {
            (Step::Index(index), Value::List(elements)) => elements.get_mut(*index),
            (Step::Key(key), Value::Map(entries)) => {
                entries.iter_mut().find(|entry| entry.key == *key).map(|entry| &mut entry.node)
            }
            _ => None,
        })
    }

    /// How many nodes there are from here down, and how deep they go.
    fn measure(&self) -> (usize, usize) {
        let below: &mut dyn Iterator<Item = &Node> = match &self.value {
            Value::Scalar(_) => &mut std::iter::empty(),
            Value::List(elements) => &mut elements.iter(),
            Value::Map(entries) => &mut entries.iter().map(|entry| &entry.node),
        };
        let (count, depth) = below.map(Self::measure).fold((0, 0), |(c, d), (count, depth)| (c + count, d.max(depth)));
        (count + 1, depth + 1)
    }
}

/// Reads a text with one YAML (or JSON) document. No document at all is a null. What is wrong is added to `faults`;
/// `None` if nothing can be made of the text.
pub fn parse(bytes: &[u8], faults: &mut Faults) -> Option<Node> {
    let mut roots = build(bytes, false, faults)?;
    Some(roots.pop().unwrap_or_else(|| Node::scalar("", at(1, 1))))
}

/// The same for a text with any number of documents.
pub fn parse_all(bytes: &[u8], faults: &mut Faults) -> Option<Vec<Node>> {
    build(bytes, true, faults)
}

fn build(bytes: &[u8], many: bool, faults: &mut Faults) -> Option<Vec<Node>> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
        Err(error) => {
            let good = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
            let line = good.matches('\n').count() + 1;
            let column = good.rsplit('\n').next().unwrap_or("").chars().count() + 1;
            faults.add(at(line, column), Path::default(), "not a text in UTF-8");
            return None;
        }
    };
    let mut builder = Builder {
        faults,
        many,
        stack: Vec::new(),
        roots: Vec::new(),
        anchors: HashMap::new(),
        aliased: 0,
        begun: false,
    };
    for event in Parser::new_from_str(text) {
        let step = match event {
            Ok((event, span)) => builder.take(event, place(&span.start)),
            Err(error) => {
                let marker = error.marker();
                let line = text.lines().nth(marker.line().saturating_sub(1)).unwrap_or("");
                let hint = if line.contains("${") && line.contains(['{', '[']) {
                    "; inside `{ }` and `[ ]` a value with `${…}` needs quotes"
                } else {
                    ""
                };
                Err((place(marker), format!("not valid YAML: {}{hint}", error.info())))
            }
        };
        if let Err((place, message)) = step {
            builder.faults.add(place, Path::default(), message);
            return None;
        }
    }
    Some(builder.roots)
}

fn at(line: usize, column: usize) -> Place {
    let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Place::Text { line: small(line), column: small(column) }
}

fn place(marker: &Marker) -> Place {
    at(marker.line().max(1), marker.col() + 1)
}

/// Makes the tree out of the parser's events.
struct Builder<'a> {
    faults: &'a mut Faults,
    /// Whether there may be several documents.
    many: bool,
    /// The maps and lists that are open, outermost first.
    stack: Vec<Open>,
    /// The documents that are whole.
    roots: Vec<Node>,
    anchors: HashMap<usize, Node>,
    aliased: usize,
    begun: bool,
}

struct Open {
    anchor: usize,
    place: Place,
    what: Collection,
}

enum Collection {
    List(Vec<Node>),
    /// `key` waits for its value.
    Map {
        entries: Vec<Entry>,
        seen: HashSet<String>,
        key: Option<(String, Place)>,
    },
}

type Taken = Result<(), (Place, String)>;

impl Builder<'_> {
    fn take(&mut self, event: Event<'_>, place: Place) -> Taken {
        match event {
            Event::DocumentStart(_) if self.begun && !self.many => {
                Err((place, "a second document; expected one per file".into()))
            }
            Event::DocumentStart(_) => {
                self.begun = true;
                self.anchors.clear();
                Ok(())
            }
            Event::Scalar(text, style, anchor, tag) => {
                let plain = plain_by_tag(tag.as_deref(), style == ScalarStyle::Plain, place)?;
                let scalar = Scalar { text: text.into_owned(), plain, expanded: false };
                self.finish(anchor, Node::new(Value::Scalar(scalar), place))
            }
            Event::SequenceStart(anchor, tag) => self.open(anchor, place, &tag, Collection::List(Vec::new())),
            Event::MappingStart(anchor, tag) => {
                let what = Collection::Map { entries: Vec::new(), seen: HashSet::new(), key: None };
                self.open(anchor, place, &tag, what)
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(open) = self.stack.pop() else { return Ok(()) };
                let value = match open.what {
                    Collection::List(elements) => Value::List(elements),
                    Collection::Map { entries, .. } => Value::Map(entries),
                };
                self.finish(open.anchor, Node::new(value, open.place))
            }
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor) else {
                    return Err((place, "an alias inside of what it stands for".into()));
                };
                let (count, depth) = node.measure();
                self.aliased += count;
                if self.aliased > MOST_ALIASED {
                    return Err((place, "the aliases make the document too large".into()));
                }
                if self.stack.len() + depth > MOST_DEPTH {
                    return Err(too_deep(place));
                }
                let node = node.clone();
                self.finish(0, node)
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
        }
    }

    fn open(&mut self, anchor: usize, place: Place, tag: &Option<Cow<'_, Tag>>, what: Collection) -> Taken {
        if let Some(tag) = tag
            && !(tag.is_yaml_core_schema() && matches!(tag.suffix.as_str(), "map" | "seq"))
        {
            return Err((place, format!("the tag `{tag}` has no meaning here")));
        }
        if self.stack.len() >= MOST_DEPTH {
            return Err(too_deep(place));
        }
        self.stack.push(Open { anchor, place, what });
        Ok(())
    }

    /// Puts a whole node where it belongs.
    fn finish(&mut self, anchor: usize, mut node: Node) -> Taken {
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        match self.stack.last_mut().map(|open| &mut open.what) {
            None => self.roots.push(node),
            Some(Collection::List(elements)) => elements.push(node),
            Some(Collection::Map { entries, seen, key }) => match key.take() {
                None => match node.value {
                    Value::Scalar(scalar) => *key = Some((scalar.text, node.place)),
                    _ => return Err((node.place, "a map or list as a key; expected a word".into())),
                },
                Some((text, place)) => {
                    if node.is_blank() {
                        // The parser's own idea is the position where the value would have been.
                        node.place = place;
                    }
                    if seen.insert(text.clone()) {
                        entries.push(Entry { key: text, place, node });
                    } else {
                        let first = entries.iter().find(|entry| entry.key == text).map(|entry| entry.place);
                        let where_first = match first {
                            Some(Place::Text { line, .. }) => format!("; the first is in line {line}"),
                            _ => String::new(),
                        };
                        let path = self.path_of_open().key(&text);
                        self.faults.add(place, path, format!("the key is there twice{where_first}"));
                    }
                }
            },
        }
        Ok(())
    }

    /// The path of the innermost open map or list.
    fn path_of_open(&self) -> Path {
        let outer = self.stack.len().saturating_sub(1);
        Path(
            self.stack[..outer]
                .iter()
                .map(|open| match &open.what {
                    Collection::List(elements) => Step::Index(elements.len()),
                    Collection::Map { key, .. } => Step::Key(key.as_ref().map_or("", |(key, _)| key).into()),
                })
                .collect(),
        )
    }
}

/// Whether a scalar is to be resolved, which a tag can decide.
fn plain_by_tag(tag: Option<&Tag>, plain: bool, place: Place) -> Result<bool, (Place, String)> {
    match tag {
        None => Ok(plain),
        Some(tag) if tag.is_yaml_core_schema() => match tag.suffix.as_str() {
            "str" => Ok(false),
            "int" | "float" | "bool" | "null" => Ok(true),
            _ => Err((place, format!("the tag `{tag}` has no meaning here"))),
        },
        Some(tag) if tag.handle.is_empty() && tag.suffix == "!" => Ok(false),
        Some(tag) => Err((place, format!("the tag `{tag}` has no meaning here"))),
    }
}

fn too_deep(place: Place) -> (Place, String) {
    (place, format!("more than {MOST_DEPTH} maps and lists in one another"))
}
