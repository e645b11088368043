//! Hashes from the disk: of one piece, and of a whole blob whose digest its pieces' hashes do not end in.
//!
//! Used by partials on blocking threads only.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use shoal_meta::{Digest, Geometry, PieceHash, PieceHasher, PieceIndex};

/// Bytes read at a time: large enough for few calls, small enough that the allocator keeps the buffer.
const BUFFER_BYTES: usize = 64 * 1024;

/// Computes the hash of a piece that follows one of this hash.
pub(crate) fn piece_hash(
    file: &File,
    geometry: Geometry,
    piece: PieceIndex,
    before: PieceHash,
) -> io::Result<PieceHash> {
    let mut hasher = PieceHasher::after(before);
    feed(file, geometry.piece_range(piece), |bytes| hasher.update(bytes))?;
    Ok(hasher.finish(&geometry, piece))
}

/// Computes the digest of a whole blob, in the algorithm of the one expected.
pub(crate) fn digest(file: &File, geometry: Geometry, expected: &Digest) -> io::Result<Digest> {
    let mut hasher = expected.hasher();
    feed(file, 0..geometry.length(), |bytes| hasher.update(bytes))?;
    Ok(hasher.finish())
}

fn feed(file: &File, range: Range<u64>, mut to: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut offset = range.start;
    while offset < range.end {
        let length = usize::try_from(range.end - offset).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES);
        file.read_exact_at(&mut buffer[..length], offset)?;
        to(&buffer[..length]);
        offset += length as u64;
    }
    Ok(())
}
