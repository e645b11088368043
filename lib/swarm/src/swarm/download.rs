//! What we ask of peers and what we get: allowances, requests, blocks, verification, late and snubbed peers.

use std::time::Duration;

use rand::RngExt as _;
use shoal_meta::{BlockRef, PieceIndex};

use super::Swarm;
use crate::connection::{DEPTH_MIN, EXPIRED_MAX, Interest};
use crate::dense::{ConnIndex, ConnSet};
use crate::picker::{self, View};
use crate::rate::under_way;
use crate::torrent::{Active, Stage};
use crate::wire::{Alias, BlockHeader, LIST_LENGTH_MAX, Message, WireBlock};
use crate::{BlockOutcome, ConnId, DisconnectReason, Event, Time, TorrentKey, Violation};

/// Most pieces asked of one peer at a time; what is in flight in all is bounded by the configuration.
const DEPTH_MAX: u32 = 256;
/// After this many snubs in a row without a block a peer is given up.
const SNUBS_MAX: u32 = 3;
/// After this many pieces granted and refused without a block a peer is given up: who grants soonest and refuses would be
/// asked for the last piece again and again, before those who have it.
const REFUSALS_MAX: u32 = 8;

impl Swarm {
    pub(super) fn unchoked(&mut self, conn: ConnIndex, pieces: u32) -> Result<(), Violation> {
        let Some(state) = self.conns.get_mut(conn) else { return Ok(()) };
        if state.down.interest == Interest::Shown {
            state.down.allowance = state.down.allowance.saturating_add(pieces);
            if state.down.allowance > 0 {
                self.allowed.insert(conn);
                self.dirty.holding.insert(conn);
                self.dirty.interest.insert(conn);
            }
        }
        Ok(())
    }

    pub(super) fn choked(&mut self, conn: ConnIndex) -> Result<(), Violation> {
        self.void_allowance(conn);
        if let Some(state) = self.conns.get_mut(conn) {
            state.down.interest = Interest::None;
            self.dirty.interest.insert(conn);
        }
        Ok(())
    }

    pub(super) fn void_allowance(&mut self, conn: ConnIndex) {
        if let Some(state) = self.conns.get_mut(conn) {
            state.down.allowance = 0;
            self.allowed.remove(conn);
            self.dirty.holding.remove(conn);
        }
    }

    /// Spends allowances while there is room in flight.
    pub(super) fn fill_all(&mut self) {
        let mut holding: Vec<_> = std::mem::take(&mut self.dirty.holding).iter().collect();
        if holding.len() > 1 {
            let from = self.rng.random_range(0..holding.len());
            holding.rotate_left(from);
        }
        for conn in holding {
            while let Some((key, piece)) = self.choose(conn) {
                self.request(conn, key, piece);
            }
        }
        // What could not be spent is tried again when a block comes, or the peer has more to give.
        self.dirty.holding = ConnSet::default();
    }

    /// Refuses what was granted and cannot be used, so that the slots go to others at once; asks again when there is room.
    /// Without it pieces queue at some senders while others are idle: 100 equal nodes end at 1.031 instead of 1.018 of the
    /// optimum.
    pub(super) fn decline_surplus(&mut self) {
        if self.declined.is_empty() && self.allowed.is_empty() {
            return;
        }
        // What is begun may be asked for without room.
        let begun = self.torrents.values().any(|torrent| !torrent.begun.is_empty());
        let room = [false, true].map(|far| begun || self.has_room(far));
        for conn in self.declined.clone().iter().filter(|conn| room[usize::from(self.far.contains(*conn))]) {
            self.declined.remove(conn);
            self.dirty.interest.insert(conn);
        }
        for conn in self.allowed.iter().filter(|conn| !room[usize::from(self.far.contains(*conn))]) {
            self.declined.insert(conn);
            self.dirty.interest.insert(conn);
        }
    }

    /// Tells whether more may be in flight, from near or from far peers: enough to keep the path full, and no more, so that
    /// slots elsewhere are not held by one who cannot use them. Far ones have room of their own: what they grant comes
    /// later, when near ones have taken all the room, and a whole zone waits for it.
    fn has_room(&self, far: bool) -> bool {
        let inflight = self.requested_bytes + self.unverified_bytes;
        let far_bytes = self.far_bytes();
        let here = if far { far_bytes } else { inflight - far_bytes };
        let leeching = self.torrents.values().filter(|torrent| torrent.is_leech());
        let longest = leeching.map(|torrent| u64::from(torrent.geometry.piece_length())).max().unwrap_or(0);
        let rate = self.rate_in.get(self.now);
        let least = u64::from(self.config.inflight_pieces);
        // Whole pieces: a byte more lets in a whole piece, and that is one too many where nothing is under way for long.
        let more = (under_way(rate, self.answer.get()) / longest.max(1)).min(least);
        let few = longest * (least + more);
        let path = under_way(rate, self.quickest.get());
        inflight + longest <= self.config.inflight_bytes_max.max(longest) && here < few.max(path)
    }

    /// Bytes requested of far peers.
    fn far_bytes(&self) -> u64 {
        let requested = self.far.iter().flat_map(|conn| &self.conns[conn].down.inflight);
        requested.map(|(_, block)| u64::from(block.length)).sum()
    }

    /// Chooses what to ask of a peer: a torrent by weight of what it has for us, those with readers before those fetched
    /// ahead of them; then a piece.
    fn choose(&mut self, conn: ConnIndex) -> Option<(TorrentKey, PieceIndex)> {
        let state = self.conns.get(conn)?;
        let wanted = state.shared.iter().map(|key| (*key, self.torrents[key].members[conn].wanted));
        let mut wanted: Vec<_> = wanted.filter(|(_, wanted)| *wanted > 0).collect();
        let total: u32 = wanted.iter().map(|(_, wanted)| wanted).sum();
        if total == 0 || state.down.allowance == 0 || state.down.pieces >= state.down.depth {
            return None;
        }
        let room = self.has_room(self.far.contains(conn));
        let mut at: u32 = if wanted.len() > 1 { self.rng.random_range(0..total) } else { 0 };
        let first = wanted.iter().position(|(_, wanted)| {
            let here = at < *wanted;
            at = at.saturating_sub(*wanted);
            here
        })?;
        wanted.rotate_left(first);
        wanted.sort_by_key(|(key, _)| self.torrents[key].readers.is_empty());
        for (key, _) in wanted {
            let torrent = &self.torrents[&key];
            if !room && torrent.begun.is_empty() {
                continue;
            }
            let member = &torrent.members[conn];
            let holds = |piece: &&PieceIndex| torrent.active.get(piece).is_some_and(|a| a.holders().contains(&conn));
            let asked: Vec<_> = torrent.begun.iter().filter(holds).copied().collect();
            let view = View {
                peer: &member.have,
                open: &torrent.open,
                begun: &torrent.begun,
                asked: &asked,
                availability: &torrent.availability,
                gives: &|piece| member.gives(torrent.across(piece)),
                readers: &torrent.windows(self.now, &self.config),
                first: torrent.have.is_empty(),
                alone: torrent.leechers == 0,
                reader_share: self.config.reader_share,
            };
            // A second source for a late piece takes the room of the first.
            let picked = picker::pick(&view, &mut self.rng).filter(|piece| room || torrent.begun.contains(piece));
            if let Some(piece) = picked {
                return Some((key, piece));
            }
        }
        None
    }

    /// Asks a peer for what is missing of a piece.
    fn request(&mut self, conn: ConnIndex, key: TorrentKey, piece: PieceIndex) {
        let (Some(state), Some(torrent)) = (self.conns.get_mut(conn), self.torrents.get_mut(&key)) else { return };
        let geometry = torrent.geometry;
        let active = torrent.active.entry(piece).or_insert_with(|| Active::new(self.now, geometry.block_count(piece)));
        active.progress_at = self.now;
        let Stage::Fetching { received, holders } = &mut active.stage else { return };
        holders.push(conn);
        let blocks: Vec<_> =
            geometry.blocks(piece).zip(received.iter()).filter(|(_, got)| !**got).map(|(block, _)| block).collect();
        if state.down.inflight.is_empty() {
            state.down.progress_at = self.now;
        }
        for &block in &blocks {
            state.down.inflight.insert((key, block));
            self.requested_bytes += u64::from(block.length);
        }
        state.down.allowance -= 1;
        if state.down.allowance == 0 {
            self.allowed.remove(conn);
        }
        state.down.pieces += 1;
        self.set_open(key, piece, false);
        for blocks in blocks.chunks(LIST_LENGTH_MAX) {
            let blocks = blocks.iter().copied().map(WireBlock::from).collect();
            self.send(conn, Message::Request { alias: key.alias(), blocks });
        }
    }

    /// A block came; its bytes stay with the driver. Tells whether to keep them.
    ///
    /// # Errors
    /// When the peer broke the protocol; `Event::Disconnect` follows and the bytes are to be thrown away.
    pub fn handle_block(&mut self, now: Time, conn: ConnId, header: BlockHeader) -> Result<BlockOutcome, Violation> {
        self.now = now;
        let conn = *self.by_id.get(&conn).ok_or(Violation::UnrequestedBlock)?;
        self.block_came(conn, header).inspect_err(|&violation| self.violate(conn, violation))
    }

    fn block_came(&mut self, conn: ConnIndex, header: BlockHeader) -> Result<BlockOutcome, Violation> {
        let BlockHeader { alias, block } = header;
        let state = self.conns.get_mut(conn).ok_or(Violation::UnrequestedBlock)?;
        let Some(key) = state.attached(alias) else {
            let late = state.down.answers_expired(alias, block);
            return if late { Ok(BlockOutcome::Duplicate) } else { Err(Violation::UnknownAlias) };
        };
        let torrent = self.torrents.get_mut(&key).ok_or(Violation::UnknownAlias)?;
        let (named, block) = (block, block.check(&torrent.geometry).ok_or(Violation::OutOfRange)?);
        state.down.snubs = 0;
        state.down.refusals = 0;
        state.down.progress_at = self.now;
        let length = u64::from(block.length);
        // A block is as good for the request in flight as for one taken back before: the other answer is still to come.
        if state.down.inflight.remove(&(key, block)) {
            self.requested_bytes -= length;
        } else if !state.down.answers_expired(alias, named) {
            return Err(Violation::UnrequestedBlock);
        }
        state.down.rate.add(self.now, length);
        self.rate_in.add(self.now, length);
        let who = state.who;
        let number = torrent.geometry.block_number(block).ok_or(Violation::OutOfRange)? as usize;
        // Late is not too late: a node so slow that every block is late would never get one.
        let taken_up = !torrent.active.contains_key(&block.piece) && torrent.open.contains(block.piece);
        if taken_up {
            let blocks = torrent.geometry.block_count(block.piece);
            torrent.active.insert(block.piece, Active::new(self.now, blocks));
        }
        let Some(active) = torrent.active.get_mut(&block.piece) else { return Ok(BlockOutcome::Duplicate) };
        let Stage::Fetching { received, holders } = &mut active.stage else {
            return Ok(BlockOutcome::Duplicate);
        };
        if std::mem::replace(&mut received[number], true) {
            return Ok(BlockOutcome::Duplicate);
        }
        active.sources.insert(who);
        active.progress_at = self.now;
        let others: Vec<_> = holders.iter().copied().filter(|&holder| holder != conn).collect();
        let whole = received.iter().all(|got| *got);
        for other in others {
            self.cancel(other, key, |wanted| if whole { wanted.piece == block.piece } else { wanted == block });
        }
        self.unverified_bytes += length;
        if whole {
            self.received(key, block.piece);
        } else if taken_up {
            self.set_open(key, block.piece, true);
        }
        self.retry_holding();
        Ok(BlockOutcome::Accepted { torrent: key, block })
    }

    fn received(&mut self, key: TorrentKey, piece: PieceIndex) {
        self.set_open(key, piece, false);
        let Some(torrent) = self.torrents.get_mut(&key) else { return };
        let Some(active) = torrent.active.get_mut(&piece) else { return };
        let Stage::Fetching { holders, .. } = std::mem::replace(&mut active.stage, Stage::Verifying) else { return };
        for holder in holders {
            if let Some(state) = self.conns.get_mut(holder) {
                state.down.pieces -= 1;
                state.down.depth = (state.down.depth + 1).min(DEPTH_MAX);
            }
        }
        self.events.push_back(Event::PieceReceived { torrent: key, piece });
    }

    /// The piece of an `Event::PieceReceived` was verified and written (`true`), or its hash is wrong (`false`): then the
    /// peer it came from is cut off, if it was one; the driver drops the bytes in both cases.
    pub fn handle_verified(&mut self, now: Time, torrent: TorrentKey, piece: PieceIndex, good: bool) {
        self.now = now;
        let Some(active) = self.end_verification(torrent, piece) else { return };
        self.quickest.add(now, now.since(active.begun_at));
        if good {
            if let Some(state) = self.torrents.get_mut(&torrent) {
                state.measure(now.since(active.begun_at).max(Duration::from_micros(1)));
            }
            self.gain(torrent, piece);
        } else {
            self.set_open(torrent, piece, true);
            let mut sources = active.sources.into_iter();
            if let (Some(culprit), None) = (sources.next(), sources.next()) {
                self.ban(culprit, DisconnectReason::BadPiece);
            }
        }
        self.retry_holding();
    }

    /// The piece could not be written (our fault, not the peer's): it will be fetched again.
    pub fn handle_write_failed(&mut self, now: Time, torrent: TorrentKey, piece: PieceIndex) {
        self.now = now;
        if self.end_verification(torrent, piece).is_some() {
            self.set_open(torrent, piece, true);
        }
    }

    fn end_verification(&mut self, key: TorrentKey, piece: PieceIndex) -> Option<Active> {
        let torrent = self.torrents.get_mut(&key)?;
        if torrent.active.get(&piece)?.is_fetching() {
            return None;
        }
        self.unverified_bytes -= u64::from(torrent.geometry.length_of(piece));
        torrent.active.remove(&piece)
    }

    /// Gives up a piece that is active: what was received of it is dropped, what was asked is cancelled.
    pub(super) fn drop_piece(&mut self, key: TorrentKey, piece: PieceIndex) {
        let Some(torrent) = self.torrents.get(&key) else { return };
        let Some(active) = torrent.active.get(&piece) else { return };
        let holders = active.holders().to_vec();
        for conn in holders {
            self.cancel(conn, key, |block| block.piece == piece);
        }
        let Some(torrent) = self.torrents.get_mut(&key) else { return };
        let Some(active) = torrent.active.remove(&piece) else { return };
        let geometry = torrent.geometry;
        torrent.begun.remove(&piece);
        self.unverified_bytes -= match active.stage {
            Stage::Verifying => u64::from(geometry.length_of(piece)),
            Stage::Fetching { received, .. } => {
                let got = geometry.blocks(piece).zip(&received).filter(|(_, got)| **got);
                got.map(|(block, _)| u64::from(block.length)).sum()
            }
        };
        self.events.push_back(Event::PieceDropped { torrent: key, piece });
    }

    pub(super) fn rejected(&mut self, conn: ConnIndex, alias: Alias, blocks: &[WireBlock]) -> Result<(), Violation> {
        let Some(state) = self.conns.get_mut(conn) else { return Ok(()) };
        // What was taken back is rejected first: no more of it comes than that.
        let standing = blocks.iter().filter(|block| !state.down.answers_expired(alias, **block));
        let standing: Vec<WireBlock> = standing.copied().collect();
        let Some(key) = state.attached(alias) else { return Ok(()) };
        let geometry = self.torrents[&key].geometry;
        for block in standing {
            let block = block.check(&geometry).ok_or(Violation::OutOfRange)?;
            let Some(state) = self.conns.get_mut(conn) else { return Ok(()) };
            if state.down.inflight.remove(&(key, block)) {
                state.down.refusals += 1;
                let refusals = state.down.refusals;
                self.requested_bytes -= u64::from(block.length);
                // Some of the piece is refused: take the rest back too, so that it goes to one peer as a whole.
                self.cancel(conn, key, |other| other.piece == block.piece);
                self.lose_holder(conn, key, block.piece);
                if refusals >= REFUSALS_MAX {
                    self.give_up(conn);
                    return Ok(());
                }
            }
        }
        self.retry_holding();
        Ok(())
    }

    /// Takes back what was asked of a peer and tells it so.
    fn cancel(&mut self, conn: ConnIndex, key: TorrentKey, select: impl Fn(BlockRef) -> bool) {
        let Some(member) = self.torrents.get(&key).and_then(|torrent| torrent.members.get(conn)) else { return };
        let blocks = self.take_back(conn, key, member.alias, select);
        for blocks in blocks.chunks(LIST_LENGTH_MAX) {
            let blocks = blocks.iter().copied().map(WireBlock::from).collect();
            self.send(conn, Message::Cancel { alias: key.alias(), blocks });
        }
    }

    /// Takes back what was asked of a peer; pieces that nobody else is asked for are open again.
    pub(super) fn take_back(
        &mut self,
        conn: ConnIndex,
        key: TorrentKey,
        alias: Alias,
        select: impl Fn(BlockRef) -> bool,
    ) -> Vec<BlockRef> {
        let Some(state) = self.conns.get_mut(conn) else { return Vec::new() };
        let blocks = state.down.expire(key, alias, select);
        let mut last = None;
        for block in &blocks {
            self.requested_bytes -= u64::from(block.length);
            if last != Some(block.piece) {
                last = Some(block.piece);
                let still = self.conns[conn].down.inflight.iter().any(|(k, b)| *k == key && b.piece == block.piece);
                if !still {
                    self.lose_holder(conn, key, block.piece);
                }
            }
        }
        blocks
    }

    fn lose_holder(&mut self, conn: ConnIndex, key: TorrentKey, piece: PieceIndex) {
        let Some(torrent) = self.torrents.get_mut(&key) else { return };
        let Some(active) = torrent.active.get_mut(&piece) else { return };
        let Stage::Fetching { received, holders } = &mut active.stage else { return };
        if let Some(at) = holders.iter().position(|holder| *holder == conn) {
            holders.swap_remove(at);
            if let Some(state) = self.conns.get_mut(conn) {
                state.down.pieces -= 1;
            }
        }
        if !holders.is_empty() || received.iter().all(|got| *got) {
            return;
        }
        if !received.iter().any(|got| *got) {
            torrent.active.remove(&piece);
        }
        self.set_open(key, piece, true);
    }

    /// Room was made in flight: allowances held back may be spent.
    fn retry_holding(&mut self) {
        self.dirty.holding.extend(&self.allowed);
    }

    /// Deals with peers that owe us blocks and send none, and with pieces late at their only holder.
    pub(super) fn check_progress(&mut self) {
        let timeout = self.config.snub_timeout;
        let snubbed: Vec<_> = self
            .conns
            .iter()
            .filter(|(_, c)| !c.down.inflight.is_empty() && self.now.since(c.down.progress_at) >= timeout)
            .map(|(conn, _)| conn)
            .collect();
        for conn in snubbed {
            self.snub(conn);
        }
        let silent = self.conns.iter().find(|(_, c)| c.down.expired.len() > EXPIRED_MAX).map(|(conn, _)| conn);
        if let Some(conn) = silent {
            self.violate(conn, Violation::LimitExceeded("requests neither answered nor rejected"));
        }
        for key in self.torrents.keys().copied().collect::<Vec<_>>() {
            for piece in self.torrents[&key].late(self.now) {
                let holder = self.torrents[&key].active[&piece].holders().first().copied();
                if let Some(state) = holder.and_then(|holder| self.conns.get_mut(holder)) {
                    state.down.depth = (state.down.depth / 2).max(DEPTH_MIN);
                }
                self.set_open(key, piece, true);
            }
        }
        self.retry_holding();
    }

    /// Leaves a peer alone that keeps none of what it promises.
    fn give_up(&mut self, conn: ConnIndex) {
        let Some(peer) = self.conns.get(conn).map(|state| state.peer.id) else { return };
        self.disconnect(conn, DisconnectReason::Snubbed);
        self.back_off(peer);
    }

    fn snub(&mut self, conn: ConnIndex) {
        let Some(state) = self.conns.get_mut(conn) else { return };
        state.down.snubs += 1;
        if state.down.snubs >= SNUBS_MAX {
            self.give_up(conn);
            return;
        }
        let keys = state.shared.clone();
        self.void_allowance(conn);
        for key in keys {
            self.cancel(conn, key, |_| true);
        }
    }
}
