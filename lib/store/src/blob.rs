//! Committed blobs, and reading verified bytes from them or from partials.
//!
//! Used by the bodies of the registry front and by the peer driver's senders. Does not write.

use std::fmt;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use rustix::io::{ReadWriteFlags, preadv2};
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

    /// Reads `length` bytes from `offset` into a pooled buffer; what is not in memory, on a blocking thread.
    ///
    /// # Errors
    /// `InvalidInput` when the range leaves the blob or is longer than 4 MiB; else what the disk says.
    pub async fn read(&self, offset: u64, length: u32) -> io::Result<Bytes> {
        read(&self.0.store, &self.0.file, self.length(), offset, length).await
    }

    /// Gives bytes as a range of the file, for a sender that lets the kernel read it. It stays readable whatever becomes
    /// of the blob.
    ///
    /// # Errors
    /// `InvalidInput` when the range leaves the blob or is longer than 4 MiB.
    pub fn region(&self, offset: u64, length: u32) -> io::Result<Region> {
        check_inside(self.length(), offset, length)?;
        Ok(Region { file: self.0.file.clone(), offset, length })
    }

    pub(crate) fn file(&self) -> &Arc<File> {
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

    /// Gives verified bytes as a range of their file, for a sender that lets the kernel read it. It stays readable
    /// whatever becomes of the blob.
    ///
    /// # Errors
    /// As [`Source::read`], but for what the disk says.
    pub fn region(&self, offset: u64, length: u32) -> io::Result<Region> {
        match self {
            Self::Blob(blob) => blob.region(offset, length),
            Self::Partial(partial) => {
                partial.check_verified(offset, length)?;
                Ok(Region { file: partial.file().clone(), offset, length })
            }
        }
    }
}

/// A verified range of a data file.
#[derive(Debug, Clone)]
pub struct Region {
    /// The open file.
    pub file: Arc<File>,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u32,
}

impl Region {
    /// Tells whether the kernel holds it in memory, as far as its first and last byte tell. Never on a file system that
    /// cannot say.
    #[must_use]
    pub fn is_cached(&self) -> bool {
        let last = self.offset + u64::from(self.length.saturating_sub(1));
        [self.offset, last].into_iter().all(|at| read_cached(&self.file, &mut [0], at))
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

/// Reads a range of a file of `total` bytes: at once when the kernel holds it in memory, else on a blocking thread.
pub(crate) async fn read(store: &Shared, file: &Arc<File>, total: u64, offset: u64, length: u32) -> io::Result<Bytes> {
    check_inside(total, offset, length)?;
    let mut buffer = store.pool.get(length as usize).await;
    if read_cached(file, &mut buffer, offset) {
        return Ok(buffer.freeze());
    }
    let file = file.clone();
    let read = move || file.read_exact_at(&mut buffer, offset).map(|()| buffer.freeze());
    store.jobs.reads.run(read).await?
}

fn check_inside(total: u64, offset: u64, length: u32) -> io::Result<()> {
    let inside = offset.checked_add(u64::from(length)).is_some_and(|end| end <= total);
    if !inside || length > PIECE_LENGTH_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the range leaves the blob or is longer than 4 MiB"));
    }
    Ok(())
}

/// Fills a buffer if that takes no disk; tells whether it did. Some file systems cannot tell and never do.
fn read_cached(file: &File, buffer: &mut [u8], offset: u64) -> bool {
    let length = buffer.len();
    preadv2(file, &mut [IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT) == Ok(length)
}
