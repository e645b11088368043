//! Which piece to ask of a peer next. Pure: it sees sets and counts, and draws ties from the generator it is given.
//!
//! In order of need: finish what is begun (strict priority); the next piece of a reader that waits; a random first piece
//! for a peer that has none; rarest first with random ties (Cohen, "Incentives build robustness in BitTorrent", 2003).
//! While no other leecher is about, order costs nobody anything: a reader's window goes first.

use std::collections::BTreeSet;

use rand::RngExt as _;
use rand_pcg::Pcg64;
use shoal_meta::{Bitfield, PieceIndex};

use crate::availability::Availability;

/// What the picker sees of a torrent and one peer.
pub(crate) struct View<'a> {
    /// What the peer has.
    pub(crate) peer: &'a Bitfield,
    /// What may be asked for: known, not had, not yet asked of anyone or to be asked again.
    pub(crate) open: &'a Bitfield,
    /// Open pieces that are begun: some blocks are in, or their holder is late.
    pub(crate) begun: &'a BTreeSet<PieceIndex>,
    /// Open pieces this peer is asked for already.
    pub(crate) asked: &'a [PieceIndex],
    pub(crate) availability: &'a Availability,
    /// Whether a piece may be asked of this peer as far as zones go.
    pub(crate) gives: &'a dyn Fn(PieceIndex) -> bool,
    /// Where readers stand, the neediest first.
    pub(crate) readers: &'a [Window],
    /// We have no piece yet.
    pub(crate) first: bool,
    /// No other leecher is about.
    pub(crate) alone: bool,
    /// Share of picks for readers that are not urgent.
    pub(crate) reader_share: f64,
}

impl View<'_> {
    fn admits(&self, piece: PieceIndex) -> bool {
        !self.asked.contains(&piece) && (self.gives)(piece)
    }
}

/// The pieces ahead of a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// The piece it waits for.
    pub(crate) next: PieceIndex,
    /// How many pieces count as near.
    pub(crate) length: u32,
    /// It waits for its first piece, or has waited too long.
    pub(crate) urgent: bool,
}

/// Picks a piece to ask of the peer, or `None` when it has nothing we would ask for.
pub(crate) fn pick(view: &View<'_>, rng: &mut Pcg64) -> Option<PieceIndex> {
    let askable = |piece: PieceIndex| view.open.contains(piece) && view.peer.contains(piece) && view.admits(piece);
    if let Some(begun) = view.begun.iter().copied().find(|&piece| askable(piece)) {
        return Some(begun);
    }
    for window in view.readers {
        if window.urgent && askable(window.next) {
            return Some(window.next);
        }
        if view.alone || (!view.readers.is_empty() && rng.random_bool(view.reader_share)) {
            let end = if view.alone { u32::MAX } else { window.next.get().saturating_add(window.length) };
            let near = view.open.iter().skip_while(|&piece| piece < window.next).take_while(|piece| piece.get() < end);
            if let Some(near) = near.into_iter().find(|&piece| askable(piece)) {
                return Some(near);
            }
        }
    }
    rarest(view, rng)
}

fn rarest(view: &View<'_>, rng: &mut Pcg64) -> Option<PieceIndex> {
    let mut best = None;
    let mut copies = u16::MAX;
    let mut ties = 0u32;
    for piece in view.open.iter_and(view.peer) {
        let of = if view.first { 0 } else { view.availability.of(piece) };
        if of > copies || !view.admits(piece) {
            continue;
        }
        if of < copies || best.is_none() {
            (best, copies, ties) = (Some(piece), of, 1);
        } else {
            ties += 1;
            if rng.random_range(0..ties) == 0 {
                best = Some(piece);
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng as _;
    use shoal_meta::Geometry;

    /// A torrent drawn as pictures: `#` yes, `.` no; availability as digits.
    struct Picture {
        geometry: Geometry,
        peer: Bitfield,
        open: Bitfield,
        begun: BTreeSet<PieceIndex>,
        asked: Vec<PieceIndex>,
        availability: Availability,
        readers: Vec<Window>,
        first: bool,
        alone: bool,
        reader_share: f64,
    }

    fn geometry(pieces: usize) -> Geometry {
        Geometry::new(pieces as u64 * 16_384, 16_384).unwrap()
    }

    fn set(picture: &str) -> Bitfield {
        let geometry = geometry(picture.len());
        let mut out = Bitfield::empty(&geometry);
        geometry.pieces().zip(picture.bytes()).filter(|(_, c)| *c == b'#').for_each(|(piece, _)| {
            out.insert(piece);
        });
        out
    }

    fn torrent(availability: &str, open: &str, peer: &str) -> Picture {
        let geometry = geometry(open.len());
        let mut copies = Availability::new(&geometry);
        for (piece, digit) in geometry.pieces().zip(availability.bytes()) {
            (b'0'..digit).for_each(|_| copies.add(piece));
        }
        Picture {
            geometry,
            peer: set(peer),
            open: set(open),
            begun: BTreeSet::new(),
            asked: Vec::new(),
            availability: copies,
            readers: Vec::new(),
            first: false,
            alone: false,
            reader_share: 0.0,
        }
    }

    impl Picture {
        fn reader(mut self, next: u32, length: u32, urgent: bool) -> Self {
            self.readers.push(Window { next: self.geometry.piece(next).unwrap(), length, urgent });
            self
        }

        /// Every piece that some seed picks, as a picture.
        fn picks(&self) -> String {
            let mut picked = vec![b'.'; self.open.length() as usize];
            for seed in 0..200 {
                if let Some(piece) = pick(&self.view(), &mut Pcg64::seed_from_u64(seed)) {
                    picked[piece.index()] = b'#';
                }
            }
            String::from_utf8(picked).unwrap()
        }

        fn view(&self) -> View<'_> {
            View {
                peer: &self.peer,
                open: &self.open,
                begun: &self.begun,
                asked: &self.asked,
                availability: &self.availability,
                gives: &|_| true,
                readers: &self.readers,
                first: self.first,
                alone: self.alone,
                reader_share: self.reader_share,
            }
        }
    }

    #[test]
    fn the_rarest_piece_goes_first_and_ties_are_random() {
        assert_eq!(torrent("1223", "####", "####").picks(), "#...");
        assert_eq!(torrent("2112", "####", "####").picks(), ".##.");
        assert_eq!(torrent("2112", "#..#", "####").picks(), "#..#");
    }

    #[test]
    fn only_what_the_peer_has_is_asked_of_it() {
        assert_eq!(torrent("1223", "####", ".#.#").picks(), ".#..");
        assert_eq!(torrent("1111", "##..", "..##").picks(), "....");
    }

    #[test]
    fn the_first_piece_is_random_whatever_its_rarity() {
        let mut picture = torrent("1923", "####", "####");
        picture.first = true;
        assert_eq!(picture.picks(), "####");
    }

    #[test]
    fn what_is_begun_is_finished_first() {
        let mut picture = torrent("1239", "####", "####");
        picture.begun.insert(picture.geometry.piece(3).unwrap());
        assert_eq!(picture.picks(), "...#");
        picture.asked.push(picture.geometry.piece(3).unwrap());
        assert_eq!(picture.picks(), "#...");
    }

    #[test]
    fn an_urgent_reader_gets_its_next_piece() {
        assert_eq!(torrent("1999", "####", "####").reader(2, 2, true).picks(), "..#.");
        assert_eq!(torrent("1999", "####", "##.#").reader(2, 2, true).picks(), "#...");
    }

    #[test]
    fn a_patient_reader_gets_a_share_of_the_picks() {
        let mut picture = torrent("19999", "#####", "#####").reader(2, 2, false);
        picture.reader_share = 0.5;
        assert_eq!(picture.picks(), "#.#..");
        picture.open = set("##.##");
        assert_eq!(picture.picks(), "#..#.");
        picture.open = set("##..#");
        assert_eq!(picture.picks(), "#....");
    }

    #[test]
    fn a_reader_that_is_alone_is_served_in_order() {
        let mut picture = torrent("11111", ".####", "#####").reader(0, 1, false);
        picture.alone = true;
        assert_eq!(picture.picks(), ".#...");
    }

    proptest! {
        #[test]
        fn a_pick_is_open_at_the_peer_and_not_asked_twice(
            pieces in prop::collection::vec((any::<bool>(), any::<bool>(), any::<bool>(), 0..4u8), 1..80),
            reader in 0..80u32, seed in any::<u64>(), share in 0.0..1.0, urgent in any::<bool>(), alone in any::<bool>(),
        ) {
            let picture = |f: fn(&(bool, bool, bool, u8)) -> bool| {
                pieces.iter().map(|piece| if f(piece) { '#' } else { '.' }).collect::<String>()
            };
            let digits: String = pieces.iter().map(|piece| char::from(b'0' + piece.3)).collect();
            let mut torrent = torrent(&digits, &picture(|p| p.0), &picture(|p| p.1));
            if (reader as usize) < pieces.len() {
                torrent = torrent.reader(reader, 4, urgent);
            }
            torrent.asked = set(&picture(|p| p.2)).iter().collect();
            (torrent.reader_share, torrent.alone) = (share, alone);
            let picked = pick(&torrent.view(), &mut Pcg64::seed_from_u64(seed));
            let askable = pieces.iter().any(|piece| piece.0 && piece.1 && !piece.2);
            prop_assert_eq!(picked.is_some(), askable);
            if let Some(piece) = picked {
                let (open, has, asked, _) = pieces[piece.index()];
                prop_assert!(open && has && !asked);
            }
        }
    }
}
