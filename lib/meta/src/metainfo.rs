//! What must be known of a blob to swap it: its digest, its cut, and the hash of each piece.

use crate::{Digest, Geometry, PieceHash, PieceIndex};

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
    /// The last piece's hash is not the blob's digest: the publisher speaks of another blob.
    #[error("the hash of the last piece is not the blob's digest")]
    OtherBlob,
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

    /// The hash of what stands before a piece, when published: [`PieceHash::START`] before the first.
    #[must_use]
    pub fn hash_before(&self, piece: PieceIndex) -> Option<PieceHash> {
        match piece.index().checked_sub(1) {
            Some(before) => self.hashes.get(before).copied(),
            None => Some(PieceHash::START),
        }
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

    /// What an origin seals of it: the blob's name, its cut and every hash, in one way only.
    #[must_use]
    pub fn statement(&self) -> Vec<u8> {
        let mut out = format!("{}\0", self.digest).into_bytes();
        out.extend(self.geometry.length().to_le_bytes());
        out.extend(self.geometry.piece_length().to_le_bytes());
        self.hashes.iter().for_each(|hash| out.extend(hash.0));
        out
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

    /// Adds hashes that someone else computed: as [`Self::extend`], but the last piece's must be the digest of a blob named
    /// by SHA-256. So pieces that match them make this blob and no other.
    ///
    /// # Errors
    /// As [`Self::extend`], and when they end in another digest.
    pub fn extend_published(&mut self, first: u32, hashes: &[PieceHash]) -> Result<(), MetainfoError> {
        let is_end = first as usize + hashes.len() == self.geometry.piece_count() as usize;
        if let (Digest::Sha256(digest), Some(last)) = (self.digest, hashes.last())
            && is_end
            && last.0 != digest
        {
            return Err(MetainfoError::OtherBlob);
        }
        self.extend(first, hashes)
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
    fn published_hashes_must_end_in_the_digest() {
        let mut metainfo = metainfo();
        let Digest::Sha256(digest) = metainfo.digest() else { panic!("it is SHA-256") };
        let hash = |n| PieceHash([n; 32]);
        metainfo.extend_published(0, &[hash(0), hash(1)]).unwrap();
        assert_eq!(metainfo.extend_published(0, &[hash(0), hash(1), hash(2)]), Err(MetainfoError::OtherBlob));
        assert_eq!(metainfo.known(), 2);
        metainfo.extend_published(2, &[PieceHash(digest)]).unwrap();
    }
}
