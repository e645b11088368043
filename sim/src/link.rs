//! The network: each node's uplink and downlink, and the connections between nodes.

use std::collections::VecDeque;
use std::time::Duration;

use shoal_meta::BlockRef;
use shoal_swarm::wire::{BLOCK_HEADER_LENGTH, HEADER_LENGTH, Message};
use shoal_swarm::{Time, TorrentKey};

/// How long a link of `rate` bytes per second takes for this many bytes.
pub(crate) fn transfer_time(bytes: u64, rate: u64) -> Duration {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// A block on its way out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outgoing {
    pub(crate) conn: u32,
    pub(crate) torrent: TorrentKey,
    pub(crate) block: BlockRef,
}

/// Serves one block at a time, first come, first served.
#[derive(Debug)]
pub(crate) struct Uplink {
    rate: u64,
    waiting: VecDeque<Outgoing>,
    serving: Option<(Outgoing, Time)>,
    /// Bytes of control messages that went out since the last block began.
    control_bytes: u64,
    /// Payload bytes served.
    pub(crate) sent_bytes: u64,
}

impl Uplink {
    pub(crate) fn new(rate: u64) -> Self {
        Self { rate, waiting: VecDeque::new(), serving: None, control_bytes: 0, sent_bytes: 0 }
    }

    pub(crate) fn push(&mut self, outgoing: Outgoing) {
        self.waiting.push_back(outgoing);
    }

    /// A control message goes out: it takes its bytes from a busy uplink.
    pub(crate) fn control(&mut self, bytes: u64) {
        if self.serving.is_some() {
            self.control_bytes += bytes;
        }
    }

    /// Begins the next block for which `wanted` holds, if idle; gives the time it will have left.
    pub(crate) fn begin(&mut self, now: Time, wanted: impl Fn(&Outgoing) -> bool) -> Option<Time> {
        if self.serving.is_some() {
            return None;
        }
        let next = std::iter::from_fn(|| self.waiting.pop_front()).find(wanted)?;
        self.serving = Some((next, now));
        let header = (HEADER_LENGTH + BLOCK_HEADER_LENGTH) as u64;
        let bytes = u64::from(next.block.length) + header + std::mem::take(&mut self.control_bytes);
        Some(now + transfer_time(bytes, self.rate))
    }

    /// Ends the block in service; gives it and the time it began.
    pub(crate) fn end(&mut self) -> Option<(Outgoing, Time)> {
        let served = self.serving.take()?;
        self.sent_bytes += u64::from(served.0.block.length);
        Some(served)
    }
}

/// Takes in one block at a time, in the order they left their senders.
#[derive(Debug)]
pub(crate) struct Downlink {
    rate: u64,
    free_at: Time,
}

impl Downlink {
    pub(crate) fn new(rate: u64) -> Self {
        Self { rate, free_at: Time::ZERO }
    }

    /// A block that began to leave its sender at `began` has left it now; gives the time it is in, latency aside.
    pub(crate) fn take(&mut self, now: Time, began: Time, bytes: u64) -> Time {
        self.free_at = self.free_at.max(began) + transfer_time(bytes, self.rate);
        self.free_at.max(now)
    }
}

/// A connection between two nodes. Its number is the `ConnId` at both ends; end 0 dialled.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) nodes: [u32; 2],
    pub(crate) ends: [End; 2],
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
    pub(crate) fn dial(from: u32, to: u32) -> Self {
        Self { nodes: [from, to], ends: [End::Handshake; 2] }
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
            Message::OpenTorrent { have, .. } => 90 + u64::from(have.length() / 8),
            Message::Have { pieces, .. } => 3 + 2 * pieces.len() as u64,
            Message::Request { blocks, .. } | Message::Reject { blocks, .. } | Message::Cancel { blocks, .. } => {
                3 + 12 * blocks.len() as u64
            }
            Message::PeerExchange { peers, .. } => 73 + 50 * peers.len() as u64,
            Message::FindPeers { .. } => 84,
            Message::CloseTorrent { .. }
            | Message::HaveAll { .. }
            | Message::Interested
            | Message::NotInterested
            | Message::Unchoke { .. }
            | Message::Choke => 4,
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
}
