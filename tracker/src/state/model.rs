//! The state against a simple model: whole histories of calls, drawn by proptest, with small limits so that they are met.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use rand::SeedableRng as _;
use shoal_meta::{Role, Topology};

use super::*;

const LEASE: Duration = Duration::from_secs(10);
const LIMITS: Limits =
    Limits { peers_max: 14, torrents_per_peer_max: 3, members_max: 12, memberships_max: 30, handout_max: 8 };

/// One call of the state.
#[derive(Clone, Debug)]
enum Transition {
    Announce(Announce),
    Leave(PeerId),
    Wait(Duration),
}

/// What the state must be, kept the simplest way.
#[derive(Default)]
struct Model {
    peers: BTreeMap<PeerId, ModelPeer>,
}

struct ModelPeer {
    info: PeerInfo,
    lease_end: Instant,
    synced: bool,
    torrents: BTreeMap<Digest, Holding>,
}

impl Model {
    fn members(&self, digest: &Digest) -> Vec<&PeerInfo> {
        self.peers.values().filter(|peer| peer.torrents.contains_key(digest)).map(|peer| &peer.info).collect()
    }

    fn memberships(&self) -> usize {
        self.peers.values().map(|peer| peer.torrents.len()).sum()
    }

    /// Applies all of an announce but its handouts; `None` when it is refused.
    fn admit(&mut self, now: Instant, announce: &Announce) -> Option<()> {
        let info = announce.peer.clone();
        if !self.peers.contains_key(&info.id) && self.peers.len() >= LIMITS.peers_max {
            return None;
        }
        let new = ModelPeer { info: info.clone(), lease_end: now, synced: false, torrents: BTreeMap::new() };
        let peer = self.peers.entry(info.id).or_insert(new);
        peer.info = info;
        peer.lease_end = now + LEASE;
        if announce.full {
            peer.synced = true;
            peer.torrents.retain(|digest, _| announce.torrents.iter().any(|torrent| torrent.digest == *digest));
        }
        Some(())
    }

    fn record(&mut self, id: &PeerId, torrent: &TorrentAnnounce) {
        let (members, memberships) = (self.members(&torrent.digest).len(), self.memberships());
        let torrents = &mut self.peers.get_mut(id).unwrap().torrents;
        let room = torrents.len() < LIMITS.torrents_per_peer_max
            && members < LIMITS.members_max
            && memberships < LIMITS.memberships_max;
        match torrent.holding {
            None => drop(torrents.remove(&torrent.digest)),
            Some(holding) if room || torrents.contains_key(&torrent.digest) => {
                torrents.insert(torrent.digest, holding);
            }
            Some(_) => {}
        }
    }

    /// Checks a handout against what it may and must be.
    fn check_handout(&self, asker: &PeerInfo, wanted: u32, handout: &Handout<PeerInfo>) {
        let others: Vec<_> = self.members(&handout.digest).into_iter().filter(|peer| peer.id != asker.id).collect();
        let wanted = LIMITS.handout_max.min(wanted as usize);
        let mut unique: Vec<_> = handout.peers.iter().map(|peer| peer.id).collect();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), handout.peers.len(), "nobody twice");
        assert!(handout.peers.iter().all(|peer| others.contains(&peer)), "only members, as they last announced");

        let origins = others.iter().filter(|peer| peer.role == Role::Origin).count().min(ORIGINS_MAX).min(wanted);
        let agents: Vec<_> = others.iter().filter(|peer| peer.role == Role::Agent).collect();
        let count = handout.peers.iter().take_while(|peer| peer.role == Role::Agent).count();
        assert!(handout.peers[count..].iter().all(|peer| peer.role == Role::Origin), "origins come last");
        let room = wanted - origins;
        assert_eq!((count, handout.peers.len() - count), (agents.len().min(room), origins), "as many as there are");
        let near = if agents.len() <= room { room } else { room * NEAR_SHARE_OF_4 / 4 };
        let of_distance = |max: u32| agents.iter().filter(|peer| distance(asker, peer) <= max).count().min(near);
        for (index, peer) in handout.peers[..count].iter().enumerate() {
            assert!(index >= of_distance(0) || distance(asker, peer) == 0, "the rack comes first");
            assert!(index >= of_distance(1) || distance(asker, peer) <= 1, "then the zone");
        }
    }
}

fn distance(a: &PeerInfo, b: &PeerInfo) -> u32 {
    let zone = a.topology.zone == b.topology.zone;
    match (zone && !a.topology.rack.is_empty() && a.topology.rack == b.topology.rack, zone) {
        (true, _) => 0,
        (false, true) if !a.topology.zone.is_empty() => 1,
        (false, _) => 2,
    }
}

fn peer() -> impl Strategy<Value = PeerInfo> {
    (0..18u8, prop::bool::weighted(0.2), prop::sample::select(vec!["", "a", "b"]), prop::sample::select(vec!["", "1"]))
        .prop_map(|(number, origin, zone, rack)| PeerInfo {
            id: PeerId([number; 16]),
            address: std::net::SocketAddr::from(([10, 0, 0, number], 5051)),
            role: if origin { Role::Origin } else { Role::Agent },
            topology: Topology { zone: zone.into(), rack: rack.into() },
        })
}

fn torrent() -> impl Strategy<Value = TorrentAnnounce> {
    let holding = prop::sample::select(vec![None, Some(Holding::Leeching), Some(Holding::Seeding)]);
    (prop::sample::select(vec![0, 0, 0, 1, 2, 3, 4]), holding, 0..12u32).prop_map(|(number, holding, peers_wanted)| {
        TorrentAnnounce { digest: Digest::Sha256([number; 32]), holding, peers_wanted }
    })
}

fn transition() -> impl Strategy<Value = Transition> {
    let announce = (peer(), prop::bool::weighted(0.3), vec(torrent(), 0..6))
        .prop_map(|(peer, full, torrents)| Transition::Announce(Announce { peer, from: None, full, torrents }));
    prop_oneof![
        12 => announce,
        1 => (0..18u8).prop_map(|number| Transition::Leave(PeerId([number; 16]))),
        1 => (0..6_000u64).prop_map(|ms| Transition::Wait(Duration::from_millis(ms))),
    ]
}

fn check(state: &mut State<PeerInfo>, model: &mut Model, now: &mut Instant, transition: &Transition) {
    match transition {
        Transition::Announce(announce) => {
            let answer = state.announce(*now, announce);
            let Some(()) = model.admit(*now, announce) else {
                assert!(answer.is_err());
                return;
            };
            let answer = answer.unwrap();
            assert_eq!(answer.resync, !model.peers[&announce.peer.id].synced);
            let mut handouts = answer.handouts.iter();
            for torrent in &announce.torrents {
                model.record(&announce.peer.id, torrent);
                if torrent.peers_wanted > 0 {
                    let handout = handouts.next().unwrap();
                    assert_eq!(handout.digest, torrent.digest);
                    model.check_handout(&announce.peer, torrent.peers_wanted, handout);
                }
            }
            assert!(handouts.next().is_none());
        }
        Transition::Leave(id) => assert_eq!(state.leave(id), model.peers.remove(id).is_some()),
        Transition::Wait(time) => {
            *now += *time;
            let before = model.peers.len();
            model.peers.retain(|_, peer| peer.lease_end > *now);
            assert_eq!(state.expire(*now), before - model.peers.len());
        }
    }
}

proptest! {
    #[test]
    fn every_history_is_as_the_model_says(history in vec(transition(), 1..120), seed: u64) {
        let mut state = State::new(LIMITS, LEASE, PeerInfo::clone, Pcg64::seed_from_u64(seed));
        let (mut model, mut now) = (Model::default(), Instant::now());
        for transition in &history {
            check(&mut state, &mut model, &mut now, transition);
            state.check_invariants();
            let torrents: BTreeSet<_> = model.peers.values().flat_map(|peer| peer.torrents.keys()).collect();
            let holdings = model.peers.values().flat_map(|peer| peer.torrents.values());
            let seeding = holdings.filter(|holding| **holding == Holding::Seeding).count();
            prop_assert_eq!(state.sizes(), Sizes {
                peers: model.peers.len(),
                torrents: torrents.len(),
                memberships: model.memberships(),
                seeding,
            });
            prop_assert_eq!(state.poll_timeout(), model.peers.values().map(|peer| peer.lease_end).min());
        }
    }
}
