//! Whole nodes on loopback, with stores of their own, and peers and trackers that are not as they should be.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

mod hostile;
mod identity;
mod nodes;
mod rates;
mod rig;
mod trackers;
