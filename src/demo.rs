//! `shoal demo`: a registry, a tracker, an origin and some agents in one process pull an image at once, each node with a cap
//! on its link. Shows each node's progress, and at the end how near it came to the optimum.

mod bounds;
mod cluster;
mod image;
mod pull;
mod report;
mod watch;

use std::time::Instant;

use anyhow::Context as _;
use clap::Args as ClapArgs;
use shoal_kit::{ByteSize, Rate};
use tokio::task::JoinSet;

use cluster::Cluster;
use pull::Pulled;
use report::Report;

/// Flags of `shoal demo`.
#[derive(ClapArgs, Clone)]
pub(crate) struct Args {
    /// How many nodes pull.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=200))]
    nodes: u32,
    /// Cap on each node's link, both ways, and on the registry's and the origin's.
    #[arg(long, default_value = "200mbit")]
    rate: Rate,
    /// Length of the image made of this machine's files.
    #[arg(long, default_value = "160MiB", conflicts_with = "image")]
    size: ByteSize,
    /// Pull this image instead of one made of this machine's files.
    #[arg(long, value_name = "REF")]
    image: Option<String>,
    /// Where that image's registry is, such as http://127.0.0.1:5000; default: its own name.
    #[arg(long, value_name = "URL", requires = "image")]
    upstream: Option<String>,
    /// Pull straight from the registry too, at the same rate, to compare. Needs the image made here.
    #[arg(long, conflicts_with = "image")]
    compare: bool,
    /// Print one JSON object instead of bars and a table.
    #[arg(long)]
    json: bool,
}

/// Runs the demonstration.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("async runtime")?;
    let report = runtime.block_on(demonstrate(&args))?;
    runtime.shutdown_background();
    report.print(args.json)?;
    anyhow::ensure!(report.verified, "a node received something other than the image");
    Ok(())
}

async fn demonstrate(args: &Args) -> anyhow::Result<Report> {
    let cluster = Cluster::start(args).await?;
    let image = pull::look(&cluster.front_urls()[0], &cluster.reference).await?;
    let bars = watch::Bars::start(&cluster, image.length(), args.json);
    let pulled = pull_everywhere(cluster.front_urls(), &cluster).await;
    bars.stop();
    let measured = if args.compare { Some(pull_directly(args, &cluster).await?) } else { None };
    let report = Report::new(args, &cluster, &image, pulled?, measured);
    cluster.stop().await;
    Ok(report)
}

/// Pulls through every front at once; gives each node's pull in node order.
async fn pull_everywhere(fronts: Vec<String>, cluster: &Cluster) -> anyhow::Result<Vec<Pulled>> {
    let start = Instant::now();
    let mut pulls = JoinSet::new();
    for (node, front) in fronts.into_iter().enumerate() {
        let reference = cluster.reference.clone();
        pulls.spawn(async move { (node, pull::pull(&front, &reference, start).await) });
    }
    let mut pulled = Vec::new();
    while let Some(ended) = pulls.join_next().await {
        let (node, pull) = ended.context("a pull panicked")?;
        pulled.push((node, pull.with_context(|| format!("node {} could not pull", node + 1))?));
    }
    pulled.sort_by_key(|(node, _)| *node);
    Ok(pulled.into_iter().map(|(_, pull)| pull).collect())
}

/// Pulls from a fresh registry as every node would without us; gives the seconds of the last.
async fn pull_directly(args: &Args, cluster: &Cluster) -> anyhow::Result<f64> {
    let registry = cluster.fresh_registry(args).await?;
    let pulled = pull_everywhere(vec![registry.url(); args.nodes as usize], cluster).await?;
    Ok(pulled.iter().map(|pull| pull.seconds).fold(0.0, f64::max))
}
