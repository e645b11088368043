//! The network beyond a node's uplink: downlinks, links between zones, and the connections between nodes.

use std::time::Duration;

use shoal_swarm::Time;
use shoal_swarm::wire::{HEADER_LENGTH, Message};

/// How long a link of `rate` bytes per second takes for this many bytes.
pub(crate) fn transfer_time(bytes: u64, rate: u64) -> Duration {
    Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate.max(1))
}

/// A link that many senders share: a node's downlink, or a zone's link to the others.
///
/// It takes blocks in the order they left their senders, and works on each from when it began to leave: as fast as if the
/// blocks shared it, for a sender's next block leaves only when the one before is in.
#[derive(Clone, Debug)]
pub(crate) struct Downlink {
    rate: u64,
    free_at: Time,
}

impl Downlink {
    pub(crate) fn new(rate: u64) -> Self {
        Self { rate, free_at: Time::ZERO }
    }

    /// A block that began to leave its sender at `began` is here at `now`; gives the time it is in, latency aside.
    pub(crate) fn take(&mut self, now: Time, began: Time, bytes: u64) -> Time {
        self.free_at = self.free_at.max(began) + transfer_time(bytes, self.rate);
        self.free_at.max(now)
    }

    /// A control message comes in: it takes its bytes from a busy link.
    pub(crate) fn control(&mut self, now: Time, bytes: u64) {
        if self.free_at > now {
            self.free_at += transfer_time(bytes, self.rate);
        }
    }
}

/// A connection between two nodes. Its number is the `ConnId` at both ends; end 0 dialled.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) nodes: [u32; 2],
    pub(crate) ends: [End; 2],
    /// Whether its nodes are in different zones.
    pub(crate) far: bool,
    /// When the last block that left each end is in: the next begins to leave then.
    pub(crate) clear_at: [Time; 2],
    /// When the last thing that came late is in at each end: nothing overtakes it.
    pub(crate) late_at: [Time; 2],
    /// Which life of the node that dialled it belongs to.
    pub(crate) life: u32,
}

/// What one end of a connection knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// The handshake is under way; left when it ends.
    Handshake,
    /// The swarm at this end was told that it is connected.
    Open,
    /// The swarm at this end was told that it is gone, said so itself, or never will be connected.
    Closed,
}

impl Link {
    pub(crate) fn dial(from: u32, to: u32, far: bool, life: u32) -> Self {
        let (ends, never) = ([End::Handshake; 2], [Time::ZERO; 2]);
        Self { nodes: [from, to], ends, far, clear_at: never, late_at: never, life }
    }

    /// Which end a node is at.
    pub(crate) fn end_of(&self, node: u32) -> usize {
        usize::from(self.nodes[0] != node)
    }
}

/// About how many bytes a control message takes on the wire, with a share of a TCP/IP header.
pub(crate) fn control_length(message: &Message) -> u64 {
    const FRAME: u64 = 40 + HEADER_LENGTH as u64 + 4;
    FRAME
        + match message {
            Message::Hello { .. } => 80,
            Message::OpenTorrent(open) => 90 + u64::from(open.have.length() / 8),
            Message::Have { pieces, .. } => 3 + 2 * pieces.len() as u64,
            Message::Request { blocks, .. } | Message::Reject { blocks, .. } | Message::Cancel { blocks, .. } => {
                3 + 12 * blocks.len() as u64
            }
            Message::PeerExchange(exchange) => 73 + 50 * exchange.peers.len() as u64,
            Message::FindPeers(_) => 84,
            Message::MetainfoPart(part) => 8 + 32 * part.hashes.len() as u64 + part.seal.len() as u64,
            Message::CloseTorrent { .. }
            | Message::HaveAll { .. }
            | Message::Interested
            | Message::NotInterested { .. }
            | Message::Unchoke { .. }
            | Message::Choke
            | Message::FindMetainfo { .. } => 4,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn at(ms: u64) -> Time {
        Time::ZERO + Duration::from_millis(ms)
    }

    #[test]
    fn a_transfer_takes_bytes_over_rate() {
        assert_eq!(transfer_time(MIB, MIB), Duration::from_secs(1));
        assert_eq!(transfer_time(1, 3), Duration::from_nanos(333_333_333));
    }

    #[test]
    fn a_free_downlink_adds_nothing_to_an_equal_uplink() {
        let mut downlink = Downlink::new(MIB);
        assert_eq!(downlink.take(at(1000), at(0), MIB), at(1000));
    }

    #[test]
    fn two_senders_share_a_downlink() {
        let mut downlink = Downlink::new(MIB);
        assert_eq!(downlink.take(at(1000), at(0), MIB), at(1000));
        assert_eq!(downlink.take(at(1000), at(0), MIB), at(2000));
    }

    #[test]
    fn a_slow_downlink_holds_a_block_back() {
        let mut downlink = Downlink::new(MIB / 2);
        assert_eq!(downlink.take(at(1000), at(0), MIB), at(2000));
    }

    #[test]
    fn control_messages_take_their_bytes_from_a_busy_downlink_only() {
        let mut downlink = Downlink::new(MIB);
        downlink.control(at(0), MIB);
        assert_eq!(downlink.take(at(1000), at(0), MIB), at(1000));
        downlink.control(at(500), MIB);
        assert_eq!(downlink.take(at(2000), at(1000), MIB), at(3000));
    }
}
