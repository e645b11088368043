//! What a run costs: CPU time, memory and traffic of each node, and what was left of the machine. Reads /proc only.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result};

use crate::node::{Node, Traffic};
use crate::usage::{anon_bytes, cpu_ticks, to_f64};
use crate::wait::wait_until;

/// How often memory and traffic are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long the lab may take to come to rest before a run.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(20);

/// A measurement under way.
#[derive(Debug)]
pub(super) struct Meter {
    nodes: Vec<Arc<Node>>,
    before: Snapshot,
    stopping: Arc<AtomicBool>,
    looking: JoinHandle<Vec<Seen>>,
}

/// What a run cost.
#[derive(Debug)]
pub(super) struct Cost {
    /// Of each node, in the order given.
    pub(super) nodes: Vec<NodeCost>,
    /// Share of the machine's time in which it did nothing.
    pub(super) idle: f64,
    /// Share of the machine's time that programs outside the lab took.
    pub(super) foreign: f64,
}

/// What a run cost on one node.
#[derive(Debug)]
pub(super) struct NodeCost {
    /// CPU seconds of all its processes.
    pub(super) cpu_seconds: f64,
    /// Most anonymous memory of all its processes together, in bytes.
    pub(super) anon_peak_bytes: u64,
    /// Bytes its link carried, with the headers the kernel counts: one for each offloaded packet.
    pub(super) traffic: Traffic,
    /// What its link had carried by each look, [`LOOK_EVERY`] apart.
    pub(super) traffic_by_look: Vec<Traffic>,
}

#[derive(Debug, Default, Clone)]
struct Seen {
    anon_peak_bytes: u64,
    traffic: Vec<Traffic>,
}

#[derive(Debug)]
struct Snapshot {
    /// CPU ticks of each process of each node.
    ticks: Vec<BTreeMap<u32, u64>>,
    traffic: Vec<Traffic>,
    own_ticks: u64,
    machine: Machine,
}

/// Ticks of all the machine's cores.
#[derive(Debug, Clone, Copy)]
struct Machine {
    total: u64,
    idle: u64,
    /// In programs, and in the kernel for programs.
    programs: u64,
}

impl Meter {
    /// Waits until the nodes are at rest and starts to measure.
    pub(super) fn start(nodes: Vec<Arc<Node>>) -> Result<Self> {
        settle(&nodes)?;
        let before = Snapshot::take(&nodes)?;
        let stopping = Arc::new(AtomicBool::new(false));
        let (watched, stop) = (nodes.clone(), Arc::clone(&stopping));
        let pids = before.ticks.iter().map(|ticks| ticks.keys().copied().collect()).collect::<Vec<_>>();
        let looking = std::thread::spawn(move || look(&watched, &pids, &stop));
        Ok(Self { nodes, before, stopping, looking })
    }

    /// Ends the measurement.
    pub(super) fn stop(self) -> Result<Cost> {
        let after = Snapshot::take(&self.nodes)?;
        self.stopping.store(true, Ordering::Relaxed);
        let seen = self.looking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let mut nodes = Vec::new();
        let mut lab_ticks = after.own_ticks - self.before.own_ticks;
        for (index, seen) in seen.into_iter().enumerate() {
            let before = |pid| self.before.ticks[index].get(pid).copied().unwrap_or(0);
            let ticks = after.ticks[index].iter().map(|(pid, ticks)| ticks.saturating_sub(before(pid))).sum::<u64>();
            lab_ticks += ticks;
            let (first, last) = (self.before.traffic[index], after.traffic[index]);
            nodes.push(NodeCost {
                cpu_seconds: to_f64(ticks) / to_f64(rustix::param::clock_ticks_per_second()),
                anon_peak_bytes: seen.anon_peak_bytes,
                traffic: last.since(first),
                traffic_by_look: seen.traffic.iter().map(|traffic| traffic.since(first)).collect(),
            });
        }
        let (first, last) = (self.before.machine, after.machine);
        let share = |ticks: u64| to_f64(ticks) / to_f64((last.total - first.total).max(1));
        let foreign = (last.programs - first.programs).saturating_sub(lab_ticks);
        Ok(Cost { nodes, idle: share(last.idle - first.idle), foreign: share(foreign) })
    }
}

impl Snapshot {
    fn take(nodes: &[Arc<Node>]) -> Result<Self> {
        Ok(Self {
            ticks: ticks_of(nodes)?,
            traffic: nodes.iter().map(|node| node.traffic()).collect::<Result<_>>()?,
            own_ticks: cpu_ticks(std::process::id()).unwrap_or(0),
            machine: Machine::now()?,
        })
    }
}

impl Machine {
    fn now() -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("/proc/stat")?;
        let line = stat.lines().next().context("/proc/stat is empty")?;
        let ticks = line.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect::<Vec<u64>>();
        // user nice system idle iowait irq softirq steal; what follows is counted in those already.
        let at = |index: usize| ticks.get(index).copied().unwrap_or(0);
        Ok(Self { total: ticks.iter().take(8).sum(), idle: at(3) + at(4), programs: at(0) + at(1) + at(2) })
    }
}

/// Waits until the processes of the nodes have nothing left to do from their start.
fn settle(nodes: &[Arc<Node>]) -> Result<()> {
    let total = || Ok::<u64, Error>(ticks_of(nodes)?.iter().flat_map(BTreeMap::values).sum());
    let (mut since, mut before) = (Instant::now(), total()?);
    let rested = wait_until("the lab to come to rest", SETTLE_TIMEOUT, || {
        let elapsed = since.elapsed();
        if elapsed < Duration::from_millis(500) {
            return Ok(false);
        }
        let now = total()?;
        // Less than one hundredth of a core for each node.
        let rested = now - before <= 1 + nodes.len() as u64 / 2;
        (since, before) = (Instant::now(), now);
        Ok(rested)
    });
    // Some systems never rest: then they are measured as they are.
    rested.or(Ok(()))
}

fn look(nodes: &[Arc<Node>], pids: &[Vec<u32>], stopping: &AtomicBool) -> Vec<Seen> {
    let mut all = vec![Seen::default(); nodes.len()];
    while !stopping.load(Ordering::Relaxed) {
        let looked_at = Instant::now();
        for ((seen, node), pids) in all.iter_mut().zip(nodes).zip(pids) {
            let anon = pids.iter().filter_map(|pid| anon_bytes(*pid)).sum();
            seen.anon_peak_bytes = seen.anon_peak_bytes.max(anon);
            seen.traffic.extend(node.traffic());
        }
        std::thread::sleep(LOOK_EVERY.saturating_sub(looked_at.elapsed()));
    }
    all
}

/// CPU ticks of each process of each node.
fn ticks_of(nodes: &[Arc<Node>]) -> Result<Vec<BTreeMap<u32, u64>>> {
    let mut found = vec![BTreeMap::new(); nodes.len()];
    let namespace = |node: &Arc<Node>| node.pid_namespace();
    let indexes = nodes.iter().map(namespace).zip(0..).map(|(namespace, index)| Ok((namespace?, index)));
    let indexes = indexes.collect::<Result<HashMap<PathBuf, usize>>>()?;
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let namespace = fs::read_link(entry.path().join("ns/pid")).ok();
        let index = namespace.and_then(|namespace| indexes.get(&namespace));
        if let (Some(index), Some(ticks)) = (index, cpu_ticks(pid)) {
            found[*index].insert(pid, ticks);
        }
    }
    Ok(found)
}
