//! A set of pieces, one bit each.

use std::fmt;

use crate::{Geometry, PieceIndex};

/// The set of pieces a peer has. Its size is fixed by the blob's piece count; bits past the end are always zero.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Bitfield {
    words: Vec<u64>,
    length: u32,
    count: u32,
}

/// Says why bytes from a peer are not a bitfield of the expected size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BitfieldError {
    /// The byte count is not `ceil(pieces / 8)`.
    #[error("a bitfield of {pieces} pieces takes {expected} bytes, not {given}")]
    Length {
        /// How many pieces the blob has.
        pieces: u32,
        /// How many bytes that takes.
        expected: usize,
        /// How many bytes were given.
        given: usize,
    },
    /// A bit past the last piece is set.
    #[error("a bit past the last of {pieces} pieces is set")]
    SpareBit {
        /// How many pieces the blob has.
        pieces: u32,
    },
}

impl Bitfield {
    /// The empty set for a blob of this cut.
    #[must_use]
    pub fn empty(geometry: &Geometry) -> Self {
        let length = geometry.piece_count();
        Self { words: vec![0; length.div_ceil(64) as usize], length, count: 0 }
    }

    /// The full set for a blob of this cut: a seeder's.
    #[must_use]
    pub fn full(geometry: &Geometry) -> Self {
        let mut out = Self::empty(geometry);
        for piece in geometry.pieces() {
            out.insert(piece);
        }
        out
    }

    /// Reads the wire form (BEP 3): bytes, most significant bit first.
    ///
    /// # Errors
    /// When the length is wrong or a spare bit is set.
    pub fn from_bytes(geometry: &Geometry, bytes: &[u8]) -> Result<Self, BitfieldError> {
        let pieces = geometry.piece_count();
        let expected = pieces.div_ceil(8) as usize;
        if bytes.len() != expected {
            return Err(BitfieldError::Length { pieces, expected, given: bytes.len() });
        }
        let mut out = Self::empty(geometry);
        for (index, byte) in bytes.iter().enumerate() {
            out.words[index / 8] |= u64::from(byte.reverse_bits()) << (index % 8 * 8);
        }
        if let Some(last) = out.words.last()
            && !pieces.is_multiple_of(64)
            && last >> (pieces % 64) != 0
        {
            return Err(BitfieldError::SpareBit { pieces });
        }
        out.count = out.words.iter().map(|word| word.count_ones()).sum();
        Ok(out)
    }

    /// Gives the wire form (BEP 3): bytes, most significant bit first.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let bytes = self.words.iter().flat_map(|word| word.to_le_bytes()).map(u8::reverse_bits);
        bytes.take(self.length.div_ceil(8) as usize).collect()
    }

    /// Tells whether the piece is in the set.
    #[must_use]
    pub fn contains(&self, piece: PieceIndex) -> bool {
        self.words.get(piece.index() / 64).is_some_and(|word| word >> (piece.index() % 64) & 1 == 1)
    }

    /// Adds a piece; tells whether it was new.
    ///
    /// # Panics
    /// When the piece comes from another blob's longer geometry.
    pub fn insert(&mut self, piece: PieceIndex) -> bool {
        assert!(piece.get() < self.length, "piece {} of a blob of {} pieces", piece.get(), self.length);
        let (word, bit) = (&mut self.words[piece.index() / 64], 1 << (piece.index() % 64));
        let new = *word & bit == 0;
        *word |= bit;
        self.count += u32::from(new);
        new
    }

    /// Takes a piece out; tells whether it was in.
    pub fn remove(&mut self, piece: PieceIndex) -> bool {
        let was = self.contains(piece);
        if was {
            self.words[piece.index() / 64] &= !(1 << (piece.index() % 64));
            self.count -= 1;
        }
        was
    }

    /// How many pieces are in the set.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// How many pieces the blob has.
    #[must_use]
    pub fn length(&self) -> u32 {
        self.length
    }

    /// Tells whether every piece is in the set.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.count == self.length
    }

    /// Tells whether no piece is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The pieces in the set, in order.
    pub fn iter(&self) -> impl Iterator<Item = PieceIndex> + '_ {
        self.ones(self.words.iter().copied())
    }

    /// The pieces in both sets, in order. A set of another size counts as empty where it is shorter.
    pub fn iter_and<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = PieceIndex> + 'a {
        self.ones(self.words.iter().zip(&other.words).map(|(a, b)| a & b))
    }

    /// The first piece at or after `from` that is not in the set.
    #[must_use]
    pub fn first_missing(&self, from: u32) -> Option<u32> {
        let mut index = from;
        while index < self.length {
            let free = !self.words[index as usize / 64] >> (index % 64);
            if free != 0 {
                let found = index + free.trailing_zeros();
                return (found < self.length).then_some(found);
            }
            index = (index / 64 + 1) * 64;
        }
        None
    }

    fn ones<I: Iterator<Item = u64>>(&self, words: I) -> impl Iterator<Item = PieceIndex> + use<I> {
        let length = self.length;
        words.enumerate().flat_map(move |(index, mut word)| {
            std::iter::from_fn(move || {
                if word == 0 {
                    return None;
                }
                let bit = word.trailing_zeros();
                word &= word - 1;
                let piece = u32::try_from(index).unwrap_or(u32::MAX) * 64 + bit;
                debug_assert!(piece < length);
                Some(PieceIndex::from_bit(piece))
            })
        })
    }
}

/// Draws the set as in the tests' picture tables: `#` has, `.` lacks.
impl fmt::Debug for Bitfield {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for index in 0..self.length.min(128) {
            f.write_str(if self.contains(PieceIndex::from_bit(index)) { "#" } else { "." })?;
        }
        if self.length > 128 { write!(f, "…({}/{})", self.count, self.length) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    fn geometry(pieces: u32) -> Geometry {
        Geometry::new(u64::from(pieces) * (1 << 18), 1 << 18).unwrap()
    }

    fn set(pieces: u32, members: &BTreeSet<u32>) -> Bitfield {
        let geometry = geometry(pieces);
        let mut out = Bitfield::empty(&geometry);
        for piece in members.iter().filter_map(|&index| geometry.piece(index)) {
            out.insert(piece);
        }
        out
    }

    #[test]
    fn the_first_piece_is_the_high_bit_of_the_first_byte() {
        let bits = Bitfield::from_bytes(&geometry(10), &[0b1000_0001, 0b0100_0000]).unwrap();
        assert_eq!(format!("{bits:?}"), "#......#.#");
        assert_eq!(bits.to_bytes(), [0b1000_0001, 0b0100_0000]);
    }

    #[test]
    fn a_peers_bitfield_of_the_wrong_size_is_refused() {
        assert!(matches!(Bitfield::from_bytes(&geometry(10), &[0]), Err(BitfieldError::Length { expected: 2, .. })));
        assert!(matches!(Bitfield::from_bytes(&geometry(10), &[0, 1]), Err(BitfieldError::SpareBit { pieces: 10 })));
    }

    proptest! {
        #[test]
        fn a_bitfield_is_a_set(
            pieces in 1..200u32,
            a in prop::collection::btree_set(0..200u32, 0..60),
            b in prop::collection::btree_set(0..200u32, 0..60),
            from in 0..200u32,
        ) {
            let inside = |s: &BTreeSet<u32>| s.iter().copied().filter(|&i| i < pieces).collect::<BTreeSet<_>>();
            let (a, b) = (inside(&a), inside(&b));
            let (x, y) = (set(pieces, &a), set(pieces, &b));
            prop_assert_eq!(x.count() as usize, a.len());
            prop_assert_eq!(x.iter().map(PieceIndex::get).collect::<BTreeSet<_>>(), a.clone());
            let both = x.iter_and(&y).map(PieceIndex::get).collect::<Vec<_>>();
            prop_assert_eq!(both, a.intersection(&b).copied().collect::<Vec<_>>());
            prop_assert_eq!(Bitfield::from_bytes(&geometry(pieces), &x.to_bytes()), Ok(x.clone()));
            prop_assert_eq!(x.first_missing(from), (from..pieces).find(|i| !a.contains(i)));
        }
    }
}
