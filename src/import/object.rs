//! Kubernetes objects, out of files that may hold many of them.

use super::{
    name::Names,
    reader::{At, Log},
};
use crate::config::{
    Errors, Faults, Path,
    tree::{self, Node, Value},
};
use std::fmt;

/// A text, and what it is called.
#[derive(Debug, Clone)]
pub struct Source {
    pub name: String,
    pub text: Vec<u8>,
}

/// One object.
#[derive(Debug)]
pub struct Object {
    pub file: String,
    pub kind: Kind,
    /// As it was written.
    word: String,
    pub name: String,
    pub namespace: String,
    pub node: Node,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    VirtualService,
    DestinationRule,
    HttpRoute,
    /// The Gateway API's.
    Gateway,
    Other,
}

const ISTIO: &str = "networking.istio.io";
const GATEWAY_API: &str = "gateway.networking.k8s.io";

/// Group, kind and the versions that are known.
const KNOWN: [(&str, &str, Kind, &[&str]); 4] = [
    (ISTIO, "VirtualService", Kind::VirtualService, &["v1", "v1beta1", "v1alpha3"]),
    (ISTIO, "DestinationRule", Kind::DestinationRule, &["v1", "v1beta1", "v1alpha3"]),
    (GATEWAY_API, "HTTPRoute", Kind::HttpRoute, &["v1", "v1beta1"]),
    (GATEWAY_API, "Gateway", Kind::Gateway, &["v1", "v1beta1"]),
];

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.word, self.namespace, self.name)
    }
}

impl Object {
    pub fn root(&self) -> At<'_> {
        At { object: self, node: &self.node, path: Path::default(), place: self.node.place }
    }
}

/// All objects of all sources, in their order.
pub fn read(sources: &[Source], names: &Names) -> Result<Vec<Object>, Vec<Errors>> {
    let (mut objects, mut errors) = (Vec::new(), Vec::new());
    for Source { name, text } in sources {
        let mut faults = Faults::default();
        let documents = tree::parse_all(text, &mut faults);
        match faults.or(Some(name), documents) {
            Ok(documents) => documents.into_iter().for_each(|node| unfold(name, node, names, &mut objects)),
            Err(error) => errors.push(error),
        }
    }
    let mut log = Log::new(sources);
    for object in &mut objects {
        object.kind = identify(object, &mut log);
    }
    if let Err(more) = log.failed() {
        errors.extend(more);
    }
    if errors.is_empty() { Ok(objects) } else { Err(errors) }
}

/// An object, or those in a list of them.
fn unfold(file: &str, mut node: Node, names: &Names, objects: &mut Vec<Object>) {
    if node.is_null() {
        return;
    }
    let is_list = text(node.get("kind")).is_some_and(|kind| kind.ends_with("List"));
    if is_list && let Some(Value::List(items)) = node.get_mut("items").map(|items| &mut items.value) {
        std::mem::take(items).into_iter().for_each(|item| unfold(file, item, names, objects));
        return;
    }
    let metadata = |key: &str| text(node.get("metadata").and_then(|metadata| metadata.get(key)));
    objects.push(Object {
        file: file.into(),
        kind: Kind::Other,
        word: text(node.get("kind")).unwrap_or("object").into(),
        name: metadata("name").unwrap_or("?").into(),
        namespace: metadata("namespace").unwrap_or(&names.namespace).into(),
        node,
    });
}

fn text(node: Option<&Node>) -> Option<&str> {
    match &node?.value {
        Value::Scalar(scalar) if !node?.is_null() => Some(&scalar.text),
        _ => None,
    }
}

fn identify(object: &Object, log: &mut Log) -> Kind {
    let at = object.root();
    let (Some(api), Some(kind)) = (text(object.node.get("apiVersion")), text(object.node.get("kind"))) else {
        log.fault(&at, "expected an object of Kubernetes, with `apiVersion` and `kind`");
        return Kind::Other;
    };
    let (group, version) = api.split_once('/').unwrap_or(("", api));
    let Some((.., found, versions)) = KNOWN.iter().find(|known| (known.0, known.1) == (group, kind)) else {
        return Kind::Other;
    };
    if !versions.contains(&version)
        && let Some(at) = at.get("apiVersion")
    {
        let versions: Vec<_> = versions.iter().map(|version| format!("`{group}/{version}`")).collect();
        log.fault(&at, format!("found `{api}`; expected {}", versions.join(" or ")));
    }
    if !matches!(object.node.get("spec").map(|spec| &spec.value), Some(Value::Map(_))) {
        log.fault(&at, "`spec` is missing; expected a map");
    }
    *found
}
