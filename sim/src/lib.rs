//! Deterministic simulator of whole swarms: hundreds to thousands of nodes, each running the shipped lib/swarm unchanged.
//!
//! Called by `shoal sim` and by tests. A [`Scenario`] says what happens, [`run`] plays it and gives a [`Report`]. The same
//! scenario gives the same events in the same order on every machine: the trace hash proves it.
//!
//! What is simulated, and how:
//! - **Links**: each node has one uplink and one downlink. Blocks queue first come, first served at each; a block leaves
//!   when the uplink has served it, then occupies the receiver's downlink. Control messages cost the latency, and their
//!   bytes delay the next block of a busy uplink. Rates are of payload; TCP's own headers and ramp-up are not simulated.
//! - **Connections**: a handshake of two round trips; messages keep their order; blocks do not delay messages.
//! - **Tracker**: hears announces, hands out random peers, forgets the dead only when their lease is over.
//! - **Store**: verifying a piece takes a fixed time. **Origin**: has the blob, or gets it from upstream piece by piece.
//! - **Faults**: nodes that crash, nodes that lose all connections at once.
//!
//! It must not know how the swarm decides anything: it sees inputs and outputs only.

pub mod cli;
mod link;
mod node;
mod queue;
mod report;
mod scenario;
mod trace;
mod tracker;
mod world;

pub use report::Report;
pub use scenario::{Arrivals, Fault, FaultKind, Rates, Scenario, ScenarioError};
pub use world::run;
