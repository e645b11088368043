//! How many connected peers have each piece. Kept by the torrent, read by the picker and the super-seeder.

use shoal_meta::{Bitfield, Geometry, PieceIndex};

/// Copies of each piece among connected peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Availability {
    copies: Vec<u16>,
    /// Pieces of which no peer has a copy.
    absent: u32,
}

impl Availability {
    pub(crate) fn new(geometry: &Geometry) -> Self {
        Self { copies: vec![0; geometry.piece_count() as usize], absent: geometry.piece_count() }
    }

    /// How many connected peers have the piece.
    pub(crate) fn of(&self, piece: PieceIndex) -> u16 {
        self.copies[piece.index()]
    }

    /// Tells whether every piece is at some peer.
    pub(crate) fn is_covered(&self) -> bool {
        self.absent == 0
    }

    /// A peer got a piece.
    pub(crate) fn add(&mut self, piece: PieceIndex) {
        let copies = &mut self.copies[piece.index()];
        self.absent -= u32::from(*copies == 0);
        *copies = copies.saturating_add(1);
    }

    /// A peer came with these pieces.
    pub(crate) fn add_all(&mut self, have: &Bitfield) {
        have.iter().for_each(|piece| self.add(piece));
    }

    /// A peer with these pieces left.
    pub(crate) fn remove_all(&mut self, have: &Bitfield) {
        for piece in have.iter() {
            let copies = &mut self.copies[piece.index()];
            *copies = copies.checked_sub(1).expect("only peers that were added are removed");
            self.absent += u32::from(*copies == 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_and_goes_leaves_nothing() {
        let geometry = Geometry::new(3 << 18, 1 << 18).unwrap();
        let full = Bitfield::full(&geometry);
        let fresh = Availability::new(&geometry);
        let mut availability = fresh.clone();
        availability.add_all(&full);
        assert!(availability.is_covered());
        availability.remove_all(&full);
        assert_eq!(availability, fresh);
    }
}
