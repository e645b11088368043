//! `make bench`: systems that distribute images, side by side in one run, on links shaped to the same rate. Called by the
//! program `shoal-bench`.
//!
//! For each [`case`] and each [`system`] a fresh lab is made; the system is started empty, [`pull`] pulls on all nodes at
//! once, [`meter`] says what it cost, and a [`row`] holds it against the fluid bound. [`table`] prints the rows.
//!
//! Bytes from the registry are those of its access log; other bytes are those of the kernel's counters of each node's link,
//! headers included; what was received twice is known to the system alone.

mod args;
mod case;
mod meter;
mod pull;
mod row;
mod system;
mod table;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser as _;

use crate::harness;
use crate::image::Image;
use crate::lab::Lab;
use crate::registry::{HOST, Registry};
use crate::usage::to_f64;
use args::Args;
use case::{Case, Start};
use meter::Meter;
use pull::pull_at_once;
use row::{Row, copies};
use system::{Ground, Kind, Running};

/// The image's name in the registry.
const NAME: &str = "library/bench";
const TAG: &str = "1";
/// A run may take this many times as long as when every node pulled straight from the registry, one after another.
const PATIENCE: f64 = 3.0;

/// Runs what the command line asks for.
#[must_use]
#[expect(clippy::print_stderr, reason = "this is the command line of the benchmark")]
pub fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    if let Some(refusal) = harness::prepare_machine(&["nginx:nginx"]) {
        bail!(refusal);
    }
    let systems = args.systems().into_iter().filter(|system| is_here(*system)).collect::<Vec<_>>();
    let mut tables = String::new();
    for case in args.cases() {
        let image = harness::image(&case.recipe())?;
        let (mut rows, mut direct) = (Vec::new(), None);
        for system in systems_of(case, &systems) {
            say(format_args!("measuring {} in {case}", system.name()));
            match measure(system, case, &image).with_context(|| format!("failed: {} in {case}", system.name())) {
                Ok(row) => {
                    if case.start == Start::Alone && system == Kind::Registry {
                        direct = row.direct();
                    }
                    if args.json {
                        print(&format!("{}\n", row.json(direct)));
                    }
                    rows.push(row);
                }
                Err(error) => say(format_args!("{error:#}")),
            }
        }
        let table = table::table(&rows, direct);
        if !args.json {
            print(&table);
        }
        tables += &table;
    }
    if args.write {
        table::write_into(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/benchmarks.md"), &tables)?;
    }
    Ok(())
}

/// The systems that have something to show in a case. A pull alone is held against one straight from the registry.
fn systems_of(case: Case, chosen: &[Kind]) -> Vec<Kind> {
    let mut systems = chosen.to_vec();
    match case.start {
        Start::Cold => {}
        Start::Warm => systems.retain(|system| system.warms()),
        Start::Alone => {
            systems.retain(|system| *system != Kind::Registry);
            systems.insert(0, Kind::Registry);
        }
    }
    systems
}

fn is_here(system: Kind) -> bool {
    let missing = system.needs().iter().find(|command| !harness::on_path(command));
    if let Some(missing) = missing {
        say(format_args!("skipped: {} ({missing} not on PATH)", system.name()));
    }
    missing.is_none()
}

/// One system in one case, from an empty lab.
fn measure(system: Kind, case: Case, image: &Image) -> Result<Row> {
    let mut lab = Lab::new(&harness::state_dir().join("bench"))?;
    let upstream_node = lab.add_node("upstream", case.link())?;
    lab.add_alias(HOST, &upstream_node)?;
    let upstream = Registry::start(&upstream_node, None)?;
    upstream.push(image, NAME, TAG)?;
    let names = (1..=case.nodes).map(|number| format!("n{number}"));
    let nodes = names.map(|name| lab.add_node(&name, case.link())).collect::<Result<Vec<_>>>()?;
    let mut ground = Ground { lab, upstream, nodes, link: case.link() };
    let running = system.start(&mut ground)?;
    let patience = Duration::from_secs_f64(60.0 + PATIENCE * f64::from(case.nodes) * case.bound(image));
    if case.start == Start::Warm {
        warm(&running, image, patience)?;
    }

    let fetched =
        |registry: &Registry| Ok::<_, anyhow::Error>(registry.fetches()?.values().map(|f| f.bytes).sum::<u64>());
    let fetched_before = fetched(&ground.upstream)?;
    let servers = [Some(&upstream_node), running.origin.as_ref()].into_iter().flatten();
    let meter = Meter::start(ground.nodes.iter().chain(servers).map(Arc::clone).collect())?;
    let results = pull_at_once(&running.fronts, image, patience);
    let cost = meter.stop()?;
    let (pulls, failures): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    let origin = running.origin.as_ref().and_then(|_| cost.nodes.last());
    Ok(Row {
        system: system.name(),
        case,
        bound: case.bound(image),
        image_bytes: image.length(),
        pulls: pulls.into_iter().flatten().collect(),
        failures: failures.into_iter().filter_map(Result::err).collect(),
        upstream_copies: copies(fetched(&ground.upstream)? - fetched_before, image),
        origin_copies: origin.map(|origin| copies(origin.traffic.sent_bytes, image)),
        twice: twice(&ground, &running)?,
        cost,
    })
}

/// Fills the system's own server.
fn warm(running: &Running, image: &Image, patience: Duration) -> Result<()> {
    let front = running.warm.as_ref().context("it has no server to warm")?;
    for pulled in pull_at_once(std::slice::from_ref(front), image, patience) {
        pulled.context("warm the system's server")?;
    }
    Ok(())
}

/// The share of all payload that was received for nothing.
fn twice(ground: &Ground, running: &Running) -> Result<Option<f64>> {
    let Some(payload) = running.payload else { return Ok(None) };
    let (mut kept, mut wasted) = (0, 0);
    for node in &ground.nodes {
        let of_node = payload(node)?;
        kept += of_node.kept;
        wasted += of_node.wasted;
    }
    Ok(Some(to_f64(wasted) / to_f64((kept + wasted).max(1))))
}

#[expect(clippy::print_stdout, reason = "this is the benchmark's output")]
fn print(text: &str) {
    print!("{text}");
}

/// Tells what goes on, beside the output.
#[expect(clippy::print_stderr, reason = "this is the benchmark's progress")]
fn say(what: std::fmt::Arguments<'_>) {
    eprintln!("{what}");
}
