//! A blob that the disk does not take, straight from upstream to one client, with that client's own access. Made by the
//! HTTP front, read by its bodies.
//!
//! Invariant: who reads from the first byte on gets the last ones only after the whole digest was checked. A range is
//! upstream's word: its client checks what it puts together.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use shoal_meta::{Digest, Hasher};
use shoal_registry::{Access, BlobBody, UpstreamError};

use crate::error::OriginError;
use crate::gate::Gate;
use crate::metrics::OriginMetrics;
use crate::rooms::Rooms;

/// The way past the store for one client.
pub(crate) struct PassThrough {
    gate: Arc<Gate>,
    metrics: OriginMetrics,
    access: Access,
    digest: Digest,
    length: u64,
    open: Option<Open>,
}

/// Upstream's answer, and where it stands.
struct Open {
    body: BlobBody,
    at: u64,
    /// What came and was not given yet.
    rest: Bytes,
    /// How many bytes have not come.
    left: u64,
    /// Over all that came, if that began with the first byte and has not ended.
    hasher: Option<Hasher>,
}

impl PassThrough {
    /// Asks for nothing yet. `length` is the blob's, as the client was or will be told.
    pub(crate) fn new(rooms: &Rooms, access: &Access, digest: Digest, length: u64) -> Self {
        let (gate, metrics) = (Arc::clone(&rooms.gate), rooms.metrics.clone());
        Self { gate, metrics, access: access.clone(), digest, length, open: None }
    }

    /// Makes sure that upstream sends the bytes from `offset` on: the last moment at which an answer can be an error.
    pub(crate) async fn open(&mut self, offset: u64) -> Result<(), OriginError> {
        let open = self.opened(offset).await?;
        self.open = Some(open);
        Ok(())
    }

    /// The first bytes of a range, at least one.
    pub(crate) async fn read(&mut self, range: Range<u64>) -> Result<Bytes, OriginError> {
        let mut open = self.opened(range.start).await?;
        while open.rest.is_empty() {
            open.rest = open.arrive(self.digest).await.inspect_err(|error| {
                if let OriginError::Upstream(error) = error {
                    self.gate.note_cut(error);
                }
            })?;
            self.metrics.upstream_bytes.inc_by(open.rest.len() as u64);
        }
        let wanted = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let bytes = open.rest.split_to(open.rest.len().min(wanted));
        open.at += bytes.len() as u64;
        self.open = Some(open);
        Ok(bytes)
    }

    async fn opened(&mut self, offset: u64) -> Result<Open, OriginError> {
        if let Some(open) = self.open.take_if(|open| open.at == offset) {
            return Ok(open);
        }
        let body = self.gate.blob(&self.access, &self.digest, offset).await?;
        if body.length != self.length {
            let message = format!("the blob has {} bytes and had {}", body.length, self.length);
            return Err(UpstreamError::Protocol(message).into());
        }
        let hasher = (offset == 0).then(|| self.digest.hasher());
        Ok(Open { body, at: offset, rest: Bytes::new(), left: self.length - offset, hasher })
    }
}

impl Open {
    /// What comes next; the end of the whole blob only when it is the blob.
    async fn arrive(&mut self, digest: Digest) -> Result<Bytes, OriginError> {
        let next = self.body.next().await;
        let bytes = next.ok_or_else(|| UpstreamError::Protocol("the body ended early".to_owned()))??;
        self.left = self.left.saturating_sub(bytes.len() as u64);
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&bytes);
        }
        let whole = self.hasher.take_if(|_| self.left == 0);
        if whole.is_some_and(|hasher| hasher.finish() != digest) {
            return Err(OriginError::WrongContent(digest));
        }
        Ok(bytes)
    }
}
