//! The members of one torrent, in rosters: all of them, and by zone and rack, so that near ones are found at once.
//!
//! Only the state uses it. A roster is a plain list in no order: joining appends, leaving swaps the last one in. Each
//! member keeps its spots, so that both cost O(1).

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use shoal_meta::{Digest, PeerInfo, Role};

use super::Holding;

/// A set of members of a torrent, as seen from one peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Scope {
    /// All members of the peer's role.
    Whole,
    /// The agents in its zone.
    Zone,
    /// The agents in its rack.
    Rack,
}

impl Scope {
    pub(super) const ALL: [Self; 3] = [Self::Whole, Self::Zone, Self::Rack];
}

/// A zone or rack, as a hash of its labels: all that two equal ones must do is compare equal.
type Place = u64;

/// What decides in which rosters a peer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Standing {
    role: Role,
    zone: Option<Place>,
    rack: Option<Place>,
}

/// A peer's membership of one torrent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    pub(super) holding: Holding,
    /// Where it is in each roster, by [`Scope`]; without meaning where it is in none.
    pub(super) spots: [u32; 3],
}

/// A torrent with at least one member, once the state has entered it.
#[derive(Debug)]
pub(super) struct Torrent {
    pub(super) digest: Digest,
    agents: Vec<u32>,
    origins: Vec<u32>,
    near: BTreeMap<Place, Vec<u32>>,
}

impl Standing {
    pub(super) fn of(info: &PeerInfo) -> Self {
        let place = |labels: &[&str]| {
            let mut hasher = DefaultHasher::new();
            labels.hash(&mut hasher);
            hasher.finish()
        };
        let (zone, rack) = (info.topology.zone.as_str(), info.topology.rack.as_str());
        Self {
            role: info.role,
            zone: (!zone.is_empty()).then(|| place(&[zone])),
            rack: (!rack.is_empty()).then(|| place(&[zone, rack])),
        }
    }

    pub(super) fn is_origin(&self) -> bool {
        self.role == Role::Origin
    }

    fn place(&self, scope: Scope) -> Option<Place> {
        match scope {
            Scope::Whole => None,
            Scope::Zone => self.zone,
            Scope::Rack => self.rack,
        }
    }
}

impl Torrent {
    pub(super) fn new(digest: Digest) -> Self {
        Self { digest, agents: Vec::new(), origins: Vec::new(), near: BTreeMap::new() }
    }

    /// How many members there are.
    pub(super) fn members(&self) -> usize {
        self.agents.len() + self.origins.len()
    }

    /// All origins.
    pub(super) fn origins(&self) -> &[u32] {
        &self.origins
    }

    /// The agents within a scope as seen from `standing`.
    pub(super) fn agents(&self, standing: &Standing, scope: Scope) -> &[u32] {
        match scope {
            Scope::Whole => &self.agents,
            Scope::Zone | Scope::Rack => {
                standing.place(scope).and_then(|place| self.near.get(&place)).map_or(&[], Vec::as_slice)
            }
        }
    }

    /// Adds a peer to its roster of that scope, if it has one; gives its spot.
    pub(super) fn push(&mut self, standing: &Standing, scope: Scope, peer: u32) -> u32 {
        let roster = match (scope, standing.role, standing.place(scope)) {
            (Scope::Whole, Role::Agent, _) => &mut self.agents,
            (Scope::Whole, Role::Origin, _) => &mut self.origins,
            (Scope::Zone | Scope::Rack, Role::Agent, Some(place)) => self.near.entry(place).or_default(),
            (Scope::Zone | Scope::Rack, Role::Origin, _) | (Scope::Zone | Scope::Rack, _, None) => return 0,
        };
        roster.push(peer);
        roster.len() as u32 - 1
    }

    /// Takes out the peer at a spot; gives the peer that now has that spot, if another moved there.
    pub(super) fn remove(&mut self, standing: &Standing, scope: Scope, spot: u32) -> Option<u32> {
        let roster = match (scope, standing.role) {
            (Scope::Whole, Role::Agent) => &mut self.agents,
            (Scope::Whole, Role::Origin) => &mut self.origins,
            (Scope::Zone | Scope::Rack, Role::Agent) => self.near.get_mut(&standing.place(scope)?)?,
            (Scope::Zone | Scope::Rack, Role::Origin) => return None,
        };
        roster.swap_remove(spot as usize);
        let moved = roster.get(spot as usize).copied();
        if let (true, Some(place)) = (roster.is_empty(), standing.place(scope)) {
            self.near.remove(&place);
        }
        moved
    }

    /// Panics unless the member is where its spots say.
    pub(super) fn check_member(&self, key: u32, standing: &Standing, member: &Member) {
        match standing.role {
            Role::Origin => assert_eq!(self.origins[member.spots[0] as usize], key),
            Role::Agent => {
                for (scope, spot) in Scope::ALL.into_iter().zip(member.spots) {
                    if scope == Scope::Whole || standing.place(scope).is_some() {
                        assert_eq!(self.agents(standing, scope)[spot as usize], key, "{scope:?}");
                    }
                }
            }
        }
    }

    /// Panics when a roster is kept that has nobody in it, or somebody twice.
    pub(super) fn check_rosters(&self) {
        assert!(self.members() > 0);
        for roster in self.near.values() {
            assert!(!roster.is_empty() && roster.len() <= self.agents.len());
        }
    }
}
