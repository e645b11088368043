//! Pure words of the trade: digests, metainfo, pieces, blocks, bitfields and peers.
//!
//! Every other room speaks in these types. Nothing here does IO, reads a clock or draws a random number, and nothing
//! here knows of the wire, the disk or HTTP.

mod bitfield;
mod digest;
mod geometry;
mod metainfo;
mod peer;
mod piece_hash;
mod rendezvous;

pub use bitfield::{Bitfield, BitfieldError};
pub use digest::{Digest, Hasher, ParseDigestError};
pub use geometry::{
    BLOCK_LENGTH_MAX, BlockRef, Geometry, GeometryError, PIECE_COUNT_MAX, PIECE_LENGTH_MAX, PIECE_LENGTH_MIN,
    PieceIndex,
};
pub use metainfo::{Metainfo, MetainfoError};
pub use peer::{Lead, ParsePeerIdError, PeerId, PeerInfo, Role, Topology};
pub use piece_hash::{PieceHash, PieceHasher};
pub use rendezvous::{Server, rendezvous_order};
