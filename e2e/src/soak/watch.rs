//! Looks at every process of Shoal while it lives: memory, file descriptors, threads; at what stores hold; at what has left the
//! registry. Reads /proc, the parts' metrics and the registry's log only.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::cast::{Cast, Kind, Part};
use super::journal::Journal;
use crate::cluster::disk_bytes;
use crate::registry::Registry;
use crate::usage::{anon_bytes, open_files, threads, to_f64};

/// How often processes are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// Parts are asked what they count every so many looks.
const ASK_EVERY: u32 = 4;
/// The registry's log is read every so many looks.
const READ_EVERY: u32 = 20;

/// What was seen.
#[derive(Debug, Default)]
pub(super) struct Watched {
    pub(super) samples: Vec<Sample>,
    pub(super) stores: Vec<Store>,
}

/// A process at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    /// Index of its part.
    pub(super) part: usize,
    /// Seconds of the run.
    pub(super) at: f64,
    /// Seconds since it was started.
    pub(super) age: f64,
    pub(super) anon_bytes: u64,
    pub(super) open_files: u64,
    pub(super) threads: u64,
}

/// A store at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Store {
    /// Index of its part.
    pub(super) part: usize,
    /// What the part says that it holds.
    pub(super) held_bytes: f64,
    /// What its files take on the disk.
    pub(super) disk_bytes: u64,
}

/// Looks until it is told that all is done.
pub(super) fn watch(
    cast: &Cast,
    registry: &Registry,
    journal: &Journal,
    start: Instant,
    done: &AtomicBool,
) -> Result<Watched> {
    let mut file = BufWriter::new(File::create(journal.dir().join("samples.csv"))?);
    writeln!(file, "seconds,part,life,age_seconds,anon_bytes,open_files,threads")?;
    let mut watched = Watched::default();
    for look in 0.. {
        let began = Instant::now();
        for (index, part) in cast.parts.iter().enumerate() {
            if let Some((sample, life)) = sample(part, index, start) {
                let Sample { at, age, anon_bytes, open_files, threads, .. } = sample;
                writeln!(file, "{at:.1},{part},{life},{age:.1},{anon_bytes},{open_files},{threads}")?;
                watched.samples.push(sample);
            }
        }
        let last = done.load(Ordering::Relaxed);
        if look % ASK_EVERY == 0 || last {
            for (index, part) in cast.parts.iter().enumerate() {
                watched.stores.extend(ask(part, index, journal));
            }
        }
        if look % READ_EVERY == 0 || last {
            let fetched = registry.fetched()?;
            let bytes = fetched.iter().map(|fetched| fetched.bytes).sum();
            let (count, mb) = (fetched.len(), to_f64(bytes) / 1e6);
            journal.say(format_args!(
                "{:.0} s: the registry has sent {count} bodies of blobs, {mb:.0} MB",
                start.elapsed().as_secs_f64()
            ));
        }
        if last {
            break;
        }
        std::thread::sleep(LOOK_EVERY.saturating_sub(began.elapsed()));
    }
    Ok(watched)
}

fn sample(part: &Part, index: usize, start: Instant) -> Option<(Sample, u32)> {
    let life = part.life()?;
    let sample = Sample {
        part: index,
        at: start.elapsed().as_secs_f64(),
        age: life.since.elapsed().as_secs_f64(),
        anon_bytes: anon_bytes(life.pid)?,
        open_files: open_files(life.pid)?,
        threads: threads(life.pid)?,
    };
    Some((sample, life.number))
}

/// Has a part say what it counts; gives what its store holds.
fn ask(part: &Part, index: usize, journal: &Journal) -> Option<Store> {
    let life = part.life()?;
    match part.ask() {
        Ok(counts) => {
            let held = match part.kind {
                Kind::Tracker => return None,
                Kind::Origin => "shoal_origin_store_bytes",
                Kind::Agent => "shoal_agent_cache_bytes",
            };
            let disk_bytes = disk_bytes(&part.store()).ok()?;
            Some(Store { part: index, held_bytes: *counts.get(held)?, disk_bytes })
        }
        // Who was killed meanwhile cannot answer.
        Err(error) if part.life().is_some_and(|now| now.number == life.number) => {
            journal.note(format_args!("{part} does not say what it counts: {error:#}"));
            None
        }
        Err(_) => None,
    }
}
