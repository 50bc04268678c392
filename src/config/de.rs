//! serde over a [`Node`] tree, so that the types stay plain derives and every error knows its node.
//!
//! Nothing written (`timeouts:` and no more) reads as an empty map or list. Text may be written without quotes even if it
//! looks like a number. An enum whose variants have content is chosen by the map's key `kind`.

use super::{
    error::{Path, Step},
    tree::{Fate, Node, Resolved, Scalar, Value},
};
use serde::{
    de::{
        self, DeserializeSeed, Deserializer, EnumAccess, Expected, MapAccess, SeqAccess, Unexpected, VariantAccess,
        Visitor, value::BorrowedStrDeserializer,
    },
    forward_to_deserialize_any,
};
use std::fmt;

/// What went wrong at which node.
#[derive(Debug)]
pub(super) struct Snag {
    pub what: What,
    /// Set as soon as a map or list sees the error pass.
    pub at: Option<Path>,
}

#[derive(Debug)]
pub(super) enum What {
    /// Something else was expected than the node holds: serde's words for it.
    Expected(String),
    /// One of these words was expected.
    OneOf(&'static [&'static str]),
    UnknownKey(&'static [&'static str]),
    Missing(&'static str),
    /// The map needs a `kind` out of these.
    NoKind(&'static [&'static str]),
    /// The map's `kind` is none of these.
    UnknownKind(&'static [&'static str]),
    /// Said by the type itself.
    Custom(String),
}

impl Snag {
    fn new(what: What) -> Self {
        Self { what, at: None }
    }

    fn at(mut self, trail: &Trail<'_>) -> Self {
        self.at.get_or_insert_with(|| trail.path());
        self
    }
}

impl fmt::Display for Snag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.what)
    }
}

impl std::error::Error for Snag {}

impl de::Error for Snag {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(What::Custom(message.to_string()))
    }

    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(What::Expected(expected.to_string()))
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(What::Expected(expected.to_string()))
    }

    fn invalid_length(_: usize, expected: &dyn Expected) -> Self {
        Self::new(What::Expected(expected.to_string()))
    }

    fn unknown_variant(_: &str, expected: &'static [&'static str]) -> Self {
        Self::new(What::OneOf(expected))
    }

    fn unknown_field(_: &str, expected: &'static [&'static str]) -> Self {
        Self::new(What::UnknownKey(expected))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(What::Missing(field))
    }
}

/// The way down to a node, kept on the stack and written out only for an error.
pub(super) struct Trail<'p> {
    up: Option<(&'p Trail<'p>, Way<'p>)>,
}

#[derive(Clone, Copy)]
enum Way<'p> {
    Key(&'p str),
    Index(usize),
}

impl<'p> Trail<'p> {
    pub const ROOT: Trail<'static> = Trail { up: None };

    fn down(&'p self, way: Way<'p>) -> Trail<'p> {
        Trail { up: Some((self, way)) }
    }

    fn path(&self) -> Path {
        let mut steps = Vec::new();
        let mut trail = self;
        while let Some((up, way)) = trail.up {
            steps.push(match way {
                Way::Key(key) => Step::Key(key.into()),
                Way::Index(index) => Step::Index(index),
            });
            trail = up;
        }
        steps.reverse();
        Path(steps)
    }
}

/// Reads one node.
#[derive(Clone, Copy)]
pub(super) struct De<'t, 'p> {
    node: &'t Node,
    trail: &'p Trail<'p>,
    /// `kind` was used to choose the type and is none of its keys.
    skip_kind: bool,
}

impl<'t, 'p> De<'t, 'p> {
    pub fn root(node: &'t Node) -> Self {
        De { node, trail: &Trail::ROOT, skip_kind: false }
    }

    fn visit<V: Visitor<'t>>(self, resolve: fn(&Scalar) -> Resolved<'_>, visitor: V) -> Result<V::Value, Snag> {
        match &self.node.value {
            Value::Scalar(scalar) => match resolve(scalar) {
                Resolved::Null => visitor.visit_unit(),
                Resolved::Bool(value) => visitor.visit_bool(value),
                Resolved::Unsigned(value) => visitor.visit_u64(value),
                Resolved::Negative(value) => visitor.visit_i64(value),
                Resolved::Float(value) => visitor.visit_f64(value),
                Resolved::Text(value) => visitor.visit_borrowed_str(value),
            },
            Value::List(elements) => {
                visitor.visit_seq(Elements { rest: elements.iter().enumerate(), trail: self.trail })
            }
            Value::Map(entries) => visitor.visit_map(Entries {
                rest: entries.iter(),
                value: None,
                trail: self.trail,
                skip: if self.skip_kind { Some("kind") } else { None },
            }),
        }
    }

    /// A scalar as it was written, whatever type it would be by itself.
    fn text<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Snag> {
        match &self.node.value {
            Value::Scalar(scalar) if scalar.resolve() != Resolved::Null => visitor.visit_borrowed_str(&scalar.text),
            _ => self.visit(Scalar::resolve, visitor),
        }
    }
}

/// Made-up values for a node that was reported already, so that reading can go on. Texts are tried in turn until the
/// type takes one.
pub(super) const STAND_IN_TEXTS: [&str; 3] = ["x", "127.0.0.1:0", "1s"];

macro_rules! numbers {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Snag> {
            match self.node.fate {
                Fate::StandIn(_) => visitor.visit_u64(1),
                _ => self.visit(Scalar::resolve_loosely, visitor),
            }
        }
    )*};
}

impl<'t> Deserializer<'t> for De<'t, '_> {
    type Error = Snag;

    numbers! { deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_u8 deserialize_u16
    deserialize_u32 deserialize_u64 deserialize_f32 deserialize_f64 }

    fn deserialize_any<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Snag> {
        match self.node.fate {
            Fate::StandIn(_) => self.deserialize_str(visitor),
            _ => self.visit(Scalar::resolve, visitor),
        }
    }

    fn deserialize_bool<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Snag> {
        match self.node.fate {
            Fate::StandIn(_) => visitor.visit_bool(false),
            _ => self.visit(Scalar::resolve_loosely, visitor),
        }
    }

    fn deserialize_str<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Snag> {
        match self.node.fate {
            Fate::StandIn(n) => visitor.visit_borrowed_str(STAND_IN_TEXTS.get(usize::from(n)).unwrap_or(&"")),
            _ => self.text(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Snag> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Snag> {
        match self.node.fate {
            Fate::StandIn(_) => visitor.visit_none(),
            _ if self.node.is_null() => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_seq<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Snag> {
        if self.node.fate != Fate::Live || self.node.is_null() {
            return visitor.visit_seq(Elements { rest: [].iter().enumerate(), trail: self.trail });
        }
        self.visit(Scalar::resolve, visitor)
    }

    fn deserialize_map<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Snag> {
        if self.node.fate != Fate::Live || self.node.is_null() {
            return visitor.visit_map(Entries { rest: [].iter(), value: None, trail: self.trail, skip: None });
        }
        self.visit(Scalar::resolve, visitor)
    }

    fn deserialize_struct<V: Visitor<'t>>(
        self,
        _: &'static str,
        keys: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Snag> {
        // A derived struct would take a list as its fields in order, which nobody means in a file.
        match &self.node.value {
            Value::List(_) | Value::Scalar(_) if self.node.fate == Fate::Live && !self.node.is_null() => {
                Err(Snag::new(What::Expected(map_with(keys))))
            }
            _ => self.deserialize_map(visitor),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'t>>(self, _: &'static str, visitor: V) -> Result<V::Value, Snag> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'t>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Snag> {
        let pick = |word: &'static str, how| visitor.visit_enum(Choice { word, how, variants });
        let first = variants.first().copied().unwrap_or("");
        let known = |text: &str| variants.iter().find(|variant| **variant == text).copied();
        if self.node.fate != Fate::Live {
            return pick(first, How::Word);
        }
        match &self.node.value {
            Value::Scalar(scalar) => match known(&scalar.text) {
                Some(word) => pick(word, How::Word),
                None => pick(first, How::Refuse),
            },
            Value::List(_) => pick(first, How::Refuse),
            Value::Map(entries) => {
                match entries.iter().find(|entry| entry.key == "kind").map(|entry| &entry.node.value) {
                    Some(Value::Scalar(kind)) => match known(&kind.text) {
                        Some(word) => pick(word, How::Kind(De { skip_kind: true, ..self })),
                        None => pick(first, How::UnknownKind),
                    },
                    Some(_) => pick(first, How::UnknownKind),
                    None => pick(first, How::Refuse),
                }
            }
        }
    }

    fn deserialize_identifier<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Snag> {
        self.deserialize_str(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Snag> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! { <V: Visitor<'t>> i128 u128 char bytes byte_buf unit unit_struct tuple tuple_struct }
}

/// The elements that are not pruned. The others keep their index, so that paths stay true.
struct Elements<'t, 'p> {
    rest: std::iter::Enumerate<std::slice::Iter<'t, Node>>,
    trail: &'p Trail<'p>,
}

impl<'t> SeqAccess<'t> for Elements<'t, '_> {
    type Error = Snag;

    fn next_element_seed<T: DeserializeSeed<'t>>(&mut self, seed: T) -> Result<Option<T::Value>, Snag> {
        let Some((index, node)) = self.rest.find(|(_, node)| node.fate != Fate::Pruned) else { return Ok(None) };
        let trail = self.trail.down(Way::Index(index));
        seed.deserialize(De { node, trail: &trail, skip_kind: false }).map(Some).map_err(|snag| snag.at(&trail))
    }
}

/// The entries that are not pruned.
struct Entries<'t, 'p> {
    rest: std::slice::Iter<'t, super::tree::Entry>,
    value: Option<&'t super::tree::Entry>,
    trail: &'p Trail<'p>,
    skip: Option<&'static str>,
}

impl<'t> MapAccess<'t> for Entries<'t, '_> {
    type Error = Snag;

    fn next_key_seed<K: DeserializeSeed<'t>>(&mut self, seed: K) -> Result<Option<K::Value>, Snag> {
        let skip = self.skip;
        self.value = self.rest.find(|entry| entry.node.fate != Fate::Pruned && Some(entry.key.as_str()) != skip);
        let Some(entry) = self.value else { return Ok(None) };
        let trail = self.trail.down(Way::Key(&entry.key));
        seed.deserialize(BorrowedStrDeserializer::new(&entry.key)).map(Some).map_err(|snag: Snag| snag.at(&trail))
    }

    fn next_value_seed<V: DeserializeSeed<'t>>(&mut self, seed: V) -> Result<V::Value, Snag> {
        let Some(entry) = self.value.take() else {
            return Err(de::Error::custom("a value was read before its key"));
        };
        let trail = self.trail.down(Way::Key(&entry.key));
        seed.deserialize(De { node: &entry.node, trail: &trail, skip_kind: false }).map_err(|snag| snag.at(&trail))
    }
}

/// An enum's variant, and how it was chosen. Only when serde asks for the variant's content do we learn whether the
/// variants are words or kinds of maps; errors wait until then to say the right thing.
struct Choice<'t, 'p> {
    word: &'static str,
    how: How<'t, 'p>,
    variants: &'static [&'static str],
}

enum How<'t, 'p> {
    /// By a word alone.
    Word,
    /// By the `kind` of this map.
    Kind(De<'t, 'p>),
    /// Not at all: neither a known word nor a map with a `kind`.
    Refuse,
    /// By a `kind` that is none of the variants.
    UnknownKind,
}

impl<'t, 'p> EnumAccess<'t> for Choice<'t, 'p> {
    type Error = Snag;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'t>>(self, seed: V) -> Result<(V::Value, Self), Snag> {
        Ok((seed.deserialize(BorrowedStrDeserializer::<Snag>::new(self.word))?, self))
    }
}

impl<'t> VariantAccess<'t> for Choice<'t, '_> {
    type Error = Snag;

    fn unit_variant(self) -> Result<(), Snag> {
        match self.how {
            How::Word => Ok(()),
            _ => Err(Snag::new(What::OneOf(self.variants))),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'t>>(self, seed: T) -> Result<T::Value, Snag> {
        match self.how {
            How::Kind(de) => seed.deserialize(de),
            How::UnknownKind => Err(Snag::new(What::UnknownKind(self.variants))),
            How::Word | How::Refuse => Err(Snag::new(What::NoKind(self.variants))),
        }
    }

    fn tuple_variant<V: Visitor<'t>>(self, _: usize, _: V) -> Result<V::Value, Snag> {
        Err(Snag::new(What::NoKind(self.variants)))
    }

    fn struct_variant<V: Visitor<'t>>(self, _: &'static [&'static str], visitor: V) -> Result<V::Value, Snag> {
        match self.how {
            How::Kind(de) => de.deserialize_map(visitor),
            How::UnknownKind => Err(Snag::new(What::UnknownKind(self.variants))),
            How::Word | How::Refuse => Err(Snag::new(What::NoKind(self.variants))),
        }
    }
}

/// Some of the keys tell what the map is for; all are told where one is unknown.
fn map_with(keys: &[&str]) -> String {
    match keys {
        [] => "a map".into(),
        [one] => format!("a map with the key `{one}`"),
        _ => {
            let some: Vec<_> = keys.iter().take(3).map(|key| format!("`{key}`")).collect();
            format!("a map with keys like {}", some.join(", "))
        }
    }
}
