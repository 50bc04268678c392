//! What happened to a request on its way, as the access log shows it.

use crate::error::Reason;
use std::fmt;

/// Something that happened to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Flag {
    /// It waited for a place within its service's limits.
    Queued,
    /// It found out whether an ejected endpoint is well again.
    Probe,
    /// It was sent to an endpoint that is not available, because nothing better was left.
    LastResort,
    /// It was sent to a second endpoint while the first took long.
    Hedged,
    /// The retry budget did not allow it another try.
    RetryDenied,
    /// The subset that it was for was empty, so it went elsewhere.
    SubsetFallback,
}

const WORDS: [&str; 6] = ["queued", "probe", "last_resort", "hedged", "retry_denied", "subset_fallback"];
/// A bit for each.
const _: () = assert!(Reason::ALL.len() <= u32::BITS as usize && WORDS.len() <= u8::BITS as usize);

/// All that happened to a request, in a few bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags {
    flags: u8,
    retried: u32,
}

impl Flags {
    pub fn set(&mut self, flag: Flag) {
        self.flags |= 1 << flag as u8;
    }

    /// It was tried again because of `reason`.
    pub fn retried(&mut self, reason: Reason) {
        self.retried |= 1 << reason as u8;
    }

    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// As `queued,hedged,retried:try_timeout`.
impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags =
            WORDS.iter().enumerate().filter(|(bit, _)| self.flags & (1 << bit) != 0).map(|(_, word)| ("", *word));
        let retried = Reason::ALL.iter().filter(|reason| self.retried & (1 << **reason as u8) != 0);
        let retried = retried.map(|reason| ("retried:", reason.as_str()));
        let mut comma = "";
        for (kind, word) in flags.chain(retried) {
            write!(f, "{comma}{kind}{word}")?;
            comma = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_told_in_order_each_once() {
        let mut flags = Flags::default();
        assert!(flags.is_empty() && flags.to_string().is_empty());
        flags.retried(Reason::TryTimeout);
        flags.retried(Reason::ConnectFailed);
        flags.set(Flag::Hedged);
        flags.set(Flag::Queued);
        flags.set(Flag::Queued);
        assert!(!flags.is_empty());
        assert_eq!(flags.to_string(), "queued,hedged,retried:connect_failed,retried:try_timeout");
        flags.set(Flag::RetryDenied);
        assert!(flags.to_string().contains(",retry_denied,"));
    }
}
