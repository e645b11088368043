//! The registry front: the only room that knows HTTP. It parses a request, has it authorised, and answers.
//!
//! Runtimes and lazy snapshotters call it. Promises to them: headers or an error within [`ANSWER_TIMEOUT`]; never 408 or
//! 429, which they would repeat here at once; never a body that ends cleanly before its length.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use shoal_kit::incoming;
use shoal_meta::Digest;
use shoal_registry::path::{self, ns_of};
use shoal_registry::range::{self, RangeSet};
use shoal_registry::upstream::Upstream;
use shoal_registry::{Access, OciCode, OciError, Reference, Repository, Route, Secret};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::blobs::{Blobs, Opened};
use crate::body::{BlobReader, Body, Stretch, body};
use crate::manifests::Manifests;
use crate::metrics::{Counters, Fallback};

/// A request without an answer by now is answered 503, so that the runtime goes to its next host.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(4_500);
/// How long headers wait for the first byte of a blob, so that a failure can still be told as an error.
const FIRST_BYTE_PATIENCE: Duration = Duration::from_millis(2_500);
/// How long a client may take to send a request's headers, and may keep a connection idle.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Most connections served at a time; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 1024;
/// Most bytes buffered of one connection, beside the slice being sent.
const BUFFER_LENGTH_MAX: usize = 64 * 1024;
/// A closed range of a blob that is not here is fetched by itself, and not with the whole blob, up to this many bytes.
const SMALL_RANGE_MAX: u64 = 1024 * 1024;
/// Most media types of an `Accept` header that are passed on.
const ACCEPT_MAX: usize = 64;

const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// Answers requests.
#[derive(Debug)]
pub(crate) struct Front {
    pub(crate) manifests: Manifests,
    pub(crate) blobs: Arc<Blobs>,
    pub(crate) upstream: Upstream,
}

/// Accepts and serves until shutdown, then lets the answers that are under way end.
pub(crate) async fn serve(front: Arc<Front>, listener: TcpListener, shutdown: CancellationToken) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let connections = TaskTracker::new();
    let next = async || {
        let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        (permit, incoming::accept(&listener).await)
    };
    while let Some((permit, stream)) = shutdown.run_until_cancelled(next()).await {
        let (front, shutdown) = (front.clone(), shutdown.clone());
        connections.spawn(async move {
            front.counters().connections.inc();
            // A client that leaves, and a body cut short, end the connection: neither is a fault of the front.
            if let Err(error) = serve_one(&front, stream, &shutdown).await {
                tracing::debug!(%error, "connection ended");
            }
            front.counters().connections.dec();
            drop(permit);
        });
    }
    connections.close();
    connections.wait().await;
}

/// Serves one connection; after shutdown began it ends with the answer under way.
async fn serve_one(front: &Arc<Front>, stream: TcpStream, shutdown: &CancellationToken) -> hyper::Result<()> {
    let service = service_fn(move |request| {
        let front = front.clone();
        async move { Ok::<_, std::convert::Infallible>(front.answer(&request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .max_buf_size(BUFFER_LENGTH_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

impl Front {
    fn counters(&self) -> &Counters {
        &self.blobs.counters
    }

    async fn answer(self: &Arc<Self>, request: &Request<Incoming>) -> Response<Body> {
        let ns = ns_of(request.uri().query());
        let route = path::parse(request.uri().path(), ns.as_deref());
        let name = route.as_ref().map_or("other", name_of);
        let answered = async {
            if !matches!(*request.method(), Method::GET | Method::HEAD) {
                return Err(not_allowed());
            }
            self.dispatch(route?, request).await
        };
        let answer = match timeout(ANSWER_TIMEOUT, answered).await {
            Ok(answer) => answer,
            Err(_) => Err(OciError::unavailable("neither the swarm nor upstream answered in time")),
        };
        let response = answer.unwrap_or_else(|error| failure(error, request.method()));
        let status = response.status();
        tracing::debug!(method = %request.method(), path = request.uri().path(), %status, "answered");
        self.counters().requests.with_label_values(&[name, status.as_str()]).inc();
        response
    }

    async fn dispatch(self: &Arc<Self>, route: Route, request: &Request<Incoming>) -> Result<Response<Body>, OciError> {
        let head = request.method() == Method::HEAD;
        let headers = request.headers();
        match route {
            Route::Ping => Ok(respond(StatusCode::OK, "application/json").body(text("{}")).expect(VALID)),
            Route::Manifest { repository, reference } => self.manifest(repository, &reference, head, headers).await,
            Route::Blob { repository, digest } if head => {
                let length = self.blobs.length(&access(repository, headers)?, &digest).await.map_err(told)?;
                Ok(blob_headers(StatusCode::OK, &digest, length).body(text("")).expect(VALID))
            }
            Route::Blob { repository, digest } => self.blob(repository, digest, headers).await,
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
        let manifest = self.manifests.get(&access, reference, head, &accepted(headers)).await.map_err(told)?;
        let content_type = HeaderValue::from_str(&manifest.media_type)
            .map_err(|_| OciError::unavailable("upstream's media type is not a header value"))?;
        Ok(respond(StatusCode::OK, content_type)
            .header(DOCKER_CONTENT_DIGEST, manifest.digest.to_string())
            .header(header::CONTENT_LENGTH, manifest.length)
            .header(header::ETAG, etag(&manifest.digest))
            .body(Full::new(manifest.content).map_err(|never| match never {}).boxed_unsync())
            .expect(VALID))
    }

    async fn blob(
        self: &Arc<Self>,
        repository: Repository,
        digest: Digest,
        headers: &HeaderMap,
    ) -> Result<Response<Body>, OciError> {
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
        let (builder, stretches) = match ranges {
            RangeSet::Whole => (blob_headers(StatusCode::OK, &digest, length), vec![Stretch::Blob(0..length)]),
            RangeSet::Single(range) => {
                let builder = blob_headers(StatusCode::PARTIAL_CONTENT, &digest, range.end - range.start)
                    .header(header::CONTENT_RANGE, range::content_range(&range, length));
                (builder, vec![Stretch::Blob(range)])
            }
            RangeSet::Multi(ranges) => multipart(&digest, &ranges, length),
            RangeSet::Unsatisfiable => {
                let mut response = failure(OciError::range_not_satisfiable(length), &Method::GET);
                let value = HeaderValue::from_str(&format!("bytes */{length}")).expect(VALID);
                response.headers_mut().insert(header::CONTENT_RANGE, value);
                return Ok(response);
            }
        };
        if length == 0 {
            return Ok(builder.body(text("")).expect(VALID));
        }
        let first = stretches.iter().find_map(|stretch| match stretch {
            Stretch::Blob(range) => Some(range.start),
            Stretch::Text(_) => None,
        });
        let first = first.unwrap_or(0);
        let mut reader = BlobReader::new(&self.blobs, &access, digest, opened, first);
        // A source that is slow is no failure: the headers go out, and the body follows.
        if let Ok(ready) = timeout(FIRST_BYTE_PATIENCE, reader.ready(first)).await {
            ready.map_err(told)?;
        }
        Ok(builder.body(body(reader, stretches)).expect(VALID))
    }

    /// Lets a small closed range of a blob that is neither here nor on its way be read past the store: a lazy snapshotter
    /// that peeks into a layer does not want it whole.
    async fn small_range(
        &self,
        access: &Access,
        digest: &Digest,
        wanted: Option<&str>,
    ) -> Result<Option<Opened>, OciError> {
        let Some(wanted) = wanted.filter(|wanted| !wanted.trim_end().ends_with('-')) else { return Ok(None) };
        if self.blobs.held(access, digest).await.map_err(told)?.is_some() {
            return Ok(None);
        }
        let Ok(length) = self.blobs.length(access, digest).await else { return Ok(None) };
        let bytes: u64 = match range::parse(wanted, length) {
            RangeSet::Single(range) => range.end - range.start,
            RangeSet::Multi(ranges) => ranges.iter().map(|range| range.end - range.start).sum(),
            RangeSet::Whole | RangeSet::Unsatisfiable => return Ok(None),
        };
        if bytes > SMALL_RANGE_MAX || bytes >= length {
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
        let query: Vec<_> = request.uri().query().unwrap_or_default().split('&').collect();
        let query: Vec<_> = query.into_iter().filter(|pair| !pair.is_empty() && !pair.starts_with("ns=")).collect();
        let path = if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query.join("&")) };
        let document = self.upstream.get(&access, &path, &accepted(request.headers())).await.map_err(told)?;
        let mut response = respond(StatusCode::OK, "application/json")
            .header(header::CONTENT_LENGTH, document.content.len())
            .body(Full::new(document.content).map_err(|never| match never {}).boxed_unsync())
            .expect(VALID);
        response.headers_mut().extend(document.headers);
        Ok(response)
    }
}

const VALID: &str = "every header is made of checked parts";

fn name_of(route: &Route) -> &'static str {
    match route {
        Route::Ping => "ping",
        Route::Manifest { .. } => "manifest",
        Route::Blob { .. } => "blob",
        Route::Tags { .. } => "tags",
        Route::Referrers { .. } => "referrers",
    }
}

/// On whose behalf the request is made.
fn access(repository: Repository, headers: &HeaderMap) -> Result<Access, OciError> {
    let authorization = match headers.get(header::AUTHORIZATION) {
        None => None,
        Some(value) => Some(value.to_str().map(Secret::new).map_err(|_| {
            OciError::new(StatusCode::UNAUTHORIZED, OciCode::Unauthorized, "the credentials are not text")
        })?),
    };
    Ok(Access { repository, authorization })
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

fn etag(digest: &Digest) -> String {
    format!("\"{digest}\"")
}

fn respond(
    status: StatusCode,
    content_type: impl TryInto<HeaderValue, Error: Into<http::Error>>,
) -> http::response::Builder {
    Response::builder().status(status).header(API_VERSION, "registry/2.0").header(header::CONTENT_TYPE, content_type)
}

fn blob_headers(status: StatusCode, digest: &Digest, content_length: u64) -> http::response::Builder {
    blob_headers_as(status, digest, content_length, "application/octet-stream")
}

fn blob_headers_as(status: StatusCode, digest: &Digest, content_length: u64, kind: &str) -> http::response::Builder {
    respond(status, kind)
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::CONTENT_LENGTH, content_length)
        .header(DOCKER_CONTENT_DIGEST, digest.to_string())
        .header(header::ETAG, etag(digest))
}

/// An answer of several ranges (RFC 9110, section 14.6), its length known beforehand.
fn multipart(digest: &Digest, ranges: &[std::ops::Range<u64>], length: u64) -> (http::response::Builder, Vec<Stretch>) {
    // Blobs are not made by those who choose the ranges, so none holds the hash of both.
    let boundary = Digest::sha256_of(format!("{digest} {ranges:?}").as_bytes()).hex();
    let mut stretches = Vec::with_capacity(ranges.len() * 2 + 1);
    let mut total = 0;
    for range in ranges {
        let content_range = range::content_range(range, length);
        let text = format!(
            "\r\n--{boundary}\r\ncontent-type: application/octet-stream\r\ncontent-range: {content_range}\r\n\r\n"
        );
        total += text.len() as u64 + (range.end - range.start);
        stretches.push(Stretch::Text(text.into()));
        stretches.push(Stretch::Blob(range.clone()));
    }
    let end = format!("\r\n--{boundary}--\r\n");
    total += end.len() as u64;
    stretches.push(Stretch::Text(end.into()));
    let kind = format!("multipart/byteranges; boundary={boundary}");
    (blob_headers_as(StatusCode::PARTIAL_CONTENT, digest, total, &kind), stretches)
}

fn not_allowed() -> OciError {
    let message = "this is a mirror to pull from: only GET and HEAD are served";
    OciError::new(StatusCode::METHOD_NOT_ALLOWED, OciCode::Unsupported, message)
}

#[expect(clippy::needless_pass_by_value, reason = "it is used to map errors")]
fn told(error: shoal_registry::UpstreamError) -> OciError {
    error.to_oci_error()
}

/// The answer of an error. A runtime would repeat 408 and 429 here at once: it is sent to its next host instead.
fn failure(mut error: OciError, method: &Method) -> Response<Body> {
    if matches!(error.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT) {
        error.status = StatusCode::SERVICE_UNAVAILABLE;
    }
    let refused_method = error.status == StatusCode::METHOD_NOT_ALLOWED;
    let mut response = error.into_response().map(|full| {
        let full = if method == Method::HEAD { Full::default() } else { full };
        full.map_err(|never| match never {}).boxed_unsync()
    });
    if refused_method {
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

fn text(text: &'static str) -> Body {
    Full::new(bytes::Bytes::from_static(text.as_bytes())).map_err(|never| match never {}).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn a_runtime_is_never_told_408_or_429() {
        for status in [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS] {
            let response = failure(OciError::new(status, OciCode::TooManyRequests, "x"), &Method::GET);
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        }
    }

    #[test]
    fn other_methods_are_told_which_there_are() {
        let response = failure(not_allowed(), &Method::PUT);
        assert_eq!(
            (response.status().as_u16(), &response.headers()["allow"]),
            (405, &HeaderValue::from_static("GET, HEAD"))
        );
    }

    #[test]
    fn accept_is_passed_on_in_order() {
        let headers = headers(&[(header::ACCEPT, "a/b, c/d;q=0.5"), (header::ACCEPT, "e/f")]);
        assert_eq!(accepted(&headers), ["a/b", "c/d;q=0.5", "e/f"]);
    }

    #[test]
    fn a_range_of_another_blob_is_ignored() {
        let digest = Digest::sha256_of(b"x");
        let range = (header::RANGE, "bytes=0-1");
        assert_eq!(range_header(&headers(&[range.clone()]), &digest), Some("bytes=0-1"));
        let same = etag(&digest);
        assert!(range_header(&headers(&[range.clone(), (header::IF_RANGE, &same)]), &digest).is_some());
        assert!(range_header(&headers(&[range, (header::IF_RANGE, "\"other\"")]), &digest).is_none());
    }

    #[test]
    fn the_length_of_a_multipart_answer_is_that_of_its_stretches() {
        let (builder, stretches) = multipart(&Digest::sha256_of(b"x"), &[0..10, 50..51], 100);
        let response = builder.body(()).unwrap();
        let total: u64 = stretches
            .iter()
            .map(|stretch| match stretch {
                Stretch::Text(text) => text.len() as u64,
                Stretch::Blob(range) => range.end - range.start,
            })
            .sum();
        assert_eq!(response.headers()["content-length"], total.to_string());
        let kind = response.headers()["content-type"].to_str().unwrap();
        let boundary = kind.strip_prefix("multipart/byteranges; boundary=").unwrap();
        let Stretch::Text(first) = &stretches[0] else { panic!("a part begins with its headers") };
        let first = std::str::from_utf8(first).unwrap();
        assert!(
            first.starts_with(&format!("\r\n--{boundary}\r\n")) && first.contains("content-range: bytes 0-9/100\r\n")
        );
    }
}
