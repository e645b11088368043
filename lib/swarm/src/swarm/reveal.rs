//! Super-seeding over all torrents: first copies of every piece leave before second copies of any.

use std::time::Duration;

use rand::seq::SliceRandom as _;

use super::Swarm;
use crate::TorrentKey;
use crate::rate::under_way;
use crate::superseed::SuperSeed;
use crate::torrent::Torrent;
use crate::wire::{Message, Pieces};

/// When no block has left, no piece has come and no peer has joined for this long, there is upload to spare.
const IDLE_AFTER: Duration = Duration::from_secs(1);

/// What is on show is as much as leaves in twice this time: until a piece is fetched, verified and told of.
const SHOW_TIME: Duration = Duration::from_millis(4);

impl Swarm {
    /// Shows peers of super-seeded torrents more pieces, as they fetch those they were shown.
    pub(super) fn reveal_all(&mut self) {
        let mut members: Vec<_> = std::mem::take(&mut self.dirty.reveal).into_iter().collect();
        // While pieces come one by one, the same peer would get each of them.
        members.shuffle(&mut self.rng);
        let soon = under_way(self.rate_out.get(self.now), Some(SHOW_TIME));
        for (key, conn) in members {
            let Some(torrent) = self.torrents.get(&key) else { continue };
            let Some(member) = torrent.members.get(conn).filter(|_| torrent.super_seed.is_some()) else { continue };
            let on_show = SuperSeed::on_show(&torrent.geometry, soon);
            let ahead = SuperSeed::ahead(on_show, torrent.leechers, member.revealed.count() - member.unfetched);
            if member.unfetched >= ahead {
                continue;
            }
            let mut repeats = 0;
            if self.has_spare_copies() {
                // Those left on show may be shown to slow peers. Who was shown many while there were few counts as others do:
                // nobody waits until it has fetched them.
                let shown: u32 = torrent.members.iter().map(|(_, member)| member.unfetched.min(ahead)).sum();
                repeats = on_show.saturating_sub(shown);
            }
            let Some(torrent) = self.torrents.get_mut(&key) else { continue };
            let (Some(seed), Some(member)) = (&mut torrent.super_seed, torrent.members.get_mut(conn)) else {
                continue;
            };
            let mut pieces = Pieces::new();
            while member.unfetched < ahead
                && let Some(piece) =
                    seed.choose(&torrent.have, &member.have, &member.revealed, &torrent.availability, repeats > 0)
            {
                seed.show(piece);
                member.revealed.insert(piece);
                member.unfetched += 1;
                repeats = repeats.saturating_sub(1);
                pieces.push(piece.get());
            }
            if !pieces.is_empty() {
                self.send(conn, Message::Have { alias: key.alias(), pieces });
            }
        }
    }

    /// Who has what of a torrent has changed: that may end super-seeding.
    pub(super) fn end_super_seed(&mut self, changed: TorrentKey) {
        if self.torrents.get(&changed).is_some_and(|torrent| torrent.super_seed.is_some()) {
            self.end_super_seeds();
        }
    }

    /// Ends super-seeding of what is whole at other peers, once that is all there is to spread: from then on the swarm can
    /// do without us, and before it would ask us for second copies while others wait for a first. When nothing moves it ends
    /// for all that is whole here: who fetches nothing of what it was shown may want a piece that it was not.
    fn end_super_seeds(&mut self) {
        let waiting = |torrent: &Torrent| torrent.leechers > 0 && torrent.super_seed.is_some() && !torrent.is_spread();
        let idle = self.is_idle();
        if !idle && self.torrents.values().any(waiting) {
            return;
        }
        let over = |torrent: &Torrent| torrent.is_spread() || (idle && torrent.leechers > 0 && !torrent.is_leech());
        let over = self.torrents.iter().filter(|(_, torrent)| torrent.super_seed.is_some() && over(torrent));
        for key in over.map(|(&key, _)| key).collect::<Vec<_>>() {
            self.seed_plainly(key);
        }
    }

    fn seed_plainly(&mut self, key: TorrentKey) {
        let Some(torrent) = self.torrents.get_mut(&key) else { return };
        torrent.super_seed = None;
        for conn in torrent.members.indices().iter() {
            self.send(conn, Message::HaveAll { alias: key.alias() });
            self.part_if_both_full(conn, key);
        }
    }

    /// Tells whether second copies take nothing from first ones: every piece has been shown, or nobody asks for anything.
    fn has_spare_copies(&self) -> bool {
        let unshown = |torrent: &Torrent| {
            let seed = torrent.super_seed.as_ref().filter(|_| torrent.leechers > 0);
            seed.is_some_and(|seed| torrent.is_leech() || seed.has_unshown(&torrent.have, &torrent.availability))
        };
        self.is_idle() || !self.torrents.values().any(unshown)
    }

    /// Shows more when nothing moves: what was shown may be stuck at slow peers.
    pub(super) fn unstick(&mut self) {
        if self.is_idle() {
            for (&key, torrent) in self.torrents.iter().filter(|(_, torrent)| torrent.super_seed.is_some()) {
                self.dirty.reveal.extend(torrent.members.iter().map(|(conn, _)| (key, conn)));
            }
            self.end_super_seeds();
        }
    }

    fn is_idle(&self) -> bool {
        self.now.since(self.moved_at) >= IDLE_AFTER
    }
}
