//! The cluster of a demonstration: a registry with an image, a tracker, an origin, agents; each on a loopback port of its own
//! with a directory of its own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Context as _;
use shoal_kit::{ByteSize, Rate};
use shoal_registry::RegistryConfig;
use shoal_registry::embedded::{Content, EmbeddedRegistry, Options};
use shoal_registry::reference::parse_image;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::{Args, image};

/// The name under which agents know the registry with the image made here.
const REGISTRY: &str = "registry.demo";
const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

pub(super) struct Cluster {
    /// The image every node pulls.
    pub(super) reference: String,
    pub(super) origin: shoal_origin::Running,
    pub(super) agents: Vec<shoal_agent::Running>,
    /// The registry that holds the image made here; none when the image is somebody else's.
    pub(super) upstream: Option<EmbeddedRegistry>,
    tracker: shoal_tracker::Running,
    shutdown: CancellationToken,
    _stores: TempDir,
}

impl Cluster {
    pub(super) async fn start(args: &Args) -> anyhow::Result<Self> {
        let (reference, upstream) = match &args.image {
            Some(image) => (image.clone(), None),
            None => (format!("{REGISTRY}/real/files:1"), Some(make_registry(args).await?)),
        };
        let url = upstream.as_ref().map(EmbeddedRegistry::url).or_else(|| args.upstream.clone());
        let registry = parse_image(&reference)?.0.registry;
        let registries: BTreeMap<_, _> = url
            .map(|url| (registry, RegistryConfig { url: Some(url), ..RegistryConfig::default() }))
            .into_iter()
            .collect();
        let stores = tempfile::tempdir().context("a directory for the stores")?;
        let shutdown = CancellationToken::new();
        let tracker = start_tracker(&shutdown).await.context("tracker")?;
        let trackers = vec![format!("http://{}", tracker.addr)];
        let store = stores.path().join("origin");
        let origin = start_origin(args, &store, &trackers, &registries, &shutdown).await.context("origin")?;
        let origins = vec![format!("http://{}", origin.grpc_addr)];
        let mut agents = Vec::new();
        for node in 1..=args.nodes {
            let config = shoal_agent::Config {
                listen: ANY_PORT,
                admin_listen: ANY_PORT,
                peer_listen: ANY_PORT,
                origins: origins.clone(),
                trackers: trackers.clone(),
                store: stores.path().join(format!("node{node}")),
                store_max: Some(ByteSize::gib(64)),
                free_floor: ByteSize::mib(64),
                upload_rate: Some(args.rate),
                download_rate: Some(args.rate),
                registries: registries.clone(),
                ..shoal_agent::Config::default()
            };
            agents.push(shoal_agent::start(config, shutdown.clone()).await.with_context(|| format!("agent {node}"))?);
        }
        Ok(Self { reference, origin, agents, upstream, tracker, shutdown, _stores: stores })
    }

    /// Where each node's runtime would pull from.
    pub(super) fn front_urls(&self) -> Vec<String> {
        self.agents.iter().map(|agent| format!("http://{}", agent.front_addr())).collect()
    }

    /// Another registry with the same image and rate, of which nothing was pulled yet.
    pub(super) async fn fresh_registry(&self, args: &Args) -> anyhow::Result<EmbeddedRegistry> {
        let content = self.upstream.as_ref().context("only an image made here can be compared")?.content().clone();
        serve(content, args.rate).await
    }

    /// Stops every part and removes the stores.
    pub(super) async fn stop(self) {
        self.shutdown.cancel();
        for agent in self.agents {
            agent.stopped().await;
        }
        self.origin.stopped().await;
        if let Err(error) = self.tracker.stopped().await {
            tracing::warn!(%error, "tracker");
        }
    }
}

async fn make_registry(args: &Args) -> anyhow::Result<EmbeddedRegistry> {
    let bytes = args.size.get();
    let layers = tokio::task::spawn_blocking(move || image::layers(bytes)).await.context("image")??;
    let mut content = Content::new();
    content.add_image("real/files", "1", layers);
    serve(content, args.rate).await
}

async fn serve(content: Content, rate: Rate) -> anyhow::Result<EmbeddedRegistry> {
    let options = Options { rate: Some(rate.get()), ..Options::default() };
    EmbeddedRegistry::start(ANY_PORT, content, options).await.context("registry")
}

async fn start_tracker(shutdown: &CancellationToken) -> anyhow::Result<shoal_tracker::Running> {
    let config = shoal_tracker::Config { listen: ANY_PORT, admin_listen: ANY_PORT, ..shoal_tracker::Config::default() };
    shoal_tracker::start(config, shutdown.clone()).await
}

async fn start_origin(
    args: &Args,
    store: &Path,
    trackers: &[String],
    registries: &BTreeMap<String, RegistryConfig>,
    shutdown: &CancellationToken,
) -> anyhow::Result<shoal_origin::Running> {
    let config = shoal_origin::Config {
        listen: ANY_PORT,
        http_listen: ANY_PORT,
        admin_listen: ANY_PORT,
        peer_listen: ANY_PORT,
        trackers: trackers.to_vec(),
        store: store.to_owned(),
        store_max: Some(ByteSize::gib(64)),
        free_floor: ByteSize::mib(64),
        upload_rate: Some(args.rate),
        registries: registries.clone(),
        ..shoal_origin::Config::default()
    };
    shoal_origin::start(config, shutdown.clone()).await
}
