//! The figures of a world that has been played.

use shoal_swarm::Time;

use super::{ORIGIN, World};
use crate::Group;
use crate::node::Node;
use crate::report::{GroupReport, Percentiles, Report};

impl World<'_> {
    pub(super) fn report(self) -> Report {
        let agents = &self.nodes[1..];
        let nodes = self.scenario.nodes();
        let (completed, percentiles) = times(agents, |node| node.completed_at);
        let optimum_seconds = self.scenario.optimum_seconds();
        let length = self.scenario.length() as f64;
        let sum = |field: fn(&Node) -> u64| agents.iter().map(field).sum::<u64>() as f64;
        let groups = &self.scenario.groups;
        let rates = groups.iter().map(|group| f64::from(group.nodes) * group.rates.up as f64).sum::<f64>();
        let elapsed = self.now.since(Time::ZERO).as_secs_f64();
        Report {
            nodes,
            blob_bytes: self.scenario.length(),
            pieces: self.blobs.iter().map(|blob| blob.geometry.piece_count()).sum(),
            seed: self.scenario.seed,
            completed,
            crashed: self.crashed,
            survivors_completed: f64::from(completed) / f64::from((nodes - self.crashed).max(1)),
            seconds_last: percentiles.max,
            seconds_median: percentiles.p50,
            optimum_seconds,
            ratio_last: percentiles.max / optimum_seconds,
            ratio_median: percentiles.p50 / optimum_seconds,
            percentiles,
            first_piece: times(agents, |node| node.first_at).1,
            groups: if groups.len() > 1 { self.groups() } else { Vec::new() },
            copies_per_zone: self.zones.iter().map(|zone| zone.bytes as f64 / length).collect(),
            origin_copies: self.nodes[ORIGIN as usize].up.sent_bytes as f64 / length,
            duplicate_share: sum(|node| node.duplicate_bytes) / sum(|node| node.received_bytes).max(1.0),
            uplink_share: sum(|node| node.up.sent_bytes) / (rates * elapsed).max(1.0),
            blocks: self.blocks,
            messages: self.message_count,
            connections: self.connections,
            disconnects: self.disconnects,
            events: self.trace.events(),
            trace_hash: format!("{:016x}", self.trace.hash()),
        }
    }

    fn groups(&self) -> Vec<GroupReport> {
        let figures = |(place, group): (usize, &Group)| {
            let agents = self.nodes[1..].iter().filter(|node| node.group == place);
            let (completed, percentiles) = times(agents, |node| node.completed_at);
            let Group { name, nodes, .. } = *group;
            let alone_seconds = self.scenario.alone_seconds(group);
            GroupReport {
                name,
                nodes,
                completed,
                seconds_last: percentiles.max,
                seconds_median: percentiles.p50,
                alone_seconds,
                ratio_last: percentiles.max / alone_seconds,
                ratio_median: percentiles.p50 / alone_seconds,
            }
        };
        self.scenario.groups.iter().enumerate().map(figures).collect()
    }
}

/// How many of some agents got somewhere, and their times from arrival to then.
fn times<'a>(agents: impl IntoIterator<Item = &'a Node>, to: fn(&Node) -> Option<Time>) -> (u32, Percentiles) {
    let times: Vec<_> = agents.into_iter().filter_map(|node| Some(to(node)?.since(node.arrived_at))).collect();
    (u32::try_from(times.len()).unwrap_or(u32::MAX), Percentiles::of(times))
}
