//! The tracker: knows who has, or wants, which blob, and hands out peers. Soft state with leases; it may be restarted or
//! lost at any time, and peers go on without it.
//!
//! [`run`] is the program `shoal tracker`; [`start`] embeds it. [`state`] holds every rule and no IO; [`service`] is the
//! thin layer between it and the messages. It must not know what blobs hold, nor how peers swap pieces. One room of its own,
//! `preheat`, knows images: on Kubernetes the tracker that leads tells agents what to fetch ahead.

mod config;
mod grpc;
mod harbor;
mod metrics;
mod preheat;
pub mod service;
pub mod state;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::Stream;
use shoal_identity::{Connection, Identity, Part};
use shoal_kit::{Admin, AdminParts, serve_admin, shutdown};
use shoal_proto::preheat::v1::preheat_server::PreheatServer;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

pub use config::Config;
pub use harbor::Config as HarborConfig;

use grpc::Tracker;
use service::Service;

/// How long a shutdown may take: announces in flight are answered within it.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// How often leases are looked at.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(1);
/// Requests in flight on one connection; a peer has use for one.
const STREAMS_PER_CONNECTION_MAX: u32 = 16;
/// Connections beyond one for each peer: health checks, and peers that reconnect before their old connection is gone.
const CONNECTIONS_SPARE: usize = 1_000;
/// How often a silent connection is asked whether it lives, and how long it has to answer.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(20));
/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// A running tracker. Dropping it does not stop it; the token given to [`start`] does.
#[derive(Debug)]
pub struct Running {
    /// Where gRPC is served, with the real port.
    pub addr: SocketAddr,
    /// Where health, metrics and status are served, with the real port.
    pub admin_addr: SocketAddr,
    service: Arc<Service>,
    shutdown: CancellationToken,
    server: JoinHandle<anyhow::Result<()>>,
    admin: Admin,
    /// Sees to preheats, when told to.
    preheat: Option<JoinHandle<()>>,
}

impl Running {
    /// The tracker itself, for its sizes and counters.
    #[must_use]
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// Waits until the tracker has ended: by its token, within a few seconds of it, or by a failure.
    ///
    /// # Errors
    /// When a server failed, or shutdown took too long.
    pub async fn stopped(self) -> anyhow::Result<()> {
        let Self { shutdown, server, admin, preheat, .. } = self;
        let abort = server.abort_handle();
        let both = async {
            let served = server.await.context("the gRPC server failed")?;
            shutdown.cancel();
            admin.stopped().await;
            if let Some(preheat) = preheat {
                // So that another leads at once.
                preheat.await.context("preheating failed")?;
            }
            served
        };
        let ended = shutdown::drained(&shutdown, DRAIN_MAX, both).await;
        abort.abort();
        ended?
    }
}

/// Starts a tracker that runs until `shutdown` is cancelled. It is ready when this returns.
///
/// # Errors
/// When the configuration is rejected or an address cannot be listened on.
pub async fn start(config: Config, shutdown: CancellationToken) -> anyhow::Result<Running> {
    config.validate()?;
    // Its own: a failure here ends this tracker, and not whatever embeds it.
    let shutdown = shutdown.child_token();
    let identity = Identity::start(config.certificates.as_deref(), Part::Tracker, shutdown.clone())
        .context("key `certificates`")?;
    let listening = TcpListener::bind(config.listen).await;
    let listener = listening.with_context(|| format!("cannot listen on {} for gRPC (key `listen`)", config.listen))?;
    let addr = listener.local_addr().context("cannot read the address listened on")?;
    let (admin_listen, connections_max) = (config.admin_listen, config.peers_max + CONNECTIONS_SPARE);
    let preheat = preheat::Shared::default();
    let mut preheating = None;
    if let Some(lease) = config.preheat_lease.clone() {
        let client = shoal_kube::Client::try_default().await;
        let client = client.context("key `preheat_lease`: no way to the Kubernetes API server is configured")?;
        let origins = shoal_kube::servers("origins", &config.origins, shutdown.clone())?;
        if let Some(harbor) = &config.harbor {
            harbor::serve(harbor, client.clone(), shutdown.clone()).await?;
        }
        let (images, plan, shutdown) =
            (preheat::Images::new(origins, identity.clone()), preheat.clone(), shutdown.clone());
        preheating = Some(tokio::spawn(async move { preheat::run(client, &lease, images, plan, shutdown).await }));
    }
    let service = Arc::new(Service::new(config, rand::random()));
    let admin = serve_admin(admin_listen, admin_parts(&service, &preheat, identity.transport()), shutdown.clone());
    let admin = admin.await.context("key `admin_listen`")?;
    let admin_addr = admin.address();
    let incoming = identity.incoming(listener, connections_max, shutdown.clone());
    let server = tokio::spawn(serve(incoming, service.clone(), preheat, shutdown.clone()));
    tracing::info!(%addr, %admin_addr, "tracker started");
    Ok(Running { addr, admin_addr, service, shutdown, server, admin, preheat: preheating })
}

/// Runs a tracker until `shutdown` is cancelled.
///
/// # Errors
/// When it cannot start, or fails later.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    start(config, shutdown).await?.stopped().await?;
    tracing::info!("tracker stopped");
    Ok(())
}

fn admin_parts(service: &Arc<Service>, preheat: &preheat::Shared, transport: &'static str) -> AdminParts {
    let (status, preheat_seen) = (service.clone(), preheat.clone());
    AdminParts {
        registry: metrics::metrics(service, preheat).registry(),
        ready: Box::new(|| Ok(())),
        status: Box::new(move || {
            let (sizes, counters) = (status.sizes(), status.counters());
            let (preheats, nodes) = preheat_seen.sizes();
            serde_json::json!({
                "transport": transport,
                "peers": sizes.peers,
                "torrents": sizes.torrents,
                "memberships": sizes.memberships,
                "memberships_seeding": sizes.seeding,
                "announces": counters.announces,
                "torrents_announced": counters.torrents_announced,
                "peers_handed_out": counters.peers_handed_out,
                "lease_expiries": counters.lease_expiries,
                "preheats": preheats,
                "nodes": nodes,
            })
        }),
    }
}

async fn serve(
    incoming: impl Stream<Item = Result<Connection, Infallible>>,
    service: Arc<Service>,
    preheat: preheat::Shared,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<Tracker>().await;
    let server = Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .timeout(REQUEST_TIMEOUT)
        .http2_keepalive_interval(Some(KEEPALIVE.0))
        .http2_keepalive_timeout(Some(KEEPALIVE.1))
        .add_service(health_service)
        .add_service(Tracker(service.clone()))
        .add_service(
            PreheatServer::new(preheat::Service(preheat)).max_decoding_message_size(preheat::REQUEST_LENGTH_MAX),
        )
        .serve_with_incoming_shutdown(incoming, shutdown.cancelled_owned());
    tokio::select! {
        served = server => served.context("the gRPC server failed"),
        () = expire_leases(&service) => Ok(()),
    }
}

/// Forgets peers whose lease has run out, for ever.
async fn expire_leases(service: &Service) {
    let mut ticks = tokio::time::interval(EXPIRE_INTERVAL);
    loop {
        let now = ticks.tick().await;
        service.expire(now.into_std()).await;
    }
}
