//! One torrent's state: what we have, what is asked of whom, who takes part. The swarm moves it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shoal_meta::{Bitfield, Digest, Geometry, Lead, PeerId, PeerInfo, PieceIndex, Role};

use crate::availability::Availability;
use crate::dense::{ConnIndex, ConnMap};
use crate::picker::Window;
use crate::superseed::SuperSeed;
use crate::swarm::Search;
use crate::wire::Alias;
use crate::{Config, OpenTorrent, ReaderId, Time, Who};

/// Candidates to dial kept per torrent; later ones are dropped.
pub(crate) const CANDIDATES_MAX: usize = 256;
/// Late pieces asked of a second peer at a time.
pub(crate) const CONTESTED_MAX: usize = 8;

#[derive(Debug)]
pub(crate) struct Torrent {
    pub(crate) digest: Digest,
    pub(crate) geometry: Geometry,
    /// Verified and on disk.
    pub(crate) have: Bitfield,
    /// Pieces `0..known` have a known hash.
    pub(crate) known: u32,
    /// What is to be fetched.
    pub(crate) wanted: Bitfield,
    /// What may be asked for: wanted, known, not had, and not asked of anyone, or asked of one that is late.
    pub(crate) open: Bitfield,
    /// Open pieces that are active: they go first.
    pub(crate) begun: BTreeSet<PieceIndex>,
    /// Pieces between the first request and the end of verification.
    pub(crate) active: BTreeMap<PieceIndex, Active>,
    pub(crate) availability: Availability,
    /// Of those, copies at far members.
    pub(crate) far: Availability,
    /// What we fetch from other zones, of what ours lacks.
    pub(crate) crossing: Option<Lead>,
    /// When a piece last came to us or to a near member.
    pub(crate) near_progress_at: Time,
    /// When a piece last came to us.
    pub(crate) gained_at: Time,
    /// Near members said for long that they have what we lack, and nothing came of it: they no longer count.
    pub(crate) near_fails: bool,
    /// Connected peers that take part.
    pub(crate) members: ConnMap<Member>,
    /// Agents among the members that lack a piece.
    pub(crate) leechers: usize,
    pub(crate) super_seed: Option<SuperSeed>,
    pub(crate) readers: BTreeMap<ReaderId, Reader>,
    /// Peers said to take part, to dial.
    pub(crate) candidates: BTreeMap<PeerId, PeerInfo>,
    /// How long a piece takes from request to verification, lately.
    pub(crate) piece_time: Option<Duration>,
    /// Verified since it was opened, while pieces lack: what members are told of, in order.
    pub(crate) gained: Vec<PieceIndex>,
    /// No leecher since.
    pub(crate) idle_since: Option<Time>,
    /// When neighbours were last asked for peers.
    pub(crate) searched_at: Time,
    /// Hashes are asked of peers.
    pub(crate) search: Option<Search>,
}

/// A connected peer that takes part in a torrent.
#[derive(Debug)]
pub(crate) struct Member {
    /// The peer's alias for it.
    pub(crate) alias: Alias,
    /// An origin counts copies: it is told of every piece.
    pub(crate) role: Role,
    /// In another zone than we are.
    pub(crate) far: bool,
    pub(crate) have: Bitfield,
    /// Open pieces that may be asked of the peer.
    pub(crate) wanted: u32,
    /// What we showed the peer, when super-seeding.
    pub(crate) revealed: Bitfield,
    /// Of those, how many it has not fetched.
    pub(crate) unfetched: u32,
    /// How many of the torrent's `gained` the peer has been told of.
    pub(crate) told: usize,
}

/// A piece between its first request and its verification.
#[derive(Debug)]
pub(crate) struct Active {
    pub(crate) stage: Stage,
    /// Whose blocks are in it: one peer unless someone was late.
    pub(crate) sources: BTreeSet<Who>,
    /// When it was first asked for.
    pub(crate) begun_at: Time,
    /// When it was last asked for, or a block of it came.
    pub(crate) progress_at: Time,
}

#[derive(Debug)]
pub(crate) enum Stage {
    /// Blocks are on their way or to be asked for again; left when the last is in.
    Fetching {
        received: Vec<bool>,
        /// Connections asked for what is missing.
        holders: Vec<ConnIndex>,
    },
    /// Every block is in; left by `handle_verified` or `handle_write_failed`.
    Verifying,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader {
    pub(crate) piece: PieceIndex,
    /// Since when it waits for that piece.
    pub(crate) since: Time,
    /// It has not had a piece yet.
    pub(crate) fresh: bool,
}

impl Torrent {
    pub(crate) fn new(now: Time, torrent: OpenTorrent) -> Self {
        let OpenTorrent { digest, geometry, have, known, wanted, super_seed } = torrent;
        let known = known.min(geometry.piece_count());
        let mut torrent = Self {
            digest,
            geometry,
            have,
            known,
            wanted,
            open: Bitfield::empty(&geometry),
            begun: BTreeSet::new(),
            active: BTreeMap::new(),
            availability: Availability::new(&geometry),
            far: Availability::new(&geometry),
            crossing: None,
            near_progress_at: now,
            gained_at: now,
            near_fails: false,
            members: ConnMap::default(),
            leechers: 0,
            super_seed: super_seed.then(|| SuperSeed::new(&geometry)),
            readers: BTreeMap::new(),
            candidates: BTreeMap::new(),
            piece_time: None,
            gained: Vec::new(),
            idle_since: Some(now),
            searched_at: now,
            search: None,
        };
        for piece in geometry.pieces().filter(|&piece| torrent.is_due(piece)).collect::<Vec<_>>() {
            torrent.open.insert(piece);
        }
        torrent
    }

    /// Tells whether a piece may be asked for and nobody is asked.
    pub(crate) fn is_due(&self, piece: PieceIndex) -> bool {
        let lacks = self.wanted.contains(piece) && !self.have.contains(piece);
        lacks && piece.get() < self.known && !self.active.contains_key(&piece)
    }

    /// Tells whether we lack a piece.
    pub(crate) fn is_leech(&self) -> bool {
        !self.have.is_full()
    }

    /// Tells whether the swarm can do without us: every piece is here and at some peer.
    pub(crate) fn is_spread(&self) -> bool {
        !self.is_leech() && self.availability.is_covered()
    }

    /// Whom in other zones a piece may be asked of.
    pub(crate) fn across(&self, piece: PieceIndex) -> Across {
        match self.crossing {
            Some(_) if self.near_fails => Across::Anyone,
            Some(lead) if self.availability.of(piece) == self.far.of(piece) => {
                if lead.covers(piece) {
                    Across::Anyone
                } else {
                    Across::SuperSeeder
                }
            }
            Some(_) | None => Across::Nobody,
        }
    }

    /// How many open pieces may be asked of a member.
    pub(crate) fn count_wanted(&self, member: &Member) -> u32 {
        let wanted = self.open.iter_and(&member.have).filter(|&piece| member.gives(self.across(piece)));
        u32::try_from(wanted.count()).unwrap_or(u32::MAX)
    }

    /// Every piece we lack is asked of somebody.
    pub(crate) fn is_endgame(&self) -> bool {
        self.is_leech() && self.known == self.geometry.piece_count() && self.open.count() as usize == self.begun.len()
    }

    /// Readers' windows over what we lack, those that waited longest first.
    pub(crate) fn windows(&self, now: Time, config: &Config) -> Vec<Window> {
        let mut waiting: Vec<_> = self.readers.values().collect();
        waiting.sort_by_key(|reader| reader.since);
        waiting
            .into_iter()
            .filter_map(|reader| {
                let next = self.have.first_missing(reader.piece.get()).and_then(|next| self.geometry.piece(next))?;
                let urgent = next == reader.piece && (reader.fresh || now.since(reader.since) > config.reader_patience);
                Some(Window { next, length: config.reader_window_pieces, urgent })
            })
            .collect()
    }

    /// Learns how long a piece took.
    pub(crate) fn measure(&mut self, took: Duration) {
        self.piece_time = Some(self.piece_time.map_or(took, |mean| (mean * 7 + took) / 8));
    }

    /// Pieces that are late at their only holder while another peer has them too, so that it may be asked: in the endgame
    /// sooner than before it.
    pub(crate) fn late(&self, now: Time) -> Vec<PieceIndex> {
        const PATIENCE_MIN: Duration = Duration::from_millis(250);
        let factor = if self.is_endgame() { 2 } else { 6 };
        let patience = (self.piece_time.unwrap_or(Duration::from_secs(1)) * factor).max(PATIENCE_MIN);
        let room = CONTESTED_MAX.saturating_sub(self.begun.len());
        self.active
            .iter()
            .filter(|(piece, active)| {
                let &[holder] = active.holders() else { return false };
                let others = || self.members.iter().filter(|(member, _)| *member != holder);
                let late = now.since(active.progress_at) > patience && !self.begun.contains(piece);
                late && others().any(|(_, member)| member.have.contains(**piece))
            })
            .map(|(&piece, _)| piece)
            .take(room)
            .collect()
    }
}

/// Whom in other zones a piece may be asked of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Across {
    /// Nobody: our zone has it, or it is not on us to fetch it.
    Nobody,
    /// An origin that shows it: it shows a piece to one of our zone, and so to no other leader.
    SuperSeeder,
    /// Whoever has it.
    Anyone,
}

impl Member {
    /// Tells whether a piece may be asked of this peer as far as zones go.
    pub(crate) fn gives(&self, across: Across) -> bool {
        !self.far
            || match across {
                Across::Nobody => false,
                Across::SuperSeeder => self.role == Role::Origin && !self.have.is_full(),
                Across::Anyone => true,
            }
    }

    /// An agent that lacks a piece.
    pub(crate) fn is_leecher(&self) -> bool {
        self.role == Role::Agent && !self.have.is_full()
    }
}

impl Active {
    pub(crate) fn new(now: Time, blocks: u32) -> Self {
        let stage = Stage::Fetching { received: vec![false; blocks as usize], holders: Vec::new() };
        Self { stage, sources: BTreeSet::new(), begun_at: now, progress_at: now }
    }

    /// Connections asked for what is missing.
    pub(crate) fn holders(&self) -> &[ConnIndex] {
        match &self.stage {
            Stage::Fetching { holders, .. } => holders,
            Stage::Verifying => &[],
        }
    }

    /// Tells whether blocks are missing.
    pub(crate) fn is_fetching(&self) -> bool {
        matches!(self.stage, Stage::Fetching { .. })
    }
}
