//! Super-seeding (BEP 16): the origin shows different pieces to different peers, so that each leaves it about once.

use shoal_meta::{Bitfield, Geometry, PieceIndex};

use crate::availability::Availability;

/// Pieces of a torrent on show and not fetched yet that keep the path full while peers verify, tell and ask.
const ON_SHOW: u32 = 8;
/// Pieces shown to one peer at first, growing by one with each that it fetched. Others may join at any moment, and what was
/// shown cannot be taken back.
const FIRST: u32 = 2;

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

    /// How many pieces of a torrent are on show where so many bytes leave soon.
    pub(crate) fn on_show(geometry: &Geometry, soon: u64) -> u32 {
        u32::try_from(soon / u64::from(geometry.piece_length())).unwrap_or(u32::MAX).max(ON_SHOW)
    }

    /// How many pieces a peer that fetched so many may see ahead of them: its share of what is on show, at least one.
    pub(crate) fn ahead(on_show: u32, leechers: usize, fetched: u32) -> u32 {
        let leechers = u32::try_from(leechers).unwrap_or(u32::MAX).max(1);
        on_show.div_ceil(leechers).min(FIRST + fetched)
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
    fn peers_share_what_is_on_show_and_see_more_as_they_fetch() {
        assert_eq!([0, 5, 100].map(|fetched| SuperSeed::ahead(ON_SHOW, 1, fetched)), [2, 7, ON_SHOW]);
        assert_eq!(
            [0, 2, 3, 8, 9, 10_000].map(|leechers| SuperSeed::ahead(ON_SHOW, leechers, 100)),
            [8, 4, 3, 1, 1, 1]
        );
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
