//! Prometheus metrics of one part. Each part has a registry of its own, so that many can run in one process.

use std::collections::HashMap;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// Makes and registers the metrics of one part; names become `shoal_<part>_<name>`, in base units.
///
/// # Panics
/// Every method panics on a malformed name, or one that is registered already with other labels: both are known when
/// the program is written, so a test that makes the metrics once finds them.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    part: &'static str,
}

const REGISTERED: &str = "metric names are well-formed and registered once";

impl Metrics {
    /// An own registry for a part (`agent`, `origin`, `tracker`), with `shoal_<part>_build_info` in it.
    #[must_use]
    pub fn new(part: &'static str) -> Self {
        let metrics = Self { registry: Registry::new(), part };
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        metrics.gauge_fn("build_info", "The version that runs; always 1.", &version, || 1.0);
        metrics
    }

    /// The registry, for [`crate::AdminParts`].
    #[must_use]
    pub fn registry(&self) -> Registry {
        self.registry.clone()
    }

    /// A counter; end its name in `_total`.
    #[must_use]
    pub fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::with_opts(self.opts(name, help)))
    }

    /// Counters told apart by labels. Never label by digest, image or peer.
    #[must_use]
    pub fn counter_vec(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(self.opts(name, help), labels))
    }

    /// A gauge that the part sets.
    #[must_use]
    pub fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::with_opts(self.opts(name, help)))
    }

    /// Gauges told apart by labels.
    #[must_use]
    pub fn gauge_vec(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.register(IntGaugeVec::new(self.opts(name, help), labels))
    }

    /// A histogram with these upper bounds of its buckets.
    #[must_use]
    pub fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let opts = HistogramOpts { common_opts: self.opts(name, help), buckets: buckets.to_vec() };
        self.register(Histogram::with_opts(opts))
    }

    /// A gauge whose value is asked for at each scrape. Several may share a name when their label values differ.
    pub fn gauge_fn(
        &self,
        name: &str,
        help: &str,
        labels: &[(&str, &str)],
        value: impl Fn() -> f64 + Send + Sync + 'static,
    ) {
        let make = move |opts| {
            let gauge = Gauge::with_opts(opts).expect(REGISTERED);
            gauge.set(value());
            gauge.collect()
        };
        self.ask(name, help, labels, make);
    }

    /// A gauge for each state that something may be in, told apart by the label `state`: 1 for the one it is in at a scrape.
    pub fn state_fn(
        &self,
        name: &str,
        help: &str,
        states: impl IntoIterator<Item = &'static str>,
        current: impl Fn() -> &'static str + Clone + Send + Sync + 'static,
    ) {
        for state in states {
            let current = current.clone();
            let is_current = move || f64::from(u8::from(current() == state));
            self.gauge_fn(name, help, &[("state", state)], is_current);
        }
    }

    /// A counter kept elsewhere, asked for at each scrape; it must never fall. Names as for [`Self::gauge_fn`].
    pub fn counter_fn(
        &self,
        name: &str,
        help: &str,
        labels: &[(&str, &str)],
        value: impl Fn() -> u64 + Send + Sync + 'static,
    ) {
        let make = move |opts| {
            let counter = IntCounter::with_opts(opts).expect(REGISTERED);
            counter.inc_by(value());
            counter.collect()
        };
        self.ask(name, help, labels, make);
    }

    fn ask(
        &self,
        name: &str,
        help: &str,
        labels: &[(&str, &str)],
        make: impl Fn(Opts) -> Vec<MetricFamily> + Send + Sync + 'static,
    ) {
        let labels: HashMap<_, _> = labels.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let opts = self.opts(name, help).const_labels(labels);
        let desc = prometheus::core::Describer::describe(&opts).expect(REGISTERED);
        self.registry.register(Box::new(Asked { desc, opts, make })).expect(REGISTERED);
    }

    fn opts(&self, name: &str, help: &str) -> Opts {
        Opts::new(format!("shoal_{}_{name}", self.part), help)
    }

    fn register<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let collector = made.expect(REGISTERED);
        self.registry.register(Box::new(collector.clone())).expect(REGISTERED);
        collector
    }
}

/// A metric made afresh at each scrape.
struct Asked<F> {
    desc: Desc,
    opts: Opts,
    make: F,
}

impl<F: Fn(Opts) -> Vec<MetricFamily> + Send + Sync> Collector for Asked<F> {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        (self.make)(self.opts.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(metrics: &Metrics) -> String {
        prometheus::TextEncoder::new().encode_to_string(&metrics.registry().gather()).unwrap()
    }

    #[test]
    fn metrics_carry_the_name_of_their_part() {
        let metrics = Metrics::new("tracker");
        metrics.counter("announces_total", "Announces.").inc_by(3);
        metrics.gauge("peers", "Peers.").set(2);
        let text = text(&metrics);
        assert!(text.contains("shoal_tracker_announces_total 3\n"), "{text}");
        assert!(text.contains("shoal_tracker_peers 2\n"), "{text}");
        assert!(text.contains("shoal_tracker_build_info{version="), "{text}");
    }

    #[test]
    fn values_kept_elsewhere_are_asked_for_at_each_scrape() {
        let metrics = Metrics::new("agent");
        let kept = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(7));
        for source in ["peer", "origin"] {
            let kept = kept.clone();
            let read = move || kept.load(std::sync::atomic::Ordering::Relaxed);
            metrics.counter_fn("bytes_total", "Bytes received.", &[("source", source)], read);
        }
        assert!(text(&metrics).contains("shoal_agent_bytes_total{source=\"peer\"} 7\n"));
        kept.store(9, std::sync::atomic::Ordering::Relaxed);
        let text = text(&metrics);
        assert!(text.contains("shoal_agent_bytes_total{source=\"origin\"} 9\n"), "{text}");
        assert_eq!(text.matches("# TYPE shoal_agent_bytes_total counter").count(), 1, "{text}");
    }

    #[test]
    fn two_parts_in_one_process_do_not_meet() {
        let (a, b) = (Metrics::new("agent"), Metrics::new("agent"));
        a.counter("requests_total", "Requests.").inc();
        b.counter("requests_total", "Requests.").inc_by(5);
        assert!(text(&a).contains("shoal_agent_requests_total 1\n"));
    }
}
