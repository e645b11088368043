//! The origin: pulls blobs through from upstream registries once for the whole cluster, publishes each piece's hash as
//! the piece arrives, and is the first seeder. It is a plain pull-through registry too.
//!
//! Two doors, gRPC for agents (`grpc`, with the `tickets` it takes) and OCI over HTTP (`front`), lead into the same rooms:
//! `ingest` for blobs, `manifests`, and `authorize`, which all go upstream through `gate`. Payload goes from `ingest` into the peer node.
//!
//! Start at [`start`]; the program calls [`run`].

mod authorize;
mod body;
mod config;
mod disk;
mod error;
mod flight;
mod front;
mod gate;
mod grpc;
mod ingest;
mod manifests;
mod metainfo;
mod metrics;
mod notes;
mod pass_through;
mod recent;
mod rooms;
mod running;
mod shelf;
mod tickets;
mod upkeep;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use config::Config;
pub use running::{Counters, Running, run, start};

/// Locks a mutex of this crate. None is held across an await, and what they guard is sound after a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
