//! The origin as a plain OCI pull-through registry: GET and HEAD of manifests, blobs, tags and referrers over HTTP/1.1.
//!
//! Clients are runtimes, people with curl, and agents whose peers failed them. It knows HTTP and OCI answers; what is
//! behind them it asks of the rooms. Headers or an error come within [`ANSWER_PATIENCE`]; bodies take what they take.

mod server;

use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use shoal_meta::Digest;
use shoal_registry::{Access, OciCode, OciError, RangeSet, Route, STALE_WARNING, Secret, path, range};

use crate::body::{BOUNDARY, Plan};
use crate::error::OriginError;
use crate::ingest::Holding;
use crate::manifests::Resolved;
use crate::pass_through::PassThrough;
use crate::rooms::Rooms;

pub(crate) use server::serve;

/// How long a client waits for headers at most: it then goes to its next host.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// An answer's body.
type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Answers one request.
async fn answer(rooms: &Rooms, request: Request<Incoming>) -> Response<Body> {
    let (route, response) = match *request.method() {
        Method::GET | Method::HEAD => {
            let route = path::parse(request.uri().path(), path::ns_of(request.uri().query()).as_deref());
            let kind = route.as_ref().map_or("other", Route::kind);
            let answered = async { respond(rooms, &request, route?).await };
            let response = tokio::time::timeout(ANSWER_PATIENCE, answered).await;
            (kind, response.unwrap_or_else(|_| Err(OciError::unavailable("upstream has not answered in time"))))
        }
        _ => {
            let message = "this registry is for pulling: only GET and HEAD are offered";
            ("other", Err(OciError::new(StatusCode::METHOD_NOT_ALLOWED, OciCode::Unsupported, message)))
        }
    };
    let mut response = response.unwrap_or_else(|error| refuse(&error));
    if let Some(ns) = path::ns_of(request.uri().query()) {
        insert(response.headers_mut(), NAMESPACE, &ns);
    }
    response.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    rooms.metrics.http_requests.with_label_values(&[route, response.status().as_str()]).inc();
    response
}

fn refuse(error: &OciError) -> Response<Body> {
    let mut response = error.clone().into_response().map(|body| body.map_err(|never| match never {}).boxed_unsync());
    if error.status == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

async fn respond(rooms: &Rooms, request: &Request<Incoming>, route: Route) -> Result<Response<Body>, OciError> {
    let head = request.method() == Method::HEAD;
    let accept = accept_of(request.headers());
    let authorization = authorization_of(request.headers())?;
    let access = |repository| Access { repository, authorization };
    let permitted = route.repository().map_or(Ok(()), |repository| rooms.gate.permits(repository));
    permitted.map_err(|error| error.to_oci_error())?;
    match route {
        Route::Ping => Ok(document(HeaderMap::new(), Bytes::from_static(b"{}"))),
        Route::Manifest { repository, reference } => {
            let resolved = rooms.manifests.resolve(&access(repository), &reference, head, &accept).await;
            resolved.map(manifest).map_err(|error| error.to_oci_error())
        }
        Route::Blob { repository, digest } => {
            let ask = Ask { head, range: text(request.headers(), header::RANGE) };
            blob(rooms, &access(repository), &digest, ask).await
        }
        Route::Tags { repository } => listing(rooms, &access(repository), "tags/list", request.uri(), &accept).await,
        Route::Referrers { repository, digest } => {
            let path = format!("referrers/{digest}");
            listing(rooms, &access(repository), &path, request.uri(), &accept).await
        }
    }
}

fn manifest(resolved: Resolved) -> Response<Body> {
    let Resolved { manifest, stale } = resolved;
    let mut headers = HeaderMap::new();
    insert(&mut headers, header::CONTENT_TYPE, &manifest.media_type);
    insert(&mut headers, CONTENT_DIGEST, &manifest.digest.to_string());
    insert(&mut headers, header::ETAG, &format!("\"{}\"", manifest.digest));
    if stale {
        headers.insert(header::WARNING, HeaderValue::from_static(STALE_WARNING));
    }
    let mut response = document(headers, manifest.content);
    response.headers_mut().insert(header::CONTENT_LENGTH, manifest.length.into());
    response
}

/// What is asked of a blob.
struct Ask<'a> {
    head: bool,
    range: Option<&'a str>,
}

async fn blob(rooms: &Rooms, access: &Access, digest: &Digest, ask: Ask<'_>) -> Result<Response<Body>, OciError> {
    let said = |error: OriginError| error.to_oci_error();
    let (holding, total) = match ask.head {
        true => (None, rooms.ingests.length(access, digest).await.map_err(said)?),
        false => {
            let holding = rooms.ingests.open(access, digest).await.map_err(said)?;
            let total = holding.length();
            (Some(holding), total)
        }
    };
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    insert(&mut headers, CONTENT_DIGEST, &digest.to_string());
    insert(&mut headers, header::ETAG, &format!("\"{digest}\""));
    let (status, plan) = match ask.range.map_or(RangeSet::Whole, |asked| range::parse(asked, total)) {
        RangeSet::Whole => (StatusCode::OK, Plan::single(0..total)),
        RangeSet::Single(asked) => {
            insert(&mut headers, header::CONTENT_RANGE, &range::content_range(&asked, total));
            (StatusCode::PARTIAL_CONTENT, Plan::single(asked))
        }
        RangeSet::Multi(asked) => {
            insert(&mut headers, header::CONTENT_TYPE, &format!("multipart/byteranges; boundary={BOUNDARY}"));
            (StatusCode::PARTIAL_CONTENT, Plan::multi(asked, total))
        }
        RangeSet::Unsatisfiable => {
            let mut response = refuse(&OciError::range_not_satisfiable(total));
            insert(response.headers_mut(), header::CONTENT_RANGE, &format!("bytes */{total}"));
            return Ok(response);
        }
    };
    headers.insert(header::CONTENT_LENGTH, plan.length.into());
    let body = match holding {
        None => empty(),
        Some(holding) => {
            let mut past = PassThrough::new(rooms, access, *digest, total);
            if let (Holding::Passing { .. }, Some(first)) = (&holding, plan.first()) {
                past.open(first).await.map_err(said)?;
            }
            let sent = rooms.metrics.http_body_bytes.clone();
            let frames = futures_util::StreamExt::map(plan.stream(holding, past), move |bytes| {
                bytes.inspect(|bytes| sent.inc_by(bytes.len() as u64)).map(Frame::data)
            });
            StreamBody::new(frames).boxed_unsync()
        }
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}

/// Passes a listing through, as upstream gives it to this caller.
async fn listing(
    rooms: &Rooms,
    access: &Access,
    path: &str,
    asked: &Uri,
    accept: &[String],
) -> Result<Response<Body>, OciError> {
    let path = path::with_query_of(asked, path);
    let mut listed = rooms.gate.listing(access, &path, accept).await.map_err(|error| error.to_oci_error())?;
    path::link_here(&mut listed.headers, asked);
    Ok(document(listed.headers, listed.content))
}

fn document(headers: HeaderMap, content: Bytes) -> Response<Body> {
    let mut response = Response::new(Full::new(content).map_err(|never| match never {}).boxed_unsync());
    *response.headers_mut() = headers;
    response
}

fn empty() -> Body {
    Full::new(Bytes::new()).map_err(|never| match never {}).boxed_unsync()
}

/// Sets a header to a text that came from upstream or a client; one that cannot be a header is left out.
fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn accept_of(headers: &HeaderMap) -> Vec<String> {
    headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).map(str::to_owned).collect()
}

fn authorization_of(headers: &HeaderMap) -> Result<Option<Secret>, OciError> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let value = value.to_str().map_err(|_| {
        OciError::new(StatusCode::BAD_REQUEST, OciCode::Unauthorized, "the Authorization header is not text")
    })?;
    let authorization = Secret::new(value);
    if authorization.ticket().is_some() {
        let message = "a ticket is for agents, which show it elsewhere";
        return Err(OciError::new(StatusCode::UNAUTHORIZED, OciCode::Unauthorized, message));
    }
    Ok(Some(authorization))
}
