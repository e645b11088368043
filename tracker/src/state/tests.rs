//! Facts about the state, one at a time; `model` checks whole histories.

use std::collections::BTreeSet;

use rand::SeedableRng as _;
use shoal_meta::{Role, Topology};

use super::*;

const LEASE: Duration = Duration::from_secs(45);
const LIMITS: Limits = Limits {
    peers_max: 20_000,
    torrents_per_peer_max: 100,
    members_max: 20_000,
    memberships_max: 1_000_000,
    handout_max: 50,
};

fn state(limits: Limits) -> State<PeerInfo> {
    State::new(limits, LEASE, PeerInfo::clone, Pcg64::seed_from_u64(7))
}

fn digest(number: u8) -> Digest {
    Digest::Sha256([number; 32])
}

fn agent(number: u32, zone: &str, rack: &str) -> PeerInfo {
    let mut id = [0; 16];
    id[..4].copy_from_slice(&number.to_be_bytes());
    let address = std::net::SocketAddr::from((number.to_be_bytes(), 5051));
    let topology = Topology { zone: zone.into(), rack: rack.into() };
    PeerInfo { id: PeerId(id), address, role: Role::Agent, topology }
}

fn origin(number: u32) -> PeerInfo {
    PeerInfo { role: Role::Origin, ..agent(number, "", "") }
}

fn torrent(number: u8, peers_wanted: u32) -> TorrentAnnounce {
    TorrentAnnounce { digest: digest(number), holding: Some(Holding::Leeching), peers_wanted }
}

fn announce(peer: &PeerInfo, torrents: &[TorrentAnnounce]) -> Announce {
    Announce { peer: peer.clone(), from: None, full: true, torrents: torrents.to_vec() }
}

/// Announces that a peer leeches a torrent, and gives the peers it is handed.
fn ask(state: &mut State<PeerInfo>, now: Instant, peer: &PeerInfo, wanted: u32) -> Vec<PeerInfo> {
    let answer = state.announce(now, &announce(peer, &[torrent(1, wanted)])).unwrap();
    state.check_invariants();
    answer.handouts.first().map(|handout| handout.peers.clone()).unwrap_or_default()
}

/// A state in which `number` agents, spread evenly over 3 zones of 10 racks each, leech torrent 1.
fn crowd(number: u32) -> (State<PeerInfo>, Instant) {
    let (mut state, now) = (state(LIMITS), Instant::now());
    for i in 0..number {
        let peer = agent(i, &format!("zone-{}", i % 3), &format!("rack-{}", i / 3 % 10));
        state.announce(now, &announce(&peer, &[torrent(1, 0)])).unwrap();
    }
    (state, now)
}

fn ids<'a>(peers: impl IntoIterator<Item = &'a PeerInfo>) -> BTreeSet<PeerId> {
    peers.into_iter().map(|peer| peer.id).collect()
}

#[test]
fn a_small_swarm_is_handed_out_whole_nearest_first() {
    let (mut state, now) = (state(LIMITS), Instant::now());
    let asker = agent(1, "a", "1");
    let (far, zone, rack) = (agent(2, "b", "1"), agent(3, "a", "2"), agent(4, "a", "1"));
    for peer in [&origin(5), &far, &zone, &rack] {
        ask(&mut state, now, peer, 0);
    }
    assert_eq!(ask(&mut state, now, &asker, 50), [rack, zone, far, origin(5)]);
}

#[test]
fn the_asker_is_never_handed_out() {
    let (mut state, now) = crowd(30);
    let asker = agent(0, "zone-0", "rack-0");
    for wanted in [1, 5, 29, 50] {
        assert!(!ids(&ask(&mut state, now, &asker, wanted)).contains(&asker.id));
    }
    let asker = origin(99);
    ask(&mut state, now, &asker, 1);
    assert!(!ids(&ask(&mut state, now, &asker, 50)).contains(&asker.id));
}

#[test]
fn a_quarter_of_a_handout_is_drawn_from_the_whole_torrent() {
    let (mut state, now) = crowd(9_000);
    let asker = agent(0, "zone-0", "rack-0");
    let peers = ask(&mut state, now, &asker, 50);
    assert_eq!(ids(&peers).len(), 50);
    assert!(peers[..37].iter().all(|peer| peer.topology == asker.topology), "a rack of 300 fills the near share");
    let elsewhere = peers[37..].iter().filter(|peer| peer.topology.zone != asker.topology.zone).count();
    assert!((3..=13).contains(&elsewhere), "two thirds of 13 are to be expected elsewhere, not {elsewhere}");
}

#[test]
fn a_small_rack_is_topped_up_from_its_zone() {
    let (mut state, now) = crowd(300);
    let asker = agent(0, "zone-0", "rack-0");
    let peers = ask(&mut state, now, &asker, 50);
    assert!(peers[..9].iter().all(|peer| peer.topology == asker.topology));
    assert!(peers[9..37].iter().all(|peer| peer.topology != asker.topology && peer.topology.zone == "zone-0"));
    assert!(peers[37..].iter().any(|peer| peer.topology.zone != "zone-0"));
}

#[test]
fn every_member_is_handed_out_about_equally_often_when_places_are_unknown() {
    let (mut state, now) = (state(LIMITS), Instant::now());
    let peers: Vec<_> = (0..500).map(|i| agent(i, "", "")).collect();
    let mut handed = std::collections::BTreeMap::new();
    for round in 0..10 {
        for peer in &peers {
            for other in ask(&mut state, now, peer, if round == 0 { 0 } else { 20 }) {
                *handed.entry(other.id).or_insert(0) += 1;
            }
        }
    }
    assert_eq!(handed.len(), 500);
    let (least, most) = (handed.values().min().unwrap(), handed.values().max().unwrap());
    assert!(*least > 110 && *most < 260, "180 are to be expected, not {least} to {most}");
}

#[test]
fn a_swarm_of_many_zones_stays_one_connected_graph() {
    let (mut state, now) = (state(LIMITS), Instant::now());
    let peers: Vec<_> = (0..1_000).map(|i| agent(i, &format!("zone-{}", i / 100), "")).collect();
    peers.iter().for_each(|peer| drop(ask(&mut state, now, peer, 0)));
    let (mut reached, mut front) = (ids([&peers[0]]), vec![peers[0].clone()]);
    while let Some(peer) = front.pop() {
        for next in ask(&mut state, now, &peer, 10) {
            if reached.insert(next.id) {
                front.push(next);
            }
        }
    }
    assert_eq!(reached.len(), 1_000);
}

#[test]
fn few_origins_of_many_are_handed_out() {
    let (mut state, now) = crowd(100);
    for number in 200..220 {
        ask(&mut state, now, &origin(number), 0);
    }
    let peers = ask(&mut state, now, &agent(0, "zone-0", "rack-0"), 50);
    let roles: Vec<_> = peers.iter().map(|peer| peer.role).collect();
    assert_eq!(roles, [vec![Role::Agent; 50 - ORIGINS_MAX], vec![Role::Origin; ORIGINS_MAX]].concat());
}

#[test]
fn a_peer_that_is_not_known_in_full_is_told_to_resync_until_it_does() {
    let (mut state, now, peer) = (state(LIMITS), Instant::now(), agent(1, "", ""));
    let mut delta = announce(&peer, &[torrent(1, 5)]);
    delta.full = false;
    for _ in 0..2 {
        let answer = state.announce(now, &delta).unwrap();
        assert!(answer.resync);
        assert_eq!(answer.handouts.len(), 1, "it is served all the same");
    }
    assert!(!state.announce(now, &announce(&peer, &[torrent(1, 0)])).unwrap().resync);
    assert!(!state.announce(now, &delta).unwrap().resync);
    assert!(state.leave(&peer.id));
    assert!(state.announce(now, &delta).unwrap().resync);
}

#[test]
fn a_full_announce_forgets_what_it_does_not_list() {
    let (mut state, now, peer) = (state(LIMITS), Instant::now(), agent(1, "a", "1"));
    state.announce(now, &announce(&peer, &[torrent(1, 0), torrent(2, 0)])).unwrap();
    state.announce(now, &announce(&peer, &[torrent(2, 0), torrent(3, 0)])).unwrap();
    state.check_invariants();
    assert_eq!(state.sizes(), Sizes { peers: 1, torrents: 2, memberships: 2, seeding: 0 });
    assert!(state.announce(now, &announce(&agent(2, "", ""), &[torrent(1, 9)])).unwrap().handouts[0].peers.is_empty());
}

#[test]
fn what_is_gone_is_not_handed_out() {
    let (mut state, now) = crowd(2);
    let gone = TorrentAnnounce { holding: None, ..torrent(1, 0) };
    let delta = Announce { full: false, ..announce(&agent(0, "zone-0", "rack-0"), &[gone]) };
    state.announce(now, &delta).unwrap();
    state.announce(now, &delta).unwrap();
    assert_eq!(ids(&ask(&mut state, now, &agent(9, "", ""), 50)), ids([&agent(1, "", "")]));
}

#[test]
fn a_lease_that_is_not_renewed_ends() {
    let (mut state, start) = crowd(3);
    assert_eq!(state.poll_timeout(), Some(start + LEASE));
    ask(&mut state, start + LEASE / 2, &agent(1, "zone-1", "rack-0"), 0);
    assert_eq!(state.expire(start + LEASE - Duration::from_millis(1)), 0);
    assert_eq!(state.expire(start + LEASE), 2);
    state.check_invariants();
    assert_eq!(state.sizes().peers, 1);
    assert_eq!(state.poll_timeout(), Some(start + LEASE + LEASE / 2));
    assert_eq!(state.counters().lease_expiries, 2);
}

#[test]
fn many_leases_end_in_bounded_steps() {
    let (mut state, start) = crowd(EXPIRE_MAX as u32 + 10);
    assert_eq!(state.expire(start + LEASE), EXPIRE_MAX);
    assert_eq!(state.expire(start + LEASE), 10);
    assert_eq!((state.sizes(), state.poll_timeout()), (Sizes::default(), None));
}

#[test]
fn a_peer_that_moves_is_near_its_new_neighbours() {
    let (mut state, now) = crowd(300);
    let moved = agent(0, "zone-1", "rack-5");
    ask(&mut state, now, &moved, 0);
    let peers = ask(&mut state, now, &agent(900, "zone-1", "rack-5"), 50);
    assert!(ids(&peers[..11]).contains(&moved.id));
    assert!(peers.contains(&moved), "with its new place");
}

#[test]
fn past_the_peer_limit_only_known_peers_are_served() {
    let (mut state, now) = (state(Limits { peers_max: 2, ..LIMITS }), Instant::now());
    let peers = [1, 2, 3].map(|number| announce(&agent(number, "", ""), &[torrent(1, 5)]));
    assert!(state.announce(now, &peers[0]).is_ok() && state.announce(now, &peers[1]).is_ok());
    assert_eq!(state.announce(now, &peers[2]).unwrap_err(), AnnounceError::PeersFull { peers_max: 2 });
    assert!(state.announce(now, &peers[0]).is_ok());
    state.leave(&peers[0].peer.id);
    assert!(state.announce(now, &peers[2]).is_ok());
}

#[test]
fn past_the_other_limits_torrents_are_answered_but_not_recorded() {
    for limits in [
        Limits { torrents_per_peer_max: 1, ..LIMITS },
        Limits { memberships_max: 3, ..LIMITS },
        Limits { members_max: 2, ..LIMITS },
    ] {
        let (mut state, now) = (state(limits), Instant::now());
        let announces = [1, 2, 3].map(|number| announce(&agent(number, "", ""), &[torrent(1, 9), torrent(2, 9)]));
        let answers = announces.map(|announce| state.announce(now, &announce).unwrap());
        state.check_invariants();
        assert!(state.counters().torrents_unrecorded > 0, "{limits:?}");
        assert_eq!(answers[2].handouts.len(), 2);
        assert!(!answers[2].handouts[0].peers.is_empty());
    }
}

#[test]
fn one_answer_holds_a_bounded_number_of_peers() {
    let (mut state, now) = (state(LIMITS), Instant::now());
    (0..60).for_each(|number| drop(ask(&mut state, now, &agent(number, "", ""), 0)));
    let many = vec![torrent(1, 50); ANSWER_PEERS_MAX / 50 + 20];
    let answer = state.announce(now, &announce(&agent(99, "", ""), &many)).unwrap();
    assert_eq!(answer.handouts.len(), many.len());
    assert_eq!(answer.handouts.iter().map(|handout| handout.peers.len()).sum::<usize>(), ANSWER_PEERS_MAX);
}

#[test]
fn the_same_seed_and_calls_give_the_same_answers() {
    let history = || {
        let (mut state, now) = crowd(2_000);
        (0..200).map(|i| ask(&mut state, now, &agent(i * 7, "zone-1", "rack-1"), 50)).collect::<Vec<_>>()
    };
    assert_eq!(history(), history());
}

#[test]
fn the_first_two_of_a_zone_lead_it_and_who_leaves_is_replaced() {
    let (mut state, now) = (state(LIMITS), Instant::now());
    let lead = |state: &mut State<PeerInfo>, peer: &PeerInfo| {
        let answer = state.announce(now, &announce(peer, &[torrent(1, 50)])).unwrap();
        answer.handouts[0].lead.map(|lead| (lead.rank(), lead.leaders()))
    };
    let peers: Vec<_> = (0..4).map(|number| agent(number, "a", "")).collect();
    assert_eq!(lead(&mut state, &peers[0]), Some((0, 1)), "alone it fetches all");
    let leads: Vec<_> = peers.iter().map(|peer| lead(&mut state, peer)).collect();
    assert_eq!(leads, [Some((0, 1)), Some((1, 2)), None, None]);
    assert_eq!(lead(&mut state, &peers[0]), Some((0, 2)));
    assert!(state.leave(&peers[0].id));
    let leads: Vec<_> = peers[1..].iter().map(|peer| lead(&mut state, peer)).collect();
    assert_eq!(leads, [Some((1, 2)), None, Some((0, 2))]);
    assert_eq!(lead(&mut state, &agent(9, "", "")), None, "without a zone there is nothing to cross");
    assert_eq!(lead(&mut state, &PeerInfo { role: Role::Origin, ..agent(10, "a", "") }), None);
}

#[test]
fn one_address_takes_its_share_and_leaves_the_rest_to_others() {
    let (limits, now) = (Limits { peers_max: 48, memberships_max: 80, ..LIMITS }, Instant::now());
    let mut state = state(limits);
    let mut from = |last: u8, number, torrents: &[TorrentAnnounce]| {
        let announce = Announce { from: Some([10, 0, 0, last].into()), ..announce(&agent(number, "", ""), torrents) };
        let answer = state.announce(now, &announce);
        state.check_invariants();
        (answer.err(), state.sizes().peers, state.sizes().memberships)
    };
    let many: Vec<_> = (0..10).map(|number| torrent(number, 0)).collect();
    assert_eq!(from(1, 1, &many), (None, 1, 5));
    assert_eq!(from(1, 2, &many), (None, 2, 5));
    assert_eq!(from(1, 3, &many), (None, 3, 5));
    let full = AnnounceError::ShareFull { address: [10, 0, 0, 1].into(), peers_max: 3 };
    assert_eq!(from(1, 4, &many), (Some(full), 3, 5));
    assert_eq!(from(1, 1, &many[..1]), (None, 3, 1), "what it forgets makes room");
    assert_eq!(from(2, 5, &many[..4]), (None, 4, 5), "others have their own");
    state.leave(&agent(1, "", "").id);
    assert_eq!(state.announce(now, &announce(&agent(6, "", ""), &many)).err(), None);
    state.check_invariants();
}
