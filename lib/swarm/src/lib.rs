//! The sans-IO swarm: wire codec, availability, picker, choker, torrents and peers of one node.
//!
//! No clock, socket, file, thread or lock lives here: time and randomness are inputs, frames and wishes are outputs. The
//! driver (`shoal-peer`) and the simulator (`shoal-sim`) run the very same code. Payload bytes never pass through it.
//!
//! Start at [`Swarm`].

mod availability;
mod choker;
mod config;
mod connection;
mod dense;
mod event;
mod picker;
mod rate;
mod sorted;
mod superseed;
mod swarm;
mod time;
mod torrent;
pub mod wire;

pub use config::{ChokePolicy, Config};
pub use event::{
    BlockOutcome, ConnId, DisconnectReason, Event, Frame, ReaderId, TimeoutReason, TorrentKey, Transmit, Violation, Who,
};
pub use swarm::{OpenTorrent, SEND_WINDOW_BLOCKS, Swarm, TorrentView};
pub use time::Time;
