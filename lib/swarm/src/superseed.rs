//! Super-seeding (BEP 16): the origin shows different pieces to different peers, so that each leaves it about once.

use shoal_meta::{Bitfield, Geometry, PieceIndex};

use crate::availability::Availability;

/// Pieces shown to one peer that it has not fetched yet, at most, when many peers are about.
const REVEALED_MAX: u32 = 1;
/// The same when there are few: at first, growing by one with each that the peer fetched, and at most. Others may join at any
/// moment, and what was shown cannot be taken back.
const REVEALED_FIRST_FEW: u32 = 2;
const REVEALED_MAX_FEW: u32 = 16;

/// What has been shown. Left when every piece is at some other peer.
#[derive(Debug)]
pub(crate) struct SuperSeed {
    /// For each piece, to how many peers it is shown that have not got it yet.
    shown: Vec<u16>,
}

impl SuperSeed {
    pub(crate) fn new(geometry: &Geometry) -> Self {
        Self { shown: vec![0; geometry.piece_count() as usize] }
    }

    /// So many peers are few: they need more on show to keep the path full.
    pub(crate) const FEW: usize = 2;

    /// How many pieces a peer that fetched so many may see ahead of them.
    pub(crate) fn ahead(few: bool, fetched: u32) -> u32 {
        if few { (REVEALED_FIRST_FEW + fetched).min(REVEALED_MAX_FEW) } else { REVEALED_MAX }
    }

    /// Chooses the piece to show a peer next: the first that nobody has or has been shown. A piece is shown again only
    /// when that may be: a second copy that leaves before the first of another puts that one off.
    pub(crate) fn choose(
        &self,
        have: &Bitfield,
        peer: &Bitfield,
        revealed: &Bitfield,
        availability: &Availability,
        repeat: bool,
    ) -> Option<PieceIndex> {
        let copies = |piece: PieceIndex| self.shown[piece.index()].saturating_add(availability.of(piece));
        let piece = have
            .iter()
            .filter(|&piece| !peer.contains(piece) && !revealed.contains(piece))
            .min_by_key(|&piece| copies(piece))?;
        (copies(piece) == 0 || repeat).then_some(piece)
    }

    /// Tells whether we have a piece that nobody else has or has been shown.
    pub(crate) fn has_unshown(&self, have: &Bitfield, availability: &Availability) -> bool {
        have.iter().any(|piece| self.shown[piece.index()] == 0 && availability.of(piece) == 0)
    }

    /// A piece is shown to a peer.
    pub(crate) fn show(&mut self, piece: PieceIndex) {
        self.shown[piece.index()] = self.shown[piece.index()].saturating_add(1);
    }

    /// A peer that was shown a piece got it, or left.
    pub(crate) fn settle(&mut self, piece: PieceIndex) {
        self.shown[piece.index()] = self.shown[piece.index()].saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_sees_more_ahead_as_it_fetches_while_there_are_few() {
        assert_eq!([0, 5, 100].map(|fetched| SuperSeed::ahead(true, fetched)), [2, 7, 16]);
        assert_eq!(SuperSeed::ahead(false, 100), 1);
    }

    #[test]
    fn different_peers_are_shown_different_pieces() {
        let geometry = Geometry::new(4 << 18, 1 << 18).unwrap();
        let (have, none) = (Bitfield::full(&geometry), Bitfield::empty(&geometry));
        let availability = Availability::new(&geometry);
        let mut seed = SuperSeed::new(&geometry);
        let mut shown = Vec::new();
        for _ in 0..4 {
            let piece = seed.choose(&have, &none, &none, &availability, false).unwrap();
            seed.show(piece);
            shown.push(piece.get());
        }
        assert_eq!(shown, [0, 1, 2, 3]);
        assert_eq!(seed.choose(&have, &none, &none, &availability, false), None);
        assert!(seed.choose(&have, &none, &none, &availability, true).is_some());
    }
}
