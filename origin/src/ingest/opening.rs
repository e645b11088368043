//! Opens a blob upstream and here, so that it can be carried from one to the other.

use shoal_meta::{Digest, Geometry};
use shoal_registry::{Access, BlobBody, UpstreamError};
use shoal_store::{Blob, Partial, PartialError};

use super::{Begun, Inner, offset_of};
use crate::error::OriginError;
use crate::lock;

/// What came of it.
pub(super) enum Opened {
    /// With the body from the first piece missing; upstream let the caller in.
    Partial(Partial, BlobBody),
    /// It was here already; nobody asked whether the caller may have it.
    Whole(Blob),
    /// The disk does not take a blob of this length; nobody may have asked whether the caller may have it.
    Refused(u64, OriginError),
}

/// Asks upstream for the blob from the first piece that is missing here.
pub(super) async fn open(inner: &Inner, access: &Access, digest: &Digest) -> Result<Opened, OriginError> {
    // What was left behind tells where to go on, and its length must be known to open it.
    let begun = lock(&inner.begun).get(digest).map(|begun| begun.length);
    let (length, body) = match begun {
        Some(length) => (length, None),
        None if inner.store.resumable().contains(digest) => (inner.gate.blob_length(access, digest).await?, None),
        None => {
            let body = inner.gate.blob(access, digest, 0).await?;
            (body.length, Some(body))
        }
    };
    let geometry = Geometry::for_length(length)
        .map_err(|error| UpstreamError::Protocol(format!("the blob of {length} bytes cannot be cut: {error}")))?;
    let partial = match inner.node.partial(*digest, geometry).await {
        Ok(partial) => partial,
        Err(PartialError::Committed(blob)) => return Ok(Opened::Whole(blob)),
        Err(error @ (PartialError::NoSpace { .. } | PartialError::Disk(_))) => {
            return Ok(Opened::Refused(length, OriginError::disk(error)));
        }
        Err(error @ PartialError::GeometryMismatch { .. }) => return Err(OriginError::local(error)),
    };
    let have = match partial.recheck().await {
        Ok(have) => have,
        Err(error) => return Ok(Opened::Refused(length, OriginError::disk(error))),
    };
    let offset = offset_of(&geometry, have.first_missing(0));
    let body = match body {
        Some(body) if offset == 0 => body,
        Some(_) | None => inner.gate.blob(access, digest, offset).await?,
    };
    if body.length != length {
        lock(&inner.begun).remove(digest);
        return Err(UpstreamError::Protocol(format!("the blob has {} bytes and had {length}", body.length)).into());
    }
    lock(&inner.begun).put(*digest, Begun { length, failed: None });
    Ok(Opened::Partial(partial, body))
}
