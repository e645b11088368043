//! The parts of Shoal, and what others may know of them while [`super::chaos`] starts and ends them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::cluster::metrics;
use crate::lab::Lab;
use crate::node::{Link, Node};
use crate::process::Process;
use crate::program::{ADMIN, ORIGIN_ADMIN, Program, Setting, TRACKER_ADMIN, store_dir};

use super::NODES;

/// Most bytes an agent keeps: a seventh of the images.
pub(super) const AGENT_STORE_BYTES: u64 = 64 << 20;
/// Most bytes an origin keeps: less than half of them.
const ORIGIN_STORE_BYTES: u64 = 192 << 20;

/// What a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Tracker,
    Origin,
    Agent,
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::Tracker, Self::Origin, Self::Agent];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Tracker => "tracker",
            Self::Origin => "origin",
            Self::Agent => "agent",
        }
    }
}

/// A process, from its start to its end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Life {
    pub(super) pid: u32,
    pub(super) since: Instant,
    /// How many there were of this part before.
    pub(super) number: u32,
}

/// What a process counts, by name and labels as Prometheus has them.
pub(super) type Counts = BTreeMap<String, f64>;

/// A part.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) kind: Kind,
    pub(super) node: Arc<Node>,
    /// Whether it is never killed.
    pub(super) spared: bool,
    life: Mutex<Option<Life>>,
    /// What each of its lives has counted, when it was asked last.
    counts: Mutex<BTreeMap<u32, Counts>>,
}

impl Part {
    pub(super) fn store(&self) -> PathBuf {
        store_dir(&self.node, self.kind.name())
    }

    pub(super) fn life(&self) -> Option<Life> {
        *self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_life(&self, life: Option<Life>) {
        *self.life.lock().unwrap_or_else(PoisonError::into_inner) = life;
    }

    /// Asks it what it counts.
    pub(super) fn ask(&self) -> Result<Counts> {
        let life = self.life().context("it is down")?;
        let admin = match self.kind {
            Kind::Tracker => TRACKER_ADMIN,
            Kind::Origin => ORIGIN_ADMIN,
            Kind::Agent => ADMIN,
        };
        let text = metrics(&self.node, admin)?;
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let pairs = lines.filter_map(|line| line.rsplit_once(' '));
        let counts = pairs.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect::<Counts>();
        let mut all = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(life.number, counts.clone());
        Ok(counts)
    }

    /// The sum of a counter over its lives.
    pub(super) fn counted(&self, name: &str) -> f64 {
        let all = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        all.values().filter_map(|counts| counts.get(name)).sum()
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.name(), self.node.name())
    }
}

/// All parts of a run.
#[derive(Debug)]
pub(super) struct Cast {
    pub(super) parts: Vec<Part>,
    program: Program,
}

impl Cast {
    /// Makes nodes for two trackers, two origins and the agents; one tracker, one origin and two agents are spared.
    pub(super) fn gather(lab: &mut Lab) -> Result<Self> {
        let program = Program::find()?.with_certificates(&lab.dir().join("certificates"))?;
        let trackers = (1..=2).map(|number| (Kind::Tracker, format!("tracker{number}"), number == 1));
        let origins = (1..=2).map(|number| (Kind::Origin, format!("origin{number}"), number == 1));
        let agents = (1..=NODES).map(|number| (Kind::Agent, format!("n{number}"), number <= 2));
        let parts = trackers.chain(origins).chain(agents).map(|(kind, name, spared)| {
            let node = lab.add_node(&name, Link::default())?;
            Ok(Part { kind, node, spared, life: Mutex::default(), counts: Mutex::default() })
        });
        Ok(Self { parts: parts.collect::<Result<_>>()?, program })
    }

    /// Starts a part and waits until it listens.
    pub(super) fn start(&self, part: &Part) -> Result<Process> {
        let nodes = |kind| self.of(kind).map(|part| part.node.as_ref()).collect::<Vec<_>>();
        let (trackers, origins) = (nodes(Kind::Tracker), nodes(Kind::Origin));
        let store_bytes = if part.kind == Kind::Origin { ORIGIN_STORE_BYTES } else { AGENT_STORE_BYTES };
        let setting = Setting { trackers: &trackers, origins: &origins, store_max: &format!("{store_bytes}B") };
        match part.kind {
            Kind::Tracker => self.program.tracker(&part.node),
            Kind::Origin => self.program.origin_in(&part.node, &setting),
            Kind::Agent => self.program.agent_in(&part.node, &setting, ""),
        }
    }

    pub(super) fn of(&self, kind: Kind) -> impl Iterator<Item = &Part> {
        self.parts.iter().filter(move |part| part.kind == kind)
    }

    /// The nodes that pull.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.of(Kind::Agent).map(|part| &part.node)
    }
}
