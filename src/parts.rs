//! `shoal agent`, `shoal origin`, `shoal tracker`: reads the configuration (file, then environment and flags), runs the part.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use shoal_kit::{ByteSize, Rate, config, shutdown};
use tokio_util::sync::CancellationToken;

/// Flags of every part. Each flag, here and below, overrides its key in the file.
#[derive(Args)]
struct PartArgs {
    /// Configuration file (TOML). Without one every key has its default.
    #[arg(long, env = "SHOAL_CONFIG")]
    config: Option<PathBuf>,
    /// Where health, metrics and status are served.
    #[arg(long, env = "SHOAL_ADMIN_LISTEN")]
    admin_listen: Option<SocketAddr>,
    /// The directory with its certificate, its key and the authority's certificate: TLS between parts.
    #[arg(long, env = "SHOAL_CERTIFICATES")]
    certificates: Option<PathBuf>,
}

/// Flags of the parts that are peers with a store.
#[derive(Args)]
struct PeerArgs {
    /// Where peers connect.
    #[arg(long, env = "SHOAL_PEER_LISTEN")]
    peer_listen: Option<SocketAddr>,
    /// The address peers are told to dial.
    #[arg(long, env = "SHOAL_PEER_ADVERTISE")]
    peer_advertise: Option<SocketAddr>,
    /// A tracker, as http://host:port, or as kubernetes:///service[.namespace]:port; may be repeated.
    #[arg(long = "tracker", env = "SHOAL_TRACKERS", value_delimiter = ',')]
    trackers: Option<Vec<String>>,
    /// The directory blobs are kept in.
    #[arg(long, env = "SHOAL_STORE")]
    store: Option<PathBuf>,
    /// Most bytes of blobs kept, such as 50GiB.
    #[arg(long, env = "SHOAL_STORE_MAX")]
    store_max: Option<ByteSize>,
    /// The Kubernetes node it runs on, whose labels name its zone and rack.
    #[arg(long, env = "SHOAL_NODE_NAME")]
    node_name: Option<String>,
    /// The failure zone it stands in.
    #[arg(long, env = "SHOAL_ZONE")]
    zone: Option<String>,
    /// Cap on what is sent to peers, such as 200mbit.
    #[arg(long, env = "SHOAL_UPLOAD_RATE")]
    upload_rate: Option<Rate>,
    /// Cap on what is received from peers.
    #[arg(long, env = "SHOAL_DOWNLOAD_RATE")]
    download_rate: Option<Rate>,
    /// Whether traffic between peers yields to that of applications: true or false.
    #[arg(long, env = "SHOAL_BACKGROUND")]
    background: Option<bool>,
}

/// Flags of `shoal agent`.
#[derive(Args)]
pub(crate) struct AgentArgs {
    #[command(flatten)]
    part: PartArgs,
    /// Where this node's runtime reaches the registry mirror.
    #[arg(long, env = "SHOAL_LISTEN")]
    listen: Option<SocketAddr>,
    #[command(flatten)]
    peer: PeerArgs,
    /// An origin, as http://host:port, or as kubernetes:///service[.namespace]:port; may be repeated.
    #[arg(long = "origin", env = "SHOAL_ORIGINS", value_delimiter = ',')]
    origins: Option<Vec<String>>,
    /// Whether the layers of Pods bound to this node are fetched before its kubelet asks for them: true or false.
    #[arg(long, env = "SHOAL_PREFETCH_PODS")]
    prefetch_pods: Option<bool>,
    /// A registry of which that is done, such as docker.io; may be repeated. None: all.
    #[arg(long = "prefetch-registry", env = "SHOAL_PREFETCH_REGISTRIES", value_delimiter = ',')]
    prefetch_registries: Option<Vec<String>>,
}

/// Flags of `shoal origin`.
#[derive(Args)]
pub(crate) struct OriginArgs {
    #[command(flatten)]
    part: PartArgs,
    /// Where agents reach it (gRPC).
    #[arg(long, env = "SHOAL_LISTEN")]
    listen: Option<SocketAddr>,
    /// Where it is a plain pull-through registry.
    #[arg(long, env = "SHOAL_HTTP_LISTEN")]
    http_listen: Option<SocketAddr>,
    #[command(flatten)]
    peer: PeerArgs,
}

/// Flags of `shoal tracker`.
#[derive(Args)]
pub(crate) struct TrackerArgs {
    #[command(flatten)]
    part: PartArgs,
    /// Where peers announce (gRPC).
    #[arg(long, env = "SHOAL_LISTEN")]
    listen: Option<SocketAddr>,
    /// The Kubernetes Lease by which one of several trackers is chosen to see to Preheat objects; without it they are left alone.
    #[arg(long, env = "SHOAL_PREHEAT_LEASE")]
    preheat_lease: Option<String>,
    /// An origin, which knows what images to preheat are made of; as for agents.
    #[arg(long = "origin", env = "SHOAL_ORIGINS", value_delimiter = ',')]
    origins: Option<Vec<String>>,
}

/// Sets each key named to the flag of the same name, where that is given; the groups stand for all of their flags.
macro_rules! overlay {
    ($config:ident, part $args:expr) => { overlay!($config, $args, admin_listen certificates) };
    ($config:ident, peer $args:expr) => {
        overlay!($config, $args, peer_listen peer_advertise trackers store store_max node_name zone upload_rate download_rate background)
    };
    ($config:ident, $args:expr, $($key:ident)+) => {
        $(if let Some(value) = $args.$key {
            $config.$key = value.into();
        })+
    };
}

/// Runs an agent until it is told to stop.
pub(crate) fn agent(args: AgentArgs) -> anyhow::Result<()> {
    let mut config: shoal_agent::Config = load(&args.part)?;
    overlay!(config, part args.part);
    overlay!(config, peer args.peer);
    overlay!(config, args, listen origins prefetch_pods prefetch_registries);
    until_told(|shutdown| shoal_agent::run(config, shutdown))
}

/// Runs an origin until it is told to stop.
pub(crate) fn origin(args: OriginArgs) -> anyhow::Result<()> {
    let mut config: shoal_origin::Config = load(&args.part)?;
    overlay!(config, part args.part);
    overlay!(config, peer args.peer);
    overlay!(config, args, listen http_listen);
    until_told(|shutdown| shoal_origin::run(config, shutdown))
}

/// Runs a tracker until it is told to stop.
pub(crate) fn tracker(args: TrackerArgs) -> anyhow::Result<()> {
    let mut config: shoal_tracker::Config = load(&args.part)?;
    overlay!(config, part args.part);
    overlay!(config, args, listen preheat_lease origins);
    until_told(|shutdown| shoal_tracker::run(config, shutdown))
}

fn load<T: serde::de::DeserializeOwned>(args: &PartArgs) -> anyhow::Result<T> {
    Ok(config::load(args.config.as_deref())?)
}

/// Runs a part on a runtime of its own until SIGTERM or SIGINT.
fn until_told<F>(part: impl FnOnce(CancellationToken) -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    if let Err(error) = shoal_kit::raise_open_files() {
        tracing::warn!(%error, "cannot raise the limit on open files");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("async runtime")?;
    runtime.block_on(async { part(shutdown::on_signal()?).await })
}
