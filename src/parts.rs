//! `shoal agent`, `shoal origin`, `shoal tracker`: reads the configuration (file, then environment and flags), runs the part.

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use shoal_kit::{ByteSize, Rate, config, shutdown};
use tokio_util::sync::CancellationToken;

/// Flags of `shoal agent`. Each overrides its key in the file.
#[derive(Args)]
pub(crate) struct AgentArgs {
    /// Configuration file (TOML). Without one every key has its default.
    #[arg(long, env = "SHOAL_CONFIG")]
    config: Option<PathBuf>,
    /// Where this node's runtime reaches the registry mirror.
    #[arg(long, env = "SHOAL_LISTEN")]
    listen: Option<SocketAddr>,
    /// Where health, metrics and status are served.
    #[arg(long, env = "SHOAL_ADMIN_LISTEN")]
    admin_listen: Option<SocketAddr>,
    /// Where peers connect.
    #[arg(long, env = "SHOAL_PEER_LISTEN")]
    peer_listen: Option<SocketAddr>,
    /// The address peers are told to dial.
    #[arg(long, env = "SHOAL_PEER_ADVERTISE")]
    peer_advertise: Option<SocketAddr>,
    /// An origin, as http://host:port; may be repeated.
    #[arg(long = "origin", env = "SHOAL_ORIGINS", value_delimiter = ',')]
    origins: Vec<String>,
    /// A tracker, as http://host:port; may be repeated.
    #[arg(long = "tracker", env = "SHOAL_TRACKERS", value_delimiter = ',')]
    trackers: Vec<String>,
    /// The directory blobs are kept in.
    #[arg(long, env = "SHOAL_STORE")]
    store: Option<PathBuf>,
    /// Most bytes of blobs kept, such as 50GiB.
    #[arg(long, env = "SHOAL_STORE_MAX")]
    store_max: Option<ByteSize>,
    /// The node's failure zone.
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

/// Flags of `shoal origin`. Each overrides its key in the file.
#[derive(Args)]
pub(crate) struct OriginArgs {
    /// Configuration file (TOML). Without one every key has its default.
    #[arg(long, env = "SHOAL_CONFIG")]
    config: Option<PathBuf>,
    /// Where agents reach it (gRPC).
    #[arg(long, env = "SHOAL_LISTEN")]
    listen: Option<SocketAddr>,
    /// Where it is a plain pull-through registry.
    #[arg(long, env = "SHOAL_HTTP_LISTEN")]
    http_listen: Option<SocketAddr>,
    /// Where health, metrics and status are served.
    #[arg(long, env = "SHOAL_ADMIN_LISTEN")]
    admin_listen: Option<SocketAddr>,
    /// Where peers connect.
    #[arg(long, env = "SHOAL_PEER_LISTEN")]
    peer_listen: Option<SocketAddr>,
    /// The address peers are told to dial.
    #[arg(long, env = "SHOAL_PEER_ADVERTISE")]
    peer_advertise: Option<SocketAddr>,
    /// A tracker, as http://host:port; may be repeated.
    #[arg(long = "tracker", env = "SHOAL_TRACKERS", value_delimiter = ',')]
    trackers: Vec<String>,
    /// The directory blobs are kept in.
    #[arg(long, env = "SHOAL_STORE")]
    store: Option<PathBuf>,
    /// Most bytes of blobs kept, such as 50GiB.
    #[arg(long, env = "SHOAL_STORE_MAX")]
    store_max: Option<ByteSize>,
    /// Cap on what is sent to peers, such as 200mbit.
    #[arg(long, env = "SHOAL_UPLOAD_RATE")]
    upload_rate: Option<Rate>,
    /// Whether traffic between peers yields to that of applications: true or false.
    #[arg(long, env = "SHOAL_BACKGROUND")]
    background: Option<bool>,
}

/// Flags of `shoal tracker`. Each overrides its key in the file.
#[derive(Args)]
pub(crate) struct TrackerArgs {
    /// Configuration file (TOML). Without one every key has its default.
    #[arg(long, env = "SHOAL_CONFIG")]
    config: Option<PathBuf>,
    /// Where peers announce (gRPC).
    #[arg(long, env = "SHOAL_LISTEN")]
    listen: Option<SocketAddr>,
    /// Where health, metrics and status are served.
    #[arg(long, env = "SHOAL_ADMIN_LISTEN")]
    admin_listen: Option<SocketAddr>,
}

/// Runs an agent until it is told to stop.
pub(crate) fn agent(args: AgentArgs) -> anyhow::Result<()> {
    let mut config: shoal_agent::Config = load(args.config.as_deref())?;
    set(&mut config.listen, args.listen);
    set(&mut config.admin_listen, args.admin_listen);
    set(&mut config.peer_listen, args.peer_listen);
    set(&mut config.store, args.store);
    set(&mut config.zone, args.zone);
    set(&mut config.peer_advertise, args.peer_advertise.map(Some));
    set(&mut config.store_max, args.store_max.map(Some));
    set(&mut config.upload_rate, args.upload_rate.map(Some));
    set(&mut config.download_rate, args.download_rate.map(Some));
    set(&mut config.background, args.background);
    set_list(&mut config.origins, args.origins);
    set_list(&mut config.trackers, args.trackers);
    until_told(|shutdown| shoal_agent::run(config, shutdown))
}

/// Runs an origin until it is told to stop.
pub(crate) fn origin(args: OriginArgs) -> anyhow::Result<()> {
    let mut config: shoal_origin::Config = load(args.config.as_deref())?;
    set(&mut config.listen, args.listen);
    set(&mut config.http_listen, args.http_listen);
    set(&mut config.admin_listen, args.admin_listen);
    set(&mut config.peer_listen, args.peer_listen);
    set(&mut config.store, args.store);
    set(&mut config.peer_advertise, args.peer_advertise.map(Some));
    set(&mut config.store_max, args.store_max.map(Some));
    set(&mut config.upload_rate, args.upload_rate.map(Some));
    set(&mut config.background, args.background);
    set_list(&mut config.trackers, args.trackers);
    until_told(|shutdown| shoal_origin::run(config, shutdown))
}

/// Runs a tracker until it is told to stop.
pub(crate) fn tracker(args: TrackerArgs) -> anyhow::Result<()> {
    let mut config: shoal_tracker::Config = load(args.config.as_deref())?;
    set(&mut config.listen, args.listen);
    set(&mut config.admin_listen, args.admin_listen);
    until_told(|shutdown| shoal_tracker::run(config, shutdown))
}

fn load<T: serde::de::DeserializeOwned>(file: Option<&Path>) -> anyhow::Result<T> {
    Ok(config::load(file)?)
}

fn set<T>(key: &mut T, flag: Option<T>) {
    if let Some(value) = flag {
        *key = value;
    }
}

fn set_list(key: &mut Vec<String>, flag: Vec<String>) {
    if !flag.is_empty() {
        *key = flag;
    }
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
