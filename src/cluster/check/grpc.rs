//! The gRPC layer of a check: `grpc.health.v1.Health/Check`. (grpc.io, "GRPC Health Checking Protocol".)

use super::{
    Failure, Layer, Outcome,
    http::{AGENT, Target, broken},
    while_driving,
};
use crate::net::io::Stream;
use bytes::{BufMut, Bytes, BytesMut};
use http::{
    HeaderMap, Method, Request, StatusCode, Version,
    header::{CONTENT_TYPE, TE, USER_AGENT},
};
use prost::Message;
use std::time::Duration;

const CHECK: &str = "/grpc.health.v1.Health/Check";
/// An answer is a few bytes.
const MOST_READ: usize = 16 * 1024;
const NOT_FOUND: u32 = 5;
const UNIMPLEMENTED: u32 = 12;
const SERVING: i32 = 1;

#[derive(Clone, PartialEq, Message)]
struct CheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, Message)]
struct CheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Asks for the health of `service` and judges the answer.
pub async fn check(stream: Stream, target: &Target, service: &str, timeout: Duration) -> Outcome {
    let request = request(target, timeout).map_err(|error| failure(error.to_string()))?;
    let broke = |error: h2::Error| failure(broken(&error));
    let (mut sender, connection) = h2::client::handshake(stream).await.map_err(broke)?;
    let exchange = async {
        let (response, mut sending) = sender.send_request(request, false).map_err(broke)?;
        sending.send_data(message(service), true).map_err(broke)?;
        let response = response.await.map_err(broke)?;
        let is_grpc =
            response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        if response.status() != StatusCode::OK || !is_grpc {
            return Err(failure(format!("status {} and no gRPC; is it a gRPC server?", response.status().as_u16())));
        }
        // Where there is no message, the status comes with the head.
        if response.headers().contains_key("grpc-status") {
            return judge(response.headers(), &[], service);
        }
        let (mut body, mut read) = (response.into_body(), BytesMut::new());
        while let Some(data) = body.data().await {
            read.extend_from_slice(&data.map_err(broke)?);
            if read.len() > MOST_READ {
                return Err(failure("its answer is too long"));
            }
        }
        let trailers = body.trailers().await.map_err(broke)?.unwrap_or_default();
        judge(&trailers, &read, service)
    };
    while_driving(exchange, connection).await
}

fn request(target: &Target, timeout: Duration) -> Result<Request<()>, http::Error> {
    Request::builder()
        .method(Method::POST)
        .uri(target.uri(target.authority.clone(), CHECK)?)
        .version(Version::HTTP_2)
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .header(USER_AGENT, AGENT)
        // At most eight digits.
        .header("grpc-timeout", format!("{}m", timeout.as_millis().clamp(1, 99_999_999)))
        .body(())
}

/// A message as gRPC frames it: not compressed, its length, itself.
fn message(service: &str) -> Bytes {
    let request = CheckRequest { service: service.into() };
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(request.encoded_len()).unwrap_or(u32::MAX));
    framed.extend_from_slice(&request.encode_to_vec());
    framed.freeze()
}

fn judge(trailers: &HeaderMap, body: &[u8], service: &str) -> Outcome {
    let text = |name: &str| trailers.get(name).and_then(|value| value.to_str().ok());
    let code: u32 =
        text("grpc-status").and_then(|code| code.parse().ok()).ok_or_else(|| failure("there is no status"))?;
    match code {
        0 => {}
        UNIMPLEMENTED => {
            let cause = "UNIMPLEMENTED: the server has no grpc.health.v1.Health; add it there, or check in another way";
            return Err(failure(cause));
        }
        NOT_FOUND => return Err(failure(format!("NOT_FOUND: its health service does not know `{service}`"))),
        code => return Err(failure(format!("code {code}: {}", text("grpc-message").unwrap_or_default()))),
    }
    let message = match body {
        [0, a, b, c, d, message @ ..] if message.len() == u32::from_be_bytes([*a, *b, *c, *d]) as usize => message,
        _ => return Err(failure("its answer is not one message")),
    };
    match CheckResponse::decode(message).map_err(|error| failure(error.to_string()))?.status {
        SERVING => Ok(()),
        2 => Err(failure("NOT_SERVING")),
        3 => Err(failure("SERVICE_UNKNOWN")),
        _ => Err(failure("UNKNOWN")),
    }
}

fn failure(cause: impl Into<String>) -> Failure {
    Failure::new(Layer::Grpc, cause)
}
