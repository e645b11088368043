//! The systems that are measured. Each is only configured and started here, as its documentation says; it knows the lab and
//! nothing of what is measured.

mod dragonfly;
mod kraken;
mod nginx;
mod shoal;
mod spegel;

use std::fmt::Write as _;
use std::sync::Arc;

use anyhow::Result;
use clap::ValueEnum;

use super::pull::Front;
use crate::lab::Lab;
use crate::node::{Link, Node};
use crate::process::Process;
use crate::registry::{PORT, Registry};

/// A system by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Kind {
    /// Every node pulls straight from the registry.
    Registry,
    /// One nginx caches for all.
    Nginx,
    Shoal,
    Kraken,
    Dragonfly,
    Spegel,
}

/// Where a system is started: nothing but the registry runs yet.
#[derive(Debug)]
pub(super) struct Ground {
    /// The network.
    pub(super) lab: Lab,
    /// The registry, which holds the image.
    pub(super) upstream: Registry,
    /// The nodes that will pull.
    pub(super) nodes: Vec<Arc<Node>>,
    /// The link of each node, of the registry, and of servers that carry blobs.
    pub(super) link: Link,
}

/// A started system.
#[derive(Debug, Default)]
pub(super) struct Running {
    /// Where each node pulls from, in the nodes' order.
    pub(super) fronts: Vec<Front>,
    /// The node of the system's own server of blobs.
    pub(super) origin: Option<Arc<Node>>,
    /// Pulling through this fills that server and nothing else.
    pub(super) warm: Option<Front>,
    /// What the system itself says of a node's payload.
    pub(super) payload: Option<fn(&Node) -> Result<Payload>>,
    /// What runs; it ends with this.
    pub(super) processes: Vec<Process>,
}

/// Payload a node has received, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Payload {
    /// And kept.
    pub(super) kept: u64,
    /// For nothing.
    pub(super) wasted: u64,
}

impl Kind {
    pub(super) const ALL: [Self; 6] =
        [Self::Registry, Self::Nginx, Self::Shoal, Self::Kraken, Self::Dragonfly, Self::Spegel];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Registry => "registry",
            Self::Nginx => "nginx",
            Self::Shoal => "shoal",
            Self::Kraken => "kraken",
            Self::Dragonfly => "dragonfly",
            Self::Spegel => "spegel",
        }
    }

    /// Programs it needs on PATH.
    pub(super) const fn needs(self) -> &'static [&'static str] {
        match self {
            Self::Registry | Self::Shoal => &[],
            Self::Nginx => &["nginx"],
            Self::Kraken => &kraken::NEEDS,
            Self::Dragonfly => &["dfdaemon", "scheduler"],
            Self::Spegel => &["spegel", "containerd", "ctr"],
        }
    }

    /// Whether it has a server of its own that can hold the image beforehand.
    pub(super) const fn warms(self) -> bool {
        matches!(self, Self::Nginx | Self::Shoal | Self::Dragonfly)
    }

    /// Starts it, with nothing in its stores.
    pub(super) fn start(self, ground: &mut Ground) -> Result<Running> {
        match self {
            Self::Registry => {
                let url = format!("http://{}:{PORT}", ground.upstream.node().ip());
                Ok(Running { fronts: ground.fronts(&url, false), ..Running::default() })
            }
            Self::Nginx => nginx::start(ground),
            Self::Shoal => shoal::start(ground),
            Self::Kraken => kraken::start(ground),
            Self::Dragonfly => dragonfly::start(ground),
            Self::Spegel => spegel::start(ground),
        }
    }
}

impl Ground {
    /// The same front for every node.
    fn fronts(&self, url: &str, ns: bool) -> Vec<Front> {
        self.nodes.iter().map(|node| Front::Http { node: Arc::clone(node), url: url.to_owned(), ns }).collect()
    }
}

/// A YAML list of file paths or addresses: what the rivals' configurations are full of.
fn yaml_list<T: std::fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let mut list = String::from("[");
    for item in items {
        let _infallible = write!(list, "\"{item}\", ");
    }
    list + "]"
}
