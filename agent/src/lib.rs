//! The node agent: registry front and local peer.
//!
//! The program `shoal` runs it, demonstrations and tests embed it. A blob request walks through the rooms one way:
//! `front` (HTTP, and nothing else knows it; passwords go through `sign_in`) → `authorize` → `blobs` (store, or one
//! download for each digest) → `download` (the torrent and its metainfo) with `fallback` watching over it, and back out
//! through `body`; what is whole and in the page cache leaves by `sendfile`. `pods` asks for what the node's Pods need, before
//! their requests come.
//!
//! Promises: a pull that would have worked without the agent works with it; nobody is given a byte that upstream would
//! not give them; no answer ends cleanly short. What a shutdown loses: pieces not yet whole; the rest is resumed.

mod answer;
mod authorize;
mod blobs;
mod body;
mod config;
mod download;
mod fallback;
mod front;
mod given;
mod manifests;
mod metrics;
mod origin;
mod pods;
mod preheat;
mod sendfile;
mod sign_in;
mod status;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use shoal_identity::{Identity, Part};
use shoal_kit::{Admin, AdminParts, Metrics, serve_admin};
use shoal_kube::BoundPod;
use shoal_meta::{PeerInfo, Role, Server};
use shoal_peer::Node;
use shoal_registry::Timing;
use shoal_registry::upstream::{self, Upstream};
use shoal_store::{Budget, Health, Store};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use config::Config;
pub use status::{ReceivedBytes, Status, TorrentStatus};

use blobs::Blobs;
use front::Front;
use given::Given;
use manifests::Manifests;
use metrics::Counters;
use origin::Origins;
use pods::Pods;

/// How long all of the shutdown may take; answers under way have most of it.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(15);
/// How often the store looks whether others have filled the disk.
const TRIM_INTERVAL: Duration = Duration::from_secs(60);
/// How often a store that could not be opened is tried again: the agent before this one may be about to end.
const OPEN_INTERVAL: Duration = Duration::from_secs(3);

/// Upstream as a fallback: answers before the runtime's patience ends, and gives up soon, as the runtime has a next host.
const UPSTREAM_TIMING: Timing = Timing {
    connect: Duration::from_secs(2),
    headers: Duration::from_secs(4),
    progress: Duration::from_secs(5),
    backoff_first: Duration::from_millis(200),
    backoff_max: Duration::from_secs(1),
    attempts: 3,
};

/// A running agent. Dropping it does not stop it; its shutdown token does.
#[derive(Debug)]
pub struct Running {
    front_addr: SocketAddr,
    blobs: Arc<Blobs>,
    admin: Admin,
    served: JoinHandle<()>,
    pods: mpsc::Sender<BoundPod>,
}

/// Starts an agent; it runs until `shutdown` is cancelled. Port 0 in an address takes a free one.
///
/// # Errors
/// When the configuration is refused or an address cannot be listened on. A store that cannot be opened lets everything pass.
pub async fn start(config: Config, shutdown: CancellationToken) -> anyhow::Result<Running> {
    config.validate()?;
    let identity = Identity::start(config.certificates.as_deref(), Part::Agent, shutdown.clone())
        .context("config key `certificates`")?;
    let upstream = Upstream::new(upstream::Config {
        registries: config.registries.clone(),
        docker_config: config.docker_config.clone(),
        allow: config.allow.clone(),
        deny: config.deny.clone(),
        private_images: config.private_images,
        offline: config.offline,
        timing: UPSTREAM_TIMING,
    })?;
    let origins = shoal_kube::servers("origins", &config.origins, shutdown.clone())?;
    let trackers = shoal_kube::servers("trackers", &config.trackers, shutdown.clone())?;
    let origins = Arc::new(Origins::new(origins, identity.clone(), upstream.clone())?);
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("cannot listen on {} for runtimes (config key `listen`)", config.listen))?;
    let front_addr = listener.local_addr()?;
    let budget =
        Budget { bytes_max: config.store_max.map(shoal_kit::ByteSize::get), free_floor_bytes: config.free_floor.get() };
    let store = Store::open_or_pass(shoal_store::Config { root: config.store.clone(), budget }).await;
    // Answers under way after shutdown began come from the swarm as before: it ends with the last of them.
    let over = CancellationToken::new();
    let served_out = over.clone().drop_guard();
    let node = Node::start(node_config(&config, identity, trackers).await, store.clone(), over.clone()).await?;

    let metrics = Metrics::new("agent");
    let stall_timeout = config.stall_timeout.get();
    let counters = Counters::new(&metrics);
    let blobs = Blobs::new(store.clone(), node, origins.clone(), upstream.clone(), counters, stall_timeout, over);
    status::expose(&metrics, &blobs);
    let manifests = Arc::new(Manifests::new(origins, upstream.clone()));
    let given = Given::open(&config.store).await;
    let ahead = Pods {
        manifests: manifests.clone(),
        blobs: blobs.clone(),
        upstream: upstream.clone(),
        given: given.clone(),
        registries: config.registries_ahead()?,
        refused: pods::Refused::default(),
    };
    let pods = follow_pods(&config, ahead, &shutdown);
    let front = Arc::new(Front { manifests, blobs: blobs.clone(), upstream, given: given.clone() });
    if let Some(node) = config.node_name.clone() {
        tokio::spawn(preheat::run(node, blobs.clone(), shutdown.clone()));
    }
    let admin = serve_admin(config.admin_listen, admin_parts(&metrics, &blobs), shutdown.clone()).await?;
    let serving = front::serve(front, listener, shutdown.clone());
    let served = tokio::spawn(async move {
        let _over = served_out;
        tokio::select! {
            () = serving => given.save().await,
            () = given.save_now_and_then() => {}
        }
    });
    blobs.spawn(trim_now_and_then(blobs.clone()));
    blobs.spawn(async move { store.scrub().await });
    tracing::info!(front = %front_addr, admin = %admin.address(), peer = %blobs.node.info().address, "agent is up");
    Ok(Running { front_addr, blobs, admin, served, pods })
}

/// Runs an agent until shutdown, and lets what is under way end.
///
/// # Errors
/// As [`start`].
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let running = start(config, shutdown.clone()).await?;
    if let Err(expired) = shoal_kit::shutdown::drained(&shutdown, DRAIN_TIMEOUT, running.stopped()).await {
        tracing::warn!(error = %expired, "agent stopped before everything had ended");
    }
    Ok(())
}

impl Running {
    /// Where runtimes reach it, with the real port.
    #[must_use]
    pub fn front_addr(&self) -> SocketAddr {
        self.front_addr
    }

    /// Where health, metrics and status are served, with the real port.
    #[must_use]
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin.address()
    }

    /// The agent as others in the swarm see it.
    #[must_use]
    pub fn peer(&self) -> PeerInfo {
        self.blobs.node.info()
    }

    /// What it has received and served, and how far each download is. Cheap: no disk, no waiting.
    #[must_use]
    pub fn status(&self) -> Status {
        Status::of(&self.blobs)
    }

    /// Something that tells the status for as long as it is kept, whatever becomes of `self`.
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch(self.blobs.clone())
    }

    /// Takes Pods bound to this node, whose layers are fetched ahead. Kubernetes tells of them, where `node_name` is set.
    #[must_use]
    pub fn pods(&self) -> &mpsc::Sender<BoundPod> {
        &self.pods
    }

    /// Waits until it has shut down.
    pub async fn stopped(self) {
        if let Err(error) = self.served.await {
            tracing::error!(%error, "registry front failed");
        }
        self.admin.stopped().await;
        self.blobs.stopped().await;
        self.blobs.node.stopped().await;
    }
}

/// Tells an agent's status: see [`Running::status`].
#[derive(Clone, Debug)]
pub struct Watch(Arc<Blobs>);

impl Watch {
    /// What the agent has received and served, and how far each download is.
    #[must_use]
    pub fn status(&self) -> Status {
        Status::of(&self.0)
    }
}

/// Begins to fetch ahead for Pods, and to follow those of the node.
fn follow_pods(config: &Config, ahead: Pods, shutdown: &CancellationToken) -> mpsc::Sender<BoundPod> {
    let (told, pods) = mpsc::channel(pods::QUEUE_MAX);
    tokio::spawn(shutdown.clone().run_until_cancelled_owned(ahead.run(pods)));
    if let Some(node) = config.node_name.clone().filter(|_| config.prefetch_pods) {
        let told = told.clone();
        let follow = async move { shoal_kube::follow_pods(&node, told).await };
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(follow));
    }
    told
}

async fn node_config(
    config: &Config,
    identity: Identity,
    trackers: watch::Receiver<Vec<Server>>,
) -> shoal_peer::Config {
    let (topology, advertise) = config.place().await;
    shoal_peer::Config {
        listen: config.peer_listen,
        advertise,
        role: Role::Agent,
        topology,
        upload_rate: config.upload_rate.map(shoal_kit::Rate::get),
        download_rate: config.download_rate.map(shoal_kit::Rate::get),
        background: config.background,
        trackers,
        identity,
        swarm: shoal_swarm::Config::default(),
    }
}

fn admin_parts(metrics: &Metrics, blobs: &Arc<Blobs>) -> AdminParts {
    let seen = blobs.clone();
    AdminParts {
        registry: metrics.registry(),
        // An agent without origin, tracker or peers still serves: from its store and from upstream.
        ready: Box::new(|| Ok(())),
        status: Box::new(move || serde_json::to_value(Status::of(&seen)).unwrap_or_default()),
    }
}

async fn trim_now_and_then(blobs: Arc<Blobs>) {
    let store = &blobs.store;
    loop {
        let was_closed = store.health() == Health::Closed;
        tokio::time::sleep(if was_closed { OPEN_INTERVAL } else { TRIM_INTERVAL }).await;
        store.trim().await;
        if was_closed {
            // What it holds nobody has heard of.
            store.committed().into_iter().for_each(|digest| blobs.node.seed(digest));
        }
    }
}
