//! The tracker's metrics, `shoal_tracker_*`, read from the service at each scrape.

use std::sync::Arc;

use shoal_kit::Metrics;

use crate::preheat;
use crate::service::Service;
use crate::state::{Counters, Sizes};

/// Name, help, and where the value is.
type Counter = (&'static str, &'static str, fn(Counters) -> u64);
type Gauge = (&'static str, &'static str, fn(Sizes) -> usize);

/// Registers the metrics of a service.
pub(crate) fn metrics(service: &Arc<Service>, preheat: &preheat::Shared) -> Metrics {
    let metrics = Metrics::new("tracker");
    let counters: [Counter; 8] = [
        ("announces_total", "Announces answered.", |c| c.announces),
        ("announces_refused_total", "Announces refused because there were too many peers.", |c| c.announces_refused),
        ("torrents_announced_total", "Torrents in the announces answered.", |c| c.torrents_announced),
        ("torrents_unrecorded_total", "Torrents answered but not recorded, for a limit.", |c| c.torrents_unrecorded),
        ("peers_handed_out_total", "Peers handed out.", |c| c.peers_handed_out),
        ("resyncs_total", "Answers that asked for a full announce.", |c| c.resyncs),
        ("lease_expiries_total", "Peers forgotten because their lease ran out.", |c| c.lease_expiries),
        ("leaves_total", "Peers that left by themselves.", |c| c.leaves),
    ];
    for (name, help, value) in counters {
        let service = service.clone();
        metrics.counter_fn(name, help, &[], move || value(service.counters()));
    }
    let gauges: [Gauge; 4] = [
        ("peers", "Peers with a lease.", |s| s.peers),
        ("torrents", "Torrents with at least one member.", |s| s.torrents),
        ("memberships", "Members over all torrents.", |s| s.memberships),
        ("memberships_seeding", "Members over all torrents that hold the whole blob.", |s| s.seeding),
    ];
    for (name, help, value) in gauges {
        let service = service.clone();
        metrics.gauge_fn(name, help, &[], move || value(service.sizes()) as f64);
    }
    let (rounds, nodes) = (preheat.clone(), preheat.clone());
    metrics
        .gauge_fn("preheats", "Preheats under way, at the tracker that leads.", &[], move || rounds.sizes().0 as f64);
    metrics.gauge_fn("nodes", "Nodes of the cluster, at the tracker that leads.", &[], move || nodes.sizes().1 as f64);
    metrics
}
