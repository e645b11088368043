//! The answer to a challenge, when the caller brought no credentials: a token from the token service, fetched once per
//! repository and kept until it expires, or the configured user and password.
//!
//! Docker's token specification, distribution "Token Authentication" (GET) and "OAuth2" (POST with a refresh token).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Uri, header};
use http_body_util::Full;
use serde::Deserialize;
use tokio::time::Instant;

use super::challenge::{self, Challenge};
use super::credentials::Credential;
use super::endpoint::{Endpoint, Located};
use super::request::{Said, read_document, send};
use super::{Upstream, UpstreamError, retry};
use crate::reference::Repository;
use crate::secret::Secret;

/// Repositories whose tokens are kept.
const TOKENS_MAX: usize = 1024;
/// The longest answer of a token service we read, in bytes.
const TOKEN_LENGTH_MAX: usize = 64 * 1024;
/// How long a token lives if its service does not say (token specification).
const LIFETIME_DEFAULT_S: u64 = 60;
/// The longest we keep a token, and how long a password that worked is sent without being asked for.
const LIFETIME_MAX_S: u64 = 60 * 60;
/// How long before its end a token is not used any more.
const EXPIRY_MARGIN: Duration = Duration::from_secs(10);

/// What answered the last challenge of each repository. A pull has one scope per repository, so the repository is the key.
#[derive(Default)]
pub(super) struct Tokens(Mutex<BTreeMap<Repository, Arc<Slot>>>);

#[derive(Default)]
struct Slot {
    /// Held while a token is fetched: everybody else waits for that one.
    turn: tokio::sync::Mutex<()>,
    granted: Mutex<Option<Granted>>,
}

#[derive(Clone)]
pub(super) struct Granted {
    pub(super) authorization: Secret,
    pub(super) until: Instant,
}

impl Tokens {
    /// The `Authorization` that is good for a repository now.
    pub(super) fn current(&self, repository: &Repository) -> Option<Secret> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(repository)?.current()
    }

    fn slot(&self, repository: &Repository) -> Arc<Slot> {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get(repository) {
            return Arc::clone(slot);
        }
        if slots.len() >= TOKENS_MAX {
            slots.retain(|_, slot| slot.current().is_some());
        }
        while slots.len() >= TOKENS_MAX {
            slots.pop_first();
        }
        Arc::clone(slots.entry(repository.clone()).or_default())
    }
}

impl Slot {
    fn current(&self) -> Option<Secret> {
        let granted = self.granted.lock().unwrap_or_else(PoisonError::into_inner);
        granted.as_ref().filter(|granted| granted.until > Instant::now()).map(|granted| granted.authorization.clone())
    }

    fn set(&self, granted: Option<Granted>) {
        *self.granted.lock().unwrap_or_else(PoisonError::into_inner) = granted;
    }
}

impl Upstream {
    /// Finds an `Authorization` that answers a challenge; `refused` was sent and did not do. `None` when there is none: the
    /// challenge is the caller's to answer.
    pub(super) async fn answer_challenge(
        &self,
        endpoint: &Endpoint,
        located: &Located,
        challenge: &str,
        refused: Option<&Secret>,
    ) -> Option<Secret> {
        let challenge = challenge::parse(challenge)?;
        let slot = self.0.tokens.slot(&located.account);
        let _turn = slot.turn.lock().await;
        if let Some(current) = slot.current().filter(|current| Some(current) != refused) {
            return Some(current);
        }
        slot.set(None);
        match self.grant(endpoint, located, &challenge).await {
            Ok(granted) => {
                let authorization = granted.authorization.clone();
                slot.set(Some(granted));
                Some(authorization)
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(repository = %located.account, %error, cause, "could not answer the registry's challenge");
                None
            }
        }
    }

    async fn grant(
        &self,
        endpoint: &Endpoint,
        located: &Located,
        challenge: &Challenge,
    ) -> Result<Granted, UpstreamError> {
        let credential = self.0.credentials.find(&located.account).await;
        match (challenge, credential) {
            (Challenge::Basic, Some(Credential::Basic(authorization))) => {
                let until = Instant::now() + Duration::from_secs(LIFETIME_MAX_S);
                Ok(Granted { authorization, until })
            }
            (Challenge::Basic, Some(Credential::Identity(_)) | None) => {
                Err(UpstreamError::Request("it wants a user and a password, and none is configured".to_owned()))
            }
            (Challenge::Bearer { realm, service, scopes }, credential) => {
                let default_scope = [format!("repository:{}:pull", located.name)];
                let scopes = if scopes.is_empty() { &default_scope } else { scopes.as_slice() };
                self.buy_token(endpoint, realm, service.as_deref(), scopes, credential.as_ref()).await
            }
        }
    }

    /// Asks a token service that `endpoint` names for a token.
    pub(super) async fn buy_token(
        &self,
        endpoint: &Endpoint,
        realm: &str,
        service: Option<&str>,
        scopes: &[String],
        credential: Option<&Credential>,
    ) -> Result<Granted, UpstreamError> {
        let mut pairs: Vec<(&str, &str)> = Vec::new();
        pairs.extend(service.map(|service| ("service", service)));
        pairs.extend(scopes.iter().map(|scope| ("scope", scope.as_str())));
        let realm = checked_realm(realm, endpoint)?;
        retry(self.0.timing, || self.fetch_token(endpoint, &realm, &pairs, credential)).await
    }

    async fn fetch_token(
        &self,
        endpoint: &Endpoint,
        realm: &str,
        pairs: &[(&str, &str)],
        credential: Option<&Credential>,
    ) -> Result<Granted, UpstreamError> {
        let request = token_request(realm, pairs, credential)?;
        let response = send(endpoint.client_for(request.uri()), request, self.0.timing).await?;
        let status = response.status();
        let content = read_document(response.into_body(), TOKEN_LENGTH_MAX, self.0.timing).await;
        match status.as_u16() {
            200..=299 => granted(&content?),
            status @ 500.. => Err(UpstreamError::Server { status, retry_after: None }),
            429 => Err(UpstreamError::RateLimited { retry_after: None }),
            code => {
                let said = content.map_or_else(|_| Said::of(status, b""), |content| Said::of(status, &content));
                let message = format!("the token service refused: {}", said.message);
                Err(UpstreamError::Refused { status: code, message })
            }
        }
    }
}

/// Credentials go to a token service over TLS, unless the registry itself is reached without.
fn checked_realm(realm: &str, endpoint: &Endpoint) -> Result<String, UpstreamError> {
    let uri: Option<Uri> = realm.parse().ok();
    match uri.as_ref().and_then(Uri::scheme_str) {
        Some("https") => Ok(realm.to_owned()),
        Some("http") if endpoint.is_plain() => Ok(realm.to_owned()),
        Some(_) | None => Err(UpstreamError::Protocol("the challenge's realm is not a URL with TLS".to_owned())),
    }
}

fn token_request(
    realm: &str,
    pairs: &[(&str, &str)],
    credential: Option<&Credential>,
) -> Result<Request<Full<Bytes>>, UpstreamError> {
    let fields: Vec<_> = pairs.iter().map(|(name, value)| format!("{name}={}", escaped(value))).collect();
    let built = match credential {
        Some(Credential::Identity(token)) => {
            let token = escaped(token.expose());
            let form = format!("grant_type=refresh_token&client_id=shoal&refresh_token={token}&{}", fields.join("&"));
            Request::builder()
                .method(Method::POST)
                .uri(realm)
                .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(Full::from(form))
        }
        Some(Credential::Basic(authorization)) => {
            let value = authorization.header();
            let value = value.ok_or_else(|| UpstreamError::Request("the password is no header value".to_owned()))?;
            get(realm, &fields).header(header::AUTHORIZATION, value).body(Full::default())
        }
        None => get(realm, &fields).body(Full::default()),
    };
    built.map_err(|_| UpstreamError::Protocol("the challenge's realm is not a URL".to_owned()))
}

fn get(realm: &str, fields: &[String]) -> http::request::Builder {
    let separator = if realm.contains('?') { '&' } else { '?' };
    Request::builder().uri(format!("{realm}{separator}{}", fields.join("&")))
}

fn granted(content: &[u8]) -> Result<Granted, UpstreamError> {
    #[derive(Deserialize)]
    struct Token {
        token: Option<String>,
        access_token: Option<String>,
        expires_in: Option<u64>,
    }
    // What serde_json would say may quote the token.
    let refused = || UpstreamError::Protocol("the token service's answer holds no token".to_owned());
    let answer: Token = serde_json::from_slice(content).map_err(|_| refused())?;
    let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty()).ok_or_else(refused)?;
    let lifetime = Duration::from_secs(answer.expires_in.unwrap_or(LIFETIME_DEFAULT_S).min(LIFETIME_MAX_S));
    let authorization = Secret::new(format!("Bearer {token}"));
    Ok(Granted { authorization, until: Instant::now() + lifetime.saturating_sub(EXPIRY_MARGIN) })
}

/// Percent-encodes a value of a query or form.
fn escaped(value: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' | b'/' => {
                out.push(char::from(byte));
            }
            other => write!(out, "%{other:02X}").expect("writing to a string cannot fail"),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_request_escapes_its_values() {
        let pairs = [("service", "a b&c"), ("scope", "repository:x/y:pull,push")];
        let request = token_request("https://auth.example/token?x=1", &pairs, None).unwrap();
        let expected = "https://auth.example/token?x=1&service=a%20b%26c&scope=repository:x/y:pull%2Cpush";
        assert_eq!(request.uri().to_string(), expected);
        assert!(request.headers().is_empty());
    }

    #[test]
    fn a_refresh_token_is_posted_and_never_in_the_url() {
        let credential = Credential::Identity(Secret::new("s+t"));
        let request = token_request("https://auth.example/token", &[("scope", "s")], Some(&credential)).unwrap();
        assert_eq!(request.method(), Method::POST);
        assert_eq!(request.uri(), "https://auth.example/token");
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_used_until_shortly_before_its_end() {
        let slot = Slot::default();
        slot.set(Some(granted(br#"{"access_token":"t","expires_in":60}"#).unwrap()));
        assert_eq!(slot.current(), Some(Secret::new("Bearer t")));
        tokio::time::advance(Duration::from_secs(51)).await;
        assert_eq!(slot.current(), None);
    }

    #[test]
    fn an_answer_without_token_is_refused() {
        for answer in ["", "{}", r#"{"token":""}"#, r#"{"token":1}"#] {
            assert!(granted(answer.as_bytes()).is_err(), "{answer}");
        }
    }

    #[test]
    fn the_number_of_tokens_is_bounded() {
        let tokens = Tokens::default();
        for number in 0..TOKENS_MAX + 10 {
            tokens.slot(&Repository::new("r.example", &format!("n{number}")).unwrap());
        }
        assert!(tokens.0.lock().unwrap().len() <= TOKENS_MAX);
    }
}
