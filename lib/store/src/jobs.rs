//! Runs disk and hash work on tokio's blocking threads, so many at a time.
//!
//! Called by the async methods of this crate. Each kind has its own limit: a commit that waits for the disk must not
//! hold up pieces, nor pieces that wait for a core the reads of a body. A disk that does not answer keeps its threads, and no
//! more than that: who waits for them hears so in time.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Reads of verified bytes at once; each holds one pooled buffer and mostly waits for the disk.
const READS_MAX: usize = 32;
/// Pieces of blobs read from the disk and compared with their hashes at once: each waits for the disk, then for a core.
const CHECKS_MAX: usize = 16;
/// Commits at once: each waits for the disk to sync, or hashes at the speed of one core.
const COMMITS_MAX: usize = 2;
/// Creations and removals at once; they follow each other anyway.
const CHANGES_MAX: usize = 2;
/// Pieces hashed and written at once, whatever the number of cores.
const PIECES_MAX: usize = 8;

/// How long reads may take with their wait in line: a body goes on elsewhere then.
const READ_PATIENCE: Duration = Duration::from_secs(5);
/// How long a piece may take: so long that all of those in flight get through on a disk of 5 MB/s.
const PIECE_PATIENCE: Duration = Duration::from_secs(10);
/// How long creations and removals may take: a pull's first byte waits for them, and clients wait five seconds.
const CHANGE_PATIENCE: Duration = Duration::from_secs(3);

/// Kinds of work, each with its own limit.
pub(crate) struct Jobs {
    /// Hashing and writing pieces: as many as cores, at least 2.
    pub(crate) pieces: Kind,
    /// Reading verified bytes.
    pub(crate) reads: Kind,
    /// Reading bytes of blobs, with the pieces around them to verify these: twice as many as cores.
    pub(crate) checks: Kind,
    /// Checking whole blobs and waiting until they are on the disk.
    pub(crate) commits: Kind,
    /// Creating and removing. Not behind commits: a pull's first byte waits for it.
    pub(crate) changes: Kind,
}

/// One kind of work.
pub(crate) struct Kind {
    turns: Arc<Semaphore>,
    /// None for work that nobody waits for and that may take long.
    patience: Option<Duration>,
}

impl Jobs {
    pub(crate) fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let kind = |limit, patience| Kind { turns: Arc::new(Semaphore::new(limit)), patience };
        Self {
            pieces: kind(cores.clamp(2, PIECES_MAX), Some(PIECE_PATIENCE)),
            reads: kind(READS_MAX, Some(READ_PATIENCE)),
            checks: kind((2 * cores).clamp(4, CHECKS_MAX), Some(READ_PATIENCE)),
            commits: kind(COMMITS_MAX, None),
            changes: kind(CHANGES_MAX, Some(CHANGE_PATIENCE)),
        }
    }
}

impl Kind {
    /// Runs a job when its turn comes. Once begun it ends, even if the future is dropped.
    ///
    /// # Errors
    /// `TimedOut` when that takes too long; `Interrupted` when the runtime shuts down before the job began.
    pub(crate) async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let work = async {
            let turn = self.turns.clone().acquire_owned().await.expect("the store never closes its semaphores");
            run(move || {
                let out = job();
                drop(turn);
                out
            })
            .await
        };
        match self.patience {
            Some(patience) => timeout(patience, work).await.unwrap_or_else(|_elapsed| Err(stalled())),
            None => work.await,
        }
    }
}

/// Runs a job on a blocking thread without a limit: for the one job that opens a store.
pub(crate) async fn run<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(job).await.map_err(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_cancelled) => io::Error::new(io::ErrorKind::Interrupted, "the runtime is shutting down"),
    })
}

fn stalled() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the disk does not answer in time")
}
