//! One node's swarm: every torrent and every connection, owned by one caller.

use shoal_meta::{Bitfield, BlockRef, Digest, Geometry, PeerId, PeerInfo, PieceIndex};

use crate::wire::{BlockHeader, Message};
use crate::{BlockOutcome, Config, ConnId, Event, ReaderId, Time, TimeoutReason, TorrentKey, Transmit, Violation};

/// Blocks given to the driver and not yet reported sent, at most, per connection.
pub const SEND_WINDOW_BLOCKS: usize = 2;

/// What [`Swarm::open`] needs to know of a torrent.
#[derive(Clone, Debug)]
pub struct OpenTorrent {
    /// The blob.
    pub digest: Digest,
    /// Its cut.
    pub geometry: Geometry,
    /// Pieces verified on disk.
    pub have: Bitfield,
    /// Pieces whose hash is known, counted from the first; others are not requested yet.
    pub known: u32,
    /// Reveal different pieces to different peers until each has left once (the origin's way).
    pub super_seed: bool,
}

/// What can be seen of a torrent from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TorrentView {
    /// Pieces we have.
    pub have: u32,
    /// Pieces of the blob.
    pub pieces: u32,
    /// Pieces requested or being verified.
    pub active: u32,
    /// Connected peers in the torrent.
    pub peers: usize,
    /// Of those, the ones with every piece.
    pub seeders: usize,
}

/// One node's swarm, without IO.
///
/// **Inputs** are `handle_*`: what connections, store and clock report. **Commands** are verbs: [`open`](Self::open),
/// [`close`](Self::close), [`add_piece`](Self::add_piece), readers. After any of them, drain the **outputs**, in this order:
/// 1. [`poll_transmit`](Self::poll_transmit) until `None`, and send what came in one flush;
/// 2. [`poll_event`](Self::poll_event) until `None`, and act; if an act is itself an input, start again;
/// 3. [`poll_timeout`](Self::poll_timeout), and call [`handle_timeout`](Self::handle_timeout) at that time.
#[derive(Debug)]
pub struct Swarm;

impl Swarm {
    /// Starts without torrents or connections. The same seed and inputs give the same outputs.
    pub fn new(config: Config, me: PeerInfo, seed: u64) -> Self { let _ = (config, me, seed); unimplemented!() }
    /// This node.
    pub fn me(&self) -> &PeerInfo { unimplemented!() }
    // -- commands
    /// Opens a torrent, or returns the key of the open one. `None` when too many are open.
    pub fn open(&mut self, now: Time, torrent: OpenTorrent) -> Option<TorrentKey> { let _ = (now, torrent); unimplemented!() }
    /// Closes a torrent here and at every peer.
    pub fn close(&mut self, now: Time, torrent: TorrentKey) { let _ = (now, torrent); unimplemented!() }
    /// A piece came another way (upstream) and is verified and on disk.
    pub fn add_piece(&mut self, now: Time, torrent: TorrentKey, piece: PieceIndex) { let _ = (now, torrent, piece); unimplemented!() }
    /// The hashes of pieces `0..known` are known now.
    pub fn set_known(&mut self, now: Time, torrent: TorrentKey, known: u32) { let _ = (now, torrent, known); unimplemented!() }
    /// A reader needs the blob in order from this piece on.
    pub fn add_reader(&mut self, now: Time, torrent: TorrentKey, piece: PieceIndex) -> Option<ReaderId> { let _ = (now, torrent, piece); unimplemented!() }
    /// The reader got on to this piece.
    pub fn move_reader(&mut self, now: Time, torrent: TorrentKey, reader: ReaderId, piece: PieceIndex) { let _ = (now, torrent, reader, piece); unimplemented!() }
    /// The reader is gone; the download goes on.
    pub fn remove_reader(&mut self, torrent: TorrentKey, reader: ReaderId) { let _ = (torrent, reader); unimplemented!() }
    /// Peers known to take part (from the tracker): candidates to dial.
    pub fn add_peers(&mut self, now: Time, torrent: TorrentKey, peers: &[PeerInfo]) { let _ = (now, torrent, peers); unimplemented!() }
    // -- inputs
    /// A connection is up and both Hellos are exchanged.
    pub fn handle_connected(&mut self, now: Time, conn: ConnId, peer: PeerInfo, dialled: bool) { let _ = (now, conn, peer, dialled); unimplemented!() }
    /// A connection is gone.
    pub fn handle_disconnected(&mut self, now: Time, conn: ConnId) { let _ = (now, conn); unimplemented!() }
    /// A dial asked for by `Event::Dial` failed.
    pub fn handle_dial_failed(&mut self, now: Time, peer: PeerId) { let _ = (now, peer); unimplemented!() }
    /// A control message came (Hello excepted). On a violation the swarm itself emits `Event::Disconnect`.
    pub fn handle_message(&mut self, now: Time, conn: ConnId, message: Message) { let _ = (now, conn, message); unimplemented!() }
    /// A block came. On a violation the swarm itself emits `Event::Disconnect`; throw the bytes away then.
    pub fn handle_block(&mut self, now: Time, conn: ConnId, header: BlockHeader) -> Result<(TorrentKey, BlockRef, BlockOutcome), Violation> { let _ = (now, conn, header); unimplemented!() }
    /// A block given by `poll_transmit` is written to the socket.
    pub fn handle_block_sent(&mut self, now: Time, conn: ConnId, torrent: TorrentKey, block: BlockRef) { let _ = (now, conn, torrent, block); unimplemented!() }
    /// The piece of an `Event::PieceReceived` was verified and written (`true`), or its hash is wrong (`false`).
    pub fn handle_verified(&mut self, now: Time, torrent: TorrentKey, piece: PieceIndex, good: bool) { let _ = (now, torrent, piece, good); unimplemented!() }
    /// The piece could not be written (our fault): it will be fetched again.
    pub fn handle_write_failed(&mut self, now: Time, torrent: TorrentKey, piece: PieceIndex) { let _ = (now, torrent, piece); unimplemented!() }
    /// The answer to an `Event::FindTorrent`.
    pub fn handle_find_answer(&mut self, now: Time, query: u64, digest: Digest, held: bool) { let _ = (now, query, digest, held); unimplemented!() }
    /// The time of `poll_timeout` has come.
    pub fn handle_timeout(&mut self, now: Time) { let _ = now; unimplemented!() }
    // -- outputs
    /// The next frame to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> { unimplemented!() }
    /// The next thing to do.
    pub fn poll_event(&mut self) -> Option<Event> { unimplemented!() }
    /// When to call `handle_timeout`, and why.
    pub fn poll_timeout(&self) -> Option<(Time, TimeoutReason)> { unimplemented!() }
    // -- getters
    /// Looks at a torrent.
    pub fn torrent(&self, torrent: TorrentKey) -> Option<TorrentView> { let _ = torrent; unimplemented!() }
    /// Connected peers.
    pub fn connections(&self) -> usize { unimplemented!() }
    /// The peer at the other end of a connection.
    pub fn peer(&self, conn: ConnId) -> Option<&PeerInfo> { let _ = conn; unimplemented!() }
    /// Panics when an invariant is broken; for tests and the simulator.
    pub fn check_invariants(&self) { unimplemented!() }
}
