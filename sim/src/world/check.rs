//! What must hold in checked mode, after each event and at the end. A broken rule panics and names the seed.

use std::collections::BTreeSet;

use shoal_meta::{BlockRef, PieceIndex};
use shoal_swarm::wire::{Alias, Message};
use shoal_swarm::{DisconnectReason, TorrentKey};

use super::{ORIGIN, World};

/// What checked mode remembers.
#[derive(Debug, Default)]
pub(super) struct Check {
    /// Blocks ever requested: connection, the end that asked, blob, piece, offset.
    requested: BTreeSet<(u32, usize, usize, u32, u32)>,
}

impl World<'_> {
    /// When a node sends a message.
    pub(super) fn check_message(&mut self, node: u32, conn: u32, end: usize, message: &Message) {
        if let (Message::Request { alias, blocks }, Some(check)) = (message, &mut self.check)
            && let Some(blob) = self.nodes[node as usize].blob_named(*alias)
        {
            check.requested.extend(blocks.iter().map(|block| (conn, end, blob, block.piece, block.offset)));
        }
    }

    /// When a block arrives: it was asked for. Its sender names the torrent.
    pub(super) fn check_block(&self, conn: u32, end: usize, alias: Alias, block: BlockRef) {
        let sender = self.links[conn as usize].nodes[1 - end];
        if let (Some(check), Some(blob)) = (&self.check, self.nodes[sender as usize].blob_named(alias)) {
            let asked = check.requested.contains(&(conn, end, blob, block.piece.get(), block.offset));
            let seed = self.scenario.seed;
            assert!(asked, "{block:?} came on connection {conn} and was never requested, seed {seed}");
        }
    }

    /// After a node's outputs are drained.
    pub(super) fn check_node(&self, node: u32) {
        let state = &self.nodes[node as usize];
        state.swarm.check_invariants();
        let seed = self.scenario.seed;
        for held in &state.blobs {
            if let Some(view) = held.torrent.and_then(|torrent| state.swarm.torrent(torrent)) {
                assert_eq!(
                    view.have,
                    held.have.count(),
                    "node {node} and its store differ on pieces held, seed {seed}"
                );
            }
        }
        let complete = state.completed_at.is_none() || state.blobs.iter().all(|held| held.have.is_full());
        assert!(complete, "node {node} had completed and lost a piece, seed {seed}");
    }

    /// When a node sends a block.
    pub(super) fn check_sent(&self, node: u32, torrent: TorrentKey, piece: PieceIndex) {
        let (state, seed) = (&self.nodes[node as usize], self.scenario.seed);
        let has = state.blob_of(torrent).is_some_and(|blob| state.blobs[blob].have.contains(piece));
        assert!(has, "node {node} sends a block of {piece:?}, which it lacks, seed {seed}");
        assert!(state.gives, "node {node} gives and should only take, seed {seed}");
    }

    /// When a node gives up a connection: nobody lies here, so nobody may be accused.
    pub(super) fn check_disconnect(&self, node: u32, reason: DisconnectReason) {
        let fair = !matches!(reason, DisconnectReason::Violation(_) | DisconnectReason::BadPiece);
        assert!(fair, "node {node} accuses an honest peer of {reason:?}, seed {}", self.scenario.seed);
    }

    /// When the run is over: whoever could complete has.
    pub(super) fn check_end(&self) {
        let givers = || self.nodes.iter().filter(|node| node.is_live() && node.gives);
        let fed = self.nodes[ORIGIN as usize].is_live();
        let had = |blob: usize| {
            let mut pieces = self.blobs[blob].geometry.pieces();
            pieces.all(|piece| givers().any(|node| node.blobs[blob].have.contains(piece)))
        };
        let reachable = fed || (0..self.blobs.len()).all(had);
        let stuck: Vec<_> = (1u32..)
            .zip(&self.nodes[1..])
            .filter(|(_, node)| node.is_live() && node.completed_at.is_none())
            .map(|(number, node)| (number, node.blobs.iter().map(|held| held.have.count()).collect::<Vec<_>>()))
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
