//! The figures of one system in one case: ratios to the bound, copies of the image, and what it cost.

use anyhow::Error;
use serde_json::{Value, json};

use super::case::{Case, Start};
use super::meter::Cost;
use super::pull::Pulled;
use crate::image::Image;
use crate::node::Traffic;
use crate::usage::to_f64;

/// A run with less of the machine idle than this, or more in foreign programs, says little.
const IDLE_SHARE_MIN: f64 = 0.1;
const FOREIGN_SHARE_MAX: f64 = 0.05;

/// One system in one case. Copies are bytes over the image's bytes.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) system: &'static str,
    pub(super) case: Case,
    /// Seconds that the fluid bound allows.
    pub(super) bound: f64,
    pub(super) image_bytes: u64,
    /// Of each node that succeeded, in the nodes' order.
    pub(super) pulls: Vec<Pulled>,
    /// Why nodes failed.
    pub(super) failures: Vec<Error>,
    /// Bodies of blobs that left the registry, by its access log.
    pub(super) upstream_copies: f64,
    /// What left the system's own server, by its link.
    pub(super) origin_copies: Option<f64>,
    /// Payload received for nothing over all payload, by the system's own count.
    pub(super) twice: Option<f64>,
    /// The nodes that pulled come first, then the registry's, then the system's own server's.
    pub(super) cost: Cost,
}

/// A direct pull by the same node in the same run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Direct {
    pub(super) seconds: f64,
    pub(super) first_byte: f64,
}

impl Row {
    /// Seconds of the node at this share of all that succeeded, slowest last: 1.0 is the last.
    pub(super) fn seconds_at(&self, share: f64) -> f64 {
        let mut seconds = self.pulls.iter().map(|pull| pull.seconds).collect::<Vec<_>>();
        seconds.sort_by(f64::total_cmp);
        at_share(&seconds, share)
    }

    pub(super) fn ratio_at(&self, share: f64) -> f64 {
        self.seconds_at(share) / self.bound
    }

    /// First byte of the first node, in seconds.
    pub(super) fn first_byte(&self) -> Option<f64> {
        self.pulls.first()?.first_byte
    }

    /// The row as the direct pull of others.
    pub(super) fn direct(&self) -> Option<Direct> {
        Some(Direct { seconds: self.pulls.first()?.seconds, first_byte: self.first_byte()? })
    }

    /// Copies received by the node that received most, by its link: headers and acknowledgements count.
    pub(super) fn received_copies(&self) -> f64 {
        let received = self.of_pullers(|cost| to_f64(cost.traffic.received_bytes));
        received.fold(0.0, f64::max) / to_f64(self.image_bytes)
    }

    /// Mean over the nodes that pulled.
    pub(super) fn cpu_seconds(&self) -> f64 {
        self.of_pullers(|cost| cost.cpu_seconds).sum::<f64>() / f64::from(self.case.nodes)
    }

    /// Most of any node that pulled, in MiB.
    pub(super) fn anon_mib(&self) -> f64 {
        self.of_pullers(|cost| to_f64(cost.anon_peak_bytes)).fold(0.0, f64::max) / to_f64(1 << 20)
    }

    fn of_pullers(&self, figure: impl Fn(&super::meter::NodeCost) -> f64) -> impl Iterator<Item = f64> {
        self.cost.nodes.iter().take(self.case.nodes.into()).map(figure)
    }

    /// Why the figures are not to be trusted.
    pub(super) fn doubts(&self) -> Vec<String> {
        let name = format!("{} in {}", self.system, self.case);
        let mut doubts = Vec::new();
        if self.cost.idle < IDLE_SHARE_MIN {
            doubts.push(format!("{name}: only {:.0} % of the machine was idle", self.cost.idle * 100.0));
        }
        if self.cost.foreign > FOREIGN_SHARE_MAX {
            doubts.push(format!("{name}: other programs took {:.0} % of the machine", self.cost.foreign * 100.0));
        }
        doubts.extend(self.failures.iter().map(|failure| format!("{name}: failed: {failure:#}")));
        doubts
    }

    /// What it was to reach and did not.
    pub(super) fn misses(&self, direct: Option<Direct>) -> Vec<String> {
        let target = self.case.target();
        let mut wanted = vec![("copies from the registry", self.upstream_copies, target.upstream_copies)];
        wanted.extend(self.twice.map(|twice| ("share received twice", twice, target.twice)));
        match (self.case.start, direct) {
            (Start::Alone, Some(direct)) => {
                wanted.push(("time over a direct pull's", self.seconds_at(1.0) / direct.seconds, target.last));
                let later = self.first_byte().map(|first| first - direct.first_byte);
                wanted.extend(later.map(|later| ("first byte later, seconds", later, target.first_byte_later)));
            }
            (Start::Alone, None) => {}
            (Start::Cold | Start::Warm, _) => {
                wanted.push(("last node over the bound", self.ratio_at(1.0), target.last))
            }
        }
        let missed = wanted.into_iter().filter(|(_, figure, allowed)| figure > allowed);
        missed.map(|(what, figure, allowed)| format!("{}: {what} {figure:.3}, not {allowed}", self.case)).collect()
    }

    pub(super) fn json(&self, direct: Option<Direct>) -> Value {
        let ratios = [("min", 0.0), ("median", 0.5), ("p95", 0.95), ("max", 1.0)];
        let ratios = ratios.map(|(name, share)| (name.to_owned(), json!(self.ratio_at(share))));
        let direct =
            direct.map(|Direct { seconds, first_byte }| json!({ "seconds": seconds, "first_byte": first_byte }));
        let pulls = self.pulls.iter().map(|pull| {
            let times = |blob: &super::pull::BlobTimes| json!([blob.asked, blob.first_byte, blob.done]);
            let blobs = pull.blobs.iter().map(times).collect::<Vec<_>>();
            json!({ "seconds": pull.seconds, "first_byte": pull.first_byte, "blobs_asked_first_done": blobs })
        });
        let nodes = self.cost.nodes.iter().map(|node| {
            let looks = |of: fn(&Traffic) -> u64| node.traffic_by_look.iter().map(of).collect::<Vec<_>>();
            json!({
                "cpu_seconds": node.cpu_seconds, "anon_peak_bytes": node.anon_peak_bytes,
                "received_bytes": node.traffic.received_bytes, "sent_bytes": node.traffic.sent_bytes,
                "received_bytes_each_100_ms": looks(|traffic| traffic.received_bytes),
                "sent_bytes_each_100_ms": looks(|traffic| traffic.sent_bytes),
            })
        });
        json!({
            "system": self.system, "case": self.case.to_string(), "bound_seconds": self.bound, "image_bytes": self.image_bytes,
            "seconds_last": self.seconds_at(1.0), "over_bound": serde_json::Map::from_iter(ratios), "direct": direct,
            "upstream_copies": self.upstream_copies, "origin_copies": self.origin_copies, "received_twice": self.twice,
            "received_copies_worst": self.received_copies(), "cpu_seconds_per_node": self.cpu_seconds(),
            "anon_mib_worst": self.anon_mib(), "idle": self.cost.idle, "foreign": self.cost.foreign,
            "failures": self.failures.iter().map(|failure| format!("{failure:#}")).collect::<Vec<_>>(),
            "pulls": pulls.collect::<Vec<_>>(), "nodes_then_registry_then_origin": nodes.collect::<Vec<_>>(),
        })
    }
}

/// Copies of the image that these bytes are.
pub(super) fn copies(bytes: u64, image: &Image) -> f64 {
    to_f64(bytes) / to_f64(image.length())
}

/// The nearest rank of a sorted list; not a number of an empty one.
fn at_share(sorted: &[f64], share: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a short list's length")]
    let rank = (share * to_f64(sorted.len() as u64)).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_nearest_ranks() {
        let sorted = [1.0, 2.0, 3.0, 4.0];
        let at = [0.0, 0.5, 0.95, 1.0].map(|share| at_share(&sorted, share));
        assert!(at.iter().zip([1.0, 2.0, 4.0, 4.0]).all(|(at, expected)| at.total_cmp(&expected).is_eq()), "{at:?}");
        assert!(at_share(&[], 0.5).is_nan());
    }
}
