//! Runs disk and hash work on tokio's blocking threads, so many at a time.
//!
//! Called by the async methods of this crate. Each kind has its own limit: a commit that waits for the disk must not
//! hold up pieces, nor pieces that wait for a core the reads of a body.

use std::io;
use std::sync::Arc;

use tokio::sync::Semaphore;

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
pub(crate) struct Kind(Arc<Semaphore>);

impl Jobs {
    pub(crate) fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let kind = |limit| Kind(Arc::new(Semaphore::new(limit)));
        Self {
            pieces: kind(cores.clamp(2, PIECES_MAX)),
            reads: kind(READS_MAX),
            checks: kind((2 * cores).clamp(4, CHECKS_MAX)),
            commits: kind(COMMITS_MAX),
            changes: kind(CHANGES_MAX),
        }
    }
}

impl Kind {
    /// Runs a job when its turn comes. Once begun it ends, even if the future is dropped.
    ///
    /// # Errors
    /// When the runtime shuts down before the job began.
    pub(crate) async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let permit = self.0.clone().acquire_owned().await.expect("the store never closes its semaphores");
        run(move || {
            let out = job();
            drop(permit);
            out
        })
        .await
    }
}

/// Runs a job on a blocking thread without a limit: for the one job that opens a store.
pub(crate) async fn run<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(job).await.map_err(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_cancelled) => io::Error::other("the runtime is shutting down"),
    })
}
