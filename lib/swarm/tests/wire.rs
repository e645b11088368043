//! Facts about the wire codec.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use proptest::prelude::*;
use shoal_meta::{Bitfield, Digest, Geometry, PeerId, PeerInfo, Role, Topology};
use shoal_swarm::wire::{
    Alias, BLOCK_HEADER_LENGTH, CONTROL_LENGTH_MAX, FindPeers, HEADER_LENGTH, Header, Message, Opened, PeerExchange,
    WireBlock, WireError, decode_block_header, decode_control, decode_header, encode_block_header, encode_control,
};

fn peer(id: u8, zone: &str) -> PeerInfo {
    PeerInfo {
        id: PeerId([id; 16]),
        address: ([10, 0, 0, id], 5051).into(),
        role: if id.is_multiple_of(2) { Role::Agent } else { Role::Origin },
        topology: Topology { zone: zone.to_owned(), rack: String::new() },
    }
}

fn header(bytes: &[u8]) -> Result<Header, WireError> {
    decode_header(bytes[..HEADER_LENGTH].try_into().unwrap())
}

fn message() -> impl Strategy<Value = Message> {
    let alias = any::<u32>().prop_map(Alias);
    let block = (any::<u32>(), any::<u32>(), any::<u32>()).prop_map(|(piece, offset, length)| WireBlock {
        piece,
        offset,
        length,
    });
    let blocks = prop::collection::vec(block, 0..50);
    let digest = any::<[u8; 8]>().prop_map(|seed| Digest::sha256_of(&seed));
    let peers = prop::collection::vec((any::<u8>(), "[a-z]{0,10}").prop_map(|(id, zone)| peer(id, &zone)), 0..20);
    let open = (alias.clone(), digest.clone(), 1..5000u64, any::<u64>()).prop_map(|(alias, digest, pieces, bits)| {
        let geometry = Geometry::new(pieces * 16_384 - 1, 16_384).unwrap();
        let mut have = Bitfield::empty(&geometry);
        for piece in geometry.pieces().filter(|piece| bits >> (piece.get() % 64) & 1 == 1) {
            have.insert(piece);
        }
        Opened { alias, digest, geometry, have }.into()
    });
    prop_oneof![
        (any::<u32>(), any::<u8>()).prop_map(|(version, id)| Message::Hello { version, peer: Box::new(peer(id, "z")) }),
        open,
        alias.clone().prop_map(|alias| Message::CloseTorrent { alias }),
        (alias.clone(), prop::collection::vec(any::<u32>(), 0..99))
            .prop_map(|(alias, pieces)| Message::Have { alias, pieces: pieces.into() }),
        alias.clone().prop_map(|alias| Message::HaveAll { alias }),
        Just(Message::Interested),
        any::<bool>().prop_map(|no_room| Message::NotInterested { no_room }),
        any::<u32>().prop_map(|pieces| Message::Unchoke { pieces }),
        Just(Message::Choke),
        (alias.clone(), blocks.clone()).prop_map(|(alias, blocks)| Message::Request { alias, blocks }),
        (alias.clone(), blocks.clone()).prop_map(|(alias, blocks)| Message::Reject { alias, blocks }),
        (alias, blocks).prop_map(|(alias, blocks)| Message::Cancel { alias, blocks }),
        (digest.clone(), peers, any::<Option<u64>>()).prop_map(|(digest, peers, query)| PeerExchange {
            digest,
            peers,
            query
        }
        .into()),
        (digest, 0..=2u32, any::<u64>()).prop_map(|(digest, hops, query)| FindPeers { digest, hops, query }.into()),
    ]
}

proptest! {
    #[test]
    fn a_message_survives_the_wire(message in message()) {
        let mut bytes = Vec::new();
        encode_control(&message, &mut bytes);
        let length = bytes.len() - HEADER_LENGTH;
        prop_assert_eq!(header(&bytes), Ok(Header::Control { length: u32::try_from(length).unwrap() }));
        prop_assert_eq!(decode_control(&bytes[HEADER_LENGTH..]), Ok(Some(message)));
    }

    #[test]
    fn no_bytes_from_a_peer_make_the_codec_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode_control(&bytes);
        if bytes.len() >= HEADER_LENGTH {
            let _ = header(&bytes);
        }
    }
}

#[test]
fn a_block_survives_the_wire() {
    let geometry = Geometry::new(1_000_000, 262_144).unwrap();
    let block = geometry.block(3, 1_000, 77).unwrap();
    let bytes = encode_block_header(Alias(5), block);
    assert_eq!(header(&bytes), Ok(Header::Block { length: 77 }));
    let rest: [u8; BLOCK_HEADER_LENGTH] = bytes[HEADER_LENGTH..].try_into().unwrap();
    let decoded = decode_block_header(rest, 77);
    assert_eq!((decoded.alias, decoded.block.check(&geometry)), (Alias(5), Some(block)));
}

#[test]
fn lengths_out_of_bounds_are_refused_before_anything_is_read() {
    let with = |length: u32, kind: u8| {
        let [a, b, c, d] = length.to_be_bytes();
        decode_header([a, b, c, d, kind])
    };
    assert_eq!(with(0, 0), Err(WireError::ControlLength(0)));
    assert_eq!(with(CONTROL_LENGTH_MAX + 2, 0), Err(WireError::ControlLength(CONTROL_LENGTH_MAX + 2)));
    assert_eq!(with(u32::MAX, 1), Err(WireError::BlockLength(u32::MAX)));
    assert_eq!(with(13, 1), Err(WireError::BlockLength(13)));
    assert_eq!(with(14, 1), Ok(Header::Block { length: 1 }));
    assert_eq!(with(1, 7), Err(WireError::FrameType(7)));
}

#[test]
fn a_message_of_a_newer_version_is_skipped() {
    // Field 99, length-delimited, empty.
    assert_eq!(decode_control(&[0x9a, 0x06, 0x00]), Ok(None));
}

#[test]
fn lists_that_are_too_long_are_refused() {
    let mut bytes = Vec::new();
    let pieces = (0..5000).collect();
    encode_control(&Message::Have { alias: Alias(0), pieces }, &mut bytes);
    assert_eq!(decode_control(&bytes[HEADER_LENGTH..]), Err(WireError::ListLength(5000, 4096)));
}
