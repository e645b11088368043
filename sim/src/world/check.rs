//! What must hold in checked mode, after each event and at the end. A broken rule panics and names the seed.

use std::collections::BTreeSet;

use shoal_meta::{BlockRef, PieceIndex};
use shoal_swarm::DisconnectReason;
use shoal_swarm::wire::Message;

use super::{ORIGIN, World};

/// What checked mode remembers.
#[derive(Debug, Default)]
pub(super) struct Check {
    /// Blocks ever requested, by connection and the end that asked.
    requested: BTreeSet<(u32, usize, u32, u32)>,
}

impl Check {
    pub(super) fn message_sent(&mut self, conn: u32, end: usize, message: &Message) {
        if let Message::Request { blocks, .. } = message {
            self.requested.extend(blocks.iter().map(|block| (conn, end, block.piece, block.offset)));
        }
    }

    pub(super) fn block_arrived(&self, conn: u32, end: usize, block: BlockRef, seed: u64) {
        let asked = self.requested.contains(&(conn, end, block.piece.get(), block.offset));
        assert!(asked, "{block:?} came on connection {conn} and was never requested, seed {seed}");
    }
}

impl World<'_> {
    /// After a node's outputs are drained.
    pub(super) fn check_node(&self, node: u32) {
        let state = &self.nodes[node as usize];
        state.swarm.check_invariants();
        let seed = self.scenario.seed;
        if let Some(view) = state.torrent.and_then(|torrent| state.swarm.torrent(torrent)) {
            assert_eq!(view.have, state.have.count(), "node {node} and its store differ on pieces held, seed {seed}");
        }
        let complete = state.completed_at.is_none() || state.have.is_full();
        assert!(complete, "node {node} had completed and lost a piece, seed {seed}");
    }

    /// When a node sends a block.
    pub(super) fn check_sent(&self, node: u32, piece: PieceIndex) {
        let has = self.nodes[node as usize].have.contains(piece);
        assert!(has, "node {node} sends a block of {piece:?}, which it lacks, seed {}", self.scenario.seed);
    }

    /// When a node gives up a connection: nobody lies here, so nobody may be accused.
    pub(super) fn check_disconnect(&self, node: u32, reason: DisconnectReason) {
        let fair = !matches!(reason, DisconnectReason::Violation(_) | DisconnectReason::BadPiece);
        assert!(fair, "node {node} accuses an honest peer of {reason:?}, seed {}", self.scenario.seed);
    }

    /// When the run is over: whoever could complete has.
    pub(super) fn check_end(&self) {
        let live = || self.nodes.iter().filter(|node| node.is_live());
        let fed = self.nodes[ORIGIN as usize].is_live();
        let reachable = fed || self.geometry.pieces().all(|piece| live().any(|node| node.have.contains(piece)));
        let stuck: Vec<_> = (1..=self.scenario.nodes)
            .filter(|&node| self.nodes[node as usize].is_live() && self.nodes[node as usize].completed_at.is_none())
            .map(|node| (node, self.nodes[node as usize].have.count()))
            .take(8)
            .collect();
        assert!(
            !reachable || self.waiting == 0,
            "at {:?} {} agents lack pieces that can be had, such as (node, pieces held) {stuck:?}, seed {}",
            self.now,
            self.waiting,
            self.scenario.seed
        );
    }
}
