//! What an agent says of itself: the status page, the demonstration's bars, and the metrics kept by node and store.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use shoal_kit::Metrics;
use shoal_store::Health;

use crate::blobs::Blobs;

/// An agent at one moment.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// Payload received, by where it came from.
    pub received: ReceivedBytes,
    /// Payload received for nothing, in bytes: twice, bad or given up.
    pub wasted_bytes: u64,
    /// Payload sent to peers, in bytes.
    pub sent_bytes: u64,
    /// How parts talk: `mutual TLS`, or `plaintext`.
    pub transport: &'static str,
    /// Connected peers.
    pub peers: usize,
    /// Trackers configured.
    pub trackers: usize,
    /// Of those, the ones that answered last time.
    pub trackers_up: usize,
    /// Origins configured.
    pub origins: usize,
    /// Whether an origin is configured and thought to be up.
    pub origin_up: bool,
    /// The directory of the store.
    pub store: PathBuf,
    /// Whether the store takes blobs: `well`, or why they pass by it.
    pub store_state: &'static str,
    /// What is wrong with the store, in words; none while it is well.
    pub store_trouble: Option<String>,
    /// Blobs of the store dropped because they had rotted on the disk.
    pub corrupt_blobs: u64,
    /// Bytes of the store taken.
    pub store_bytes: u64,
    /// Most bytes the store may take.
    pub store_max_bytes: u64,
    /// Blobs held whole.
    pub blobs: usize,
    /// Layers whose metainfo is at hand, as a manifest named them and an origin holds them.
    pub warm: usize,
    /// Blobs on their way.
    pub torrents: Vec<TorrentStatus>,
}

/// Payload in bytes, by where it came from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ReceivedBytes {
    /// Was on the node before it was asked for; counted as it is served.
    pub local: u64,
    /// From agents of the same zone.
    pub same_zone: u64,
    /// From agents of other zones.
    pub other_zone: u64,
    /// From origins.
    pub origin: u64,
    /// From upstream directly.
    pub upstream: u64,
}

/// A blob on its way.
#[derive(Debug, Clone, Serialize)]
pub struct TorrentStatus {
    /// The blob.
    pub digest: String,
    /// Its length in bytes.
    pub length_bytes: u64,
    /// Pieces verified on disk.
    pub have: u32,
    /// Pieces of the blob.
    pub pieces: u32,
    /// Pieces whose hash is known.
    pub known: u32,
    /// Whether a client asked for all of it; else it is fetched ahead, or read in small ranges.
    pub wanted: bool,
}

impl Status {
    pub(crate) fn of(blobs: &Blobs) -> Self {
        let (node, usage) = (blobs.node.status(), blobs.store.usage());
        let torrents = blobs.downloads().into_iter().map(|download| {
            let (geometry, metainfo) = (download.geometry(), download.partial().metainfo());
            TorrentStatus {
                digest: download.digest().to_string(),
                length_bytes: geometry.length(),
                have: download.partial().have().count(),
                pieces: geometry.piece_count(),
                known: metainfo.known(),
                wanted: download.is_wanted(),
            }
        });
        Self {
            received: ReceivedBytes {
                local: blobs.counters.served_local.get(),
                same_zone: node.received.same_zone,
                other_zone: node.received.other_zone,
                origin: node.received.origin,
                upstream: blobs.counters.upstream_bytes.get(),
            },
            wasted_bytes: node.wasted.duplicate + node.wasted.bad_piece + node.wasted.dropped,
            sent_bytes: node.sent_bytes,
            transport: blobs.node.identity().transport(),
            peers: node.connections,
            trackers: node.trackers,
            trackers_up: node.trackers_up,
            origins: blobs.origins.count(),
            origin_up: blobs.origins.is_up(),
            store: blobs.store.root().to_owned(),
            store_state: blobs.store.health().as_str(),
            store_trouble: blobs.store.trouble(),
            corrupt_blobs: usage.corrupt_blobs,
            store_bytes: usage.bytes,
            store_max_bytes: usage.budget_bytes,
            blobs: usage.blobs,
            warm: blobs.warm_count(),
            torrents: torrents.collect(),
        }
    }
}

/// A name, a help text, a label's value, and where to look.
type Labelled = (&'static str, &'static str, &'static str, fn(&Blobs) -> u64);
/// A name, a help text, and where to look.
type Plain = (&'static str, &'static str, fn(&Blobs) -> u64);

/// Exposes what node and store count, asked for at each scrape.
pub(crate) fn expose(metrics: &Metrics, blobs: &Arc<Blobs>) {
    let bytes = "Payload received, by where it came from; local is counted as it is served.";
    let wasted = "Payload received for nothing, by cause.";
    let sources: [Labelled; 8] = [
        ("bytes_total", bytes, "local", |blobs| blobs.counters.served_local.get()),
        ("bytes_total", bytes, "peer_same_zone", |blobs| blobs.node.status().received.same_zone),
        ("bytes_total", bytes, "peer_other_zone", |blobs| blobs.node.status().received.other_zone),
        ("bytes_total", bytes, "origin", |blobs| blobs.node.status().received.origin),
        ("bytes_total", bytes, "upstream", |blobs| blobs.counters.upstream_bytes.get()),
        ("wasted_bytes_total", wasted, "duplicate", |blobs| blobs.node.status().wasted.duplicate),
        ("wasted_bytes_total", wasted, "bad_piece", |blobs| blobs.node.status().wasted.bad_piece),
        ("wasted_bytes_total", wasted, "dropped", |blobs| blobs.node.status().wasted.dropped),
    ];
    for (name, help, value, read) in sources {
        let label = if name == "bytes_total" { "source" } else { "cause" };
        let blobs = blobs.clone();
        metrics.counter_fn(name, help, &[(label, value)], move || read(&blobs));
    }
    let counters: [Plain; 6] = [
        ("sent_bytes_total", "Payload sent to peers.", |blobs| blobs.node.status().sent_bytes),
        ("pieces_total", "Pieces verified and written.", |blobs| blobs.node.status().verified_pieces),
        ("committed_blobs_total", "Blobs that became whole.", |blobs| blobs.node.status().committed_blobs),
        ("violations_total", "Connections closed for what the peer did.", |blobs| blobs.node.status().violations),
        ("cache_evictions_total", "Blobs and partials evicted.", |blobs| blobs.store.usage().evictions),
        ("corrupt_blobs_total", "Blobs dropped as they had rotted on the disk.", |blobs| {
            blobs.store.usage().corrupt_blobs
        }),
    ];
    for (name, help, read) in counters {
        let blobs = blobs.clone();
        metrics.counter_fn(name, help, &[], move || read(&blobs));
    }
    let gauges: [Plain; 7] = [
        ("peers", "Connected peers.", |blobs| blobs.node.status().connections as u64),
        ("torrents", "Open torrents.", |blobs| blobs.node.status().torrents as u64),
        ("leeching", "Torrents still downloading.", |blobs| blobs.node.status().leeching as u64),
        ("trackers_up", "Trackers that answered last time.", |blobs| blobs.node.status().trackers_up as u64),
        ("origin_up", "Whether an origin is thought to be up.", |blobs| blobs.origins.is_up().into()),
        ("cache_bytes", "Bytes of the store taken.", |blobs| blobs.store.usage().bytes),
        ("cache_blobs", "Blobs held whole.", |blobs| blobs.store.usage().blobs as u64),
    ];
    for (name, help, read) in gauges {
        let blobs = blobs.clone();
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
        metrics.gauge_fn(name, help, &[], move || read(&blobs) as f64);
    }
    let store = blobs.store.clone();
    let states = Health::ALL.map(Health::as_str);
    metrics.state_fn("store_state", "1 for the state the store is in.", states, move || store.health().as_str());
}
