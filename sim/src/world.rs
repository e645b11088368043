//! The simulated world: delivers what happens, one event at a time, and drains the swarms it touched.
//!
//! This file holds the state, the loop and what nodes do; `connect` makes and breaks connections, `check` holds the
//! invariants of checked mode.

mod check;
mod connect;

use std::collections::BTreeMap;
use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64;
use shoal_meta::{BlockRef, Digest, Geometry, PieceIndex};
use shoal_swarm::wire::{Alias, BlockHeader, Message};
use shoal_swarm::{BlockOutcome, ConnId, Event, Frame, OpenTorrent, Time, TorrentKey, Transmit};
use slab::Slab;

use crate::link::{End, Link, Outgoing, control_length, transfer_time};
use crate::node::{Node, State};
use crate::queue::Queue;
use crate::report::Report;
use crate::scenario::{Arrivals, FaultKind, Scenario, ScenarioError};
use crate::trace::Trace;
use crate::tracker::Tracker;
use check::Check;

/// The origin's node number.
const ORIGIN: u32 = 0;
/// Rounds of events at one instant before the run counts as caught in a loop.
const ROUNDS_MAX: u32 = 100_000;

/// Plays a scenario to its end.
///
/// # Errors
/// When the scenario makes no sense.
///
/// # Panics
/// In checked mode, when an invariant is broken or an agent that could complete does not; the text names the seed.
pub fn run(scenario: &Scenario) -> Result<Report, ScenarioError> {
    scenario.check()?;
    let mut world = World::new(scenario, scenario.geometry()?);
    world.begin();
    world.play();
    Ok(world.report())
}

/// What happens at a point in time. Kept small: bigger things wait in slabs.
#[derive(Clone, Copy, Debug)]
enum Happening {
    /// An agent wants the blob.
    Arrive(u32),
    /// An agent's announce reaches the tracker, and its question for metainfo the origin.
    Announce(u32),
    /// The answers to an announce reach the agent.
    Answer { node: u32, answer: u32 },
    /// A crashed agent's lease at the tracker is over.
    LeaseEnd(u32),
    /// A fault of the scenario, by its place in the list.
    Fault(u32),
    /// A dial reaches the node dialled.
    Dial { conn: u32 },
    /// A dial failed, and the dialler learns it.
    DialFailed { conn: u32 },
    /// A dial succeeded, and the dialler learns it.
    Connected { conn: u32 },
    /// One end of a connection learns that it is gone.
    Closed { conn: u32, end: u8 },
    /// A control message reaches one end of a connection.
    Message { conn: u32, end: u8, message: u32 },
    /// An uplink has served a block.
    UplinkFree(u32),
    /// A block reaches one end of a connection.
    Block { conn: u32, end: u8, alias: Alias, block: BlockRef },
    /// A piece is verified and on disk.
    Verified { node: u32, torrent: TorrentKey, piece: PieceIndex },
    /// A node's time-out.
    Wake(u32),
    /// A piece reaches the origin from upstream.
    Upstream(PieceIndex),
    /// The hashes of this many pieces reach the agents.
    Known(u32),
}

struct World<'a> {
    scenario: &'a Scenario,
    geometry: Geometry,
    digest: Digest,
    now: Time,
    queue: Queue<Happening>,
    messages: Slab<Message>,
    answers: Slab<Answer>,
    nodes: Vec<Node>,
    links: Vec<Link>,
    tracker: Tracker,
    rng: Pcg64,
    trace: Trace,
    check: Option<Check>,
    /// Nodes with inputs since their outputs were drained, in order.
    touched: Vec<u32>,
    /// Pieces whose hash the origin has published.
    known: u32,
    upstream_begun: bool,
    /// Agents that have neither completed nor crashed.
    waiting: u32,
    crashed: u32,
    blocks: u64,
    message_count: u64,
    connections: u64,
    disconnects: BTreeMap<String, u64>,
}

/// What tracker and origin say to an agent that announces.
struct Answer {
    peers: Vec<u32>,
    known: u32,
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario, geometry: Geometry) -> Self {
        Self {
            scenario,
            geometry,
            digest: Digest::sha256_of(&scenario.seed.to_be_bytes()),
            now: Time::ZERO,
            queue: Queue::new(),
            messages: Slab::new(),
            answers: Slab::new(),
            nodes: (0..=scenario.nodes).map(|node| Node::new(scenario, &geometry, node)).collect(),
            links: Vec::new(),
            tracker: Tracker::default(),
            rng: Pcg64::seed_from_u64(scenario.seed),
            trace: Trace::new(),
            check: scenario.check_invariants.then(Check::default),
            touched: Vec::new(),
            known: 0,
            upstream_begun: false,
            waiting: scenario.nodes,
            crashed: 0,
            blocks: 0,
            message_count: 0,
            connections: 0,
            disconnects: BTreeMap::new(),
        }
    }

    fn begin(&mut self) {
        if self.scenario.upstream_rate.is_none() {
            self.known = self.geometry.piece_count();
            self.nodes[ORIGIN as usize].have = shoal_meta::Bitfield::full(&self.geometry);
        }
        self.nodes[ORIGIN as usize].state = State::Live;
        self.tracker.add_origin(ORIGIN);
        self.open(ORIGIN, self.known);
        self.touch(ORIGIN);
        for node in 1..=self.scenario.nodes {
            let at = match self.scenario.arrivals {
                Arrivals::Together => Duration::ZERO,
                Arrivals::Spread(within) => within.mul_f64(self.rng.random_range(0.0..1.0)),
            };
            self.queue.push_at(Time::ZERO + at, Happening::Arrive(node));
        }
        for (index, fault) in (0u32..).zip(&self.scenario.faults) {
            self.queue.push_at(Time::ZERO + fault.at, Happening::Fault(index));
        }
    }

    fn play(&mut self) {
        let spread = match self.scenario.arrivals {
            Arrivals::Together => Duration::ZERO,
            Arrivals::Spread(within) => within,
        };
        let ample = Duration::from_secs(300) + Duration::from_secs_f64(self.scenario.optimum_seconds() * 20.0);
        let limit = Time::ZERO + self.scenario.time_limit.unwrap_or(ample + spread);
        let mut rounds = 0;
        self.drain_touched();
        while let Some(at) = self.queue.next_due().filter(|at| *at <= limit && self.waiting > 0) {
            rounds = if at == self.now { rounds + 1 } else { 0 };
            assert!(rounds < ROUNDS_MAX, "time stands still at {at:?}, seed {}", self.scenario.seed);
            assert!(at >= self.now, "time goes back from {:?} to {at:?}", self.now);
            self.now = at;
            while let Some(happening) = self.queue.pop_at(at) {
                self.deliver(happening);
            }
            self.drain_touched();
        }
        if self.check.is_some() {
            self.check_end();
        }
    }

    fn deliver(&mut self, happening: Happening) {
        let (from, to, kind) = self.describe(happening);
        self.trace.record(self.now, from, to, kind);
        match happening {
            Happening::Arrive(node) => self.arrive(node),
            Happening::Announce(node) => self.announced(node),
            Happening::Answer { node, answer } => self.answered(node, answer),
            Happening::LeaseEnd(node) => self.tracker.expire(node),
            Happening::Fault(index) => {
                let fault = self.scenario.faults[index as usize];
                match fault.kind {
                    FaultKind::Crash => self.die(fault.node, self.scenario.latency),
                    FaultKind::Vanish => self.die(fault.node, connect::CONNECTION_TIMEOUT),
                    FaultKind::CutConnections => self.cut_connections(fault.node),
                }
            }
            Happening::Dial { conn } => self.dialled(conn),
            Happening::DialFailed { conn } => self.dial_failed(conn),
            Happening::Connected { conn } => self.connected(conn),
            Happening::Closed { conn, end } => self.closed(conn, usize::from(end)),
            Happening::Message { conn, end, message } => self.message(conn, usize::from(end), message),
            Happening::UplinkFree(node) => self.uplink_free(node),
            Happening::Block { conn, end, alias, block } => self.block(conn, usize::from(end), alias, block),
            Happening::Verified { node, torrent, piece } => self.verified(node, torrent, piece),
            Happening::Wake(node) => self.wake(node),
            Happening::Upstream(piece) => self.upstream(piece),
            Happening::Known(known) => self.hashes_known(known),
        }
    }

    /// What goes into the trace: from, to, kind. The low byte of the kind says what it is, the rest which.
    fn describe(&self, happening: Happening) -> (u32, u32, u32) {
        let ends = |conn: u32, end: u8| {
            let nodes = self.links[conn as usize].nodes;
            (nodes[1 - usize::from(end)], nodes[usize::from(end)])
        };
        let at = |node: u32, kind: u32| (node, node, kind);
        match happening {
            Happening::Arrive(node) => at(node, 1),
            Happening::Announce(node) => at(node, 2),
            Happening::Answer { node, .. } => at(node, 3),
            Happening::LeaseEnd(node) => at(node, 4),
            Happening::Fault(index) => at(self.scenario.faults[index as usize].node, 5),
            Happening::Dial { conn } => (ends(conn, 1).0, ends(conn, 1).1, 6),
            Happening::DialFailed { conn } => (ends(conn, 0).0, ends(conn, 0).1, 7),
            Happening::Connected { conn } => (ends(conn, 0).0, ends(conn, 0).1, 8),
            Happening::Closed { conn, end } => (ends(conn, end).0, ends(conn, end).1, 9),
            Happening::UplinkFree(node) => at(node, 10),
            Happening::Block { conn, end, block, .. } => {
                (ends(conn, end).0, ends(conn, end).1, 11 | block.piece.get() << 8)
            }
            Happening::Verified { node, piece, .. } => at(node, 12 | piece.get() << 8),
            Happening::Wake(node) => at(node, 13),
            Happening::Upstream(piece) => at(ORIGIN, 14 | piece.get() << 8),
            Happening::Known(known) => at(ORIGIN, 15 | known << 8),
            Happening::Message { conn, end, message } => {
                (ends(conn, end).0, ends(conn, end).1, message_kind(&self.messages[message as usize]))
            }
        }
    }

    // What nodes do.

    fn arrive(&mut self, node: u32) {
        let state = &mut self.nodes[node as usize];
        if state.state != State::Away {
            return;
        }
        state.state = State::Live;
        state.arrived_at = self.now;
        self.push_after(self.scenario.latency, Happening::Announce(node));
    }

    fn announced(&mut self, node: u32) {
        if let Some(rate) = self.scenario.upstream_rate.filter(|_| !self.upstream_begun)
            && let Some(first) = self.geometry.piece(0)
        {
            self.upstream_begun = true;
            let delay = transfer_time(u64::from(self.geometry.length_of(first)), rate);
            self.queue.push_at(self.now + delay, Happening::Upstream(first));
        }
        if self.nodes[node as usize].is_live() {
            let peers = self.tracker.announce(node, self.scenario.handout_max, &mut self.rng);
            let answer = self.answers.insert(Answer { peers, known: self.known });
            self.push_after(self.scenario.latency, Happening::Answer { node, answer: slot(answer) });
        }
    }

    fn answered(&mut self, node: u32, answer: u32) {
        let Answer { peers, known } = self.answers.remove(answer as usize);
        if !self.nodes[node as usize].is_live() || self.nodes[node as usize].completed_at.is_some() {
            return;
        }
        if self.nodes[node as usize].torrent.is_none() {
            self.open(node, known);
        }
        let infos: Vec<_> = peers.iter().map(|&peer| self.nodes[peer as usize].swarm.me().clone()).collect();
        let state = &mut self.nodes[node as usize];
        if let Some(torrent) = state.torrent {
            state.swarm.add_peers(self.now, torrent, &infos);
        }
        self.touch(node);
        self.push_after(self.scenario.announce_interval, Happening::Announce(node));
    }

    /// Opens the blob's torrent at a node, with what its store holds.
    fn open(&mut self, node: u32, known: u32) {
        let first = self.geometry.piece(0).filter(|_| self.scenario.readers && node != ORIGIN);
        let state = &mut self.nodes[node as usize];
        state.torrent = state.swarm.open(
            self.now,
            OpenTorrent {
                digest: self.digest,
                geometry: self.geometry,
                have: state.have.clone(),
                known,
                super_seed: node == ORIGIN,
            },
        );
        if let (Some(torrent), Some(first), false) = (state.torrent, first, state.have.is_full()) {
            state.reader = state.swarm.add_reader(self.now, torrent, first).map(|reader| (reader, 0));
        }
    }

    fn upstream(&mut self, piece: PieceIndex) {
        let origin = &mut self.nodes[ORIGIN as usize];
        if !origin.is_live() {
            return;
        }
        self.known = piece.get() + 1;
        origin.have.insert(piece);
        if let Some(torrent) = origin.torrent {
            origin.swarm.set_known(self.now, torrent, self.known);
            origin.swarm.add_piece(self.now, torrent, piece);
        }
        self.touch(ORIGIN);
        self.push_after(self.scenario.latency, Happening::Known(self.known));
        if let (Some(next), Some(rate)) = (self.geometry.piece(self.known), self.scenario.upstream_rate) {
            let delay = transfer_time(u64::from(self.geometry.length_of(next)), rate);
            self.queue.push_at(self.now + delay, Happening::Upstream(next));
        }
    }

    fn hashes_known(&mut self, known: u32) {
        for node in 1..=self.scenario.nodes {
            let state = &mut self.nodes[node as usize];
            if let (true, Some(torrent)) = (state.is_live(), state.torrent) {
                state.swarm.set_known(self.now, torrent, known);
                self.touch(node);
            }
        }
    }

    fn message(&mut self, conn: u32, end: usize, message: u32) {
        let message = self.messages.remove(message as usize);
        self.message_count += 1;
        if let Some(node) = self.open_end(conn, end) {
            self.nodes[node as usize].swarm.handle_message(self.now, ConnId(u64::from(conn)), message);
            self.touch(node);
        }
    }

    fn block(&mut self, conn: u32, end: usize, alias: Alias, block: BlockRef) {
        self.blocks += 1;
        let Some(node) = self.open_end(conn, end) else { return };
        if let Some(check) = &self.check {
            check.block_arrived(conn, end, block, self.scenario.seed);
        }
        let state = &mut self.nodes[node as usize];
        let length = u64::from(block.length);
        state.received_bytes += length;
        let header = BlockHeader { alias, block: block.into() };
        match state.swarm.handle_block(self.now, ConnId(u64::from(conn)), header) {
            Ok(BlockOutcome::Accepted { .. }) => {}
            Ok(BlockOutcome::Duplicate) | Err(_) => state.duplicate_bytes += length,
        }
        self.touch(node);
    }

    fn verified(&mut self, node: u32, torrent: TorrentKey, piece: PieceIndex) {
        let state = &mut self.nodes[node as usize];
        if !state.is_live() {
            return;
        }
        state.swarm.handle_verified(self.now, torrent, piece, true);
        state.have.insert(piece);
        if let Some((reader, at)) = state.reader {
            match state.have.first_missing(at).and_then(|missing| self.geometry.piece(missing)) {
                Some(missing) if missing.get() != at => {
                    state.swarm.move_reader(self.now, torrent, reader, missing);
                    state.reader = Some((reader, missing.get()));
                }
                Some(_) => {}
                None => {
                    state.swarm.remove_reader(torrent, reader);
                    state.reader = None;
                }
            }
        }
        if state.have.is_full() && state.completed_at.is_none() {
            state.completed_at = Some(self.now);
            self.waiting -= 1;
        }
        self.touch(node);
    }

    fn wake(&mut self, node: u32) {
        let state = &mut self.nodes[node as usize];
        // One that was put off or brought forward is stale.
        if !state.is_live() || state.wake_at != Some(self.now) {
            return;
        }
        state.wake_at = None;
        if state.swarm.poll_timeout().is_some_and(|(at, _)| at <= self.now) {
            state.swarm.handle_timeout(self.now);
        }
        self.touch(node);
    }

    fn uplink_free(&mut self, node: u32) {
        let state = &mut self.nodes[node as usize];
        let Some((Outgoing { conn, torrent, block }, began)) = state.up.end().filter(|_| state.is_live()) else {
            return;
        };
        let link = &self.links[conn as usize];
        let end = link.end_of(node);
        if link.ends[end] == End::Open {
            state.swarm.handle_block_sent(self.now, ConnId(u64::from(conn)), torrent, block);
            let receiver = link.nodes[1 - end];
            let at = self.nodes[receiver as usize].down.take(self.now, began, u64::from(block.length));
            let arrival = Happening::Block { conn, end: side(1 - end), alias: torrent.alias(), block };
            self.queue.push_at(at + self.scenario.latency, arrival);
        }
        self.touch(node);
        self.serve_uplink(node);
    }

    fn serve_uplink(&mut self, node: u32) {
        let links = &self.links;
        let open = |out: &Outgoing| {
            let link = &links[out.conn as usize];
            link.ends[link.end_of(node)] == End::Open
        };
        if let Some(at) = self.nodes[node as usize].up.begin(self.now, open) {
            self.queue.push_at(at, Happening::UplinkFree(node));
        }
    }

    // The swarms' outputs.

    fn touch(&mut self, node: u32) {
        let state = &mut self.nodes[node as usize];
        if !state.touched && state.is_live() {
            state.touched = true;
            self.touched.push(node);
        }
    }

    fn drain_touched(&mut self) {
        let mut touched = std::mem::take(&mut self.touched);
        for node in touched.drain(..) {
            self.nodes[node as usize].touched = false;
            if self.nodes[node as usize].is_live() {
                self.drain(node);
            }
        }
        debug_assert!(self.touched.is_empty(), "a swarm's output was another's input without latency");
        self.touched = touched;
    }

    fn drain(&mut self, node: u32) {
        loop {
            while let Some(transmit) = self.nodes[node as usize].swarm.poll_transmit() {
                self.transmit(node, transmit);
            }
            let mut acted = false;
            while let Some(event) = self.nodes[node as usize].swarm.poll_event() {
                acted |= self.act(node, event);
            }
            if !acted {
                break;
            }
        }
        let state = &mut self.nodes[node as usize];
        if let Some((at, _)) = state.swarm.poll_timeout()
            && state.wake_at.is_none_or(|pending| at < pending)
        {
            let at = at.max(self.now);
            state.wake_at = Some(at);
            self.queue.push_at(at, Happening::Wake(node));
        }
        if self.check.is_some() {
            self.check_node(node);
        }
    }

    fn transmit(&mut self, node: u32, transmit: Transmit) {
        let conn = u32::try_from(transmit.conn.0).unwrap_or(u32::MAX);
        let link = &self.links[conn as usize];
        let end = link.end_of(node);
        if link.ends[end] != End::Open {
            return;
        }
        match transmit.frame {
            Frame::Control(message) => {
                if let Some(check) = &mut self.check {
                    check.message_sent(conn, end, &message);
                }
                self.nodes[node as usize].up.control(control_length(&message));
                let message = slot(self.messages.insert(message));
                self.push_after(self.scenario.latency, Happening::Message { conn, end: side(1 - end), message });
            }
            Frame::Block { torrent, block } => {
                if self.check.is_some() {
                    self.check_sent(node, block.piece);
                }
                self.nodes[node as usize].up.push(Outgoing { conn, torrent, block });
                self.serve_uplink(node);
            }
        }
    }

    /// Does what a swarm asks for; tells whether that was an input to it.
    fn act(&mut self, node: u32, event: Event) -> bool {
        match event {
            Event::Dial(peer) => self.dial(node, &peer),
            Event::Disconnect { conn, reason } => self.disconnect(node, conn, reason),
            Event::PieceReceived { torrent, piece } => {
                self.push_after(self.scenario.verify_delay, Happening::Verified { node, torrent, piece });
            }
            Event::TorrentWanted(digest) => {
                let state = &self.nodes[node as usize];
                if digest == self.digest && state.have.is_full() && state.torrent.is_none() {
                    self.open(node, self.geometry.piece_count());
                    return true;
                }
            }
            Event::TorrentIdle(torrent) => {
                let state = &mut self.nodes[node as usize];
                state.swarm.close(self.now, torrent);
                state.torrent = None;
                return true;
            }
            Event::FindTorrent { digest, query } => {
                let state = &mut self.nodes[node as usize];
                let held = digest == self.digest && state.have.is_full();
                state.swarm.handle_find_answer(self.now, query, digest, held);
                return true;
            }
            Event::PieceDropped { .. } | Event::Banned(_) => {}
        }
        false
    }

    fn push_after(&mut self, delay: Duration, happening: Happening) {
        self.queue.push_after(self.now, delay, happening);
    }

    /// The node at one end of a connection, if it is live and the connection is open to it.
    fn open_end(&self, conn: u32, end: usize) -> Option<u32> {
        let link = &self.links[conn as usize];
        let node = link.nodes[end];
        (link.ends[end] == End::Open && self.nodes[node as usize].is_live()).then_some(node)
    }

    fn report(self) -> Report {
        let agents = &self.nodes[1..];
        let mut times: Vec<Duration> =
            agents.iter().filter_map(|node| Some(node.completed_at?.since(node.arrived_at))).collect();
        times.sort_unstable();
        let seconds_last = times.last().map_or(0.0, Duration::as_secs_f64);
        let seconds_median = times.get(times.len() / 2).map_or(0.0, Duration::as_secs_f64);
        let optimum_seconds = self.scenario.optimum_seconds();
        let length = self.geometry.length() as f64;
        let sum = |field: fn(&Node) -> u64| agents.iter().map(field).sum::<u64>() as f64;
        let rates = (1..=self.scenario.nodes).map(|node| self.scenario.rates_of(node).up as f64).sum::<f64>();
        let elapsed = self.now.since(Time::ZERO).as_secs_f64();
        Report {
            nodes: self.scenario.nodes,
            blob_bytes: self.geometry.length(),
            pieces: self.geometry.piece_count(),
            seed: self.scenario.seed,
            completed: u32::try_from(times.len()).unwrap_or(u32::MAX),
            crashed: self.crashed,
            seconds_last,
            seconds_median,
            optimum_seconds,
            ratio_last: seconds_last / optimum_seconds,
            ratio_median: seconds_median / optimum_seconds,
            origin_copies: self.nodes[ORIGIN as usize].up.sent_bytes as f64 / length,
            duplicate_share: sum(|node| node.duplicate_bytes) / sum(|node| node.received_bytes).max(1.0),
            uplink_share: sum(|node| node.up.sent_bytes) / (rates * elapsed).max(1.0),
            blocks: self.blocks,
            messages: self.message_count,
            connections: self.connections,
            disconnects: self.disconnects,
            events: self.trace.events(),
            trace_hash: format!("{:016x}", self.trace.hash()),
        }
    }
}

fn slot(key: usize) -> u32 {
    u32::try_from(key).expect("fewer than 2^32 things are under way at once")
}

/// An end's number as events carry it.
fn side(end: usize) -> u8 {
    u8::from(end != 0)
}

fn message_kind(message: &Message) -> u32 {
    match message {
        Message::Hello { .. } => 32,
        Message::OpenTorrent { have, .. } => 33 | have.count() << 8,
        Message::CloseTorrent { .. } => 34,
        Message::Have { pieces, .. } => 35 | pieces.first().copied().unwrap_or_default() << 8,
        Message::Interested => 36,
        Message::NotInterested => 37,
        Message::Unchoke { .. } => 38,
        Message::Choke => 39,
        Message::Request { blocks, .. } => 40 | blocks.first().map_or(0, |block| block.piece) << 8,
        Message::Reject { blocks, .. } => 41 | blocks.first().map_or(0, |block| block.piece) << 8,
        Message::Cancel { blocks, .. } => 42 | blocks.first().map_or(0, |block| block.piece) << 8,
        Message::PeerExchange { .. } => 43,
        Message::FindPeers { .. } => 44,
        Message::HaveAll { .. } => 45,
    }
}
