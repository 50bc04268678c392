//! A registry in one line, for `--registry` and `PILLION_REGISTRY`:
//!
//! ```text
//! consul://HOST:PORT[?dc=DC&tag=TAG&token=TOKEN&scheme=https]
//! etcd://[USER:PASSWORD@]HOST:PORT[,HOST:PORT…][/PREFIX][?layout=kratos&scheme=https]
//! file:PATH
//! embedded:[ADDR][?persist=PATH]
//! ```
//!
//! After `?` goes any key that the registry has in the file, and `ca`, `cert`, `key` and `server_name` of its `tls`.
//! `tag` may be repeated. It becomes a tree as the file would have it, and is read and checked like the file.

use super::{
    error::{Place, did_you_mean, one_of},
    tree::{Node, Scalar, Value},
};
use percent_encoding::percent_decode_str;

const KINDS: [&str; 4] = ["consul", "etcd", "file", "embedded"];

/// The registry's kind and its map.
pub(super) fn parse(url: &str, place: Place) -> Result<(&'static str, Node), String> {
    let expected = "expected `consul://HOST:PORT`, `etcd://HOST:PORT/PREFIX`, `file:PATH` or `embedded:`";
    let (scheme, rest) = url.split_once(':').ok_or_else(|| format!("`{}` is no registry; {expected}", hidden(url)))?;
    let Some(kind) = KINDS.into_iter().find(|kind| *kind == scheme) else {
        let near = did_you_mean(scheme, KINDS);
        return Err(format!("`{scheme}:` is no kind of registry; expected {}{near}", one_of(KINDS)));
    };
    let mut registry = Node::map(place);
    registry.set("kind", text(kind, place));
    // A path may have a `?`, and `file` has no settings.
    let (rest, query) = if kind == "file" { (rest, "") } else { rest.split_once('?').unwrap_or((rest, "")) };
    let mut secure = false;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) =
            pair.split_once('=').ok_or_else(|| format!("`{pair}` after the `?`; expected `KEY=VALUE`"))?;
        let value = decode(value)?;
        match (kind, key) {
            ("consul" | "etcd", "scheme") => {
                secure = match value.as_str() {
                    "http" => false,
                    "https" => true,
                    _ => return Err(format!("`scheme={value}`; expected `http` or `https`")),
                }
            }
            ("consul" | "etcd", "ca" | "cert" | "key" | "server_name") => {
                let mut tls = registry.get("tls").cloned().unwrap_or_else(|| Node::map(place));
                tls.set(key, text(value, place));
                registry.set("tls", tls);
            }
            ("consul", "tag") => {
                let mut tags = registry.get("tags").map(|tags| tags.elements().to_vec()).unwrap_or_default();
                tags.push(text(value, place));
                registry.set("tags", Node::new(Value::List(tags), place));
            }
            (_, "kind" | "address" | "endpoints" | "listen") => {
                return Err(format!("`{key}` cannot be set after the `?`; it stands before it"));
            }
            // A number or boolean is told by its looks, as in the file without quotes.
            _ if registry.get(key).is_some() => return Err(format!("`{key}` is there twice")),
            _ => registry.set(key, Node::scalar(value, place)),
        }
    }
    let scheme = if secure { "https" } else { "http" };
    match kind {
        "consul" => {
            let address = rest.strip_prefix("//").filter(|address| !address.is_empty());
            let address = address.ok_or("expected `consul://HOST:PORT`")?;
            registry.set("address", text(format!("{scheme}://{}", address.trim_end_matches('/')), place));
        }
        "etcd" => etcd(&mut registry, rest, scheme, place)?,
        "file" => {
            // `file:///etc/x` is `/etc/x`, as everywhere; `file:x` is `x` here.
            let path = rest.strip_prefix("//").unwrap_or(rest);
            if path.is_empty() {
                return Err("expected `file:PATH`".into());
            }
            registry.set("path", text(path, place));
        }
        _ => {
            let listen = rest.strip_prefix("//").unwrap_or(rest);
            if !listen.is_empty() {
                registry.set("listen", text(listen, place));
            }
        }
    }
    Ok((kind, registry))
}

fn etcd(registry: &mut Node, rest: &str, scheme: &str, place: Place) -> Result<(), String> {
    let rest = rest.strip_prefix("//").filter(|rest| !rest.is_empty()).ok_or("expected `etcd://HOST:PORT`")?;
    let (authority, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
    let hosts = match authority.rsplit_once('@') {
        None => authority,
        Some((login, hosts)) => {
            let (user, password) = login.split_once(':').ok_or("expected `etcd://USER:PASSWORD@HOST:PORT`")?;
            registry.set("user", text(decode(user)?, place));
            registry.set("password", text(decode(password)?, place));
            hosts
        }
    };
    let endpoints = hosts.split(',').map(|host| text(format!("{scheme}://{host}"), place)).collect();
    registry.set("endpoints", Node::new(Value::List(endpoints), place));
    if path.len() > 1 {
        registry.set("prefix", text(decode(path)?, place));
    }
    Ok(())
}

fn text(text: impl Into<String>, place: Place) -> Node {
    Node::new(Value::Scalar(Scalar { text: text.into(), plain: false, expanded: false }), place)
}

fn decode(text: &str) -> Result<String, String> {
    let text = percent_decode_str(text).decode_utf8().map_err(|_| format!("`{text}` is not UTF-8 when decoded"))?;
    Ok(text.into_owned())
}

/// Without what may be a password.
fn hidden(url: &str) -> &str {
    url.rsplit_once('@').map_or(url, |(_, host)| host)
}
