//! The registry front: the only room that knows HTTP. It parses a request, has it authorised, and answers.
//!
//! Runtimes and lazy snapshotters call it. Promises to them: headers or an error within [`ANSWER_TIMEOUT`]; never 408 or
//! 429, which they would repeat here at once; never a body that ends cleanly before its length.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use shoal_kit::incoming::Incoming as Connections;
use shoal_meta::Digest;
use shoal_registry::path::{self, ns_of};
use shoal_registry::range::{self, RangeSet};
use shoal_registry::upstream::Upstream;
use shoal_registry::{Access, OciCode, OciError, Reference, Repository, Route, STALE_WARNING};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::answer::{
    DOCKER_CONTENT_DIGEST, OCI_NAMESPACE, VALID, blob_headers, etag, failure, full, multipart, not_allowed,
    part_headers, respond,
};
use crate::blobs::{Blobs, Opened};
use crate::body::{BlobReader, Body, Stretch, body, cut};
use crate::given::{Given, completes};
use crate::manifests::{Found, Manifests};
use crate::metrics::{Counters, Fallback};
use crate::sendfile::{Outlet, Slots};
use crate::sign_in;

/// A request without an answer by now is answered 503, so that the runtime goes to its next host.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(4_500);
/// How long after a request its headers may wait for the first byte, so that a failure can still be told as an error.
const FIRST_BYTE_PATIENCE: Duration = Duration::from_millis(3_500);
/// How long after a request its failure may wait for its turn.
const FAILURE_PATIENCE: Duration = Duration::from_millis(4_200);
/// How long a client may take to send a request's headers, and may keep a connection idle.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long an answer under way may take after shutdown began; then it is cut.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Most connections served at a time; further ones are answered 503.
const CONNECTIONS_MAX: usize = 256;
/// Most connections that are answered 503 at a time; further ones wait to be accepted.
const REFUSED_MAX: usize = 64;
/// How long a client that is answered 503 may take to ask.
const REFUSED_TIMEOUT: Duration = Duration::from_secs(2);
/// Most bytes buffered of one connection, beside the slice being sent.
const BUFFER_LENGTH_MAX: usize = 64 * 1024;
/// Closed ranges of up to this many bytes do not make a blob be fetched whole.
const SMALL_RANGE_MAX: u64 = 1024 * 1024;
/// Most media types of an `Accept` header that are passed on.
const ACCEPT_MAX: usize = 64;

/// Answers requests.
#[derive(Debug)]
pub(crate) struct Front {
    pub(crate) manifests: Arc<Manifests>,
    pub(crate) blobs: Arc<Blobs>,
    pub(crate) upstream: Upstream,
    pub(crate) given: Arc<Given>,
}

/// Accepts and serves until shutdown, then lets the answers that are under way end.
pub(crate) async fn serve(front: Arc<Front>, listener: TcpListener, shutdown: CancellationToken) {
    let mut incoming = Connections::new(listener, CONNECTIONS_MAX + REFUSED_MAX, shutdown.clone());
    let served = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let connections = TaskTracker::new();
    while let Some((stream, _, place)) = incoming.next().await {
        let (front, shutdown) = (front.clone(), shutdown.clone());
        let turn = served.clone().try_acquire_owned().ok();
        connections.spawn(async move {
            front.counters().connections.inc();
            // A client that leaves, and a body cut short, end the connection: neither is a fault of the front.
            if let Err(error) = serve_one(&front, stream, turn.is_none(), &shutdown).await {
                tracing::debug!(%error, "connection ended");
            }
            front.counters().connections.dec();
            drop((turn, place));
        });
    }
    connections.close();
    connections.wait().await;
}

/// Serves one connection; after shutdown began it ends with the answer under way. One `too_many` is told so.
async fn serve_one(
    front: &Arc<Front>,
    stream: TcpStream,
    too_many: bool,
    shutdown: &CancellationToken,
) -> hyper::Result<()> {
    let slots = Slots::default();
    let outlet = Outlet::new(stream, slots.clone());
    let service = service_fn(move |request| {
        let (front, slots) = (front.clone(), slots.clone());
        async move {
            let answer = if too_many { front.refuse(&request) } else { front.answer(&request, &slots).await };
            Ok::<_, std::convert::Infallible>(answer)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(if too_many { REFUSED_TIMEOUT } else { REQUEST_TIMEOUT })
        .max_buf_size(BUFFER_LENGTH_MAX)
        // The outlet has to see a body's own runs, and no copy of them.
        .writev(true)
        .serve_connection(TokioIo::new(outlet), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    match timeout(DRAIN_TIMEOUT, connection).await {
        Ok(ended) => ended,
        Err(_) => Ok(()),
    }
}

impl Front {
    fn counters(&self) -> &Counters {
        &self.blobs.counters
    }

    /// Sends a client to its next host, as there are too many.
    fn refuse(&self, request: &Request<Incoming>) -> Response<Body> {
        let error = OciError::unavailable("the agent serves as many connections as it can");
        let mut response = failure(error, request.method());
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        self.counters().requests.with_label_values(&["refused", response.status().as_str()]).inc();
        response
    }

    async fn answer(self: &Arc<Self>, request: &Request<Incoming>, slots: &Slots) -> Response<Body> {
        let ns = ns_of(request.uri().query());
        let route = path::parse(request.uri().path(), ns.as_deref());
        let is_token = request.uri().path() == sign_in::PATH;
        let name = if is_token { "token" } else { route.as_ref().map_or("other", Route::kind) };
        let answered = async {
            if !matches!(*request.method(), Method::GET | Method::HEAD) {
                return Err(not_allowed());
            }
            if is_token {
                return sign_in::token(&self.upstream, request).await;
            }
            let route = route?;
            let repository = route.repository().filter(|_| ns.is_none()).cloned();
            self.dispatch(route, request, slots).await.map_err(|mut error| {
                // Without `ns` a client takes the agent for the registry, and its credentials are for here.
                if let Some(repository) = repository.filter(|_| error.status == StatusCode::UNAUTHORIZED) {
                    error.www_authenticate = sign_in::challenge(request.headers(), Some(&repository));
                }
                error
            })
        };
        let answer = match timeout(ANSWER_TIMEOUT, answered).await {
            Ok(answer) => answer,
            Err(_) => Err(OciError::unavailable("neither the swarm nor upstream answered in time")),
        };
        let mut response = answer.unwrap_or_else(|error| failure(error, request.method()));
        if let Some(ns) = ns.and_then(|ns| HeaderValue::try_from(ns).ok()) {
            response.headers_mut().insert(OCI_NAMESPACE, ns);
        }
        let status = response.status();
        tracing::debug!(method = %request.method(), path = request.uri().path(), %status, "answered");
        self.counters().requests.with_label_values(&[name, status.as_str()]).inc();
        response
    }

    async fn dispatch(
        self: &Arc<Self>,
        route: Route,
        request: &Request<Incoming>,
        slots: &Slots,
    ) -> Result<Response<Body>, OciError> {
        let asked = Instant::now();
        let head = request.method() == Method::HEAD;
        let headers = request.headers();
        route.repository().map_or(Ok(()), |repository| self.upstream.permits(repository)).map_err(told)?;
        match route {
            Route::Ping => Ok(ping(headers)),
            Route::Manifest { repository, reference } => self.manifest(repository, &reference, head, headers).await,
            Route::Blob { repository, digest } if head => {
                let length = self.blobs.length(&access(repository, headers)?, &digest).await.map_err(told)?;
                Ok(blob_headers(StatusCode::OK, &digest, length).body(full("")).expect(VALID))
            }
            Route::Blob { repository, digest } => match self.blob(repository, digest, headers, slots).await {
                Err(error) if error.status == StatusCode::SERVICE_UNAVAILABLE => {
                    self.cut_part(&digest, headers, asked).await.ok_or(error)
                }
                answered => answered,
            },
            Route::Tags { repository } => self.listing(repository, "tags/list", request).await,
            Route::Referrers { repository, digest } => {
                self.listing(repository, &format!("referrers/{digest}"), request).await
            }
        }
    }

    async fn manifest(
        &self,
        repository: Repository,
        reference: &Reference,
        head: bool,
        headers: &HeaderMap,
    ) -> Result<Response<Body>, OciError> {
        let access = access(repository, headers)?;
        let found = self.manifests.get(&access, reference, head, &accepted(headers)).await.map_err(told)?;
        let Found { manifest, stale, layers } = found;
        self.blobs.warm(&access, &layers);
        let content_type = HeaderValue::from_str(&manifest.media_type)
            .map_err(|_| OciError::unavailable("upstream's media type is not a header value"))?;
        let mut answer = respond(StatusCode::OK, content_type)
            .header(DOCKER_CONTENT_DIGEST, manifest.digest.to_string())
            .header(header::CONTENT_LENGTH, manifest.length)
            .header(header::ETAG, etag(&manifest.digest));
        if stale {
            answer = answer.header(header::WARNING, STALE_WARNING);
        }
        Ok(answer.body(full(manifest.content)).expect(VALID))
    }

    async fn blob(
        self: &Arc<Self>,
        repository: Repository,
        digest: Digest,
        headers: &HeaderMap,
        slots: &Slots,
    ) -> Result<Response<Body>, OciError> {
        let patience = Instant::now() + FIRST_BYTE_PATIENCE;
        let access = access(repository, headers)?;
        let wanted = range_header(headers, &digest);
        let opened = match self.small_range(&access, &digest, wanted).await? {
            Some(opened) => opened,
            None => {
                let opened = self.blobs.open(&access, &digest).await.map_err(told)?;
                self.blobs.prefetch(&access, self.manifests.layers_above(&digest));
                opened
            }
        };
        let length = opened.length();
        let ranges = wanted.map_or(RangeSet::Whole, |wanted| range::parse(wanted, length));
        let informed = completes(&ranges, wanted, length).then(|| self.given.clone());
        let (builder, stretches) = match ranges {
            RangeSet::Whole => (blob_headers(StatusCode::OK, &digest, length), vec![Stretch::Blob(0..length)]),
            RangeSet::Single(range) => (part_headers(&digest, &range, length), vec![Stretch::Blob(range)]),
            RangeSet::Multi(ranges) => multipart(&digest, &ranges, length),
            RangeSet::Unsatisfiable => {
                let mut response = failure(OciError::range_not_satisfiable(length), &Method::GET);
                let value = HeaderValue::from_str(&format!("bytes */{length}")).expect(VALID);
                response.headers_mut().insert(header::CONTENT_RANGE, value);
                return Ok(response);
            }
        };
        if length == 0 {
            return Ok(builder.body(full("")).expect(VALID));
        }
        let first = stretches.iter().find_map(|stretch| match stretch {
            Stretch::Blob(range) => Some(range.start),
            Stretch::Text(_) => None,
        });
        let first = first.unwrap_or(0);
        let mut reader = BlobReader::new(&self.blobs, &access, digest, opened, first, slots.clone()).telling(informed);
        // A source that is slow is no failure: the headers go out, and the body follows.
        if let Ok(ready) = timeout_at(patience, reader.ready(first)).await {
            ready.map_err(told)?;
        }
        Ok(builder.body(body(reader, stretches)).expect(VALID))
    }

    /// The answer to a later part of a blob that nobody can deliver now: headers, and a body that is cut before its first byte.
    /// containerd from 2.1 on fetches a layer by several open-ended ranges. For one that was cut it comes back, is refused, and goes
    /// on at its next host; one that is refused at first ends the pull. None for any other request.
    async fn cut_part(&self, digest: &Digest, headers: &HeaderMap, asked: Instant) -> Option<Response<Body>> {
        let wanted = range_header(headers, digest).filter(|wanted| wanted.trim_end().ends_with('-'))?;
        if wanted.trim_end().ends_with("=0-") {
            return None;
        }
        let download = self.blobs.arriving(digest).filter(|download| !download.refuses(asked))?;
        let geometry = download.geometry();
        let RangeSet::Single(range) = range::parse(wanted, geometry.length()) else { return None };
        // Those that begin later wait for this one as well.
        let _standing = download.reader(range.start);
        download.turn_to_fail(range.start, asked + FAILURE_PATIENCE).await;
        download.note_cut();
        self.counters().bodies_cut.inc();
        Some(part_headers(digest, &range, geometry.length()).body(cut()).expect(VALID))
    }

    /// Opens a blob of which a small closed range is wanted, as a lazy snapshotter reads it: only the pieces that the range
    /// touches are fetched, and when they do not come soon it is read past the store. None when the blob is wanted whole.
    async fn small_range(
        &self,
        access: &Access,
        digest: &Digest,
        wanted: Option<&str>,
    ) -> Result<Option<Opened>, OciError> {
        let Some(wanted) = wanted.filter(|wanted| !wanted.trim_end().ends_with('-')) else { return Ok(None) };
        let opened = self.blobs.peek(access, digest).await.map_err(told)?;
        let length = opened.length();
        let ranges = match range::parse(wanted, length) {
            RangeSet::Single(range) => vec![range],
            RangeSet::Multi(ranges) => ranges,
            RangeSet::Unsatisfiable => return Ok(Some(opened)),
            RangeSet::Whole => return Ok(None),
        };
        let bytes: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        if bytes > SMALL_RANGE_MAX || bytes >= length {
            return Ok(None);
        }
        let soon = match &opened {
            Opened::Stored(_) => true,
            Opened::Arriving(download) => download.fetch_ranges(&ranges).await,
            Opened::Upstream { .. } => false,
        };
        if soon {
            return Ok(Some(opened));
        }
        if self.upstream.is_offline() {
            return Ok(None);
        }
        self.counters().fell_back(Fallback::SmallRange);
        Ok(Some(Opened::Upstream { length }))
    }

    async fn listing(
        &self,
        repository: Repository,
        path: &str,
        request: &Request<Incoming>,
    ) -> Result<Response<Body>, OciError> {
        let access = access(repository, request.headers())?;
        let path = path::with_query_of(request.uri(), path);
        let mut document = self.upstream.get(&access, &path, &accepted(request.headers())).await.map_err(told)?;
        path::link_here(&mut document.headers, request.uri());
        let mut response = respond(StatusCode::OK, "application/json")
            .header(header::CONTENT_LENGTH, document.content.len())
            .body(full(document.content))
            .expect(VALID);
        response.headers_mut().extend(document.headers);
        Ok(response)
    }
}

/// Says that this is a registry, and to clients without credentials how to sign in.
fn ping(headers: &HeaderMap) -> Response<Body> {
    let challenge = sign_in::challenge(headers, None).filter(|_| !headers.contains_key(header::AUTHORIZATION));
    let mut response = match challenge {
        None => respond(StatusCode::OK, "application/json").body(full("{}")).expect(VALID),
        Some(challenge) => {
            let message = "sign in, or take the token that anybody gets";
            let mut error = OciError::new(StatusCode::UNAUTHORIZED, OciCode::Unauthorized, message);
            error.www_authenticate = Some(challenge);
            failure(error, &Method::GET)
        }
    };
    // `shoal doctor` tells by the server's name whether another program has the port.
    let server = HeaderValue::from_static(concat!("shoal/", env!("CARGO_PKG_VERSION")));
    response.headers_mut().insert(header::SERVER, server);
    response
}

/// On whose behalf the request is made.
fn access(repository: Repository, headers: &HeaderMap) -> Result<Access, OciError> {
    let authorization = match headers.get(header::AUTHORIZATION) {
        None => None,
        Some(value) => value.to_str().map(sign_in::unwrapped).map_err(|_| {
            OciError::new(StatusCode::UNAUTHORIZED, OciCode::Unauthorized, "the credentials are not text")
        })?,
    };
    let access = Access { repository, authorization };
    if access.is_ticket() {
        let message = "a ticket is for agents themselves, and for none of their clients";
        return Err(OciError::new(StatusCode::UNAUTHORIZED, OciCode::Unauthorized, message));
    }
    Ok(access)
}

/// The media types the client accepts, in order.
fn accepted(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let types = values.flat_map(|value| value.split(',')).map(str::trim).filter(|part| !part.is_empty());
    types.map(str::to_owned).take(ACCEPT_MAX).collect()
}

/// The ranges asked for, unless they are of another blob (RFC 9110, section 13.1.5).
fn range_header<'a>(headers: &'a HeaderMap, digest: &Digest) -> Option<&'a str> {
    let same = headers.get(header::IF_RANGE).is_none_or(|value| value.as_bytes() == etag(digest).as_bytes());
    headers.get(header::RANGE).filter(|_| same)?.to_str().ok()
}

#[expect(clippy::needless_pass_by_value, reason = "it is used to map errors")]
fn told(error: shoal_registry::UpstreamError) -> OciError {
    error.to_oci_error()
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn accept_is_passed_on_in_order() {
        let headers = headers(&[(header::ACCEPT, "a/b, c/d;q=0.5"), (header::ACCEPT, "e/f")]);
        assert_eq!(accepted(&headers), ["a/b", "c/d;q=0.5", "e/f"]);
    }

    #[test]
    fn a_clients_ticket_is_refused_and_its_own_credentials_are_passed_on() {
        let repository = Repository::new("r.example", "app").unwrap();
        let asked = |value: &str| access(repository.clone(), &headers(&[(header::AUTHORIZATION, value)]));
        assert_eq!(asked("Bearer abc").unwrap().authorization, Some("Bearer abc".into()));
        assert_eq!(asked("shoal-ticket abcdefghijklmnop").unwrap_err().status, StatusCode::UNAUTHORIZED);
    }

    #[test]
    fn a_range_of_another_blob_is_ignored() {
        let digest = Digest::sha256_of(b"x");
        let range = (header::RANGE, "bytes=0-1");
        assert_eq!(range_header(&headers(std::slice::from_ref(&range)), &digest), Some("bytes=0-1"));
        let same = etag(&digest);
        assert!(range_header(&headers(&[range.clone(), (header::IF_RANGE, &same)]), &digest).is_some());
        assert!(range_header(&headers(&[range, (header::IF_RANGE, "\"other\"")]), &digest).is_none());
    }
}
