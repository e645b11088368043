//! What a node counts: written by the driver and the connections, read for the status page and metrics.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use shoal_meta::{PeerInfo, Role};

/// Payload bytes received and kept, by where they came from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReceivedBytes {
    /// From agents in our own zone.
    pub same_zone: u64,
    /// From agents in other zones.
    pub other_zone: u64,
    /// From origins.
    pub origin: u64,
    /// Ingested: fetched from upstream by the origin, or by an agent that fell back.
    pub upstream: u64,
}

/// Payload bytes received for nothing, by cause.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WastedBytes {
    /// Blocks we had already: the endgame's price, and cancels that came too late.
    pub duplicate: u64,
    /// Pieces that failed verification.
    pub bad_piece: u64,
    /// Blocks of pieces that were given up, and of connections that broke the protocol.
    pub dropped: u64,
}

/// A node as seen from outside, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The node itself.
    pub peer: PeerInfo,
    /// Connected peers.
    pub connections: usize,
    /// Open torrents, leeching or seeding.
    pub torrents: usize,
    /// Of those, the ones still leeching.
    pub leeching: usize,
    /// Payload received and kept.
    pub received: ReceivedBytes,
    /// Payload received for nothing.
    pub wasted: WastedBytes,
    /// Payload sent to peers, in bytes.
    pub sent_bytes: u64,
    /// Pieces verified and written.
    pub verified_pieces: u64,
    /// Blobs that became whole here.
    pub committed_blobs: u64,
    /// Connections closed because of what the peer did.
    pub violations: u64,
    /// Trackers configured.
    pub trackers: usize,
    /// Of those, the ones that answered last time.
    pub trackers_up: usize,
}

impl ReceivedBytes {
    /// All of them together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.same_zone + self.other_zone + self.origin + self.upstream
    }

    pub(crate) fn add(&mut self, from: From, bytes: u64) {
        *match from {
            From::SameZone => &mut self.same_zone,
            From::OtherZone => &mut self.other_zone,
            From::Origin => &mut self.origin,
            From::Upstream => &mut self.upstream,
        } += bytes;
    }
}

/// Where payload came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    SameZone,
    OtherZone,
    Origin,
    Upstream,
}

impl From {
    /// Tells what a peer is to us.
    pub(crate) fn of(me: &PeerInfo, peer: &PeerInfo) -> Self {
        match peer.role {
            Role::Origin => Self::Origin,
            Role::Agent if peer.topology.zone == me.topology.zone => Self::SameZone,
            Role::Agent => Self::OtherZone,
        }
    }
}

/// The counters of one node.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) connections: AtomicUsize,
    pub(crate) torrents: AtomicUsize,
    pub(crate) leeching: AtomicUsize,
    pub(crate) same_zone: AtomicU64,
    pub(crate) other_zone: AtomicU64,
    pub(crate) origin: AtomicU64,
    pub(crate) upstream: AtomicU64,
    pub(crate) duplicate: AtomicU64,
    pub(crate) bad_piece: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) sent: AtomicU64,
    pub(crate) verified: AtomicU64,
    pub(crate) committed: AtomicU64,
    pub(crate) violations: AtomicU64,
    pub(crate) trackers: AtomicUsize,
    pub(crate) trackers_up: AtomicUsize,
}

impl Counters {
    pub(crate) fn received(&self, from: From, bytes: u64) {
        match from {
            From::SameZone => &self.same_zone,
            From::OtherZone => &self.other_zone,
            From::Origin => &self.origin,
            From::Upstream => &self.upstream,
        }
        .fetch_add(bytes, Relaxed);
    }

    pub(crate) fn status(&self, peer: PeerInfo) -> Status {
        Status {
            peer,
            connections: self.connections.load(Relaxed),
            torrents: self.torrents.load(Relaxed),
            leeching: self.leeching.load(Relaxed),
            received: ReceivedBytes {
                same_zone: self.same_zone.load(Relaxed),
                other_zone: self.other_zone.load(Relaxed),
                origin: self.origin.load(Relaxed),
                upstream: self.upstream.load(Relaxed),
            },
            wasted: WastedBytes {
                duplicate: self.duplicate.load(Relaxed),
                bad_piece: self.bad_piece.load(Relaxed),
                dropped: self.dropped.load(Relaxed),
            },
            sent_bytes: self.sent.load(Relaxed),
            verified_pieces: self.verified.load(Relaxed),
            committed_blobs: self.committed.load(Relaxed),
            violations: self.violations.load(Relaxed),
            trackers: self.trackers.load(Relaxed),
            trackers_up: self.trackers_up.load(Relaxed),
        }
    }
}

/// Adds to a counter.
pub(crate) fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Relaxed);
}

#[cfg(test)]
mod tests {
    use shoal_meta::{PeerId, Topology};

    use super::*;

    #[test]
    fn bytes_count_by_the_senders_role_first_and_zone_then() {
        let peer = |role, zone: &str| {
            let topology = Topology { zone: zone.to_owned(), rack: String::new() };
            PeerInfo { id: PeerId([1; 16]), address: ([127, 0, 0, 1], 1).into(), role, topology }
        };
        let me = peer(Role::Agent, "a");
        assert_eq!(From::of(&me, &peer(Role::Agent, "a")), From::SameZone);
        assert_eq!(From::of(&me, &peer(Role::Agent, "b")), From::OtherZone);
        assert_eq!(From::of(&me, &peer(Role::Origin, "a")), From::Origin);
    }
}
