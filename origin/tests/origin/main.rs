//! The origin over real sockets, before a registry that misbehaves when told to.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

mod front;
mod full_disk;
mod ingest;
mod private;
mod registries;
mod rig;
mod tickets;
