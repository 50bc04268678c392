//! What is counted and logged of a request once it has ended.

use super::{Rare, Record, address};
use crate::{
    error::{Fault, ProxyError, Reason},
    telemetry::{
        access_log::{AccessRecord, RoutedTo, Text},
        labels::InjectedFault,
    },
};
use http::Version;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

impl Drop for Record {
    fn drop(&mut self) {
        if self.ended.is_none() && self.failure.is_none() {
            let (reason, detail) = if self.listener.is_cut() {
                (Reason::ShuttingDown, "cut off at the deadline of the drain")
            } else {
                (Reason::DownstreamClosed, "the request was abandoned")
            };
            self.failure = Some(Box::new(ProxyError::new(reason, detail)));
        }
        let reason = self.failure.as_ref().map(|failure| failure.reason);
        if self.status == 0 {
            self.status = reason.map_or(0, |reason| reason.status().as_u16());
        }
        let duration = self.ended.unwrap_or_else(Instant::now) - self.started;
        let subset = self.its_routes().and_then(|routed| routed.went_to());
        if self.caller.is_some() || subset.is_some() {
            let cut_off = reason.is_some_and(|reason| reason.fault() != Fault::Downstream);
            let failed = self.grpc_failed || cut_off || self.status >= 500;
            if let Some(caller) = &self.caller {
                caller.metrics.red.count(self.status, failed, duration);
            }
            // What a fallback has answered, its endpoints have not.
            if let Some(subset) = subset {
                subset.red.count(self.status, failed || self.fallback().is_some(), duration);
            }
        }
        // Nobody knows what would have come of one that its caller gave up.
        if reason.is_none_or(|reason| reason.fault() != Fault::Downstream)
            && let Some(Rare { comparisons, answered, grpc_status, .. }) = self.rare.as_deref_mut()
        {
            for comparison in comparisons {
                comparison.own(self.status, grpc_status.clone(), *answered);
            }
        }
        match &self.cluster {
            Some(cluster) => {
                let metrics = &cluster.metrics;
                metrics.requests.inc(self.status);
                metrics.duration.observe(duration);
                metrics.request_bytes.add(self.bytes_in);
                metrics.response_bytes.add(self.bytes_out);
                if let Some(reason) = reason {
                    metrics.errors.inc(reason as usize);
                }
            }
            None => {
                if let Some(reason) = reason {
                    self.listener.metrics.rejected.inc(reason as usize);
                }
            }
        }
        // After it was counted: whoever sees that none is in flight sees how all of them ended.
        self.leave();
        let failed = self.failure.is_some() || self.fallback().is_some();
        if self.listener.telemetry.access_log.wants(self.status, failed) {
            let line = self.access_record(duration);
            self.listener.telemetry.access_log.log(line);
        }
    }
}

impl Record {
    fn access_record(&mut self, duration: Duration) -> AccessRecord {
        let failed = self.failure.as_ref().map(|failure| failure.reason);
        AccessRecord {
            time: SystemTime::now() - duration,
            listener: Text::Shared(self.listener.name.clone()),
            peer: self.line.origin.peer,
            method: Some(self.line.method.clone()),
            authority: self.line.host.take().map(Text::from),
            path: Some(self.line.path.take().map_or(Text::Static("/"), Text::from)),
            protocol: if self.line.version == Version::HTTP_2 { "HTTP/2" } else { "HTTP/1.1" },
            service: self.cluster.as_ref().map(|cluster| Text::Shared(cluster.name.clone())),
            routed: self.its_routes().map(|routed| {
                let subset = routed.went_to().map(|subset| subset.subset.clone());
                Box::new(RoutedTo { route: routed.name(), subset })
            }),
            endpoint: self.in_flight.as_ref().map(|in_flight| address(&in_flight.endpoint().instance.address)),
            status: self.status,
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            duration,
            attempts: self.attempts,
            request_id: self.line.request_id.take().map(Text::from),
            caller: self.caller.as_ref().map(|caller| caller.metrics.caller.clone()),
            reason: failed.or(self.fallback().map(|(_, reason)| reason)).map(Reason::as_str),
            fallback: self.fallback().map(|(kind, _)| kind.as_str()),
            flags: self.flags,
            fault: self.rare.as_ref().and_then(|rare| rare.fault).map(InjectedFault::as_str),
        }
    }
}
