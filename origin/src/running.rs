//! Puts the origin together, starts its servers and ends them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use shoal_identity::{Identity, Part};
use shoal_kit::{AdminParts, Metrics, serve_admin, shutdown};
use shoal_meta::{PeerInfo, Role, Topology};
use shoal_peer::Node;
use shoal_proto::origin::v1::origin_server::OriginServer;
use shoal_registry::Upstream;
use shoal_store::{Budget, Store};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;

use crate::authorize::Authorizer;
use crate::gate::Gate;
use crate::grpc::Service;
use crate::ingest::Ingests;
use crate::manifests::Manifests;
use crate::metrics::OriginMetrics;
use crate::notes::Notes;
use crate::rooms::Rooms;
use crate::shelf::Shelf;
use crate::tickets::Tickets;
use crate::{Config, front, upkeep};

/// How long what is being answered may take to end after shutdown began.
const DRAIN: Duration = Duration::from_secs(10);
/// How often agents' connections are checked for life.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// The most calls at a time on one agent's connection; each blob that still grows keeps one.
const STREAMS_MAX: u32 = 4096;
/// The most connections of agents and trackers at a time.
const CONNECTIONS_MAX: usize = 32 * 1024;

/// A running origin. Dropping it does not stop it; its shutdown token does.
pub struct Running {
    /// Where the gRPC service listens.
    pub grpc_addr: SocketAddr,
    /// Where the registry front listens.
    pub http_addr: SocketAddr,
    /// Where health, metrics and status are served.
    pub admin_addr: SocketAddr,
    /// The origin as a peer.
    pub peer: PeerInfo,
    node: Node,
    metrics: OriginMetrics,
    ended: JoinHandle<()>,
}

/// What an origin has moved since it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    /// Bytes of blobs that came from upstream.
    pub upstream_bytes: u64,
    /// Blobs fetched from upstream and committed.
    pub blobs_ingested: u64,
    /// Payload bytes sent to peers.
    pub peer_sent_bytes: u64,
    /// Bytes of blobs sent by the registry front.
    pub http_sent_bytes: u64,
}

/// Starts an origin, which runs until `shutdown` is cancelled.
///
/// # Errors
/// When the configuration is refused, an address is taken, or the disk cannot be used.
pub async fn start(config: Config, shutdown: CancellationToken) -> anyhow::Result<Running> {
    config.validate()?;
    let identity = Identity::start(config.certificates.as_deref(), Part::Origin, shutdown.clone())
        .context("key `certificates`")?;
    let kit = Metrics::new("origin");
    let metrics = OriginMetrics::new(&kit);
    let budget =
        Budget { bytes_max: config.store_max.map(shoal_kit::ByteSize::get), free_floor_bytes: config.free_floor.get() };
    let store = Store::open(shoal_store::Config { root: config.store.join("store"), budget }).await?;
    let shelf = Shelf::open(config.store.join("manifests"), config.manifests_max.get())
        .await
        .with_context(|| format!("cannot open the manifests in {}", config.store.join("manifests").display()))?;
    let notes = Notes::new(config.store.join("notes"));
    let upstream = Upstream::new(shoal_registry::Config {
        registries: config.registries.clone(),
        docker_config: config.docker_config.clone(),
        allow: config.allow.clone(),
        deny: config.deny.clone(),
        private_images: config.private_images,
        offline: config.offline,
        timing: config.upstream_timing,
    })?;
    let grpc = bind(config.listen, "listen").await?;
    let http = bind(config.http_listen, "http_listen").await?;
    let (grpc_addr, http_addr) = (grpc.local_addr()?, http.local_addr()?);
    // What is under way when shutdown begins needs the swarm: that ends with the last of it.
    let over = CancellationToken::new();
    let served_out = over.clone().drop_guard();
    let node = Node::start(peer_config(&config, identity.clone(), &shutdown).await?, store.clone(), over).await?;

    let gate = Arc::new(Gate::new(upstream, metrics.clone()));
    let authorizer = Arc::new(Authorizer::new(Arc::clone(&gate), notes.clone(), metrics.clone()));
    let tag_ttl = config.tag_ttl.0;
    let manifests = Manifests::new(Arc::clone(&gate), Arc::clone(&authorizer), shelf, notes, tag_ttl, metrics.clone());
    let ingests = Ingests::new(
        Arc::clone(&gate),
        Arc::clone(&authorizer),
        store.clone(),
        node.clone(),
        config.fetches_max,
        metrics.clone(),
    );
    let tickets = Tickets::new(Arc::clone(&gate));
    let rooms = Rooms { gate, authorizer, manifests: Arc::new(manifests), ingests, metrics: metrics.clone() };

    observe(&kit, &store, &node);
    upkeep::observe(&kit, &store);
    let tasks = TaskTracker::new();
    tasks.spawn(shutdown.clone().run_until_cancelled_owned(upkeep::run(store.clone())));
    let admin = admin(&kit, &rooms, store, node.clone());
    let admin = serve_admin(config.admin_listen, admin, shutdown.clone()).await?;
    let admin_addr = admin.address();
    tasks.spawn(admin.stopped());
    tasks.spawn(front::serve(http, identity.clone(), rooms.clone(), shutdown.clone()));
    tasks.spawn(serve_grpc(grpc, Service { rooms, tickets, peer: node.info(), identity }, shutdown.clone()));
    tasks.close();
    let ended = tokio::spawn(async move {
        let _over = served_out;
        if let Err(error) = shutdown::drained(&shutdown, DRAIN, tasks.wait()).await {
            tracing::warn!(%error, "origin stopped before everything had ended");
        }
    });
    let peer = node.info();
    tracing::info!(%grpc_addr, %http_addr, %admin_addr, peer = %peer.address, "origin started");
    Ok(Running { grpc_addr, http_addr, admin_addr, peer, node, metrics, ended })
}

/// Runs an origin until `shutdown` is cancelled and what is under way has ended.
///
/// # Errors
/// As [`start`] says.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    start(config, shutdown).await?.stopped().await;
    Ok(())
}

impl Running {
    /// What it has moved so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        Counters {
            upstream_bytes: self.metrics.upstream_bytes.get(),
            blobs_ingested: self.metrics.blobs.with_label_values(&["ingested"]).get(),
            peer_sent_bytes: self.node.status().sent_bytes,
            http_sent_bytes: self.metrics.http_body_bytes.get(),
        }
    }

    /// Waits for the end: after the shutdown token is cancelled, what is being answered has ten seconds, with the swarm at work.
    pub async fn stopped(self) {
        if let Err(error) = self.ended.await {
            tracing::error!(%error, "origin failed");
        }
        self.node.stopped().await;
    }
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").field("grpc_addr", &self.grpc_addr).field("peer", &self.peer).finish_non_exhaustive()
    }
}

async fn peer_config(
    config: &Config,
    identity: Identity,
    shutdown: &CancellationToken,
) -> anyhow::Result<shoal_peer::Config> {
    let place = shoal_kube::place_of(config.node_name.as_deref(), &config.rack_label).await;
    let topology = Topology { zone: config.zone.clone(), rack: config.rack.clone() };
    Ok(shoal_peer::Config {
        listen: config.peer_listen,
        advertise: config.peer_advertise,
        role: Role::Origin,
        topology: topology.or(place.topology),
        upload_rate: config.upload_rate.map(shoal_kit::Rate::get),
        download_rate: config.download_rate.map(shoal_kit::Rate::get),
        background: config.background,
        trackers: shoal_kube::servers("trackers", &config.trackers, shutdown.clone())?,
        identity,
        swarm: shoal_swarm::Config::default(),
    })
}

async fn bind(address: SocketAddr, key: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {key} = {address}"))
}

async fn serve_grpc(listener: TcpListener, service: Service, shutdown: CancellationToken) {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<OriginServer<Service>>().await;
    let incoming = service.identity.incoming(listener, CONNECTIONS_MAX, shutdown.clone());
    let served = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .max_concurrent_streams(STREAMS_MAX)
        .add_service(health_service)
        .add_service(OriginServer::new(service))
        .serve_with_incoming_shutdown(incoming, shutdown.cancelled_owned());
    if let Err(error) = served.await {
        tracing::error!(%error, "gRPC server failed");
    }
}

/// The metrics that the store and the node keep.
fn observe(kit: &Metrics, store: &Store, node: &Node) {
    let sent = node.clone();
    kit.counter_fn("peer_sent_bytes_total", "Payload bytes sent to peers.", &[], move || sent.status().sent_bytes);
    let peers = node.clone();
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    kit.gauge_fn("peers", "Connected peers.", &[], move || peers.status().connections as f64);
    let held = store.clone();
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    kit.gauge_fn("store_bytes", "Bytes of blobs held.", &[], move || held.usage().bytes as f64);
    let evicting = store.clone();
    kit.counter_fn("store_evictions_total", "Blobs evicted.", &[], move || evicting.usage().evictions);
}

fn admin(kit: &Metrics, rooms: &Rooms, store: Store, node: Node) -> AdminParts {
    let (manifests, ingests) = (Arc::clone(&rooms.manifests), rooms.ingests.clone());
    let status = move || {
        let (peer, usage) = (node.status(), store.usage());
        let (manifests, manifest_bytes) = manifests.usage();
        serde_json::json!({
            "transport": node.identity().transport(),
            "peer": {
                "id": peer.peer.id.to_string(),
                "address": peer.peer.address.to_string(),
                "connections": peer.connections,
                "torrents": peer.torrents,
                "sent_bytes": peer.sent_bytes,
                "trackers": peer.trackers,
                "trackers_up": peer.trackers_up,
            },
            "store": {
                "bytes": usage.bytes,
                "budget_bytes": usage.budget_bytes,
                "blobs": usage.blobs,
                "partials": usage.partials,
                "evictions": usage.evictions,
                "state": store.health().as_str(),
                "trouble": store.trouble(),
                "corrupt_blobs": usage.corrupt_blobs,
            },
            "manifests": { "count": manifests, "bytes": manifest_bytes },
            "ingests": ingests.status(),
        })
    };
    AdminParts { registry: kit.registry(), ready: Box::new(|| Ok(())), status: Box::new(status) }
}
