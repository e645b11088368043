//! Who wrongs us is kept out for a while, and longer if it does so again.

mod net;

use net::{Net, peer};
use shoal_meta::{Bitfield, PeerId, PeerInfo, Role};
use shoal_swarm::wire::{Alias, Message, PEERS_LENGTH_MAX, PeerExchange};
use shoal_swarm::{ConnId, DisconnectReason, Event, Violation};

#[test]
fn a_peer_that_sends_a_bad_piece_is_cut_off_and_the_piece_comes_from_another() {
    let mut net = Net::new(3, 4);
    net.seed(0);
    net.seed(1);
    net.leech(2);
    net.connect(2, 1);
    net.bad.extend(net.geometry.pieces().map(|piece| (2, piece)));
    net.run_until("cut off", 5, |net| !net.disconnects.is_empty());
    assert_eq!(net.disconnects[0], (2, 1, DisconnectReason::BadPiece));
    net.bad.clear();
    net.connect(2, 1);
    net.run_for(1);
    assert_eq!(net.disconnects[1], (2, 1, DisconnectReason::Banned));
    net.connect(2, 0);
    net.run_until("complete", 5, |net| net.is_complete(2));
}

#[test]
fn who_says_the_same_for_ever_or_names_peers_that_nobody_asked_for_is_cut_off() {
    let digest = Net::new(1, 4).digest;
    let names = PeerExchange { digest, peers: vec![peer(7, Role::Agent); PEERS_LENGTH_MAX], query: None };
    let has_one = Message::Have { alias: Alias(7), pieces: vec![0].into() };
    for (word, heard) in [(has_one, 1025), (Message::HaveAll { alias: Alias(7) }, 1025), (names.into(), 15)] {
        let mut net = Net::new(2, 4);
        net.leech(0);
        let (at_liar, _) = net.connect(1, 0);
        net.forge_open(1, at_liar, Alias(7), Bitfield::empty(&net.geometry));
        (0..heard).for_each(|_| net.forge(1, at_liar, word.clone()));
        net.run_for(1);
        assert_eq!(net.disconnects, [], "{word:?}");
        net.forge(1, at_liar, word.clone());
        net.run_for(1);
        let reason = DisconnectReason::Violation(Violation::LimitExceeded("words that tell nothing new"));
        assert_eq!(net.disconnects, [(0, 1, reason)], "{word:?}");
    }
}

#[test]
fn each_offence_doubles_a_ban_until_it_is_forgotten() {
    let mut net = Net::new(2, 4);
    net.leech(0);
    let mut offend = |after: u64| {
        net.run_for(after);
        let (conn, _) = net.connect(0, 1);
        net.run_for(1);
        net.nodes[0].handle_malformed(net.now, conn);
        net.run_for(0);
        net.events
            .drain(..)
            .find_map(|(_, event)| if let Event::Banned { length, .. } = event { Some(length.as_secs()) } else { None })
    };
    assert_eq!(offend(0), Some(60));
    assert_eq!(offend(58), None, "it is let in before its time");
    assert_eq!(offend(2), Some(120));
    assert_eq!(offend(121), Some(240));
    assert_eq!(offend(2 * 240 + 1), Some(60));
    let mut length = 60;
    for longer in [120, 240, 480, 960, 1920, 3600, 3600] {
        assert_eq!(offend(length), Some(longer));
        length = longer;
    }
}

/// Parts of one kind share a certificate: a name proves nothing, and an address does.
#[test]
fn a_ban_is_of_the_host_and_not_of_the_name_it_took() {
    let mut net = Net::new(1, 4);
    net.leech(0);
    let (honest, liar) = (peer(1, Role::Agent), peer(2, Role::Agent).address.ip());
    let mut meet = |conn, at, id| {
        let swarm = &mut net.nodes[0];
        swarm.handle_connected(net.now, ConnId(conn), at, PeerInfo { id: PeerId([id; 16]), ..honest.clone() }, false);
        let refused = std::iter::from_fn(|| swarm.poll_event())
            .find_map(|event| if let Event::Disconnect { reason, .. } = event { Some(reason) } else { None });
        if id == 77 {
            swarm.handle_malformed(net.now, ConnId(conn));
            while swarm.poll_event().is_some() {}
        }
        refused
    };
    assert_eq!(meet(1, honest.address.ip(), 2), None);
    assert_eq!(meet(2, liar, 2), Some(DisconnectReason::Duplicate), "it does not take another's place");
    assert_eq!(meet(3, liar, 77), None);
    assert_eq!(meet(4, liar, 78), Some(DisconnectReason::Banned));
    assert_eq!(meet(5, honest.address.ip(), 79), None, "others are let in");
}
