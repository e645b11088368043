//! Why upstream did not give what was asked, in a form that can be answered to a client, shared between callers waiting
//! for one fetch, and carried over gRPC from the origin to an agent.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use crate::error::{OciCode, OciError};

/// Why upstream did not give what was asked.
///
/// Retryable are [`RateLimited`](Self::RateLimited), [`Server`](Self::Server), [`Transport`](Self::Transport) and
/// [`Timeout`](Self::Timeout); the client of this module has already retried them as [`Timing`](super::Timing) says.
#[derive(Debug, Clone, thiserror::Error)]
pub enum UpstreamError {
    /// 401: the caller's credentials, or their absence, were refused: by upstream, or a ticket by an origin. Not retryable with
    /// the same credentials.
    #[error("the caller is not authorised: {message}")]
    Unauthorized {
        /// Upstream's `WWW-Authenticate`, word for word.
        challenge: Option<String>,
        /// What upstream said.
        message: String,
    },
    /// 403: the caller may not have it. Not retryable.
    #[error("upstream denies access: {message}")]
    Denied {
        /// What upstream said.
        message: String,
    },
    /// 403: the configuration, here or at the origin, does not let this repository be served. Not retryable.
    #[error("the configuration excludes it: {reason}")]
    Excluded {
        /// The repository and the rule.
        reason: String,
    },
    /// 404: it is not held here, and by the configuration upstream is never asked. Not retryable.
    #[error("it is not held here, and upstream is not asked: the configuration says offline")]
    Offline {
        /// What is unknown: the repository, the manifest or the blob.
        code: OciCode,
    },
    /// 404: upstream does not have it, or hides it from this caller. Not retryable.
    #[error("upstream does not have it: {message}")]
    NotFound {
        /// What is unknown: the repository, the manifest or the blob.
        code: OciCode,
        /// What upstream said.
        message: String,
    },
    /// 429: we asked too often. Retryable after a while.
    #[error("upstream limits our requests")]
    RateLimited {
        /// How long upstream wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// 5xx: upstream's fault. Retryable.
    #[error("upstream answered {status}")]
    Server {
        /// The status.
        status: u16,
        /// How long upstream wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// Any other status, such as 400 or an endless redirect. Not retryable.
    #[error("upstream refused the request with {status}: {message}")]
    Refused {
        /// The status.
        status: u16,
        /// What upstream said.
        message: String,
    },
    /// Upstream could not be reached, or the connection broke. Retryable.
    #[error("upstream could not be reached or the connection broke")]
    Transport(#[source] Arc<dyn Error + Send + Sync>),
    /// Upstream fell silent. Retryable.
    #[error("upstream was silent for {after:?} while we waited for {awaited}")]
    Timeout {
        /// What we waited for: "a connection", "headers", "the body".
        awaited: &'static str,
        /// For how long.
        after: Duration,
    },
    /// Upstream's answer breaks the protocol: a wrong digest, a length that does not add up, a header that is missing. Upstream's
    /// fault. Not retryable.
    #[error("upstream's answer breaks the protocol: {0}")]
    Protocol(String),
    /// The manifest or listing is longer than [`MANIFEST_LENGTH_MAX`](crate::MANIFEST_LENGTH_MAX). Not retryable.
    #[error("upstream's document is longer than {limit} bytes")]
    TooLong {
        /// The limit in bytes.
        limit: usize,
    },
    /// The request cannot be made, such as credentials that are not a header value. The caller's fault. Not retryable.
    #[error("the request cannot be made: {0}")]
    Request(String),
}

/// Why the client cannot be set up. The operator's fault; not retryable.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The URL of a registry or a mirror is not one.
    #[error(
        "registries.{registry:?}.{key} holds {url:?}; expected http://host[:port] or https://host[:port], with a path or none"
    )]
    Url {
        /// The registry's name in the configuration.
        registry: String,
        /// `url` or `mirrors`.
        key: &'static str,
        /// The value given.
        url: String,
    },
    /// The name of a registry is not a host.
    #[error("registries holds a name that is not a registry")]
    Registry(#[source] crate::reference::ReferenceError),
    /// A file of certificates or keys cannot be read, or holds none that can be used.
    #[error("{key} {path:?} of registry {registry:?} cannot be used")]
    Tls {
        /// The registry's name in the configuration.
        registry: String,
        /// `ca_file`, `client_cert_file` or `client_key_file`.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        cause: Box<dyn Error + Send + Sync>,
    },
    /// Only one of a certificate and its key is given.
    #[error("registries.{registry:?} has one of client_cert_file and client_key_file; expected both or none")]
    HalfCertificate {
        /// The registry's name in the configuration.
        registry: String,
    },
    /// A mapping of names cannot be used.
    #[error(
        "registries.{registry:?}.remap maps {from:?} to {to:?}; expected beginnings of repository names, and a url or mirrors"
    )]
    Remap {
        /// The registry's name in the configuration.
        registry: String,
        /// The beginning to replace.
        from: String,
        /// What to put in its place.
        to: String,
    },
    /// An entry of `allow` or `deny` is not a pattern of repositories.
    #[error("{list} holds {rule:?}; expected a registry such as docker.io, or a beginning such as r.example/team/*")]
    Rule {
        /// The list.
        list: &'static str,
        /// The value given.
        rule: String,
    },
    /// A file of credentials cannot be read or is not one.
    #[error("{key} {path:?} cannot be read")]
    Credentials {
        /// The key that names it.
        key: String,
        /// The file.
        path: PathBuf,
        /// What is wrong with it; never a credential.
        #[source]
        cause: Box<dyn Error + Send + Sync>,
    },
}

/// An [`UpstreamError`] in plain values, to cross a process boundary: the fields of `shoal.origin.v1.UpstreamError`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ErrorParts {
    /// The HTTP status upstream answered; 0 when it did not answer.
    pub status: u16,
    /// The OCI error code.
    pub code: String,
    /// What happened, for a human.
    pub message: String,
    /// Upstream's `WWW-Authenticate`, word for word.
    pub www_authenticate: Option<String>,
    /// How long upstream wants to be left alone.
    pub retry_after: Option<Duration>,
}

impl UpstreamError {
    /// Refuses credentials without a challenge that could be answered.
    #[must_use]
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::Unauthorized { challenge: None, message: message.into() }
    }

    /// Wraps what broke the connection.
    pub(crate) fn transport(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Transport(Arc::from(cause.into()))
    }

    /// Whether the same request may succeed later or from another source.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::RateLimited { .. } | Self::Server { .. } | Self::Transport(_) | Self::Timeout { .. } => true,
            Self::Unauthorized { .. }
            | Self::Denied { .. }
            | Self::Excluded { .. }
            | Self::Offline { .. }
            | Self::NotFound { .. }
            | Self::Refused { .. }
            | Self::Protocol(_)
            | Self::TooLong { .. }
            | Self::Request(_) => false,
        }
    }

    /// How long upstream wants to be left alone, if it said so.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after } | Self::Server { retry_after, .. } => *retry_after,
            Self::Unauthorized { .. }
            | Self::Denied { .. }
            | Self::Excluded { .. }
            | Self::Offline { .. }
            | Self::NotFound { .. }
            | Self::Refused { .. }
            | Self::Transport(_)
            | Self::Timeout { .. }
            | Self::Protocol(_)
            | Self::TooLong { .. }
            | Self::Request(_) => None,
        }
    }

    /// The status upstream answered, 0 when it did not, and the code that says the same.
    fn status_and_code(&self) -> (u16, OciCode) {
        match self {
            Self::Unauthorized { .. } => (401, OciCode::Unauthorized),
            Self::Denied { .. } => (403, OciCode::Denied),
            Self::Excluded { .. } => (0, OciCode::Denied),
            Self::Offline { code } => (0, *code),
            Self::NotFound { code, .. } => (404, *code),
            Self::RateLimited { .. } => (429, OciCode::TooManyRequests),
            Self::Server { status, .. } => (*status, OciCode::Unavailable),
            Self::Refused { status, .. } => (*status, OciCode::Unknown),
            Self::Transport(_) | Self::Timeout { .. } => (0, OciCode::Unavailable),
            Self::Protocol(_) | Self::TooLong { .. } | Self::Request(_) => (0, OciCode::Unknown),
        }
    }

    fn challenge(&self) -> Option<String> {
        if let Self::Unauthorized { challenge, .. } = self { challenge.clone() } else { None }
    }

    /// The answer for a client: 401, 403 and 404 as upstream or the configuration gave them, and 503 for the rest, on which
    /// runtimes go to their next host. Never 408 or 429: containerd would repeat those here at once.
    #[must_use]
    pub fn to_oci_error(&self) -> OciError {
        let (status, code) = self.status_and_code();
        let told = match self {
            Self::Unauthorized { .. } | Self::Denied { .. } | Self::NotFound { .. } => {
                StatusCode::from_u16(status).ok()
            }
            Self::Excluded { .. } => Some(StatusCode::FORBIDDEN),
            Self::Offline { .. } => Some(StatusCode::NOT_FOUND),
            Self::RateLimited { .. }
            | Self::Server { .. }
            | Self::Refused { .. }
            | Self::Transport(_)
            | Self::Timeout { .. }
            | Self::Protocol(_)
            | Self::TooLong { .. }
            | Self::Request(_) => None,
        };
        let mut error = match told {
            Some(status) => OciError::new(status, code, self.to_string()),
            None => OciError::unavailable(self.to_string()),
        };
        error.www_authenticate = self.challenge();
        error.retry_after = self.retry_after();
        error
    }

    /// Takes the error apart, to carry it over gRPC.
    #[must_use]
    pub fn to_parts(&self) -> ErrorParts {
        let (status, code) = self.status_and_code();
        let message = match self {
            Self::Unauthorized { message, .. }
            | Self::Denied { message }
            | Self::Excluded { reason: message }
            | Self::NotFound { message, .. }
            | Self::Refused { message, .. }
            | Self::Protocol(message) => message.clone(),
            Self::Transport(cause) => chain(cause.as_ref()),
            Self::Offline { .. }
            | Self::RateLimited { .. }
            | Self::Server { .. }
            | Self::Timeout { .. }
            | Self::TooLong { .. }
            | Self::Request(_) => self.to_string(),
        };
        let (www_authenticate, retry_after) = (self.challenge(), self.retry_after());
        ErrorParts { status, code: code.to_string(), message, www_authenticate, retry_after }
    }

    /// Puts an error together again: the status decides which it is, and without one the code.
    #[must_use]
    pub fn from_parts(parts: ErrorParts) -> Self {
        let ErrorParts { status, code, message, www_authenticate, retry_after } = parts;
        let Ok(code) = code.parse::<OciCode>();
        match status {
            401 => Self::Unauthorized { challenge: www_authenticate, message },
            403 => Self::Denied { message },
            404 => Self::NotFound { code, message },
            429 => Self::RateLimited { retry_after },
            500.. => Self::Server { status, retry_after },
            0 if code == OciCode::Unavailable => Self::transport(message),
            0 if code == OciCode::Denied => Self::Excluded { reason: message },
            0 if matches!(code, OciCode::BlobUnknown | OciCode::ManifestUnknown | OciCode::NameUnknown) => {
                Self::Offline { code }
            }
            0 => Self::Protocol(message),
            _ => Self::Refused { status, message },
        }
    }
}

/// The messages of an error and its causes in one line.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<UpstreamError> {
        let message = "m".to_owned();
        let wait = Some(Duration::from_secs(7));
        vec![
            UpstreamError::Unauthorized { challenge: Some("Bearer realm=\"x\"".to_owned()), message: message.clone() },
            UpstreamError::Denied { message: message.clone() },
            UpstreamError::NotFound { code: OciCode::BlobUnknown, message: message.clone() },
            UpstreamError::RateLimited { retry_after: wait },
            UpstreamError::Server { status: 502, retry_after: wait },
            UpstreamError::Refused { status: 405, message: message.clone() },
            UpstreamError::transport("reset"),
            UpstreamError::Timeout { awaited: "headers", after: Duration::from_secs(1) },
            UpstreamError::Protocol(message),
            UpstreamError::TooLong { limit: 1 },
            UpstreamError::Request("x".to_owned()),
            UpstreamError::Excluded { reason: "r".to_owned() },
            UpstreamError::Offline { code: OciCode::ManifestUnknown },
        ]
    }

    #[test]
    fn no_error_is_answered_with_408_or_429() {
        for error in all() {
            let status = error.to_oci_error().status.as_u16();
            assert!(matches!(status, 401 | 403 | 404 | 503), "{error}: {status}");
        }
    }

    #[test]
    fn a_challenge_and_a_waiting_time_reach_the_client() {
        let answer = all()[0].to_oci_error();
        assert_eq!(answer.www_authenticate.as_deref(), Some("Bearer realm=\"x\""));
        assert_eq!(all()[3].to_oci_error().retry_after, Some(Duration::from_secs(7)));
    }

    #[test]
    fn an_error_survives_the_way_through_its_parts() {
        for error in all() {
            let parts = error.to_parts();
            let again = UpstreamError::from_parts(parts.clone());
            assert_eq!(again.is_retryable(), error.is_retryable(), "{error}");
            assert_eq!(again.to_oci_error().status, error.to_oci_error().status, "{error}");
            assert_eq!(again.to_parts().www_authenticate, parts.www_authenticate);
            assert_eq!(again.to_parts().message, parts.message);
            assert_eq!(again.to_parts().retry_after, parts.retry_after);
        }
    }
}
