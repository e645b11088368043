//! A node: starts the driver, the listener and the announcer, and is the handle on them.
//!
//! Used by the agent and the origin. All state of the swarm is the driver's; see [`crate`].

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use shoal_identity::Identity;
use shoal_meta::{BLOCK_LENGTH_MAX, Bitfield, Digest, Geometry, PeerInfo};
use shoal_store::{BufferPool, Partial, PartialError, Store};
use shoal_swarm::Swarm;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Channel;

use crate::announce::{self, Announcer, LocalState};
use crate::conn::Net;
use crate::counters::{Counters, Status};
use crate::driver::Driver;
use crate::listen;
use crate::mailbox::{Handle, Input};
use crate::rate::RateCap;
use crate::socket::Manners;
use crate::torrent::Torrent;
use crate::{Config, StartError};

/// One node of the swarm; clones are handles on the same node. It runs until its shutdown token is cancelled.
#[derive(Clone)]
pub struct Node {
    handle: Handle,
    info: PeerInfo,
    announcer: Announcer,
    store: Store,
    identity: Identity,
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
    #[expect(clippy::unused_async, reason = "callers await it, so that a start that waits changes nothing for them")]
    pub async fn start(config: Config, store: Store, shutdown: CancellationToken) -> Result<Self, StartError> {
        let parts = Parts::prepare(&config)?;
        let info =
            PeerInfo { id: store.peer_id(), address: parts.address, role: config.role, topology: config.topology };
        let counters = Arc::new(Counters::default());
        let (handle, mailbox) = Handle::new(counters, shutdown.child_token());
        let (announcer, tasks) = (Announcer::default(), TaskTracker::new());
        // Before the list is read, so that nothing leaves unseen.
        let evictions = store.evictions();
        store.committed().into_iter().for_each(|digest| announcer.set(digest, LocalState::Seeding));
        let net = Arc::new(Net {
            me: info.clone(),
            identity: config.identity.clone(),
            handle: handle.clone(),
            pool: BufferPool::new(receive_bytes_max(&config.swarm)),
            upload: parts.upload,
            download: parts.download,
            manners: parts.manners,
            tasks: tasks.clone(),
            next_conn: AtomicU64::new(0),
        });
        let (connections_max, identity) = (config.swarm.connections_max, config.identity.clone());
        let swarm = Swarm::new(config.swarm, info.clone(), rand::random());
        let driver = Driver::new(swarm, net.clone(), store.clone(), announcer.clone());
        tasks.spawn(driver.run(mailbox, evictions));
        tasks.spawn(listen::accept(net, parts.listener, connections_max));
        tasks.spawn(announce::run(announcer.clone(), config.trackers, config.identity, info.clone(), handle.clone()));
        tasks.close();
        Ok(Self { handle, info, announcer, store, identity, tasks })
    }

    /// This node as others see it: its id, and the address they dial.
    #[must_use]
    pub fn info(&self) -> PeerInfo {
        self.info.clone()
    }

    /// What it shows others. Without certificates metainfo from peers cannot be believed: its seal is checked against them.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The connections to the trackers that there are now, for what else is asked of them.
    #[must_use]
    pub fn tracker_channels(&self) -> Vec<Channel> {
        self.announcer.channels()
    }

    /// Takes part in a blob's torrent: fetches what is missing, serves what is there, and commits the blob when it is
    /// whole. Joining again gives the same torrent. Pieces an earlier run left on disk are verified and kept.
    ///
    /// # Errors
    /// See [`JoinError`].
    pub async fn join(&self, partial: Partial) -> Result<Torrent, JoinError> {
        let whole = Bitfield::full(&partial.geometry());
        let torrent = self.join_lazily(partial).await?;
        torrent.want(&whole);
        Ok(torrent)
    }

    /// Takes part as [`join`](Self::join) does, but fetches only what [`Torrent::want`] asks for.
    ///
    /// # Errors
    /// See [`JoinError`].
    pub async fn join_lazily(&self, partial: Partial) -> Result<Torrent, JoinError> {
        // Pieces that cannot be read are fetched again.
        if let Err(error) = partial.recheck().await {
            tracing::warn!(digest = %partial.digest(), %error, "cannot recheck a partial blob");
        }
        let (reply, answer) = oneshot::channel();
        self.handle.send(Input::Join { partial, reply }).await.map_err(|_closed| JoinError::Closed)?;
        let shared = answer.await.map_err(|_closed| JoinError::Closed)??;
        Ok(self.handle.torrent(shared))
    }

    /// Begins a blob in the store, as [`Store::partial`] does. What is seeded counts as in use there: without room, the blobs that
    /// no connected peer lacks a piece of are let go of, and the store is asked again.
    ///
    /// # Errors
    /// See [`PartialError`].
    pub async fn partial(&self, digest: Digest, geometry: Geometry) -> Result<Partial, PartialError> {
        let begun = self.store.partial(digest, geometry).await;
        let Err(PartialError::NoSpace { .. }) = begun else { return begun };
        let (done, released) = oneshot::channel();
        if self.handle.send(Input::ReleaseIdle { done }).await.is_err() || released.await.is_err() {
            return begun;
        }
        self.store.partial(digest, geometry).await
    }

    /// Announces a committed blob that came into the store another way. Blobs committed by torrents, and those the
    /// store held at the start, are announced without it.
    pub fn seed(&self, digest: Digest) {
        self.announcer.set(digest, LocalState::Seeding);
    }

    /// Tells of peers that take part in a torrent, such as the origin. A hint: lost when the node has no time for it.
    pub fn add_peers(&self, digest: Digest, peers: Vec<PeerInfo>) {
        if !self.handle.try_send(Input::Peers { digest, peers, lead: None }) {
            tracing::debug!(%digest, "peers of a torrent dropped: the mailbox is full");
        }
    }

    /// Keeps an origin's seal on a blob's metainfo, so that peers may be told of it when no origin answers.
    pub async fn keep_seal(&self, digest: &Digest, seal: Vec<u8>) {
        self.store.set_seal(digest, seal).await;
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

    /// Waits until the node has shut down: connections closed, trackers told. Before that its token is cancelled, or it
    /// failed by a fault of its own.
    pub async fn stopped(&self) {
        self.tasks.wait().await;
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Node({} at {})", self.info.id, self.info.address)
    }
}

/// What the configuration becomes.
struct Parts {
    listener: TcpListener,
    /// What others dial.
    address: SocketAddr,
    upload: RateCap,
    download: RateCap,
    manners: Manners,
}

impl Parts {
    fn prepare(config: &Config) -> Result<Self, StartError> {
        if [config.upload_rate, config.download_rate].contains(&Some(0)) {
            return Err(StartError::Rate);
        }
        if let Some(bad) =
            config.trackers.borrow().iter().find(|tracker| shoal_identity::endpoint(&tracker.url).is_none())
        {
            return Err(StartError::Tracker(bad.url.clone()));
        }
        let (upload, download) = (RateCap::new(config.upload_rate), RateCap::new(config.download_rate));
        let listen = |source| StartError::Listen { address: config.listen, source };
        let manners = Manners::new(config.background, &upload, &download);
        let listener = listen::bind(config.listen, &manners).map_err(listen)?;
        let local = listener.local_addr().map_err(listen)?;
        let address = match config.advertise {
            Some(address) => address,
            None => dialable(local).map_err(StartError::Advertise)?,
        };
        Ok(Self { listener, address, upload, download, manners })
    }
}

/// The address others can dial: the default route's own when we listen on all.
fn dialable(local: SocketAddr) -> io::Result<SocketAddr> {
    if !local.ip().is_unspecified() {
        return Ok(local);
    }
    // Addresses for documentation (RFC 5737, RFC 3849): connecting a UDP socket sends nothing, it only asks for a route.
    let (any, probe): (SocketAddr, SocketAddr) = match local {
        SocketAddr::V4(_) => ((Ipv4Addr::UNSPECIFIED, 0).into(), (Ipv4Addr::new(192, 0, 2, 1), 9).into()),
        SocketAddr::V6(_) => {
            ((Ipv6Addr::UNSPECIFIED, 0).into(), (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 9).into())
        }
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(probe)?;
    Ok(SocketAddr::new(socket.local_addr()?.ip(), local.port()))
}

/// The memory that blocks from peers may take: what the swarm keeps in flight, and one block for each connection, which a
/// peer that nobody asked, or that is slow, may hold. Less would let pieces wait for each other for ever. Default 47 MiB.
fn receive_bytes_max(swarm: &shoal_swarm::Config) -> usize {
    let inflight = usize::try_from(swarm.inflight_bytes_max).unwrap_or(usize::MAX / 2);
    inflight.saturating_add(swarm.connections_max.saturating_mul(BLOCK_LENGTH_MAX as usize))
}
