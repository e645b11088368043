//! The hash of a piece: where SHA-256 stands after it, begun at the blob's first byte.
//!
//! SHA-256 carries a state of 32 bytes from one block of 64 bytes to the next (FIPS 180-4, section 6.2.2: H(i)). The hash of
//! a piece is that state after the piece; that of the last piece, with the padding, is the SHA-256 of the blob. So whoever
//! knows the hash of the piece before can check a piece by itself, in any order, and when every piece was checked, so was
//! the blob, without a second pass over it. To pass for a piece, other bytes would have to lead from one given state to
//! another: as hard as a second preimage of SHA-256.

use std::fmt;

use sha2::block_api::compress256;

use crate::{Digest, Geometry, PieceIndex};

/// Bytes that SHA-256 takes at a time. Every piece but the last is a multiple of it long.
const CHUNK: usize = 64;
/// Where the length stands in the last of them.
const LENGTH_AT: usize = CHUNK - 8;

/// The SHA-256 of a blob as far as the end of one of its pieces: the state, or, of the last piece, the digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PieceHash(pub [u8; 32]);

impl PieceHash {
    /// Where SHA-256 begins: what stands before the first piece.
    pub const START: Self = Self([
        0x6a, 0x09, 0xe6, 0x67, 0xbb, 0x67, 0xae, 0x85, 0x3c, 0x6e, 0xf3, 0x72, 0xa5, 0x4f, 0xf5, 0x3a, 0x51, 0x0e,
        0x52, 0x7f, 0x9b, 0x05, 0x68, 0x8c, 0x1f, 0x83, 0xd9, 0xab, 0x5b, 0xe0, 0xcd, 0x19,
    ]);

    /// Hashes all pieces of a blob in memory, from the first.
    #[must_use]
    pub fn all(geometry: &Geometry, content: &[u8]) -> Vec<Self> {
        let pieces = geometry.pieces().zip(content.chunks(geometry.piece_length() as usize));
        let hashes = pieces.scan(Self::START, |hash, (piece, bytes)| {
            *hash = hash.then(geometry, piece, [bytes]);
            Some(*hash)
        });
        hashes.collect()
    }

    /// Reads hashes that stand one after the other, as messages have them; `None` when the last is not whole.
    #[must_use]
    pub fn list(bytes: &[u8]) -> Option<Vec<Self>> {
        let (hashes, rest) = bytes.as_chunks();
        rest.is_empty().then(|| hashes.iter().copied().map(Self).collect())
    }

    /// Hashes a piece, given as consecutive slices, that follows one of this hash.
    #[must_use]
    pub fn then<'a>(self, geometry: &Geometry, piece: PieceIndex, slices: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hasher = PieceHasher::after(self);
        slices.into_iter().for_each(|slice| hasher.update(slice));
        hasher.finish(geometry, piece)
    }
}

impl fmt::Debug for PieceHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Digest::Sha256(self.0).hex())
    }
}

/// Hashes one piece as its bytes come.
#[derive(Clone)]
pub struct PieceHasher {
    state: [u32; 8],
    /// The bytes of a chunk that is not full yet.
    chunk: [u8; CHUNK],
    filled: usize,
}

impl PieceHasher {
    /// Begins after the piece of this hash.
    #[must_use]
    pub fn after(before: PieceHash) -> Self {
        let mut state = [0; 8];
        let (words, _) = before.0.as_chunks();
        state.iter_mut().zip(words).for_each(|(out, word)| *out = u32::from_be_bytes(*word));
        Self { state, chunk: [0; CHUNK], filled: 0 }
    }

    /// Adds the next bytes of the piece.
    pub fn update(&mut self, mut bytes: &[u8]) {
        if self.filled > 0 {
            let taken = bytes.len().min(CHUNK - self.filled);
            self.chunk[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            bytes = &bytes[taken..];
            if self.filled < CHUNK {
                return;
            }
            compress256(&mut self.state, &[self.chunk]);
        }
        let (chunks, rest) = bytes.as_chunks();
        compress256(&mut self.state, chunks);
        self.chunk[..rest.len()].copy_from_slice(rest);
        self.filled = rest.len();
    }

    /// Ends the piece, all of whose bytes were added.
    #[must_use]
    pub fn finish(mut self, geometry: &Geometry, piece: PieceIndex) -> PieceHash {
        if piece.get() + 1 == geometry.piece_count() {
            self.pad(geometry.length());
        }
        let mut out = [0; 32];
        let (words, _) = out.as_chunks_mut();
        words.iter_mut().zip(self.state).for_each(|(out, word)| *out = word.to_be_bytes());
        PieceHash(out)
    }

    /// Ends the blob: a one, zeros, and the length in bits (FIPS 180-4, section 5.1.1).
    fn pad(&mut self, length: u64) {
        self.chunk[self.filled] = 0x80;
        self.chunk[self.filled + 1..].fill(0);
        if self.filled >= LENGTH_AT {
            compress256(&mut self.state, &[self.chunk]);
            self.chunk.fill(0);
        }
        self.chunk[LENGTH_AT..].copy_from_slice(&(length * 8).to_be_bytes());
        compress256(&mut self.state, &[self.chunk]);
    }
}

impl fmt::Debug for PieceHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PieceHasher")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PIECE: u32 = 16 * 1024;

    fn content(length: u64) -> Vec<u8> {
        (0..length).map(|at| (at * at % 251) as u8).collect()
    }

    proptest! {
        #[test]
        fn the_hash_of_the_last_piece_is_the_blobs_digest(length in 1..4 * u64::from(PIECE), step in 1..5000usize) {
            let (content, geometry) = (content(length), Geometry::new(length, PIECE).unwrap());
            let mut hash = PieceHash::START;
            for piece in geometry.pieces() {
                let range = geometry.piece_range(piece);
                let bytes = &content[range.start as usize..range.end as usize];
                hash = hash.then(&geometry, piece, bytes.chunks(step));
            }
            prop_assert_eq!(Digest::Sha256(hash.0), Digest::sha256_of(&content));
            prop_assert!(PieceHash::all(&geometry, &content).ends_with(&[hash]));
        }
    }

    #[test]
    fn padding_fits_whatever_the_last_chunk_holds() {
        for length in (1..=130).chain(u64::from(PIECE) - 66..=u64::from(PIECE)) {
            let (content, geometry) = (content(length), Geometry::new(length, PIECE).unwrap());
            let hash = PieceHash::START.then(&geometry, geometry.piece(0).unwrap(), [&content[..]]);
            assert_eq!(Digest::Sha256(hash.0), Digest::sha256_of(&content), "{length}");
        }
    }

    #[test]
    fn a_piece_hash_depends_on_what_stands_before() {
        let geometry = Geometry::new(3 * u64::from(PIECE), PIECE).unwrap();
        let (piece, bytes) = (geometry.piece(1).unwrap(), content(PIECE.into()));
        let after = |before: PieceHash| before.then(&geometry, piece, [&bytes[..]]);
        assert_ne!(after(PieceHash::START), after(PieceHash([1; 32])));
    }
}
