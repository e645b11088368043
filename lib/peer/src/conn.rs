//! One connection to a peer: Hello both ways, then a task that reads frames and one that writes them.
//!
//! Started by the listener and the dialler. Reports to the driver's mailbox and sends what its [`Outbox`] holds. It checks
//! that bytes are frames; what they mean is the swarm's to judge. A peer can make it hold one control frame, and two
//! blocks the driver has not looked at.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use shoal_identity::{Identity, Parts};
use shoal_kit::window::{AHEAD_BYTES_MIN, Window};
use shoal_meta::{BlockRef, PeerId, PeerInfo, Role};
use shoal_store::BufferPool;
use shoal_swarm::ConnId;
use shoal_swarm::wire::{self, BLOCK_HEADER_LENGTH, HEADER_LENGTH, Header, Message, WireBlock, WireError};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::counters::count;
use crate::link::{self, Link, Receiving};
use crate::mailbox::{Handle, Input};
use crate::outbox::{Outbox, OutgoingBlock};
use crate::pace::Pace;
use crate::rate::RateCap;
use crate::send::{self, Ready, STALL_TIMEOUT};
use crate::socket::Manners;

/// How long a peer has to say Hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest Hello accepted, in bytes; ours has about a hundred.
const HELLO_LENGTH_MAX: u32 = 4096;
/// Blocks of one connection that the driver has not looked at, at most.
const BLOCKS_WAITING_MAX: usize = 2;
/// Headers and control frames are read through a buffer of this size; payload goes past it.
const READ_BUFFER_BYTES: usize = 16 * 1024;
/// A control frame longer than this does not leave its buffer behind.
const SCRATCH_BYTES_KEPT: usize = 64 * 1024;

/// What all connections of a node share.
pub(crate) struct Net {
    pub(crate) me: PeerInfo,
    pub(crate) identity: Identity,
    pub(crate) handle: Handle,
    pub(crate) pool: BufferPool,
    pub(crate) upload: RateCap,
    pub(crate) download: RateCap,
    pub(crate) manners: Manners,
    pub(crate) tasks: TaskTracker,
    pub(crate) next_conn: AtomicU64,
}

/// A connection that is up, both Hellos exchanged.
pub(crate) struct Connected {
    pub(crate) conn: ConnId,
    pub(crate) remote: SocketAddr,
    pub(crate) peer: PeerInfo,
    pub(crate) dialled: bool,
    pub(crate) outbox: Arc<Outbox>,
}

/// Says why a connection ended from within.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnError {
    /// The socket failed, or the peer closed it.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// The peer is silent, refuses us, or shows no certificate of what it is said to be.
    #[error("no TLS with the peer")]
    Tls(#[source] io::Error),
    /// The peer says that it is something its certificate does not.
    #[error("the peer has no certificate of an {0:?}")]
    Impostor(Role),
    /// The peer sent something that is not a frame.
    #[error("the peer broke the protocol")]
    Wire(#[from] WireError),
    /// The peer did not say Hello in time.
    #[error("no Hello within {HELLO_TIMEOUT:?}")]
    HelloTimeout,
    /// The peer's first frame is not a Hello.
    #[error("the first frame is not a Hello")]
    NoHello,
    /// The peer speaks another version of the wire.
    #[error("the peer speaks wire version {0}")]
    Version(u32),
    /// The address belongs to another peer now, or to ourselves.
    #[error("another peer answered: {0}")]
    OtherPeer(PeerId),
    /// The peer stopped in the middle of a frame.
    #[error("the peer stalled in the middle of a frame")]
    Stalled,
    /// The node is shutting down.
    #[error("the node is shutting down")]
    Closed,
}

/// Runs a connection to its end. `dialled` is the peer that we meant to dial.
pub(crate) async fn run(net: Arc<Net>, stream: TcpStream, remote: SocketAddr, dialled: Option<PeerInfo>) {
    let (peer, mut read, write) = match establish(&net, stream, remote, dialled.as_ref()).await {
        Ok(established) => established,
        Err(error) => {
            net.note(&error, remote);
            if let Some(peer) = dialled {
                // The driver's end is the node's end.
                let _ = net.handle.send(Input::DialFailed(peer.id)).await;
            }
            return;
        }
    };
    let conn = ConnId(net.next_conn.fetch_add(1, Relaxed));
    let outbox = Arc::new(Outbox::new(net.handle.shutdown.child_token()));
    // Far peers' round trips are long, and a cap has bounded the window already.
    let is_bounded = net.me.topology.is_far(&peer.topology) || net.download.socket_buffer().is_some();
    let window = (!is_bounded).then(|| (Window::new(AHEAD_BYTES_MIN), write.socket.clone()));
    let connected = Connected { conn, remote, peer, dialled: dialled.is_some(), outbox: outbox.clone() };
    if net.handle.send(Input::Connected(connected)).await.is_err() {
        return;
    }
    let writer = net.tasks.spawn(write_frames(net.clone(), conn, write, remote, outbox.clone()));
    tokio::select! {
        end = read_frames(&net, conn, &mut read, window) => match end {
            Ok(()) => {}
            Err(ConnError::Wire(error)) => {
                debug!(%remote, %error, "a peer sent what is no frame");
                let _ = net.handle.send(Input::Malformed(conn)).await;
            }
            Err(error) => net.note(&error, remote),
        },
        () = outbox.closed() => {}
    }
    outbox.close();
    // It ends at once, and panics only by our own fault.
    let _ = writer.await;
    let _ = net.handle.send(Input::Disconnected(conn)).await;
}

impl Net {
    fn note(&self, error: &ConnError, remote: SocketAddr) {
        match error {
            // Who dies in the midst of it has broken nothing.
            ConnError::Tls(error) if is_gone(error) => {}
            ConnError::Wire(_)
            | ConnError::NoHello
            | ConnError::HelloTimeout
            | ConnError::Stalled
            | ConnError::Tls(_)
            | ConnError::Impostor(_) => {
                count(&self.handle.counters.violations, 1);
            }
            ConnError::Io(_) | ConnError::Version(_) | ConnError::OtherPeer(_) | ConnError::Closed => {}
        }
        debug!(%remote, error = error as &dyn std::error::Error, "connection ended");
    }
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    [BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof].contains(&error.kind())
}

/// Sets a connection up until both ends know whom they have.
async fn establish(
    net: &Net,
    stream: TcpStream,
    remote: SocketAddr,
    expected: Option<&PeerInfo>,
) -> Result<(PeerInfo, BufReader<Receiving>, Link), ConnError> {
    let (read, mut write, parts) = tokio::select! {
        established = link::establish(&net.identity, stream, expected.map(|peer| peer.role)) => {
            established.map_err(ConnError::Tls)?
        }
        () = net.handle.shutdown.cancelled() => return Err(ConnError::Closed),
    };
    let mut read = BufReader::with_capacity(READ_BUFFER_BYTES, read);
    let peer = shake_hands(net, &mut read, &mut write, remote.ip(), parts).await?;
    if peer.id == net.me.id || expected.is_some_and(|expected| expected.id != peer.id) {
        return Err(ConnError::OtherPeer(peer.id));
    }
    Ok((peer, read, write))
}

async fn shake_hands(
    net: &Net,
    read: &mut BufReader<Receiving>,
    write: &mut Link,
    remote: IpAddr,
    parts: Parts,
) -> Result<PeerInfo, ConnError> {
    let hello = async {
        let mut out = Vec::new();
        wire::encode_control(&Message::Hello { version: wire::VERSION, peer: Box::new(net.me.clone()) }, &mut out);
        send::write_all(write, &out, &[]).await?;
        read_hello(read).await
    };
    let (version, mut peer) = tokio::select! {
        hello = timeout(HELLO_TIMEOUT, hello) => hello.map_err(|_elapsed| ConnError::HelloTimeout)??,
        () = net.handle.shutdown.cancelled() => return Err(ConnError::Closed),
    };
    if version != wire::VERSION {
        return Err(ConnError::Version(version));
    }
    if !parts.contain(link::part(peer.role)) {
        return Err(ConnError::Impostor(peer.role));
    }
    if peer.address.ip().is_unspecified() {
        peer.address.set_ip(remote);
    }
    Ok(peer)
}

async fn read_hello(read: &mut (impl AsyncRead + Unpin)) -> Result<(u32, PeerInfo), ConnError> {
    let mut header = [0; HEADER_LENGTH];
    read.read_exact(&mut header).await?;
    let length = match wire::decode_header(header)? {
        Header::Control { length } if length <= HELLO_LENGTH_MAX => length,
        Header::Control { .. } | Header::Block { .. } => return Err(ConnError::NoHello),
    };
    let mut body = vec![0; length as usize];
    read.read_exact(&mut body).await?;
    match wire::decode_control(&body)? {
        Some(Message::Hello { version, peer }) => Ok((version, *peer)),
        Some(_) | None => Err(ConnError::NoHello),
    }
}

/// Reads frames until the connection fails or the peer breaks the protocol; keeps to the window, if there is one, of the socket.
async fn read_frames(
    net: &Net,
    conn: ConnId,
    read: &mut BufReader<Receiving>,
    mut window: Option<(Window, Arc<TcpStream>)>,
) -> Result<(), ConnError> {
    let places = Arc::new(Semaphore::new(BLOCKS_WAITING_MAX));
    let mut scratch = Vec::new();
    loop {
        let mut header = [0; HEADER_LENGTH];
        // A peer may be silent between frames, and not within one.
        let (first, rest) = header.split_at_mut(1);
        read.read_exact(first).await?;
        fill(read, rest).await?;
        let input = match wire::decode_header(header)? {
            Header::Control { length } => {
                net.download.charge(HEADER_LENGTH + length as usize);
                scratch.resize(length as usize, 0);
                fill(read, &mut scratch).await?;
                let message = wire::decode_control(&scratch)?;
                scratch.clear();
                scratch.shrink_to(SCRATCH_BYTES_KEPT);
                message.map(|message| Input::Message(conn, message))
            }
            Header::Block { length } => {
                let began = Instant::now();
                let place = places.clone().acquire_owned().await.expect("this semaphore is never closed");
                let mut header = [0; BLOCK_HEADER_LENGTH];
                fill(read, &mut header).await?;
                let header = wire::decode_block_header(header, length);
                let mut payload = net.pool.get(length as usize).await;
                for slice in payload.chunks_mut(net.download.slice()) {
                    net.download.take(slice.len()).await;
                    fill(read, slice).await?;
                }
                if let Some((window, socket)) = &mut window
                    && let Some(ahead) = window.received(began, Instant::now(), length.into())
                {
                    SockRef::from(&**socket).set_recv_buffer_size(ahead as usize)?;
                }
                Some(Input::Block { conn, header, payload: payload.freeze(), _place: place })
            }
        };
        if let Some(input) = input {
            net.handle.send(input).await.map_err(|_ended| ConnError::Closed)?;
        }
    }
}

/// Reads exactly as much as fits; fails when that takes longer than [`STALL_TIMEOUT`]: whoever sends a byte at a time has a block's
/// room for no longer, and is no use at less than 9 KB/s.
async fn fill(read: &mut (impl AsyncRead + Unpin), into: &mut [u8]) -> Result<(), ConnError> {
    timeout(STALL_TIMEOUT, read.read_exact(into)).await.map_err(|_elapsed| ConnError::Stalled)??;
    Ok(())
}

/// Writes what the outbox holds until it is closed or the connection fails: control frames before blocks.
async fn write_frames(net: Arc<Net>, conn: ConnId, mut write: Link, remote: SocketAddr, outbox: Arc<Outbox>) {
    let writing = async {
        let mut control = Vec::new();
        let mut blocks = VecDeque::new();
        let mut pace = Pace::new();
        let mut sent = Sent::default();
        loop {
            outbox.take(&mut control, &mut blocks);
            if !control.is_empty() {
                net.upload.charge(control.len());
                send::write_all(&mut write, &control, &[]).await?;
                control.clear();
                control.shrink_to(SCRATCH_BYTES_KEPT);
                continue;
            }
            if blocks.is_empty() || pace.is_worth_a_report(sent.bytes) {
                sent.report(&net, conn).await?;
            }
            let Some(next) = blocks.front_mut() else {
                outbox.changed().await;
                continue;
            };
            tokio::select! {
                biased;
                () = outbox.changed() => {}
                payload = next.payload.ready() => {
                    let next = blocks.pop_front().expect("its payload was just awaited");
                    let began = Instant::now();
                    write_block(&net, &mut write, &next, payload).await?;
                    sent.add(next.block);
                    if let Some(unsent) = pace.sent(began, Instant::now(), next.block.length.into()) {
                        SockRef::from(&*write.socket).set_tcp_notsent_lowat(unsent)?;
                    }
                }
            }
        }
    };
    let end: Result<(), ConnError> = tokio::select! {
        end = writing => end,
        () = outbox.closed() => Ok(()),
    };
    if let Err(error) = end {
        net.note(&error, remote);
    }
    outbox.close();
}

/// Blocks that were sent and that the swarm does not know of yet.
#[derive(Default)]
struct Sent {
    blocks: Vec<BlockRef>,
    bytes: u64,
}

impl Sent {
    fn add(&mut self, block: BlockRef) {
        self.blocks.push(block);
        self.bytes += u64::from(block.length);
    }

    async fn report(&mut self, net: &Net, conn: ConnId) -> Result<(), ConnError> {
        let Self { blocks, .. } = std::mem::take(self);
        if blocks.is_empty() {
            return Ok(());
        }
        net.handle.send(Input::BlocksSent { conn, blocks }).await.map_err(|_ended| ConnError::Closed)
    }
}

/// Sends a block; one that cannot be read is rejected.
async fn write_block(
    net: &Net,
    write: &mut Link,
    outgoing: &OutgoingBlock,
    payload: io::Result<Ready>,
) -> Result<(), ConnError> {
    let (torrent, block) = (outgoing.torrent, outgoing.block);
    match payload {
        Ok(payload) => {
            let header = wire::encode_block_header(torrent.alias(), block);
            send::send(write, &net.upload, &header, &payload).await?;
            count(&net.handle.counters.sent, u64::from(block.length));
        }
        Err(error) => {
            tracing::warn!(%error, piece = block.piece.get(), "cannot read a block from the store");
            let reject = Message::Reject { alias: torrent.alias(), blocks: vec![WireBlock::from(block)] };
            let mut out = Vec::new();
            wire::encode_control(&reject, &mut out);
            send::write_all(write, &out, &[]).await?;
        }
    }
    Ok(())
}
