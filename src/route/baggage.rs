//! W3C Baggage (<https://www.w3.org/TR/baggage/>): what an application passes on from the request it got to those it makes.

use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode, utf8_percent_encode};
use std::borrow::Cow;

const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
/// A header that is longer, or has more members, may be cut by whoever passes it on (section 3.3.2).
const LONGEST: usize = 8192;
const MOST_MEMBERS: usize = 64;
/// What a value may not have in it as it is (section 3.3.1), and what it may have and is left alone here.
const ESCAPED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/').remove(b':');

/// One member, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Baggage {
    name: Box<str>,
}

impl Baggage {
    pub fn new(name: &str) -> Self {
        Self { name: name.into() }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its value, if the headers have it.
    pub fn find<'h>(&self, headers: &'h HeaderMap) -> Option<Cow<'h, [u8]>> {
        headers.get_all(BAGGAGE).into_iter().find_map(|line| self.find_in(line.as_bytes()))
    }

    fn find_in<'h>(&self, line: &'h [u8]) -> Option<Cow<'h, [u8]>> {
        line.split(|b| *b == b',').find_map(|member| {
            // Properties come after a semicolon.
            let pair = member.split(|b| *b == b';').next()?;
            let at = pair.iter().position(|b| *b == b'=')?;
            let is_it = pair[..at].trim_ascii() == self.name.as_bytes();
            is_it.then(|| percent_decode(pair[at + 1..].trim_ascii()).into())
        })
    }

    /// Adds it, if there is none of that name. False if there is no room for it.
    pub fn add(&self, headers: &mut HeaderMap, value: &str) -> bool {
        if self.find(headers).is_some() {
            return true;
        }
        let member = format!("{}={}", self.name, utf8_percent_encode(value, ESCAPED));
        let mut line: Vec<u8> = Vec::new();
        for there in headers.get_all(BAGGAGE) {
            line.extend_from_slice(there.as_bytes());
            line.push(b',');
        }
        line.extend_from_slice(member.as_bytes());
        let members = line.iter().filter(|b| **b == b',').count() + 1;
        if line.len() > LONGEST || members > MOST_MEMBERS {
            return false;
        }
        let Ok(line) = HeaderValue::from_bytes(&line) else { return false };
        headers.insert(BAGGAGE, line);
        true
    }
}
