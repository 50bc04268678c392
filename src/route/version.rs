//! The version that a request asks for by itself: in a header, or in its baggage, which applications pass on.

use super::Baggage;
use crate::config::{self, VersionBaggage, VersionBaggageMode};
use http::{HeaderMap, HeaderName, HeaderValue};
use std::{borrow::Cow, sync::Arc};

/// Where a request says it. The header goes before the baggage.
#[derive(Debug)]
pub struct Version {
    /// `None`: no header says it.
    header: Option<HeaderName>,
    baggage: Baggage,
}

impl Version {
    fn new(header: &str, baggage: &str) -> Self {
        // The config was validated.
        Self { header: header.parse().ok(), baggage: Baggage::new(baggage) }
    }

    /// As requests for this service ask; where they may not, their header counts for nothing.
    pub fn of_service(service: &config::Service) -> Self {
        let config::VersionOverride { enabled, header, baggage } = &service.version_override;
        let all = Self::new(header, baggage);
        Self { header: all.header.filter(|_| *enabled), ..all }
    }

    pub fn find<'h>(&self, headers: &'h HeaderMap) -> Option<Cow<'h, [u8]>> {
        let named = self.named(headers).map(|value| Cow::Borrowed(value.as_bytes()));
        named.or_else(|| self.baggage.find(headers))
    }

    fn named<'h>(&self, headers: &'h HeaderMap) -> Option<&'h HeaderValue> {
        headers.get(self.header.as_ref()?).filter(|value| !value.is_empty())
    }

    /// Puts into the baggage what the header says, or else `otherwise`. What the baggage says already stays, also where
    /// nobody has that version: another service may.
    pub fn mark(&self, headers: &mut HeaderMap, otherwise: Option<&str>) {
        let named = self.named(headers).cloned();
        let version = named.as_ref().and_then(|value| value.to_str().ok()).or(otherwise);
        if let Some(version) = version
            && !self.baggage.add(headers, version)
        {
            tracing::debug!(version, "there is no room for the version in the request's baggage");
        }
    }
}

/// What requests for the local application are marked with.
#[derive(Debug)]
pub struct Marking {
    version: Version,
    /// Those that ask for none.
    own: Option<Arc<str>>,
}

impl Marking {
    /// `own`: the version of this instance. `None` if nothing is to be marked.
    pub fn new(config: &VersionBaggage, own: Option<&Arc<str>>) -> Option<Self> {
        let VersionBaggage { mode, header, baggage, value } = config;
        let own = match mode {
            VersionBaggageMode::Off => return None,
            VersionBaggageMode::Passed => None,
            VersionBaggageMode::Own => value.as_deref().map(Into::into).or_else(|| own.cloned()),
        };
        Some(Self { version: Version::new(header, baggage), own })
    }

    pub fn apply(&self, headers: &mut HeaderMap) {
        self.version.mark(headers, self.own.as_deref());
    }
}
