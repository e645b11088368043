//! Hashes from the disk: of one piece, and of a whole blob whose digest its pieces' hashes do not end in.
//!
//! Used by partials, blobs and the scrub, off the async threads only.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::{Advice, fadvise};
use shoal_meta::{Digest, Geometry, PieceHash, PieceHasher, PieceIndex};

use crate::blob::read_cached;

/// Bytes read at a time: large enough for few calls, small enough that the allocator keeps the buffer.
const BUFFER_BYTES: usize = 64 * 1024;

/// Computes the hash of a piece that follows one of this hash.
pub(crate) fn piece_hash(
    file: &File,
    geometry: Geometry,
    piece: PieceIndex,
    before: PieceHash,
) -> io::Result<PieceHash> {
    piece_hash_and(file, geometry, piece, before, |_, _| ())
}

/// The same, and gives the bytes it read, with where they begin.
pub(crate) fn piece_hash_and(
    file: &File,
    geometry: Geometry,
    piece: PieceIndex,
    before: PieceHash,
    mut also: impl FnMut(u64, &[u8]),
) -> io::Result<PieceHash> {
    let mut hasher = PieceHasher::after(before);
    feed(file, geometry.piece_range(piece), FileExt::read_exact_at, |at, bytes| {
        hasher.update(bytes);
        also(at, bytes);
    })?;
    Ok(hasher.finish(&geometry, piece))
}

/// Computes the hash of a piece, and leaves no page of it in memory that was not there.
pub(crate) fn piece_hash_aside(
    file: &File,
    geometry: Geometry,
    piece: PieceIndex,
    before: PieceHash,
) -> io::Result<PieceHash> {
    let mut hasher = PieceHasher::after(before);
    feed(file, geometry.piece_range(piece), read_aside, |_, bytes| hasher.update(bytes))?;
    Ok(hasher.finish(&geometry, piece))
}

/// Reads without leaving behind what was not in memory. Nothing is read ahead in a file for which the kernel was told so.
fn read_aside(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    if read_cached(file, buffer, offset) {
        return Ok(());
    }
    file.read_exact_at(buffer, offset)?;
    // A file system that knows no such advice keeps the pages.
    let _ = fadvise(file, offset, NonZeroU64::new(buffer.len() as u64), Advice::DontNeed);
    Ok(())
}

/// Computes the digest of a whole blob, in the algorithm of the one expected.
pub(crate) fn digest(file: &File, geometry: Geometry, expected: &Digest) -> io::Result<Digest> {
    let mut hasher = expected.hasher();
    feed(file, 0..geometry.length(), FileExt::read_exact_at, |_, bytes| hasher.update(bytes))?;
    Ok(hasher.finish())
}

fn feed(
    file: &File,
    range: Range<u64>,
    read: fn(&File, &mut [u8], u64) -> io::Result<()>,
    mut to: impl FnMut(u64, &[u8]),
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut offset = range.start;
    while offset < range.end {
        let length = usize::try_from(range.end - offset).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES);
        read(file, &mut buffer[..length], offset)?;
        to(offset, &buffer[..length]);
        offset += length as u64;
    }
    Ok(())
}
