//! A rogue: a node that was taken over. It has an agent's certificate and a name that it drew, speaks the real wire, is
//! announced as a seeder of one blob, dials peers and takes their dials, and lies to all of them in one way. Started by the
//! tests on a node of its own, where it is a thread of this program; knows of the others what a peer sees.

mod lies;
mod link;
mod tracker;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use shoal_identity::{Identity, Part};
use shoal_meta::{Digest, Geometry, PeerId, PeerInfo, Role, Topology};
use shoal_swarm::wire::{FindPeers, Message};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub use lies::Lie;

use crate::image::Blob;
use crate::node::Node;
use crate::wait::wait_until;
use link::{Receiving, Sending};
use tracker::Announcer;

/// The longest that a peer may take to answer, or to close a connection.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The least a kernel grants: what is not read backs up soon.
const SMALL_BUFFER_BYTES: u32 = 4096;

/// Somebody to lie to.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// Where it takes peers.
    pub address: SocketAddr,
    /// What it is.
    pub role: Role,
}

/// What became of the connections with one peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Met {
    /// Connections over which a lie was told.
    pub lied: u32,
    /// Those of them that the peer has ended since.
    pub cut_off: u32,
    /// Lies told.
    pub lies: u64,
}

/// Where a rogue works, and what it knows of the cluster.
#[derive(Debug, Clone)]
pub struct Place {
    /// The node it is on.
    pub node: Arc<Node>,
    /// An agent's certificates.
    pub certificates: PathBuf,
    /// The tracker.
    pub tracker: SocketAddr,
    /// Whom it dials; others may dial it.
    pub dialled: Vec<Peer>,
}

/// A rogue at work. Dropping it ends its connections.
#[derive(Debug)]
pub struct Rogue {
    place: Place,
    shared: Arc<Shared>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

/// What all its connections share.
#[derive(Debug)]
struct Shared {
    lie: Lie,
    me: PeerInfo,
    identity: Identity,
    torrent: Torrent,
    /// Addresses that others may be sent to in vain.
    bait: Vec<SocketAddr>,
    met: Mutex<BTreeMap<IpAddr, Met>>,
    announced: AtomicU64,
}

/// The blob it lies about.
#[derive(Debug, Clone, Copy)]
struct Torrent {
    digest: Digest,
    geometry: Geometry,
}

impl Rogue {
    /// Starts one. When this returns it is announced as a seeder of the blob, and connected to all whom it dials.
    ///
    /// # Errors
    /// When it does not get that far.
    pub fn start(place: &Place, blob: &Blob, lie: Lie) -> Result<Self> {
        let torrent = Torrent { digest: blob.digest.parse()?, geometry: Geometry::for_length(blob.length)? };
        let stop = CancellationToken::new();
        let (begun, begins) = mpsc::channel();
        let (own, stopping) = (place.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let work = async {
                match Shared::begin(&own, torrent, lie, &stopping).await {
                    Ok((shared, listener, announcer)) => {
                        // Whoever waits for it has given up else.
                        let _ = begun.send(Ok(Arc::clone(&shared)));
                        tokio::select! {
                            () = stopping.cancelled() => announcer.leave(&shared).await,
                            () = shared.work(listener, &announcer, &own.dialled) => {}
                        }
                    }
                    Err(error) => drop(begun.send(Err(error))),
                }
            };
            match own.node.enter_network().and_then(|()| runtime()) {
                Ok(runtime) => runtime.block_on(work),
                Err(error) => drop(begun.send(Err(error))),
            }
        });
        let shared = begins.recv().context("the rogue has ended")??;
        let rogue = Self { place: place.clone(), shared, stop, thread: Some(thread) };
        wait_until("the rogue's connections", ANSWER_TIMEOUT, || {
            let met = rogue.met();
            Ok(place.dialled.iter().all(|peer| met.contains_key(&peer.address.ip())))
        })?;
        Ok(rogue)
    }

    /// The name it goes by.
    #[must_use]
    pub fn name(&self) -> PeerId {
        self.shared.me.id
    }

    /// Whom it met, by address.
    #[must_use]
    pub fn met(&self) -> BTreeMap<IpAddr, Met> {
        self.shared.met().clone()
    }

    /// Lies told to the tracker: torrents and peers that are not there.
    #[must_use]
    pub fn announced(&self) -> u64 {
        self.shared.announced.load(Relaxed)
    }

    /// Whether a peer listens to one of this name: it answers a question, where else it closes the connection.
    ///
    /// # Errors
    /// When it does neither in time.
    pub fn is_heard(&self, peer: Peer, name: PeerId) -> Result<bool> {
        let me = PeerInfo { id: name, ..self.shared.me.clone() };
        self.place.node.in_network(|| {
            runtime()?.block_on(async {
                let stop = CancellationToken::new();
                let _ended = stop.clone().drop_guard();
                let identity = Identity::start(Some(&self.place.certificates), Part::Agent, stop)?;
                let asking = ask(&identity, &me, peer, self.shared.torrent.digest);
                let answer = timeout(ANSWER_TIMEOUT, asking).await;
                answer.with_context(|| format!("{} neither answers nor hangs up", peer.address))?
            })
        })
    }
}

impl Drop for Rogue {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // It ends at once, and panics only by a fault of its own, which the test then sees by what is missing.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Listens, and is announced once.
    async fn begin(
        place: &Place,
        torrent: Torrent,
        lie: Lie,
        stop: &CancellationToken,
    ) -> Result<(Arc<Self>, TcpListener, Announcer)> {
        let identity = Identity::start(Some(&place.certificates), Part::Agent, stop.child_token())?;
        let socket = socket(lie)?;
        socket.bind((place.node.ip(), 0).into())?;
        let listener = socket.listen(1024)?;
        let (address, topology) = (listener.local_addr()?, Topology::default());
        let me = PeerInfo { id: PeerId(rand::random()), address, role: Role::Agent, topology };
        let announcer = Announcer::new(&identity, place.tracker).context("a tracker's address")?;
        let (met, announced) = (Mutex::default(), AtomicU64::new(0));
        let shared = Arc::new(Self { lie, me, identity, torrent, bait: bait(place), met, announced });
        announcer.announce(&shared).await?;
        Ok((shared, listener, announcer))
    }

    async fn work(self: &Arc<Self>, listener: TcpListener, announcer: &Announcer, dialled: &[Peer]) {
        for peer in dialled.iter().copied() {
            let shared = Arc::clone(self);
            tokio::spawn(async move {
                // A peer that cannot be dialled is not met.
                if let Ok(stream) = dial(shared.lie, peer.address).await {
                    let _ = shared.converse(stream, Some(peer.role)).await;
                }
            });
        }
        let accepting = async {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(self);
                tokio::spawn(async move { shared.converse(stream, None).await });
            }
        };
        tokio::join!(accepting, announcer.run(self));
    }

    /// Lies over one connection until the peer ends it.
    async fn converse(&self, stream: TcpStream, dialled: Option<Role>) -> Result<()> {
        let (sending, receiving) = link::open(&self.identity, &self.me, stream, dialled).await?;
        let with = sending.remote.ip();
        self.met().entry(with).or_default();
        let lied = lies::tell(self, sending, receiving, with).await;
        if lied {
            self.met().entry(with).or_default().cut_off += 1;
        }
        Ok(())
    }

    /// Counts lies told to one peer over one connection, of which `first` says whether they are its first.
    fn lied(&self, with: IpAddr, first: bool, lies: u64) {
        let mut met = self.met();
        let met = met.entry(with).or_default();
        met.lied += u32::from(first);
        met.lies += lies;
    }

    fn met(&self) -> MutexGuard<'_, BTreeMap<IpAddr, Met>> {
        self.met.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks a peer a question as one of this name; `false` when it hangs up.
async fn ask(identity: &Identity, me: &PeerInfo, peer: Peer, digest: Digest) -> Result<bool> {
    let stream = TcpStream::connect(peer.address).await?;
    let (mut sending, mut receiving): (Sending, Receiving) = link::open(identity, me, stream, Some(peer.role)).await?;
    let query = rand::random();
    // Written to one who has hung up already, perhaps.
    let _ = sending.say(&FindPeers { digest, hops: 1, query }.into()).await;
    loop {
        match receiving.hear().await {
            Ok(Some(Message::PeerExchange(exchange))) if exchange.query == Some(query) => return Ok(true),
            Ok(_) => {}
            Err(_) => return Ok(false),
        }
    }
}

async fn dial(lie: Lie, address: SocketAddr) -> Result<TcpStream> {
    Ok(socket(lie)?.connect(address).await?)
}

fn socket(lie: Lie) -> Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    if lie == Lie::NeverReads {
        socket.set_recv_buffer_size(SMALL_BUFFER_BYTES)?;
    }
    Ok(socket)
}

fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Where nobody is, where whoever dials finds itself, and where something else listens.
fn bait(place: &Place) -> Vec<SocketAddr> {
    let nobody = (200..250).map(|last| SocketAddr::from(([10, 77, 0, last], 5051)));
    let itself = [5050, 5051, 5052].map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let others = place.dialled.iter().flat_map(|peer| [5052, 7500, 7503].map(|port| (peer.address.ip(), port).into()));
    nobody.chain(itself).chain([place.tracker, (place.tracker.ip(), 7402).into()]).chain(others).collect()
}
