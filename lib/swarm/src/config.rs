//! The swarm's settings. Defaults hold from 50 Mbit/s to 25 Gbit/s; docs/benchmarks.md keeps the sweeps behind them.

use std::time::Duration;

/// What bounds and steers one node's swarm.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Who gets upload slots. Default [`ChokePolicy::Cluster`].
    pub choke_policy: ChokePolicy,
    /// How many peers are served at once. Default 5: with fewer an uplink idles while its receivers are busy with others, with
    /// more the first copies of each piece are late, and grants are refused (the seeds say 4). Up to as many again are handed
    /// out while grants and requests are under way.
    pub upload_slots: u32,
    /// The least a peer may request at one unchoke, in bytes; at least one piece is always granted. Default 128 KiB.
    pub grant_bytes_min: u32,
    /// How long an unchoked peer may leave its allowance unused before the slot goes to another. Default 500 ms.
    pub grant_timeout: Duration,
    /// Most bytes requested and not yet verified, over all torrents: the receive memory. Default 32 MiB.
    pub inflight_bytes_max: u64,
    /// Pieces kept in flight over all peers, at least; more where the path's bandwidth-delay product is more. Default 6:
    /// more wait at senders while other senders are idle.
    pub inflight_pieces: u32,
    /// A peer that owes us blocks and sends none for this long is snubbed. Default 8 s.
    pub snub_timeout: Duration,
    /// Connections beyond which we dial no more. Default 50 (Spotify's, by the seeds).
    pub connections_soft_max: usize,
    /// Connections beyond which we accept no more. Default 60.
    pub connections_max: usize,
    /// Share of picks that go to a waiting reader's window while other leechers are about, 0 to 1. Default 0.05: in-order
    /// picking costs the swarm nothing at 5 % and 60 % at 50 %.
    pub reader_share: f64,
    /// Pieces ahead of a reader that count as its window. Default 8.
    pub reader_window_pieces: u32,
    /// A reader that waits longer for its next piece gets it before anything else. Default 2 s.
    pub reader_patience: Duration,
    /// A seeding torrent without leechers is let go after this long. Default 60 s.
    pub idle_timeout: Duration,
    /// How long a peer that lied or broke the protocol is kept out; twice as long each time that it does so again, up to an
    /// hour. Default a minute.
    pub ban_first: Duration,
    /// How long a peer that could not be dialled is left alone. Default 5 s.
    pub redial_delay: Duration,
    /// Most torrents open at once; more are refused. Default 4096.
    pub torrents_max: usize,
}

/// Who gets upload slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChokePolicy {
    /// Event driven and work conserving: a free slot goes at once to one of the interested peers with the least.
    Cluster,
    /// The seeds' tit-for-tat: the best 4 by rate every 10 s, one optimistic unchoke every 30 s, anti-snubbing.
    Reciprocal,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            choke_policy: ChokePolicy::Cluster,
            upload_slots: 5,
            grant_bytes_min: 128 * 1024,
            grant_timeout: Duration::from_millis(500),
            inflight_bytes_max: 32 * 1024 * 1024,
            inflight_pieces: 6,
            snub_timeout: Duration::from_secs(8),
            connections_soft_max: 50,
            connections_max: 60,
            reader_share: 0.05,
            reader_window_pieces: 8,
            reader_patience: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(60),
            ban_first: Duration::from_secs(60),
            redial_delay: Duration::from_secs(5),
            torrents_max: 4096,
        }
    }
}
