//! The error answer of the registry protocol. The agent's front and the origin's HTTP side make one of whatever went
//! wrong; nothing else decides a status.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;

use crate::reference::ReferenceError;

/// An error code of the distribution-spec, or one registries commonly use beside it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum OciCode {
    /// The blob is not in the repository.
    BlobUnknown,
    /// The digest is malformed or does not match the content.
    DigestInvalid,
    /// The manifest is not in the repository.
    ManifestUnknown,
    /// The repository name is malformed.
    NameInvalid,
    /// The repository is not in the registry.
    NameUnknown,
    /// The tag is malformed.
    TagInvalid,
    /// Authentication is required.
    Unauthorized,
    /// The caller may not have this.
    Denied,
    /// The operation is not offered.
    Unsupported,
    /// The caller asked too often.
    TooManyRequests,
    /// The range asked for lies outside the blob.
    SizeInvalid,
    /// Nobody could be reached who has it.
    Unavailable,
    /// Anything else.
    Unknown,
}

const CODES: [(OciCode, &str); 13] = [
    (OciCode::BlobUnknown, "BLOB_UNKNOWN"),
    (OciCode::DigestInvalid, "DIGEST_INVALID"),
    (OciCode::ManifestUnknown, "MANIFEST_UNKNOWN"),
    (OciCode::NameInvalid, "NAME_INVALID"),
    (OciCode::NameUnknown, "NAME_UNKNOWN"),
    (OciCode::TagInvalid, "TAG_INVALID"),
    (OciCode::Unauthorized, "UNAUTHORIZED"),
    (OciCode::Denied, "DENIED"),
    (OciCode::Unsupported, "UNSUPPORTED"),
    (OciCode::TooManyRequests, "TOOMANYREQUESTS"),
    (OciCode::SizeInvalid, "SIZE_INVALID"),
    (OciCode::Unavailable, "UNAVAILABLE"),
    (OciCode::Unknown, "UNKNOWN"),
];

impl OciCode {
    /// The code as it stands in the error body.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        CODES.iter().find(|(code, _)| *code == self).map_or("UNKNOWN", |(_, text)| text)
    }
}

impl fmt::Display for OciCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for OciCode {
    type Err = std::convert::Infallible;

    /// A code we do not know is [`OciCode::Unknown`].
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(CODES.iter().find(|(_, known)| *known == text).map_or(Self::Unknown, |(code, _)| *code))
    }
}

/// An error answer, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct OciError {
    /// The HTTP status.
    pub status: StatusCode,
    /// The code in the body.
    pub code: OciCode,
    /// The message in the body, for a human.
    pub message: String,
    /// The challenge of a 401, word for word.
    pub www_authenticate: Option<String>,
    /// When the caller may come back; sent in whole seconds, rounded up.
    pub retry_after: Option<Duration>,
}

impl OciError {
    /// Makes an error without challenge or waiting time.
    #[must_use]
    pub fn new(status: StatusCode, code: OciCode, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), www_authenticate: None, retry_after: None }
    }

    /// 503: nobody who has it can be reached now. Runtimes go to their next host.
    #[must_use]
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, OciCode::Unavailable, message)
    }

    /// 416 for a blob of `length` bytes. Send it with `Content-Range: bytes */length` (RFC 9110, section 15.5.17).
    #[must_use]
    pub fn range_not_satisfiable(length: u64) -> Self {
        let message = format!("the range lies outside the blob of {length} bytes");
        Self::new(StatusCode::RANGE_NOT_SATISFIABLE, OciCode::SizeInvalid, message)
    }

    /// The error body of the distribution-spec, section "Error Codes".
    #[must_use]
    pub fn body(&self) -> Bytes {
        let body = serde_json::json!({ "errors": [{ "code": self.code.as_str(), "message": self.message }] });
        Bytes::from(body.to_string())
    }

    /// The whole answer. For HEAD, hyper leaves the body out by itself.
    #[must_use]
    pub fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert("docker-distribution-api-version", HeaderValue::from_static("registry/2.0"));
        if let Some(challenge) = self.www_authenticate.as_deref().and_then(|text| HeaderValue::from_str(text).ok()) {
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        if let Some(wait) = self.retry_after {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<ReferenceError> for OciError {
    fn from(error: ReferenceError) -> Self {
        let (code, message) = match &error {
            ReferenceError::Registry(_) | ReferenceError::Name(_) => (OciCode::NameInvalid, error.to_string()),
            ReferenceError::Tag(_) => (OciCode::TagInvalid, error.to_string()),
            ReferenceError::Digest(cause) => (OciCode::DigestInvalid, cause.to_string()),
        };
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_parses_as_it_prints() {
        for (code, text) in CODES {
            assert_eq!(code.to_string(), text);
            assert_eq!(text.parse(), Ok(code));
        }
        assert_eq!("SOMETHING_ELSE".parse(), Ok(OciCode::Unknown));
    }

    #[test]
    fn the_answer_carries_challenge_waiting_time_and_body() {
        let mut error = OciError::new(StatusCode::UNAUTHORIZED, OciCode::Unauthorized, "say \"who\"");
        error.www_authenticate = Some("Bearer realm=\"https://auth.example/token\",service=\"r\"".to_owned());
        error.retry_after = Some(Duration::from_millis(1_200));
        let expected_body = br#"{"errors":[{"code":"UNAUTHORIZED","message":"say \"who\""}]}"#;
        assert_eq!(error.body().as_ref(), expected_body);
        let response = error.into_response();
        assert_eq!(response.status(), 401);
        assert_eq!(response.headers()["www-authenticate"], "Bearer realm=\"https://auth.example/token\",service=\"r\"");
        assert_eq!(response.headers()["retry-after"], "2");
        assert_eq!(response.headers()["content-type"], "application/json");
    }
}
