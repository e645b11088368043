//! Shoal's own parts killed, frozen, cut off or out of disk, while the upstream is well.

use anyhow::{Result, ensure};
use shoal_e2e::cluster::{Cluster, Plan};
use shoal_e2e::harness::Bench;
use shoal_e2e::image::{Image, Recipe};
use shoal_e2e::node::{Link, Node, Rate};
use shoal_e2e::program::{FRONT, store_dir};
use shoal_e2e::registry::HOST;
use shoal_e2e::runtime::{Containerd, Ended};
use shoal_e2e::wait::wait_until;

use crate::faults::table::{DEADLINE, Pull, Row, Sources, conclude};

/// Slow enough that an image takes some seconds, so there is a middle.
const RATE: Rate = Rate::mbit(24);
/// A disk too small for the larger layer.
const SMALL_DISK: &str = "size=4m";
/// A disk that has room for an image, until others fill it.
const DISK: &str = "size=24m";

type Deed = fn(&mut Cluster) -> Result<()>;

/// What is done to a cluster, and undone.
struct Cell {
    name: &'static str,
    before: Deed,
    /// When a third of the image is on the node.
    meanwhile: Option<Deed>,
    after: Deed,
    /// Whether the two neighbours have the image.
    warm: bool,
}

const NOTHING: Deed = |_| Ok(());
const TRACKER_BACK: Deed = Cluster::restart_tracker;
const ORIGIN_BACK: Deed = Cluster::restart_origin;
const AGENT_BACK: Deed = |cluster| cluster.restart_agent(0);
const NEIGHBOURS_BACK: Deed = |cluster| {
    cluster.agent(2).freeze(false)?;
    cluster.restart_agent(1)
};

const fn before(name: &'static str, before: Deed, after: Deed) -> Cell {
    Cell { name, before, meanwhile: None, after, warm: false }
}

const fn meanwhile(name: &'static str, meanwhile: Deed, after: Deed) -> Cell {
    Cell { name, before: NOTHING, meanwhile: Some(meanwhile), after, warm: false }
}

const CELLS: [Cell; 14] = [
    before("none", NOTHING, NOTHING),
    before("tracker down", |cluster| cluster.tracker.kill_dash_9(), TRACKER_BACK),
    meanwhile("tracker killed in mid-pull", |cluster| cluster.tracker.kill_dash_9(), TRACKER_BACK),
    before("tracker black-holed", |cluster| cluster.tracker.freeze(true), |cluster| cluster.tracker.freeze(false)),
    before("origin down", |cluster| cluster.origin.kill_dash_9(), ORIGIN_BACK),
    meanwhile("origin killed in mid-pull", |cluster| cluster.origin.kill_dash_9(), ORIGIN_BACK),
    before("origin black-holed", |cluster| cluster.origin.freeze(true), ORIGIN_BACK),
    meanwhile("origin black-holed in mid-pull", |cluster| cluster.origin.freeze(true), ORIGIN_BACK),
    Cell { warm: true, ..meanwhile("peers killed and black-holed in mid-pull", peers_are_lost, NEIGHBOURS_BACK) },
    Cell {
        warm: true,
        ..meanwhile("peers, tracker and origin lost in mid-pull", all_are_lost, |cluster| {
            TRACKER_BACK(cluster)?;
            ORIGIN_BACK(cluster)?;
            NEIGHBOURS_BACK(cluster)
        })
    },
    before("agent's disk too small", |cluster| give_disk(cluster, SMALL_DISK), take_disk),
    Cell {
        before: |cluster| give_disk(cluster, DISK),
        ..meanwhile("agent's disk filled in mid-pull", fill_disk, take_disk)
    },
    before("agent down", |cluster| cluster.kill_agent(0), AGENT_BACK),
    meanwhile("agent killed in mid-pull", |cluster| cluster.kill_agent(0), AGENT_BACK),
];

fn peers_are_lost(cluster: &mut Cluster) -> Result<()> {
    cluster.agent(2).freeze(true)?;
    cluster.kill_agent(1)
}

fn all_are_lost(cluster: &mut Cluster) -> Result<()> {
    cluster.tracker.kill_dash_9()?;
    cluster.origin.freeze(true)?;
    peers_are_lost(cluster)
}

/// Puts the agent's store on a disk of its own.
fn give_disk(cluster: &mut Cluster, size: &str) -> Result<()> {
    cluster.kill_agent(0)?;
    let node = &cluster.agents[0].node;
    node.run("mount", &["-t", "tmpfs", "-o", size, "tmpfs", &store_dir(node, "agent").to_string_lossy()])?;
    cluster.restart_agent_with(0, "free_floor = \"0B\"\n")
}

fn fill_disk(cluster: &mut Cluster) -> Result<()> {
    let node = &cluster.agents[0].node;
    // It ends when the disk is full, with an error that is meant.
    let fill = format!("dd if=/dev/zero of={}/filled bs=1M 2>/dev/null || true", store_dir(node, "agent").display());
    node.run("sh", &["-c", &fill]).map(drop)
}

fn take_disk(cluster: &mut Cluster) -> Result<()> {
    cluster.kill_agent(0)?;
    let node = &cluster.agents[0].node;
    node.run("umount", &[&store_dir(node, "agent").to_string_lossy()])?;
    cluster.restart_agent(0)
}

/// Waits until a node has received so many bytes since it was made.
pub(crate) fn wait_received(node: &Node, bytes: u64) -> Result<()> {
    let what = format!("{bytes} bytes on {}", node.name());
    wait_until(&what, DEADLINE, || Ok(node.traffic()?.received_bytes >= bytes))
}

pub(crate) fn containerd(bench: &Bench) -> Result<()> {
    let image = |seed| bench.image(&Recipe::Random { layers_mib: vec![6, 2], seed });
    let mut cluster = Cluster::start(bench, Plan::equal(3, RATE), &image(8_000)?, "fault/plain")?;
    let plain = cluster.add_node("d0", Link::symmetric(RATE))?;
    let direct = Containerd::start_with_mirrors(&plain, HOST, &[])?;
    let direct = Pull::of(&direct, &format!("{HOST}/fault/plain:1"))?;
    ensure!(direct.ended == Ended::Pulled, "the direct pull: {:?}", direct.ended);
    let agent = format!("http://{FRONT}");
    let nodes = cluster.agents.iter().map(|agent| agent.node.clone()).collect::<Vec<_>>();
    let clients = nodes.iter().map(|node| Containerd::start_with_mirrors(node, HOST, &[&agent]));
    let clients = clients.collect::<Result<Vec<_>>>()?;
    let mut rows = Vec::new();
    for (seed, cell) in (8_001..).zip(&CELLS) {
        let (cold, sources) = disturbed(&mut cluster, &clients, cell, &image(seed)?, &format!("fault/part{seed}"))?;
        rows.push(Row { fault: cell.name, direct: direct.clone(), cold, sources, warm: None });
    }
    conclude("containerd", &rows)
}

/// Pulls an image on the first node while the cell's deed is done.
fn disturbed(
    cluster: &mut Cluster,
    clients: &[Containerd],
    cell: &Cell,
    image: &Image,
    name: &str,
) -> Result<(Pull, Sources)> {
    cluster.upstream.push(image, name, "1")?;
    let reference = format!("{HOST}/{name}:1");
    let node = cluster.agents[0].node.clone();
    if cell.warm {
        for neighbour in &clients[1..] {
            let filled = Pull::of(neighbour, &reference)?;
            ensure!(filled.ended == Ended::Pulled, "{}: a neighbour's own pull: {:?}", cell.name, filled.ended);
        }
    }
    (cell.before)(cluster)?;
    let (before, received) = (Sources::of(cluster, 0)?, node.traffic()?.received_bytes);
    let pulled = std::thread::scope(|scope| -> Result<Pull> {
        let pulling = scope.spawn(|| Pull::of(&clients[0], &reference));
        if let Some(deed) = cell.meanwhile {
            wait_received(&node, received + image.length() / 3)?;
            deed(cluster)?;
            ensure!(!pulling.is_finished(), "{}: the pull had ended before", cell.name);
        }
        pulling.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    let sources = Sources::of(cluster, 0)?.since(before);
    (cell.after)(cluster)?;
    Ok((pulled, sources))
}
