//! What Shoal learns from Kubernetes: which servers are behind a Service, where a node stands, whether a `DaemonSet` is done.
//!
//! The parts and the program call it when they are told to; nothing needs it. It only reads. It knows no part, no peers and no
//! registries. An API server that is away costs freshness: what was learnt last stays.

mod daemon_set;
mod place;
mod servers;

pub use daemon_set::{AwaitError, await_daemon_set};
pub use place::{Place, RACK_LABEL, place_of};
pub use servers::servers;
