//! Why the origin did not give what was asked, and how that is said to OCI clients and over gRPC. Nothing else in this
//! crate chooses a status.

use std::sync::Arc;

use prost::Message as _;
use shoal_meta::Digest;
use shoal_proto::UPSTREAM_ERROR_METADATA;
use shoal_proto::origin::v1 as proto;
use shoal_registry::{OciError, UpstreamError};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

/// Why the origin did not give what was asked. Cheap to clone: everyone who waits for one fetch gets it.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum OriginError {
    /// Upstream did not give it; the error says whether that may change.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// Upstream sends other bytes under this digest: its fault, not retryable. The blob was withdrawn.
    #[error("upstream sends other bytes than those of {0}; they were thrown away")]
    WrongContent(Digest),
    /// A limit of this origin is reached: retryable.
    #[error("the origin is busy: {0}")]
    Busy(&'static str),
    /// The disk is full or fails: an operator's to mend. Whoever wants the blob goes upstream; the front does so itself.
    #[error("the origin's disk does not take the blob: ask upstream for it")]
    Disk(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// The store or the peer node failed: our fault, retryable once an operator has looked.
    #[error("the origin cannot keep what it fetches")]
    Local(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// The work was lost, by a bug or because the origin is stopping: retryable.
    #[error("the origin gave up the work")]
    Lost,
}

impl OriginError {
    pub(crate) fn local(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Local(Arc::from(source.into()))
    }

    pub(crate) fn disk(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Disk(Arc::from(source.into()))
    }

    /// Whether the answer was about the one who asked: another caller may be given what this one was refused.
    pub(crate) fn is_about_the_caller(&self) -> bool {
        matches!(self, Self::Upstream(error) if is_about_the_caller(error))
    }

    /// Whether upstream is down, limits us or may not be asked, so that what it said before may be said again.
    pub(crate) fn is_outage(&self) -> bool {
        matches!(self, Self::Upstream(error) if error.is_retryable() || matches!(error, UpstreamError::Offline { .. }))
    }

    /// The answer to an OCI client.
    pub(crate) fn to_oci_error(&self) -> OciError {
        match self {
            Self::Upstream(error) => error.to_oci_error(),
            Self::WrongContent(_) | Self::Busy(_) | Self::Disk(_) | Self::Local(_) | Self::Lost => {
                OciError::unavailable(self.to_string())
            }
        }
    }

    /// The answer over gRPC; what upstream said goes along in binary metadata.
    pub(crate) fn to_status(&self) -> Status {
        match self {
            Self::Upstream(error) => with_upstream_error(code_of(error), &self.to_string(), error),
            Self::WrongContent(_) => {
                let error = UpstreamError::Protocol(self.to_string());
                with_upstream_error(Code::DataLoss, &self.to_string(), &error)
            }
            Self::Disk(_) => Status::resource_exhausted(self.to_string()),
            Self::Busy(_) | Self::Local(_) | Self::Lost => Status::unavailable(self.to_string()),
        }
    }
}

/// Whether upstream's answer was about the one who asked.
pub(crate) fn is_about_the_caller(error: &UpstreamError) -> bool {
    match error {
        UpstreamError::Unauthorized { .. }
        | UpstreamError::Denied { .. }
        | UpstreamError::Excluded { .. }
        | UpstreamError::NotFound { .. }
        | UpstreamError::Refused { .. }
        | UpstreamError::Request(_) => true,
        UpstreamError::Offline { .. }
        | UpstreamError::RateLimited { .. }
        | UpstreamError::Server { .. }
        | UpstreamError::Transport(_)
        | UpstreamError::Timeout { .. }
        | UpstreamError::Protocol(_)
        | UpstreamError::TooLong { .. } => false,
    }
}

fn code_of(error: &UpstreamError) -> Code {
    match error {
        UpstreamError::Unauthorized { .. } => Code::Unauthenticated,
        UpstreamError::Denied { .. } | UpstreamError::Excluded { .. } => Code::PermissionDenied,
        UpstreamError::NotFound { .. } | UpstreamError::Offline { .. } => Code::NotFound,
        UpstreamError::RateLimited { .. } => Code::ResourceExhausted,
        UpstreamError::Request(_) => Code::InvalidArgument,
        UpstreamError::Server { .. }
        | UpstreamError::Refused { .. }
        | UpstreamError::Transport(_)
        | UpstreamError::Timeout { .. }
        | UpstreamError::Protocol(_)
        | UpstreamError::TooLong { .. } => Code::Unavailable,
    }
}

fn with_upstream_error(code: Code, message: &str, error: &UpstreamError) -> Status {
    let parts = error.to_parts();
    let wait = parts.retry_after.map_or(0, |wait| u32::try_from(wait.as_millis()).unwrap_or(u32::MAX));
    let encoded = proto::UpstreamError {
        status: u32::from(parts.status),
        code: parts.code,
        message: parts.message,
        www_authenticate: parts.www_authenticate.unwrap_or_default(),
        retry_after_ms: wait,
    }
    .encode_to_vec();
    let mut metadata = MetadataMap::new();
    metadata.insert_bin(UPSTREAM_ERROR_METADATA, MetadataValue::from_bytes(&encoded));
    Status::with_metadata(code, message, metadata)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_challenge_travels_in_binary_metadata() {
        let challenge = "Bearer realm=\"https://auth.example/token\"";
        let error = OriginError::from(UpstreamError::Unauthorized {
            challenge: Some(challenge.to_owned()),
            message: "no".to_owned(),
        });
        let status = error.to_status();
        assert_eq!(status.code(), Code::Unauthenticated);
        let bytes = status.metadata().get_bin(UPSTREAM_ERROR_METADATA).unwrap().to_bytes().unwrap();
        let decoded = proto::UpstreamError::decode(bytes).unwrap();
        assert_eq!((decoded.status, decoded.www_authenticate.as_str()), (401, challenge));
    }

    #[test]
    fn faults_of_the_origin_are_answered_with_503() {
        for error in [OriginError::Lost, OriginError::Busy("x"), OriginError::local("disk")] {
            assert_eq!(error.to_oci_error().status, 503);
            assert_eq!(error.to_status().code(), Code::Unavailable);
        }
    }
}
