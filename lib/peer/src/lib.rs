//! Drives the sans-IO swarm over sockets and the store. The agent and the origin are peers through this crate alike.
//!
//! A [`Node`] listens, dials, announces and owns one swarm; a [`Torrent`] is a handle on one blob of it. One task (the
//! driver) owns the swarm's state; connections, disk jobs, trackers and handles talk to it through one bounded mailbox.
//! Payload goes from a connection's socket into a pooled buffer and from there to the store: moved, never copied.
//!
//! Goals: everything bounded; a hostile peer costs its connection; a tracker that fails delays nobody.
//! Not goals: knowing of HTTP, OCI or upstream registries; deciding what to download.
//! What a shutdown loses: blocks of pieces not yet whole. What is verified is on disk and found again.

mod announce;
mod config;
mod conn;
mod counters;
mod dial;
mod driver;
mod entry;
mod link;
mod listen;
mod mailbox;
mod node;
mod outbox;
mod pace;
mod rate;
mod send;
mod socket;
mod torrent;

pub use config::{Config, StartError};
pub use counters::{ReceivedBytes, Status, WastedBytes};
pub use node::{JoinError, Node};
pub use torrent::{Failure, Progress, Reader, Torrent, TorrentError, TorrentState};
