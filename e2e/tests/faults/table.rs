//! How pulls went, as rows of a table, and what makes one of them a failure.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use shoal_e2e::cluster::Cluster;
use shoal_e2e::harness::note;
use shoal_e2e::runtime::{Bounded, Ended};

/// How long a pull may take before it counts as hung.
pub(crate) const DEADLINE: Duration = Duration::from_secs(25);
/// How much longer than the direct pull one through Shoal may take that has to climb down the whole ladder.
const SLOWER_MAX_S: f64 = 15.0;

/// How one pull went.
#[derive(Debug, Clone)]
pub(crate) struct Pull {
    pub(crate) ended: Ended,
    pub(crate) seconds: f64,
}

impl Pull {
    pub(crate) fn of(client: &impl Bounded, reference: &str) -> Result<Self> {
        let began = Instant::now();
        let ended = client.try_pull(DEADLINE, reference)?;
        Ok(Self { ended, seconds: began.elapsed().as_secs_f64() })
    }
}

impl fmt::Display for Pull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.ended {
            Ended::Pulled => write!(f, "pulled, {:.1} s", self.seconds),
            Ended::Failed(_) => write!(f, "failed, {:.1} s", self.seconds),
            Ended::Hung => write!(f, "hung"),
        }
    }
}

/// One fault, and the pulls that met it.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) fault: &'static str,
    pub(crate) direct: Pull,
    /// Nobody in the cluster has the image.
    pub(crate) cold: Pull,
    /// What the node received meanwhile.
    pub(crate) sources: Sources,
    /// A neighbour has it.
    pub(crate) warm: Option<Pull>,
}

impl Row {
    /// What is wrong with it.
    fn complaint(&self) -> Option<String> {
        let rank = |ended: &Ended| match ended {
            Ended::Hung => 0,
            Ended::Failed(_) => 1,
            Ended::Pulled => 2,
        };
        let Self { fault, direct, cold, warm, .. } = self;
        if rank(&cold.ended) < rank(&direct.ended) {
            return Some(format!("{fault}: direct {direct}, through Shoal {cold}: {:?}", cold.ended));
        }
        if direct.ended == Ended::Pulled && cold.seconds > direct.seconds + SLOWER_MAX_S {
            return Some(format!("{fault}: direct {direct}, through Shoal {cold}"));
        }
        let warm = warm.as_ref().filter(|warm| warm.ended != Ended::Pulled)?;
        Some(format!("{fault}: a neighbour has the image, and the pull {warm}: {:?}", warm.ended))
    }
}

/// Prints the rows, and fails if one of them is a failure.
pub(crate) fn conclude(runtime: &str, rows: &[Row]) -> Result<()> {
    note(format!(
        "| fault ({runtime}) | direct | through Shoal | of it from peers, origin, upstream | a neighbour has it |"
    ));
    note("| --- | --- | --- | --- | --- |");
    for Row { fault, direct, cold, sources, warm } in rows {
        let warm = warm.as_ref().map(Pull::to_string).unwrap_or_default();
        note(format!("| {fault} | {direct} | {cold} | {sources} | {warm} |"));
    }
    let complaints = rows.iter().filter_map(Row::complaint).collect::<Vec<_>>();
    if complaints.is_empty() {
        return Ok(());
    }
    bail!("{}", complaints.join("\n  "));
}

/// Bytes a node received, by where they came from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sources {
    peers: u64,
    origin: u64,
    upstream: u64,
}

impl Sources {
    pub(crate) fn of(cluster: &Cluster, index: usize) -> Result<Self> {
        let node = &cluster.agents[index].node;
        let others = cluster.agents.iter().enumerate().filter(|(other, _)| *other != index);
        let peers = others.map(|(_, agent)| node.received_from(&agent.node)).sum::<Result<u64>>()?;
        let upstream = cluster.faulty.as_ref().map_or(cluster.upstream.node(), |faulty| faulty.node());
        Ok(Self { peers, origin: node.received_from(&cluster.origin_node)?, upstream: node.received_from(upstream)? })
    }

    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            peers: self.peers - before.peers,
            origin: self.origin - before.origin,
            upstream: self.upstream - before.upstream,
        }
    }
}

impl fmt::Display for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [peers, origin, upstream] = [self.peers, self.origin, self.upstream].map(|bytes| bytes.div_ceil(10_000));
        let tenths = |hundredths: u64| format!("{}.{:02}", hundredths / 100, hundredths % 100);
        write!(f, "{}, {}, {} MB", tenths(peers), tenths(origin), tenths(upstream))
    }
}
