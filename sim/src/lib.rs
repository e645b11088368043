//! Deterministic simulator of whole swarms: hundreds to thousands of nodes, each running the shipped lib/swarm unchanged.
//!
//! Called by `shoal sim` and by tests. A [`Scenario`] says what happens ([`Named`] ones are ready made), [`run`] plays it
//! and gives a [`Report`]. The same scenario gives the same events in the same order on every machine: the trace hash
//! proves it.
//!
//! What is simulated, and how:
//! - **Links**: each node has one uplink and one downlink, each zone one link each way to the others. The connections that
//!   have a block to send share an uplink equally; downlinks and zones' links take blocks in the order they left. A
//!   connection's next block begins to leave when the one before is in at the other end, so a busy receiver holds up its
//!   own connections and no others. Control messages take their bytes from busy links, and wait for the block their
//!   connection is sending. Rates are of payload; TCP's own headers and ramp-up are not simulated.
//! - **Connections**: a handshake of two round trips; messages keep their order.
//! - **Agents**: want some blobs, and fetch a few at a time in order. Some may take and never give.
//! - **Tracker**: hears announces, hands out random peers, most of them near, and forgets the dead only when their lease is
//!   over. **Store**: verifying a piece takes a fixed time. **Origin**: has the blobs, or gets them from upstream piece by
//!   piece.
//! - **Faults**: nodes that crash or vanish and come back, connections that break, parts of the network that do not reach
//!   each other, processes that stand still, clocks that jump, messages that are late, a tracker that forgets, peers that lie.
//!   [`schedule`] draws all of it from a seed.
//!
//! It must not know how the swarm decides anything: it sees inputs and outputs only.

pub mod cli;
pub mod faults;
mod link;
mod named;
mod node;
mod queue;
mod report;
mod scenario;
mod schedule;
mod settings;
mod trace;
mod tracker;
mod uplink;
mod world;

pub use named::{Named, NoSuchName, Size};
pub use report::{GroupReport, Percentiles, Report};
pub use scenario::{Arrivals, Bug, Fault, FaultKind, Group, Lie, Part, Rates, Scenario, ScenarioError, Zones};
pub use schedule::schedule;
pub use settings::{SettingError, Value};
pub use world::run;
