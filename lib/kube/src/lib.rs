//! What Shoal shares with Kubernetes: which servers are behind a Service, where a node stands, which nodes there are, which Pods
//! are bound to one, whether a `DaemonSet` is done, what shall be preheated, and which replica leads.
//!
//! The parts and the program call it when they are told to; nothing needs it. It writes the status of a [`Preheat`] and the
//! [`Lease`](while_leading) of the one who leads, and nothing else. It knows no part, no peers and no registries. An API server
//! that is away costs freshness: what was learnt last stays.

mod changes;
mod daemon_set;
mod lease;
mod nodes;
mod place;
mod pods;
mod preheats;
mod servers;

pub use kube::{Client, Error};

pub use changes::Change;
pub use daemon_set::{AwaitError, await_daemon_set};
pub use lease::while_leading;
pub use nodes::{NodeLabels, Platform, nodes};
pub use place::{Place, RACK_LABEL, place_of};
pub use pods::{BoundPod, ListedImages, PodImage, follow_pods};
pub use preheats::{
    COMPLETE, Condition, ImageStatus, LocalObject, NodeCounts, NodeStatus, Preheat, PreheatSpec, PreheatStatus,
    Preheats, SecretError, definition, now, until,
};
pub use servers::servers;

pub(crate) use changes::changes;
