//! A node: starts the driver, the listener and the announcer, and is the handle on them.
//!
//! Used by the agent and the origin. All state of the swarm is the driver's; see [`crate`].

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use shoal_meta::{Digest, PeerInfo};
use shoal_store::{Blob, Partial, Store};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::counters::{Counters, Status};
use crate::mailbox::{Handle, Input};
use crate::torrent::Torrent;
use crate::{Config, StartError};

/// One node of the swarm; clones are handles on the same node. It runs until its shutdown token is cancelled.
#[derive(Clone)]
pub struct Node {
    handle: Handle,
    info: PeerInfo,
    tasks: TaskTracker,
}

/// Says why a torrent was not joined.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// As many torrents are open as the swarm's configuration allows. Retry when some have ended.
    #[error("too many torrents are open")]
    TooMany,
    /// The node is shutting down.
    #[error("the node is shutting down")]
    Closed,
}

impl Node {
    /// Starts a node on a store. Its committed blobs are announced and served from now on.
    ///
    /// # Errors
    /// When the configuration is not usable or the address cannot be listened on.
    pub async fn start(config: Config, store: Store, shutdown: CancellationToken) -> Result<Self, StartError> {
        unimplemented!()
    }

    /// This node as others see it: its id, and the address they dial.
    #[must_use]
    pub fn info(&self) -> PeerInfo {
        self.info.clone()
    }

    /// Takes part in a blob's torrent: fetches what is missing, serves what is there, and commits the blob when it is
    /// whole. Joining again gives the same torrent. Pieces an earlier run left on disk are verified and kept.
    ///
    /// # Errors
    /// See [`JoinError`].
    pub async fn join(&self, partial: Partial) -> Result<Torrent, JoinError> {
        // Pieces that cannot be read are fetched again.
        if let Err(error) = partial.recheck().await {
            tracing::warn!(digest = %partial.digest(), %error, "cannot recheck a partial blob");
        }
        let (reply, answer) = oneshot::channel();
        self.handle.send(Input::Join { partial, reply }).await.map_err(|_closed| JoinError::Closed)?;
        let shared = answer.await.map_err(|_closed| JoinError::Closed)??;
        Ok(self.handle.torrent(shared))
    }

    /// Announces a committed blob that came into the store another way. Blobs committed by torrents, and those the
    /// store held at the start, are announced without it.
    pub fn seed(&self, blob: &Blob) {
        let _ = blob;
    }

    /// Tells of peers that take part in a torrent, such as the origin. A hint: lost when the node has no time for it.
    pub fn add_peers(&self, digest: Digest, peers: Vec<PeerInfo>) {
        if !self.handle.try_send(Input::Peers(digest, peers)) {
            tracing::debug!(%digest, "peers of a torrent dropped: the mailbox is full");
        }
    }

    /// Gives a blob up, here and at every peer: its torrent fails for this reason and the store removes it.
    pub async fn withdraw(&self, digest: Digest, reason: &str) {
        let (done, answer) = oneshot::channel();
        let input = Input::Withdraw { digest, reason: reason.to_owned(), done };
        if self.handle.send(input).await.is_ok() {
            // It ends without an answer only when the node does.
            let _ = answer.await;
        }
    }

    /// The node at this moment.
    #[must_use]
    pub fn status(&self) -> Status {
        self.handle.counters.status(self.info())
    }

    /// Waits until the node has shut down: connections closed, trackers told.
    pub async fn stopped(&self) {
        self.tasks.wait().await;
    }
}
