//! The peer wire: framing, and control messages as checked words. Called by the driver's connections and by tests.
//!
//! A frame is `u32 length` (big endian, of what follows), `u8 type`, body. Type 0 is a control message (protobuf
//! `shoal.wire.v1.Control`); type 1 is a block: `u32 alias, u32 piece, u32 offset` and raw bytes. See
//! docs/adr/0001-peer-wire.md. Every length is checked before anyone allocates for it.

use prost::Message as _;
use shoal_meta::{BLOCK_LENGTH_MAX, Bitfield, BlockRef, Digest, Geometry, PeerInfo, PieceHash};
use shoal_proto::wire::v1 as proto;
use shoal_proto::{ConvertError, peer_from_proto, peer_to_proto};
use smallvec::SmallVec;

/// The wire version we speak.
pub const VERSION: u32 = 1;
/// Bytes of a frame header: length and type.
pub const HEADER_LENGTH: usize = 5;
/// Bytes of a block frame between its header and its payload.
pub const BLOCK_HEADER_LENGTH: usize = 12;
/// The longest control message accepted, in bytes; the largest bitfield takes half of it.
pub const CONTROL_LENGTH_MAX: u32 = 256 * 1024;
/// Most pieces in one Have, and blocks in one Request, Reject or Cancel.
pub const LIST_LENGTH_MAX: usize = 4096;
/// Most peers in one PeerExchange.
pub const PEERS_LENGTH_MAX: usize = 64;
/// Most hashes in one MetainfoPart: half of a message.
pub const HASHES_LENGTH_MAX: usize = 4096;

const TYPE_CONTROL: u8 = 0;
const TYPE_BLOCK: u8 = 1;

/// What a torrent is called on a connection, in its sender's messages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Alias(pub u32);

/// A block as a peer names it, not yet checked against a geometry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct WireBlock {
    /// Piece number.
    pub piece: u32,
    /// Offset in the piece, in bytes.
    pub offset: u32,
    /// Length in bytes.
    pub length: u32,
}

impl From<BlockRef> for WireBlock {
    fn from(block: BlockRef) -> Self {
        Self { piece: block.piece.get(), offset: block.offset, length: block.length }
    }
}

impl WireBlock {
    /// Checks the block against a blob's cut.
    #[must_use]
    pub fn check(self, geometry: &Geometry) -> Option<BlockRef> {
        geometry.block(self.piece, self.offset, self.length)
    }
}

/// Piece numbers of a Have: mostly one, so kept in place.
pub type Pieces = SmallVec<[u32; 4]>;

/// A control message. The aliases in it are its sender's. What is rare and long is boxed: the frequent ones are moved often.
#[derive(Clone, PartialEq, Debug)]
#[expect(missing_docs, reason = "each message and field is documented in proto/shoal/wire.proto")]
pub enum Message {
    Hello { version: u32, peer: Box<PeerInfo> },
    OpenTorrent(Box<Opened>),
    CloseTorrent { alias: Alias },
    Have { alias: Alias, pieces: Pieces },
    HaveAll { alias: Alias },
    Interested,
    NotInterested { no_room: bool },
    Unchoke { pieces: u32 },
    Choke,
    Request { alias: Alias, blocks: Vec<WireBlock> },
    Reject { alias: Alias, blocks: Vec<WireBlock> },
    Cancel { alias: Alias, blocks: Vec<WireBlock> },
    PeerExchange(Box<PeerExchange>),
    FindPeers(Box<FindPeers>),
    FindMetainfo { alias: Alias },
    MetainfoPart(Box<MetainfoPart>),
}

/// The sender takes part in a torrent.
#[derive(Clone, PartialEq, Debug)]
#[expect(missing_docs, reason = "each field is documented in proto/shoal/wire.proto")]
pub struct Opened {
    pub alias: Alias,
    pub digest: Digest,
    pub geometry: Geometry,
    pub have: Bitfield,
}

/// The sender knows peers of a torrent.
#[derive(Clone, PartialEq, Debug)]
#[expect(missing_docs, reason = "each field is documented in proto/shoal/wire.proto")]
pub struct PeerExchange {
    pub digest: Digest,
    pub peers: Vec<PeerInfo>,
    pub query: Option<u64>,
}

/// The sender searches for peers of a torrent.
#[derive(Clone, PartialEq, Debug)]
#[expect(missing_docs, reason = "each field is documented in proto/shoal/wire.proto")]
pub struct FindPeers {
    pub digest: Digest,
    pub hops: u32,
    pub query: u64,
}

/// Some of the hashes of a torrent's pieces.
#[derive(Clone, PartialEq, Debug)]
#[expect(missing_docs, reason = "each field is documented in proto/shoal/wire.proto")]
pub struct MetainfoPart {
    pub alias: Alias,
    pub first: u32,
    pub hashes: Vec<PieceHash>,
    pub seal: Vec<u8>,
}

impl From<MetainfoPart> for Message {
    fn from(part: MetainfoPart) -> Self {
        Self::MetainfoPart(Box::new(part))
    }
}

impl From<Opened> for Message {
    fn from(open: Opened) -> Self {
        Self::OpenTorrent(Box::new(open))
    }
}

impl From<PeerExchange> for Message {
    fn from(exchange: PeerExchange) -> Self {
        Self::PeerExchange(Box::new(exchange))
    }
}

impl From<FindPeers> for Message {
    fn from(find: FindPeers) -> Self {
        Self::FindPeers(Box::new(find))
    }
}

/// What a frame header announces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Header {
    /// A control message of this many bytes follows: [`decode_control`].
    Control {
        /// Bytes of the message.
        length: u32,
    },
    /// A block header of [`BLOCK_HEADER_LENGTH`] bytes follows, then this much payload.
    Block {
        /// Bytes of payload, 1 to 256 KiB.
        length: u32,
    },
}

/// Says what block a block frame carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockHeader {
    /// The sender's alias for the torrent.
    pub alias: Alias,
    /// The block; its length comes from the frame header.
    pub block: WireBlock,
}

/// Says how bytes from a peer are not a frame. Always the peer's fault: close the connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A control frame is empty or longer than [`CONTROL_LENGTH_MAX`].
    #[error("control frame of {0} bytes; at most 262144 are accepted")]
    ControlLength(u32),
    /// A block frame has no payload or more than a block's.
    #[error("block frame of {0} bytes; a block has 1 to 262144")]
    BlockLength(u32),
    /// The frame type is not known.
    #[error("frame type {0} is not known")]
    FrameType(u8),
    /// A control frame is not the protobuf message it should be.
    #[error("malformed control message")]
    Malformed(#[source] prost::DecodeError),
    /// A list in a message is too long.
    #[error("a list of {0} entries in a control message; at most {1} are accepted")]
    ListLength(usize, usize),
    /// A digest, length or bitfield in an OpenTorrent, PeerExchange or FindPeers is malformed.
    #[error("malformed torrent in a control message: {0}")]
    Torrent(String),
    /// A peer in a message is malformed.
    #[error("malformed peer in a control message")]
    Peer(#[source] ConvertError),
}

/// Reads a frame header.
///
/// # Errors
/// When the type is not known or the length is out of bounds.
pub fn decode_header(bytes: [u8; HEADER_LENGTH]) -> Result<Header, WireError> {
    let [a, b, c, d, kind] = bytes;
    let length = u32::from_be_bytes([a, b, c, d]);
    match kind {
        TYPE_CONTROL if (1..=CONTROL_LENGTH_MAX + 1).contains(&length) => Ok(Header::Control { length: length - 1 }),
        TYPE_CONTROL => Err(WireError::ControlLength(length)),
        TYPE_BLOCK => match length.checked_sub(1 + BLOCK_HEADER_LENGTH as u32) {
            Some(length @ 1..=BLOCK_LENGTH_MAX) => Ok(Header::Block { length }),
            Some(_) | None => Err(WireError::BlockLength(length)),
        },
        other => Err(WireError::FrameType(other)),
    }
}

/// Reads what follows the frame header of a block of `length` bytes.
#[must_use]
pub fn decode_block_header(bytes: [u8; BLOCK_HEADER_LENGTH], length: u32) -> BlockHeader {
    let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    BlockHeader { alias: Alias(word(0)), block: WireBlock { piece: word(4), offset: word(8), length } }
}

/// Gives the bytes that precede a block's payload on the wire.
#[must_use]
pub fn encode_block_header(alias: Alias, block: BlockRef) -> [u8; HEADER_LENGTH + BLOCK_HEADER_LENGTH] {
    let mut out = [0; HEADER_LENGTH + BLOCK_HEADER_LENGTH];
    out[..4].copy_from_slice(&(1 + BLOCK_HEADER_LENGTH as u32 + block.length).to_be_bytes());
    out[4] = TYPE_BLOCK;
    out[5..9].copy_from_slice(&alias.0.to_be_bytes());
    out[9..13].copy_from_slice(&block.piece.get().to_be_bytes());
    out[13..].copy_from_slice(&block.offset.to_be_bytes());
    out
}

/// Appends a whole control frame.
pub fn encode_control(message: &Message, out: &mut Vec<u8>) {
    let control = proto::Control { message: Some(to_proto(message)) };
    let length = u32::try_from(control.encoded_len() + 1).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.push(TYPE_CONTROL);
    out.extend_from_slice(&control.encode_to_vec());
}

/// Reads the body of a control frame; `None` for a message of a newer version, which is skipped.
///
/// # Errors
/// When the bytes are not a control message, or something in it is malformed or too long.
pub fn decode_control(bytes: &[u8]) -> Result<Option<Message>, WireError> {
    let control = proto::Control::decode(bytes).map_err(WireError::Malformed)?;
    control.message.map(from_proto).transpose()
}

fn to_proto(message: &Message) -> proto::control::Message {
    use proto::control::Message as Out;
    let blocks = |blocks: &[WireBlock]| {
        blocks.iter().map(|b| proto::Block { piece: b.piece, offset: b.offset, length: b.length }).collect()
    };
    match message {
        Message::Hello { version, peer } => {
            Out::Hello(proto::Hello { version: *version, peer: Some(peer_to_proto(peer)) })
        }
        Message::OpenTorrent(open) => Out::OpenTorrent(open_to_proto(open)),
        Message::CloseTorrent { alias } => Out::CloseTorrent(proto::CloseTorrent { alias: alias.0 }),
        Message::Have { alias, pieces } => Out::Have(proto::Have { alias: alias.0, pieces: pieces.to_vec() }),
        Message::HaveAll { alias } => Out::HaveAll(proto::HaveAll { alias: alias.0 }),
        Message::Interested => Out::Interested(proto::Interested {}),
        Message::NotInterested { no_room } => Out::NotInterested(proto::NotInterested { no_room: *no_room }),
        Message::Unchoke { pieces } => Out::Unchoke(proto::Unchoke { pieces: *pieces }),
        Message::Choke => Out::Choke(proto::Choke {}),
        Message::Request { alias, blocks: list } => {
            Out::Request(proto::Request { alias: alias.0, blocks: blocks(list) })
        }
        Message::Reject { alias, blocks: list } => Out::Reject(proto::Reject { alias: alias.0, blocks: blocks(list) }),
        Message::Cancel { alias, blocks: list } => Out::Cancel(proto::Cancel { alias: alias.0, blocks: blocks(list) }),
        Message::PeerExchange(exchange) => Out::PeerExchange(proto::PeerExchange {
            query: exchange.query,
            digest: exchange.digest.to_string(),
            peers: exchange.peers.iter().map(peer_to_proto).collect(),
        }),
        Message::FindMetainfo { alias } => Out::FindMetainfo(proto::FindMetainfo { alias: alias.0 }),
        Message::MetainfoPart(part) => Out::MetainfoPart(proto::MetainfoPart {
            alias: part.alias.0,
            first_piece: part.first,
            states: part.hashes.iter().flat_map(|hash| hash.0).collect(),
            seal: part.seal.clone(),
        }),
        Message::FindPeers(find) => {
            Out::FindPeers(proto::FindPeers { digest: find.digest.to_string(), hops: find.hops, query: find.query })
        }
    }
}

fn open_to_proto(open: &Opened) -> proto::OpenTorrent {
    let Opened { alias, digest, geometry, have } = open;
    proto::OpenTorrent {
        alias: alias.0,
        digest: digest.to_string(),
        length_bytes: geometry.length(),
        piece_length_bytes: geometry.piece_length(),
        have: if have.is_full() || have.is_empty() { Vec::new() } else { have.to_bytes() },
        have_all: have.is_full(),
    }
}

fn from_proto(message: proto::control::Message) -> Result<Message, WireError> {
    use proto::control::Message as In;
    Ok(match message {
        In::Hello(hello) => Message::Hello {
            version: hello.version,
            peer: Box::new(peer_from_proto(hello.peer.as_ref()).map_err(WireError::Peer)?),
        },
        In::OpenTorrent(open) => open_from_proto(&open)?,
        In::CloseTorrent(close) => Message::CloseTorrent { alias: Alias(close.alias) },
        In::Have(have) => {
            bound(have.pieces.len(), LIST_LENGTH_MAX)?;
            Message::Have { alias: Alias(have.alias), pieces: have.pieces.into() }
        }
        In::HaveAll(all) => Message::HaveAll { alias: Alias(all.alias) },
        In::Interested(_) => Message::Interested,
        In::NotInterested(not) => Message::NotInterested { no_room: not.no_room },
        In::Unchoke(unchoke) => Message::Unchoke { pieces: unchoke.pieces },
        In::Choke(_) => Message::Choke,
        In::Request(list) => Message::Request { alias: Alias(list.alias), blocks: blocks_from_proto(&list.blocks)? },
        In::Reject(list) => Message::Reject { alias: Alias(list.alias), blocks: blocks_from_proto(&list.blocks)? },
        In::Cancel(list) => Message::Cancel { alias: Alias(list.alias), blocks: blocks_from_proto(&list.blocks)? },
        In::PeerExchange(exchange) => {
            bound(exchange.peers.len(), PEERS_LENGTH_MAX)?;
            let peers = exchange.peers.iter().map(|peer| peer_from_proto(Some(peer)));
            let peers = peers.collect::<Result<_, _>>().map_err(WireError::Peer)?;
            PeerExchange { digest: digest(&exchange.digest)?, peers, query: exchange.query }.into()
        }
        In::FindMetainfo(find) => Message::FindMetainfo { alias: Alias(find.alias) },
        In::MetainfoPart(part) => part_from_proto(part)?,
        In::FindPeers(find) => {
            FindPeers { digest: digest(&find.digest)?, hops: find.hops.min(2), query: find.query }.into()
        }
    })
}

fn open_from_proto(open: &proto::OpenTorrent) -> Result<Message, WireError> {
    let torrent = |error: &dyn std::fmt::Display| WireError::Torrent(error.to_string());
    let geometry = Geometry::new(open.length_bytes, open.piece_length_bytes).map_err(|error| torrent(&error))?;
    let have = match (open.have_all, open.have.is_empty()) {
        (true, true) => Bitfield::full(&geometry),
        (true, false) => return Err(torrent(&"have_all beside a bitfield")),
        (false, true) => Bitfield::empty(&geometry),
        (false, false) => Bitfield::from_bytes(&geometry, &open.have).map_err(|error| torrent(&error))?,
    };
    Ok(Opened { alias: Alias(open.alias), digest: digest(&open.digest)?, geometry, have }.into())
}

fn part_from_proto(part: proto::MetainfoPart) -> Result<Message, WireError> {
    let hashes = PieceHash::list(&part.states).ok_or_else(|| WireError::Torrent("half a hash".to_owned()))?;
    bound(hashes.len(), HASHES_LENGTH_MAX)?;
    Ok(MetainfoPart { alias: Alias(part.alias), first: part.first_piece, hashes, seal: part.seal }.into())
}

fn digest(text: &str) -> Result<Digest, WireError> {
    text.parse().map_err(|error: shoal_meta::ParseDigestError| WireError::Torrent(error.to_string()))
}

fn blocks_from_proto(blocks: &[proto::Block]) -> Result<Vec<WireBlock>, WireError> {
    bound(blocks.len(), LIST_LENGTH_MAX)?;
    Ok(blocks.iter().map(|b| WireBlock { piece: b.piece, offset: b.offset, length: b.length }).collect())
}

fn bound(length: usize, max: usize) -> Result<(), WireError> {
    if length > max { Err(WireError::ListLength(length, max)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_small_to_move() {
        assert!(size_of::<Message>() <= 40, "{} bytes", size_of::<Message>());
    }
}
