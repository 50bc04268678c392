//! What the two variants of the protocol have in common: asking for resources by type, and answering what comes.

use super::proto::{Any, Node, Status};
use prost::Message;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

/// The types of resources that are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Clusters,
    Endpoints,
}

/// What is wanted of one type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted<'a> {
    All,
    /// These, which may be none.
    Names(&'a BTreeSet<String>),
}

/// What the server said about one type.
#[derive(Debug, PartialEq)]
pub struct Update {
    pub kind: Kind,
    pub resources: Vec<Part>,
    /// These are gone.
    pub removed: Vec<String>,
    /// So is what is not among the resources.
    pub complete: bool,
}

/// One resource.
#[derive(Debug, PartialEq)]
pub struct Part {
    /// Empty where only the resource itself says it.
    pub name: String,
    pub bytes: Vec<u8>,
}

/// What is needed to answer a response.
#[derive(Debug, PartialEq)]
pub struct Receipt {
    pub kind: Kind,
    pub nonce: String,
    /// Of the whole response, or by resource.
    pub version: String,
    pub versions: Vec<(String, String)>,
    pub removed: Vec<String>,
}

/// Resources that cannot be used, and why.
pub type Refused = BTreeMap<String, String>;

/// One variant: what was said on the present stream, and which versions are held, over all streams.
pub trait Variant {
    type Request: Message + 'static;
    type Response: Message + Default + 'static;

    /// The call.
    const PATH: &'static str;

    /// There is a new stream. `same_server`: what is held came from the server at its other end. `holds`: whether a
    /// resource is still held.
    fn restart(&mut self, same_server: bool, holds: impl Fn(Kind, &str) -> bool);

    /// What has to be said so that `wanted` is subscribed to; `None` if it is.
    fn ask(&mut self, kind: Kind, wanted: Wanted<'_>) -> Option<Self::Request>;

    /// Takes a response apart. `None` for a type that nobody asked for.
    fn read(&mut self, response: Self::Response) -> Option<(Update, Receipt)>;

    /// Tells the server that its response is in use, but for what is refused.
    fn answer(&mut self, receipt: Receipt, refused: &Refused) -> Self::Request;
}

impl Kind {
    pub const ALL: [Self; 2] = [Self::Clusters, Self::Endpoints];

    pub fn url(self) -> &'static str {
        match self {
            Self::Clusters => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        }
    }

    pub fn of(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.url() == url)
    }
}

impl Part {
    /// A resource of another type than its response is empty, which no type accepts.
    pub fn new(kind: Kind, name: String, any: Any) -> Self {
        Self { name, bytes: if Kind::of(&any.type_url) == Some(kind) { any.value } else { Vec::new() } }
    }
}

/// The error detail that goes with a refusal; `None` for an acceptance.
pub fn error_detail(refused: &Refused) -> Option<Status> {
    const INVALID_ARGUMENT: i32 = 3;
    const MOST: usize = 10;
    if refused.is_empty() {
        return None;
    }
    let mut message = String::new();
    for (name, cause) in refused.iter().take(MOST) {
        let separator = if message.is_empty() { "" } else { "; " };
        let _ = write!(message, "{separator}{name}: {cause}");
    }
    if let Some(more) = refused.len().checked_sub(MOST).filter(|more| *more > 0) {
        let _ = write!(message, "; and {more} more");
    }
    Some(Status { code: INVALID_ARGUMENT, message })
}

/// The node is told with the first request of a stream.
#[derive(Debug)]
pub struct Introduction {
    node: Node,
    done: bool,
}

impl Introduction {
    pub fn new(node: Node) -> Self {
        Self { node, done: false }
    }

    pub fn again(&mut self) {
        self.done = false;
    }

    pub fn take(&mut self) -> Option<Node> {
        (!std::mem::replace(&mut self.done, true)).then(|| self.node.clone())
    }
}
