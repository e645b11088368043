//! `shoal sim`: flags, as people write them, for the simulator.

use std::io;

use clap::Args as ClapArgs;
use shoal_kit::{ByteSize, Rate};
use shoal_sim::cli;

/// Flags of `shoal sim`.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// How many nodes want the blob.
    #[arg(long, default_value_t = 16)]
    nodes: u32,
    /// Length of the blob.
    #[arg(long, default_value = "512MiB", value_name = "SIZE")]
    blob: ByteSize,
    /// Length of its pieces; default: as the blob's length gives it.
    #[arg(long, value_name = "SIZE")]
    piece_length: Option<ByteSize>,
    /// Draws everything that is random; the same seed gives the same run.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Each node's rate, both ways.
    #[arg(long, default_value = "1gbit")]
    rate: Rate,
    /// The origin's rate; default: as the nodes'.
    #[arg(long)]
    origin_rate: Option<Rate>,
    /// The rate at which the origin gets the blob from upstream; default: it has the blob.
    #[arg(long)]
    upstream_rate: Option<Rate>,
    /// Latency between any two nodes, one way, in microseconds.
    #[arg(long, default_value_t = 250)]
    latency_us: u64,
    /// Nodes arrive at random within this time, in milliseconds.
    #[arg(long, default_value_t = 0)]
    arrivals_ms: u64,
    /// Share of the nodes that crash while the blob is spread.
    #[arg(long, default_value_t = 0.0)]
    crash_share: f64,
    /// Share of the nodes that lose all connections while the blob is spread.
    #[arg(long, default_value_t = 0.0)]
    cut_share: f64,
    /// The origin crashes at this time, in milliseconds.
    #[arg(long)]
    origin_crash_ms: Option<u64>,
    /// Each node has a reader that takes the blob in order, as a pull does.
    #[arg(long)]
    readers: bool,
    /// Check invariants after each event (slow).
    #[arg(long)]
    check: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Runs a simulation and prints its figures; fails when a node did not get the blob.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let told = cli::Args {
        nodes: args.nodes,
        blob_length: args.blob.get(),
        piece_length: args.piece_length.map(|length| u32::try_from(length.get()).unwrap_or(u32::MAX)),
        seed: args.seed,
        rate: args.rate.get(),
        origin_rate: args.origin_rate.map(Rate::get),
        upstream_rate: args.upstream_rate.map(Rate::get),
        latency_us: args.latency_us,
        arrivals_ms: args.arrivals_ms,
        crash_share: args.crash_share,
        cut_share: args.cut_share,
        origin_crash_ms: args.origin_crash_ms,
        readers: args.readers,
        check: args.check,
        json: args.json,
    };
    let report = cli::run_cli(&told, &mut io::stdout().lock())?;
    anyhow::ensure!(report.all_completed(), "not every node got the blob; replay: {told}");
    Ok(())
}
