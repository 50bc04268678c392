//! The HTTP layer of a check.

use super::{Failure, Layer, Outcome, while_driving};
use crate::{
    config::HttpCheck,
    error::root_cause,
    net::io::Stream,
    registry::{Address, Protocol},
};
use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, Uri, Version,
    header::{CONNECTION, HOST, USER_AGENT},
    uri::Authority,
};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use memchr::memmem;
use std::error::Error;

/// What checks call themselves.
pub const AGENT: HeaderValue = HeaderValue::from_static(concat!("pillion-health-check/", env!("CARGO_PKG_VERSION")));
/// As much of a body is read to find a text in it.
const MOST_READ: usize = 64 * 1024;

/// Who is asked.
pub struct Target {
    pub secure: bool,
    /// The name that is asked for.
    pub authority: Authority,
}

/// The service's name, as callers use it, or the address if the name is not of that form.
pub fn authority(service: &str, address: &Address) -> Authority {
    let name = service.parse().ok().filter(|_| !service.contains('@'));
    name.or_else(|| address.to_string().parse().ok()).unwrap_or_else(|| Authority::from_static("localhost"))
}

impl Target {
    /// A URI as HTTP/2 wants it.
    pub fn uri(&self, authority: Authority, path: &str) -> Result<Uri, http::Error> {
        let scheme = if self.secure { "https" } else { "http" };
        Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build()
    }
}

/// Sends the request and judges the response.
pub async fn check(stream: Stream, protocol: Protocol, target: &Target, check: &HttpCheck) -> Outcome {
    let request = request(protocol, target, check).map_err(|error| failure(error.to_string()))?;
    match protocol {
        Protocol::Http1 => over_http1(stream, request, check).await,
        Protocol::Http2 => over_http2(stream, request, check).await,
    }
}

fn request(protocol: Protocol, target: &Target, check: &HttpCheck) -> Result<Request<Empty<Bytes>>, http::Error> {
    let authority = match &check.host {
        Some(host) => host.parse()?,
        None => target.authority.clone(),
    };
    let request = Request::builder().method(Method::from_bytes(check.method.as_bytes())?).header(USER_AGENT, AGENT);
    let request = match protocol {
        Protocol::Http1 => request.uri(&check.path).header(HOST, authority.as_str()).header(CONNECTION, "close"),
        Protocol::Http2 => request.uri(target.uri(authority, &check.path)?).version(Version::HTTP_2),
    };
    request.body(Empty::new())
}

async fn over_http1(stream: Stream, request: Request<Empty<Bytes>>, check: &HttpCheck) -> Outcome {
    let broke = |error: hyper::Error| failure(broken(&error));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broke)?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(broke)?;
        let Some(text) = judge_status(&response, check)? else { return Ok(()) };
        let (mut body, mut read) = (response.into_body(), Vec::new());
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(broke)?;
            if contains(&mut read, frame.data_ref().map_or(&[], |data| data), text) {
                return Ok(());
            }
            if read.len() >= MOST_READ {
                break;
            }
        }
        Err(missing(text))
    };
    while_driving(exchange, connection).await
}

async fn over_http2(stream: Stream, request: Request<Empty<Bytes>>, check: &HttpCheck) -> Outcome {
    let broke = |error: h2::Error| failure(broken(&error));
    let (mut sender, connection) = h2::client::handshake(stream).await.map_err(broke)?;
    let exchange = async {
        let (response, _) = sender.send_request(request.map(|_| ()), true).map_err(broke)?;
        let response = response.await.map_err(broke)?;
        let Some(text) = judge_status(&response, check)? else { return Ok(()) };
        let (mut body, mut read) = (response.into_body(), Vec::new());
        while let Some(data) = body.data().await {
            let data = data.map_err(broke)?;
            if contains(&mut read, &data, text) {
                return Ok(());
            }
            if read.len() >= MOST_READ {
                break;
            }
            // If it fails, the stream has ended, which is seen next.
            let _ = body.flow_control().release_capacity(data.len());
        }
        Err(missing(text))
    };
    while_driving(exchange, connection).await
}

/// The text that the body must contain for the check to pass, if that is left to see.
fn judge_status<'c, B>(response: &Response<B>, check: &'c HttpCheck) -> Result<Option<&'c str>, Failure> {
    let status = response.status().as_u16();
    if !check.statuses.iter().any(|range| range.contains(status)) {
        let expected: Vec<String> = check.statuses.iter().map(ToString::to_string).collect();
        return Err(failure(format!("status {status}; expected {}", expected.join(", "))));
    }
    Ok(check.body.as_deref())
}

/// Whether `text` is in what was read with `more`, of which as much is kept as is needed to find it.
fn contains(read: &mut Vec<u8>, more: &[u8], text: &str) -> bool {
    read.extend_from_slice(&more[..more.len().min(MOST_READ - read.len())]);
    memmem::find(read, text.as_bytes()).is_some()
}

fn missing(text: &str) -> Failure {
    failure(format!("the body does not contain `{text}`"))
}

fn failure(cause: impl Into<String>) -> Failure {
    Failure::new(Layer::Http, cause)
}

/// What there is to say of an error of the connection.
pub fn broken(error: &(dyn Error + 'static)) -> String {
    format!("no response: {}", root_cause(error))
}
