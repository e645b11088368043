//! What we serve: interest, slots, requests of peers, blocks given to the driver.

use std::time::Duration;

use shoal_meta::{BLOCK_LENGTH_MAX, BlockRef};

use super::{SEND_WINDOW_BLOCKS, Swarm};
use crate::choker::{Decision, Peers, View};
use crate::connection::{Connection, Interest};
use crate::dense::ConnIndex;
use crate::rate::under_way;
use crate::wire::{Alias, LIST_LENGTH_MAX, Message, WireBlock};
use crate::{ConnId, Frame, Time, TorrentKey, Violation};

/// A peer of which no block has left for this long, while others wait, is passed by: five times what a block takes when ten peers
/// share 50 Mbit/s. The driver closes the connection when it has taken nothing for far longer.
const STUCK_AFTER: Duration = Duration::from_secs(2);
/// Blocks one peer may have waiting here.
pub(super) const QUEUE_MAX: usize = 8192;
/// The driver has twice what a connection sends in this time. With more, less can still be cancelled; with less, each block
/// of a fast connection costs a round through the driver.
const SEND_TIME: Duration = Duration::from_millis(2);
/// A slot is as much as a connection sends in twice this time, if that is more than the least grant: a peer that gets all of a fast
/// uplink would else ask for a few pieces at a time, and each time costs both ends.
const SLOT_TIME: Duration = Duration::from_micros(500);
/// One block on its way into the socket, and one that follows.
const SEND_WINDOW_BLOCKS_MIN: usize = 2;

impl Swarm {
    pub(super) fn remote_interested(&mut self, conn: ConnIndex, interest: Interest) -> Result<(), Violation> {
        let Some(state) = self.conns.get_mut(conn) else { return Ok(()) };
        state.up.interested = interest == Interest::Shown;
        self.wanting.remove(conn);
        self.full.remove(conn);
        match interest {
            Interest::Shown => {
                self.wanting.insert(conn);
                self.dirty.slots = true;
                return Ok(());
            }
            Interest::NoRoom => self.full.insert(conn),
            Interest::None => {}
        }
        state.up.granted = 0;
        state.up.offered_at = None;
        self.note_serving(conn);
        if interest == Interest::None {
            self.tell_all_news(conn);
        }
        // A refused slot is offered to another at once only while many are free, else when the next block has left: until then
        // most of such offers are refused again, and each costs both ends (docs/adr/0004).
        let most = u64::from(self.config.upload_slots) + self.slots_under_way();
        self.dirty.slots |= self.slots_used * 4 <= most * 3;
        Ok(())
    }

    /// Gives free slots to interested peers, as the policy says.
    pub(super) fn hand_out_slots(&mut self) {
        if self.wanting.is_empty() {
            return;
        }
        let (used, more) = (self.slots_used, self.slots_under_way());
        if !self.choker.has_free(used, more) {
            return;
        }
        let (now, conns) = (self.now, &self.conns);
        let view = |conn| View::of(conn, &conns[conn], now);
        let waiting = self.wanting.without(&self.serving);
        let peers = Peers { waiting, serving: &self.serving, far: &self.far, view: &view };
        for decision in self.choker.decide(now, used, more, peers, &mut self.rng) {
            match decision {
                Decision::Grant(conn, slots) => self.grant(conn, slots),
                Decision::Choke(conn) => self.choke(conn),
            }
        }
    }

    /// Slots whose peers have not had the time to ask: the uplink sends on while a grant and its request are under way. On a
    /// slow link with deep queues that is as much as a slot takes to be sent.
    fn slots_under_way(&self) -> u64 {
        let bytes = under_way(self.rate_out.get(self.now), self.answer.get());
        let most = u64::from(self.config.upload_slots) * if self.slot_bytes < SHORT_SLOT_BYTES { 2 } else { 1 };
        (bytes / self.slot_bytes.max(1)).min(most)
    }

    /// Keeps account of a connection's grants and queue: whether it is being served, and the slots it takes.
    pub(super) fn note_serving(&mut self, conn: ConnIndex) {
        let Some(state) = self.conns.get_mut(conn) else { return };
        let slots = state.up.slots_taken();
        self.slots_used = self.slots_used + slots - std::mem::replace(&mut state.up.slots, slots);
        if state.up.granted > 0 || state.up.queued_bytes > 0 {
            self.serving.insert(conn);
        } else {
            self.serving.remove(conn);
        }
    }

    fn grant(&mut self, conn: ConnIndex, slots: u64) {
        let Some(state) = self.conns.get_mut(conn) else { return };
        let piece_length = state.up.piece_length.max(1);
        let few = u64::from(self.config.grant_bytes_min).div_ceil(piece_length);
        state.up.slot_pieces = few.max(under_way(state.up.rate.get(self.now), Some(SLOT_TIME)) / piece_length);
        let pieces = u32::try_from(slots * state.up.slot_pieces).unwrap_or(u32::MAX).max(1);
        state.up.granted = state.up.granted.saturating_add(pieces);
        state.up.granted_at = Some(self.now);
        state.up.offered_at.get_or_insert(self.now);
        self.slot_bytes = state.up.slot_pieces * state.up.piece_length;
        self.note_serving(conn);
        self.tell_all_news(conn);
        self.send(conn, Message::Unchoke { pieces });
    }

    pub(super) fn choke(&mut self, conn: ConnIndex) {
        let Some(state) = self.conns.get_mut(conn) else { return };
        if state.up.granted > 0 {
            state.up.granted = 0;
            state.up.offered_at = None;
            // Whoever is there and still wants something says so again.
            state.up.interested = false;
            self.wanting.remove(conn);
            self.dirty.slots = true;
            self.note_serving(conn);
            self.send(conn, Message::Choke);
        }
    }

    /// Takes back grants that their peers leave unused, and frees the slots of those who do not take what they asked for.
    pub(super) fn check_grants(&mut self) {
        let stuck = |conn: &ConnIndex| {
            let up = &self.conns[*conn].up;
            up.queued_bytes > 0 && !up.is_stuck && self.now.since(up.moved_at) >= STUCK_AFTER
        };
        for conn in self.serving.iter().filter(stuck).collect::<Vec<_>>() {
            if let Some(state) = self.conns.get_mut(conn) {
                state.up.is_stuck = true;
            }
            self.note_serving(conn);
        }
        let timeout = self.config.grant_timeout;
        let idle = |conn: &ConnIndex| {
            let up = &self.conns[*conn].up;
            let since = up.granted_at.is_some_and(|at| self.now.since(at) >= timeout);
            up.granted > 0 && up.queued_bytes == 0 && since
        };
        let unused: Vec<_> = self.serving.iter().filter(idle).collect();
        for conn in unused {
            self.choke(conn);
        }
    }

    pub(super) fn requested(&mut self, conn: ConnIndex, alias: Alias, blocks: &[WireBlock]) -> Result<(), Violation> {
        let Some(state) = self.conns.get_mut(conn) else { return Ok(()) };
        if !state.remotes.contains_key(&alias) {
            return Err(Violation::UnknownAlias);
        }
        let accepted = match state.attached(alias) {
            Some(key) if state.up.granted > 0 => self.servable(conn, key, blocks)?,
            Some(_) | None => None,
        };
        let Some(state) = self.conns.get_mut(conn) else { return Ok(()) };
        let room = state.up.queue.len() + blocks.len() <= QUEUE_MAX;
        match accepted {
            Some((key, blocks)) if room => {
                state.up.granted -= 1;
                state.up.granted_at = Some(self.now);
                if state.up.queued_bytes == 0 {
                    state.up.moved_at = self.now;
                }
                if let Some(offered_at) = state.up.offered_at.take() {
                    self.answer.add(self.now.since(offered_at));
                }
                for block in blocks {
                    state.up.queued_bytes += u64::from(block.length);
                    state.up.queue.push_back((key, block));
                }
                self.dirty.sending.insert(conn);
                self.note_serving(conn);
            }
            Some(_) | None => {
                let key = self.conns[conn].attached(alias);
                self.reject(conn, key, alias, blocks);
            }
        }
        Ok(())
    }

    /// Checks that the blocks are of one piece that we have and the peer may know of.
    fn servable(
        &self,
        conn: ConnIndex,
        key: TorrentKey,
        blocks: &[WireBlock],
    ) -> Result<Option<(TorrentKey, Vec<BlockRef>)>, Violation> {
        let torrent = &self.torrents[&key];
        let member = &torrent.members[conn];
        let checked: Option<Vec<_>> = blocks.iter().map(|block| block.check(&torrent.geometry)).collect();
        let checked = checked.ok_or(Violation::OutOfRange)?;
        let Some(first) = checked.first() else { return Ok(None) };
        let bytes: u64 = checked.iter().map(|block| u64::from(block.length)).sum();
        if checked.iter().any(|block| block.piece != first.piece)
            || bytes > u64::from(torrent.geometry.length_of(first.piece))
        {
            return Err(Violation::OutOfRange);
        }
        let known = torrent.super_seed.is_none() || member.revealed.contains(first.piece);
        Ok((known && torrent.have.contains(first.piece)).then_some((key, checked)))
    }

    /// Answers a request with a refusal, under our alias where the torrent is open here, else under the peer's own.
    fn reject(&mut self, conn: ConnIndex, key: Option<TorrentKey>, theirs: Alias, blocks: &[WireBlock]) {
        let alias = key.map_or(theirs, TorrentKey::alias);
        for blocks in blocks.chunks(LIST_LENGTH_MAX) {
            self.send(conn, Message::Reject { alias, blocks: blocks.to_vec() });
        }
    }

    pub(super) fn cancelled(&mut self, conn: ConnIndex, alias: Alias, blocks: &[WireBlock]) -> Result<(), Violation> {
        let Some(state) = self.conns.get_mut(conn) else { return Ok(()) };
        let Some(key) = state.attached(alias) else { return Ok(()) };
        let mut dropped = Vec::new();
        let queue = &mut state.up.queue;
        queue.retain(|&(of, block)| {
            let gone = of == key && blocks.contains(&WireBlock::from(block));
            if gone {
                dropped.push(block);
            }
            !gone
        });
        self.dropped(conn, key, &dropped);
        Ok(())
    }

    /// Forgets what a peer asked of a torrent, and says so.
    pub(super) fn drop_uploads(&mut self, conn: ConnIndex, key: TorrentKey) {
        let Some(state) = self.conns.get_mut(conn) else { return };
        let dropped: Vec<_> = state.up.queue.iter().filter(|(of, _)| *of == key).map(|(_, block)| *block).collect();
        state.up.queue.retain(|(of, _)| *of != key);
        self.dropped(conn, key, &dropped);
    }

    fn dropped(&mut self, conn: ConnIndex, key: TorrentKey, blocks: &[BlockRef]) {
        let Some(state) = self.conns.get_mut(conn) else { return };
        state.up.queued_bytes -= blocks.iter().map(|block| u64::from(block.length)).sum::<u64>();
        state.up.is_stuck &= state.up.queued_bytes > 0;
        self.note_serving(conn);
        self.dirty.slots = true;
        for blocks in blocks.chunks(LIST_LENGTH_MAX) {
            let blocks = blocks.iter().copied().map(WireBlock::from).collect();
            self.send(conn, Message::Reject { alias: key.alias(), blocks });
        }
    }

    /// Hands the driver blocks of a connection, as many as it may have.
    pub(super) fn release_blocks(&mut self, conn: ConnIndex) {
        let Some(state) = self.conns.get_mut(conn) else { return };
        let window = send_window(state.up.rate.get(self.now));
        while state.up.sending < window
            && let Some((torrent, block)) = state.up.queue.pop_front()
        {
            state.up.sending += 1;
            self.transmits.push_back((conn, Frame::Block { torrent, block }));
        }
    }

    /// A block given by `poll_transmit` is written to the socket (or could not be read: it counts as sent all the same).
    pub fn handle_block_sent(&mut self, now: Time, conn: ConnId, block: BlockRef) {
        self.now = now;
        self.moved_at = now;
        let Some(&conn) = self.by_id.get(&conn) else { return };
        let Some(state) = self.conns.get_mut(conn) else { return };
        state.up.sending = state.up.sending.saturating_sub(1);
        state.up.queued_bytes = state.up.queued_bytes.saturating_sub(u64::from(block.length));
        state.up.rate.add(now, u64::from(block.length));
        (state.up.moved_at, state.up.is_stuck) = (now, false);
        self.rate_out.add(now, u64::from(block.length));
        self.dirty.sending.insert(conn);
        self.dirty.slots = true;
        self.note_serving(conn);
    }
}

impl View {
    /// How a peer that wants something, or is being served, looks to the choker.
    fn of(conn: ConnIndex, state: &Connection, now: Time) -> Self {
        Self {
            conn,
            interested: state.up.interested && !state.up.is_stuck,
            slots: state.up.slots,
            rate_in: state.down.rate.get(now),
            rate_out: state.up.rate.get(now),
        }
    }
}

/// Of slots of fewer bytes twice as many may be granted ahead where grants take long to be answered: with one short piece for each,
/// an origin whose downlink is full has nothing to send at times (docs/adr/0004).
const SHORT_SLOT_BYTES: u64 = 256 * 1024;

/// The blocks that the driver may have of a connection that sends at a rate in bytes per second.
fn send_window(rate: f64) -> usize {
    let blocks = under_way(rate, Some(SEND_TIME)) / u64::from(BLOCK_LENGTH_MAX);
    usize::try_from(blocks).unwrap_or(SEND_WINDOW_BLOCKS).clamp(SEND_WINDOW_BLOCKS_MIN, SEND_WINDOW_BLOCKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_fast_connection_hands_out_more_than_two_blocks() {
        for (megabytes_per_second, blocks) in [(0, 2), (125, 2), (400, 6), (1250, 19), (5000, SEND_WINDOW_BLOCKS)] {
            assert_eq!(send_window(f64::from(megabytes_per_second) * 1e6), blocks, "{megabytes_per_second} MB/s");
        }
    }
}
