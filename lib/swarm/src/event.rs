//! What goes out of the swarm: frames to send and things for the driver to do.

use std::net::IpAddr;
use std::time::Duration;

use shoal_meta::{BlockRef, Digest, PeerId, PeerInfo, PieceHash, PieceIndex};

use crate::wire::{Alias, Message};

/// Who somebody is that is to be kept out: the host, whatever it calls itself there. Many nodes may share the loopback address:
/// of those it is the one of that name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Who {
    /// All that comes from an address.
    Host(IpAddr),
    /// A peer on this machine.
    Local(PeerId),
}

impl Who {
    pub(crate) fn is(peer: PeerId, at: IpAddr) -> Self {
        let at = at.to_canonical();
        if at.is_loopback() { Self::Local(peer) } else { Self::Host(at) }
    }
}

/// Names a connection; the driver draws these, never twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnId(pub u64);

/// Names an open torrent of this swarm; never drawn twice. On the wire it is our alias.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TorrentKey(pub(crate) u32);

impl TorrentKey {
    /// The alias our messages use for this torrent.
    #[must_use]
    pub fn alias(self) -> Alias {
        Alias(self.0)
    }
}

/// Names a reader's window; drawn by [`crate::Swarm::add_reader`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ReaderId(pub(crate) u64);

/// A frame for one connection. The driver sends control frames before blocks, each kind in the order given.
#[derive(Clone, PartialEq, Debug)]
pub struct Transmit {
    /// Where it goes.
    pub conn: ConnId,
    /// What it is.
    pub frame: Frame,
}

/// What is sent in one frame.
#[derive(Clone, PartialEq, Debug)]
pub enum Frame {
    /// A control message.
    Control(Message),
    /// A block of a verified piece: the driver reads it from the store, sends it, and reports it with
    /// [`crate::Swarm::handle_block_sent`]. At most [`crate::SEND_WINDOW_BLOCKS`] are out per connection.
    Block {
        /// The torrent, whose [`TorrentKey::alias`] goes into the frame.
        torrent: TorrentKey,
        /// The bytes to read.
        block: BlockRef,
    },
}

/// Something for the driver to do.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// Connect to a peer; report by `handle_connected` or `handle_dial_failed`.
    Dial(PeerInfo),
    /// Close a connection; what is queued for it is void. The swarm has forgotten it already: do not report it.
    Disconnect {
        /// Which one.
        conn: ConnId,
        /// Why.
        reason: DisconnectReason,
    },
    /// Every block of a piece is in: verify and write it, then report by `handle_verified`.
    PieceReceived {
        /// The torrent.
        torrent: TorrentKey,
        /// The piece.
        piece: PieceIndex,
    },
    /// A piece was given up (its torrent closed, or a bad peer's blocks were thrown away): drop its buffered blocks.
    PieceDropped {
        /// The torrent.
        torrent: TorrentKey,
        /// The piece.
        piece: PieceIndex,
    },
    /// A peer opened a torrent that is not open here: if the store holds the blob, `open` it as a seeder.
    TorrentWanted(Digest),
    /// A torrent that is whole has no leecher, and has had none for a while or its room is needed: `close` it, or hear so again.
    TorrentIdle(TorrentKey),
    /// A neighbour asks who has a blob: answer with `handle_find_answer`.
    FindTorrent {
        /// The blob.
        digest: Digest,
        /// Hand it back with the answer.
        query: u64,
    },
    /// A peer asks for the hashes of a torrent: answer by `give_metainfo`.
    MetainfoAsked {
        /// The torrent.
        torrent: TorrentKey,
        /// Who asks.
        conn: ConnId,
    },
    /// A peer gave the hashes of all pieces: check the origin's seal, and report by `handle_metainfo_checked`.
    MetainfoFound {
        /// The torrent.
        torrent: TorrentKey,
        /// One for each piece.
        hashes: Vec<PieceHash>,
        /// What the peer says is the origin's seal.
        seal: Vec<u8>,
    },
    /// Somebody is banned: neither dialled nor let in for a while.
    Banned {
        /// Who.
        who: Who,
        /// For how long.
        length: Duration,
    },
}

/// Why the swarm closes a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DisconnectReason {
    /// The peer broke the protocol.
    Violation(Violation),
    /// The peer sent a piece that failed verification.
    BadPiece,
    /// The peer gave hashes that no origin has sealed.
    FalseMetainfo,
    /// There is another connection to the same peer.
    Duplicate,
    /// The peer owed us blocks and sent none, or granted pieces and refused them, again and again.
    Snubbed,
    /// We have too many connections and this one is the least useful.
    Surplus,
    /// The peer is banned.
    Banned,
}

/// How a peer broke the protocol. Always the peer's fault; its connection is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Violation {
    /// A message names an alias that the peer has not opened.
    #[error("the peer used an alias it has not opened")]
    UnknownAlias,
    /// A piece or block is outside the blob.
    #[error("the peer named a piece or block outside the blob")]
    OutOfRange,
    /// A block arrived that we never asked for.
    #[error("the peer sent a block that was not requested")]
    UnrequestedBlock,
    /// A limit on what a peer may make us hold was exceeded.
    #[error("the peer exceeded the limit on {0}")]
    LimitExceeded(&'static str),
    /// What came is no frame.
    #[error("the peer sent what is no frame")]
    Malformed,
    /// A message came that has no place here, such as a second Hello.
    #[error("the peer sent a message out of place")]
    OutOfPlace,
}

/// What becomes of a block that arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockOutcome {
    /// Keep the bytes until the piece is received or dropped.
    Accepted {
        /// The torrent.
        torrent: TorrentKey,
        /// The block.
        block: BlockRef,
    },
    /// We have it already, or cancelled it too late: throw the bytes away and count them as wasted.
    Duplicate,
}

/// Why `poll_timeout` wants to be called back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TimeoutReason {
    /// Late pieces, snubbed peers, unused grants, waiting readers.
    Progress,
    /// The choke policy's next round.
    Rechoke,
    /// Dials, idle torrents, bans, searches for peers.
    Housekeeping,
}
