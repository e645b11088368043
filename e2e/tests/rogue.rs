//! A peer with an agent's certificate lies in every way it can to a swarm of six: every pull gets its bytes, the liar is cut off
//! where it breaks a rule, and it makes nobody hold more than is promised. Prints the table of docs/security.md.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use shoal_e2e::cluster::{Cluster, Plan, metrics, pull_blob};
use shoal_e2e::harness::{Bench, Test, note};
use shoal_e2e::image::{Blob, Recipe};
use shoal_e2e::node::{Link, Node, Rate};
use shoal_e2e::program::{ADMIN, AGENT_PEER_PORT, ORIGIN_PEER_PORT, TRACKER_PORT, store_dir};
use shoal_e2e::rogue::{Lie, Met, Peer, Place, Rogue};
use shoal_e2e::usage::{Peak, Watch};
use shoal_e2e::wait::wait_until;
use shoal_meta::{PeerId, Role};

pub(crate) const TESTS: &[Test] = &[Test {
    name: "whatever_lies_a_peer_tells_every_pull_gets_its_bytes_and_nobody_holds_more_for_it",
    needs: &["sha256sum"],
    run: lies,
}];

const REPOSITORY: &str = "org/app";
const NODES: u8 = 6;
/// Slow enough that a pull has a midst. The liar has the same link: it is a node like the others.
const RATE: Rate = Rate::mbit(64);
const LAYER_MIB: u64 = 8;
/// How long a pull may take before it counts as hung.
const DEADLINE: Duration = Duration::from_secs(30);
/// How much longer than without a liar a pull may take, in seconds; a busy machine takes most of it. Some are twice as long by
/// themselves: an origin that hears of another seeder no longer sees to it that first copies leave it first.
const SLOWER_MAX: f64 = 10.0;
/// How long those who were lied to may take to hang up.
const CUT_OFF_TIMEOUT: Duration = Duration::from_secs(10);
/// The same where they wait for what does not come, or to be rid of what is not taken, which they do for half a minute.
const STALL_TIMEOUT: Duration = Duration::from_secs(45);
/// Pieces granted and refused in a row after which a peer is given up.
const REFUSALS_MAX: u64 = 8;
/// What a peer can make an agent or origin hold, in bytes: a control frame of 256 KiB as it comes and as it is read, two
/// blocks, 2 MiB of bitfields, 2 MiB of what waits for it, the requests it was granted; and 256 messages in the mailbox, where a
/// list of 4096 blocks takes 48 KiB.
const HELD_MAX: u64 = 18 << 20;
/// What an address can make the tracker hold, in bytes: a sixteenth of the memberships it records, at most 640 each where each
/// torrent has one peer.
const HELD_BY_TRACKER_MAX: u64 = 3_000_000 / 16 * 640;
/// What a peer can make an agent or origin open: dials up to the 50 connections that a node seeks, and its own few.
const FILES_MAX: u64 = 60;

/// What becomes of the liar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Nothing: it broke no rule.
    Stays,
    /// Whoever was lied to hangs up.
    CutOff,
    /// Whoever was lied to hangs up when it has waited for half a minute.
    CutOffInTime,
    /// Whoever believed it hangs up and does not listen to that node any more, whatever it calls itself.
    Banned,
}

#[derive(Debug, Clone, Copy)]
struct Way {
    name: &'static str,
    lie: Lie,
    end: End,
}

const fn way(name: &'static str, lie: Lie, end: End) -> Way {
    Way { name, lie, end }
}

const WAYS: [Way; 16] = [
    way("sends bad pieces", Lie::BadPieces, End::Banned),
    way("has nothing of what it says", Lie::HasNothing, End::CutOff),
    way("has a bitfield that is too long", Lie::BitfieldLength, End::Banned),
    way("has a bitfield with spare bits", Lie::SpareBits, End::Banned),
    way("has a piece out of range", Lie::HaveOutOfRange, End::Banned),
    way("has pieces of unknown torrents", Lie::HaveUnknown, End::Banned),
    way("has the same piece for ever", Lie::HaveRepeated, End::Banned),
    way("never unchokes", Lie::NeverUnchokes, End::Stays),
    way("chokes on each request", Lie::ChokesOnRequest, End::Stays),
    way("sends too long a frame", Lie::OversizedFrame, End::Banned),
    way("names peers that are not there", Lie::PoisonsExchange, End::Banned),
    way("floods its peers", Lie::FloodsPeers, End::Banned),
    way("floods the tracker", Lie::FloodsTracker, End::Stays),
    way("sends a byte at a time", Lie::Drips, End::CutOffInTime),
    way("begins a frame and says no more", Lie::HeaderNeverEnds, End::CutOffInTime),
    way("does not read what it asked for", Lie::NeverReads, End::CutOffInTime),
];

/// Lies that are asked for when no origin answers.
const WAYS_WITHOUT_ORIGIN: [Way; 2] = [
    way("tells hashes without a seal", Lie::UnsealedMetainfo, End::Banned),
    way("tells hashes with a seal of its own", Lie::ForgedMetainfo, End::Banned),
];

struct Row {
    /// `None` where nobody lies.
    way: Option<Way>,
    seconds: f64,
    lies: u64,
    end: String,
    peaks: BTreeMap<String, Peak>,
}

fn lies(bench: &Bench) -> Result<()> {
    let layers_mib = vec![LAYER_MIB; 2 + WAYS.len() + WAYS_WITHOUT_ORIGIN.len()];
    let image = bench.image(&Recipe::Random { layers_mib, seed: 51 })?;
    let plan = Plan { certificates: true, ..Plan::equal(NODES, RATE) };
    let mut cluster = Cluster::start(bench, plan, &image, REPOSITORY)?;
    // A node for each way: who is banned stays out of the next pull as well.
    let mut nodes = (0..WAYS.len() + WAYS_WITHOUT_ORIGIN.len())
        .map(|index| cluster.add_node(&format!("rogue{index}"), Link::symmetric(RATE)))
        .collect::<Result<Vec<_>>>()?
        .into_iter();
    let mut node = || nodes.next().context("a node for each way");
    // The first is busybox.
    let mut layers = image.layers.iter().skip(1);
    let mut next = || layers.next().context("a layer for each way");

    pull_everywhere(&cluster, next()?)?;
    let (honest, peaks) = watched(&cluster, || pull_everywhere(&cluster, next()?))?;
    let mut rows = vec![Row { way: None, seconds: honest.as_secs_f64(), lies: 0, end: String::new(), peaks }];
    let mut waited_for = Vec::new();
    for way in WAYS {
        let origin = Peer { address: (cluster.origin_node.ip(), ORIGIN_PEER_PORT).into(), role: Role::Origin };
        let dialled = agents(&cluster).into_iter().step_by(2).chain([origin]).collect();
        let place = place(&cluster, &node()?, dialled)?;
        let (row, rogue) = lied_to(&cluster, way, next()?, |layer| Rogue::start(&place, layer, way.lie))?;
        if way.end == End::CutOffInTime {
            waited_for.push((rows.len(), rogue));
        }
        rows.push(row);
    }
    for (row, rogue) in waited_for {
        rows[row].end = check_cut_off_in_time(&rogue)?;
    }

    let sealed = [next()?, next()?];
    for layer in sealed {
        let first = &cluster.agents[0].node;
        pull(first, layer)?;
        let (algorithm, hex) = layer.digest.split_once(':').context("a digest")?;
        let seal = store_dir(first, "agent").join(format!("blobs/{algorithm}/{}/{hex}/seal", &hex[..2]));
        wait_until("the origin's seal", CUT_OFF_TIMEOUT, || Ok(seal.exists()))?;
    }
    cluster.origin.kill_dash_9()?;
    for (way, layer) in WAYS_WITHOUT_ORIGIN.into_iter().zip(sealed) {
        // The one who knows better is there, and comes after the liar: who came first is asked first.
        cluster.kill_agent(0)?;
        let place = place(&cluster, &node()?, agents(&cluster).split_off(1))?;
        let rogue = Rogue::start(&place, layer, way.lie)?;
        cluster.restart_agent(0)?;
        rows.push(lied_to(&cluster, way, layer, |_| Ok(rogue))?.0);
    }
    conclude(&rows)
}

fn agents(cluster: &Cluster) -> Vec<Peer> {
    let peer = |node: &Node| Peer { address: (node.ip(), AGENT_PEER_PORT).into(), role: Role::Agent };
    cluster.agents.iter().map(|agent| peer(&agent.node)).collect()
}

fn place(cluster: &Cluster, node: &Arc<Node>, dialled: Vec<Peer>) -> Result<Place> {
    let certificates = cluster.program().certificates("agent").context("certificates")?;
    let tracker = (cluster.tracker_node.ip(), TRACKER_PORT).into();
    Ok(Place { node: Arc::clone(node), certificates, tracker, dialled })
}

/// Pulls a layer on every node while the rogue lies to all of them, and checks what becomes of it by then.
fn lied_to(
    cluster: &Cluster,
    way: Way,
    layer: &Blob,
    start: impl FnOnce(&Blob) -> Result<Rogue>,
) -> Result<(Row, Rogue)> {
    let before = Counts::of(cluster)?;
    let work = || {
        let rogue = start(layer)?;
        let pulled = pull_everywhere(cluster, layer)?;
        Ok((rogue, pulled))
    };
    let ((rogue, pulled), peaks) = watched(cluster, work).context(way.name)?;
    let end = match way.end {
        End::Stays => check_stays(&rogue),
        End::CutOff | End::Banned => check_cut_off(cluster, &rogue, way, &before),
        End::CutOffInTime => Ok(String::new()),
    };
    let end = end.with_context(|| format!("{}: {:?}", way.name, rogue.met()))?;
    let lies = rogue.announced() + rogue.met().values().map(|met| met.lies).sum::<u64>();
    ensure!(lies > 0, "{}: no lie was told", way.name);
    Ok((Row { way: Some(way), seconds: pulled.as_secs_f64(), lies, end, peaks }, rogue))
}

fn check_stays(rogue: &Rogue) -> Result<String> {
    let ended = rogue.met().values().map(|met| met.cut_off).sum::<u32>();
    ensure!(ended == 0, "{ended} connections of one who broke no rule were ended");
    Ok("stays".to_owned())
}

/// Whoever waits for the liar does so for half a minute.
fn check_cut_off_in_time(rogue: &Rogue) -> Result<String> {
    let waiting = || rogue.met().into_values().filter(|met| met.cut_off < met.lied).count();
    wait_until("those who wait for it to hang up", STALL_TIMEOUT, || Ok(waiting() == 0))?;
    let lied_to = rogue.met().into_values().filter(|met| met.lied > 0).count();
    Ok(format!("cut off by {lied_to}, in time"))
}

/// Whoever believed a lie hangs up, and counts it; and, where that is the end, does not listen to that node any more.
fn check_cut_off(cluster: &Cluster, rogue: &Rogue, way: Way, before: &Counts) -> Result<String> {
    let after_pull = Counts::of(cluster)?;
    let took_bad_bytes =
        |address: &IpAddr| after_pull.0.get(address).is_some_and(|after| after.bad_bytes > before.0[address].bad_bytes);
    let believed = |address: &IpAddr, met: &Met| {
        met.lies >= if way.lie == Lie::HasNothing { REFUSALS_MAX } else { 1 }
            // One that came too late was not taken.
            && (way.lie != Lie::BadPieces || took_bad_bytes(address))
    };
    let believers = || rogue.met().into_iter().filter(|(address, met)| believed(address, met)).collect::<Vec<_>>();
    wait_until("those lied to hang up", CUT_OFF_TIMEOUT, || {
        let believers = believers();
        Ok(!believers.is_empty() && believers.iter().all(|(_, met)| met.cut_off > 0))
    })?;
    let (believers, after) = (believers(), Counts::of(cluster)?);
    for peer in agents(cluster) {
        let address = peer.address.ip();
        if !believers.iter().any(|(believer, _)| *believer == address) {
            ensure!(!way.lie.is_told_to_all(), "{address} was not lied to");
            continue;
        }
        ensure!(after.0[&address].violations > before.0[&address].violations, "{address} counts no violation");
        let is_banned = way.end == End::Banned;
        ensure!(rogue.is_heard(peer, PeerId(rand::random()))? != is_banned, "{address}: banned {is_banned}");
        ensure!(!is_banned || !rogue.is_heard(peer, rogue.name())?, "{address} still listens");
    }
    let verb = if way.end == End::Banned { "banned" } else { "cut off" };
    Ok(format!("{verb} by {}", believers.len()))
}

/// What agents count of those who lie, by their addresses.
struct Counts(BTreeMap<IpAddr, Count>);

struct Count {
    violations: u64,
    bad_bytes: u64,
}

impl Counts {
    fn of(cluster: &Cluster) -> Result<Self> {
        let count = |node: &Node| -> Result<Count> {
            let metrics = metrics(node, ADMIN)?;
            let value = |name: &str| -> Result<u64> {
                let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
                line.and_then(|count| count.parse().ok()).with_context(|| format!("no {name}"))
            };
            let bad_bytes = value("shoal_agent_wasted_bytes_total{cause=\"bad_piece\"}")?;
            Ok(Count { violations: value("shoal_agent_violations_total")?, bad_bytes })
        };
        let counts = cluster.agents.iter().map(|agent| Ok((agent.node.ip().into(), count(&agent.node)?)));
        counts.collect::<Result<_>>().map(Self)
    }
}

/// Pulls a layer on every node at once, and checks the bytes; gives how long the last one took.
fn pull_everywhere(cluster: &Cluster, layer: &Blob) -> Result<Duration> {
    let began = Instant::now();
    std::thread::scope(|scope| {
        let pulls: Vec<_> = cluster.agents.iter().map(|agent| scope.spawn(|| pull(&agent.node, layer))).collect();
        pulls.into_iter().try_for_each(|pull| pull.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    Ok(began.elapsed())
}

fn pull(node: &Node, layer: &Blob) -> Result<()> {
    pull_blob(node, REPOSITORY, &layer.digest, DEADLINE)
}

/// Does something, and gives the most that each part had meanwhile.
fn watched<T>(cluster: &Cluster, work: impl FnOnce() -> Result<T>) -> Result<(T, BTreeMap<String, Peak>)> {
    let agents = (0..cluster.agents.len()).map(|index| cluster.agent(index));
    let watch = Watch::start(agents.chain([&cluster.origin, &cluster.tracker]));
    let done = work();
    let peaks = watch.stop();
    Ok((done?, peaks))
}

/// Prints the rows, and fails if a pull was much slower than without a liar, or somebody held more than may be.
fn conclude(rows: &[Row]) -> Result<()> {
    let most = |row: &Row, part: &str, of: fn(&Peak) -> u64| {
        let of_part = row.peaks.iter().filter(|(name, _)| name.starts_with(part));
        of_part.map(|(_, peak)| of(peak)).max().unwrap_or_default()
    };
    note("| a peer that | the last pull ends after | lies | it | agents | origin | tracker |");
    note("| --- | --- | --- | --- | --- | --- | --- |");
    for row in rows {
        let part = |part| {
            let (kib, files) = (most(row, part, |peak| peak.anon_bytes) >> 10, most(row, part, |peak| peak.open_files));
            if files == 0 { String::new() } else { format!("{}.{} MiB, {files}", kib >> 10, ((kib & 1023) * 10) >> 10) }
        };
        let [agents, origin, tracker] = ["agent", "origin", "tracker"].map(part);
        let Row { way, seconds, lies, end, .. } = row;
        let name = way.map_or("does not lie", |way| way.name);
        note(format!("| {name} | {seconds:.1} s | {lies} | {end} | {agents} | {origin} | {tracker} |"));
    }
    let (honest, rest) = rows.split_first().context("the pull without a liar")?;
    for row in rest {
        let way = row.way.context("a way to lie")?;
        let (seconds, seconds_max) = (row.seconds, honest.seconds + SLOWER_MAX);
        ensure!(
            seconds <= seconds_max,
            "{}: {seconds:.1} s, and with nobody who lies {:.1} s",
            way.name,
            honest.seconds
        );
        for part in ["agent", "origin", "tracker"] {
            let held = if part == "tracker" { HELD_BY_TRACKER_MAX } else { HELD_MAX };
            let bytes = most(row, part, |peak| peak.anon_bytes);
            let bytes_max = most(honest, part, |peak| peak.anon_bytes) + held;
            ensure!(bytes <= bytes_max, "{}: {part} holds {bytes} bytes, and {bytes_max} may be", way.name);
            let files = most(row, part, |peak| peak.open_files);
            let files_max = most(honest, part, |peak| peak.open_files) + FILES_MAX;
            ensure!(files <= files_max, "{}: {part} has {files} files open, and {files_max} may be", way.name);
        }
    }
    Ok(())
}
