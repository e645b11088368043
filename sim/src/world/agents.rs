//! What nodes do, and what tracker and origin answer: arrivals, announces, torrents opened, pieces verified.

use std::time::Duration;

use rand::RngExt as _;
use shoal_meta::{Bitfield, Digest, PieceIndex};
use shoal_swarm::{OpenTorrent, TorrentKey};

use super::{Answer, Happening, ORIGIN, World, slot};
use crate::link::transfer_time;
use crate::node::State;
use crate::scenario::Bug;

impl World<'_> {
    pub(super) fn begin(&mut self) {
        self.nodes[ORIGIN as usize].state = State::Live;
        for blob in 0..self.blobs.len() {
            if self.scenario.upstream_rate.is_none() {
                let state = &mut self.blobs[blob];
                state.known = state.geometry.piece_count();
                let held = &mut self.nodes[ORIGIN as usize].blobs[blob];
                (held.have, held.committed) = (Bitfield::full(&state.geometry), true);
            }
            self.open(ORIGIN, blob, self.blobs[blob].known);
        }
        self.touch(ORIGIN);
        for node in 1..=self.scenario.nodes() {
            let arrivals = self.scenario.groups[self.nodes[node as usize].group].arrivals;
            let within = match arrivals.within {
                Duration::ZERO => Duration::ZERO,
                within => within.mul_f64(self.rng.random_range(0.0..1.0)),
            };
            self.queue.push_at(self.now + arrivals.after + within, Happening::Arrive(node));
        }
        for (index, fault) in (0u32..).zip(&self.scenario.faults) {
            self.queue.push_at(self.now + fault.at, Happening::Fault(index));
        }
        if self.check.is_some() && self.scenario.is_rough() {
            self.look();
        }
    }

    pub(super) fn arrive(&mut self, node: u32) {
        let state = &mut self.nodes[node as usize];
        if state.state != State::Away {
            return;
        }
        state.state = State::Live;
        state.arrived_at = self.now;
        if state.lies.is_some() {
            self.push_after(self.scenario.latency, Happening::Lie(node));
        }
        self.ask_for_more(node);
    }

    /// Asks for the next blobs in order, as many as an agent fetches at a time.
    pub(super) fn ask_for_more(&mut self, node: u32) {
        let state = &mut self.nodes[node as usize];
        let (from, life) = (state.begun, state.life);
        state.begun = self.blobs.len().min(state.whole + self.scenario.parallel);
        for blob in from..state.begun {
            self.push_after(self.scenario.latency, Happening::Announce { node, blob: slot(blob), life });
        }
    }

    pub(super) fn announced(&mut self, node: u32, blob: u32, life: u32) {
        let state = &mut self.blobs[blob as usize];
        if self.scenario.upstream_rate.is_some() && !state.begun {
            state.begun = true;
            self.fetch_next(blob);
        }
        if self.nodes[node as usize].is_live() && self.nodes[node as usize].life == life {
            let state = &mut self.blobs[blob as usize];
            let zone = self.nodes[node as usize].zone;
            let (peers, lead) = state.tracker.announce(node, zone, self.scenario.handout_max, &mut self.rng);
            let answer = self.answers.insert(Answer { blob, peers, lead, known: state.known });
            self.push_after(self.scenario.latency, Happening::Answer { node, answer: slot(answer) });
        }
    }

    pub(super) fn answered(&mut self, node: u32, answer: u32) {
        let Answer { blob, peers, lead, known } = self.answers.remove(answer as usize);
        let held = &self.nodes[node as usize].blobs[blob as usize];
        if !self.nodes[node as usize].is_live() || held.have.is_full() {
            return;
        }
        if held.torrent.is_none() {
            self.open(node, blob as usize, known);
        }
        let infos: Vec<_> = peers.iter().map(|&peer| self.nodes[peer as usize].swarm.me().clone()).collect();
        let state = &mut self.nodes[node as usize];
        if let Some(torrent) = state.blobs[blob as usize].torrent {
            if let Some(lead) = lead {
                state.swarm.lead(state.clock(self.now), torrent, lead);
            }
            state.swarm.add_peers(state.clock(self.now), torrent, &infos);
        }
        self.touch(node);
        // A short handout is that of a young swarm: more have come soon.
        let held = &mut self.nodes[node as usize].blobs[blob as usize];
        let interval = self.scenario.announce_interval;
        let again = if peers.len() > self.scenario.handout_max { interval } else { held.announce_again.min(interval) };
        held.announce_again = again * 2;
        let life = self.nodes[node as usize].life;
        self.push_after(again, Happening::Announce { node, blob, life });
    }

    pub(super) fn end_lease(&mut self, node: u32) {
        if self.nodes[node as usize].is_live() {
            return;
        }
        let zone = self.nodes[node as usize].zone;
        self.blobs.iter_mut().for_each(|blob| blob.tracker.expire(node, zone));
    }

    /// Opens a blob's torrent at a node, with what its store holds.
    pub(super) fn open(&mut self, node: u32, blob: usize, known: u32) {
        let Self { nodes, blobs, scenario, now, .. } = self;
        let (state, blob) = (&mut nodes[node as usize], (&blobs[blob], blob));
        let held = &mut state.blobs[blob.1];
        let open = OpenTorrent {
            digest: blob.0.digest,
            geometry: blob.0.geometry,
            have: held.have.clone(),
            known,
            wanted: Bitfield::full(&blob.0.geometry),
            super_seed: node == ORIGIN && !(state.life > 0 && held.have.is_full()),
        };
        let now = *now + state.ahead;
        held.torrent = state.swarm.open(now, open);
        let first = blob.0.geometry.piece(0).filter(|_| scenario.readers && node != ORIGIN && !held.have.is_full());
        if let (Some(torrent), Some(first)) = (held.torrent, first) {
            held.reader = state.swarm.add_reader(now, torrent, first).map(|reader| (reader, 0));
        }
        if !held.left.is_empty() {
            let (life, blob) = (state.life, slot(blob.1));
            let delay = scenario.verify_delay * held.left.count();
            self.push_after(delay, Happening::Rechecked { node, life, blob });
        }
    }

    /// The blob of a digest, if a node has all of it.
    pub(super) fn holds(&self, node: u32, digest: &Digest) -> Option<usize> {
        let blob = self.blobs.iter().position(|blob| blob.digest == *digest)?;
        self.nodes[node as usize].blobs[blob].have.is_full().then_some(blob)
    }

    /// Opens a torrent that a peer takes part in, if the node has all of it; tells whether.
    pub(super) fn reopen(&mut self, node: u32, digest: &Digest) -> bool {
        let Some(blob) = self.holds(node, digest) else { return false };
        let closed = self.nodes[node as usize].blobs[blob].torrent.is_none();
        if closed {
            self.open(node, blob, self.blobs[blob].geometry.piece_count());
        }
        closed
    }

    /// The origin asks upstream for the next piece of a blob, behind what it asked for before.
    pub(super) fn fetch_next(&mut self, blob: u32) {
        let (geometry, origin) = (self.blobs[blob as usize].geometry, &self.nodes[ORIGIN as usize]);
        let missing = origin.blobs[blob as usize].have.first_missing(0);
        let next = missing.and_then(|missing| geometry.piece(missing));
        let (Some(next), Some(rate), life) = (next, self.scenario.upstream_rate, origin.life) else { return };
        let delay = transfer_time(u64::from(geometry.length_of(next)), rate);
        self.upstream_free_at = self.upstream_free_at.max(self.now) + delay;
        self.queue.push_at(self.upstream_free_at, Happening::Upstream { blob, life });
    }

    pub(super) fn upstream(&mut self, blob: u32, life: u32) {
        let (origin, state) = (&mut self.nodes[ORIGIN as usize], &mut self.blobs[blob as usize]);
        let held = &mut origin.blobs[blob as usize];
        let missing = held.have.first_missing(0).filter(|_| origin.state == State::Live && origin.life == life);
        let Some(piece) = missing.and_then(|missing| state.geometry.piece(missing)) else { return };
        state.known = state.known.max(piece.get() + 1);
        held.have.insert(piece);
        held.rotten.remove(&piece);
        if let Some(torrent) = held.torrent {
            let now = self.now + origin.ahead;
            origin.swarm.set_known(now, torrent, state.known);
            origin.swarm.add_piece(now, torrent, piece);
        }
        let known = state.known;
        if held.have.is_full() {
            self.commit(ORIGIN, blob as usize);
        }
        self.touch(ORIGIN);
        self.push_after(self.scenario.latency, Happening::Known { blob, known });
        self.fetch_next(blob);
    }

    pub(super) fn hashes_known(&mut self, blob: u32, known: u32) {
        for node in 1..=self.scenario.nodes() {
            let state = &mut self.nodes[node as usize];
            if state.paused_until > self.now {
                let until = state.paused_until;
                self.queue.push_at(until, Happening::Known { blob, known });
            } else if let (true, Some(torrent)) = (state.is_live(), state.blobs[blob as usize].torrent) {
                state.swarm.set_known(state.clock(self.now), torrent, known);
                self.touch(node);
            }
        }
    }

    pub(super) fn verified(&mut self, node: u32, torrent: TorrentKey, piece: PieceIndex, good: bool) {
        let state = &mut self.nodes[node as usize];
        let Some(blob) = state.blob_of(torrent).filter(|_| state.is_live()) else { return };
        let passes = good || self.scenario.bug == Some(Bug::SkipVerification);
        state.swarm.handle_verified(state.clock(self.now), torrent, piece, passes);
        if !passes {
            self.touch(node);
            return;
        }
        // What an earlier life left of it is written over.
        let rotten = &mut state.blobs[blob].rotten;
        if good {
            rotten.remove(&piece);
        } else {
            rotten.insert(piece);
        }
        self.had(node, blob, torrent, piece);
    }

    /// A piece is verified and on disk.
    fn had(&mut self, node: u32, blob: usize, torrent: TorrentKey, piece: PieceIndex) {
        let state = &mut self.nodes[node as usize];
        if state.blobs[blob].have.insert(piece) && self.check.is_some() {
            self.note_had(node, blob, piece);
        }
        let state = &mut self.nodes[node as usize];
        if (blob, piece.get()) == (0, 0) {
            state.first_at = Some(self.now);
        }
        self.move_reader(node, blob, torrent);
        let held = &self.nodes[node as usize].blobs[blob];
        if held.have.is_full() && !held.committed {
            self.touch(node);
            self.commit(node, blob);
            if node == ORIGIN {
                return;
            }
            let state = &mut self.nodes[node as usize];
            state.whole += 1;
            if state.whole == state.blobs.len() {
                state.completed_at = Some(self.now);
                self.waiting -= u32::from(state.lies.is_none());
            }
            self.ask_for_more(node);
        }
        self.touch(node);
    }

    /// The whole blob is checked and kept.
    pub(super) fn commit(&mut self, node: u32, blob: usize) {
        if self.check.is_some() {
            self.check_commit(node, blob);
        }
        self.nodes[node as usize].blobs[blob].committed = true;
    }

    /// What an earlier life left of a blob is verified: it is as good as a piece that comes another way.
    pub(super) fn rechecked(&mut self, node: u32, blob: u32) {
        let (blob, now) = (blob as usize, self.now);
        let state = &mut self.nodes[node as usize];
        let held = &mut state.blobs[blob];
        let Some(torrent) = held.torrent.filter(|_| state.state == State::Live) else { return };
        let left = std::mem::replace(&mut held.left, Bitfield::empty(&self.blobs[blob].geometry));
        for piece in left.iter() {
            let held = &mut self.nodes[node as usize].blobs[blob];
            if held.have.contains(piece) {
                continue;
            }
            if self.scenario.bug != Some(Bug::SkipVerification) && held.rotten.remove(&piece) {
                continue;
            }
            let state = &mut self.nodes[node as usize];
            state.swarm.add_piece(state.clock(now), torrent, piece);
            self.had(node, blob, torrent, piece);
        }
    }

    fn move_reader(&mut self, node: u32, blob: usize, torrent: TorrentKey) {
        let state = &mut self.nodes[node as usize];
        let held = &mut state.blobs[blob];
        let Some((reader, at)) = held.reader else { return };
        match held.have.first_missing(at).and_then(|missing| self.blobs[blob].geometry.piece(missing)) {
            Some(missing) if missing.get() != at => {
                state.swarm.move_reader(self.now + state.ahead, torrent, reader, missing);
                held.reader = Some((reader, missing.get()));
            }
            Some(_) => {}
            None => {
                state.swarm.remove_reader(torrent, reader);
                held.reader = None;
            }
        }
    }
}
