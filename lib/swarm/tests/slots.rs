//! Who is served, and with how much.

mod net;

use std::time::Duration;

use net::Net;
use shoal_meta::Bitfield;
use shoal_swarm::wire::{Alias, Message, WireBlock};
use shoal_swarm::{ChokePolicy, Config, Frame};

#[test]
fn slots_that_are_under_way_do_not_idle_the_uplink() {
    let mut net = Net::with(2, 200, Config { upload_slots: 1, ..Config::default() });
    net.latency = Duration::from_millis(50);
    net.seed(0);
    net.leech(1);
    net.connect(1, 0);
    // A grant, its request and the piece take 121 ms: one at a time would take 24 s.
    net.run_until("complete", 18, |net| net.is_complete(1));
}

#[test]
fn a_peer_that_vanished_is_granted_no_second_slot() {
    let mut net = Net::with(3, 400, Config { upload_slots: 1, ..Config::default() });
    net.seed(0);
    (1..3).for_each(|node| {
        net.leech(node);
        net.connect(node, 0);
    });
    net.run_until("both are served", 5, |net| (1..3).all(|node| net.view(node).have > 0));
    net.vanished.insert(1);
    let before = net.sent.len();
    net.run_until("complete", 30, |net| net.is_complete(2));
    let granted = |frame: &Frame| matches!(frame, Frame::Control(Message::Unchoke { .. }));
    let in_vain = net.sent[before..].iter().filter(|(_, to, frame)| *to == 1 && granted(frame)).count();
    assert!(in_vain <= 2, "{in_vain}");
}

#[test]
fn requests_beyond_the_allowance_are_rejected() {
    let mut net = Net::new(2, 4);
    net.seed(0);
    let (at_leecher, _) = net.connect(1, 0);
    let alias = Alias(7);
    net.forge_open(1, at_leecher, alias, Bitfield::empty(&net.geometry));
    let blocks = vec![WireBlock { piece: 1, offset: 0, length: 262_144 }];
    net.forge(1, at_leecher, Message::Request { alias, blocks: blocks.clone() });
    net.run_for(1);
    let rejected = |frame: &Frame| matches!(frame, Frame::Control(Message::Reject { blocks: b, .. }) if *b == blocks);
    assert!(net.sent.iter().any(|(from, _, frame)| *from == 0 && rejected(frame)));
    assert!(net.sent.iter().all(|(_, _, frame)| !matches!(frame, Frame::Block { .. })));
}

#[test]
fn a_peer_without_room_is_told_of_pieces_by_the_way() {
    let told = |no_room| {
        let mut net = Net::new(3, 200);
        net.seed(0);
        net.leech(1);
        net.connect(1, 0);
        let (at_peer, _) = net.connect(2, 1);
        net.forge_open(2, at_peer, Alias(7), Bitfield::empty(&net.geometry));
        net.forge(2, at_peer, Message::NotInterested { no_room });
        net.run_until("complete", 60, |net| net.is_complete(1));
        let is_have = |frame: &Frame| matches!(frame, Frame::Control(Message::Have { .. }));
        net.sent.iter().filter(|(from, to, frame)| (*from, *to) == (1, 2) && is_have(frame)).count()
    };
    let (full, idle) = (told(true), told(false));
    assert!(idle > 100, "one that wants nothing hears of each piece: {idle}");
    assert!(full > 0 && full * 4 < idle, "one without room hears of several at a time: {full}, {idle}");
}

#[test]
fn tit_for_tat_completes_too() {
    let config = Config { choke_policy: ChokePolicy::Reciprocal, ..Config::default() };
    let mut net = Net::with(6, 100, config);
    net.seed(0);
    (1..6).for_each(|node| {
        net.leech(node);
    });
    net.connect_all();
    net.run_until("all complete", 120, |net| (1..6).all(|node| net.is_complete(node)));
}

#[test]
fn who_does_not_take_what_it_asked_for_keeps_nobody_from_a_slot() {
    let mut net = Net::with(3, 40, Config { upload_slots: 2, ..Config::default() });
    net.seed(0);
    net.leech(1);
    net.deaf.insert(1, Vec::new());
    net.connect(1, 0);
    let asked = |net: &Net| {
        let is_request = |frame: &Frame| matches!(frame, Frame::Control(Message::Request { .. }));
        net.sent.iter().filter(|(from, to, frame)| (*from, *to) == (1, 0) && is_request(frame)).count()
    };
    net.run_for(1);
    let taken = asked(&net);
    net.leech(2);
    net.connect(2, 0);
    net.run_for(1);
    assert_eq!(net.view(2).have, 0, "every slot is taken");
    net.run_until("the other is whole", 3, |net| net.is_complete(2));
    assert_eq!(asked(&net), taken, "it is granted nothing more");
    net.hear(1);
    net.run_until("it takes what it asked for after all, and the rest", 10, |net| net.is_complete(1));
}
