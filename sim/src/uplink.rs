//! A node's uplink: the connections that have a block to send share it equally, as TCP flows do.
//!
//! A connection sends one block at a time, in order, and begins the next when the one before is in at the other end: its
//! window is one block beyond what is on the wire, so a busy receiver holds up its own connections and no others. Costs a
//! walk over the connections being served for each block: a handful.

use std::collections::VecDeque;
use std::time::Duration;

use shoal_meta::BlockRef;
use shoal_swarm::wire::{BLOCK_HEADER_LENGTH, HEADER_LENGTH};
use shoal_swarm::{Time, TorrentKey};

/// What a byte counts: with rates in bytes per second, a nanosecond's share of the link is a whole number.
const NANO: u64 = 1_000_000_000;

/// A block to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Outgoing {
    pub(crate) conn: u32,
    pub(crate) torrent: TorrentKey,
    pub(crate) block: BlockRef,
}

/// The block that a connection is sending.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) outgoing: Outgoing,
    /// When it begins to leave: in the future while the block before is not in.
    pub(crate) began: Time,
    /// Control messages queued behind it on the same connection.
    pub(crate) messages: Vec<u32>,
    /// Billionths of a byte that have not left.
    left: u64,
}

#[derive(Debug)]
pub(crate) struct Uplink {
    rate: u64,
    /// One for each connection that has a block to send.
    flows: Vec<Flow>,
    /// Blocks whose connection is sending another.
    waiting: VecDeque<Outgoing>,
    /// Up to when the flows' progress is accounted for.
    counted_to: Time,
    /// When the one pending event is due.
    pub(crate) due: Option<Time>,
    /// Bytes of control messages that went out since the last block began.
    control_bytes: u64,
    /// Payload bytes that have left.
    pub(crate) sent_bytes: u64,
}

impl Uplink {
    pub(crate) fn new(rate: u64) -> Self {
        Self {
            rate,
            flows: Vec::new(),
            waiting: VecDeque::new(),
            counted_to: Time::ZERO,
            due: None,
            control_bytes: 0,
            sent_bytes: 0,
        }
    }

    /// Adds a block; tells whether its connection was sending none. It may leave from `clear_at` on.
    pub(crate) fn push(&mut self, now: Time, outgoing: Outgoing, clear_at: Time) -> bool {
        let idle = self.flows.iter().all(|flow| flow.outgoing.conn != outgoing.conn);
        if idle {
            self.begin(now, outgoing, clear_at);
        } else {
            self.waiting.push_back(outgoing);
        }
        idle
    }

    /// Begins the next block of a connection whose last has left, if there is one; gives it.
    pub(crate) fn proceed(&mut self, now: Time, conn: u32, clear_at: Time) -> Option<Outgoing> {
        let at = self.waiting.iter().position(|outgoing| outgoing.conn == conn)?;
        let outgoing = self.waiting.remove(at)?;
        self.begin(now, outgoing, clear_at);
        Some(outgoing)
    }

    fn begin(&mut self, now: Time, outgoing: Outgoing, clear_at: Time) {
        self.count(now);
        let header = (HEADER_LENGTH + BLOCK_HEADER_LENGTH) as u64;
        let bytes = u64::from(outgoing.block.length) + header + std::mem::take(&mut self.control_bytes);
        self.flows.push(Flow { outgoing, began: clear_at.max(now), messages: Vec::new(), left: bytes * NANO });
    }

    /// A control message goes out, and takes its bytes from a busy uplink. Tells whether it has to wait behind a block of
    /// its connection; then it is given back with the block.
    pub(crate) fn control(&mut self, conn: u32, message: u32, bytes: u64) -> bool {
        self.count_control(bytes);
        let flow = self.flows.iter_mut().find(|flow| flow.outgoing.conn == conn);
        flow.map(|flow| flow.messages.push(message)).is_some()
    }

    /// Takes the bytes of a control message from a busy uplink.
    pub(crate) fn count_control(&mut self, bytes: u64) {
        if !self.flows.is_empty() {
            self.control_bytes += bytes;
        }
    }

    /// Takes a block that has left by now.
    pub(crate) fn pop_left(&mut self, now: Time) -> Option<Flow> {
        self.count(now);
        // Less than a nanosecond's worth is rounding.
        let left = self.flows.iter().position(|flow| flow.began <= now && flow.left < self.rate)?;
        let flow = self.flows.remove(left);
        self.sent_bytes += u64::from(flow.outgoing.block.length);
        Some(flow)
    }

    /// What a connection is to send may begin to leave now: the block before it is in at last.
    pub(crate) fn resume(&mut self, now: Time, conn: u32) {
        self.count(now);
        for flow in self.flows.iter_mut().filter(|flow| flow.outgoing.conn == conn && flow.began > now) {
            flow.began = now;
        }
    }

    /// A connection is gone: what it had to send is void. Gives the messages that waited.
    pub(crate) fn forget(&mut self, now: Time, conn: u32) -> Vec<u32> {
        self.count(now);
        self.waiting.retain(|outgoing| outgoing.conn != conn);
        let at = self.flows.iter().position(|flow| flow.outgoing.conn == conn);
        at.map(|at| self.flows.remove(at).messages).unwrap_or_default()
    }

    /// When the next block has left or may begin to, if nothing else happens before.
    pub(crate) fn next_due(&self) -> Option<Time> {
        let (now, mut active, mut least, mut next) = (self.counted_to, 0, u64::MAX, None);
        for flow in &self.flows {
            if flow.began <= now {
                (active, least) = (active + 1, least.min(flow.left));
            } else {
                next = Some(next.map_or(flow.began, |at: Time| at.min(flow.began)));
            }
        }
        if active > 0 {
            let leaves = now + Duration::from_nanos((least * active).div_ceil(self.rate));
            next = Some(next.map_or(leaves, |at| at.min(leaves)));
        }
        next
    }

    /// Accounts for what has left since the last time. Between two times no flow begins or ends.
    fn count(&mut self, now: Time) {
        let since = std::mem::replace(&mut self.counted_to, now);
        let active = self.flows.iter().filter(|flow| flow.began <= since).count() as u64;
        if active == 0 || since == now {
            return;
        }
        let share = (now.as_nanos() - since.as_nanos()) * self.rate / active;
        for flow in self.flows.iter_mut().filter(|flow| flow.began <= since) {
            flow.left = flow.left.saturating_sub(share);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_meta::{Digest, Geometry, PeerId, PeerInfo, Role, Topology};
    use shoal_swarm::{Config, OpenTorrent, Swarm};

    /// Blocks of 256 KiB leave a link of this rate in one second each, but for their headers.
    const RATE: u64 = (256 << 10) + 17;

    fn at(ms: u64) -> Time {
        Time::ZERO + Duration::from_millis(ms)
    }

    fn block(conn: u32) -> Outgoing {
        let geometry = Geometry::new(1 << 18, 1 << 18).unwrap();
        let address = "10.0.0.1:1".parse().unwrap();
        let me = PeerInfo { id: PeerId([0; 16]), address, role: Role::Agent, topology: Topology::default() };
        let have = shoal_meta::Bitfield::empty(&geometry);
        let wanted = have.clone();
        let open = OpenTorrent { digest: Digest::sha256_of(b""), geometry, have, known: 1, wanted, super_seed: false };
        let torrent = Swarm::new(Config::default(), me, 1).open(Time::ZERO, open).unwrap();
        Outgoing { conn, torrent, block: geometry.block(0, 0, 1 << 18).unwrap() }
    }

    /// Plays an uplink to its end: which connection's block left when, in milliseconds.
    fn play(uplink: &mut Uplink) -> Vec<(u32, u64)> {
        let mut out = Vec::new();
        while let Some(due) = uplink.next_due() {
            uplink.count(due);
            while let Some(flow) = uplink.pop_left(due) {
                out.push((flow.outgoing.conn, due.as_nanos() / 1_000_000));
                uplink.proceed(due, flow.outgoing.conn, due);
            }
        }
        out
    }

    #[test]
    fn connections_share_an_uplink_equally() {
        let mut uplink = Uplink::new(RATE);
        uplink.push(at(0), block(1), at(0));
        uplink.push(at(0), block(2), at(0));
        assert_eq!(play(&mut uplink), [(1, 2000), (2, 2000)]);
        assert_eq!(uplink.sent_bytes, 2 << 18);
    }

    #[test]
    fn a_connection_sends_its_blocks_in_turn() {
        let mut uplink = Uplink::new(RATE);
        for conn in [1, 1, 2] {
            uplink.push(at(0), block(conn), at(0));
        }
        assert_eq!(play(&mut uplink), [(1, 2000), (2, 2000), (1, 3000)]);
    }

    #[test]
    fn who_comes_later_slows_those_who_send() {
        let mut uplink = Uplink::new(RATE);
        uplink.push(at(0), block(1), at(0));
        uplink.push(at(500), block(2), at(0));
        assert_eq!(play(&mut uplink), [(1, 1500), (2, 2000)]);
    }

    #[test]
    fn a_busy_receiver_holds_up_its_own_connection_only() {
        let mut uplink = Uplink::new(RATE);
        uplink.push(at(0), block(1), at(3000));
        uplink.push(at(0), block(2), at(0));
        assert_eq!(play(&mut uplink), [(2, 1000), (1, 4000)]);
    }

    #[test]
    fn a_message_waits_behind_its_own_connections_block() {
        let mut uplink = Uplink::new(RATE);
        uplink.push(at(0), block(1), at(0));
        assert!(uplink.control(1, 7, 50));
        assert!(!uplink.control(2, 8, 50));
        let due = uplink.next_due().unwrap();
        assert_eq!(uplink.pop_left(due).unwrap().messages, [7]);
    }

    #[test]
    fn what_a_lost_connection_had_to_send_is_void() {
        let mut uplink = Uplink::new(RATE);
        for conn in [1, 1, 2] {
            uplink.push(at(0), block(conn), at(0));
        }
        uplink.forget(at(1000), 1);
        assert_eq!(play(&mut uplink), [(2, 1500)]);
    }
}
