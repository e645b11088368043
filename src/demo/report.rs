//! What came of it: a table for people, or one JSON object.

use anyhow::Context as _;
use serde::Serialize;

use super::Args;
use super::bounds::{direct, optimum, to_f64};
use super::cluster::Cluster;
use super::pull::{Image, Pulled};

/// A demonstration's figures. Times in seconds; shares and ratios without unit.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    nodes: u32,
    rate: String,
    image_bytes: u64,
    blobs: usize,
    seconds_last: f64,
    seconds_median: f64,
    optimum_seconds: f64,
    ratio_last: f64,
    ratio_median: f64,
    /// What pulling straight from the registry takes at that rate, by the bound.
    direct_seconds_computed: f64,
    /// The same, measured with `--compare`.
    #[serde(skip_serializing_if = "Option::is_none")]
    direct_seconds_measured: Option<f64>,
    /// Copies of the image that left the registry: by its own count where it is ours, else by origin's and agents'.
    upstream_copies: f64,
    /// Copies of the image that left the origin.
    origin_copies: f64,
    /// Bytes received for nothing over bytes received.
    duplicate_share: f64,
    /// Every node received exactly the image.
    pub(super) verified: bool,
    per_node: Vec<Node>,
}

#[derive(Debug, Serialize)]
struct Node {
    seconds: f64,
    peer_bytes: u64,
    origin_bytes: u64,
    upstream_bytes: u64,
    sent_bytes: u64,
}

impl Report {
    pub(super) fn new(
        args: &Args,
        cluster: &Cluster,
        image: &Image,
        pulled: Vec<Pulled>,
        direct_measured: Option<f64>,
    ) -> Self {
        let image_bytes = image.length();
        let statuses: Vec<_> = cluster.agents.iter().map(shoal_agent::Running::status).collect();
        let per_node: Vec<_> = pulled
            .iter()
            .zip(&statuses)
            .map(|(pull, status)| Node {
                seconds: pull.seconds,
                peer_bytes: status.received.same_zone + status.received.other_zone,
                origin_bytes: status.received.origin,
                upstream_bytes: status.received.upstream,
                sent_bytes: status.sent_bytes,
            })
            .collect();
        let mut times: Vec<_> = pulled.iter().map(|pull| pull.seconds).collect();
        times.sort_by(f64::total_cmp);
        let (last, median) = (times.last().copied().unwrap_or(0.0), times[times.len() / 2]);
        let optimum = optimum(image_bytes, image.piece_bytes(), args.nodes, args.rate.get());
        let wasted: u64 = statuses.iter().map(|status| status.wasted_bytes).sum();
        let received: u64 = per_node.iter().map(|node| node.peer_bytes + node.origin_bytes + node.upstream_bytes).sum();
        let fetched = || {
            let by_agents: u64 = per_node.iter().map(|node| node.upstream_bytes).sum();
            cluster.origin.counters().upstream_bytes + by_agents
        };
        let upstream_bytes =
            cluster.upstream.as_ref().map_or_else(fetched, |registry| registry.counters().blob_bytes());
        let copies = |bytes: u64| to_f64(bytes) / to_f64(image_bytes.max(1));
        Self {
            nodes: args.nodes,
            rate: args.rate.to_string(),
            image_bytes,
            blobs: image.blobs(),
            seconds_last: last,
            seconds_median: median,
            optimum_seconds: optimum,
            ratio_last: last / optimum,
            ratio_median: median / optimum,
            direct_seconds_computed: direct(image_bytes, args.nodes, args.rate.get()),
            direct_seconds_measured: direct_measured,
            upstream_copies: copies(upstream_bytes),
            origin_copies: copies(cluster.origin.counters().peer_sent_bytes),
            duplicate_share: to_f64(wasted) / to_f64((received + wasted).max(1)),
            verified: pulled.iter().all(|pull| pull.bytes == image_bytes),
            per_node,
        }
    }

    /// Prints to stdout.
    #[expect(clippy::print_stdout, reason = "this is what the user asked for")]
    pub(super) fn print(&self, json: bool) -> anyhow::Result<()> {
        if json {
            println!("{}", serde_json::to_string(self).context("report")?);
        } else {
            print!("{}", self.table());
        }
        Ok(())
    }

    fn table(&self) -> String {
        let mib = |bytes: u64| format!("{:.1}", to_f64(bytes) / to_f64(1 << 20));
        let mut lines = vec![
            format!(
                "{} nodes pulled an image of {} MiB in {} blobs, each node's link capped at {}",
                self.nodes,
                mib(self.image_bytes),
                self.blobs,
                self.rate
            ),
            String::new(),
            "   node  seconds  MiB from peers  from origin  from upstream  MiB sent".to_owned(),
        ];
        for (index, node) in self.per_node.iter().enumerate() {
            lines.push(format!(
                "{:>7}  {:>7.2}  {:>14}  {:>11}  {:>13}  {:>8}",
                index + 1,
                node.seconds,
                mib(node.peer_bytes),
                mib(node.origin_bytes),
                mib(node.upstream_bytes),
                mib(node.sent_bytes)
            ));
        }
        let row = |what: &str, seconds: f64, note: String| format!("{what:<42}{seconds:>9.2} s  {note}");
        lines.push(String::new());
        lines.push(row("last node", self.seconds_last, format!("{:.2} of the optimum", self.ratio_last)));
        lines.push(row("median node", self.seconds_median, format!("{:.2} of the optimum", self.ratio_median)));
        lines.push(row("optimum: M + floor(log2 N) piece times", self.optimum_seconds, String::new()));
        let times = format!("{:.1} times as long", self.direct_seconds_computed / self.seconds_last);
        lines.push(row("straight from the registry, computed", self.direct_seconds_computed, times));
        if let Some(measured) = self.direct_seconds_measured {
            let times = format!("{:.1} times as long", measured / self.seconds_last);
            lines.push(row("straight from the registry, measured", measured, times));
        }
        lines.push(String::new());
        lines.push(format!("copies that left the registry   {:.3}", self.upstream_copies));
        lines.push(format!("copies that left the origin     {:.3}", self.origin_copies));
        lines.push(format!("received for nothing            {:.2} %", self.duplicate_share * 100.0));
        let verified = if self.verified { "every blob of every node" } else { "FAILED" };
        lines.push(format!("digests verified                {verified}"));
        lines.join("\n") + "\n"
    }
}
