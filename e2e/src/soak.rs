//! `make soak`: eight nodes pull random images for half an hour, while stores are far too small for them and parts of Shoal are killed
//! and come back. No pull may fail, nothing may end by itself, and those that live all the time may not grow. Called by the program
//! `soak`.
//!
//! [`images`] draws the images from the seed and [`cast`] has the parts; [`chaos`] alone starts and ends them. [`pulls`] is what each
//! node's containerd does, [`watch`] looks at all processes every few seconds, and [`report`] says what came of it. The seed draws
//! images, pulls and kills, not when they happen.

mod cast;
mod chaos;
mod images;
mod journal;
mod pulls;
mod report;
mod watch;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::harness;
use crate::lab::Lab;
use crate::node::Link;
use crate::process::run as run_here;
use crate::registry::{HOST, Registry};
use crate::runtime::Containerd;
use cast::Cast;
use chaos::Chaos;
use images::Images;
use journal::Journal;
use report::Report;

/// Nodes that pull.
const NODES: u8 = 8;

/// Pulls random images on eight nodes, with small stores, while parts of Shoal are killed. Needs root, and 3 GB of disk.
#[derive(Debug, Parser)]
#[command(name = "make soak")]
struct Args {
    /// How long, in minutes.
    #[arg(long, default_value_t = 30)]
    minutes: u64,
    /// What images, pulls and kills are drawn from. Default: another one each time.
    #[arg(long)]
    seed: Option<u64>,
}

/// Runs what the command line asks for; it fails when a promise was broken.
#[must_use]
#[expect(clippy::print_stderr, reason = "this is the command line of the soak")]
pub fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "this is the soak's output")]
fn run(args: &Args) -> Result<bool> {
    if let Some(refusal) = harness::prepare_machine(&[]) {
        bail!(refusal);
    }
    let seed = args.seed.unwrap_or_else(|| rand::random::<u32>().into());
    let mut lab = Lab::new(&harness::state_dir().join("soak"))?;
    println!("seed {seed}, {} minutes; logs of all processes: {}", args.minutes, lab.dir().display());
    let journal = Journal::start(lab.dir())?;
    let upstream_node = lab.add_node("upstream", Link::default())?;
    lab.add_alias(HOST, &upstream_node)?;
    let registry = Registry::start(&upstream_node, None)?;
    let images = Images::draw(seed, &lab.dir().join("images"))?;
    images.push(&registry)?;
    run_here("rm", ["-r".as_ref(), lab.dir().join("images").as_os_str()])?;
    journal.say(format_args!("{}", images.describe()));
    let cast = Cast::gather(&mut lab)?;
    let mut chaos = Chaos::begin(&cast, &journal, seed)?;
    let containerds = cast.nodes().map(pulls::containerd).collect::<Result<Vec<Containerd>>>()?;

    let (start, done) = (Instant::now(), AtomicBool::new(false));
    let until = start + Duration::from_secs(args.minutes * 60);
    let (pulls, watched) = std::thread::scope(|scope| {
        let watching = scope.spawn(|| watch::watch(&cast, &registry, &journal, start, &done));
        let pulling = containerds.iter().zip(seed..).map(|(containerd, seed)| {
            let (images, journal) = (&images, &journal);
            scope.spawn(move || pulls::pull_until(containerd, images, journal, seed, start, until))
        });
        let pulling = pulling.collect::<Vec<_>>();
        let killing = scope.spawn(|| chaos.run(until));
        let pulls = pulling.into_iter().map(|node| node.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
        let pulls = pulls.collect::<Result<Vec<_>>>();
        let killed = killing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        done.store(true, Ordering::Relaxed);
        let watched = watching.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        killed.context("the one who kills")?;
        Ok::<_, anyhow::Error>((pulls?.concat(), watched?))
    })?;
    let report = Report::new(&cast, &images, &registry, pulls, watched, chaos.deeds(), start.elapsed())?;
    println!("\n{report}");
    Ok(report.failures().is_empty())
}
