//! How a blob is cut into pieces (the hashed unit) and blocks (the unit of a wire request).

use std::ops::Range;

/// The longest block a peer may request, in bytes: 256 KiB.
pub const BLOCK_LENGTH_MAX: u32 = 256 * 1024;
/// The shortest piece, in bytes: 16 KiB, the seeds' sub-piece.
pub const PIECE_LENGTH_MIN: u32 = 16 * 1024;
/// The longest piece, in bytes: 4 MiB.
pub const PIECE_LENGTH_MAX: u32 = 4 * 1024 * 1024;
/// The most pieces a blob may have; with 4 MiB pieces a blob of 4 TiB. Bounds every bitfield and hash list.
pub const PIECE_COUNT_MAX: u32 = 1 << 20;

/// The cut of one blob: its length, and the length of its pieces and blocks, in bytes.
///
/// Invariant: lengths are within the limits above, so every index and offset fits its type.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Geometry {
    length: u64,
    piece_length: u32,
    block_length: u32,
}

/// Names a piece that exists in the [`Geometry`] that made it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PieceIndex(u32);

/// Names a run of bytes inside one piece: what one wire request asks for. At most [`BLOCK_LENGTH_MAX`] bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BlockRef {
    /// The piece the block belongs to.
    pub piece: PieceIndex,
    /// Where the block begins inside the piece, in bytes.
    pub offset: u32,
    /// How many bytes it holds; never zero.
    pub length: u32,
}

/// Says why a cut is not possible, or not one we accept from a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// The piece length is not a power of two between 16 KiB and 4 MiB.
    #[error("piece length {0} is not a power of two between 16384 and 4194304")]
    PieceLength(u32),
    /// The blob would have more pieces than [`PIECE_COUNT_MAX`].
    #[error("a blob of {length} bytes in pieces of {piece_length} has more than 1048576 pieces")]
    TooManyPieces {
        /// The blob's length in bytes.
        length: u64,
        /// The piece length in bytes.
        piece_length: u32,
    },
    /// The blob is empty: it has no piece to swap.
    #[error("an empty blob has no pieces")]
    Empty,
}

impl Geometry {
    /// Cuts a blob by the rule of docs/adr/0002: the power of two nearest to `length / 2048`, between 128 KiB and 4 MiB.
    ///
    /// # Errors
    /// When the blob is empty or longer than 4 TiB.
    pub fn for_length(length: u64) -> Result<Self, GeometryError> {
        const SHORTEST: u64 = 128 * 1024;
        let ideal = (length / 2048).clamp(SHORTEST, u64::from(PIECE_LENGTH_MAX));
        let below = 1u64 << ideal.ilog2();
        let nearest = if ideal - below > below / 2 { below * 2 } else { below };
        Self::new(length, u32::try_from(nearest).unwrap_or(PIECE_LENGTH_MAX))
    }

    /// Cuts a blob into pieces of a given length, as announced by a peer or an origin.
    ///
    /// # Errors
    /// When the piece length is not acceptable, or the blob is empty or would have too many pieces.
    pub fn new(length: u64, piece_length: u32) -> Result<Self, GeometryError> {
        if !piece_length.is_power_of_two() || !(PIECE_LENGTH_MIN..=PIECE_LENGTH_MAX).contains(&piece_length) {
            return Err(GeometryError::PieceLength(piece_length));
        }
        if length == 0 {
            return Err(GeometryError::Empty);
        }
        if length.div_ceil(u64::from(piece_length)) > u64::from(PIECE_COUNT_MAX) {
            return Err(GeometryError::TooManyPieces { length, piece_length });
        }
        Ok(Self { length, piece_length, block_length: piece_length.min(BLOCK_LENGTH_MAX) })
    }

    /// The same cut with shorter blocks (the seeds' 16 KiB sub-pieces); out-of-range values are clamped.
    #[must_use]
    pub fn with_block_length(mut self, block_length: u32) -> Self {
        self.block_length = block_length.clamp(1024, self.piece_length.min(BLOCK_LENGTH_MAX));
        self
    }

    /// The blob's length in bytes; never zero.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The length of every piece but the last, in bytes.
    #[must_use]
    pub fn piece_length(&self) -> u32 {
        self.piece_length
    }

    /// The number of pieces; at least one.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "new() bounds the count by PIECE_COUNT_MAX")]
    pub fn piece_count(&self) -> u32 {
        self.length.div_ceil(u64::from(self.piece_length)) as u32
    }

    /// Checks a piece number from outside.
    #[must_use]
    pub fn piece(&self, index: u32) -> Option<PieceIndex> {
        (index < self.piece_count()).then_some(PieceIndex(index))
    }

    /// All pieces in order.
    pub fn pieces(&self) -> impl Iterator<Item = PieceIndex> + use<> {
        (0..self.piece_count()).map(PieceIndex)
    }

    /// The piece that holds the byte at `offset`, or `None` past the end.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the quotient is below piece_count()")]
    pub fn piece_at(&self, offset: u64) -> Option<PieceIndex> {
        (offset < self.length).then(|| PieceIndex((offset / u64::from(self.piece_length)) as u32))
    }

    /// Where a piece lies in the blob, in bytes.
    #[must_use]
    pub fn piece_range(&self, piece: PieceIndex) -> Range<u64> {
        let start = u64::from(piece.0) * u64::from(self.piece_length);
        start..(start + u64::from(self.piece_length)).min(self.length)
    }

    /// The length of one piece in bytes; only the last may be shorter.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "a piece is at most PIECE_LENGTH_MAX bytes")]
    pub fn length_of(&self, piece: PieceIndex) -> u32 {
        let range = self.piece_range(piece);
        (range.end - range.start) as u32
    }

    /// The number of blocks in one piece.
    #[must_use]
    pub fn block_count(&self, piece: PieceIndex) -> u32 {
        self.length_of(piece).div_ceil(self.block_length)
    }

    /// The blocks of one piece in order; together they are the piece.
    pub fn blocks(&self, piece: PieceIndex) -> impl Iterator<Item = BlockRef> + use<> {
        let (length, step) = (self.length_of(piece), self.block_length);
        (0..length.div_ceil(step)).map(move |number| {
            let offset = number * step;
            BlockRef { piece, offset, length: step.min(length - offset) }
        })
    }

    /// Checks a block named by a peer: it must lie inside its piece and be of 1 byte to [`BLOCK_LENGTH_MAX`].
    #[must_use]
    pub fn block(&self, piece: u32, offset: u32, length: u32) -> Option<BlockRef> {
        let piece = self.piece(piece)?;
        let end = offset.checked_add(length)?;
        (length > 0 && length <= BLOCK_LENGTH_MAX && end <= self.length_of(piece)).then_some(BlockRef {
            piece,
            offset,
            length,
        })
    }

    /// Which of the piece's blocks (as [`Self::blocks`] counts them) this is, if it is one of them exactly.
    #[must_use]
    pub fn block_number(&self, block: BlockRef) -> Option<u32> {
        let number = block.offset / self.block_length;
        let exact = block.offset.is_multiple_of(self.block_length)
            && block.offset < self.length_of(block.piece)
            && block.length == self.block_length.min(self.length_of(block.piece) - block.offset);
        exact.then_some(number)
    }
}

impl PieceIndex {
    /// Names the piece of a bit that a bitfield holds; its size came from a geometry.
    pub(crate) fn from_bit(bit: u32) -> Self {
        Self(bit)
    }

    /// The piece's number, counted from zero.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }

    /// The piece's number as an index into a list.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn the_piece_length_follows_from_the_blob_length_alone() {
        let piece_length = |length| Geometry::for_length(length).unwrap().piece_length();
        assert_eq!(piece_length(1), 128 * 1024);
        assert_eq!(piece_length(256 * MIB), 128 * 1024);
        assert_eq!(piece_length(380 * MIB), 128 * 1024);
        assert_eq!(piece_length(400 * MIB), 256 * 1024);
        assert_eq!(piece_length(1024 * MIB), 512 * 1024);
        assert_eq!(piece_length(10 * 1024 * MIB), 4 * 1024 * 1024);
    }

    #[test]
    fn lengths_out_of_bounds_are_refused() {
        assert_eq!(Geometry::for_length(0), Err(GeometryError::Empty));
        assert_eq!(Geometry::new(1, 3), Err(GeometryError::PieceLength(3)));
        assert_eq!(Geometry::new(1, 8 << 20), Err(GeometryError::PieceLength(8 << 20)));
        assert!(matches!(Geometry::for_length(u64::MAX), Err(GeometryError::TooManyPieces { .. })));
    }

    #[test]
    fn a_block_from_outside_must_lie_inside_its_piece() {
        let geometry = Geometry::new(300_000, 262_144).unwrap();
        assert!(geometry.block(0, 0, 262_144).is_some());
        assert!(geometry.block(0, 1, 262_144).is_none());
        assert!(geometry.block(0, u32::MAX, 2).is_none());
        assert!(geometry.block(1, 0, 300_000 - 262_144).is_some());
        assert!(geometry.block(1, 0, 0).is_none());
        assert!(geometry.block(2, 0, 1).is_none());
    }

    proptest! {
        #[test]
        fn pieces_and_blocks_tile_the_blob(length in 1..40 * MIB, shift in 14..22u32, block in 1u32..300_000) {
            let geometry = Geometry::new(length, 1 << shift).unwrap().with_block_length(block);
            let mut at = 0;
            for piece in geometry.pieces() {
                prop_assert_eq!(geometry.piece_at(at), Some(piece));
                for (number, block) in geometry.blocks(piece).enumerate() {
                    prop_assert_eq!(geometry.piece_range(piece).start + u64::from(block.offset), at);
                    prop_assert_eq!(geometry.block(piece.get(), block.offset, block.length), Some(block));
                    prop_assert_eq!(geometry.block_number(block), u32::try_from(number).ok());
                    at += u64::from(block.length);
                }
                prop_assert_eq!(geometry.piece_range(piece).end, at);
            }
            prop_assert_eq!(at, length);
            prop_assert_eq!(geometry.piece_at(at), None);
        }
    }
}
