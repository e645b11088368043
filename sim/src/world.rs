//! The simulated world: delivers what happens, one event at a time, and drains the swarms it touched.
//!
//! This file holds the state and the loop. `agents` is what nodes, tracker and origin do, `traffic` moves messages and
//! blocks, `connect` makes and breaks connections, `mishap` is what goes wrong, `lie` what liars say, `check` holds the
//! invariants of checked mode, `watch` those over time, `outcome` the figures.

mod agents;
mod check;
mod connect;
mod lie;
mod mishap;
mod outcome;
mod traffic;
mod watch;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rand::SeedableRng as _;
use rand_pcg::Pcg64;
use shoal_meta::{BlockRef, Digest, Geometry, Lead, PeerId, PieceIndex};
use shoal_swarm::wire::{Alias, Message};
use shoal_swarm::{Event, Time, TorrentKey};
use slab::Slab;
use smallvec::SmallVec;

use crate::link::{Downlink, Link};
use crate::node::Node;
use crate::queue::Queue;
use crate::report::Report;
use crate::scenario::{Part, Scenario, ScenarioError};
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
    let mut world = World::new(scenario, &scenario.geometries()?);
    world.begin();
    world.play();
    Ok(world.report())
}

/// What happens at a point in time. Kept small: bigger things wait in slabs.
#[derive(Clone, Copy, Debug)]
enum Happening {
    /// An agent wants the blobs.
    Arrive(u32),
    /// An agent's announce of a blob reaches the tracker, and its question for metainfo the origin.
    Announce { node: u32, blob: u32, life: u32 },
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
    /// A block may have left an uplink, or may begin to.
    Uplink(u32),
    /// A socket has taken a block from the swarm at one end of a connection.
    Buffered { conn: u32, end: u8, block: BlockRef },
    /// A block reaches one end of a connection.
    Block { conn: u32, end: u8, alias: Alias, block: BlockRef, good: bool },
    /// The store has verified a piece: its bytes are good, and on disk, or not.
    Verified { node: u32, life: u32, torrent: TorrentKey, piece: PieceIndex, good: bool },
    /// What an earlier life left of a blob is checked.
    Rechecked { node: u32, life: u32, blob: u32 },
    /// A node's time-out.
    Wake(u32),
    /// The next piece of a blob reaches the origin from upstream.
    Upstream { blob: u32, life: u32 },
    /// The hashes of this many pieces of a blob reach the agents.
    Known { blob: u32, known: u32 },
    /// A part of the network is whole again, by its fault's place in the list.
    Heal(u32),
    /// A process that stood still goes on.
    Resume(u32),
    /// A connection across a part has timed out, if that lasts.
    TimedOut { conn: u32 },
    /// A liar speaks out of turn.
    Lie(u32),
    /// Checked mode looks at what changes slowly.
    Look,
}

struct World<'a> {
    scenario: &'a Scenario,
    blobs: Vec<Blob>,
    now: Time,
    queue: Queue<Happening>,
    /// Control messages under way. Those that one drain sends over one connection, one right after the other, travel as one.
    messages: Slab<SmallVec<[Message; 2]>>,
    /// The connection, end and place of the last of them in this drain.
    last_message: Option<(u32, usize, u32)>,
    answers: Slab<Answer>,
    nodes: Vec<Node>,
    links: Vec<Link>,
    /// Whom a dial was meant for that finds another, or nobody.
    dials: BTreeMap<u32, PeerId>,
    zones: Vec<Zone>,
    rng: Pcg64,
    trace: Trace,
    check: Option<Check>,
    /// Nodes with inputs since their outputs were drained, in order.
    touched: Vec<u32>,
    /// When upstream has sent what was asked of it so far.
    upstream_free_at: Time,
    /// Parts of the network that are cut off now, by their faults' places in the list.
    parts: Vec<(u32, Part)>,
    /// What waits at an end of a connection until a part heals, in order.
    held: BTreeMap<(u32, u8), VecDeque<Happening>>,
    /// Until when faults that a run waits for last.
    faults_until: Time,
    /// Nobody who lacks a piece can get it any more.
    hopeless: bool,
    /// Agents that have neither completed nor crashed.
    waiting: u32,
    crashed: u32,
    blocks: u64,
    message_count: u64,
    connections: u64,
    disconnects: BTreeMap<String, u64>,
}

/// One blob, its tracker's state and what the origin has published of it.
struct Blob {
    digest: Digest,
    geometry: Geometry,
    tracker: Tracker,
    /// Pieces whose hash the origin has published.
    known: u32,
    /// Whether the origin has begun to fetch it.
    begun: bool,
}

/// The link that the nodes of a zone share to the others.
struct Zone {
    out: Downlink,
    into: Downlink,
    /// Payload bytes that came in.
    bytes: u64,
}

/// What tracker and origin say to an agent that announces.
struct Answer {
    blob: u32,
    peers: Vec<u32>,
    /// Its part as a leader of its zone, if it is one.
    lead: Option<Lead>,
    known: u32,
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario, geometries: &[Geometry]) -> Self {
        let zone = |rate| Zone { out: Downlink::new(rate), into: Downlink::new(rate), bytes: 0 };
        let blob = |(index, geometry): (u64, &Geometry)| Blob {
            digest: Digest::sha256_of(&[scenario.seed.to_be_bytes(), index.to_be_bytes()].concat()),
            geometry: *geometry,
            tracker: Tracker::new(ORIGIN, scenario.zone_count()),
            known: 0,
            begun: false,
        };
        let groups = scenario.groups.iter().enumerate();
        let agents = groups.flat_map(|(place, group)| (0..group.nodes).map(move |_| (place, group)));
        let agents = (1u32..).zip(agents).map(|(node, (at, group))| Node::new(scenario, geometries, node, at, group));
        Self {
            scenario,
            blobs: (0u64..).zip(geometries).map(blob).collect(),
            now: Time::ZERO,
            queue: Queue::new(),
            messages: Slab::new(),
            last_message: None,
            answers: Slab::new(),
            nodes: std::iter::once(Node::origin(scenario, geometries)).chain(agents).collect(),
            links: Vec::new(),
            dials: BTreeMap::new(),
            zones: scenario.zones.map(|zones| (0..zones.count).map(|_| zone(zones.rate)).collect()).unwrap_or_default(),
            rng: Pcg64::seed_from_u64(scenario.seed),
            trace: Trace::new(),
            check: scenario.check_invariants.then(Check::default),
            touched: Vec::new(),
            upstream_free_at: Time::ZERO,
            parts: Vec::new(),
            held: BTreeMap::new(),
            faults_until: scenario.faults_until(),
            hopeless: false,
            waiting: scenario.honest(),
            crashed: 0,
            blocks: 0,
            message_count: 0,
            connections: 0,
            disconnects: BTreeMap::new(),
        }
    }

    fn play(&mut self) {
        let come = self.scenario.groups.iter().map(|group| group.arrivals.after + group.arrivals.within);
        let ample = Duration::from_secs(300) + Duration::from_secs_f64(self.scenario.optimum_seconds() * 20.0);
        let limit = self.scenario.time_limit.unwrap_or(ample + come.max().unwrap_or_default());
        let mut rounds = 0;
        self.drain_touched();
        while let Some(at) = self.queue.next_due().filter(|at| *at <= Time::ZERO + limit && self.goes_on()) {
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
        let Some(happening) = self.put_off(happening) else { return };
        let (from, to, kind) = self.describe(happening);
        self.trace.record(self.now, from, to, kind);
        match happening {
            Happening::Arrive(node) => self.arrive(node),
            Happening::Announce { node, blob, life } => self.announced(node, blob, life),
            Happening::Answer { node, answer } => self.answered(node, answer),
            Happening::LeaseEnd(node) => self.end_lease(node),
            Happening::Fault(index) => self.go_wrong(index),
            Happening::Dial { conn } => self.dialled(conn),
            Happening::DialFailed { conn } => self.dial_failed(conn),
            Happening::Connected { conn } => self.connected(conn),
            Happening::Closed { conn, end } => self.closed(conn, usize::from(end)),
            Happening::Message { conn, end, message } => self.message(conn, usize::from(end), message),
            Happening::Uplink(node) => self.uplink(node),
            Happening::Buffered { conn, end, block } => self.buffered(conn, usize::from(end), block),
            Happening::Block { conn, end, alias, block, good } => {
                self.block(conn, usize::from(end), alias, block, good)
            }
            Happening::Verified { node, life, torrent, piece, good } => {
                if life == self.nodes[node as usize].life {
                    self.verified(node, torrent, piece, good);
                }
            }
            Happening::Rechecked { node, life, blob } => {
                if life == self.nodes[node as usize].life {
                    self.rechecked(node, blob);
                }
            }
            Happening::Wake(node) => self.wake(node),
            Happening::Upstream { blob, life } => self.upstream(blob, life),
            Happening::Known { blob, known } => self.hashes_known(blob, known),
            Happening::Heal(index) => self.heal(index),
            Happening::Resume(node) => self.resume(node),
            Happening::TimedOut { conn } => self.time_out(conn),
            Happening::Lie(node) => self.lie(node),
            Happening::Look => self.look(),
        }
    }

    /// What goes into the trace: from, to, kind. The low byte of the kind says what it is, the rest which.
    fn describe(&self, happening: Happening) -> (u32, u32, u32) {
        let ends = |conn: u32, end: u8| {
            let nodes = self.links[conn as usize].nodes;
            (nodes[1 - usize::from(end)], nodes[usize::from(end)])
        };
        let between = |(from, to): (u32, u32), kind: u32| (from, to, kind);
        let at = |node: u32, kind: u32| (node, node, kind);
        match happening {
            Happening::Arrive(node) => at(node, 1),
            Happening::Announce { node, blob, .. } => at(node, 2 | blob << 8),
            Happening::Answer { node, .. } => at(node, 3),
            Happening::LeaseEnd(node) => at(node, 4),
            Happening::Fault(index) => at(self.scenario.faults[index as usize].node, 5),
            Happening::Dial { conn } => between(ends(conn, 1), 6),
            Happening::DialFailed { conn } => between(ends(conn, 0), 7),
            Happening::Connected { conn } => between(ends(conn, 0), 8),
            Happening::Closed { conn, end } => between(ends(conn, end), 9),
            Happening::Uplink(node) => at(node, 10),
            Happening::Block { conn, end, block, .. } => between(ends(conn, end), 11 | block.piece.get() << 8),
            Happening::Verified { node, piece, .. } => at(node, 12 | piece.get() << 8),
            Happening::Wake(node) => at(node, 13),
            Happening::Upstream { blob, .. } => at(ORIGIN, 14 | blob << 8),
            Happening::Rechecked { node, blob, .. } => at(node, 17 | blob << 8),
            Happening::Heal(index) => at(ORIGIN, 18 | index << 8),
            Happening::Resume(node) => at(node, 19),
            Happening::TimedOut { conn } => between(ends(conn, 0), 20),
            Happening::Lie(node) => at(node, 21),
            Happening::Look => at(ORIGIN, 22),
            Happening::Known { known, .. } => at(ORIGIN, 15 | known << 8),
            Happening::Buffered { conn, end, block } => between(ends(conn, end), 16 | block.piece.get() << 8),
            Happening::Message { conn, end, message } => {
                between(ends(conn, end), message_kind(&self.messages[message as usize][0]))
            }
        }
    }

    fn wake(&mut self, node: u32) {
        let state = &mut self.nodes[node as usize];
        // One that was put off or brought forward is stale.
        if !state.is_live() || state.wake_at.is_none_or(|at| at > self.now) {
            return;
        }
        state.wake_at = None;
        let now = state.clock(self.now);
        if state.swarm.poll_timeout().is_some_and(|(at, _)| at <= now) {
            state.swarm.handle_timeout(now);
        }
        self.touch(node);
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
            let state = &self.nodes[node as usize];
            if state.is_live() && state.paused_until <= self.now {
                self.drain(node);
            }
        }
        debug_assert!(self.touched.is_empty(), "a swarm's output was another's input without latency");
        self.touched = touched;
    }

    fn drain(&mut self, node: u32) {
        self.last_message = None;
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
            && let at = self.now + at.since(state.clock(self.now))
            && state.wake_at.is_none_or(|pending| at < pending)
        {
            state.wake_at = Some(at);
            self.queue.push_at(at, Happening::Wake(node));
        }
        if self.check.is_some() {
            self.check_node(node);
        }
    }

    /// Does what a swarm asks for; tells whether that was an input to it.
    fn act(&mut self, node: u32, event: Event) -> bool {
        match event {
            Event::Dial(peer) => self.dial(node, &peer),
            Event::Disconnect { conn, reason } => self.disconnect(node, conn, reason),
            Event::PieceReceived { torrent, piece } => {
                let state = &mut self.nodes[node as usize];
                let (life, good) = (state.life, !state.wrong.remove(&(torrent, piece)));
                let verified = Happening::Verified { node, life, torrent, piece, good };
                self.push_after(self.scenario.verify_delay, verified);
            }
            Event::TorrentWanted(digest) => return self.reopen(node, &digest),
            Event::TorrentIdle(torrent) => {
                let state = &mut self.nodes[node as usize];
                state.swarm.close(state.clock(self.now), torrent);
                if let Some(blob) = state.blob_of(torrent) {
                    state.blobs[blob].torrent = None;
                }
                return true;
            }
            Event::FindTorrent { digest, query } => {
                let held = self.holds(node, &digest).is_some();
                let state = &mut self.nodes[node as usize];
                state.swarm.handle_find_answer(state.clock(self.now), query, digest, held);
                return true;
            }
            Event::PieceDropped { torrent, piece } => {
                self.nodes[node as usize].wrong.remove(&(torrent, piece));
            }
            // No simulated agent asks peers for metainfo: the origin comes back.
            Event::Banned { .. } | Event::MetainfoAsked { .. } | Event::MetainfoFound { .. } => {}
        }
        false
    }

    fn push_after(&mut self, delay: Duration, happening: Happening) {
        self.queue.push_after(self.now, delay, happening);
    }
}

fn slot(key: usize) -> u32 {
    u32::try_from(key).expect("fewer than 2^32 things are under way at once")
}

fn message_kind(message: &Message) -> u32 {
    match message {
        Message::Hello { .. } => 32,
        Message::OpenTorrent(open) => 33 | open.have.count() << 8,
        Message::CloseTorrent { .. } => 34,
        Message::Have { pieces, .. } => 35 | pieces.first().copied().unwrap_or_default() << 8,
        Message::Interested => 36,
        Message::NotInterested { no_room } => 37 | u32::from(*no_room) << 8,
        Message::Unchoke { .. } => 38,
        Message::Choke => 39,
        Message::Request { blocks, .. } => 40 | blocks.first().map_or(0, |block| block.piece) << 8,
        Message::Reject { blocks, .. } => 41 | blocks.first().map_or(0, |block| block.piece) << 8,
        Message::Cancel { blocks, .. } => 42 | blocks.first().map_or(0, |block| block.piece) << 8,
        Message::PeerExchange(_) => 43,
        Message::FindPeers(_) => 44,
        Message::HaveAll { .. } => 45,
        Message::FindMetainfo { .. } => 46,
        Message::MetainfoPart(part) => 47 | part.first << 8,
    }
}
