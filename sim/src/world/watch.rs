//! What must hold over time, looked at once a second in checked mode: peers hear of pieces, nobody is busy for nothing.

use std::time::Duration;

use shoal_meta::{Bitfield, PieceIndex};
use shoal_swarm::Time;
use shoal_swarm::wire::{Alias, Message};

use super::{Happening, ORIGIN, World};
use crate::link::End;

/// How often.
const EVERY: Duration = Duration::from_secs(1);
/// The longest that a piece is kept from a peer: many ticks of the swarm.
const HEARS_WITHIN: Duration = Duration::from_secs(2);
/// Messages that a node may send in a second to each peer while nothing moves: ten ticks, with what a tick may say.
const BUSY_PER_PEER: u64 = 60;
/// Messages that one from a liar may give rise to: a search is answered, and passed on to eight.
const ECHOES: u64 = 20;

/// What one end of a connection has heard of a torrent at the other.
#[derive(Debug)]
pub(super) struct Told {
    blob: usize,
    have: Bitfield,
    since: Time,
}

impl World<'_> {
    /// A message is no longer under way.
    pub(super) fn note_arrived(&mut self, conn: u32, end: usize) {
        let under_way = self.check.as_mut().and_then(|check| check.under_way.get_mut(&(conn, end)));
        if let Some(under_way) = under_way {
            *under_way -= 1;
        }
    }

    /// One end of a connection hears a message.
    pub(super) fn note_told(&mut self, conn: u32, end: usize, message: &Message) {
        let liar = self.nodes[self.links[conn as usize].nodes[1 - end] as usize].lies.is_some();
        let blob_of = |digest| self.blobs.iter().position(|blob| blob.digest == digest);
        let Some(check) = &mut self.check else { return };
        if liar {
            check.lied += 1;
            return;
        }
        let told = check.told.entry((conn, end)).or_default();
        match message {
            Message::OpenTorrent(open) => {
                if let Some(blob) = blob_of(open.digest) {
                    told.insert(open.alias, Told { blob, have: open.have.clone(), since: self.now });
                }
            }
            Message::CloseTorrent { alias } => drop(told.remove(alias)),
            Message::HaveAll { alias } => {
                if let Some(told) = told.get_mut(alias) {
                    told.have = Bitfield::full(&self.blobs[told.blob].geometry);
                }
            }
            Message::Have { alias, pieces } => {
                if let Some(told) = told.get_mut(alias) {
                    let geometry = self.blobs[told.blob].geometry;
                    pieces.iter().filter_map(|&piece| geometry.piece(piece)).for_each(|piece| {
                        told.have.insert(piece);
                    });
                }
            }
            Message::Hello { .. }
            | Message::Interested
            | Message::NotInterested { .. }
            | Message::Unchoke { .. }
            | Message::Choke
            | Message::Request { .. }
            | Message::Reject { .. }
            | Message::Cancel { .. }
            | Message::PeerExchange(_)
            | Message::FindPeers(_)
            | Message::FindMetainfo { .. }
            | Message::MetainfoPart(_) => {}
        }
    }

    /// A node has a piece from now on.
    pub(super) fn note_had(&mut self, node: u32, blob: usize, piece: PieceIndex) {
        if let Some(check) = &mut self.check {
            check.had_at.insert((node, blob, piece), self.now);
            check.moved += 1;
        }
    }

    /// A node starts anew.
    pub(super) fn forget_node(&mut self, node: u32) {
        if let Some(check) = &mut self.check {
            check.had_at.retain(|(of, ..), _| *of != node);
            check.moved += 1;
        }
    }

    pub(super) fn look(&mut self) {
        self.check_told();
        self.check_busy();
        self.hopeless = self.now > self.faults_until && !self.is_reachable();
        self.push_after(EVERY, Happening::Look);
    }

    /// Whoever has had a piece for long enough has told each peer that lacks it, where nothing went wrong meanwhile and no
    /// message is under way. An origin that super-seeds keeps its own counsel.
    fn check_told(&self) {
        let Some(check) = &self.check else { return };
        let before = self.now - HEARS_WITHIN;
        for ((conn, end), heard) in &check.told {
            let link = &self.links[*conn as usize];
            let [to, from] = [link.nodes[*end], link.nodes[1 - end]];
            let (teller, hearer) = (&self.nodes[from as usize], &self.nodes[to as usize]);
            let calm = [teller, hearer].iter().all(|node| node.is_live() && node.is_honest() && node.rough_at < before);
            let clear = check.under_way.get(&(*conn, *end)).is_none_or(|under_way| *under_way == 0);
            if from == ORIGIN || !calm || !clear || link.ends != [End::Open; 2] {
                continue;
            }
            let Some(back) = check.told.get(&(*conn, 1 - end)) else { continue };
            for (alias, told) in heard {
                let known = back.values().find(|back| back.blob == told.blob).is_some_and(|back| back.since < before);
                if !known || told.since >= before || teller.blob_named(*alias) != Some(told.blob) {
                    continue;
                }
                let lacks =
                    |piece: &PieceIndex| !told.have.contains(*piece) && !hearer.blobs[told.blob].have.contains(*piece);
                let long =
                    |piece: &PieceIndex| check.had_at.get(&(from, told.blob, *piece)).is_none_or(|at| *at < before);
                let untold = teller.blobs[told.blob].have.iter().find(|piece| lacks(piece) && long(piece));
                assert!(
                    untold.is_none(),
                    "at {:?} node {to} has not heard from node {from} of {untold:?} of blob {}, seed {}",
                    self.now,
                    told.blob,
                    self.scenario.seed
                );
            }
        }
    }

    /// Nobody sends message after message while no piece comes of it. What liars provoke is on their account.
    fn check_busy(&mut self) {
        let Some(check) = &mut self.check else { return };
        let (said, lied, moved) = (std::mem::take(&mut check.said), check.lied, check.moved);
        (check.lied, check.moved) = (0, 0);
        for (node, said) in said {
            let peers = self.nodes[node as usize].swarm.connections() as u64 + 2;
            let most = BUSY_PER_PEER * peers + lied * ECHOES + moved * 40;
            assert!(
                said <= most,
                "at {:?} node {node} sent {said} messages in a second, with {moved} pieces got, seed {}",
                self.now,
                self.scenario.seed
            );
        }
    }
}

/// Names a torrent at the other end.
pub(super) type Heard = std::collections::BTreeMap<Alias, Told>;
