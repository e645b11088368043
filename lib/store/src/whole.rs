//! The digest of a whole blob, computed while its pieces arrive.
//!
//! A piece that is the next in order is hashed from memory, so a blob that arrives in order is never read again;
//! pieces that came early are read back once the gap before them closes, the rest at commit. Used by partials on
//! blocking threads only.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use shoal_meta::{Bitfield, Digest, Geometry, Hasher, PieceHash, PieceIndex};

/// Bytes read at a time: large enough for few calls, small enough that the allocator keeps the buffer.
const BUFFER_BYTES: usize = 64 * 1024;

/// A running hash over pieces `0..next`.
pub(crate) struct Whole {
    hasher: Hasher,
    next: u32,
    read_back: u32,
}

impl Whole {
    pub(crate) fn new(digest: &Digest) -> Self {
        Self { hasher: digest.hasher(), next: 0, read_back: 0 }
    }

    /// Adds a piece from memory if it is the next in order.
    pub(crate) fn offer(&mut self, piece: PieceIndex, blocks: &[Bytes]) {
        if piece.get() == self.next {
            blocks.iter().for_each(|block| self.hasher.update(block));
            self.next += 1;
        }
    }

    /// Adds the pieces that follow and are on disk, at most so many, by reading them.
    pub(crate) fn read_on(&mut self, file: &File, geometry: Geometry, have: &Bitfield, most: u32) -> io::Result<()> {
        for _ in 0..most {
            let Some(piece) = geometry.piece(self.next).filter(|piece| have.contains(*piece)) else { break };
            let mut hasher = self.hasher.clone();
            feed(file, geometry, piece, &mut hasher)?;
            self.hasher = hasher;
            self.next += 1;
            self.read_back += 1;
        }
        Ok(())
    }

    /// How many pieces had to be read again so far.
    pub(crate) fn read_back(&self) -> u32 {
        self.read_back
    }

    /// The digest of the whole blob, once every piece was added.
    pub(crate) fn digest(&self, geometry: Geometry) -> Option<Digest> {
        (self.next == geometry.piece_count()).then(|| self.hasher.clone().finish())
    }
}

/// Computes the hash of a piece from the disk.
pub(crate) fn piece_hash(file: &File, geometry: Geometry, piece: PieceIndex) -> io::Result<PieceHash> {
    let mut hasher = Hasher::sha256();
    feed(file, geometry, piece, &mut hasher)?;
    match hasher.finish() {
        Digest::Sha256(hash) => Ok(PieceHash(hash)),
        Digest::Sha512(_) => unreachable!("Hasher::sha256 yields SHA-256"),
    }
}

fn feed(file: &File, geometry: Geometry, piece: PieceIndex, hasher: &mut Hasher) -> io::Result<()> {
    let range = geometry.piece_range(piece);
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut offset = range.start;
    while offset < range.end {
        let length = usize::try_from(range.end - offset).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES);
        file.read_exact_at(&mut buffer[..length], offset)?;
        hasher.update(&buffer[..length]);
        offset += length as u64;
    }
    Ok(())
}
