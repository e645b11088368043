//! Runs the tests one after another and counts passed, failed and skipped. The standard harness has no word for "skipped",
//! and a test that could not run must never count as passed. Called by the test program's `main`.

use std::any::Any;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Error, Result};

use crate::image::{Image, Recipe};
use crate::lab::Lab;
use crate::process::{output, run};

/// Commands that every test needs.
const NEEDS: [&str; 7] = ["docker-registry", "skopeo", "curl", "ip", "tc", "iptables", "openssl"];

/// One test. It fails by an error or a panic.
#[derive(Debug, Clone, Copy)]
pub struct Test {
    /// The fact it shows.
    pub name: &'static str,
    /// Commands without which it is skipped, beside those that every test needs.
    pub needs: &'static [&'static str],
    /// Shows it.
    pub run: fn(&Bench) -> Result<()>,
}

/// What a test works with.
#[derive(Debug)]
pub struct Bench {
    state: PathBuf,
    test: &'static str,
    skipped: Mutex<usize>,
}

/// The error of a test that cannot run on this machine: it counts as skipped.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Skip(
    /// Why.
    pub String,
);

impl Bench {
    /// Makes the lab of this test: see [`Lab::new`].
    ///
    /// # Errors
    /// As [`Lab::new`].
    pub fn lab(&self) -> Result<Lab> {
        Lab::new(&self.test_dir())
    }

    /// Builds an image, or finds it from an earlier test.
    ///
    /// # Errors
    /// As [`Image::build`].
    pub fn image(&self, recipe: &Recipe) -> Result<Image> {
        image(recipe)
    }

    /// Counts parts of this test that cannot run on this machine as skipped, beside what becomes of the rest, and says why.
    pub fn skip(&self, parts: usize, what: &str, reason: &str) {
        note(format!("SKIPPED {parts}: {what}: {reason}"));
        *self.skipped.lock().unwrap_or_else(PoisonError::into_inner) += parts;
    }

    fn test_dir(&self) -> PathBuf {
        self.state.join(self.test)
    }
}

/// Builds an image, or finds it from an earlier run.
///
/// # Errors
/// As [`Image::build`].
pub fn image(recipe: &Recipe) -> Result<Image> {
    let images = state_dir().join("images");
    fs::create_dir_all(&images)?;
    Image::build(&images, recipe)
}

enum Outcome {
    /// With so many of its parts skipped.
    Passed(usize),
    Failed(Error),
    Skipped(String),
}

/// Runs the tests whose names contain any of the words of the command line (all when there are none) and prints the counts.
/// `--list` prints names; other flags, meant for the standard harness, are ignored.
#[must_use]
#[expect(clippy::print_stdout, reason = "this is the command line of the test program")]
pub fn main(tests: &[Test]) -> ExitCode {
    let (flags, words): (Vec<_>, Vec<_>) = std::env::args().skip(1).partition(|word| word.starts_with('-'));
    let chosen = |test: &&Test| words.is_empty() || words.iter().any(|word| test.name.contains(word));
    let chosen = tests.iter().filter(chosen).collect::<Vec<_>>();
    if flags.iter().any(|flag| flag == "--list") {
        chosen.iter().for_each(|test| println!("{}: test", test.name));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} end-to-end tests, one at a time", chosen.len());
    let refusal = prepare_machine(&[]);
    let (mut passed, mut failed, mut skipped) = (0, Vec::new(), 0);
    for test in &chosen {
        let started = Instant::now();
        let outcome = match &refusal {
            Some(reason) => Outcome::Skipped(reason.clone()),
            None => run_test(test),
        };
        let seconds = started.elapsed().as_secs_f64();
        match outcome {
            Outcome::Passed(parts_skipped) => {
                passed += 1;
                skipped += parts_skipped;
                println!("test {} ... ok ({seconds:.1} s)", test.name);
            }
            Outcome::Failed(error) => {
                failed.push(test.name);
                println!("test {} ... FAILED ({seconds:.1} s)\n  {error:#}\n", test.name);
            }
            Outcome::Skipped(reason) => {
                skipped += 1;
                println!("test {} ... SKIPPED: {reason}", test.name);
            }
        }
    }
    failed.iter().for_each(|name| println!("failed: {name}, its logs: {}", state_dir().join(name).display()));
    println!("\nend-to-end: {passed} passed, {} failed, {skipped} skipped\n", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints a figure that a test measured, so that a passed test says how well.
#[expect(clippy::print_stdout, reason = "this is the output of the test program")]
pub fn note(figure: impl std::fmt::Display) {
    println!("     {figure}");
}

fn run_test(test: &Test) -> Outcome {
    let missing = NEEDS.iter().chain(test.needs).filter(|command| !on_path(command)).copied().collect::<Vec<_>>();
    if !missing.is_empty() {
        return Outcome::Skipped(format!("missing: {}", missing.join(", ")));
    }
    let bench = Bench { state: state_dir(), test: test.name, skipped: Mutex::default() };
    match catch_unwind(AssertUnwindSafe(|| (test.run)(&bench))) {
        Ok(Ok(())) => {
            // The files of a failed test stay for the one who looks into it.
            let _best_effort = fs::remove_dir_all(bench.test_dir());
            Outcome::Passed(bench.skipped.into_inner().unwrap_or_else(PoisonError::into_inner))
        }
        Ok(Err(error)) => match error.downcast::<Skip>() {
            Ok(Skip(reason)) => Outcome::Skipped(reason),
            Err(error) => Outcome::Failed(error),
        },
        Err(panic) => Outcome::Failed(Error::msg(panic_text(panic.as_ref()))),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    format!("panicked: {}", text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no text"))
}

/// Where tests keep their files and images. Not under /tmp, which may be memory.
pub(crate) fn state_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(".state")
}

/// Installs what is missing, `more` (as `command:package`) too, and tries what the lab needs of the kernel. Gives the reason
/// why nothing can run here.
pub(crate) fn prepare_machine(more: &[&str]) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root, for network namespaces and container daemons".to_owned());
    }
    let mut install = Command::new("sh");
    install.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("install.sh")).args(more);
    // What could not be installed is found missing by the tests that need it.
    let installed = output(&mut install).context("e2e/install.sh");
    let probe = "ip link add probe0 type veth peer name probe1 && \
                 tc qdisc add dev probe0 root tbf rate 1mbit burst 10kb limit 10kb";
    let probed = run("unshare", ["--net", "--mount", "--pid", "--fork", "sh", "-c", probe]);
    let error = probed.err()?;
    let install_error = installed.err().map(|error| format!("; {error:#}")).unwrap_or_default();
    Some(format!("this machine gives no network namespaces with shaped links: {error:#}{install_error}"))
}

/// Bytes free where tests keep their files.
///
/// # Errors
/// When the directory cannot be made.
pub fn free_bytes() -> Result<u64> {
    fs::create_dir_all(state_dir())?;
    let disk = rustix::fs::statvfs(state_dir())?;
    Ok(disk.f_bavail * disk.f_frsize)
}

pub(crate) fn on_path(command: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(command).is_file())
}
