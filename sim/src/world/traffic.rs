//! What moves over connections: control messages, and blocks by way of uplinks, links between zones, and downlinks.

use std::time::Duration;

use shoal_meta::BlockRef;
use shoal_swarm::wire::{Alias, BlockHeader, Message};
use shoal_swarm::{BlockOutcome, ConnId, Frame, Time, Transmit};

use smallvec::smallvec;

use super::{Happening, World, message_kind, slot};
use crate::link::{End, control_length};
use crate::scenario::Lie;
use crate::uplink::{Flow, Outgoing};

/// When a block is in that nobody takes.
pub(super) const NEVER: Time = Time::from_nanos(u64::MAX);

impl World<'_> {
    pub(super) fn transmit(&mut self, node: u32, transmit: Transmit) {
        let conn = u32::try_from(transmit.conn.0).unwrap_or(u32::MAX);
        let link = &self.links[conn as usize];
        let end = link.end_of(node);
        if link.ends[end] != End::Open {
            return;
        }
        let clear_at = link.clear_at[end];
        let Some(frame) = self.twist(node, transmit.frame) else { return };
        match frame {
            // Without an allowance of a free rider's nobody can ask it for anything.
            Frame::Control(Message::Unchoke { .. }) if !self.nodes[node as usize].gives => {}
            Frame::Control(message) => {
                if self.check.is_some() {
                    self.check_message(node, conn, end, &message);
                }
                let length = control_length(&message);
                if let Some((_, _, before)) = self.last_message.filter(|last| (last.0, last.1) == (conn, end)) {
                    self.messages[before as usize].push(message);
                    self.nodes[node as usize].up.count_control(length);
                    return;
                }
                let message = slot(self.messages.insert(smallvec![message]));
                self.last_message = Some((conn, end, message));
                if !self.nodes[node as usize].up.control(conn, message, length) {
                    self.send_message(conn, end, message);
                }
            }
            Frame::Block { torrent, block } => {
                if self.check.is_some() {
                    self.check_sent(node, torrent, block.piece);
                }
                let outgoing = Outgoing { conn, torrent, block };
                if self.nodes[node as usize].up.push(self.now, outgoing, clear_at) {
                    self.begun(outgoing, end);
                }
                self.schedule_uplink(node);
            }
        }
    }

    pub(super) fn send_message(&mut self, conn: u32, end: usize, message: u32) {
        let happening = Happening::Message { conn, end: side(1 - end), message };
        self.push_sent(conn, 1 - end, self.now, happening);
    }

    pub(super) fn message(&mut self, conn: u32, end: usize, message: u32) {
        let messages = self.messages.remove(message as usize);
        let from = self.links[conn as usize].nodes[1 - end];
        for (number, message) in messages.into_iter().enumerate() {
            self.message_count += 1;
            let Some(node) = self.open_end(conn, end) else { continue };
            if number > 0 {
                self.trace.record(self.now, from, node, message_kind(&message));
            }
            self.note_arrived(conn, end);
            if self.is_lost(&message) {
                continue;
            }
            if self.check.is_some() {
                self.note_told(conn, end, &message);
            }
            let state = &mut self.nodes[node as usize];
            state.down.control(self.now, control_length(&message));
            state.swarm.handle_message(state.clock(self.now), ConnId(u64::from(conn)), message);
            self.touch(node);
        }
    }

    /// A block is the one its connection sends now: where sockets buffer, that is when it is sent for the swarm.
    fn begun(&mut self, outgoing: Outgoing, end: usize) {
        if self.scenario.sockets_buffer {
            let Outgoing { conn, block, .. } = outgoing;
            self.push_after(Duration::ZERO, Happening::Buffered { conn, end: side(end), block });
        }
    }

    pub(super) fn buffered(&mut self, conn: u32, end: usize, block: BlockRef) {
        if let Some(node) = self.open_end(conn, end) {
            let state = &mut self.nodes[node as usize];
            state.swarm.handle_block_sent(state.clock(self.now), ConnId(u64::from(conn)), block);
            self.touch(node);
        }
    }

    pub(super) fn uplink(&mut self, node: u32) {
        let state = &mut self.nodes[node as usize];
        // One that was brought forward is stale.
        if !state.is_live() || state.up.due.is_none_or(|due| due > self.now) {
            return;
        }
        state.up.due = None;
        while let Some(flow) = self.nodes[node as usize].up.pop_left(self.now) {
            self.left(node, flow);
        }
        self.schedule_uplink(node);
    }

    /// A block has left a node.
    fn left(&mut self, node: u32, flow: Flow) {
        let Outgoing { conn, torrent, block } = flow.outgoing;
        let end = self.links[conn as usize].end_of(node);
        let receiver = self.links[conn as usize].nodes[1 - end];
        let good = self.is_good(node, torrent, block.piece);
        let arrival = Happening::Block { conn, end: side(1 - end), alias: torrent.alias(), block, good };
        let cut = self.is_cut(node, receiver) || self.is_cut(receiver, node);
        let in_at = if cut { NEVER } else { self.carry(node, receiver, flow.began, u64::from(block.length)) };
        if in_at < NEVER {
            self.push_sent(conn, 1 - end, in_at, arrival);
        } else if cut {
            // It waits in the sockets, and what comes behind it too.
            self.push_after(self.latency_of(conn), arrival);
        }
        for message in flow.messages {
            self.send_message(conn, end, message);
        }
        self.links[conn as usize].clear_at[end] = in_at;
        if let Some(next) = self.nodes[node as usize].up.proceed(self.now, conn, in_at) {
            self.begun(next, end);
        }
        if !self.scenario.sockets_buffer {
            let state = &mut self.nodes[node as usize];
            state.swarm.handle_block_sent(state.clock(self.now), ConnId(u64::from(conn)), block);
            self.touch(node);
        }
    }

    /// Takes a block that has left one node to another; gives the time it is in, latency aside.
    fn carry(&mut self, from: u32, to: u32, began: Time, bytes: u64) -> Time {
        if !self.nodes[to as usize].is_live() {
            return NEVER;
        }
        let mut at = self.now;
        let [from, into] = [from, to].map(|node| self.nodes[node as usize].zone as usize);
        if from != into {
            at = self.zones[from].out.take(at, began, bytes);
            at = self.zones[into].into.take(at, began, bytes);
            self.zones[into].bytes += bytes;
        }
        self.nodes[to as usize].down.take(at, began, bytes)
    }

    pub(super) fn schedule_uplink(&mut self, node: u32) {
        let up = &mut self.nodes[node as usize].up;
        if let Some(at) = up.next_due().filter(|at| *at < NEVER && up.due.is_none_or(|due| *at < due)) {
            up.due = Some(at);
            self.queue.push_at(at, Happening::Uplink(node));
        }
    }

    pub(super) fn block(&mut self, conn: u32, end: usize, alias: Alias, block: BlockRef, good: bool) {
        self.blocks += 1;
        let Some(node) = self.open_end(conn, end) else { return };
        if self.nodes[node as usize].lies == Some(Lie::Flood) {
            return;
        }
        if self.check.is_some() {
            self.check_block(conn, end, alias, block);
        }
        let state = &mut self.nodes[node as usize];
        let length = u64::from(block.length);
        state.received_bytes += length;
        let header = BlockHeader { alias, block: block.into() };
        match state.swarm.handle_block(state.clock(self.now), ConnId(u64::from(conn)), header) {
            Ok(BlockOutcome::Accepted { torrent, block }) => {
                if !good {
                    state.wrong.insert((torrent, block.piece));
                }
            }
            Ok(BlockOutcome::Duplicate) | Err(_) => state.duplicate_bytes += length,
        }
        self.touch(node);
    }

    /// Something that is in at a time, latency aside, gets to one end of a connection.
    fn push_sent(&mut self, conn: u32, to: usize, in_at: Time, happening: Happening) {
        let (latency, at) = (self.latency_of(conn), self.late(conn, to, in_at));
        // A receiver that is free has it after a fixed delay, which is cheaper to keep.
        if at == self.now {
            self.push_after(latency, happening);
        } else {
            self.queue.push_at(at + latency, happening);
        }
    }

    /// One way between the ends of a connection.
    pub(super) fn latency_of(&self, conn: u32) -> Duration {
        match self.scenario.zones {
            Some(zones) if self.links[conn as usize].far => zones.latency,
            Some(_) | None => self.scenario.latency,
        }
    }

    /// The node at one end of a connection, if it is live and the connection is open to it.
    pub(super) fn open_end(&self, conn: u32, end: usize) -> Option<u32> {
        let link = &self.links[conn as usize];
        let node = link.nodes[end];
        (link.ends[end] == End::Open && self.nodes[node as usize].is_live()).then_some(node)
    }

    /// A node learns that a connection is gone, or gives it up: what it had to send there is void.
    pub(super) fn close_end(&mut self, conn: u32, end: usize) {
        let link = &mut self.links[conn as usize];
        let node = link.nodes[end];
        if std::mem::replace(&mut link.ends[end], End::Closed) == End::Open && self.nodes[node as usize].is_live() {
            for message in self.nodes[node as usize].up.forget(self.now, conn) {
                self.messages.remove(message as usize);
            }
            self.schedule_uplink(node);
        }
    }
}

/// An end's number as events carry it.
pub(super) fn side(end: usize) -> u8 {
    u8::from(end != 0)
}
