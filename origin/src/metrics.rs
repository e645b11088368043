//! What the origin counts, under `shoal_origin_`.

use prometheus::{IntCounter, IntCounterVec, IntGauge};
use shoal_kit::Metrics;

/// The origin's own counters; those of its store and peer node are asked for at each scrape.
#[derive(Clone)]
pub(crate) struct OriginMetrics {
    pub(crate) upstream_requests: IntCounterVec,
    pub(crate) upstream_bytes: IntCounter,
    pub(crate) blobs: IntCounterVec,
    pub(crate) ingests: IntGauge,
    pub(crate) streams: IntGauge,
    pub(crate) cache_requests: IntCounterVec,
    pub(crate) stale_tags: IntCounter,
    pub(crate) http_requests: IntCounterVec,
    pub(crate) http_body_bytes: IntCounter,
}

impl OriginMetrics {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        Self {
            upstream_requests: metrics.counter_vec(
                "upstream_requests_total",
                "Requests to upstream registries, by kind and outcome.",
                &["kind", "status"],
            ),
            upstream_bytes: metrics.counter("upstream_bytes_total", "Bytes of blobs that came from upstream."),
            blobs: metrics.counter_vec("blobs_total", "Blobs fetched from upstream, by outcome.", &["outcome"]),
            ingests: metrics.gauge("ingests", "Blobs being fetched from upstream now."),
            streams: metrics.gauge("metainfo_streams", "Open metainfo streams."),
            cache_requests: metrics.counter_vec(
                "cache_requests_total",
                "Questions answered from what is kept here (hit) or by upstream (miss), by kind.",
                &["kind", "result"],
            ),
            stale_tags: metrics
                .counter("stale_tags_total", "Tags served though upstream, down or limiting, could not confirm them."),
            http_requests: metrics.counter_vec(
                "http_requests_total",
                "Requests to the registry front, by kind and status.",
                &["kind", "status"],
            ),
            http_body_bytes: metrics.counter("http_body_bytes_total", "Bytes of blobs sent by the registry front."),
        }
    }
}
