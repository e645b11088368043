//! What came of a simulation.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

/// The figures of one run. Times are virtual, each from an agent's arrival to its having every blob; ratios are to
/// [`crate::Scenario::optimum_seconds`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Agents that wanted the blobs.
    pub nodes: u32,
    /// Length of the blobs in bytes.
    pub blob_bytes: u64,
    /// Pieces of the blobs.
    pub pieces: u32,
    /// The seed that replays the run.
    pub seed: u64,
    /// Agents that completed.
    pub completed: u32,
    /// Agents that crashed before they completed.
    pub crashed: u32,
    /// Agents that completed over those that did not crash before.
    pub survivors_completed: f64,
    /// The longest time.
    pub seconds_last: f64,
    /// The median of the times.
    pub seconds_median: f64,
    /// The shortest possible time of the last.
    pub optimum_seconds: f64,
    /// `seconds_last` over the optimum.
    pub ratio_last: f64,
    /// `seconds_median` over the optimum.
    pub ratio_median: f64,
    /// The times in seconds.
    pub percentiles: Percentiles,
    /// The times to the first piece of the first blob, which a reader waits for.
    pub first_piece: Percentiles,
    /// Agents that are alike, where there is more than one kind.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupReport>,
    /// Payload bytes that came into each zone from others, in blobs; empty without zones. The origin is in the first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub copies_per_zone: Vec<f64>,
    /// Payload bytes that left the origin, in blobs.
    pub origin_copies: f64,
    /// Payload bytes that agents had already, over all that they received.
    pub duplicate_share: f64,
    /// Payload bytes that agents sent, over what their uplinks could until the last completed.
    pub uplink_share: f64,
    /// Blocks delivered.
    pub blocks: u64,
    /// Control messages delivered.
    pub messages: u64,
    /// Connections made.
    pub connections: u64,
    /// Connections that a node gave up, by reason.
    pub disconnects: BTreeMap<String, u64>,
    /// Events delivered, of every kind.
    pub events: u64,
    /// A hash over every event: when, from whom, to whom, of what kind. Equal for equal runs.
    pub trace_hash: String,
}

/// Times that a share of the agents did not exceed, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Default)]
pub struct Percentiles {
    /// Half of them.
    pub p50: f64,
    /// 95 %.
    pub p95: f64,
    /// 99 %.
    pub p99: f64,
    /// 99.9 %.
    pub p999: f64,
    /// All of them.
    pub max: f64,
}

/// The figures of agents that are alike.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GroupReport {
    /// The group's name.
    pub name: &'static str,
    /// Agents in it.
    pub nodes: u32,
    /// Agents of it that completed.
    pub completed: u32,
    /// Their longest time.
    pub seconds_last: f64,
    /// The median of their times.
    pub seconds_median: f64,
    /// What one of them would take with the origin to itself.
    pub alone_seconds: f64,
    /// `seconds_last` over `alone_seconds`.
    pub ratio_last: f64,
    /// `seconds_median` over `alone_seconds`.
    pub ratio_median: f64,
}

impl Report {
    /// Tells whether every agent that did not crash completed.
    #[must_use]
    pub fn all_completed(&self) -> bool {
        self.completed + self.crashed == self.nodes
    }
}

impl Percentiles {
    /// Of times in any order; zero when there is none.
    pub(crate) fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |per_mille: usize| {
            let rank = (times.len() * per_mille).div_ceil(1000);
            times.get(rank.saturating_sub(1)).map_or(0.0, Duration::as_secs_f64)
        };
        Self { p50: at(500), p95: at(950), p99: at(990), p999: at(999), max: at(1000) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_least_time_that_so_many_did_not_exceed() {
        let times = (1..=1000).rev().map(Duration::from_secs).collect();
        let expected = Percentiles { p50: 500.0, p95: 950.0, p99: 990.0, p999: 999.0, max: 1000.0 };
        assert_eq!(Percentiles::of(times), expected);
        let of_two = Percentiles::of(vec![Duration::from_secs(3), Duration::from_secs(1)]);
        assert_eq!((of_two.p50, of_two.p95), (1.0, 3.0));
        assert_eq!(Percentiles::of(Vec::new()), Percentiles::default());
    }
}
