//! Checks of `fallback` and `faults`.

use super::{Check, Spot};
use crate::config::{
    Abort, Config, Delay, Fallback, FaultInjection, FixedResponse, LastGood, Percent, Service,
    error::{one_of, shorten},
};
use http::{HeaderName, HeaderValue};

/// A larger body is a file server's affair.
const MOST_BODY: usize = 1024 * 1024;
/// Headers of a fixed response that pillion writes itself, or that concern one connection only.
const OWN_HEADERS: [&str; 9] = [
    "connection",
    "content-length",
    "content-type",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

impl<'t> Check<'_, 't> {
    pub(super) fn faults(&mut self, spot: &Spot<'t>, faults: &FaultInjection) {
        if let Some(Delay { percent, duration, header, value }) = &faults.delay {
            let spot = spot.key("delay");
            self.percent(&spot.key("percent"), *percent);
            self.positive(&spot.key("duration"), *duration);
            self.condition(&spot, header.as_deref(), value.as_deref());
        }
        if let Some(Abort { percent, status, grpc_status, header, value }) = &faults.abort {
            let spot = spot.key("abort");
            self.percent(&spot.key("percent"), *percent);
            self.range(&spot.key("status"), *status, 400, 599);
            if let Some(grpc_status) = grpc_status {
                self.range(&spot.key("grpc_status"), *grpc_status, 1, 16);
            }
            self.condition(&spot, header.as_deref(), value.as_deref());
        }
    }

    pub(super) fn percent(&mut self, spot: &Spot<'t>, Percent(found): Percent) {
        if !(0.0..=100.0).contains(&found) {
            self.fail(spot, format!("found `{found}`; expected a number from 0 to 100"));
        }
    }

    /// A header that a request must carry, and its value.
    fn condition(&mut self, spot: &Spot<'t>, header: Option<&str>, value: Option<&str>) {
        if let Some(header) = header {
            self.header_name(&spot.key("header"), header);
        }
        if let Some(value) = value {
            let at = spot.key("value");
            if header.is_none() && !spot.key("header").dead {
                self.fail(&at, "`value` goes with `header`, which is missing");
            }
            self.header_value(&at, value);
        }
    }

    pub(super) fn header_name(&mut self, spot: &Spot<'_>, name: &str) {
        if HeaderName::from_bytes(name.as_bytes()).is_err() {
            self.fail(spot, format!("found `{}`; expected a header's name", shorten(name)));
        }
    }

    pub(super) fn header_value(&mut self, spot: &Spot<'_>, value: &str) {
        if HeaderValue::from_str(value).is_err() {
            self.fail(spot, format!("found `{}`; expected characters that a header can carry", shorten(value)));
        }
    }

    pub(super) fn fallback(&mut self, spot: &Spot<'t>, fallback: &Fallback) {
        let kinds = [
            ("response", fallback.response.is_some()),
            ("service", fallback.service.is_some()),
            ("last_good", fallback.last_good.is_some()),
        ];
        let mut given = kinds.iter().filter(|(_, given)| *given).map(|(kind, _)| *kind);
        let expected = one_of(kinds.iter().map(|(kind, _)| *kind));
        match (given.next(), given.next()) {
            (Some(_), None) => {}
            // One that was reported already is not missing.
            (None, _) if kinds.iter().any(|(kind, _)| spot.key(kind).dead) => {}
            (None, _) => self.fail(spot, format!("expected {expected}")),
            (Some(first), Some(second)) => {
                self.fail(&spot.key(second), format!("`{first}` is there already; expected only one of {expected}"));
            }
        }
        let on = spot.key("on");
        if fallback.on.is_empty() && on.elements().is_empty() {
            self.fail(&on, "the list is empty; expected `error` or `gateway-error`");
        }
        if let Some(response) = &fallback.response {
            self.fixed_response(&spot.key("response"), response);
        }
        if let Some(service) = &fallback.service {
            self.service_name(&spot.key("service"), service);
        }
        if let Some(LastGood { max_bytes, max_body, max_age }) = &fallback.last_good {
            let spot = spot.key("last_good");
            self.range(&spot.key("max_bytes"), *max_bytes, 4096, 1024 * 1024 * 1024);
            self.range(&spot.key("max_body"), *max_body, 0, *max_bytes);
            self.positive(&spot.key("max_age"), *max_age);
        }
    }

    pub(super) fn fixed_response(&mut self, spot: &Spot<'t>, response: &FixedResponse) {
        self.range(&spot.key("status"), response.status, 200, 599);
        let (body, file) = (spot.key("body"), spot.key("file"));
        if response.body.is_some() && response.file.is_some() {
            self.fail(&file, "`body` is there already; expected only one of the two");
        }
        let given = if response.file.is_some() { &file } else { &body };
        if response.content.len() > MOST_BODY {
            let message = format!("found {} bytes; expected at most {MOST_BODY}", response.content.len());
            self.fail(given, message);
        }
        if matches!(response.status, 204 | 205 | 304) && !response.content.is_empty() {
            self.fail(given, format!("a response with status {} has no body", response.status));
        }
        self.header_value(&spot.key("content_type"), &response.content_type);
        let headers = spot.key("headers");
        for (name, value) in &response.headers {
            let spot = headers.key(name);
            self.header_name(&spot, name);
            self.header_value(&spot, value);
            if OWN_HEADERS.iter().any(|own| own.eq_ignore_ascii_case(name)) {
                let instead = if name.eq_ignore_ascii_case("content-type") { "`content_type`" } else { "none" };
                self.fail(&spot, format!("`{}` is pillion's to write; expected {instead}", shorten(name)));
            }
        }
    }

    /// No service is, by one or more steps, its own fallback.
    pub(super) fn circles(&mut self, services: &Spot<'t>, defaults: &Spot<'t>, config: &Config) {
        let of = |name: &str| {
            let service: &Service = config.services.get(name).unwrap_or(&config.defaults);
            service.fallback.as_ref().and_then(|fallback| fallback.service.as_deref())
        };
        let inherited = defaults.key("fallback").key("service");
        for (name, service) in &config.services {
            let Some(first) = service.fallback.as_ref().and_then(|fallback| fallback.service.as_deref()) else {
                continue;
            };
            let spot = services.key(name).key("fallback").key("service");
            // What `defaults` say for all means the others.
            if first == name && spot.place == inherited.place {
                continue;
            }
            let mut way = vec![name.as_str()];
            let mut next = Some(first);
            while let Some(step) = next {
                if way.contains(&step) {
                    break;
                }
                way.push(step);
                next = of(step).filter(|next| *next != step);
            }
            if next == Some(name) {
                let way: Vec<_> =
                    way.iter().chain(&[name.as_str()]).map(|step| format!("`{}`", shorten(step))).collect();
                self.fail(&spot, format!("a circle of fallbacks: {}", way.join(" → ")));
            }
        }
    }
}
