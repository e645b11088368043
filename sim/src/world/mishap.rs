//! What goes wrong: nodes that go and come back, clocks that jump, parts of the network that do not reach each other.
//!
//! A process that stands still gets what was sent to it when it goes on. What a part holds up comes when it heals, in order,
//! unless the connection has timed out before. Tracker and metainfo are reached by other roads, which do not part.

use std::time::Duration;

use rand::RngExt as _;
use shoal_meta::{Bitfield, Geometry};
use shoal_swarm::Time;

use super::connect::CONNECTION_TIMEOUT;
use super::traffic::NEVER;
use super::{Happening, ORIGIN, World, slot};
use crate::link::End;
use crate::node::State;
use crate::scenario::{Bug, Fault, FaultKind, Part};
use crate::tracker::Tracker;

/// The share of those that come back with their disk of which a piece was torn by the crash.
const TORN_SHARE: f64 = 0.3;

impl World<'_> {
    pub(super) fn go_wrong(&mut self, index: u32) {
        let Fault { node, kind, .. } = self.scenario.faults[index as usize];
        self.nodes[node as usize].rough_at = self.now;
        match kind {
            FaultKind::Crash => self.die(node, Duration::ZERO),
            FaultKind::Vanish => self.die(node, CONNECTION_TIMEOUT),
            FaultKind::CutConnections => self.cut_connections(node),
            FaultKind::Return { disk } => self.come_back(node, disk),
            FaultKind::Pause(lasts) => {
                let until = self.now + lasts;
                let state = &mut self.nodes[node as usize];
                state.paused_until = state.paused_until.max(until);
                state.rough_at = until;
                self.queue.push_at(until, Happening::Resume(node));
            }
            FaultKind::Jump(by) => {
                self.nodes[node as usize].ahead += by;
                self.touch(node);
            }
            FaultKind::Lag { by, lasts } => {
                let until = self.now + lasts;
                let state = &mut self.nodes[node as usize];
                (state.lag, state.rough_at) = ((by, until), until + by);
            }
            FaultKind::Part(part) => self.part(index, part),
            FaultKind::Amnesia => self.forget_everyone(),
        }
    }

    /// Whether the run is not over: someone lacks something, or a fault that it waits for.
    pub(super) fn goes_on(&self) -> bool {
        (self.waiting > 0 && !self.hopeless) || self.now < self.faults_until
    }

    /// A node that was gone starts anew.
    fn come_back(&mut self, node: u32, disk: bool) {
        let state = &self.nodes[node as usize];
        if state.state != State::Dead {
            return;
        }
        let (counts, lacked) = (node != ORIGIN && state.is_honest(), state.completed_at.is_none());
        let geometries: Vec<Geometry> = self.blobs.iter().map(|blob| blob.geometry).collect();
        let state = &mut self.nodes[node as usize];
        state.come_back(self.scenario, &geometries, disk);
        for held in state.blobs.iter_mut().filter(|held| !held.left.is_empty()) {
            let torn = self.rng.random_bool(TORN_SHARE).then(|| self.rng.random_range(0..held.left.count()));
            let torn = torn.and_then(|torn| held.left.iter().nth(torn as usize));
            held.rotten.extend(torn);
        }
        if counts {
            self.crashed -= u32::from(lacked);
            self.waiting += u32::from(state.completed_at.is_none());
        }
        self.forget_node(node);
        self.release();
        if node == ORIGIN {
            self.origin_is_back();
        } else {
            self.ask_for_more(node);
        }
        self.touch(node);
        if self.nodes[node as usize].lies.is_some() {
            self.push_after(self.scenario.latency, Happening::Lie(node));
        }
        for blob in 0..self.blobs.len() {
            if self.scenario.bug == Some(Bug::CommitTwice) && self.nodes[node as usize].blobs[blob].committed {
                self.commit(node, blob);
            }
        }
    }

    /// It opens what it had, and fetches on what it was asked for.
    fn origin_is_back(&mut self) {
        for blob in 0..self.blobs.len() {
            let (state, held) = (&self.blobs[blob], &mut self.nodes[ORIGIN as usize].blobs[blob]);
            if self.scenario.upstream_rate.is_none() {
                (held.have, held.committed) = (Bitfield::full(&state.geometry), true);
            }
            self.open(ORIGIN, blob, self.blobs[blob].known);
            if self.blobs[blob].begun {
                self.fetch_next(slot(blob));
            }
        }
    }

    /// The tracker starts anew. Who lives tells it again at the next announce, also of what it has whole.
    fn forget_everyone(&mut self) {
        for blob in &mut self.blobs {
            blob.tracker = Tracker::new(ORIGIN, self.scenario.zone_count());
        }
        for node in 1..=self.scenario.nodes() {
            let (life, begun) = (self.nodes[node as usize].life, self.nodes[node as usize].begun);
            for blob in 0..begun {
                let after = self.scenario.announce_interval.mul_f64(self.rng.random_range(0.0..1.0));
                self.queue.push_at(self.now + after, Happening::Announce { node, blob: slot(blob), life });
            }
        }
    }

    // Parts of the network.

    /// Tells whether something sent from one node to another does not get there now.
    pub(super) fn is_cut(&self, from: u32, to: u32) -> bool {
        self.parts.iter().any(|(_, part)| part.cuts(from, to))
    }

    fn part(&mut self, index: u32, part: Part) {
        self.parts.push((index, part));
        self.queue.push_at(self.now + part.lasts, Happening::Heal(index));
        for conn in 0..slot(self.links.len()) {
            let link = &self.links[conn as usize];
            let [a, b] = link.nodes;
            if link.ends != [End::Closed; 2] && (part.cuts(a, b) || part.cuts(b, a)) {
                self.rough(conn, self.now + part.lasts);
                self.push_after(CONNECTION_TIMEOUT, Happening::TimedOut { conn });
            }
        }
    }

    /// No fault is held against what these two say to each other before this time.
    fn rough(&mut self, conn: u32, until: Time) {
        for node in self.links[conn as usize].nodes {
            let state = &mut self.nodes[node as usize];
            state.rough_at = state.rough_at.max(until);
        }
    }

    /// A part of the network is whole again: what waited gets there, and what waited behind it leaves.
    pub(super) fn heal(&mut self, index: u32) {
        self.parts.retain(|(part, _)| *part != index);
        for conn in 0..slot(self.links.len()) {
            for end in 0..2 {
                let link = &mut self.links[conn as usize];
                let [from, to] = [link.nodes[end], link.nodes[1 - end]];
                if link.ends[end] == End::Open
                    && link.clear_at[end] == NEVER
                    && !self.is_cut(from, to)
                    && !self.is_cut(to, from)
                {
                    self.links[conn as usize].clear_at[end] = self.now;
                    self.nodes[from as usize].up.resume(self.now, conn);
                    self.schedule_uplink(from);
                }
            }
        }
        self.release();
    }

    /// A process that stood still goes on.
    pub(super) fn resume(&mut self, node: u32) {
        self.touch(node);
        self.release();
    }

    /// What was held up and need not wait any more gets there, in the order in which it was sent.
    fn release(&mut self) {
        for (conn, end) in self.held.keys().copied().collect::<Vec<_>>() {
            if !self.waits(conn, end) {
                let held = self.held.remove(&(conn, end)).unwrap_or_default();
                held.into_iter().for_each(|happening| self.deliver(happening));
            }
        }
    }

    /// Tells whether what is sent to one end of a connection does not get there now.
    fn waits(&self, conn: u32, end: u8) -> bool {
        let link = &self.links[conn as usize];
        let [to, from] = [link.nodes[usize::from(end)], link.nodes[1 - usize::from(end)]];
        let held_up = self.is_cut(from, to) || self.nodes[to as usize].paused_until > self.now;
        held_up && link.ends[usize::from(end)] != End::Closed
    }

    /// A connection has heard nothing for too long: both ends give it up, if it is still cut.
    pub(super) fn time_out(&mut self, conn: u32) {
        let [a, b] = self.links[conn as usize].nodes;
        if self.is_cut(a, b) || self.is_cut(b, a) {
            for end in [0, 1] {
                self.closed(conn, end);
            }
            for end in [0, 1] {
                let held = self.held.remove(&(conn, end)).unwrap_or_default();
                held.into_iter().for_each(|happening| self.deliver(happening));
            }
        }
    }

    /// What is to happen now, unless it has to wait: its node stands still, or the way to it is cut.
    pub(super) fn put_off(&mut self, happening: Happening) -> Option<Happening> {
        // Without faults nothing waits, and the look at its node, cold in the cache, is a fifth of all work with very many.
        if self.scenario.faults.is_empty() {
            return Some(happening);
        }
        if let Some((conn, end)) = sent_to(happening) {
            let behind = !self.held.is_empty() && self.held.contains_key(&(conn, end));
            if behind || self.waits(conn, end) {
                self.held.entry((conn, end)).or_default().push_back(happening);
                return None;
            }
        }
        let until = self.target(happening).map(|node| self.nodes[node as usize].paused_until);
        // It is the first of what comes over its connection.
        if let Happening::Connected { conn } = happening
            && until.is_some_and(|until| until > self.now)
        {
            self.held.entry((conn, 0)).or_default().push_back(happening);
            return None;
        }
        match until.filter(|until| *until > self.now) {
            Some(until) => {
                self.queue.push_at(until, happening);
                None
            }
            None => Some(happening),
        }
    }

    /// The node whose process something happens to.
    fn target(&self, happening: Happening) -> Option<u32> {
        let at = |conn: u32, end: u8| Some(self.links[conn as usize].nodes[usize::from(end)]);
        match happening {
            Happening::Arrive(node)
            | Happening::Answer { node, .. }
            | Happening::Verified { node, .. }
            | Happening::Rechecked { node, .. }
            | Happening::Uplink(node)
            | Happening::Wake(node)
            | Happening::Lie(node) => Some(node),
            Happening::Dial { conn } => at(conn, 1),
            Happening::DialFailed { conn } | Happening::Connected { conn } => at(conn, 0),
            Happening::Closed { conn, end }
            | Happening::Message { conn, end, .. }
            | Happening::Buffered { conn, end, .. }
            | Happening::Block { conn, end, .. } => at(conn, end),
            Happening::Upstream { .. } => Some(ORIGIN),
            Happening::Announce { .. }
            | Happening::LeaseEnd(_)
            | Happening::Fault(_)
            | Happening::Known { .. }
            | Happening::Heal(_)
            | Happening::Resume(_)
            | Happening::TimedOut { .. }
            | Happening::Look => None,
        }
    }

    /// When something that leaves now at one end of a connection, or is in at a time, gets to the other.
    pub(super) fn late(&mut self, conn: u32, to: usize, at: Time) -> Time {
        // As in `put_off`.
        if self.scenario.faults.is_empty() {
            return at;
        }
        let link = &self.links[conn as usize];
        let lag = |node: u32| match self.nodes[node as usize].lag {
            (by, until) if until > self.now => by,
            _ => Duration::ZERO,
        };
        let [a, b] = link.nodes.map(lag);
        let most = a + b;
        let by = if most.is_zero() { most } else { most.mul_f64(self.rng.random_range(0.0..1.0)) };
        let at = (at + by).max(link.late_at[to]);
        if !by.is_zero() {
            self.links[conn as usize].late_at[to] = at;
        }
        at
    }
}

/// The end of a connection that something was sent to by the other.
fn sent_to(happening: Happening) -> Option<(u32, u8)> {
    match happening {
        Happening::Message { conn, end, .. } | Happening::Block { conn, end, .. } | Happening::Closed { conn, end } => {
            Some((conn, end))
        }
        Happening::Arrive(_)
        | Happening::Announce { .. }
        | Happening::Answer { .. }
        | Happening::LeaseEnd(_)
        | Happening::Fault(_)
        | Happening::Dial { .. }
        | Happening::DialFailed { .. }
        | Happening::Connected { .. }
        | Happening::Uplink(_)
        | Happening::Buffered { .. }
        | Happening::Verified { .. }
        | Happening::Rechecked { .. }
        | Happening::Wake(_)
        | Happening::Upstream { .. }
        | Happening::Known { .. }
        | Happening::Heal(_)
        | Happening::Resume(_)
        | Happening::TimedOut { .. }
        | Happening::Lie(_)
        | Happening::Look => None,
    }
}
