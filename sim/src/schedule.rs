//! Failure schedules: a seed alone draws a small swarm and all that goes wrong in it.

use std::ops::Range;
use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64;
use shoal_swarm::{ChokePolicy, Config};

use crate::scenario::{Arrivals, Fault, FaultKind, Group, Lie, Part, Rates, Scenario, Zones};

/// How long after the last fault is over whoever lives must have every blob. A peer that was given up again and again is
/// left alone for up to 80 s, and one that takes requests and sends nothing costs three times 8 s.
const DEADLINE: Duration = Duration::from_secs(600);
/// Agents of a schedule, liars among them.
const NODES: Range<u32> = 3..13;
/// Pieces of a blob.
const PIECES: Range<u64> = 1..25;

impl Lie {
    /// Every way to lie.
    pub const ALL: [Self; 7] = [
        Self::BadBlocks,
        Self::BogusHaves,
        Self::BadBitfields,
        Self::EndlessChokes,
        Self::SlowDrip,
        Self::Flood,
        Self::PeerPoison,
    ];
}

/// Draws a schedule.
#[must_use]
pub fn schedule(seed: u64) -> Scenario {
    let mut draw = Draw(Pcg64::seed_from_u64(seed ^ 0x5c4e_d01e));
    let nodes = draw.0.random_range(NODES);
    let piece_length = 1u32 << draw.0.random_range(14..18u32);
    let blobs: Vec<u64> = (0..draw.0.random_range(1..4)).map(|_| draw.blob(piece_length)).collect();
    let length: u64 = blobs.iter().sum();
    // So that faults of some seconds fall into it.
    let span = draw.seconds(0.5, 6.0);
    let rate = (length as f64 / span.as_secs_f64()) as u64 + 1;
    let mut scenario = Scenario {
        blobs,
        parallel: draw.0.random_range(1..4),
        piece_length: Some(piece_length),
        block_length: draw.chance(0.5).then_some(16 << 10),
        seed,
        upstream_rate: draw.chance(0.4).then(|| draw.about(rate)),
        latency: draw.seconds(0.00005, 0.02),
        zones: draw.chance(0.25).then(|| Zones {
            count: draw.0.random_range(2..4),
            rate: draw.about(rate * 2),
            latency: draw.seconds(0.001, 0.05),
        }),
        sockets_buffer: draw.chance(0.5),
        announce_interval: draw.seconds(2.0, 10.0),
        lease: draw.seconds(10.0, 30.0),
        readers: draw.chance(0.5),
        check_invariants: true,
        ..Scenario::crowd(nodes, 1, rate)
    };
    scenario.origin_rates = Rates::equal(draw.about(rate));
    scenario.groups[0].arrivals.within = if draw.chance(0.5) { Duration::ZERO } else { draw.seconds(0.0, 5.0) };
    draw.liars(&mut scenario, length);
    draw.settings(&mut scenario);
    let until = span * 2 + draw.seconds(1.0, 10.0);
    for _ in 0..draw.0.random_range(2..11) {
        draw.fault(&mut scenario, until);
    }
    scenario.time_limit = Some(scenario.faults_until().since(shoal_swarm::Time::ZERO) + DEADLINE);
    scenario
}

struct Draw(Pcg64);

impl Draw {
    fn chance(&mut self, share: f64) -> bool {
        self.0.random_bool(share)
    }

    fn seconds(&mut self, from: f64, to: f64) -> Duration {
        Duration::from_secs_f64(self.0.random_range(from..to))
    }

    /// A time that is short as often as it is long.
    fn scale(&mut self, from: f64, to: f64) -> Duration {
        Duration::from_secs_f64(self.0.random_range(from.ln()..to.ln()).exp())
    }

    /// From half a rate to twice that.
    fn about(&mut self, rate: u64) -> u64 {
        self.0.random_range(rate / 2..rate * 2) + 1
    }

    fn blob(&mut self, piece_length: u32) -> u64 {
        let (pieces, last) = (self.0.random_range(PIECES), self.0.random_range(0..u64::from(piece_length)));
        pieces * u64::from(piece_length) - last
    }

    /// In half of the schedules up to a third of the agents lie; elsewhere some may only take.
    fn liars(&mut self, scenario: &mut Scenario, length: u64) {
        let third = scenario.nodes() / 3;
        if self.chance(0.5) {
            for _ in 0..self.0.random_range(1..=third) {
                let lie = Lie::ALL[self.0.random_range(0..Lie::ALL.len())];
                let liar = scenario.split("liar", 1);
                liar.lies = Some(lie);
                if lie == Lie::SlowDrip {
                    // A block takes as long as its receiver has patience, or longer.
                    liar.rates.up = (length / 64).clamp(1 << 10, 8 << 10);
                }
            }
        } else if self.chance(0.2) {
            scenario.split("takers", third).gives = false;
        }
        if self.chance(0.3) {
            let first = &mut scenario.groups[0];
            *first = Group { arrivals: Arrivals { after: self.seconds(0.0, 3.0), ..first.arrivals }, ..first.clone() };
        }
    }

    /// Few connections and little room at times; those who lie or only take leave room for three others.
    fn settings(&mut self, scenario: &mut Scenario) {
        let idle = scenario.groups.iter().filter(|group| group.lies.is_some() || !group.gives);
        let idle = idle.map(|group| group.nodes as usize).sum::<usize>();
        let mut swarm = Config::default();
        if self.chance(0.3) {
            swarm.connections_soft_max = idle + self.0.random_range(3..7);
            swarm.connections_max = swarm.connections_soft_max + self.0.random_range(0..4);
        }
        if self.chance(0.2) {
            swarm.inflight_bytes_max = self.0.random_range(1..1 << 20);
        }
        if self.chance(0.15) {
            swarm.choke_policy = ChokePolicy::Reciprocal;
        }
        if self.chance(0.2) {
            swarm.idle_timeout = self.seconds(1.0, 10.0);
        }
        scenario.swarm = swarm;
    }

    fn fault(&mut self, scenario: &mut Scenario, until: Duration) {
        let (at, node) = (self.seconds(0.0, until.as_secs_f64()), self.0.random_range(0..=scenario.nodes()));
        let mut add = |at, node, kind| scenario.faults.push(Fault { at, node, kind });
        match self.0.random_range(0..16u32) {
            // Who is lost comes back, mostly; the origin more often than by its number, for much hangs on it.
            which @ 0..6 => {
                let node = if which == 0 { 0 } else { node };
                add(at, node, if self.chance(0.7) { FaultKind::Crash } else { FaultKind::Vanish });
                if self.chance(0.85) {
                    let back = at + self.scale(0.05, 25.0);
                    add(back, node, FaultKind::Return { disk: self.chance(0.6) });
                }
            }
            6..10 => {
                let everyone = (1u64 << (scenario.nodes() + 1)) - 1;
                let some = |draw: &mut Self| draw.0.random_range(1..=everyone);
                let from = some(self);
                let to = if self.chance(0.5) { everyone & !from } else { some(self) };
                let part = Part { from, to, both_ways: self.chance(0.6), lasts: self.scale(0.05, 30.0) };
                scenario.faults.push(Fault { at, node: 0, kind: FaultKind::Part(part) });
            }
            10 => add(at, node, FaultKind::Pause(self.scale(0.02, 40.0))),
            11 => add(at, node, FaultKind::Jump(self.scale(0.1, 4000.0))),
            12..14 => add(at, node, FaultKind::Lag { by: self.scale(0.001, 2.0), lasts: self.scale(0.5, 10.0) }),
            14 => add(at, node, FaultKind::CutConnections),
            _ => add(at, 0, FaultKind::Amnesia),
        }
    }
}
