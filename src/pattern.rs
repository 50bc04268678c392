//! Regular expressions for the request path: compiled once into a table that is only read, so that matching takes no lock, no
//! memory, and time that grows with the text's length alone.

use regex_automata::{
    Anchored, Input,
    dfa::{Automaton, StartKind, dense},
    nfa::thompson,
    util::{start, syntax},
};
use std::{fmt, sync::Arc};

/// The largest table, in bytes. What is larger is a slip of the pen, or wants a program.
const LARGEST: usize = 256 * 1024;

/// A regular expression that must fit a whole text, from its start to its end. It works on bytes: `.` is one byte, and classes
/// are those of ASCII.
#[derive(Clone)]
pub struct Pattern {
    text: Box<str>,
    dfa: Arc<dense::DFA<Vec<u32>>>,
}

impl Pattern {
    /// On failure: why, in one line.
    pub fn new(text: &str) -> Result<Self, String> {
        let build = |text: &str| builder().build(text).map_err(|error| in_one_line(&error));
        // Read by itself first: `a)|(b` is none, whatever stands around it.
        build(text)?;
        Ok(Self { text: text.into(), dfa: Arc::new(build(&format!("(?:{text})\\z"))?) })
    }

    pub fn fits(&self, text: &[u8]) -> bool {
        // It can fail only where a byte was told to end the search; none was.
        matches!(self.dfa.try_search_fwd(&Input::new(text).anchored(Anchored::Yes)), Ok(Some(_)))
    }

    /// The same for a text that comes byte by byte.
    pub fn fits_each(&self, mut text: impl Iterator<Item = u8>) -> bool {
        let Ok(start) = self.dfa.start_state(&start::Config::new().anchored(Anchored::Yes)) else { return false };
        let end = text.try_fold(start, |state, byte| {
            let next = self.dfa.next_state(state, byte);
            (!self.dfa.is_dead_state(next)).then_some(next)
        });
        end.is_some_and(|state| self.dfa.is_match_state(self.dfa.next_eoi_state(state)))
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }
}

fn builder() -> dense::Builder {
    let mut builder = dense::Builder::new();
    let syntax = syntax::Config::new().unicode(false).utf8(false);
    // `((a{1000}){1000}){1000}` would fill the memory before there is anything to make a table from.
    let nfa = thompson::Config::new().nfa_size_limit(Some(LARGEST));
    builder.syntax(syntax).thompson(nfa).configure(
        dense::Config::new()
            .start_kind(StartKind::Anchored)
            .dfa_size_limit(Some(LARGEST))
            .determinize_size_limit(Some(4 * LARGEST)),
    );
    builder
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/", self.text)
    }
}

/// The innermost cause, which says where it is wrong; its last line says what.
fn in_one_line(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    let text = cause.to_string();
    let what = text.trim().lines().last().unwrap_or_default().trim();
    what.strip_prefix("error: ").unwrap_or(what).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn it_fits_the_whole_text_or_not_at_all() {
        let pattern = Pattern::new("/users/[0-9]+|/me").unwrap();
        for (text, fits) in [
            ("/users/17", true),
            ("/me", true),
            ("/users/17/", false),
            ("/x/users/17", false),
            ("/users/17\n", false),
            ("", false),
        ] {
            assert_eq!(pattern.fits(text.as_bytes()), fits, "{text:?}");
            assert_eq!(pattern.fits_each(text.bytes()), fits, "{text:?}, byte by byte");
        }
        assert!(Pattern::new("").unwrap().fits(b"") && !Pattern::new("").unwrap().fits(b"a"));
        assert!(Pattern::new("(?i)canary").unwrap().fits(b"CanAry"));
        assert!(Pattern::new("a.c").unwrap().fits(b"a\xffc"), "any bytes");
    }

    proptest! {
        #[test]
        fn a_text_that_comes_byte_by_byte_fits_as_well(
            text in prop::collection::vec(prop::sample::select(&b"ab/1\n\xff"[..]), 0..12),
            number in 0..PATTERNS.len(),
        ) {
            let pattern = Pattern::new(PATTERNS[number]).unwrap();
            prop_assert_eq!(pattern.fits_each(text.iter().copied()), pattern.fits(&text), "{:?}", pattern);
        }
    }

    const PATTERNS: [&str; 8] = ["", "a*", "(a|b)*/", "a|ab|abb", r"\ba.*\b", "(?m)^a$\nb?", "(?s).*1", "[^a]*a?"];

    #[test]
    fn what_is_wrong_is_said_in_a_line() {
        for (text, expected) in [
            ("a(b", "unclosed group"),
            ("a)|(b", "unopened group"),
            ("(?=a)b", "look-around"),
            ("a{100000}", "limit"),
            ("[ab]*a[ab]{24}", "limit"),
            ("((/a{1000}){1000}){1000}", "limit"),
        ] {
            let message = Pattern::new(text).unwrap_err();
            assert!(message.contains(expected) && !message.contains('\n'), "{text}: {message}");
        }
    }
}
