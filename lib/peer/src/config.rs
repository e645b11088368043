//! What a node needs to know at its start. Filled in by the agent and the origin from their own configuration.

use std::io;
use std::net::SocketAddr;

use shoal_identity::Identity;
use shoal_meta::{Role, Server, Topology};
use tokio::sync::watch;

/// The settings of one node.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where peer connections are accepted; port 0 takes a free one.
    pub listen: SocketAddr,
    /// What others are told to dial. Default: `listen`, with the address of the default route when it is unspecified.
    pub advertise: Option<SocketAddr>,
    /// What the node is in the cluster. An origin super-seeds torrents while it is still fetching them.
    pub role: Role,
    /// Where the node stands.
    pub topology: Topology,
    /// Most bytes per second sent to peers, over all connections. `None`: as fast as the network goes.
    pub upload_rate: Option<u64>,
    /// Most bytes per second received from peers, over all connections. `None`: as fast as the network goes.
    pub download_rate: Option<u64>,
    /// Whether peer traffic yields to that of applications: DSCP lower effort, the lowest socket priority, and TCP-LP where
    /// the kernel has it.
    pub background: bool,
    /// Trackers, as they come and go. A torrent belongs to one by rendezvous hash, the next one is its failover. With none,
    /// peers are found by [`crate::Node::add_peers`] and by asking connected peers.
    pub trackers: watch::Receiver<Vec<Server>>,
    /// What the node shows peers and trackers, and asks of them.
    pub identity: Identity,
    /// What bounds and steers the swarm.
    pub swarm: shoal_swarm::Config,
}

/// Says why a node did not start. Always a matter of configuration or of the machine, never of peers.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address to listen on is taken or not ours.
    #[error("cannot listen for peers on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A tracker is not `http://host:port`.
    #[error("tracker {0:?} is not http://host:port")]
    Tracker(String),
    /// The address to listen on is unspecified and no default route tells which address others can dial.
    #[error("cannot tell which address peers can dial; set one to advertise")]
    Advertise(#[source] io::Error),
    /// A rate cap is zero.
    #[error("a rate cap must be more than zero")]
    Rate,
}
