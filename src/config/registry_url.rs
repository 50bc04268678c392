//! A registry in one line, for `--registry` and `PILLION_REGISTRY`:
//!
//! ```text
//! consul://HOST:PORT[?dc=DC&tag=TAG&token=TOKEN&scheme=https]
//! etcd://[USER:PASSWORD@]HOST:PORT[,HOST:PORT…][/PREFIX][?layout=kratos&scheme=https]
//! zookeeper://[USER:PASSWORD@]HOST:PORT[,HOST:PORT…][/CHROOT][?layout=curator&scheme=tls]
//! nacos://[USER:PASSWORD@]HOST:PORT[,HOST:PORT…][/NAMESPACE][?group=GROUP&cluster=CLUSTER&scheme=https]
//! eureka://[USER:PASSWORD@]HOST:PORT[,HOST:PORT…][/PATH][?interval=10s&scheme=https]
//! kubernetes:[//HOST:PORT[,HOST:PORT…]][?namespace=NAMESPACE&kubeconfig=PATH&scheme=http]
//! redis://[[USER]:PASSWORD@]HOST:PORT[,HOST:PORT…][/DB][?layout=dubbo&master=NAME&scheme=rediss]
//! dns://[IP[:PORT][,IP[:PORT]…]]/NAME[?record=a&port=PORT]
//! xds://HOST:PORT[,HOST:PORT…][?node=ID&token=TOKEN&protocol=sotw&scheme=https]
//! file:PATH
//! embedded:[ADDR][?persist=PATH]
//! ```
//!
//! After `?` goes any key that the registry has in the file, and `ca`, `cert`, `key` and `server_name` of its `tls`.
//! `tag` and `cluster` may be repeated. With `master` the hosts of `redis` are Sentinels. It becomes a tree as the file would
//! have it, and is read and checked like the file.

use super::{
    error::{Place, did_you_mean, one_of},
    tree::{Node, Scalar, Value},
};
use percent_encoding::percent_decode_str;

const KINDS: [&str; 11] =
    ["consul", "etcd", "zookeeper", "nacos", "eureka", "kubernetes", "redis", "dns", "xds", "file", "embedded"];

/// The registry's kind and its map.
pub(super) fn parse(url: &str, place: Place) -> Result<(&'static str, Node), String> {
    let no_kind = || format!("`{}` is no registry; expected one like `consul://HOST:PORT` or `file:PATH`", hidden(url));
    let (scheme, rest) = url.split_once(':').ok_or_else(no_kind)?;
    let Some(kind) = KINDS.into_iter().find(|kind| *kind == scheme) else {
        let near = did_you_mean(scheme, KINDS);
        return Err(format!("`{scheme}:` is no kind of registry; expected {}{near}", one_of(KINDS)));
    };
    let mut registry = Node::map(place);
    registry.set("kind", text(kind, place));
    // A path may have a `?`, and `file` has no settings.
    let (rest, query) = if kind == "file" { (rest, "") } else { rest.split_once('?').unwrap_or((rest, "")) };
    // Only Kubernetes has no other way.
    let mut secure = kind == "kubernetes";
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) =
            pair.split_once('=').ok_or("what stands after the `?` is not all `KEY=VALUE`, joined by `&`")?;
        let value = decode(value)?;
        match (kind, key) {
            ("consul" | "etcd" | "eureka" | "xds" | "kubernetes" | "nacos", "scheme") => {
                secure = match value.as_str() {
                    "http" => false,
                    "https" => true,
                    _ => return Err(format!("`scheme={value}`; expected `http` or `https`")),
                }
            }
            ("redis", "scheme") => match value.as_str() {
                "redis" => {}
                "rediss" if registry.get("tls").is_some() => {}
                "rediss" => registry.set("tls", Node::map(place)),
                _ => return Err(format!("`scheme={value}`; expected `redis` or `rediss`")),
            },
            ("zookeeper", "scheme") if value == "tls" => secure = true,
            ("zookeeper", "scheme") => return Err(format!("`scheme={value}`; expected `tls`")),
            (
                "consul" | "etcd" | "nacos" | "eureka" | "redis" | "xds" | "zookeeper" | "kubernetes",
                "ca" | "cert" | "key" | "server_name",
            ) => {
                let mut tls = registry.get("tls").cloned().unwrap_or_else(|| Node::map(place));
                tls.set(key, text(value, place));
                registry.set("tls", tls);
            }
            ("consul", "tag") => append(&mut registry, "tags", value, place),
            ("nacos", "cluster") => append(&mut registry, "clusters", value, place),
            ("xds", "node") => {
                let mut node = Node::map(place);
                node.set("id", text(value, place));
                registry.set("node", node);
            }
            ("dns", "servers" | "name")
            | (_, "kind" | "address" | "addresses" | "sentinels" | "endpoints" | "servers" | "listen") => {
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
        "etcd" => cluster(&mut registry, kind, rest, &format!("{scheme}://"), "prefix", place)?,
        "nacos" => {
            let (hosts, path) = login(&mut registry, kind, rest, place)?;
            registry.set("servers", servers(hosts, &format!("{scheme}://"), place));
            // A namespace does not begin with the slash.
            let namespace = path.trim_matches('/');
            if !namespace.is_empty() {
                registry.set("namespace", text(decode(namespace)?, place));
            }
        }
        "eureka" => {
            let (hosts, path) = login(&mut registry, kind, rest, place)?;
            let path = if path.len() > 1 { path } else { "/eureka" };
            let urls = hosts.split(',').map(|host| text(format!("{scheme}://{host}{path}"), place)).collect();
            registry.set("servers", Node::new(Value::List(urls), place));
        }
        "redis" => redis(&mut registry, rest, place)?,
        "xds" => {
            let hosts = rest.strip_prefix("//").map(|hosts| hosts.trim_end_matches('/'));
            let hosts = hosts.filter(|hosts| !hosts.is_empty()).ok_or("expected `xds://HOST:PORT`")?;
            registry.set("servers", servers(hosts, &format!("{scheme}://"), place));
        }
        "dns" => dns(&mut registry, rest, place)?,
        "zookeeper" => cluster(&mut registry, kind, rest, if secure { "tls://" } else { "" }, "chroot", place)?,
        // Without a server it is the cluster that pillion runs in, or that of a kubeconfig.
        "kubernetes" if rest.is_empty() => {}
        "kubernetes" => {
            let hosts = rest.strip_prefix("//").map(|hosts| hosts.trim_end_matches('/'));
            let hosts =
                hosts.filter(|hosts| !hosts.is_empty()).ok_or("expected `kubernetes:` or `kubernetes://HOST:PORT`")?;
            registry.set("servers", servers(hosts, &format!("{scheme}://"), place));
        }
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

/// To a list, for keys that may be repeated.
fn append(registry: &mut Node, key: &str, value: String, place: Place) {
    let mut list = registry.get(key).map(|list| list.elements().to_vec()).unwrap_or_default();
    list.push(text(value, place));
    registry.set(key, Node::new(Value::List(list), place));
}

/// `USER:PASSWORD@HOST:PORT,HOST:PORT/PATH`, whose path goes to that key.
fn cluster(
    registry: &mut Node,
    kind: &str,
    rest: &str,
    scheme: &str,
    path_key: &str,
    place: Place,
) -> Result<(), String> {
    let (hosts, path) = login(registry, kind, rest, place)?;
    registry.set("endpoints", servers(hosts, scheme, place));
    if path.len() > 1 {
        registry.set(path_key, text(decode(path)?, place));
    }
    Ok(())
}

/// Of `//[USER:PASSWORD@]HOST:PORT…[/PATH]` sets the login, and returns the hosts and the path.
fn login<'u>(registry: &mut Node, kind: &str, rest: &'u str, place: Place) -> Result<(&'u str, &'u str), String> {
    let rest = rest.strip_prefix("//").filter(|rest| !rest.is_empty());
    let rest = rest.ok_or_else(|| format!("expected `{kind}://HOST:PORT`"))?;
    let (authority, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
    whole_login(path)?;
    let Some((login, hosts)) = authority.rsplit_once('@') else { return Ok((authority, path)) };
    let (user, password) =
        login.split_once(':').ok_or_else(|| format!("expected `{kind}://USER:PASSWORD@HOST:PORT`"))?;
    registry.set("user", text(decode(user)?, place));
    registry.set("password", text(decode(password)?, place));
    Ok((hosts, path))
}

/// A `/` in a password would end the address, and what follows it would be shown.
fn whole_login(path: &str) -> Result<(), String> {
    if path.contains('@') {
        return Err("there is a `/` before an `@`; in a user or a password it is written `%2F`".into());
    }
    Ok(())
}

fn redis(registry: &mut Node, rest: &str, place: Place) -> Result<(), String> {
    let rest = rest.strip_prefix("//").filter(|rest| !rest.is_empty()).ok_or("expected `redis://HOST:PORT`")?;
    let (authority, db) = rest.split_once('/').unwrap_or((rest, ""));
    whole_login(db)?;
    let hosts = match authority.rsplit_once('@') {
        None => authority,
        Some((login, hosts)) => {
            let (user, password) = login.split_once(':').ok_or("expected `redis://USER:PASSWORD@HOST:PORT`")?;
            if !user.is_empty() {
                registry.set("user", text(decode(user)?, place));
            }
            registry.set("password", text(decode(password)?, place));
            hosts
        }
    };
    let key = if registry.get("master").is_some() { "sentinels" } else { "addresses" };
    registry.set(key, servers(hosts, "", place));
    if !db.is_empty() {
        registry.set("db", Node::scalar(db.to_owned(), place));
    }
    Ok(())
}

/// The addresses in `HOST:PORT,HOST:PORT`, each with `scheme` (which may be empty) before it.
fn servers(hosts: &str, scheme: &str, place: Place) -> Node {
    let servers = hosts.split(',').map(|host| text(format!("{scheme}{host}"), place)).collect();
    Node::new(Value::List(servers), place)
}

fn dns(registry: &mut Node, rest: &str, place: Place) -> Result<(), String> {
    let parts = rest.strip_prefix("//").and_then(|rest| rest.split_once('/')).filter(|(_, name)| !name.is_empty());
    let (hosts, name) = parts.ok_or("expected `dns://IP:PORT/NAME`, or `dns:///NAME` for the system's servers")?;
    if !hosts.is_empty() {
        registry.set("servers", servers(hosts, "", place));
    }
    registry.set("name", text(decode(name)?, place));
    Ok(())
}

fn text(text: impl Into<String>, place: Place) -> Node {
    Node::new(Value::Scalar(Scalar { text: text.into(), plain: false, expanded: false }), place)
}

fn decode(text: &str) -> Result<String, String> {
    let text = percent_decode_str(text).decode_utf8().map_err(|_| "a part of it is not UTF-8 when decoded")?;
    Ok(text.into_owned())
}

/// Without what may be a password.
fn hidden(url: &str) -> &str {
    url.rsplit_once('@').map_or(url, |(_, host)| host)
}
