//! The task that carries one blob from upstream's body into the store and the swarm, piece by piece and in order.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use futures_util::{Stream, StreamExt as _};
use shoal_meta::{Digest, PieceIndex};
use shoal_peer::{Failure, TorrentError};
use shoal_registry::{BlobBody, UpstreamError};
use shoal_store::{Blob, BufferPool, WriteError};
use tokio::time::Instant;

use super::{Begun, Ingest, Inner, Landing, offset_of};
use crate::error::OriginError;
use crate::lock;

/// How long what arrived of a blob is kept for the next request after upstream failed.
const KEPT_AFTER_FAILURE: Duration = Duration::from_secs(15 * 60);

/// Fetches to the end and tells how it went.
pub(super) async fn run(landing: Landing, body: BlobBody) {
    let (inner, ingest) = (Arc::clone(&landing.inner), Arc::clone(&landing.ingest));
    let (digest, givers) = (ingest.digest, body.givers());
    inner.metrics.ingests.inc();
    let started = Instant::now();
    let end = fetch(&inner, &ingest, body).await;
    inner.metrics.ingests.dec();
    let outcome = match &end {
        Ok(blob) => {
            tracing::info!(%digest, length_bytes = blob.length(), elapsed = ?started.elapsed(), "blob ingested");
            lock(&inner.begun).remove(&digest);
            "ingested"
        }
        Err(error @ OriginError::WrongContent(_)) => {
            tracing::error!(%digest, %error, registry = %lock(&ingest.access).repository, "blob withdrawn");
            inner.node.withdraw(digest, "upstream sends other bytes").await;
            // Without the mirror that gave them others may come.
            if !givers.disown() {
                lock(&inner.wrong).put(digest, Instant::now());
            }
            "withdrawn"
        }
        Err(error @ OriginError::Disk(_)) => {
            inner.pass(digest, ingest.geometry().length(), error);
            lock(&inner.begun).remove(&digest);
            landing.land(end);
            // After its end is known: readers of what it had go upstream for the rest.
            inner.node.withdraw(digest, "the disk does not take it").await;
            return;
        }
        Err(error) => {
            tracing::warn!(%digest, %error, "blob not ingested; what arrived is kept");
            let (length, failed) = (ingest.geometry().length(), Instant::now());
            lock(&inner.begun).put(digest, Begun { length, failed: Some(failed) });
            tokio::spawn(abandon(Arc::downgrade(&inner), digest, failed));
            "failed"
        }
    };
    inner.metrics.blobs.with_label_values(&[outcome]).inc();
    landing.land(end);
}

/// Gives up what arrived of a blob that nobody has asked for since it failed: its torrent keeps it from being evicted.
async fn abandon(inner: Weak<Inner>, digest: Digest, failed: Instant) {
    tokio::time::sleep(KEPT_AFTER_FAILURE).await;
    let Some(inner) = inner.upgrade() else { return };
    let asked_since = || lock(&inner.begun).get(&digest).is_some_and(|begun| begun.failed != Some(failed));
    if asked_since() || inner.held(&digest).is_some() {
        return;
    }
    // In line with those who would begin it just now.
    let job = {
        let inner = Arc::clone(&inner);
        async move {
            inner.node.withdraw(digest, "fetching it failed and nobody has asked since").await;
            lock(&inner.begun).remove(&digest);
            Err(OriginError::Lost)
        }
    };
    let _ = inner.opening.run(digest, job).await;
}

async fn fetch(inner: &Inner, ingest: &Ingest, body: BlobBody) -> Result<Blob, OriginError> {
    let mut access = lock(&ingest.access).clone();
    let mut body = body;
    loop {
        let error = match carry(inner, ingest, body).await {
            Ok(()) => break,
            Err(OriginError::Upstream(error)) => error,
            Err(error) => return Err(error),
        };
        inner.gate.note_cut(&error);
        // The first caller's token may have expired since; another's may be good.
        let newer = lock(&ingest.access).clone();
        if newer == access || !crate::error::is_about_the_caller(&error) {
            return Err(error.into());
        }
        access = newer;
        let next = ingest.partial.have().first_missing(0);
        body = inner.gate.blob(&access, &ingest.digest, offset_of(&ingest.geometry(), next)).await?;
    }
    ingest.torrent.committed().await.map_err(|error| ended(ingest, error))
}

/// Carries a body, which begins with a piece, to its end: while one piece is hashed and written the next one arrives.
async fn carry(inner: &Inner, ingest: &Ingest, body: BlobBody) -> Result<(), OriginError> {
    let geometry = ingest.geometry();
    let mut piece = geometry.piece_at(body.offset);
    let bytes_in = inner.metrics.upstream_bytes.clone();
    let mut cutter = Cutter::new(body.inspect(|bytes| {
        if let Ok(bytes) = bytes {
            bytes_in.inc_by(bytes.len() as u64);
        }
    }));
    let mut arrived: Option<(PieceIndex, Bytes)> = None;
    while piece.is_some() || arrived.is_some() {
        let write = async {
            match arrived.take() {
                Some((piece, bytes)) => write(ingest, piece, bytes).await,
                None => Ok(()),
            }
        };
        let read = async {
            let Some(piece) = piece else { return Ok(None) };
            let bytes = cutter.next(&inner.pool, geometry.length_of(piece)).await?;
            Ok::<_, UpstreamError>(Some((piece, bytes)))
        };
        let (written, read) = tokio::join!(write, read);
        written?;
        arrived = read?;
        piece = piece.and_then(|piece| geometry.piece(piece.get() + 1));
    }
    Ok(())
}

async fn write(ingest: &Ingest, piece: PieceIndex, bytes: Bytes) -> Result<(), OriginError> {
    let blocks = ingest.geometry().blocks(piece);
    let blocks = blocks.map(|block| bytes.slice(block.offset as usize..(block.offset + block.length) as usize));
    let hash = ingest.torrent.ingest(piece, blocks.collect()).await.map_err(|error| ended(ingest, error))?;
    // It comes in order, so there is one.
    if let Some(hash) = hash {
        ingest.publish(piece, hash);
    }
    Ok(())
}

/// What the torrent's end means for those who wait.
fn ended(ingest: &Ingest, error: TorrentError) -> OriginError {
    match &error {
        // A piece published before came otherwise this time, or the pieces do not make the blob.
        TorrentError::Write(WriteError::HashMismatch { .. }) | TorrentError::Failed(Failure::WrongContent { .. }) => {
            OriginError::WrongContent(ingest.digest)
        }
        TorrentError::Write(WriteError::Disk(_)) | TorrentError::Failed(Failure::Disk(_)) => OriginError::disk(error),
        TorrentError::Closed => OriginError::Lost,
        TorrentError::Failed(_) | TorrentError::Write(_) | TorrentError::Hashes(_) => OriginError::local(error),
    }
}

/// Cuts a stream of bytes into runs of the lengths asked for.
struct Cutter<S> {
    body: S,
    rest: Bytes,
}

impl<S: Stream<Item = Result<Bytes, UpstreamError>> + Unpin> Cutter<S> {
    fn new(body: S) -> Self {
        Self { body, rest: Bytes::new() }
    }

    /// The next `length` bytes, in one buffer of the pool: taken whole, so that blobs that arrive at the same time
    /// cannot lock each other out with half-filled pieces.
    async fn next(&mut self, pool: &BufferPool, length: u32) -> Result<Bytes, UpstreamError> {
        let mut piece = pool.get(length as usize).await;
        let mut filled = 0;
        while filled < piece.len() {
            if self.rest.is_empty() {
                let next = self.body.next().await;
                self.rest = next.ok_or_else(|| UpstreamError::Protocol("the body ended early".to_owned()))??;
                continue;
            }
            let count = self.rest.len().min(piece.len() - filled);
            piece[filled..filled + count].copy_from_slice(&self.rest[..count]);
            self.rest.advance(count);
            filled += count;
        }
        Ok(piece.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_is_cut_however_it_arrives() {
        let content: Vec<u8> = (0..=255).collect();
        for step in [1, 3, 100, 256] {
            let body = futures_util::stream::iter(content.chunks(step).map(|bytes| Ok(Bytes::copy_from_slice(bytes))));
            let mut cutter = Cutter::new(body);
            let pool = BufferPool::new(1 << 20);
            let mut cut = Vec::new();
            for length in [100, 100, 56] {
                cut.push(cutter.next(&pool, length).await.unwrap());
            }
            assert_eq!(cut.concat(), content);
        }
    }

    #[tokio::test]
    async fn a_body_that_ends_early_is_an_error() {
        let mut cutter = Cutter::new(futures_util::stream::iter([Ok(Bytes::from_static(b"ab"))]));
        assert!(cutter.next(&BufferPool::new(1 << 20), 3).await.is_err());
    }
}
