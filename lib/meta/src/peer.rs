//! Who takes part in a swarm.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use crate::PieceIndex;

/// Names a peer: 16 random bytes, drawn when a node's store is made and kept with it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub [u8; 16]);

/// Says that a text is not a peer id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a peer id is 32 lower-case hex characters")]
pub struct ParsePeerIdError;

impl FromStr for PeerId {
    type Err = ParsePeerIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        crate::digest::parse_hex(text).map(Self).ok_or(ParsePeerIdError)
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What a peer is in the cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Role {
    /// A node's agent: downloads what its runtime asks for and serves what it has.
    Agent,
    /// An origin: fetches from upstream, publishes metainfo, seeds first.
    Origin,
}

/// Where a node stands; empty labels mean unknown.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Topology {
    /// The failure zone, as in the label `topology.kubernetes.io/zone`.
    pub zone: String,
    /// The rack inside the zone.
    pub rack: String,
}

impl Topology {
    /// Tells whether two nodes are known to be in different zones.
    #[must_use]
    pub fn is_far(&self, other: &Self) -> bool {
        !self.zone.is_empty() && !other.zone.is_empty() && self.zone != other.zone
    }

    /// The same, with what is unknown of it from another.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        let known = |this: String, other| if this.is_empty() { other } else { this };
        Self { zone: known(self.zone, other.zone), rack: known(self.rack, other.rack) }
    }
}

/// What one peer knows of another: enough to dial it and to prefer the near ones.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PeerInfo {
    /// The peer's name.
    pub id: PeerId,
    /// Where it accepts peer connections.
    pub address: SocketAddr,
    /// What it is.
    pub role: Role,
    /// Where it stands.
    pub topology: Topology,
}

/// A leader's part in fetching a blob into its zone: each of a zone's leaders fetches other pieces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lead {
    rank: u32,
    leaders: u32,
}

impl Lead {
    /// The only leader: it fetches every piece.
    pub const ALONE: Self = Self { rank: 0, leaders: 1 };

    /// One of several leaders, by its rank, counted from 0. `None` when the rank is not below their number.
    #[must_use]
    pub const fn new(rank: u32, leaders: u32) -> Option<Self> {
        if rank < leaders { Some(Self { rank, leaders }) } else { None }
    }

    /// Its rank, counted from 0.
    #[must_use]
    pub const fn rank(self) -> u32 {
        self.rank
    }

    /// How many leaders the zone has.
    #[must_use]
    pub const fn leaders(self) -> u32 {
        self.leaders
    }

    /// Tells whether a piece is in its part: the pieces whose number, modulo the leaders', is its rank.
    #[must_use]
    pub fn covers(self, piece: PieceIndex) -> bool {
        piece.get() % self.leaders == self.rank
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_id_prints_as_it_was_parsed() {
        let text = "000102030405060708090a0b0c0d0eff";
        assert_eq!(text.parse::<PeerId>().unwrap().to_string(), text);
        assert_eq!("00".parse::<PeerId>(), Err(ParsePeerIdError));
    }
}
