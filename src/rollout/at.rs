//! Moments that pillions on several machines have in common.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::{
    fmt,
    time::{Duration, SystemTime},
};

/// A moment by the clock on the wall, to the millisecond; written as in RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct At(SystemTime);

impl At {
    pub fn now() -> Self {
        Self::from(SystemTime::now())
    }

    /// Clocks of different machines differ, and this one may have been set back: a moment that is still to come is now.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.duration_since(earlier.0).unwrap_or_default()
    }
}

impl From<SystemTime> for At {
    fn from(time: SystemTime) -> Self {
        let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let whole = Duration::new(since_epoch.as_secs(), since_epoch.subsec_millis() * 1_000_000);
        Self(SystemTime::UNIX_EPOCH + whole)
    }
}

impl std::ops::Add<Duration> for At {
    type Output = Self;

    fn add(self, time: Duration) -> Self {
        Self::from(self.0 + time)
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", humantime::format_rfc3339_millis(self.0))
    }
}

impl Serialize for At {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for At {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        humantime::parse_rfc3339(&text).map(Self::from).map_err(D::Error::custom)
    }
}
