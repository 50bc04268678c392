//! One of Eureka's servers, and what is asked of it.

use super::{
    decode::{self, Answer},
    gzip,
    own::Own,
};
use crate::{
    config::{EurekaAddress, EurekaRegistry, Tls},
    registry::{
        RegistryError, SetupError,
        http::HttpClient,
        link::{self, Connection},
        server::Server,
    },
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, StatusCode,
    header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE},
};
use http_body_util::Full;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

/// The longest time that one answer may take.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// Unpacked. An answer of 10,000 instances is about 12 MiB.
const LARGEST_ANSWER: usize = 64 << 20;

/// As Eureka's own clients leave ids, so that logs of either kind can be compared.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b':');

/// What each server is asked with.
pub struct Connect {
    tls: Tls,
    authorization: Option<HeaderValue>,
    connect_to: EurekaAddress,
}

/// A server that is in use.
pub struct Peer {
    http: HttpClient,
    authorization: Option<HeaderValue>,
    connect_to: EurekaAddress,
    has_worked: AtomicBool,
    no_deltas: AtomicBool,
}

impl Connect {
    pub fn new(servers: &[Server], config: &EurekaRegistry) -> Result<Self, SetupError> {
        // Nobody hears of files that cannot be used but at the start.
        for server in servers {
            HttpClient::new(server.clone(), &config.tls)?;
        }
        let authorization = config.user.as_ref().map(|user| {
            let password = config.password.as_ref().map_or("", |password| password.expose());
            let mut value = HeaderValue::try_from(format!("Basic {}", BASE64.encode(format!("{user}:{password}"))))?;
            value.set_sensitive(true);
            Ok::<_, http::header::InvalidHeaderValue>(value)
        });
        let authorization = authorization.transpose().map_err(|_| SetupError::Token)?;
        Ok(Self { tls: config.tls.clone(), authorization, connect_to: config.connect_to })
    }
}

impl link::Connect for Connect {
    type Connection = Peer;

    /// The first request will show whether it is there.
    async fn connect(&self, server: &Server) -> Result<Peer, RegistryError> {
        let http = HttpClient::new(server.clone(), &self.tls)
            .map_err(|error| RegistryError::Unreachable { server: server.text.clone(), cause: error.to_string() })?;
        Ok(Peer {
            http,
            authorization: self.authorization.clone(),
            connect_to: self.connect_to,
            has_worked: AtomicBool::new(false),
            no_deltas: AtomicBool::new(false),
        })
    }
}

impl Connection for Peer {
    fn is_closed(&self) -> bool {
        false
    }

    fn has_worked(&self) -> bool {
        self.has_worked.load(Ordering::Relaxed)
    }
}

impl Peer {
    /// The server, as errors name it.
    pub fn server(&self) -> &str {
        self.http.server()
    }

    /// All instances.
    pub async fn all(&self) -> Result<Answer, RegistryError> {
        let (status, body) = self.get("/apps").await?;
        if status != StatusCode::OK {
            return Err(self.refusal(status, &body));
        }
        let answer = self.read(&body)?;
        // What has a hash has instances.
        if answer.listed.is_empty() && !answer.hash.is_empty() {
            return Err(self.http.protocol(format!("no instances, but `{}` for their number", answer.hash)));
        }
        self.has_worked.store(true, Ordering::Relaxed);
        Ok(answer)
    }

    /// What changed in the last minutes. `None` if this server tells no such thing.
    pub async fn delta(&self) -> Result<Option<Answer>, RegistryError> {
        if self.no_deltas.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let (status, body) = self.get("/apps/delta").await?;
        match status {
            StatusCode::OK => self.read(&body).map(Some),
            // They are disabled, or this server has none. If it is the rights that are missing, the full answer will say.
            StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => {
                self.no_deltas.store(true, Ordering::Relaxed);
                Ok(None)
            }
            _ => Err(self.refusal(status, &body)),
        }
    }

    /// The instance `id` of `app`. `None`: it is not there.
    pub async fn own(&self, app: &str, id: &str) -> Result<Option<Own>, RegistryError> {
        let (status, body) = self.get(&path(app, id)).await?;
        match status {
            StatusCode::OK => Own::read(&body).map(Some).map_err(|cause| self.http.protocol(cause)),
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(self.refusal(status, &body)),
        }
    }

    /// Puts an instance in, over what is there.
    pub async fn register(&self, app: &str, instance: &Value) -> Result<(), RegistryError> {
        let path = format!("/apps/{}", utf8_percent_encode(app, SEGMENT));
        let (status, body) = self.send(Method::POST, &path, instance.to_string().into()).await?;
        match status {
            StatusCode::OK | StatusCode::NO_CONTENT => {
                self.has_worked.store(true, Ordering::Relaxed);
                Ok(())
            }
            StatusCode::FORBIDDEN => Err(RegistryError::Refused {
                server: self.http.server().into(),
                cause: format!("{status}; with Spring Security, its CSRF protection must be off for `/eureka/**`"),
            }),
            _ => Err(self.refusal(status, &body)),
        }
    }

    /// Starts the lease anew. False: the server does not have it, or an older one.
    pub async fn renew(&self, app: &str, id: &str, status: &str, dirty: u64) -> Result<bool, RegistryError> {
        let path = format!("{}?status={status}&lastDirtyTimestamp={dirty}", path(app, id));
        let (status, body) = self.send(Method::PUT, &path, Bytes::new()).await?;
        match status {
            StatusCode::OK => {
                self.has_worked.store(true, Ordering::Relaxed);
                Ok(true)
            }
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.refusal(status, &body)),
        }
    }

    /// Takes an instance out, if it is there.
    pub async fn remove(&self, app: &str, id: &str) -> Result<(), RegistryError> {
        let (status, body) = self.send(Method::DELETE, &path(app, id), Bytes::new()).await?;
        match status {
            StatusCode::OK | StatusCode::NO_CONTENT | StatusCode::NOT_FOUND => Ok(()),
            _ => Err(self.refusal(status, &body)),
        }
    }

    async fn get(&self, path: &str) -> Result<(StatusCode, Vec<u8>), RegistryError> {
        self.send(Method::GET, path, Bytes::new()).await
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<(StatusCode, Vec<u8>), RegistryError> {
        let mut request = Request::builder().method(method).uri(path);
        // Without the first it would be XML.
        request = request.header(ACCEPT, "application/json").header(ACCEPT_ENCODING, "gzip");
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let answer = self.http.send(request.body(Full::new(body)), ANSWER_LIMIT).await?;
        let is_packed = answer.headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding == "gzip");
        let body = if is_packed {
            gzip::unpack(&answer.body, LARGEST_ANSWER).map_err(|cause| self.http.protocol(cause))?
        } else {
            answer.body.to_vec()
        };
        Ok((answer.status, body))
    }

    fn read(&self, body: &[u8]) -> Result<Answer, RegistryError> {
        let answer = decode::answer(body, self.connect_to);
        answer.map_err(|cause| self.http.protocol(format!("{cause}; is it a Eureka server?")))
    }

    /// What a status other than 200 means.
    fn refusal(&self, status: StatusCode, body: &[u8]) -> RegistryError {
        match status {
            StatusCode::UNAUTHORIZED => {
                let expected = match &self.authorization {
                    Some(_) => "expected another `user` or `password`",
                    None => "expected a `user` and a `password`",
                };
                RegistryError::Refused { server: self.http.server().into(), cause: format!("{status}; {expected}") }
            }
            StatusCode::NOT_FOUND => self.http.protocol(format!(
                "{status}; is the path of `servers` right? It is `/eureka` with Spring Cloud, `/eureka/v2` with Netflix"
            )),
            _ => self.http.refusal(status, body),
        }
    }
}

fn path(app: &str, id: &str) -> String {
    format!("/apps/{}/{}", utf8_percent_encode(app, SEGMENT), utf8_percent_encode(id, SEGMENT))
}
