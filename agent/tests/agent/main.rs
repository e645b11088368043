//! The agent over real sockets: a registry that misbehaves when told to, a real origin and tracker, real stores.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

mod ahead;
mod authorize;
mod clients;
mod disks;
mod fallback;
mod identity;
mod limits;
mod miss;
#[path = "../../../lib/store/src/tests/mount.rs"]
mod mount;
mod pods;
mod preheat;
mod ranges;
mod registries;
mod rig;
mod serve;
mod spec;
mod swarm;
mod warm;
