//! What the containerd of a node does: pulls an image by its agent, with the registry as the next host, shows that all of it is there,
//! and forgets it. A pull is one run of `ctr`, which is never repeated.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use sha2::{Digest as _, Sha256};

use super::images::Images;
use super::journal::Journal;
use crate::image::{Image, hex};
use crate::node::{Node, TIMED_OUT};
use crate::program::FRONT;
use crate::registry::HOST;
use crate::runtime::{Client as _, Containerd};

/// Between two pulls of a node.
const REST_MS: std::ops::RangeInclusive<u64> = 0..=4_000;
/// A pull that takes longer counts as hung.
const DEADLINE: Duration = Duration::from_secs(120);

/// A pull.
#[derive(Debug, Clone)]
pub(super) struct Pull {
    pub(super) node: String,
    pub(super) reference: String,
    /// When it began, in seconds of the run.
    pub(super) at: f64,
    pub(super) seconds: f64,
    pub(super) bytes: u64,
    /// What went wrong.
    pub(super) failure: Option<String>,
}

/// Starts the containerd of a node as docs/install.md sets it up.
pub(super) fn containerd(node: &Arc<Node>) -> Result<Containerd> {
    Containerd::start_with_mirrors(node, HOST, &[&format!("http://{FRONT}")])
}

/// Pulls one image after the other.
pub(super) fn pull_until(
    containerd: &Containerd,
    images: &Images,
    journal: &Journal,
    seed: u64,
    start: Instant,
    until: Instant,
) -> Result<Vec<Pull>> {
    let (mut random, mut pulls) = (StdRng::seed_from_u64(seed), Vec::new());
    let node = containerd.node().name();
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(random.random_range(REST_MS)));
        let (image, reference) = images.choose(&mut random);
        let began = Instant::now();
        let failure = pull(containerd, image, &reference).err().map(|error| format!("{error:#}"));
        let seconds = began.elapsed().as_secs_f64();
        match &failure {
            None => journal.note(format_args!("{node} pulled {reference} in {seconds:.2} s")),
            Some(why) => journal.say(format_args!("{node} FAILED to pull {reference} after {seconds:.2} s: {why}")),
        }
        let at = (began - start).as_secs_f64();
        let node = node.to_owned();
        if failure.is_none() {
            forget(containerd, &reference).with_context(|| format!("forget {reference} on {node}"))?;
        }
        pulls.push(Pull { node, reference, at, seconds, bytes: image.length(), failure });
    }
    Ok(pulls)
}

fn pull(containerd: &Containerd, image: &Image, reference: &str) -> Result<()> {
    let mut fetch = containerd.fetch_within(DEADLINE, reference);
    let ended = fetch.stdin(Stdio::null()).output().context("start ctr")?;
    ensure!(ended.status.code() != Some(TIMED_OUT), "hung");
    ensure!(ended.status.success(), "ctr, {}: {}", ended.status, String::from_utf8_lossy(&ended.stderr).trim());
    let blobs = blobs(containerd);
    for (digest, length) in image.blobs().map(|blob| (&blob.digest, Some(blob.length))).chain([(&image.digest, None)]) {
        check(&blobs, digest, length).with_context(|| format!("ctr was content, but {digest}"))?;
    }
    Ok(())
}

/// Hashes what containerd holds.
fn check(blobs: &Path, digest: &str, length: Option<u64>) -> Result<()> {
    let content = fs::read(blobs.join(digest.trim_start_matches("sha256:")))?;
    ensure!(length.is_none_or(|length| length == content.len() as u64), "has {} bytes", content.len());
    let found = hex(Sha256::digest(&content).as_slice());
    ensure!(digest == format!("sha256:{found}"), "has the content of {found}");
    Ok(())
}

/// Removes an image, and shows that nothing is left by which the next pull would be less than one.
fn forget(containerd: &Containerd, reference: &str) -> Result<()> {
    containerd.remove(reference)?;
    let left = fs::read_dir(blobs(containerd))?.count();
    ensure!(left == 0, "{left} blobs are left");
    Ok(())
}

fn blobs(containerd: &Containerd) -> std::path::PathBuf {
    containerd.content().join("blobs/sha256")
}
