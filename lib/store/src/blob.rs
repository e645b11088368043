//! Committed blobs, and reading verified bytes from them or from partials.
//!
//! Used by the bodies of the registry front and by the peer driver's senders. Does not write, but drops a blob that turns out
//! damaged.

use std::fmt;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use rustix::io::{ReadWriteFlags, preadv2};
use shoal_meta::{Bitfield, Digest, Geometry, Metainfo, PIECE_LENGTH_MAX, PieceHash, PieceIndex};

use crate::checks::Checks;
use crate::store::Shared;
use crate::{Partial, PooledBuf, whole};

/// A whole blob on disk, its digest checked. It is not evicted while a clone of this lives.
///
/// What is read from the disk is compared with its hash, a piece at a time. When a piece is not what it was, or cannot be read,
/// the store drops the blob and says so; pieces that are right stay readable here.
#[derive(Clone)]
pub struct Blob(pub(crate) Arc<BlobInner>);

pub(crate) struct BlobInner {
    pub(crate) store: Arc<Shared>,
    pub(crate) metainfo: Metainfo,
    pub(crate) file: Arc<File>,
    pub(crate) checks: Arc<Checks>,
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
    /// `InvalidInput` when the range leaves the blob or is longer than 4 MiB; `InvalidData` when a piece is damaged; else what
    /// the disk says.
    pub async fn read(&self, offset: u64, length: u32) -> io::Result<Bytes> {
        check_inside(self.length(), offset, length)?;
        let mut buffer = self.0.store.pool.get(length as usize).await;
        if self.has_passed(offset, length) && read_cached(&self.0.file, &mut buffer, offset) {
            return Ok(buffer.freeze());
        }
        let inner = self.0.clone();
        self.0.store.jobs.checks.run(move || inner.read_checked(buffer, offset)).await?
    }

    /// Gives bytes as a range of the file, for a sender that lets the kernel read it. It stays readable whatever becomes
    /// of the blob.
    ///
    /// # Errors
    /// `InvalidInput` when the range leaves the blob or is longer than 4 MiB, or touches a piece that was not compared with its
    /// hash since the store opened: [`Blob::read`] does that.
    pub fn region(&self, offset: u64, length: u32) -> io::Result<Region> {
        check_inside(self.length(), offset, length)?;
        match self.has_passed(offset, length) {
            true => Ok(Region { file: self.0.file.clone(), offset, length }),
            false => Err(io::Error::new(io::ErrorKind::InvalidInput, "the range is not verified")),
        }
    }

    fn has_passed(&self, offset: u64, length: u32) -> bool {
        let geometry = self.geometry();
        pieces_of(&geometry, offset, u64::from(length)).all(|piece| self.0.checks.has_passed(piece))
    }

    pub(crate) fn file(&self) -> &Arc<File> {
        &self.0.file
    }
}

impl BlobInner {
    /// Fills a buffer from the disk; verifies each piece that it touches, unless that was done a moment ago.
    fn read_checked(&self, mut buffer: PooledBuf, offset: u64) -> io::Result<Bytes> {
        let geometry = self.metainfo.geometry();
        let end = offset + buffer.len() as u64;
        for piece in pieces_of(&geometry, offset, buffer.len() as u64) {
            let range = geometry.piece_range(piece);
            let (from, to) = (range.start.max(offset), range.end.min(end));
            let into = &mut buffer[index(from - offset)..index(to - offset)];
            let read = match self.checks.is_fresh(piece, self.store.age()) {
                true => self.file.read_exact_at(into, from),
                false => self.check(piece, |at, bytes| copy_overlap(into, from, at, bytes)),
            };
            if let Err(error) = read {
                self.store.drop_if_damaged(&self.metainfo.digest(), &self.checks, piece, &error);
                return Err(error);
            }
        }
        Ok(buffer.freeze())
    }

    /// Reads a piece whole, gives its bytes on, and compares it with its hash.
    fn check(&self, piece: PieceIndex, give: impl FnMut(u64, &[u8])) -> io::Result<()> {
        self.store.host.step("read")?;
        let before = self.metainfo.hash_before(piece).expect("the hashes of a blob are complete");
        let hash = whole::piece_hash_and(&self.file, self.metainfo.geometry(), piece, before, give)?;
        compare(&self.metainfo, piece, hash)?;
        self.checks.passed(&self.metainfo.geometry(), piece, self.store.age());
        Ok(())
    }
}

/// Says whether a piece is damaged, by its hash.
///
/// # Errors
/// `InvalidData` when it is.
pub(crate) fn compare(metainfo: &Metainfo, piece: PieceIndex, hash: PieceHash) -> io::Result<()> {
    match metainfo.hash(piece) == Some(hash) {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "a piece is not what its hash says")),
    }
}

/// The pieces that a range inside the blob touches.
fn pieces_of(geometry: &Geometry, offset: u64, length: u64) -> impl Iterator<Item = PieceIndex> {
    let last = geometry.piece_at(offset + length.saturating_sub(1));
    let indices = match (geometry.piece_at(offset), last) {
        (Some(first), Some(last)) => first.get()..last.get() + 1,
        (None, _) | (_, None) => 0..0,
    };
    indices.filter_map(|index| geometry.piece(index))
}

/// Copies what of `bytes`, which begin at `at`, belongs into `into`, which begins at `from`.
fn copy_overlap(into: &mut [u8], from: u64, at: u64, bytes: &[u8]) {
    let (start, end) = (from.max(at), (from + into.len() as u64).min(at + bytes.len() as u64));
    if start < end {
        into[index(start - from)..index(end - from)].copy_from_slice(&bytes[index(start - at)..index(end - at)]);
    }
}

/// A distance inside a buffer.
fn index(distance: u64) -> usize {
    usize::try_from(distance).expect("a buffer is in memory")
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
pub(crate) fn read_cached(file: &File, buffer: &mut [u8], offset: u64) -> bool {
    let length = buffer.len();
    preadv2(file, &mut [IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT) == Ok(length)
}
