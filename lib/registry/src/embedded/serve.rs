//! How the embedded registry answers a request.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Full, Limited};
use hyper::body::Incoming;
use serde_json::json;
use shoal_meta::Digest;

use super::body::{Body, body};
use super::{Fault, Recorded, Shared};
use crate::error::{OciCode, OciError};
use crate::path::{self, Route};
use crate::range::{self, RangeSet};
use crate::reference::Reference;

/// The longest form we read, in bytes.
const FORM_LENGTH_MAX: usize = 64 * 1024;

/// Answers one request, with a fault if one was injected for it.
pub(super) async fn answer(shared: &Arc<Shared>, request: Request<Incoming>) -> Response<Body> {
    let recorded = recorded(&request);
    let fault = {
        let mut state = shared.state();
        let fault = state.fault_for(&format!("{} {}", recorded.method, recorded.path));
        state.record(recorded);
        fault
    };
    tokio::time::sleep(shared.options.latency).await;
    match &fault {
        Some(Fault::Silence) => std::future::pending().await,
        Some(Fault::Status { status, retry_after }) => {
            let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let mut error = OciError::new(status, OciCode::Unknown, "failing as asked");
            error.retry_after = retry_after.map(std::time::Duration::from_secs);
            small(error.into_response())
        }
        fault => {
            let fault = fault.as_ref();
            let answer = if request.method() == Method::POST && request.uri().path() == "/token" {
                posted(shared, request).await
            } else {
                route(shared, &request, fault)
            };
            let mut response = answer.unwrap_or_else(|error| small(error.into_response()));
            apply_to_headers(response.headers_mut(), fault);
            response
        }
    }
}

fn recorded(request: &Request<Incoming>) -> Recorded {
    let text =
        |name| request.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok()).map(str::to_owned);
    Recorded {
        method: request.method().to_string(),
        path: request.uri().path_and_query().map(ToString::to_string).unwrap_or_default(),
        range: text(header::RANGE),
        authorization: text(header::AUTHORIZATION),
        accept: text(header::ACCEPT),
        accept_encoding: text(header::ACCEPT_ENCODING),
    }
}

fn route(shared: &Arc<Shared>, request: &Request<Incoming>, fault: Option<&Fault>) -> Result<Response<Body>, OciError> {
    let text = |name| request.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let authorization = text(header::AUTHORIZATION);
    let head = match *request.method() {
        Method::GET => false,
        Method::HEAD => true,
        _ => {
            return Err(OciError::new(StatusCode::METHOD_NOT_ALLOWED, OciCode::Unsupported, "only GET and HEAD"));
        }
    };
    if request.uri().path() == "/token" {
        return token(shared, request.uri().query().unwrap_or_default(), authorization);
    }
    // Names are taken as they are; the registry part only stands for this one.
    let route = path::parse(request.uri().path(), Some("embedded.invalid"))?;
    let name = route.repository().map_or("", |repository| repository.name.as_str());
    if let Some(gate) = &shared.gate {
        gate.check(name, authorization, text(header::HOST).unwrap_or_default()).map_err(|challenge| {
            let mut error = OciError::new(StatusCode::UNAUTHORIZED, OciCode::Unauthorized, "authentication required");
            error.www_authenticate = Some(challenge);
            error
        })?;
    }
    match &route {
        Route::Ping => Ok(small(Response::new(Full::from("{}")))),
        Route::Manifest { reference, .. } => manifest(shared, name, reference, head, fault),
        Route::Blob { digest, .. } => blob(shared, request, digest, text(header::RANGE), head, fault),
        Route::Tags { .. } => tags(shared, name, request.uri().query()),
        Route::Referrers { digest, .. } => referrers(shared, digest, request.uri().query()),
    }
}

/// A token for a form of Docker's "OAuth2" specification.
async fn posted(shared: &Shared, request: Request<Incoming>) -> Result<Response<Body>, OciError> {
    let form = Limited::new(request.into_body(), FORM_LENGTH_MAX)
        .collect()
        .await
        .map_err(|_| OciError::new(StatusCode::BAD_REQUEST, OciCode::Unknown, "the form cannot be read"))?;
    token(shared, &String::from_utf8_lossy(&form.to_bytes()), None)
}

fn token(shared: &Shared, query: &str, authorization: Option<&str>) -> Result<Response<Body>, OciError> {
    let granted = shared.gate.as_ref().and_then(|gate| gate.grant(query, authorization)).ok_or_else(|| {
        OciError::new(StatusCode::UNAUTHORIZED, OciCode::Unauthorized, "user and password are wrong or missing")
    })?;
    shared.state().counters.tokens += 1;
    let body = json!({ "token": granted.token, "expires_in": granted.lifetime_s });
    Ok(small(typed("application/json", body.to_string())))
}

fn manifest(
    shared: &Arc<Shared>,
    name: &str,
    reference: &Reference,
    head: bool,
    fault: Option<&Fault>,
) -> Result<Response<Body>, OciError> {
    let unknown = |code| OciError::new(StatusCode::NOT_FOUND, code, format!("{name} {reference} is unknown"));
    let tags = shared.content.tags(name).ok_or_else(|| unknown(OciCode::NameUnknown))?;
    let digest = match reference {
        Reference::Tag(tag) => tags.get(tag),
        Reference::Digest(digest) => Some(digest),
    };
    let found = digest.and_then(|digest| Some((digest, shared.content.manifest(name, digest)?)));
    let (digest, document) = found.ok_or_else(|| unknown(OciCode::ManifestUnknown))?;
    let counters = &mut shared.state().counters;
    *if head { &mut counters.manifest_heads } else { &mut counters.manifest_gets } += 1;
    let mut response = Response::new(sent(shared, head, document.content.clone(), None, fault));
    let headers = response.headers_mut();
    insert(headers, header::CONTENT_TYPE, &document.media_type);
    insert(headers, header::CONTENT_LENGTH, &document.content.len().to_string());
    insert(headers, DOCKER_CONTENT_DIGEST, &digest.to_string());
    Ok(response)
}

fn blob(
    shared: &Arc<Shared>,
    request: &Request<Incoming>,
    digest: &Digest,
    range: Option<&str>,
    head: bool,
    fault: Option<&Fault>,
) -> Result<Response<Body>, OciError> {
    if let Some(base) = &shared.options.redirect_blobs {
        let mut response = Response::new(small_body(Empty::new()));
        *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
        insert(response.headers_mut(), header::LOCATION, &format!("{base}{}", request.uri().path()));
        return Ok(response);
    }
    let unknown = || OciError::new(StatusCode::NOT_FOUND, OciCode::BlobUnknown, format!("{digest} is unknown"));
    let whole = shared.content.blob(digest).ok_or_else(unknown)?;
    let length = whole.len() as u64;
    let asked = match range.filter(|_| !head && !shared.options.ignore_range) {
        Some(header) => range::parse(header, length),
        None => RangeSet::Whole,
    };
    let (status, content, content_range) = match asked {
        // Several ranges may be ignored (RFC 9110, section 14.2).
        RangeSet::Whole | RangeSet::Multi(_) => (StatusCode::OK, whole.clone(), None),
        RangeSet::Single(range) => {
            let text = range::content_range(&range, length);
            let index = |at: u64| usize::try_from(at).expect("the range lies inside a slice");
            (StatusCode::PARTIAL_CONTENT, whole.slice(index(range.start)..index(range.end)), Some(text))
        }
        RangeSet::Unsatisfiable => {
            let mut response = small(OciError::range_not_satisfiable(length).into_response());
            insert(response.headers_mut(), header::CONTENT_RANGE, &format!("bytes */{length}"));
            return Ok(response);
        }
    };
    {
        let mut state = shared.state();
        let count = state.counters.blobs.entry(*digest).or_default();
        *if head { &mut count.heads } else { &mut count.gets } += 1;
    }
    let content_length = content.len();
    let mut response = Response::new(sent(shared, head, content, Some(*digest), fault));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    insert(headers, header::CONTENT_TYPE, "application/octet-stream");
    insert(headers, header::ACCEPT_RANGES, "bytes");
    insert(headers, header::CONTENT_LENGTH, &content_length.to_string());
    insert(headers, DOCKER_CONTENT_DIGEST, &digest.to_string());
    if let Some(text) = content_range {
        insert(headers, header::CONTENT_RANGE, &text);
    }
    Ok(response)
}

/// Lists tags after `last`, at most `n` of them (distribution-spec, "Listing Tags").
fn tags(shared: &Shared, name: &str, query: Option<&str>) -> Result<Response<Body>, OciError> {
    let unknown = || OciError::new(StatusCode::NOT_FOUND, OciCode::NameUnknown, format!("{name} is unknown"));
    let all = shared.content.tags(name).ok_or_else(unknown)?;
    let last = path::parameter(query, "last").unwrap_or_default();
    let most = path::parameter(query, "n").and_then(|n| n.parse().ok()).unwrap_or(usize::MAX);
    let after: Vec<_> = all.keys().filter(|tag| **tag > last).collect();
    let page = &after[..most.min(after.len())];
    let mut response = typed("application/json", json!({ "name": name, "tags": page }).to_string());
    if let Some(end) = page.last().filter(|_| page.len() < after.len()) {
        let link = format!("</v2/{name}/tags/list?n={most}&last={end}>; rel=\"next\"");
        insert(response.headers_mut(), header::LINK, &link);
    }
    Ok(small(response))
}

/// Lists what refers to a manifest (distribution-spec, "Listing Referrers").
fn referrers(shared: &Shared, subject: &Digest, query: Option<&str>) -> Result<Response<Body>, OciError> {
    let absent = || OciError::new(StatusCode::NOT_FOUND, OciCode::Unsupported, "referrers are not offered");
    let all = shared.content.referrers(subject).ok_or_else(absent)?;
    let kind = path::parameter(query, "artifactType");
    let listed: Vec<_> =
        all.iter().filter(|one| kind.as_ref().is_none_or(|kind| one["artifactType"] == **kind)).collect();
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": listed });
    let mut response = typed(INDEX_TYPE, index.to_string());
    if kind.is_some() {
        insert(response.headers_mut(), HeaderName::from_static("oci-filters-applied"), "artifactType");
    }
    Ok(small(response))
}

const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// A body for GET; none for HEAD, whose headers are all.
fn sent(shared: &Arc<Shared>, head: bool, content: Bytes, blob: Option<Digest>, fault: Option<&Fault>) -> Body {
    if head { small_body(Empty::new()) } else { body(shared, content, blob, fault) }
}

fn apply_to_headers(headers: &mut HeaderMap, fault: Option<&Fault>) {
    match fault {
        Some(Fault::EndEarly { .. }) => {
            headers.remove(header::CONTENT_LENGTH);
        }
        Some(Fault::DeclareMore { extra }) => {
            let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
            if let Some(length) = length {
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length + extra));
            }
        }
        Some(Fault::WithoutHeader { name }) => {
            headers.remove(*name);
        }
        Some(Fault::WithHeader { name, value }) => {
            headers.insert(*name, HeaderValue::from_static(value));
        }
        Some(Fault::Cut { .. } | Fault::Stall { .. } | Fault::Status { .. } | Fault::Corrupt | Fault::Silence)
        | None => {}
    }
}

fn typed(media_type: &'static str, content: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(content));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

fn small(response: Response<Full<Bytes>>) -> Response<Body> {
    response.map(small_body)
}

fn small_body<B>(body: B) -> Body
where
    B: http_body::Body<Data = Bytes, Error = std::convert::Infallible> + Send + 'static,
{
    body.map_err(|never| match never {}).boxed_unsync()
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}
