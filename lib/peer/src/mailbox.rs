//! The driver's mailbox: everything that can happen to a node, as one bounded queue of inputs.
//!
//! Sent to by connections, disk jobs, the announcer and handles; read by the driver alone.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use shoal_meta::{BlockRef, Digest, Lead, Metainfo, PeerId, PeerInfo, PieceIndex};
use shoal_store::{Blob, CommitError, Partial, WriteError};
use shoal_swarm::wire::{BlockHeader, Message};
use shoal_swarm::{ConnId, TorrentKey};
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::conn::Connected;
use crate::counters::{Counters, From};
use crate::node::JoinError;
use crate::torrent::{Shared, Torrent};

/// Inputs waiting at most; whoever sends one more waits its turn.
pub(crate) const MAILBOX_MAX: usize = 256;

/// Something that happened, for the driver to act on.
pub(crate) enum Input {
    /// A connection is up, both Hellos exchanged.
    Connected(Connected),
    /// A dial failed.
    DialFailed(PeerId),
    /// A connection ended by itself.
    Disconnected(ConnId),
    /// A peer sent what is no frame; `Disconnected` follows.
    Malformed(ConnId),
    /// A control message came.
    Message(ConnId, Message),
    /// A block came.
    Block {
        conn: ConnId,
        header: BlockHeader,
        payload: bytes::Bytes,
        /// Bounds the blocks of one connection that wait here.
        _place: OwnedSemaphorePermit,
    },
    /// Blocks left, or could not be read and were rejected.
    BlocksSent { conn: ConnId, blocks: Vec<BlockRef> },
    /// The store is done with a piece from peers, as a job of this number.
    Written {
        torrent: TorrentKey,
        piece: PieceIndex,
        job: u64,
        /// Who sent how much of it.
        received: Vec<(From, u64)>,
        result: Result<(), WriteError>,
    },
    /// The store is done with a whole blob.
    Committed { torrent: TorrentKey, result: Result<Blob, CommitError> },
    /// A piece from upstream is verified and on disk; `bytes` is what it added.
    Ingested { digest: Digest, piece: PieceIndex, bytes: u64 },
    /// More hashes of a partial are known, and maybe more of its pieces.
    Grown(Digest),
    /// Someone takes part in a blob's torrent. What is to be fetched of it, its handle tells.
    Join { partial: Partial, reply: oneshot::Sender<Result<Arc<Shared>, JoinError>> },
    /// The store needs the room of what nobody needs.
    ReleaseIdle { done: oneshot::Sender<()> },
    /// Someone gives a blob up.
    Withdraw { digest: Digest, reason: String, done: oneshot::Sender<()> },
    /// No origin tells the hashes of a torrent's pieces: peers may.
    FindMetainfo(Digest),
    /// What was read of a blob's metainfo for a peer that asked.
    MetainfoRead { conn: ConnId, torrent: TorrentKey, metainfo: Option<(Metainfo, Vec<u8>)> },
    /// Whether metainfo from a peer is the origin's.
    MetainfoChecked { torrent: TorrentKey, good: bool },
    /// Peers known to take part in a torrent.
    Peers {
        digest: Digest,
        peers: Vec<PeerInfo>,
        /// Our part as a leader of our zone.
        lead: Option<Lead>,
    },
}

/// What everyone who talks to the driver holds.
#[derive(Clone)]
pub(crate) struct Handle {
    sender: mpsc::Sender<Input>,
    readers: Arc<ReadersChanged>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) shutdown: CancellationToken,
}

/// The torrents whose readers moved, or of which more is wanted, since the driver looked. A set, so that it needs no queue and drops may tell too.
#[derive(Default)]
pub(crate) struct ReadersChanged {
    digests: Mutex<BTreeSet<Digest>>,
    notify: Notify,
}

impl Handle {
    pub(crate) fn new(counters: Arc<Counters>, shutdown: CancellationToken) -> (Self, Mailbox) {
        let (sender, receiver) = mpsc::channel(MAILBOX_MAX);
        let readers = Arc::new(ReadersChanged::default());
        let mailbox = Mailbox { receiver, readers: readers.clone() };
        (Self { sender, readers, counters, shutdown }, mailbox)
    }

    /// Sends an input, waiting while the mailbox is full.
    ///
    /// # Errors
    /// When the driver has ended: the node shut down.
    pub(crate) async fn send(&self, input: Input) -> Result<(), DriverEnded> {
        self.sender.send(input).await.map_err(|_| DriverEnded)
    }

    /// Sends an input that may be lost: false when the mailbox is full or the node shut down.
    pub(crate) fn try_send(&self, input: Input) -> bool {
        self.sender.try_send(input).is_ok()
    }

    pub(crate) fn readers_changed(&self, digest: Digest) {
        self.readers.lock().insert(digest);
        self.readers.notify.notify_one();
    }

    pub(crate) fn torrent(&self, shared: Arc<Shared>) -> Torrent {
        Torrent { shared, node: self.clone() }
    }
}

/// The driver's end.
pub(crate) struct Mailbox {
    receiver: mpsc::Receiver<Input>,
    readers: Arc<ReadersChanged>,
}

impl Mailbox {
    /// Moves up to `max` inputs that wait into `out`; waits for the first.
    pub(crate) async fn receive(&mut self, out: &mut Vec<Input>, max: usize) -> usize {
        self.receiver.recv_many(out, max).await
    }

    /// Waits until a reader moved.
    pub(crate) fn readers(&self) -> Arc<ReadersChanged> {
        self.readers.clone()
    }
}

impl ReadersChanged {
    pub(crate) async fn changed(&self) -> BTreeSet<Digest> {
        self.notify.notified().await;
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<Digest>> {
        self.digests.lock().expect("nothing panics while it holds this lock")
    }
}

/// Says that the driver has ended: the node shut down.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DriverEnded;
