//! An upstream that is down, silent, slow, cuts, lies, limits or refuses.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use shoal_e2e::cluster::{Cluster, Plan};
use shoal_e2e::faulty::{Fault, Faulty, Part, Rule};
use shoal_e2e::harness::{Bench, note};
use shoal_e2e::image::Recipe;
use shoal_e2e::node::{Link, Rate};
use shoal_e2e::program::FRONT;
use shoal_e2e::registry::HOST;
use shoal_e2e::runtime::{Bounded, Client, Containerd, Docker, DockerOptions, Ended};

use crate::faults::table::{Pull, Row, Sources, conclude};

/// What the links carry: an image takes about a second.
const RATE: Rate = Rate::mbit(40);
/// Faults that are met at the same time, each on nodes of its own.
const LANES: u8 = 4;
const MIB: u64 = 1 << 20;

/// A fault and the name it has in the table.
struct Cell {
    name: &'static str,
    fault: Trouble,
    /// Whether the pull is tried as well while a neighbour has the image.
    warm: bool,
}

/// What is wrong with the upstream.
#[derive(Clone, Copy)]
enum Trouble {
    Nothing,
    /// With one repository.
    There(Rule),
    /// It takes no connection.
    Down,
    /// It takes none any more after a part of the image.
    GoesDown,
}

const fn cell(name: &'static str, fault: Fault, part: Part, times: Option<u32>) -> Cell {
    Cell { name, fault: Trouble::There(Rule { fault, part, times }), warm: false }
}

const fn warm(cell: Cell) -> Cell {
    Cell { warm: true, ..cell }
}

/// Faults of a repository, which disturb no other.
const CELLS: [Cell; 19] = [
    warm(cell("silent", Fault::Silence, Part::All, None)),
    warm(cell("silent in mid-blob", Fault::Stall(MIB), Part::Blobs, None)),
    warm(cell("1 byte/s in mid-blob", Fault::Trickle(MIB), Part::Blobs, None)),
    cell("silent in mid-blob, once", Fault::Stall(MIB), Part::Blobs, Some(1)),
    cell("1 byte/s in mid-blob, once", Fault::Trickle(MIB), Part::Blobs, Some(1)),
    warm(Cell { name: "none", fault: Trouble::Nothing, warm: false }),
    cell("cuts in mid-blob, once", Fault::Cut(MIB), Part::Blobs, Some(1)),
    cell("cuts every MiB", Fault::Cut(MIB), Part::Blobs, None),
    cell("declares more than it sends, once", Fault::DeclareMore(1000), Part::Blobs, Some(1)),
    cell("declares more than it sends", Fault::DeclareMore(1000), Part::Blobs, None),
    cell("declares and sends too little, once", Fault::DeclareLess(1000), Part::Blobs, Some(1)),
    cell("wrong bytes, once", Fault::Corrupt, Part::Blobs, Some(1)),
    cell("wrong bytes", Fault::Corrupt, Part::Blobs, None),
    cell("wrong manifests", Fault::Corrupt, Part::Manifests, None),
    warm(cell("500", Fault::Status(500, None), Part::All, None)),
    cell("500, once", Fault::Status(500, None), Part::All, Some(1)),
    cell("401", Fault::Status(401, None), Part::All, None),
    cell("404 for blobs", Fault::Status(404, None), Part::Blobs, None),
    cell("tokens that end after a second", Fault::Tokens(Duration::from_secs(1)), Part::All, None),
];

/// Faults of the whole upstream: one after another.
const ALONE: [Cell; 4] = [
    warm(Cell { name: "down", fault: Trouble::Down, warm: false }),
    Cell { name: "goes down in mid-pull", fault: Trouble::GoesDown, warm: false },
    cell("429 for a second, once", Fault::Status(429, Some(1)), Part::Manifests, Some(1)),
    warm(cell("429", Fault::Status(429, Some(3)), Part::All, None)),
];

/// A node with an agent and one without, and what pulls on them.
struct Lane<C> {
    /// Of the agent.
    index: usize,
    through: C,
    direct: C,
}

/// What the lanes share.
struct Field<'a, C> {
    bench: &'a Bench,
    cluster: &'a Cluster,
    faulty: &'a Faulty,
    /// On a node of its own, with an agent.
    neighbour: &'a C,
    /// What references begin with, and what stands before the repository there.
    registry: &'static str,
    images: AtomicUsize,
}

impl<C: Bounded> Field<'_, C> {
    /// Pushes an image that nobody has; gives its repository.
    fn fresh(&self) -> Result<String> {
        let number = self.images.fetch_add(1, Ordering::Relaxed);
        let image = self.bench.image(&Recipe::Random { layers_mib: vec![3, 1], seed: 9_000 + number as u64 })?;
        let repository = format!("fault/app{number}");
        self.cluster.upstream.push(&image, &repository, "1")?;
        Ok(repository)
    }

    fn reference(&self, repository: &str) -> String {
        format!("{}/{repository}:1", self.registry)
    }

    /// Makes the trouble, pulls, and ends the trouble if others would meet it.
    fn pull(&self, client: &C, trouble: Trouble, repository: &str) -> Result<Pull> {
        let reference = self.reference(repository);
        match trouble {
            Trouble::Nothing => Pull::of(client, &reference),
            Trouble::There(rule) => {
                self.faulty.set(repository, rule);
                Pull::of(client, &reference)
            }
            Trouble::Down => {
                self.faulty.set_down(true)?;
                let pulled = Pull::of(client, &reference);
                self.faulty.set_down(false)?;
                pulled
            }
            Trouble::GoesDown => {
                let received = client.node().traffic()?.received_bytes;
                std::thread::scope(|scope| {
                    let pulling = scope.spawn(|| Pull::of(client, &reference));
                    super::parts::wait_received(client.node(), received + MIB)?;
                    self.faulty.set_down(true)?;
                    let pulled = pulling.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                    self.faulty.set_down(false)?;
                    pulled
                })
            }
        }
    }

    /// Lets the neighbour pull an image while all is well; gives its repository.
    fn filled(&self) -> Result<String> {
        let repository = self.fresh()?;
        let filled = Pull::of(self.neighbour, &self.reference(&repository))?;
        ensure!(filled.ended == Ended::Pulled, "the neighbour's own pull: {:?}", filled.ended);
        Ok(repository)
    }

    fn row(&self, lane: &Lane<C>, cell: &Cell) -> Result<Row> {
        let (direct, cold) = (self.fresh()?, self.fresh()?);
        let held = if cell.warm { Some(self.filled()?) } else { None };
        let before = Sources::of(self.cluster, lane.index)?;
        let is_alone = matches!(cell.fault, Trouble::Down | Trouble::GoesDown);
        let (direct, cold) = if is_alone {
            (self.pull(&lane.direct, cell.fault, &direct)?, self.pull(&lane.through, cell.fault, &cold)?)
        } else {
            std::thread::scope(|scope| -> Result<_> {
                let direct = scope.spawn(|| self.pull(&lane.direct, cell.fault, &direct));
                let cold = self.pull(&lane.through, cell.fault, &cold)?;
                Ok((direct.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?, cold))
            })?
        };
        let sources = Sources::of(self.cluster, lane.index)?.since(before);
        let warm = match held {
            Some(repository) => Some(self.pull(&lane.through, cell.fault, &repository)?),
            None => None,
        };
        Ok(Row { fault: cell.name, direct, cold, sources, warm })
    }
}

pub(crate) fn containerd(bench: &Bench) -> Result<()> {
    let first = bench.image(&Recipe::Random { layers_mib: vec![1], seed: 8_999 })?;
    let plan = Plan { faulty: true, ..Plan::equal(LANES + 1, RATE) };
    let mut cluster = Cluster::start(bench, plan, &first, "first/app")?;
    let agent = format!("http://{FRONT}");
    let mut lanes = Vec::new();
    for index in 0..usize::from(LANES) {
        let plain = cluster.add_node(&format!("d{index}"), Link::symmetric(RATE))?;
        let through = Containerd::start_with_mirrors(&cluster.agents[index].node, HOST, &[&agent])?;
        lanes.push(Lane { index, through, direct: Containerd::start_with_mirrors(&plain, HOST, &[])? });
    }
    let neighbour = Containerd::start_with_mirrors(&cluster.agents[usize::from(LANES)].node, HOST, &[&agent])?;
    let faulty = cluster.faulty.as_ref().context("the plan says so")?;
    let images = AtomicUsize::new(0);
    let field = Field { bench, cluster: &cluster, faulty, neighbour: &neighbour, registry: HOST, images };
    let rows = all(&field, &lanes, &CELLS, &ALONE)?;
    conclude("containerd", &rows)?;
    check_answer_times(&field, &lanes[0])
}

/// Fills the table: first what lanes can meet side by side, then the rest.
fn all<C: Bounded>(field: &Field<'_, C>, lanes: &[Lane<C>], cells: &[Cell], alone: &[Cell]) -> Result<Vec<Row>> {
    let (next, rows) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        let workers = lanes.iter().map(|lane| {
            scope.spawn(|| -> Result<()> {
                while let Some(cell) = cells.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let row = field.row(lane, cell).with_context(|| cell.name)?;
                    rows.lock().unwrap_or_else(PoisonError::into_inner).push(row);
                }
                Ok(())
            })
        });
        let workers = workers.collect::<Vec<_>>();
        let ended = workers.into_iter().map(|worker| worker.join().unwrap_or_else(|e| std::panic::resume_unwind(e)));
        ended.collect::<Result<()>>()
    })?;
    let mut rows = rows.into_inner().unwrap_or_else(PoisonError::into_inner);
    rows.sort_by_key(|row| cells.iter().position(|cell| cell.name == row.fault));
    for cell in alone {
        rows.push(field.row(&lanes[0], cell).with_context(|| cell.name)?);
    }
    Ok(rows)
}

/// However silent the upstream is, the agent itself answers with an error within five seconds.
fn check_answer_times(field: &Field<'_, Containerd>, lane: &Lane<Containerd>) -> Result<()> {
    let repository = field.fresh()?;
    field.faulty.set(&repository, Rule { fault: Fault::Silence, part: Part::All, times: None });
    let node = lane.through.node();
    let absent = format!("sha256:{}", "0".repeat(64));
    for what in ["manifests/1".to_owned(), format!("manifests/{absent}"), "tags/list".to_owned()] {
        let url = format!("http://{FRONT}/v2/{repository}/{what}?ns={HOST}");
        let told = node.run("curl", &["-s", "-o", "/dev/null", "-w", "%{http_code} %{time_total}", &url])?;
        note(format!("{what} of a silent upstream: {told} s"));
        let (status, seconds) = told.split_once(' ').context("status and time")?;
        ensure!(status == "503" && seconds.parse::<f64>()? < 5.0, "{what}: {told} s");
    }
    Ok(())
}

pub(crate) fn dockerd(bench: &Bench) -> Result<()> {
    let first = bench.image(&Recipe::Random { layers_mib: vec![1], seed: 8_999 })?;
    let plan = Plan { faulty: true, docker_hub: true, ..Plan::equal(2, RATE) };
    let mut cluster = Cluster::start(bench, plan, &first, "library/app")?;
    let plain = cluster.add_node("d0", Link::symmetric(RATE))?;
    let ca = cluster.identity.as_ref().map(|identity| identity.ca.clone());
    let direct = DockerOptions { ca, download_attempts: Some(2), ..Default::default() };
    let mirrored = DockerOptions { mirror: Some(format!("http://{FRONT}")), ..direct.clone() };
    let through = Docker::start(&cluster.agents[0].node, &mirrored)?;
    let lane = Lane { index: 0, through, direct: Docker::start(&plain, &direct)? };
    let neighbour = Docker::start(&cluster.agents[1].node, &mirrored)?;
    let faulty = cluster.faulty.as_ref().context("the plan says so")?;
    let images = AtomicUsize::new(100);
    let field = Field { bench, cluster: &cluster, faulty, neighbour: &neighbour, registry: "docker.io", images };
    let cells = [
        Cell { name: "none", fault: Trouble::Nothing, warm: true },
        warm(cell("500", Fault::Status(500, None), Part::All, None)),
        cell("404 for blobs", Fault::Status(404, None), Part::Blobs, None),
        cell("cuts in mid-blob, once", Fault::Cut(MIB), Part::Blobs, Some(1)),
        cell("wrong bytes, once", Fault::Corrupt, Part::Blobs, Some(1)),
        warm(Cell { name: "down", fault: Trouble::Down, warm: false }),
        warm(cell("429", Fault::Status(429, Some(3)), Part::All, None)),
    ];
    conclude("dockerd", &all(&field, &[lane], &cells, &[])?)
}
