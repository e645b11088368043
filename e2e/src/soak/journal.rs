//! What happened when, in one file, with the clock of Shoal's logs beside it.

use std::fmt;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::{Context, Result};

/// The file `journal.log`, in the directory of the run.
#[derive(Debug)]
pub(super) struct Journal {
    dir: PathBuf,
    file: Mutex<File>,
}

impl Journal {
    pub(super) fn start(dir: &Path) -> Result<Self> {
        let file = Mutex::new(File::create(dir.join("journal.log")).context("journal")?);
        Ok(Self { dir: dir.to_owned(), file })
    }

    /// Where it is, and where logs of all processes are.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes a line.
    pub(super) fn note(&self, what: fmt::Arguments<'_>) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // A journal with a line less is still one.
        let _best_effort = writeln!(file, "{} {what}", time_of_day());
    }

    /// Writes a line and tells whoever watches.
    #[expect(clippy::print_stderr, reason = "this is the soak's progress")]
    pub(super) fn say(&self, what: fmt::Arguments<'_>) {
        self.note(what);
        eprintln!("{} {what}", time_of_day());
    }
}

/// UTC, to the millisecond.
fn time_of_day() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (seconds, millis) = (now.as_secs() % 86_400, now.subsec_millis());
    format!("{:02}:{:02}:{:02}.{millis:03}", seconds / 3_600, seconds / 60 % 60, seconds % 60)
}
