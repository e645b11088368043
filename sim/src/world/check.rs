//! What must hold in checked mode, after each event and at the end. A broken rule panics and names the seed.

use std::collections::{BTreeMap, BTreeSet};

use shoal_meta::{BlockRef, PieceIndex};
use shoal_swarm::wire::{Alias, Message};
use shoal_swarm::{ConnId, DisconnectReason, Time, TorrentKey};

use super::watch::Heard;
use super::{ORIGIN, World};
use crate::link::End;

/// What checked mode remembers.
#[derive(Debug, Default)]
pub(super) struct Check {
    /// Blocks ever requested: connection, the end that asked, blob, piece, offset.
    requested: BTreeSet<(u32, usize, usize, u32, u32)>,
    /// What each end of each connection has heard from the other.
    pub(super) told: BTreeMap<(u32, usize), Heard>,
    /// Messages that honest nodes sent to an end of a connection and that are not there yet.
    pub(super) under_way: BTreeMap<(u32, usize), u64>,
    /// Since when a node has a piece of a blob.
    pub(super) had_at: BTreeMap<(u32, usize, PieceIndex), Time>,
    /// Messages sent, by node, since the last look.
    pub(super) said: BTreeMap<u32, u64>,
    /// Messages that came from liars since.
    pub(super) lied: u64,
    /// Pieces that nodes got since.
    pub(super) moved: u64,
}

impl World<'_> {
    /// When a node sends a message.
    pub(super) fn check_message(&mut self, node: u32, conn: u32, end: usize, message: &Message) {
        if let (Message::Request { alias, blocks }, Some(check)) = (message, &mut self.check)
            && let Some(blob) = self.nodes[node as usize].blob_named(*alias)
        {
            check.requested.extend(blocks.iter().map(|block| (conn, end, blob, block.piece, block.offset)));
        }
        if let (Some(check), true) = (&mut self.check, self.nodes[node as usize].is_honest()) {
            *check.said.entry(node).or_default() += 1;
            *check.under_way.entry((conn, 1 - end)).or_default() += 1;
        }
    }

    /// When a block arrives: it was asked for. Its sender names the torrent.
    pub(super) fn check_block(&self, conn: u32, end: usize, alias: Alias, block: BlockRef) {
        let link = &self.links[conn as usize];
        let sender = link.nodes[1 - end];
        let honest = link.nodes.iter().all(|node| self.nodes[*node as usize].is_honest());
        // Who is gone calls nothing by the name in it.
        if !honest || link.ends[1 - end] == End::Closed {
            return;
        }
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
        let held = state.blob_of(torrent).map(|blob| &state.blobs[blob]);
        let has = held.is_some_and(|held| held.have.contains(piece));
        assert!(has, "node {node} sends a block of {piece:?}, which it lacks, seed {seed}");
        assert!(state.gives, "node {node} gives and should only take, seed {seed}");
        let wrong = state.is_honest() && held.is_some_and(|held| held.rotten.contains(&piece));
        assert!(!wrong, "node {node} serves wrong bytes of {piece:?}, seed {seed}");
    }

    /// When a node commits a blob.
    pub(super) fn check_commit(&self, node: u32, blob: usize) {
        let (held, seed) = (&self.nodes[node as usize].blobs[blob], self.scenario.seed);
        assert!(held.have.is_full(), "node {node} commits blob {blob}, of which it lacks pieces, seed {seed}");
        let rotten = &held.rotten;
        assert!(rotten.is_empty(), "node {node} commits wrong bytes of {rotten:?} of blob {blob}, seed {seed}");
        assert!(!held.committed, "node {node} commits blob {blob} twice, seed {seed}");
    }

    /// When a node gives up a connection: no honest one may accuse another.
    pub(super) fn check_disconnect(&self, node: u32, conn: ConnId, reason: DisconnectReason) {
        let link = usize::try_from(conn.0).ok().and_then(|conn| self.links.get(conn));
        let mut ends = link.iter().flat_map(|link| link.nodes);
        if ends.any(|node| !self.nodes[node as usize].is_honest()) {
            return;
        }
        let fair = !matches!(reason, DisconnectReason::Violation(_) | DisconnectReason::BadPiece);
        assert!(fair, "node {node} accuses an honest peer of {reason:?}, seed {}", self.scenario.seed);
    }

    /// Whether whoever lacks a piece can get it, from those who live.
    pub(super) fn is_reachable(&self) -> bool {
        let givers = || self.nodes.iter().filter(|node| node.is_live() && node.gives && node.is_honest());
        let had = |blob: usize| {
            let mut pieces = self.blobs[blob].geometry.pieces();
            pieces.all(|piece| givers().any(|node| node.blobs[blob].have.contains(piece)))
        };
        self.nodes[ORIGIN as usize].is_live() || (0..self.blobs.len()).all(had)
    }

    /// When the run is over: whoever could complete has.
    pub(super) fn check_end(&self) {
        let stuck: Vec<_> = (1u32..)
            .zip(&self.nodes[1..])
            .filter(|(_, node)| node.is_live() && node.is_honest() && node.completed_at.is_none())
            .map(|(number, node)| (number, node.blobs.iter().map(|held| held.have.count()).collect::<Vec<_>>()))
            .take(8)
            .collect();
        assert!(
            !self.is_reachable() || self.waiting == 0,
            "at {:?} {} agents lack pieces that can be had, such as (node, pieces held) {stuck:?}, seed {}",
            self.now,
            self.waiting,
            self.scenario.seed
        );
    }
}
