//! Dubbo's interface-level discovery: a provider is a URL. In ZooKeeper it is the key, encoded, and the value says nothing;
//! in Redis it is a field of a hash.

use super::{DecodeError, Metadata, Record, id_segment};
use crate::registry::{Address, AddressError, Instance, Protocol};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::Deserialize;
use std::borrow::Cow;

/// What Java's `URLEncoder` leaves as it is, apart from letters and digits.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.').remove(b'-').remove(b'_').remove(b'*');

/// What has a meaning of its own within a URL's parameters.
const IN_PARAMETER: &AsciiSet = &percent_encoding::CONTROLS.add(b' ').add(b'%').add(b'&').add(b'=').add(b'+').add(b'#');

/// Between an interface and its providers.
const PROVIDERS: &str = "/providers";

/// A service as it is asked for: `INTERFACE`, of any version and group, or `INTERFACE:VERSION`, or
/// `INTERFACE:VERSION:GROUP`. A version or group that is there and empty means providers that have none.
struct Selection<'a> {
    interface: &'a str,
    version: Option<&'a str>,
    group: Option<&'a str>,
}

impl<'a> Selection<'a> {
    fn parse(service: &'a str) -> Self {
        let mut parts = service.splitn(3, ':');
        let interface = parts.next().unwrap_or_default();
        Self { interface, version: parts.next(), group: parts.next() }
    }
}

/// An endpoint in the metadata of an application.
#[derive(Deserialize)]
pub struct Endpoint {
    pub port: u16,
    pub protocol: String,
}

impl Endpoint {
    pub fn apply(self, instance: &mut Instance) {
        speaks(&self.protocol, instance);
    }
}

fn speaks(protocol: &str, instance: &mut Instance) {
    instance.protocol = match protocol {
        // Triple is gRPC.
        "tri" | "grpc" => Some(Protocol::Http2),
        "rest" | "http" => Some(Protocol::Http1),
        // Whatever it is, a proxy for HTTP cannot carry it; one for TCP can.
        _ => None,
    };
    instance.labels.insert("protocol".into(), protocol.into());
}

/// The interface of a service as it is asked for.
pub fn interface_of(service: &str) -> &str {
    Selection::parse(service).interface
}

/// The part of a key between the prefix and the provider's URL.
pub fn segment(service: &str) -> String {
    format!("{}{PROVIDERS}", utf8_percent_encode(Selection::parse(service).interface, ENCODED))
}

/// The interface whose [`segment`] this is.
pub fn interface(segment: &str) -> Option<Cow<'_, str>> {
    let encoded = segment.strip_suffix(PROVIDERS)?;
    let single = !encoded.is_empty() && !encoded.contains('/');
    single.then(|| percent_decode_str(encoded).decode_utf8().ok()).flatten()
}

/// The instance whose URL the key ends in, e.g. `dubbo%3A%2F%2F10.0.0.1%3A20880%2Fcom.foo.Bar%3Fversion%3D1.0%26weight%3D50`.
pub fn decode(service: &str, suffix: &str) -> Result<Vec<Instance>, DecodeError> {
    let Some(encoded) = id_segment(suffix) else { return Ok(Vec::new()) };
    Ok(instance(service, &decoded(encoded)?)?.into_iter().collect())
}

/// The instance that a URL is, e.g. `dubbo://10.0.0.1:20880/com.foo.Bar?version=1.0&weight=50`, or none if `service` asks
/// for another version or group.
/// All parameters become labels, and `protocol` is the URL's scheme. `disabled=true` is an instance that its registry
/// holds unfit.
///
/// Its id is its protocol and address, with its group and version if it has any: another weight is another key.
pub fn instance(service: &str, url: &str) -> Result<Option<Instance>, DecodeError> {
    let bad = || AddressError::new(url, "a URL like `dubbo://HOST:PORT/INTERFACE`");
    let (protocol, rest) = url.split_once("://").ok_or_else(bad)?;
    // What a registry says for "there is none".
    if protocol == "empty" {
        return Ok(None);
    }
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = place.split_once('/').map_or(place, |(authority, _)| authority);
    let authority = authority.rsplit_once('@').map_or(authority, |(_, authority)| authority);
    let address: Address = authority.parse()?;
    let mut id = format!("{protocol}://{address}");
    let mut instance = Instance::new(String::new(), address);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        instance.labels.insert(key.into(), decoded(value)?);
    }
    let label = |key| instance.labels.get(key).map_or("", String::as_str);
    let (version, group) = (label("version"), label("group"));
    let wanted = Selection::parse(service);
    if wanted.version.is_some_and(|wanted| wanted != version) || wanted.group.is_some_and(|wanted| wanted != group) {
        return Ok(None);
    }
    for (key, value) in [("group", group), ("version", version)] {
        if !value.is_empty() {
            id.push_str(&format!("{}{key}={value}", if id.contains('?') { '&' } else { '?' }));
        }
    }
    instance.healthy = label("disabled") != "true" && label("enabled") != "false";
    instance.weight = label("weight").parse().unwrap_or(Instance::DEFAULT_WEIGHT);
    instance.id = id;
    speaks(protocol, &mut instance);
    Ok(Some(instance))
}

/// The key for `instance`, whose value says nothing.
pub fn encode(service: &str, instance: &Instance) -> Record {
    Record { suffix: Some(utf8_percent_encode(&url(service, instance), ENCODED).to_string()), value: Vec::new() }
}

/// The URL that `instance` is. The version and the group are those that `service` asks for; the
/// metadata are parameters, of which `protocol` is the URL's scheme: by default `tri` for what speaks HTTP/2, `rest` for
/// HTTP/1, else `dubbo`.
pub fn url(service: &str, instance: &Instance) -> String {
    let Selection { interface, version, group } = Selection::parse(service);
    let mut parameters = Metadata::of(instance).0;
    let by_default = match instance.protocol {
        Some(Protocol::Http2) => "tri",
        Some(Protocol::Http1) => "rest",
        None => "dubbo",
    };
    let scheme = parameters.remove("protocol").unwrap_or_else(|| by_default.into());
    let asked = [("version", version), ("group", group)];
    for (key, value) in
        asked.into_iter().filter_map(|(key, value)| Some((key, value.filter(|value| !value.is_empty())?)))
    {
        parameters.insert(key.into(), value.into());
    }
    let always = [
        ("application", interface),
        ("category", "providers"),
        ("dubbo", "2.0.2"),
        ("dynamic", "true"),
        ("interface", interface),
        ("side", "provider"),
    ];
    for (key, value) in always {
        parameters.entry(key.into()).or_insert_with(|| value.into());
    }
    let pairs: Vec<_> =
        parameters.iter().map(|(key, value)| format!("{key}={}", utf8_percent_encode(value, IN_PARAMETER))).collect();
    format!("{scheme}://{}/{interface}?{}", instance.address, pairs.join("&"))
}

/// As `URLEncoder` wrote it, which makes a space a plus.
fn decoded(text: &str) -> Result<String, DecodeError> {
    Ok(percent_decode_str(&text.replace('+', " ")).decode_utf8()?.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Dubbo 3 names the node of a provider.
    fn key(parameters: &str) -> String {
        let url = format!("dubbo://10.0.0.1:20880/com.foo.Bar?{parameters}");
        utf8_percent_encode(&url, ENCODED).to_string()
    }

    #[test]
    fn the_key_says_all() {
        let key = key("application=demo&group=g1&version=1.0&weight=50&timestamp=1700000000000&methods=a%2Cb");
        let instances = decode("com.foo.Bar", &key).unwrap();
        assert_eq!(instances.len(), 1);
        let instance = &instances[0];
        assert_eq!(instance.id, "dubbo://10.0.0.1:20880?group=g1&version=1.0");
        assert_eq!((instance.address.to_string().as_str(), instance.weight), ("10.0.0.1:20880", 50));
        assert_eq!((instance.version(), instance.labels["methods"].as_str()), (Some("1.0"), "a,b"));
        assert_eq!((instance.labels["protocol"].as_str(), instance.protocol), ("dubbo", None));
        assert!(instance.healthy);
    }

    #[test]
    fn versions_and_groups_are_selected() {
        let (full, bare) = (key("group=g1&version=1.0"), key("application=demo"));
        for (service, of_full, of_bare) in [
            ("com.foo.Bar", 1, 1),
            ("com.foo.Bar:1.0", 1, 0),
            ("com.foo.Bar:1.0:g1", 1, 0),
            ("com.foo.Bar:1.0:", 0, 0),
            ("com.foo.Bar::", 0, 1),
            ("com.foo.Bar:2.0", 0, 0),
        ] {
            let seen = (decode(service, &full).unwrap().len(), decode(service, &bare).unwrap().len());
            assert_eq!(seen, (of_full, of_bare), "{service}");
            assert_eq!(segment(service), "com.foo.Bar/providers");
        }
    }

    #[test]
    fn what_is_disabled_is_unfit_and_triple_is_http2() {
        for (parameters, healthy) in [("disabled=true", false), ("enabled=false", false), ("disabled=false", true)] {
            assert_eq!(decode("com.foo.Bar", &key(parameters)).unwrap()[0].healthy, healthy, "{parameters}");
        }
        let triple = decode("com.foo.Bar", "tri%3A%2F%2F10.0.0.1%3A50051%2Fcom.foo.Bar").unwrap();
        assert_eq!((triple[0].protocol, triple[0].weight), (Some(Protocol::Http2), 100));
        assert_eq!(decode("com.foo.Bar", "empty%3A%2F%2F0.0.0.0%2Fcom.foo.Bar").unwrap(), []);
    }

    #[test]
    fn interfaces_are_encoded_in_keys() {
        assert_eq!(segment("com.foo.Bar$Inner"), "com.foo.Bar%24Inner/providers");
        assert_eq!(interface("com.foo.Bar%24Inner/providers").as_deref(), Some("com.foo.Bar$Inner"));
        for other in ["com.foo.Bar/consumers", "/providers", "a/b/providers", "%FF/providers"] {
            assert_eq!(interface(other), None, "{other}");
        }
    }

    #[test]
    fn mistakes_are_errors() {
        for key in
            ["10.0.0.1%3A20880", "dubbo%3A%2F%2F10.0.0.1", "dubbo%3A%2F%2F", "%FF", "dubbo%3A%2F%2Fa%3A1%3Fx%3D%25FF"]
        {
            assert!(decode("com.foo.Bar", key).is_err(), "{key}");
        }
        assert_eq!(decode("com.foo.Bar", "a/b").unwrap(), []);
    }
}
