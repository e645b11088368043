//! Connections between nodes: made by dials, broken by swarms, crashes and cuts.

use std::time::Duration;

use shoal_meta::PeerInfo;
use shoal_swarm::{ConnId, DisconnectReason};

use super::traffic::side;
use super::{Happening, ORIGIN, World};
use crate::link::{End, Link};
use crate::node::{State, node_at, node_of};

/// How long until the peers of a machine that is gone notice.
pub(super) const CONNECTION_TIMEOUT: Duration = Duration::from_secs(15);
/// How long until one who dials gives up, where nobody answers at all.
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);

impl World<'_> {
    /// Sets out: SYN, SYN-ACK and Hello take three ways to the node dialled.
    pub(super) fn dial(&mut self, node: u32, peer: &PeerInfo) {
        let conn = u32::try_from(self.links.len()).expect("fewer than 2^32 dials in a run");
        // Where nobody is, or another than the one meant: its Hello says so, and that takes no longer.
        let there = node_at(&peer.address).filter(|&at| at != node && (at as usize) < self.nodes.len());
        let to = there.unwrap_or(node);
        let from = &self.nodes[node as usize];
        self.links.push(Link::dial(node, to, from.zone != self.nodes[to as usize].zone, from.life));
        if there.is_none() || node_of(&peer.id) != to || peer.id != self.nodes[to as usize].swarm.me().id {
            self.dials.insert(conn, peer.id);
            self.push_after(DIAL_TIMEOUT, Happening::DialFailed { conn });
        } else {
            self.push_after(self.latency_of(conn) * 3, Happening::Dial { conn });
        }
    }

    /// Arrives: the node dialled is connected, and its Hello takes one more way back.
    pub(super) fn dialled(&mut self, conn: u32) {
        let [from, to] = self.links[conn as usize].nodes;
        if self.is_cut(from, to) {
            self.push_after(DIAL_TIMEOUT, Happening::DialFailed { conn });
            return;
        }
        let link = &mut self.links[conn as usize];
        if link.ends[1] == End::Closed || !self.nodes[to as usize].is_live() {
            self.push_after(self.latency_of(conn), Happening::DialFailed { conn });
            return;
        }
        if !self.nodes[from as usize].is_live() || self.nodes[from as usize].life != link.life {
            link.ends = [End::Closed; 2];
            return;
        }
        self.connections += 1;
        link.ends[1] = End::Open;
        self.push_after(self.latency_of(conn), Happening::Connected { conn });
        let peer = self.nodes[from as usize].swarm.me().clone();
        let state = &mut self.nodes[to as usize];
        let (now, at) = (state.clock(self.now), peer.address.ip());
        state.swarm.handle_connected(now, ConnId(u64::from(conn)), at, peer, false);
        self.touch(to);
    }

    pub(super) fn connected(&mut self, conn: u32) {
        let link = &mut self.links[conn as usize];
        let [from, to] = link.nodes;
        if !self.nodes[from as usize].is_live() {
            link.ends[0] = End::Closed;
            self.push_closed(conn, 1, self.latency_of(conn));
            return;
        }
        if link.ends[0] == End::Closed {
            self.dial_failed(conn);
            return;
        }
        if self.is_cut(to, from) {
            self.push_after(DIAL_TIMEOUT, Happening::DialFailed { conn });
            self.push_closed(conn, 1, CONNECTION_TIMEOUT);
            return;
        }
        self.links[conn as usize].ends[0] = End::Open;
        let peer = self.nodes[to as usize].swarm.me().clone();
        let state = &mut self.nodes[from as usize];
        let (now, at) = (state.clock(self.now), peer.address.ip());
        state.swarm.handle_connected(now, ConnId(u64::from(conn)), at, peer, true);
        self.touch(from);
    }

    pub(super) fn dial_failed(&mut self, conn: u32) {
        let link = &mut self.links[conn as usize];
        // One that answered and was not heard learns of it by itself.
        link.ends = link.ends.map(|end| if end == End::Open { end } else { End::Closed });
        let ([from, to], life) = (link.nodes, link.life);
        let peer = self.dials.remove(&conn).unwrap_or(self.nodes[to as usize].swarm.me().id);
        let state = &mut self.nodes[from as usize];
        if state.is_live() && state.life == life {
            state.swarm.handle_dial_failed(state.clock(self.now), peer);
            self.touch(from);
        }
    }

    /// A swarm closes a connection: it forgets it at once, the other end learns of it later.
    pub(super) fn disconnect(&mut self, node: u32, conn: ConnId, reason: DisconnectReason) {
        if self.check.is_some() {
            self.check_disconnect(node, conn, reason);
        }
        *self.disconnects.entry(format!("{reason:?}")).or_default() += 1;
        let conn = u32::try_from(conn.0).unwrap_or(u32::MAX);
        let end = self.links[conn as usize].end_of(node);
        self.close_end(conn, end);
        self.push_closed(conn, 1 - end, self.latency_of(conn));
    }

    /// One end learns that the connection is gone.
    pub(super) fn closed(&mut self, conn: u32, end: usize) {
        let node = self.open_end(conn, end);
        self.close_end(conn, end);
        if let Some(node) = node {
            let state = &mut self.nodes[node as usize];
            state.swarm.handle_disconnected(state.clock(self.now), ConnId(u64::from(conn)));
            self.touch(node);
        }
    }

    /// A node is gone; its peers notice after a while.
    pub(super) fn die(&mut self, node: u32, notice: Duration) {
        let state = &mut self.nodes[node as usize];
        if state.state == State::Dead {
            return;
        }
        let lacks = state.completed_at.is_none();
        state.state = State::Dead;
        if node != ORIGIN {
            let counts = u32::from(lacks && state.is_honest());
            self.crashed += counts;
            self.waiting -= counts;
            self.push_after(self.scenario.lease, Happening::LeaseEnd(node));
        }
        for (conn, end) in self.ends_at(node) {
            self.links[conn as usize].ends[end] = End::Closed;
            if self.links[conn as usize].ends[1 - end] != End::Closed {
                self.push_closed(conn, 1 - end, notice.max(self.latency_of(conn)));
            }
        }
    }

    /// All of a node's connections break, at both ends.
    pub(super) fn cut_connections(&mut self, node: u32) {
        for (conn, end) in self.ends_at(node) {
            self.closed(conn, end);
            self.closed(conn, 1 - end);
        }
    }

    /// The connections a node has or is making, and which end it is at.
    pub(super) fn ends_at(&self, node: u32) -> Vec<(u32, usize)> {
        let at_node = (0u32..).zip(&self.links).filter(|(_, link)| link.nodes.contains(&node));
        at_node
            .map(|(conn, link)| (conn, link.end_of(node)))
            .filter(|&(conn, end)| self.links[conn as usize].ends[end] != End::Closed)
            .collect()
    }

    fn push_closed(&mut self, conn: u32, end: usize, delay: Duration) {
        self.push_after(delay, Happening::Closed { conn, end: side(end) });
    }
}
