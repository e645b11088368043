//! Connections between nodes: made by dials, broken by swarms, crashes and cuts.

use std::time::Duration;

use shoal_meta::PeerInfo;
use shoal_swarm::{ConnId, DisconnectReason};

use super::traffic::side;
use super::{Happening, ORIGIN, World};
use crate::link::{End, Link};
use crate::node::{State, node_of};

/// How long until the peers of a machine that is gone notice.
pub(super) const CONNECTION_TIMEOUT: Duration = Duration::from_secs(15);

impl World<'_> {
    /// Sets out: SYN, SYN-ACK and Hello take three ways to the node dialled.
    pub(super) fn dial(&mut self, node: u32, peer: &PeerInfo) {
        let conn = u32::try_from(self.links.len()).expect("fewer than 2^32 dials in a run");
        let to = node_of(&peer.id);
        let far = self.nodes[node as usize].zone != self.nodes[to as usize].zone;
        self.links.push(Link::dial(node, to, far));
        self.push_after(self.latency_of(conn) * 3, Happening::Dial { conn });
    }

    /// Arrives: the node dialled is connected, and its Hello takes one more way back.
    pub(super) fn dialled(&mut self, conn: u32) {
        let link = &mut self.links[conn as usize];
        let [from, to] = link.nodes;
        if link.ends[1] == End::Closed || !self.nodes[to as usize].is_live() {
            self.push_after(self.latency_of(conn), Happening::DialFailed { conn });
            return;
        }
        if !self.nodes[from as usize].is_live() {
            link.ends = [End::Closed; 2];
            return;
        }
        self.connections += 1;
        link.ends[1] = End::Open;
        self.push_after(self.latency_of(conn), Happening::Connected { conn });
        let peer = self.nodes[from as usize].swarm.me().clone();
        self.nodes[to as usize].swarm.handle_connected(self.now, ConnId(u64::from(conn)), peer, false);
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
        link.ends[0] = End::Open;
        let peer = self.nodes[to as usize].swarm.me().clone();
        self.nodes[from as usize].swarm.handle_connected(self.now, ConnId(u64::from(conn)), peer, true);
        self.touch(from);
    }

    pub(super) fn dial_failed(&mut self, conn: u32) {
        let link = &mut self.links[conn as usize];
        link.ends = [End::Closed; 2];
        let [from, to] = link.nodes;
        let peer = self.nodes[to as usize].swarm.me().id;
        if self.nodes[from as usize].is_live() {
            self.nodes[from as usize].swarm.handle_dial_failed(self.now, peer);
            self.touch(from);
        }
    }

    /// A swarm closes a connection: it forgets it at once, the other end learns of it later.
    pub(super) fn disconnect(&mut self, node: u32, conn: ConnId, reason: DisconnectReason) {
        if self.check.is_some() {
            self.check_disconnect(node, reason);
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
            self.nodes[node as usize].swarm.handle_disconnected(self.now, ConnId(u64::from(conn)));
            self.touch(node);
        }
    }

    /// A node is gone for good; its peers notice after a while.
    pub(super) fn die(&mut self, node: u32, notice: Duration) {
        let state = &mut self.nodes[node as usize];
        if state.state == State::Dead {
            return;
        }
        let lacks = state.completed_at.is_none();
        state.state = State::Dead;
        if node != ORIGIN {
            self.crashed += u32::from(lacks);
            self.waiting -= u32::from(lacks);
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
    fn ends_at(&self, node: u32) -> Vec<(u32, usize)> {
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
