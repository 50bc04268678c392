//! Access tokens: had for user and password over HTTP, whatever the services are followed by.

use crate::{
    config::Secret,
    registry::{
        RegistryError,
        http::{Answer, HttpClient},
    },
};
use arc_swap::ArcSwap;
use http::{Method, Request, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use std::{sync::Arc, time::Duration};
use tokio::{sync::OnceCell, time::Instant};

/// Where requests and gRPC's metadata have the token.
pub const HEADER: &str = "accessToken";

const TIMEOUT: Duration = Duration::from_secs(8);
/// However many followers are refused: a login with a token that is younger will not help.
const RENEWAL_PAUSE: Duration = Duration::from_secs(5);
/// After which credentials that were refused are tried again, should nothing ask for it before.
const REFUSAL_LIFETIME: Duration = Duration::from_secs(60);
/// Of Nacos 3, and of all before.
const PATHS: [&str; 2] = ["/v3/auth/user/login", "/v1/auth/users/login"];

/// User and password.
#[derive(Debug, Clone)]
pub struct Credentials {
    pub user: String,
    pub password: Secret,
}

/// The token of one server, fetched by whoever needs it first.
pub struct Login {
    http: Arc<HttpClient>,
    credentials: Option<Credentials>,
    cell: ArcSwap<TokenCell>,
}

pub type TokenCell = OnceCell<Token>;

/// What a login gave.
#[derive(Debug, Clone)]
pub struct Token {
    /// `None`: the server has authentication off, or refused the login.
    text: Option<String>,
    /// Credentials that are wrong are no hindrance while the server does not ask for any.
    pub refused: Option<RegistryError>,
    since: Instant,
    /// When to have a new one, some time before this one ends.
    until: Instant,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Granted {
    access_token: Option<String>,
    /// In seconds.
    token_ttl: Option<u64>,
}

impl Login {
    pub fn new(http: Arc<HttpClient>, credentials: Option<Credentials>) -> Self {
        Self { http, credentials, cell: ArcSwap::default() }
    }

    /// The token for a request, if there are credentials and the server wants any; and its cell, to be given to
    /// [`Self::renew`] if the server does not accept it.
    pub async fn token(&self) -> Result<(Arc<TokenCell>, Option<String>), RegistryError> {
        let mut cell = self.cell.load_full();
        let Some(credentials) = &self.credentials else { return Ok((cell, None)) };
        if cell.get().is_some_and(|token| token.until <= Instant::now()) {
            self.forget(&cell);
            cell = self.cell.load_full();
        }
        let token = cell.get_or_try_init(|| self.log_in(credentials)).await?.text.clone();
        Ok((cell, token))
    }

    pub fn has_credentials(&self) -> bool {
        self.credentials.is_some()
    }

    /// A request with the token. The answer, whatever its status, unless that is about the login.
    pub async fn send(&self, method: Method, path: &str) -> Result<Answer, RegistryError> {
        let mut first = true;
        loop {
            let (cell, token) = self.token().await?;
            let mut request = Request::builder().method(method.clone()).uri(path);
            if let Some(token) = token {
                request = request.header(HEADER, token);
            }
            let answer = self.http.send(request.body(Full::default()), TIMEOUT).await?;
            if !matches!(answer.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
                return Ok(answer);
            }
            if !std::mem::take(&mut first) || !self.renew(&cell) {
                let refused = cell.get().and_then(|token| token.refused.clone());
                return Err(refused.unwrap_or_else(|| self.http.refusal(answer.status, &answer.body)));
            }
        }
    }

    /// The server did not accept what is in `cell`. Whether it is worth another try with another login.
    pub fn renew(&self, cell: &Arc<TokenCell>) -> bool {
        let worth = self.credentials.is_some() && cell.get().is_none_or(|token| token.since.elapsed() > RENEWAL_PAUSE);
        if worth {
            self.forget(cell);
        }
        worth
    }

    fn forget(&self, stale: &Arc<TokenCell>) {
        self.cell.compare_and_swap(stale, Arc::default());
    }

    async fn log_in(&self, credentials: &Credentials) -> Result<Token, RegistryError> {
        let now = Instant::now();
        match self.answer(credentials).await {
            Ok(answer) => {
                let ttl = Duration::from_secs(answer.token_ttl.unwrap_or(600).min(1 << 30));
                Ok(Token { text: answer.access_token, refused: None, since: now, until: now + ttl.mul_f64(0.9) })
            }
            Err(error @ RegistryError::Refused { .. }) => {
                Ok(Token { text: None, refused: Some(error), since: now, until: now + REFUSAL_LIFETIME })
            }
            Err(error) => Err(error),
        }
    }

    async fn answer(&self, credentials: &Credentials) -> Result<Granted, RegistryError> {
        let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let form =
            format!("username={}&password={}", encoded(&credentials.user), encoded(credentials.password.expose()));
        for (index, path) in PATHS.into_iter().enumerate() {
            let request = Request::post(path)
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(Full::from(form.clone()));
            let answer = match self.http.send(request, TIMEOUT).await {
                Ok(answer) => answer,
                // Nacos 2.3 answers a wrong password with the status 0, which is none.
                Err(RegistryError::Unreachable { cause, .. }) if cause.contains("status-code") => {
                    return Err(self.refused(credentials, "without a valid status"));
                }
                Err(error) => return Err(error),
            };
            match answer.status {
                StatusCode::OK => {
                    return serde_json::from_slice(&answer.body).map_err(|error| self.http.protocol(error));
                }
                StatusCode::NOT_FOUND
                | StatusCode::METHOD_NOT_ALLOWED
                | StatusCode::GONE
                | StatusCode::NOT_IMPLEMENTED
                    if index + 1 < PATHS.len() => {}
                status
                @ (StatusCode::TOO_MANY_REQUESTS | StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE) => {
                    return Err(self.http.refusal(status, &answer.body));
                }
                // Among them 500, which is what Nacos 2 and 3 answer to a wrong password or an unknown user.
                status => return Err(self.refused(credentials, &format!("with {status}"))),
            }
        }
        Err(self.http.protocol("it has no login; is it a Nacos server?"))
    }

    fn refused(&self, credentials: &Credentials, how: &str) -> RegistryError {
        RegistryError::Refused {
            server: self.http.server().into(),
            cause: format!("it answered the login of `{}` {how}; are user and password right?", credentials.user),
        }
    }
}
