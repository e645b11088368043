//! What must be known of a blob to swap it: its digest, its cut, and the hash of each piece.

use std::fmt;

use crate::{Digest, Geometry, Hasher, PieceIndex};

/// The SHA-256 of one piece.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PieceHash(pub [u8; 32]);

impl PieceHash {
    /// Hashes a piece given as consecutive slices.
    pub fn of<'a>(slices: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hasher = Hasher::sha256();
        for slice in slices {
            hasher.update(slice);
        }
        match hasher.finish() {
            Digest::Sha256(hash) => Self(hash),
            Digest::Sha512(_) => unreachable!("Hasher::sha256 yields SHA-256"),
        }
    }
}

impl fmt::Debug for PieceHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Digest::Sha256(self.0).hex())
    }
}

/// The torrent of one blob. It grows: the origin adds each piece's hash as the piece arrives from upstream.
///
/// Invariant: at most `geometry.piece_count()` hashes, in piece order without gaps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Metainfo {
    digest: Digest,
    geometry: Geometry,
    hashes: Vec<PieceHash>,
}

/// Says why hashes do not fit a metainfo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MetainfoError {
    /// The hashes would leave a gap after those known.
    #[error("piece hashes start at {first}, but only {known} are known")]
    Gap {
        /// The piece of the first hash given.
        first: u32,
        /// How many hashes are known.
        known: u32,
    },
    /// There are more hashes than pieces.
    #[error("{hashes} piece hashes for a blob of {pieces} pieces")]
    TooMany {
        /// How many hashes there would be.
        hashes: usize,
        /// How many pieces the blob has.
        pieces: u32,
    },
    /// A hash given differs from the one known: the publisher contradicts itself.
    #[error("the hash of piece {0} differs from the one published before")]
    Contradiction(u32),
}

impl Metainfo {
    /// Starts with no hash known.
    #[must_use]
    pub fn new(digest: Digest, geometry: Geometry) -> Self {
        Self { digest, geometry, hashes: Vec::new() }
    }

    /// The blob's digest, which names the torrent.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The blob's cut.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The hash of a piece, when published.
    #[must_use]
    pub fn hash(&self, piece: PieceIndex) -> Option<PieceHash> {
        self.hashes.get(piece.index()).copied()
    }

    /// The hashes known so far: those of pieces `0..hashes().len()`.
    #[must_use]
    pub fn hashes(&self) -> &[PieceHash] {
        &self.hashes
    }

    /// How many pieces' hashes are known, counted from the first.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "bounded by PIECE_COUNT_MAX")]
    pub fn known(&self) -> u32 {
        self.hashes.len() as u32
    }

    /// Tells whether every piece's hash is known.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.known() == self.geometry.piece_count()
    }

    /// Adds the hashes of pieces `first..`; those known already are compared, so repeating an update is harmless.
    ///
    /// # Errors
    /// When they leave a gap, exceed the pieces or contradict what is known; nothing is changed then.
    pub fn extend(&mut self, first: u32, hashes: &[PieceHash]) -> Result<(), MetainfoError> {
        let known = self.known();
        if first > known {
            return Err(MetainfoError::Gap { first, known });
        }
        let end = first as usize + hashes.len();
        let pieces = self.geometry.piece_count();
        if end > pieces as usize {
            return Err(MetainfoError::TooMany { hashes: end, pieces });
        }
        for (index, hash) in (first..).zip(hashes) {
            if self.hashes.get(index as usize).is_some_and(|known| known != hash) {
                return Err(MetainfoError::Contradiction(index));
            }
        }
        let overlap = hashes.len().min((known - first) as usize);
        self.hashes.extend_from_slice(&hashes[overlap..]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metainfo() -> Metainfo {
        Metainfo::new(Digest::sha256_of(b"x"), Geometry::new(3 << 18, 1 << 18).unwrap())
    }

    #[test]
    fn hashes_grow_in_order_and_may_repeat() {
        let mut metainfo = metainfo();
        let hash = |n| PieceHash([n; 32]);
        metainfo.extend(0, &[hash(0), hash(1)]).unwrap();
        metainfo.extend(1, &[hash(1), hash(2)]).unwrap();
        assert!(metainfo.is_complete());
        assert_eq!(metainfo.hash(metainfo.geometry().piece(2).unwrap()), Some(hash(2)));
    }

    #[test]
    fn gaps_surplus_and_contradictions_change_nothing() {
        let mut metainfo = metainfo();
        let hash = |n| PieceHash([n; 32]);
        metainfo.extend(0, &[hash(0)]).unwrap();
        let before = metainfo.clone();
        assert_eq!(metainfo.extend(2, &[hash(2)]), Err(MetainfoError::Gap { first: 2, known: 1 }));
        assert_eq!(metainfo.extend(0, &[hash(0); 4]), Err(MetainfoError::TooMany { hashes: 4, pieces: 3 }));
        assert_eq!(metainfo.extend(0, &[hash(9), hash(1)]), Err(MetainfoError::Contradiction(0)));
        assert_eq!(metainfo, before);
    }

    #[test]
    fn a_piece_hash_is_the_same_however_the_piece_is_sliced() {
        assert_eq!(PieceHash::of([&b"ab"[..], b"c"]), PieceHash::of([&b"abc"[..]]));
    }
}
