//! Nacos' gRPC API: two calls, which carry JSON, as messages for prost.
//!
//! Written by hand and not generated: generating needs `protoc` on each machine that builds. Numbers and types are those
//! of `nacos_grpc_service.proto` (Nacos 2.0 to 3.x), which has no package; unknown fields are skipped by prost.

use prost::Message;
use std::collections::HashMap;

pub const REQUEST: &str = "/Request/request";
pub const STREAM: &str = "/BiRequestStream/requestBiStream";

/// Every request, answer and push.
#[derive(Clone, PartialEq, Message)]
pub struct Payload {
    #[prost(message, optional, tag = "2")]
    pub metadata: Option<Metadata>,
    #[prost(message, optional, tag = "3")]
    pub body: Option<Any>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Metadata {
    /// The simple name of the Java class that the body is.
    #[prost(string, tag = "3")]
    pub kind: String,
    #[prost(map = "string, string", tag = "7")]
    pub headers: HashMap<String, String>,
}

/// `google.protobuf.Any`, whose type URL nobody sets here.
#[derive(Clone, PartialEq, Message)]
pub struct Any {
    /// JSON.
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

impl Payload {
    pub fn new(kind: &str, body: &serde_json::Value) -> Self {
        let metadata = Metadata { kind: kind.into(), headers: HashMap::new() };
        Self { metadata: Some(metadata), body: Some(Any { value: body.to_string().into_bytes() }) }
    }

    /// With that header among its metadata, which is where Nacos wants an access token.
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        self.metadata.get_or_insert_default().headers.insert(name.into(), value.into());
        self
    }

    pub fn kind(&self) -> &str {
        self.metadata.as_ref().map_or("", |metadata| &metadata.kind)
    }

    pub fn json(&self) -> &[u8] {
        self.body.as_ref().map_or(&[], |body| &body.value)
    }
}
