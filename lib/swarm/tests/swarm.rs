//! Facts about a few swarms on ideal links.

mod net;

use std::time::Duration;

use net::{Net, peer};
use shoal_meta::{Bitfield, Digest, Lead, PeerId, PeerInfo, Role};
use shoal_swarm::wire::{Alias, FindPeers, Message, Opened, PeerExchange, WireBlock};
use shoal_swarm::{Config, DisconnectReason, Event, Frame, OpenTorrent, Swarm, TorrentKey};

fn blocks_sent(net: &Net, from: usize) -> usize {
    net.sent.iter().filter(|(node, _, frame)| *node == from && matches!(frame, Frame::Block { .. })).count()
}

#[test]
fn a_leecher_gets_the_blob_from_a_seeder() {
    let mut net = Net::new(2, 40);
    net.seed(0);
    net.leech(1);
    net.connect(1, 0);
    net.run_until("complete", 10, |net| net.is_complete(1));
    assert_eq!(blocks_sent(&net, 0), 40);
    assert_eq!(net.duplicates, 0);
}

#[test]
fn a_lone_leecher_keeps_the_path_full() {
    let mut net = Net::new(2, 400);
    net.seed(0);
    net.leech(1);
    net.connect(1, 0);
    net.run_until("complete", 60, |net| net.is_complete(1));
    let ideal = 400.0 * 262_144.0 / net.rate;
    let took = net.now.since(shoal_swarm::Time::ZERO).as_secs_f64();
    assert!(took < ideal * 1.02, "{took} s for {ideal} s of bytes");
}

#[test]
fn leechers_swap_pieces_so_that_the_origin_sends_about_one_copy() {
    let mut net = Net::new(9, 200);
    net.super_seed(0, Bitfield::full(&net.geometry));
    (1..9).for_each(|node| {
        net.leech(node);
    });
    net.connect_all();
    net.run_until("all complete", 60, |net| (1..9).all(|node| net.is_complete(node)));
    let copies = blocks_sent(&net, 0) as f64 / 200.0;
    assert!(copies < 1.3, "the origin sent {copies} copies");
    assert!(net.duplicates <= 16, "{} duplicates", net.duplicates);
}

/// An origin that gets its pieces one by one, and leechers connected to it and to each other.
fn growing(leechers: usize, pieces: u64) -> (Net, TorrentKey) {
    let mut net = Net::new(leechers + 1, pieces);
    let key = net.super_seed(0, Bitfield::empty(&net.geometry));
    (1..=leechers).for_each(|node| {
        net.leech(node);
    });
    net.connect_all();
    net.run_for(1);
    (net, key)
}

#[test]
fn a_growing_blob_leaves_the_origin_once() {
    let (mut net, key) = growing(5, 40);
    for piece in net.geometry.pieces().take(39).collect::<Vec<_>>() {
        net.nodes[0].add_piece(net.now, key, piece);
        net.run_until("passed on", 1, |net| (1..6).all(|node| net.view(node).have > piece.get()));
        assert_eq!(blocks_sent(&net, 0), piece.index() + 1, "no second copy while there is a first to come");
    }
}

#[test]
fn what_is_stuck_at_a_silent_peer_is_shown_to_another() {
    let (mut net, key) = growing(4, 12);
    net.silent.insert(1);
    for piece in net.geometry.pieces().take(11).collect::<Vec<_>>() {
        net.nodes[0].add_piece(net.now, key, piece);
    }
    net.run_until("the others have what is there", 6, |net| (2..5).all(|node| net.view(node).have == 11));
}

/// Who got the blocks that went from nodes before `border` to others.
fn crossed(net: &Net, border: usize) -> Vec<usize> {
    let sent = net.sent.iter().filter(|(from, to, _)| *from < border && *to >= border);
    sent.filter(|(_, _, frame)| matches!(frame, Frame::Block { .. })).map(|(_, to, _)| *to).collect()
}

/// Two zones with a seeder in the first, where all others leech and the first two of the second zone lead it.
fn led(first: usize, second: usize, pieces: u64) -> Net {
    let mut net = Net::zones(first, second, pieces);
    net.seed(0);
    for node in 1..first + second {
        let key = net.leech(node);
        if let Some(lead) = node.checked_sub(first).and_then(|rank| Lead::new(u32::try_from(rank).ok()?, 2)) {
            net.nodes[node].lead(net.now, key, lead);
        }
    }
    net.connect_all();
    net
}

#[test]
fn one_copy_crosses_into_a_zone_by_its_leaders() {
    let mut net = led(3, 4, 60);
    net.run_until("all complete", 30, |net| (1..7).all(|node| net.is_complete(node)));
    let crossed = crossed(&net, 3);
    assert_eq!(crossed.len(), 60, "each piece once");
    assert!(crossed.iter().all(|to| [3, 4].contains(to)), "{crossed:?}");
}

#[test]
fn a_zone_without_a_leader_waits_and_then_fetches_by_itself() {
    let mut net = Net::zones(1, 3, 12);
    net.seed(0);
    (1..4).for_each(|node| {
        net.leech(node);
    });
    net.connect_all();
    net.run_for(1);
    assert!(crossed(&net, 1).is_empty());
    net.run_until("all complete", 10, |net| (1..4).all(|node| net.is_complete(node)));
}

#[test]
fn a_zone_whose_leader_is_lost_goes_on() {
    let mut net = led(1, 4, 200);
    net.run_until("on the way", 5, |net| net.view(3).have > 20);
    (2..5).for_each(|node| net.cut(1, node));
    net.cut(1, 0);
    net.run_until("the others complete", 20, |net| (2..5).all(|node| net.is_complete(node)));
}

#[test]
fn a_zone_whose_peer_says_it_has_everything_and_gives_nothing_fetches_across() {
    let mut net = Net::zones(1, 3, 12);
    net.seed(0);
    for node in [2, 3] {
        net.leech(node);
        net.connect(node, 0);
        let (miser, _) = net.connect(1, node);
        net.forge_open(1, miser, Alias(7), Bitfield::full(&net.geometry));
    }
    net.run_until("both complete", 20, |net| [2, 3].iter().all(|&node| net.is_complete(node)));
}

#[test]
fn leaders_that_may_have_few_connections_let_each_other_in() {
    let config = Config { connections_soft_max: 6, connections_max: 6, ..Config::default() };
    let mut net = Net::zones(3, 3, 12);
    let all: Vec<_> = net.nodes.iter().map(|swarm| swarm.me().clone()).collect();
    for (node, me) in all.iter().enumerate() {
        net.nodes[node] = Swarm::new(config.clone(), me.clone(), node as u64);
        let key = net.leech(node);
        net.nodes[node].lead(net.now, key, Lead::ALONE);
    }
    for node in 0..6 {
        let key = net.nodes[node].key(&net.digest).unwrap();
        net.nodes[node].add_peers(net.now, key, &all);
    }
    net.run_until("they meet", 1, |net| (0..6).all(|node| net.nodes[node].connections() >= 3));
}

#[test]
fn peers_that_search_for_the_same_blob_do_not_answer_each_other_for_ever() {
    let mut net = Net::new(2, 4);
    (0..2).for_each(|node| {
        net.leech(node);
    });
    let (there, here) = net.connect(1, 0);
    net.run_for(1);
    let digest = net.digest;
    net.forge(1, there, FindPeers { digest, hops: 1, query: 1 }.into());
    net.forge(0, here, FindPeers { digest, hops: 1, query: 2 }.into());
    net.forge(1, there, PeerExchange { digest, peers: vec![peer(7, Role::Agent)], query: None }.into());
    net.run_for(3);
    let told = net.sent.iter().filter(|(.., frame)| matches!(frame, Frame::Control(Message::PeerExchange(_))));
    assert!(told.count() <= 5, "{}", net.transcript());
}

#[test]
fn the_same_seed_and_inputs_give_the_same_frames() {
    let run = || {
        let mut net = Net::new(5, 60);
        net.seed(0);
        (1..5).for_each(|node| {
            net.leech(node);
        });
        net.connect_all();
        net.run_until("all complete", 60, |net| (1..5).all(|node| net.is_complete(node)));
        net.sent
    };
    assert_eq!(run(), run());
}

#[test]
fn pieces_without_a_known_hash_are_not_asked_for() {
    let mut net = Net::new(2, 10);
    net.seed(0);
    let torrent = OpenTorrent { known: 3, ..net.torrent(Bitfield::empty(&net.geometry)) };
    let key = net.nodes[1].open(net.now, torrent).unwrap();
    net.connect(1, 0);
    net.run_for(3);
    assert_eq!(net.view(1).have, 3);
    net.nodes[1].set_known(net.now, key, 10);
    net.run_until("complete", 5, |net| net.is_complete(1));
}

fn some(net: &Net, pieces: &[u32]) -> Bitfield {
    let mut out = Bitfield::empty(&net.geometry);
    pieces.iter().filter_map(|&piece| net.geometry.piece(piece)).for_each(|piece| {
        out.insert(piece);
    });
    out
}

/// It is shown the first pieces only, and fetches none of them.
#[test]
fn a_super_seeder_gives_a_lone_reader_a_piece_that_it_was_not_shown() {
    let mut net = Net::new(2, 40);
    net.super_seed(0, Bitfield::full(&net.geometry));
    net.leech_some(1, some(&net, &[30]));
    net.connect(1, 0);
    net.run_until("the piece it wants", 5, |net| net.view(1).have == 1);
}

/// They fetch fifteen pieces, are shown eight more, and fetch none of those.
#[test]
fn what_the_first_two_were_shown_is_shown_to_those_who_come_later() {
    let mut net = Net::new(6, 40);
    net.super_seed(0, Bitfield::full(&net.geometry));
    for early in [1, 2] {
        net.leech_some(early, some(&net, &(0..15).collect::<Vec<_>>()));
        net.connect(early, 0);
    }
    let shown = |(from, _, frame): &(usize, usize, Frame)| match frame {
        Frame::Control(Message::Have { pieces, .. }) if *from == 0 => pieces.len(),
        Frame::Control(_) | Frame::Block { .. } => 0,
    };
    net.run_until("shown eight more", 2, |net| net.sent.iter().map(shown).sum::<usize>() >= 23);
    for node in 3..6 {
        net.leech(node);
        [0, 3, 4].into_iter().filter(|other| *other < node).for_each(|other| {
            net.connect(node, other);
        });
    }
    let begun = net.now;
    net.run_until("the others complete", 5, |net| (3..6).all(|node| net.is_complete(node)));
    let (took, ideal) = (net.now.since(begun).as_secs_f64(), 40.0 * 262_144.0 / net.rate);
    assert!(took < 1.5 * ideal, "{took} s for {ideal} s of bytes: they waited for the first two");
}

#[test]
fn what_is_read_comes_before_what_is_fetched_ahead() {
    let mut net = Net::new(2, 20);
    net.seed(0);
    let read = net.leech(1);
    net.nodes[1].add_reader(net.now, read, net.geometry.piece(0).unwrap()).unwrap();
    net.digest = Digest::sha256_of(b"the blob above it");
    net.seed(0);
    net.leech(1);
    net.connect(1, 0);
    net.run_until("what is read", 5, |net| net.nodes[1].torrent(read).unwrap().have == 20);
    let ahead = net.view(1).have;
    assert!(ahead <= 1, "{ahead} pieces came first that nobody reads");
    net.run_until("the rest", 5, |net| net.is_complete(1));
}

#[test]
fn only_wanted_pieces_are_fetched_until_more_are_wanted() {
    let mut net = Net::new(3, 40);
    net.seed(0);
    let torrent = OpenTorrent { wanted: some(&net, &[]), known: 30, ..net.torrent(Bitfield::empty(&net.geometry)) };
    let key = net.nodes[1].open(net.now, torrent).unwrap();
    net.connect(1, 0);
    net.run_for(3);
    assert_eq!((net.view(1).have, blocks_sent(&net, 0)), (0, 0));
    let wanted = some(&net, &[7, 8, 35]);
    net.nodes[1].want(net.now, key, &wanted);
    net.run_until("the two whose hash is known", 5, |net| net.view(1).have == 2);
    net.nodes[1].set_known(net.now, key, 40);
    net.run_until("the third", 5, |net| net.view(1).have == 3);
    // What it has it gives, and it learns where the rest is when it wants that.
    net.leech(2);
    net.connect(2, 1);
    net.run_until("passed on", 5, |net| net.view(2).have == 3);
    let all = Bitfield::full(&net.geometry);
    net.nodes[1].want(net.now, key, &all);
    net.run_until("complete", 30, |net| net.is_complete(1) && net.is_complete(2));
}

#[test]
fn a_piece_from_upstream_is_passed_on() {
    let mut net = Net::new(2, 4);
    let origin = net.leech(0);
    net.leech(1);
    net.connect(1, 0);
    for piece in net.geometry.pieces().collect::<Vec<_>>() {
        net.nodes[0].add_piece(net.now, origin, piece);
        net.run_until("passed on", 5, |net| net.view(1).have == piece.get() + 1);
    }
}

#[test]
fn a_peer_that_wants_nothing_yet_hears_of_a_piece_at_once() {
    let mut net = Net::new(2, 4);
    let (key, _) = (net.leech(0), net.leech(1));
    net.connect(1, 0);
    net.run_for(1);
    let (begun, piece) = (net.now, net.geometry.piece(2).unwrap());
    net.nodes[0].add_piece(net.now, key, piece);
    let have = Frame::Control(Message::Have { alias: key.alias(), pieces: [2].into_iter().collect() });
    net.run_until("told", 1, |net| net.sent.contains(&(0, 1, have.clone())));
    assert_eq!(net.now, begun);
}

#[test]
fn an_interested_peer_hears_of_pieces_when_it_is_unchoked() {
    let mut net = Net::with(3, 41, Config { upload_slots: 1, ..Config::default() });
    let key = net.leech(0);
    (1..3).for_each(|node| {
        net.leech(node);
        net.connect(node, 0);
    });
    let pieces: Vec<_> = net.geometry.pieces().collect();
    let (first, rest) = pieces[..40].split_at(10);
    first.iter().for_each(|piece| net.nodes[0].add_piece(net.now, key, *piece));
    // Both are interested now, and one of them is being served.
    net.run_until("served", 1, |net| blocks_sent(net, 0) > 0);
    let before = net.sent.len();
    rest.iter().for_each(|piece| net.nodes[0].add_piece(net.now, key, *piece));
    let is_have = |frame: &Frame| matches!(frame, Frame::Control(Message::Have { .. }));
    let told = |net: &Net| net.sent[before..].iter().find(|(from, _, frame)| *from == 0 && is_have(frame)).cloned();
    net.run_until("told", 1, |net| told(net).is_some());
    let (_, to, _) = told(&net).unwrap();
    let to_it: Vec<_> =
        net.sent[before..].iter().filter(|sent| (sent.0, sent.1) == (0, to)).map(|sent| &sent.2).collect();
    assert!(is_have(to_it[0]) && matches!(to_it[1], Frame::Control(Message::Unchoke { .. })), "{to_it:?}");
}

#[test]
fn a_lone_reader_is_served_in_order() {
    let mut net = Net::new(2, 64);
    net.seed(0);
    let key = net.leech(1);
    let piece = net.geometry.piece(20).unwrap();
    net.nodes[1].add_reader(net.now, key, piece).unwrap();
    net.connect(1, 0);
    net.run_until("complete", 10, |net| net.is_complete(1));
    assert_eq!(net.verified[&1][..44], (20..64).collect::<Vec<u32>>());
}

#[test]
fn a_silent_peer_delays_nobody_for_long() {
    let mut net = Net::new(3, 40);
    net.seed(0);
    net.seed(1);
    net.silent.insert(1);
    net.leech(2);
    net.connect_all();
    net.run_until("complete", 6, |net| net.is_complete(2));
}

#[test]
fn a_peer_that_never_sends_is_given_up() {
    let mut net = Net::new(2, 40);
    net.seed(0);
    net.silent.insert(0);
    net.leech(1);
    net.connect(1, 0);
    net.run_until("given up", 60, |net| net.disconnects.contains(&(1, 0, DisconnectReason::Snubbed)));
}

#[test]
fn a_peer_that_grants_and_refuses_again_and_again_is_given_up() {
    let mut net = Net::new(2, 1);
    net.leech(1);
    let (liar, _) = net.connect(0, 1);
    let geometry = net.geometry;
    let blocks: Vec<WireBlock> = geometry.pieces().flat_map(|piece| geometry.blocks(piece)).map(Into::into).collect();
    net.forge_open(0, liar, Alias(7), Bitfield::full(&geometry));
    let count = |net: &Net, what: fn(&Message) -> bool| {
        let said =
            net.sent.iter().filter(|(from, _, frame)| *from == 1 && matches!(frame, Frame::Control(m) if what(m)));
        said.count()
    };
    for round in 0..8 {
        net.run_until("it wants the piece", 1, |net| count(net, |m| matches!(m, Message::Interested)) > round);
        net.forge(0, liar, Message::Unchoke { pieces: 1 });
        net.run_until("it asks", 1, |net| count(net, |m| matches!(m, Message::Request { .. })) > round);
        net.forge(0, liar, Message::Reject { alias: Alias(7), blocks: blocks.clone() });
    }
    net.run_until("given up", 1, |net| net.disconnects.contains(&(1, 0, DisconnectReason::Snubbed)));
}

#[test]
fn losing_a_peer_in_mid_piece_loses_no_piece() {
    let mut net = Net::new(3, 40);
    net.seed(0);
    net.seed(1);
    net.leech(2);
    net.connect_all();
    net.run_until("begun", 5, |net| net.view(2).have > 5);
    net.cut(2, 0);
    net.run_until("complete", 10, |net| net.is_complete(2));
}

#[test]
fn a_block_nobody_asked_for_costs_the_connection() {
    let mut net = Net::new(2, 4);
    net.seed(0);
    net.leech(1);
    let (at_leecher, _) = net.connect(1, 0);
    net.run_until("begun", 5, |net| net.view(1).have == 4);
    let header = shoal_swarm::wire::BlockHeader {
        alias: shoal_swarm::wire::Alias(9),
        block: WireBlock { piece: 0, offset: 0, length: 1 },
    };
    net.nodes[1].handle_block(net.now, at_leecher, header).unwrap_err();
    let mut events = std::iter::from_fn(|| net.nodes[1].poll_event());
    assert!(events.any(|event| matches!(event, Event::Disconnect { .. })));
}

#[test]
fn who_cuts_a_blob_otherwise_is_no_peer_for_it_and_breaks_no_rule() {
    let mut net = Net::new(4, 8);
    net.seed(0);
    net.leech(1);
    net.geometry = shoal_meta::Geometry::new(net.geometry.length(), 131_072).unwrap();
    net.leech(2);
    net.seed(3);
    net.connect_all();
    net.run_until("both complete", 10, |net| net.is_complete(1) && net.is_complete(2));
    assert!(net.nodes.iter().all(|node| node.connections() == 3), "{:?}", net.disconnects);
}

#[test]
fn when_both_ends_dial_one_connection_is_left() {
    let mut net = Net::new(2, 4);
    net.connect(0, 1);
    net.connect(1, 0);
    net.run_for(1);
    assert_eq!((net.nodes[0].connections(), net.nodes[1].connections()), (1, 1));
}

#[test]
fn connections_stay_within_their_limit() {
    let config = Config { connections_soft_max: 2, connections_max: 3, ..Config::default() };
    let mut net = Net::with(8, 4, config);
    net.seed(0);
    (1..8).for_each(|node| {
        net.leech(node);
        net.connect(node, 0);
    });
    net.run_for(1);
    assert!(net.nodes[0].connections() <= 3);
}

#[test]
fn whoever_has_what_nobody_connected_has_is_dialled_in_the_end() {
    let config = Config { connections_soft_max: 3, connections_max: 3, ..Config::default() };
    let mut net = Net::with(4, 4, config);
    let key = net.leech(0);
    net.leech(1);
    net.leech(2);
    net.seed(3);
    for (a, b) in [(0, 1), (1, 2), (2, 0)] {
        net.connect(a, b);
    }
    net.run_for(1);
    net.nodes[0].add_peers(net.now, key, &[peer(3, Role::Agent)]);
    net.run_until("all complete", 20, |net| (0..3).all(|node| net.is_complete(node)));
}

#[test]
fn an_origin_that_goes_to_make_room_leaves_no_place_more_than_may_be() {
    let config = Config { connections_soft_max: 2, connections_max: 2, ..Config::default() };
    let mut net = Net::with(5, 4, config);
    (1..5).for_each(|node| {
        net.leech(node);
    });
    for (dialler, listener) in [(2, 1), (3, 1), (1, 0)] {
        net.connect(dialler, listener);
    }
    net.run_for(6);
    assert_eq!(net.nodes[1].connections(), 3, "two, and the origin");
    net.connect(4, 1);
    net.run_for(1);
    assert!(net.nodes[1].connections() <= 2);
}

#[test]
fn an_origin_that_comes_back_is_dialled_by_those_who_have_all_the_connections_they_may() {
    let config = Config { connections_soft_max: 2, connections_max: 2, ..Config::default() };
    let mut net = Net::with(4, 8, config);
    net.seed(0);
    let keys: Vec<_> = (1..4).map(|node| net.leech(node)).collect();
    for (a, b) in [(1, 2), (2, 3), (3, 1)] {
        net.connect(a, b);
    }
    net.run_for(1);
    net.nodes[1].add_peers(net.now, keys[0], &[peer(0, Role::Origin)]);
    net.run_until("the blob came by way of one", 20, |net| (1..4).all(|node| net.is_complete(node)));
}

#[test]
fn peers_that_are_made_up_take_no_place_from_those_the_tracker_names() {
    let mut net = Net::new(3, 8);
    net.seed(2);
    let key = net.leech(0);
    let (_, liar) = net.connect(0, 1);
    for batch in 0..8u8 {
        let nobody = |n: u8| PeerInfo {
            id: PeerId([batch, n, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9]),
            ..peer(9, Role::Origin)
        };
        let peers = (0..64).map(nobody).collect();
        net.forge(1, liar, PeerExchange { digest: net.digest, peers, query: None }.into());
    }
    net.run_for(1);
    let dials = net.events.iter().filter(|(_, event)| matches!(event, Event::Dial(_))).count();
    assert!(dials <= 128, "{dials} peers that do not exist were dialled");
    net.nodes[0].add_peers(net.now, key, &[peer(2, Role::Agent)]);
    net.run_until("complete", 10, |net| net.is_complete(0));
}

#[test]
fn a_peer_found_by_exchange_is_dialled() {
    let mut net = Net::new(4, 400);
    net.seed(0);
    for node in 1..4 {
        net.leech(node);
        net.connect(node, 0);
    }
    net.run_until("peers met", 5, |net| (1..4).all(|node| net.nodes[node].connections() == 3));
}

#[test]
fn without_a_tracker_neighbours_are_asked_who_has_the_blob() {
    let mut net = Net::new(4, 8);
    net.seed(3);
    net.connect(2, 3);
    net.connect(1, 2);
    net.leech(2);
    net.run_for(1);
    net.leech(1);
    net.run_until("found", 20, |net| net.is_complete(1));
}

#[test]
fn a_peer_that_searches_without_end_takes_no_room_from_those_who_search() {
    let mut net = Net::new(4, 8);
    net.seed(0);
    let (flooder, _) = net.connect(1, 0);
    let (asker, _) = net.connect(2, 0);
    net.connect(3, 0);
    let search = |query| FindPeers { digest: shoal_meta::Digest::sha256_of(b"another"), hops: 2, query }.into();
    (0..5000).for_each(|query| net.forge(1, flooder, search(query)));
    net.run_for(1);
    let passed_on = |net: &Net| {
        let on = |(from, to, frame): &&(usize, usize, Frame)| {
            (*from, *to) == (0, 3) && matches!(frame, Frame::Control(Message::FindPeers(_)))
        };
        net.sent.iter().filter(on).count()
    };
    assert!(passed_on(&net) <= 64, "{}", passed_on(&net));
    let before = passed_on(&net);
    net.forge(2, asker, search(9999));
    net.run_for(1);
    assert_eq!(passed_on(&net), before + 1);
}

#[test]
fn a_seeder_without_leechers_becomes_idle() {
    let mut net = Net::new(2, 4);
    let key = net.seed(0);
    net.leech(1);
    net.connect(1, 0);
    net.run_until("idle", 90, |net| net.events.contains(&(0, Event::TorrentIdle(key))));
    assert!(net.now.since(shoal_swarm::Time::ZERO) >= Duration::from_secs(60));
}

#[test]
fn what_nobody_lacks_can_be_let_go_of_at_once_and_is_offered_again_until_it_is_closed() {
    let mut net = Net::new(2, 4);
    let key = net.seed(0);
    let idle = |net: &Net| net.events.iter().filter(|event| **event == (0, Event::TorrentIdle(key))).count();
    net.leech(1);
    net.connect(1, 0);
    net.run_until("a leecher", 5, |net| net.view(0).leechers == 1);
    net.nodes[0].release_idle(net.now);
    assert_eq!(net.nodes[0].poll_event(), None, "somebody lacks a piece");
    net.run_until("none", 20, |net| net.view(0).leechers == 0);
    net.nodes[0].release_idle(net.now);
    net.run_for(1);
    assert_eq!(idle(&net), 1);
    net.run_for(61);
    assert_eq!(idle(&net), 2);
    net.nodes[0].close(net.now, key);
    net.run_for(61);
    assert_eq!(idle(&net), 2);
}

#[test]
fn a_torrent_that_a_leecher_joins_before_anyone_acts_is_not_idle() {
    let mut net = Net::new(2, 4);
    net.seed(0);
    let (_, conn) = net.connect(1, 0);
    let (digest, geometry) = (net.digest, net.geometry);
    net.run_for(59);
    let late = net.now + Duration::from_secs(2);
    net.nodes[0].handle_timeout(late);
    let open = Opened { alias: Alias(0), digest, geometry, have: Bitfield::empty(&geometry) };
    net.nodes[0].handle_message(late, conn, open.into());
    while let Some(event) = net.nodes[0].poll_event() {
        assert!(!matches!(event, Event::TorrentIdle(_)), "it would be closed before the leecher's eyes");
    }
}

#[test]
fn two_seeders_do_not_open_a_torrent_to_each_other_for_ever() {
    let mut net = Net::new(2, 4);
    net.seed(0);
    net.seed(1);
    let (conn, _) = net.connect(0, 1);
    net.run_for(1);
    net.forge_open(0, conn, Alias(7), Bitfield::full(&net.geometry));
    net.run_for(1);
    assert!(net.sent.len() < 10, "{}", net.transcript());
}

#[test]
fn a_wanted_torrent_that_is_not_open_is_named() {
    let mut net = Net::new(2, 4);
    net.leech(1);
    net.connect(1, 0);
    net.run_until("wanted", 5, |net| net.events.contains(&(0, Event::TorrentWanted(net.digest))));
    net.seed(0);
    net.run_until("complete", 5, |net| net.is_complete(1));
}

#[test]
fn a_torrent_closed_in_mid_flight_leaves_nothing_behind() {
    let mut net = Net::new(2, 100);
    net.seed(0);
    let key = net.leech(1);
    net.connect(1, 0);
    net.run_until("begun", 5, |net| net.view(1).have > 3);
    net.nodes[1].close(net.now, key);
    net.run_for(5);
    assert!(net.disconnects.is_empty(), "{:?}", net.disconnects);
    net.leech(1);
    net.run_until("complete", 10, |net| net.is_complete(1));
}

#[test]
fn dead_candidates_are_left_alone_for_a_while() {
    let mut net = Net::new(1, 4);
    let key = net.leech(0);
    net.nodes[0].add_peers(net.now, key, &[peer(9, Role::Agent)]);
    net.run_for(4);
    let dials = net.events.iter().filter(|(_, event)| matches!(event, Event::Dial(_))).count();
    assert!((1..=3).contains(&dials), "{dials} dials in 4 s");
}
