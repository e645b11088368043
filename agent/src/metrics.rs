//! What the agent counts. Names are `shoal_agent_*`; nothing is labelled by digest, image or client.

use prometheus::{IntCounter, IntCounterVec, IntGauge};

use crate::pods::Outcome;

/// Why the swarm was not enough, and upstream was asked directly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fallback {
    /// No origin answers, and no peer is connected.
    Alone,
    /// The piece a reader needs made no progress.
    Stalled,
    /// The store cannot take the blob.
    Store,
    /// A small range of a blob that is not here.
    SmallRange,
}

impl Fallback {
    const ALL: [Self; 4] = [Self::Alone, Self::Stalled, Self::Store, Self::SmallRange];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Alone => "alone",
            Self::Stalled => "stalled",
            Self::Store => "store",
            Self::SmallRange => "small_range",
        }
    }
}

/// The agent's own counters; what the node and the store count is asked of them at each scrape.
#[derive(Debug)]
pub(crate) struct Counters {
    /// Requests answered, by route and status.
    pub(crate) requests: IntCounterVec,
    /// Bytes sent to clients that were on the node before they asked.
    pub(crate) served_local: IntCounter,
    /// Bytes sent to clients as they arrived.
    pub(crate) served_arriving: IntCounter,
    /// Bytes that came from upstream directly, into the store or past it.
    pub(crate) upstream_bytes: IntCounter,
    /// Times upstream was asked directly, by reason.
    pub(crate) fallbacks: IntCounterVec,
    /// Torrents given up, by cause.
    pub(crate) torrents_failed: IntCounterVec,
    /// Images of Pods bound to the node, by what became of fetching them ahead.
    pub(crate) pod_images: IntCounterVec,
    /// Bodies cut short because every source failed.
    pub(crate) bodies_cut: IntCounter,
    /// Requests being answered.
    pub(crate) connections: IntGauge,
}

impl Counters {
    pub(crate) fn new(metrics: &shoal_kit::Metrics) -> Self {
        let served = metrics.counter_vec("served_bytes_total", "Bytes sent to clients, by where they were.", &["from"]);
        let torrents_failed = metrics.counter_vec("torrents_failed_total", "Torrents given up.", &["cause"]);
        let fallbacks = metrics.counter_vec("fallbacks_total", "Times upstream was asked directly.", &["reason"]);
        let help = "Images of Pods bound to the node, by what became of fetching them ahead.";
        let pod_images = metrics.counter_vec("pod_images_total", help, &["outcome"]);
        // Alerts ask whether they grow, which the first time shows only if there was a zero before.
        torrents_failed.with_label_values(&["disk"]);
        for reason in Fallback::ALL {
            fallbacks.with_label_values(&[reason.as_str()]);
        }
        for outcome in Outcome::ALL {
            pod_images.with_label_values(&[outcome.as_str()]);
        }
        Self {
            requests: metrics.counter_vec("requests_total", "Requests answered.", &["route", "status"]),
            served_local: served.with_label_values(&["local"]),
            served_arriving: served.with_label_values(&["arriving"]),
            upstream_bytes: metrics.counter("upstream_bytes_total", "Bytes that came from upstream directly."),
            fallbacks,
            torrents_failed,
            pod_images,
            bodies_cut: metrics.counter("bodies_cut_total", "Bodies cut short because every source failed."),
            connections: metrics.gauge("connections", "Connections of clients."),
        }
    }

    pub(crate) fn fell_back(&self, reason: Fallback) {
        self.fallbacks.with_label_values(&[reason.as_str()]).inc();
    }
}
