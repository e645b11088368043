//! One connection's state: what the peer has, what we asked of it, what it may ask of us.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use shoal_meta::{Bitfield, BlockRef, Digest, Geometry, PeerInfo};

use crate::rate::Rate;
use crate::sorted::{SortedMap, SortedSet};
use crate::wire::{Alias, WireBlock};
use crate::{ConnId, Time, TorrentKey, Who};

/// Torrents one peer may have open on a connection.
pub(crate) const REMOTES_MAX: usize = 8192;
/// Bytes of bitfields one peer may make us hold.
pub(crate) const REMOTE_BITFIELD_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Blocks given up that may still arrive from one peer.
pub(crate) const EXPIRED_MAX: usize = 8192;

#[derive(Debug)]
pub(crate) struct Connection {
    /// What the driver calls it.
    pub(crate) id: ConnId,
    pub(crate) peer: PeerInfo,
    /// Whom what it does is held against.
    pub(crate) who: Who,
    pub(crate) dialled: bool,
    pub(crate) connected_at: Time,
    /// Torrents open at both ends: the peer is a member of each.
    pub(crate) shared: SortedSet<TorrentKey>,
    /// Torrents the peer opened, by its alias.
    pub(crate) remotes: SortedMap<Alias, Remote>,
    pub(crate) remote_bytes: usize,
    /// Words of a torrent the peer opened that told nothing new, by its alias.
    pub(crate) idle_words: BTreeMap<Alias, usize>,
    /// Torrents we opened here.
    pub(crate) opened: BTreeSet<TorrentKey>,
    pub(crate) down: Down,
    pub(crate) up: Up,
}

/// What one end of a connection would ask of the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Interest {
    /// Nothing; it is told at once of what may change that.
    None,
    /// Pieces for which it has no room in flight; left when it has.
    NoRoom,
    /// Pieces, at once.
    Shown,
}

/// The half that brings us pieces.
#[derive(Debug)]
pub(crate) struct Down {
    /// Torrents of which the peer has an open piece.
    pub(crate) wanted: u32,
    /// What we last told the peer.
    pub(crate) interest: Interest,
    /// Pieces we may still request.
    pub(crate) allowance: u32,
    pub(crate) inflight: BTreeSet<(TorrentKey, BlockRef)>,
    /// Pieces being asked of the peer.
    pub(crate) pieces: u32,
    /// How many pieces may be: grows with each that comes, falls when one is late.
    pub(crate) depth: u32,
    /// Requests taken back that the peer has not answered, by block or rejection. One block may have been asked for and
    /// taken back several times, and be in flight once more: each time is answered.
    pub(crate) expired: BTreeMap<(Alias, WireBlock), u32>,
    /// When the last block came, or when the first of the present requests went out.
    pub(crate) progress_at: Time,
    pub(crate) rate: Rate,
    /// How often the peer was snubbed since it last sent a block.
    pub(crate) snubs: u32,
    /// How many pieces it granted and then refused since.
    pub(crate) refusals: u32,
}

/// The half that takes pieces to the peer.
#[derive(Debug, Default)]
pub(crate) struct Up {
    pub(crate) interested: bool,
    /// It waits for metainfo.
    pub(crate) metainfo_asked: bool,
    /// Pieces the peer may still request.
    pub(crate) granted: u32,
    pub(crate) granted_at: Option<Time>,
    /// Pieces that made a slot when it was last granted some.
    pub(crate) slot_pieces: u64,
    /// When the grant came of which nothing is requested yet.
    pub(crate) offered_at: Option<Time>,
    pub(crate) queue: VecDeque<(TorrentKey, BlockRef)>,
    /// Upload slots that it takes: grants of which something is unused, requested or being sent.
    pub(crate) slots: u64,
    /// Bytes in the queue and at the driver.
    pub(crate) queued_bytes: u64,
    /// Blocks at the driver.
    pub(crate) sending: usize,
    /// When the last block left, or when the first of those queued was asked for.
    pub(crate) moved_at: Time,
    /// It asks for blocks and does not take them: it gets no more grants, and those that it has keep nobody from a slot.
    pub(crate) is_stuck: bool,
    /// The longest piece the peer may ask for, in bytes: the unit of its grants. Zero while no torrent is shared.
    pub(crate) piece_length: u64,
    pub(crate) rate: Rate,
}

/// A torrent the peer opened.
#[derive(Debug)]
pub(crate) enum Remote {
    /// Not open here; left when it is opened.
    Waiting(Box<Waiting>),
    /// Open here under this key, the peer a member; left when it is closed here.
    Attached(TorrentKey),
}

/// What the peer said of a torrent it opened.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) digest: Digest,
    pub(crate) geometry: Geometry,
    pub(crate) have: Bitfield,
}

impl Connection {
    pub(crate) fn new(now: Time, id: ConnId, peer: PeerInfo, who: Who, dialled: bool) -> Self {
        Self {
            id,
            peer,
            who,
            dialled,
            connected_at: now,
            shared: SortedSet::default(),
            remotes: SortedMap::default(),
            remote_bytes: 0,
            idle_words: BTreeMap::new(),
            opened: BTreeSet::new(),
            down: Down::default(),
            up: Up::default(),
        }
    }

    /// The torrent an alias of the peer stands for, if it is open here.
    pub(crate) fn attached(&self, alias: Alias) -> Option<TorrentKey> {
        match self.remotes.get(&alias)? {
            Remote::Attached(key) => Some(*key),
            Remote::Waiting(_) => None,
        }
    }

    /// Nothing moves here and no torrent is shared: the first to go when room is needed.
    pub(crate) fn is_useless(&self) -> bool {
        self.shared.is_empty() && self.down.inflight.is_empty() && self.up.queued_bytes == 0
    }
}

/// Pieces asked at first of a peer that has not shown what it gives, and of one that is late: enough that the next is on
/// its way when one is in.
pub(crate) const DEPTH_MIN: u32 = 2;

impl Default for Down {
    fn default() -> Self {
        Self {
            wanted: 0,
            interest: Interest::None,
            allowance: 0,
            inflight: BTreeSet::new(),
            pieces: 0,
            depth: DEPTH_MIN,
            expired: BTreeMap::new(),
            progress_at: Time::ZERO,
            rate: Rate::default(),
            snubs: 0,
            refusals: 0,
        }
    }
}

impl Up {
    /// Slots taken by what is granted, queued and being sent.
    pub(crate) fn slots_taken(&self) -> u64 {
        if self.is_stuck {
            return 0;
        }
        let outstanding = u64::from(self.granted) * self.piece_length + self.queued_bytes;
        outstanding.div_ceil((self.slot_pieces * self.piece_length).max(1))
    }
}

impl Down {
    /// Moves what is asked of the peer for one torrent to the blocks that may still arrive; gives what was moved.
    pub(crate) fn expire(&mut self, key: TorrentKey, alias: Alias, select: impl Fn(BlockRef) -> bool) -> Vec<BlockRef> {
        let blocks: Vec<_> =
            self.inflight.iter().filter(|(of, block)| *of == key && select(*block)).map(|(_, block)| *block).collect();
        for &block in &blocks {
            self.inflight.remove(&(key, block));
            *self.expired.entry((alias, block.into())).or_default() += 1;
        }
        blocks
    }

    /// The peer answered a request: tells whether it was one that had been taken back.
    pub(crate) fn answers_expired(&mut self, alias: Alias, block: WireBlock) -> bool {
        let Some(times) = self.expired.get_mut(&(alias, block)) else { return false };
        *times -= 1;
        if *times == 0 {
            self.expired.remove(&(alias, block));
        }
        true
    }
}
