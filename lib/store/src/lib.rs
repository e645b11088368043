//! Blobs on disk: partial files, verification, commit, eviction.
//!
//! A [`Store`] holds whole blobs ([`Blob`]) and blobs that are still arriving ([`Partial`]). The peer driver writes
//! pieces into partials and reads both; the agent and the origin ask what is there. The disk layout is docs/adr/0003.
//!
//! Goals: a byte that leaves this crate was verified, as part of its piece or of its whole blob, since the process began or
//! since it was read from the disk; a blob that has rotted is dropped; a crash at any moment costs at most the work since
//! the last commit, never correctness; a disk that fails or stalls is an error in time; the disk used stays under a budget.
//! Not goals: knowing of peers, HTTP or registries; mending a disk or a blob.
//!
//! What a crash may lose: pieces of a partial that had not reached the disk (they are found missing by
//! [`Partial::recheck`]), and up to a minute of "last used" times. Disk work runs on blocking threads, bounded by
//! semaphores; dropping a future does not stop the job it started, and every job is safe to finish alone.

mod blob;
mod checks;
mod health;
mod host;
mod index;
mod jobs;
mod layout;
mod partial;
mod pieces_file;
mod pool;
mod scrub;
mod store;
mod whole;

#[cfg(test)]
mod tests;

pub use blob::{Blob, Region, Source};
pub use health::Health;
pub use partial::{CommitError, ExtendError, Partial, WriteError};
pub use pool::{BufferPool, PooledBuf};
pub use store::{Budget, Config, OpenError, PartialError, Store, Usage};

use std::sync::{Mutex, MutexGuard};

/// Locks a mutex of this crate; none is held across an await or by code that can panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it holds a lock of the store")
}
