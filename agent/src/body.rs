//! The bytes of an answer: slices of a blob in order, from wherever it is, with the text of multipart answers between.
//!
//! The front makes one for each answer. A body ends early with an error, and never cleanly short: hyper then closes the
//! connection, and the client comes back for the rest.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, StreamBody};
use shoal_meta::Digest;
use shoal_registry::{Access, BlobBody, UpstreamError};
use shoal_store::{Blob, Region};
use tokio::sync::OwnedSemaphorePermit;

use crate::blobs::{Blobs, Opened};
use crate::download::{ReadError, Reader, slice_length};
use crate::given::Given;
use crate::metrics::Fallback;
use crate::sendfile::{Run, Slots};

/// Bytes of the store in one frame of a body.
const SLICE_LENGTH: u64 = 256 * 1024;
/// Bytes read for a frame while [`SLICES_MAX`] others are held: every connection can hold two of these for ever without
/// taking all of the store's buffers, which peers need too.
const SMALL_SLICE_LENGTH: u64 = 16 * 1024;
/// Most slices of the full length held by clients at a time: 4 MiB.
pub(crate) const SLICES_MAX: usize = 16;

/// The body of any answer.
pub(crate) type Body = UnsyncBoxBody<Run, Cut>;

/// Says that a body ended early because every source failed; the connection is closed for it.
#[derive(Debug, thiserror::Error)]
#[error("every source of the blob failed")]
pub(crate) struct Cut;

/// A stretch of an answer.
#[derive(Debug)]
pub(crate) enum Stretch {
    /// Words between the ranges.
    Text(Bytes),
    /// A range of the blob; not empty.
    Blob(Range<u64>),
}

/// Reads a blob from wherever it is, and past the store when the store or the torrent fails.
pub(crate) struct BlobReader {
    blobs: Arc<Blobs>,
    access: Access,
    digest: Digest,
    source: Source,
    slots: Slots,
    /// Told when the client has all of the blob with this body.
    told: Option<Arc<Given>>,
}

enum Source {
    Stored(Blob),
    Arriving(Reader),
    /// The stream, where it stands, and what is left of its last piece of bytes; none before it is opened.
    Upstream(Option<PassThrough>),
}

struct PassThrough {
    body: BlobBody,
    at: u64,
    rest: Bytes,
}

impl BlobReader {
    /// A reader from the byte at `from` on, for an answer on the connection of these slots.
    pub(crate) fn new(
        blobs: &Arc<Blobs>,
        access: &Access,
        digest: Digest,
        opened: Opened,
        from: u64,
        slots: Slots,
    ) -> Self {
        let source = match opened {
            Opened::Stored(blob) => Source::Stored(blob),
            Opened::Arriving(download) => Source::Arriving(download.reader(from)),
            Opened::Upstream { .. } => Source::Upstream(None),
        };
        Self { blobs: blobs.clone(), access: access.clone(), digest, source, slots, told: None }
    }

    /// For an answer with which the client has all of the blob, if it ends well: who is told of that then.
    pub(crate) fn telling(self, told: Option<Arc<Given>>) -> Self {
        Self { told, ..self }
    }

    /// Waits until the byte at `offset` is at hand: the last moment at which an answer can still be an error.
    pub(crate) async fn ready(&mut self, offset: u64) -> Result<(), UpstreamError> {
        match &mut self.source {
            Source::Stored(_) => Ok(()),
            Source::Arriving(reader) => match reader.ready(offset).await {
                Ok(()) => Ok(()),
                Err(ReadError::Exhausted(error)) => Err(error),
                Err(ReadError::Broken) => {
                    self.leave_torrent();
                    match self.source {
                        Source::Upstream(_) => self.pass_through(offset).await,
                        Source::Stored(_) | Source::Arriving(_) => Ok(()),
                    }
                }
            },
            Source::Upstream(_) => self.pass_through(offset).await,
        }
    }

    /// The bytes from `offset` on, not past `end`; at least one.
    async fn read(&mut self, offset: u64, end: u64) -> Result<Run, Cut> {
        if let Some(run) = self.stored_in_memory(offset, end) {
            return Ok(run);
        }
        let permit = self.blobs.slices.clone().try_acquire_owned().ok();
        let slice = if permit.is_some() { SLICE_LENGTH } else { SMALL_SLICE_LENGTH };
        let bytes = self.read_slice(offset, end, slice).await?;
        Ok(Run::Bytes(match permit {
            Some(permit) => Bytes::from_owner(Slice { bytes, _permit: permit }),
            None => bytes,
        }))
    }

    /// A run that the kernel sends from the blob's file, if the blob is whole and the kernel holds the run in memory. It
    /// takes no buffer, and so no permit.
    fn stored_in_memory(&self, offset: u64, end: u64) -> Option<Run> {
        let Source::Stored(blob) = &self.source else { return None };
        let length = slice_length(offset, end, SLICE_LENGTH);
        let region = blob.region(offset, length).ok().filter(Region::is_cached)?;
        let run = self.slots.place(region)?;
        self.blobs.counters.served_local.inc_by(u64::from(length));
        Some(Run::File(run))
    }

    async fn read_slice(&mut self, offset: u64, end: u64, slice: u64) -> Result<Bytes, Cut> {
        if let Source::Arriving(reader) = &mut self.source {
            match reader.read(offset, end, slice).await {
                Ok(bytes) => {
                    self.blobs.counters.served_arriving.inc_by(bytes.len() as u64);
                    return Ok(bytes);
                }
                Err(ReadError::Exhausted(_)) => {
                    reader.note_cut();
                    return Err(Cut);
                }
                Err(ReadError::Broken) => self.leave_torrent(),
            }
        }
        if let Source::Stored(blob) = &self.source {
            match blob.read(offset, slice_length(offset, end, slice)).await {
                Ok(bytes) => {
                    self.blobs.counters.served_local.inc_by(bytes.len() as u64);
                    return Ok(bytes);
                }
                Err(error) => {
                    tracing::warn!(digest = %self.digest, %error, "cannot read a blob of the store: passing it through");
                    self.blobs.counters.fell_back(Fallback::Store);
                }
            }
        }
        self.read_past_the_store(offset, end, slice).await.map_err(|error| {
            tracing::warn!(digest = %self.digest, %error, "upstream failed in mid-blob");
            Cut
        })
    }

    /// The torrent brings no more: the blob is in the store by now, or has to be read past it.
    fn leave_torrent(&mut self) {
        self.source = match self.blobs.store.blob(&self.digest) {
            Some(blob) => Source::Stored(blob),
            None => {
                self.blobs.counters.fell_back(Fallback::Store);
                Source::Upstream(None)
            }
        };
    }

    /// Opens the stream from upstream at an offset, unless it stands there.
    async fn pass_through(&mut self, offset: u64) -> Result<(), UpstreamError> {
        if let Source::Upstream(Some(open)) = &self.source
            && open.at == offset
        {
            return Ok(());
        }
        let body = self.blobs.upstream.blob(&self.access, &self.digest, offset).await?;
        self.source = Source::Upstream(Some(PassThrough { body, at: offset, rest: Bytes::new() }));
        Ok(())
    }

    async fn read_past_the_store(&mut self, offset: u64, end: u64, slice: u64) -> Result<Bytes, UpstreamError> {
        self.pass_through(offset).await?;
        let Source::Upstream(Some(open)) = &mut self.source else { return Err(ended_early()) };
        while open.rest.is_empty() {
            open.rest = open.body.next().await.ok_or_else(ended_early)??;
        }
        let length = open.rest.len().min(slice_length(offset, end, slice) as usize);
        let bytes = open.rest.split_to(length);
        open.at += bytes.len() as u64;
        self.blobs.counters.upstream_bytes.inc_by(bytes.len() as u64);
        self.blobs.counters.served_arriving.inc_by(bytes.len() as u64);
        Ok(bytes)
    }
}

/// Bytes with the permit to hold them.
struct Slice {
    bytes: Bytes,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn ended_early() -> UpstreamError {
    UpstreamError::Protocol("the blob ended early".to_owned())
}

/// The body of an answer that is cut before its first byte, after its headers went out.
pub(crate) fn cut() -> Body {
    let frames = stream::once(async {
        tokio::task::yield_now().await;
        Err(Cut)
    });
    StreamBody::new(frames).boxed_unsync()
}

/// The body of an answer made of these stretches.
pub(crate) fn body(reader: BlobReader, stretches: Vec<Stretch>) -> Body {
    let state = (reader, VecDeque::from(stretches));
    let frames = stream::try_unfold(state, |(mut reader, mut stretches)| async move {
        let Some(stretch) = stretches.pop_front() else { return Ok(None) };
        let run = match stretch {
            Stretch::Text(text) => Run::Bytes(text),
            Stretch::Blob(range) => {
                let run = match reader.read(range.start, range.end).await {
                    Ok(run) => run,
                    Err(cut) => {
                        reader.blobs.counters.bodies_cut.inc();
                        return Err(cut);
                    }
                };
                let next = range.start + run.remaining() as u64;
                if next < range.end {
                    stretches.push_front(Stretch::Blob(next..range.end));
                } else if let Some(given) = reader.told.take() {
                    // hyper does not come back for the end of a body whose length it knows.
                    given.note(reader.digest);
                }
                run
            }
        };
        Ok(Some((run, (reader, stretches))))
    });
    StreamBody::new(frames.map_ok(Frame::data)).boxed_unsync()
}
