//! One request to a registry: its mirrors and itself, redirects, the answer to a challenge, and what a status means. Retries
//! are the caller's.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use serde::Deserialize;

use super::endpoint::{Endpoint, Located, resolve, same_origin};
use super::tls::HttpClient;
use super::{Access, Timing, Upstream, UpstreamError};
use crate::error::OciCode;
use crate::secret::Secret;
use crate::{MANIFEST_ACCEPT, MANIFEST_LENGTH_MAX, excerpt};

/// Redirects followed in a row.
const REDIRECTS_MAX: usize = 5;
/// The longest error body we read for its message, in bytes.
const ERROR_LENGTH_MAX: usize = 16 * 1024;
/// The longest `Retry-After` we believe.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 60 * 60);
const USER_AGENT: &str = concat!("shoal/", env!("CARGO_PKG_VERSION"));

/// What is asked of a registry.
pub(super) struct Ask<'a> {
    pub(super) access: &'a Access,
    method: Method,
    /// What follows `/v2/<name>/`.
    path: &'a str,
    accept: Option<String>,
    range: Option<String>,
    /// What is unknown if the answer is 404 and does not say.
    unknown: OciCode,
    /// Only whether we may have it matters: a redirect says yes and is not followed.
    permission_only: bool,
}

impl<'a> Ask<'a> {
    pub(super) fn new(access: &'a Access, method: Method, path: &'a str, unknown: OciCode) -> Self {
        Self { access, method, path, accept: None, range: None, unknown, permission_only: false }
    }

    /// Asks for one of these media types, or those of manifests.
    pub(super) fn accept(mut self, types: &[String]) -> Self {
        self.accept = Some(if types.is_empty() { MANIFEST_ACCEPT.join(", ") } else { types.join(", ") });
        self
    }

    /// Asks for one of these media types, or any.
    pub(super) fn listing(mut self, types: &[String]) -> Self {
        self.accept = (!types.is_empty()).then(|| types.join(", "));
        self
    }

    /// Asks for the bytes from an offset on.
    pub(super) fn starting_at(mut self, offset: u64) -> Self {
        self.range = (offset > 0).then(|| format!("bytes={offset}-"));
        self
    }

    /// Asks for one byte, to see the whole length beside it.
    pub(super) fn first_byte(mut self) -> Self {
        self.range = Some("bytes=0-0".to_owned());
        self
    }

    pub(super) fn permission_only(mut self) -> Self {
        self.permission_only = true;
        self
    }

    fn request(&self, uri: &Uri, authorization: Option<&Secret>) -> Result<Request<Full<Bytes>>, UpstreamError> {
        let mut request = Request::builder()
            .method(self.method.clone())
            .uri(uri)
            .header(header::USER_AGENT, USER_AGENT)
            // Content must come as it was digested.
            .header(header::ACCEPT_ENCODING, "identity");
        if let Some(accept) = &self.accept {
            request = request.header(header::ACCEPT, accept);
        }
        if let Some(range) = &self.range {
            request = request.header(header::RANGE, range);
        }
        if let Some(authorization) = authorization {
            let value = authorization.header();
            let value = value.ok_or_else(|| UpstreamError::Request("authorization is no header value".to_owned()))?;
            request = request.header(header::AUTHORIZATION, value);
        }
        request.body(Full::default()).map_err(|error| UpstreamError::Request(error.to_string()))
    }
}

/// An answer, and whether the registry itself gave it.
pub(super) struct Answer {
    pub(super) response: Response<Incoming>,
    pub(super) from_registry: bool,
}

impl Upstream {
    /// Asks once, at the mirrors and then at the registry; an answer that is not a success is an error. The answer of a
    /// mirror carries that as an extension.
    pub(super) async fn ask(&self, ask: &Ask<'_>) -> Result<Response<Incoming>, UpstreamError> {
        self.ask_for(ask, |response| std::future::ready(Ok(response))).await
    }

    /// The same for what `take` makes of an answer: a mirror that answers with nothing of use is passed over too.
    pub(super) async fn ask_for<T, F>(
        &self,
        ask: &Ask<'_>,
        take: impl Fn(Response<Incoming>) -> F,
    ) -> Result<T, UpstreamError>
    where
        F: Future<Output = Result<T, UpstreamError>>,
    {
        self.permits(&ask.access.repository)?;
        if ask.access.is_ticket() {
            return Err(UpstreamError::unauthorized("a ticket is for origins alone"));
        }
        if self.0.offline {
            return Err(UpstreamError::Offline { code: ask.unknown });
        }
        let name = &ask.access.repository.registry;
        let places = self.0.endpoints.find(name);
        for mirror in places.mirrors(ask.access.authorization.is_some()) {
            // There must be time left to ask the next.
            let patience = self.0.timing.headers / 2;
            let asked = async {
                let mut response = self.ask_at(mirror, ask).await?;
                response.extensions_mut().insert(Arc::clone(mirror));
                take(response).await
            };
            let taken = tokio::time::timeout(patience, asked).await;
            match taken.unwrap_or(Err(UpstreamError::Timeout { awaited: "headers", after: patience })) {
                Ok(taken) => {
                    mirror.note_good();
                    return Ok(taken);
                }
                Err(error) => mirror.note(&error),
            }
        }
        take(self.unless_it_rests(name, self.ask_at(&places.registry, ask)).await?).await
    }

    /// Asks a registry itself, unless it is left alone, and heeds what it answers.
    pub(super) async fn unless_it_rests<T>(
        &self,
        registry: &str,
        asked: impl Future<Output = Result<T, UpstreamError>>,
    ) -> Result<T, UpstreamError> {
        match self.rests(registry) {
            Some(left) => Err(UpstreamError::RateLimited { retry_after: Some(left) }),
            None => asked.await.inspect_err(|error| self.heed(registry, error)),
        }
    }

    async fn ask_at(&self, endpoint: &Endpoint, ask: &Ask<'_>) -> Result<Response<Incoming>, UpstreamError> {
        let located = endpoint.locate(&ask.access.repository)?;
        let brought = ask.access.authorization.as_ref();
        let authorization = brought.cloned().or_else(|| self.0.tokens.current(&located.account));
        let mut answer = self.follow(endpoint, &located, ask, authorization.as_ref()).await?;
        if answer.is_challenge()
            && brought.is_none()
            && let Some(challenge) = challenge_of(answer.response.headers())
            && let Some(granted) = self.answer_challenge(endpoint, &located, &challenge, authorization.as_ref()).await
        {
            answer = self.follow(endpoint, &located, ask, Some(&granted)).await?;
        }
        let status = answer.response.status();
        if status.is_success() || (ask.permission_only && status.is_redirection()) {
            return Ok(answer.response);
        }
        Err(answer.into_error(ask.unknown, self.0.timing).await)
    }

    async fn follow(
        &self,
        endpoint: &Endpoint,
        located: &Located,
        ask: &Ask<'_>,
        authorization: Option<&Secret>,
    ) -> Result<Answer, UpstreamError> {
        let registry = endpoint.uri(located, ask.path)?;
        let mut uri = registry.clone();
        // Once the registry has sent us elsewhere its credentials stay behind, even if a host there points back.
        let mut from_registry = true;
        for _ in 0..=REDIRECTS_MAX {
            let request = ask.request(&uri, authorization.filter(|_| from_registry))?;
            let response = send(endpoint.client_for(&uri), request, self.0.timing).await?;
            let location = match response.status().as_u16() {
                301 | 302 | 303 | 307 | 308 if !ask.permission_only => text_header(response.headers(), "location"),
                _ => None,
            };
            let Some(location) = location else { return Ok(Answer { response, from_registry }) };
            let next = resolve(&uri, location)
                .ok_or_else(|| UpstreamError::Protocol("the redirect's location is not a URL".to_owned()))?;
            // Whoever listens on the way could answer with anything, and a tag has no digest to check it by.
            if uri.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(UpstreamError::Protocol("the redirect leads from TLS to plain HTTP".to_owned()));
            }
            uri = next;
            from_registry &= same_origin(&registry, &uri);
            tracing::debug!(host = uri.host(), from_registry, "following a redirect");
        }
        Err(UpstreamError::Protocol(format!("more than {REDIRECTS_MAX} redirects in a row")))
    }
}

impl Answer {
    fn is_challenge(&self) -> bool {
        self.from_registry && self.response.status() == StatusCode::UNAUTHORIZED
    }

    /// What a status that is no success means; what is `unknown` if it is 404 and does not say.
    pub(super) async fn into_error(self, unknown: OciCode, timing: Timing) -> UpstreamError {
        let status = self.response.status();
        let retry_after = retry_after_of(self.response.headers());
        let challenge = challenge_of(self.response.headers());
        let said = Said::read(self.response, timing).await;
        match status {
            StatusCode::UNAUTHORIZED if self.from_registry => {
                UpstreamError::Unauthorized { challenge, message: said.message }
            }
            StatusCode::FORBIDDEN if self.from_registry => UpstreamError::Denied { message: said.message },
            StatusCode::NOT_FOUND => {
                UpstreamError::NotFound { code: said.code.unwrap_or(unknown), message: said.message }
            }
            StatusCode::TOO_MANY_REQUESTS => UpstreamError::RateLimited { retry_after },
            // A time-out the server noticed, and not a fault of the request.
            StatusCode::REQUEST_TIMEOUT => UpstreamError::Server { status: 504, retry_after },
            status if status.is_server_error() => UpstreamError::Server { status: status.as_u16(), retry_after },
            status => UpstreamError::Refused { status: status.as_u16(), message: said.message },
        }
    }
}

/// What an error body says.
pub(super) struct Said {
    code: Option<OciCode>,
    pub(super) message: String,
}

impl Said {
    async fn read(response: Response<Incoming>, timing: Timing) -> Self {
        let status = response.status();
        let content = read_document(response.into_body(), ERROR_LENGTH_MAX, timing).await.unwrap_or_default();
        Self::of(status, &content)
    }

    /// Reads the error body of a registry or of its token service.
    pub(super) fn of(status: StatusCode, content: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Body {
            #[serde(default)]
            errors: Vec<One>,
            /// What Docker Hub's token service says, and those of OAuth2 (RFC 6749, section 5.2).
            #[serde(alias = "error_description")]
            details: Option<serde_json::Value>,
        }
        #[derive(Deserialize)]
        struct One {
            code: String,
            #[serde(default)]
            message: Option<String>,
        }
        let Body { errors, details } =
            serde_json::from_slice(content).unwrap_or(Body { errors: Vec::new(), details: None });
        let first = errors.into_iter().next();
        let code = first.as_ref().map_or(OciCode::Unknown, |one| match one.code.parse() {
            Ok(code) => code,
        });
        let details = details.as_ref().and_then(serde_json::Value::as_str).map(str::to_owned);
        let text = first.and_then(|one| one.message).or(details).filter(|text| !text.is_empty());
        let reason = || status.canonical_reason().unwrap_or("no reason given").to_ascii_lowercase();
        let message = text.map_or_else(reason, |text| excerpt(&text));
        Self { code: (code != OciCode::Unknown).then_some(code), message }
    }
}

/// Sends a request and waits for its headers.
pub(super) async fn send(
    client: &HttpClient,
    request: Request<Full<Bytes>>,
    timing: Timing,
) -> Result<Response<Incoming>, UpstreamError> {
    match tokio::time::timeout(timing.headers, client.request(request)).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) => Err(UpstreamError::transport(error)),
        Err(_) => Err(UpstreamError::Timeout { awaited: "headers", after: timing.headers }),
    }
}

/// The next bytes of a body, or `None` at its end.
pub(super) async fn next_bytes(body: &mut Incoming, timing: Timing) -> Result<Option<Bytes>, UpstreamError> {
    loop {
        let frame = match tokio::time::timeout(timing.progress, body.frame()).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => return Err(UpstreamError::transport(error)),
            Ok(None) => return Ok(None),
            Err(_) => return Err(UpstreamError::Timeout { awaited: "the body", after: timing.progress }),
        };
        match frame.into_data() {
            Ok(bytes) if bytes.is_empty() => {}
            Ok(bytes) => return Ok(Some(bytes)),
            // Trailers.
            Err(_) => {}
        }
    }
}

/// Reads a small document.
pub(super) async fn document(
    response: Response<Incoming>,
    timing: Timing,
) -> Result<(HeaderMap, Bytes), UpstreamError> {
    let (head, body) = response.into_parts();
    Ok((head.headers, read_document(body, MANIFEST_LENGTH_MAX, timing).await?))
}

/// Reads a body of at most `limit` bytes. One of a declared length that ends before it is a transport error.
pub(super) async fn read_document(mut body: Incoming, limit: usize, timing: Timing) -> Result<Bytes, UpstreamError> {
    let declared = hyper::body::Body::size_hint(&body).exact();
    if declared.is_some_and(|length| length > limit as u64) {
        return Err(UpstreamError::TooLong { limit });
    }
    let mut content = BytesMut::new();
    while let Some(bytes) = next_bytes(&mut body, timing).await? {
        if content.len() + bytes.len() > limit {
            return Err(UpstreamError::TooLong { limit });
        }
        content.extend_from_slice(&bytes);
    }
    Ok(content.freeze())
}

/// A header of plain text.
pub(super) fn text_header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// All challenges in one line, word for word.
pub(super) fn challenge_of(headers: &HeaderMap) -> Option<String> {
    let texts: Vec<_> = headers.get_all(header::WWW_AUTHENTICATE).iter().map(HeaderValue::as_bytes).collect();
    (!texts.is_empty()).then(|| String::from_utf8_lossy(&texts.join(b", ".as_slice())).into_owned())
}

/// `Retry-After` in seconds. As a date it is not read: our clock and upstream's may differ.
fn retry_after_of(headers: &HeaderMap) -> Option<Duration> {
    let seconds = text_header(headers, header::RETRY_AFTER.as_str())?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}
