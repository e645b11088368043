//! Blobs that are still arriving.
//!
//! The peer driver writes pieces as peers deliver them and the origin (or an agent that fell back) ingests what
//! upstream sends; both read verified pieces while the rest arrives. `state` holds what is known, in memory; `disk`
//! does the work on blocking threads. Nothing here knows where bytes came from beyond "a peer" or "upstream".

mod disk;
mod state;

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use shoal_meta::{Bitfield, Digest, Geometry, Metainfo, MetainfoError, PieceHash, PieceIndex};

use crate::pieces_file::PiecesFile;
use crate::store::Shared;
use crate::{Blob, blob, lock};
pub(crate) use disk::same_cut;
use state::{Sender, State};

/// A handle on a blob that is still arriving; clones share it. The partial is not evicted while one lives.
///
/// When the last handle is dropped the partial stays on disk, to be resumed by [`crate::Store::partial`]. Jobs once
/// begun are finished even when their future is dropped.
#[derive(Clone)]
pub struct Partial(pub(crate) Arc<PartialInner>);

pub(crate) struct PartialInner {
    store: Arc<Shared>,
    digest: Digest,
    geometry: Geometry,
    file: Arc<File>,
    state: Mutex<State>,
    /// Held while hashes are appended; blocking threads only.
    pieces: Mutex<PiecesFile>,
    /// Held while a piece is written whose hash cannot be told yet, while such pieces are hashed, and by commit; blocking
    /// threads only. Taken before the store's admission lock, never after.
    ahead: Mutex<()>,
    /// How many pieces were read again to be hashed.
    read_back: AtomicU32,
    unwritten: Arc<AtomicU64>,
}

/// Says why a piece was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The blocks do not add up to the piece. Fault of the caller.
    #[error("piece {piece} has {expected} bytes, not {given}")]
    Length {
        /// The piece.
        piece: u32,
        /// Its length in bytes.
        expected: u32,
        /// How many bytes were given.
        given: u64,
    },
    /// The bytes are not those of the piece. Fault of whoever sent them; another source may do better.
    #[error("piece {piece} does not match its hash")]
    HashMismatch {
        /// The piece.
        piece: u32,
    },
    /// The piece's hash is not known yet, so a peer's bytes cannot be checked. Retry when it is.
    #[error("the hash of piece {piece} is not known yet")]
    UnknownHash {
        /// The piece.
        piece: u32,
    },
    /// The partial was discarded, removed or did not match its digest. Not retryable on this handle.
    #[error("the partial blob was withdrawn")]
    Withdrawn,
    /// The disk failed or is full.
    #[error("cannot write the piece to disk")]
    Disk(#[source] io::Error),
}

/// Says why piece hashes were not added.
#[derive(Debug, thiserror::Error)]
pub enum ExtendError {
    /// They do not fit those known. Fault of the publisher, or of a partial left from another one: discard it.
    #[error("the piece hashes do not fit those known")]
    Metainfo(#[source] MetainfoError),
    /// The partial was discarded, removed or did not match its digest. Not retryable on this handle.
    #[error("the partial blob was withdrawn")]
    Withdrawn,
    /// The disk failed or is full. The hashes count until a restart.
    #[error("cannot write the piece hashes to disk")]
    Disk(#[source] io::Error),
}

/// Says why a partial did not become a blob.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Pieces are missing. Retry when they are in.
    #[error("only {have} of {pieces} pieces are there")]
    Incomplete {
        /// How many pieces are verified on disk.
        have: u32,
        /// How many there are.
        pieces: u32,
    },
    /// Every piece matched its hash but the whole is another blob: fault of the publisher of the hashes, or of
    /// upstream when we are. The partial and everything in it is gone.
    #[error("the content has the digest {computed}")]
    DigestMismatch {
        /// The digest of what arrived.
        computed: Digest,
    },
    /// The partial was discarded, removed or did not match its digest. Not retryable on this handle.
    #[error("the partial blob was withdrawn")]
    Withdrawn,
    /// The disk failed or is full. Retryable, unless the disk refused to sync: then the partial is withdrawn, as
    /// nothing it says of the content afterwards can be believed.
    #[error("cannot commit the blob to disk")]
    Disk(#[source] io::Error),
}

impl Partial {
    /// The digest that names the blob.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.0.digest
    }

    /// Its cut.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.0.geometry
    }

    /// Its metainfo as far as it is known.
    #[must_use]
    pub fn metainfo(&self) -> Metainfo {
        lock(&self.0.state).metainfo().clone()
    }

    /// The pieces verified on disk. Empty once withdrawn.
    #[must_use]
    pub fn have(&self) -> Bitfield {
        lock(&self.0.state).have().clone()
    }

    /// Adds the hashes of pieces `first..`, in memory and on disk. Repeating those known is harmless.
    ///
    /// # Errors
    /// When they do not fit those known (nothing is changed), the partial was withdrawn, or the disk fails.
    pub async fn extend_hashes(&self, first: u32, hashes: &[PieceHash]) -> Result<(), ExtendError> {
        lock(&self.0.state).extend(first, hashes)?;
        let inner = self.0.clone();
        let persist = move || inner.persist();
        let persisted = self.0.store.jobs.pieces.run(persist).await.and_then(|done| done);
        persisted.inspect_err(|error| self.0.store.refused(error)).map_err(ExtendError::Disk)
    }

    /// Verifies what an earlier run left on disk against the hashes known, and what came from upstream before they were,
    /// and gives all pieces that are there.
    ///
    /// Holes are skipped, and each piece is read once; call it again after more hashes became known.
    ///
    /// # Errors
    /// When the disk cannot be read. Pieces verified before that stay.
    pub async fn recheck(&self) -> io::Result<Bitfield> {
        let suspects: Arc<[PieceIndex]> = lock(&self.0.state).suspects().into();
        let mut next = 0;
        while next < suspects.len() {
            let (inner, suspects) = (self.0.clone(), suspects.clone());
            next = self.0.store.jobs.pieces.run(move || inner.recheck(&suspects, next)).await??;
        }
        let follow = || {
            let inner = self.0.clone();
            self.0.store.jobs.pieces.run(move || inner.follow(1))
        };
        while follow().await?? > 0 {}
        Ok(self.have())
    }

    /// Verifies a piece a peer sent against its known hash, writes it, and only then counts it as had.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is counted as had then.
    ///
    /// # Panics
    /// When the piece comes from another blob's longer geometry.
    pub async fn write_piece(&self, piece: PieceIndex, blocks: Vec<Bytes>) -> Result<(), WriteError> {
        self.write(piece, blocks, Sender::Peer).await.map(drop)
    }

    /// Writes a piece that came from upstream. A known hash must match; an unknown one is accepted as ours, becomes part
    /// of the metainfo and is given. While that of the piece before is not known there is none: the piece counts as had,
    /// and is hashed when its turn comes. The whole blob's digest decides at commit.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is counted as had then.
    ///
    /// # Panics
    /// When the piece comes from another blob's longer geometry.
    pub async fn ingest_piece(&self, piece: PieceIndex, blocks: Vec<Bytes>) -> Result<Option<PieceHash>, WriteError> {
        self.write(piece, blocks, Sender::Upstream).await
    }

    async fn write(
        &self,
        piece: PieceIndex,
        blocks: Vec<Bytes>,
        sender: Sender,
    ) -> Result<Option<PieceHash>, WriteError> {
        assert!(self.0.geometry.piece(piece.get()).is_some(), "piece {} of another geometry", piece.get());
        let expected = self.0.geometry.length_of(piece);
        let given = blocks.iter().map(|block| block.len() as u64).sum();
        if given != u64::from(expected) {
            return Err(WriteError::Length { piece: piece.get(), expected, given });
        }
        let inner = self.0.clone();
        let write = move || inner.write(piece, &blocks, sender);
        let written = self.0.store.jobs.pieces.run(write).await.map_err(WriteError::Disk).and_then(|done| done);
        if let Err(WriteError::Disk(error)) = &written {
            self.0.store.refused(error);
        }
        written
    }

    /// Checks the whole blob's digest and makes the partial a committed blob, durably and atomically. Handles on
    /// the partial stay readable. Committing again gives the same blob.
    ///
    /// # Errors
    /// See [`CommitError`].
    pub async fn commit(&self) -> Result<Blob, CommitError> {
        let inner = self.0.clone();
        let committed = self.0.store.jobs.commits.run(move || inner.commit()).await;
        let committed = committed.map_err(CommitError::Disk).and_then(|done| done);
        if let Err(CommitError::Disk(error)) = &committed {
            self.0.store.refused(error);
        }
        committed
    }

    /// Removes the partial, for all who hold it. Does nothing once it is committed.
    pub async fn discard(&self) {
        let inner = self.0.clone();
        // It fails only while the runtime shuts down; the partial then stays, to be resumed.
        let _ = self.0.store.jobs.changes.run(move || inner.withdraw()).await;
    }

    /// Reads `length` bytes from `offset` into a pooled buffer; what is not in memory, on a blocking thread.
    ///
    /// # Errors
    /// `InvalidInput` when the range leaves the blob, is longer than 4 MiB or touches a piece that is not verified
    /// (as all are not once the partial is withdrawn); else what the disk says.
    pub async fn read(&self, offset: u64, length: u32) -> io::Result<Bytes> {
        self.check_verified(offset, length)?;
        blob::read(&self.0.store, &self.0.file, self.0.geometry.length(), offset, length).await
    }

    pub(crate) fn check_verified(&self, offset: u64, length: u32) -> io::Result<()> {
        match lock(&self.0.state).can_read(offset, length) {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::InvalidInput, "the range is not verified")),
        }
    }

    pub(crate) fn file(&self) -> &Arc<File> {
        &self.0.file
    }
}

impl fmt::Debug for Partial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Partial({}, {:?})", self.0.digest, self.have())
    }
}
