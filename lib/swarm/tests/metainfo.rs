//! Hashes from peers, when no origin answers: whoever has them all and the origin's seal is as good as the origin.

mod net;

use net::{Net, SEAL};
use shoal_meta::PieceHash;
use shoal_swarm::wire::{Alias, Message, MetainfoPart};
use shoal_swarm::{DisconnectReason, Event, Violation};

/// A leecher that knows no hash, and seeders with these seals.
fn net(seals: &[Option<&[u8]>]) -> Net {
    let mut net = Net::new(seals.len() + 2, 8);
    let key = net.leech_blindly(1);
    for (node, seal) in (2..).zip(seals) {
        net.seed(node);
        net.connect(node, 1);
        net.seals.extend(seal.map(|seal| (node, seal.to_vec())));
    }
    net.nodes[1].find_metainfo(net.now, key);
    net
}

fn asked(net: &Net) -> usize {
    net.sent.iter().filter(|(_, _, frame)| format!("{frame:?}").contains("FindMetainfo")).count()
}

#[test]
fn a_peer_that_has_all_hashes_and_a_seal_is_enough() {
    let mut net = net(&[Some(SEAL)]);
    net.run_until("complete", 10, |net| net.is_complete(1));
    assert_eq!(asked(&net), 1);
}

#[test]
fn without_a_question_nobody_is_asked_and_nothing_is_fetched() {
    let mut net = Net::new(3, 8);
    net.leech_blindly(1);
    net.seed(2);
    net.connect(2, 1);
    net.run_for(20);
    assert_eq!((asked(&net), net.view(1).have), (0, 0));
}

#[test]
fn one_who_lies_is_banned_and_the_next_is_asked() {
    let mut net = net(&[Some(b"forged"), Some(b"forged too"), Some(SEAL)]);
    net.run_until("complete", 10, |net| net.is_complete(1));
    let banned = net.events.iter().filter(|(_, event)| matches!(event, Event::Banned { .. })).count();
    assert!(asked(&net) > banned && banned <= 2, "{banned} banned, {} asked", asked(&net));
    let mut all = net_of_liars();
    all.run_for(60);
    assert_eq!(all.view(1).have, 0);
    assert_eq!(all.events.iter().filter(|(_, event)| matches!(event, Event::Banned { .. })).count(), 2);
}

fn net_of_liars() -> Net {
    net(&[Some(b"forged"), Some(b"")])
}

#[test]
fn one_without_a_seal_and_one_that_is_silent_are_passed_over() {
    let mut passed = net(&[None, None, Some(SEAL)]);
    passed.run_until("complete", 10, |net| net.is_complete(1));
    let mut net = net(&[Some(SEAL)]);
    net.run_until("asked", 5, |net| asked(net) == 1);
    net.vanished.insert(2);
    net.seed(0);
    net.seals.insert(0, SEAL.to_vec());
    net.connect(0, 1);
    net.run_until("complete from the other", 60, |net| net.is_complete(1));
}

#[test]
fn hashes_come_in_as_many_parts_as_it_takes() {
    let mut net = Net::new(3, 9000);
    let key = net.leech_blindly(1);
    net.seed(2);
    net.seals.insert(2, SEAL.to_vec());
    net.connect(2, 1);
    net.nodes[1].find_metainfo(net.now, key);
    let found = |event: &Event| matches!(event, Event::MetainfoFound { hashes, .. } if hashes.len() == 9000);
    net.run_until("found", 10, |net| net.events.iter().any(|(node, event)| *node == 1 && found(event)));
    let parts = net.sent.iter().filter(|(_, _, frame)| format!("{frame:?}").contains("MetainfoPart")).count();
    assert_eq!(parts, 3);
}

#[test]
fn answers_to_no_question_and_too_many_questions_cost_the_connection() {
    let part = |first, hashes: usize| {
        let hashes = vec![PieceHash([0; 32]); hashes];
        Message::from(MetainfoPart { alias: Alias(0), first, hashes, seal: Vec::new() })
    };
    let ends = |messages: Vec<Message>, asks: bool| {
        let mut net = Net::new(3, 8);
        let key = net.leech_blindly(1);
        net.seed(2);
        let (rogue, _) = net.connect(2, 1);
        net.run_for(1);
        net.vanished.insert(2);
        if asks {
            net.nodes[1].find_metainfo(net.now, key);
            net.run_for(1);
        }
        net.vanished.clear();
        net.silent.insert(1);
        messages.into_iter().for_each(|message| net.forge(2, rogue, message));
        net.run_for(1);
        net.disconnects.iter().map(|(node, _, reason)| (*node, *reason)).next()
    };
    let violation = |violation| Some((1, DisconnectReason::Violation(violation)));
    assert_eq!(ends(vec![part(0, 9)], true), violation(Violation::OutOfRange));
    assert_eq!(ends(vec![part(1, 1)], true), violation(Violation::OutOfRange));
    let question = || Message::FindMetainfo { alias: Alias(0) };
    assert_eq!(
        ends(vec![question(), question()], false),
        violation(Violation::LimitExceeded("questions for metainfo"))
    );
    assert_eq!(ends(vec![part(0, 8)], false), None);
}
