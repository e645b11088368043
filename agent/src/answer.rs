//! How answers look: status lines, headers, errors and the frame of multipart answers. Called by the front alone.

use std::ops::Range;

use bytes::Bytes;
use http::response::Builder;
use http::{HeaderName, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use shoal_meta::Digest;
use shoal_registry::{OciCode, OciError, range};

use crate::body::{Body, Stretch};
use crate::sendfile::Run;

/// Why building an answer cannot fail.
pub(crate) const VALID: &str = "every header is made of checked parts";

/// The digest of what is answered.
pub(crate) const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// The registry that the client's `ns` named (distribution-spec, "Registry Proxying").
pub(crate) const OCI_NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// The validator of what has a digest.
pub(crate) fn etag(digest: &Digest) -> String {
    format!("\"{digest}\"")
}

/// Begins any answer.
pub(crate) fn respond(
    status: StatusCode,
    content_type: impl TryInto<HeaderValue, Error: Into<http::Error>>,
) -> Builder {
    Response::builder().status(status).header(API_VERSION, "registry/2.0").header(header::CONTENT_TYPE, content_type)
}

/// Begins the answer of a blob.
pub(crate) fn blob_headers(status: StatusCode, digest: &Digest, content_length: u64) -> Builder {
    blob_headers_as(status, digest, content_length, "application/octet-stream")
}

/// Begins the answer of one range of a blob of `length` bytes.
pub(crate) fn part_headers(digest: &Digest, range: &Range<u64>, length: u64) -> Builder {
    blob_headers(StatusCode::PARTIAL_CONTENT, digest, range.end - range.start)
        .header(header::CONTENT_RANGE, range::content_range(range, length))
}

fn blob_headers_as(status: StatusCode, digest: &Digest, content_length: u64, kind: &str) -> Builder {
    respond(status, kind)
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::CONTENT_LENGTH, content_length)
        .header(DOCKER_CONTENT_DIGEST, digest.to_string())
        .header(header::ETAG, etag(digest))
}

/// An answer of several ranges (RFC 9110, section 14.6), its length known beforehand.
pub(crate) fn multipart(digest: &Digest, ranges: &[Range<u64>], length: u64) -> (Builder, Vec<Stretch>) {
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

/// 405, for all that is not a pull.
pub(crate) fn not_allowed() -> OciError {
    let message = "this is a mirror to pull from: only GET and HEAD are served";
    OciError::new(StatusCode::METHOD_NOT_ALLOWED, OciCode::Unsupported, message)
}

/// The answer of an error. A runtime would repeat 408 and 429 here at once: it is sent to its next host instead.
pub(crate) fn failure(mut error: OciError, method: &Method) -> Response<Body> {
    if matches!(error.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT) {
        error.status = StatusCode::SERVICE_UNAVAILABLE;
    }
    let refused_method = error.status == StatusCode::METHOD_NOT_ALLOWED;
    let bytes = |body: Full<Bytes>| body.into_inner().filter(|_| method != Method::HEAD).unwrap_or_default();
    let mut response = error.into_response().map(|body| full(bytes(body)));
    if refused_method {
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

/// A body that is at hand.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(Run::Bytes(bytes.into())).map_err(|never| match never {}).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

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
