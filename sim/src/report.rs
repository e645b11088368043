//! What came of a simulation.

use std::collections::BTreeMap;

use serde::Serialize;

/// The figures of one run. Times are virtual; ratios are to [`crate::Scenario::optimum_seconds`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Agents that wanted the blob.
    pub nodes: u32,
    /// Length of the blob in bytes.
    pub blob_bytes: u64,
    /// Pieces of the blob.
    pub pieces: u32,
    /// The seed that replays the run.
    pub seed: u64,
    /// Agents that completed.
    pub completed: u32,
    /// Agents that crashed before they completed.
    pub crashed: u32,
    /// The longest time from an agent's arrival to its completion.
    pub seconds_last: f64,
    /// The median of these times.
    pub seconds_median: f64,
    /// The shortest possible time of the last.
    pub optimum_seconds: f64,
    /// `seconds_last` over the optimum.
    pub ratio_last: f64,
    /// `seconds_median` over the optimum.
    pub ratio_median: f64,
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

impl Report {
    /// Tells whether every agent that did not crash completed.
    #[must_use]
    pub fn all_completed(&self) -> bool {
        self.completed + self.crashed == self.nodes
    }
}
