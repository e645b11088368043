//! Committed blobs, and reading verified bytes from them or from partials.
//!
//! Used by the bodies of the registry front and by the peer driver's senders. Does not write.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use shoal_meta::{Bitfield, Digest, Geometry, Metainfo, PIECE_LENGTH_MAX};

use crate::Partial;
use crate::store::Shared;

/// A whole blob on disk, its digest checked. It is not evicted while a clone of this lives.
#[derive(Clone)]
pub struct Blob(pub(crate) Arc<BlobInner>);

pub(crate) struct BlobInner {
    pub(crate) store: Arc<Shared>,
    pub(crate) metainfo: Metainfo,
    pub(crate) file: Arc<File>,
}

impl Blob {
    /// The digest that names it.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.0.metainfo.digest()
    }

    /// Its cut.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.0.metainfo.geometry()
    }

    /// Its length in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.geometry().length()
    }

    /// Its complete metainfo.
    #[must_use]
    pub fn metainfo(&self) -> Metainfo {
        self.0.metainfo.clone()
    }

    /// Reads `length` bytes from `offset` into a pooled buffer, in one hop to a blocking thread.
    ///
    /// # Errors
    /// `InvalidInput` when the range leaves the blob or is longer than 4 MiB; else what the disk says.
    pub async fn read(&self, offset: u64, length: u32) -> io::Result<Bytes> {
        read(&self.0.store, &self.0.file, self.length(), offset, length).await
    }

    /// The open data file, for senders that do their own reading.
    #[must_use]
    pub fn file(&self) -> &Arc<File> {
        &self.0.file
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blob({})", self.digest())
    }
}

/// Something verified bytes can be read from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A whole blob: everything can be read.
    Blob(Blob),
    /// A blob still arriving: pieces in [`Source::have`] can be read.
    Partial(Partial),
}

impl Source {
    /// The digest that names the blob.
    #[must_use]
    pub fn digest(&self) -> Digest {
        match self {
            Self::Blob(blob) => blob.digest(),
            Self::Partial(partial) => partial.digest(),
        }
    }

    /// The blob's cut.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        match self {
            Self::Blob(blob) => blob.geometry(),
            Self::Partial(partial) => partial.geometry(),
        }
    }

    /// The pieces that can be read.
    #[must_use]
    pub fn have(&self) -> Bitfield {
        match self {
            Self::Blob(blob) => Bitfield::full(&blob.geometry()),
            Self::Partial(partial) => partial.have(),
        }
    }

    /// Reads verified bytes; see [`Blob::read`] and [`Partial::read`].
    ///
    /// # Errors
    /// As these say.
    pub async fn read(&self, offset: u64, length: u32) -> io::Result<Bytes> {
        match self {
            Self::Blob(blob) => blob.read(offset, length).await,
            Self::Partial(partial) => partial.read(offset, length).await,
        }
    }

    /// The open data file. Of a partial, only the ranges of pieces in [`Source::have`] hold verified bytes.
    #[must_use]
    pub fn file(&self) -> &Arc<File> {
        match self {
            Self::Blob(blob) => blob.file(),
            Self::Partial(partial) => partial.file(),
        }
    }
}

impl From<Blob> for Source {
    fn from(blob: Blob) -> Self {
        Self::Blob(blob)
    }
}

impl From<Partial> for Source {
    fn from(partial: Partial) -> Self {
        Self::Partial(partial)
    }
}

/// Reads a range of a file of `total` bytes.
pub(crate) async fn read(store: &Shared, file: &Arc<File>, total: u64, offset: u64, length: u32) -> io::Result<Bytes> {
    let inside = offset.checked_add(u64::from(length)).is_some_and(|end| end <= total);
    if !inside || length > PIECE_LENGTH_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the range leaves the blob or is longer than 4 MiB"));
    }
    let mut buffer = store.pool.get(length as usize).await;
    let file = file.clone();
    let read = move || file.read_exact_at(&mut buffer, offset).map(|()| buffer.freeze());
    store.jobs.reads.run(read).await?
}
