//! Protocol buffers of the tracker, the origin, preheating and the peer wire, and their conversions to `shoal-meta`'s words.
//!
//! The code in `generated/` is checked in, so building needs no protoc; a test fails when it drifts from `shoal/*.proto`.
//! Without the feature `grpc` only message types are built: the sans-IO swarm uses those and must not see tokio.
//! This crate must not know what the messages are for.

mod convert;

pub use convert::{ConvertError, access, peer_from_proto, peer_to_proto};

/// The tracker's service and messages.
pub mod tracker {
    #[allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::allow_attributes_without_reason,
        clippy::too_many_lines,
        reason = "generated from shoal/tracker.proto"
    )]
    pub mod v1 {
        include!("generated/shoal.tracker.v1.rs");
    }
}

/// The origin's service and messages.
pub mod origin {
    #[allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::allow_attributes_without_reason,
        clippy::too_many_lines,
        reason = "generated from shoal/origin.proto"
    )]
    pub mod v1 {
        include!("generated/shoal.origin.v1.rs");
    }
}

/// The service and messages of preheating.
pub mod preheat {
    #[allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::allow_attributes_without_reason,
        clippy::too_many_lines,
        reason = "generated from shoal/preheat.proto"
    )]
    pub mod v1 {
        include!("generated/shoal.preheat.v1.rs");
    }
}

/// Control messages of the peer wire.
pub mod wire {
    #[allow(
        missing_docs,
        unreachable_pub,
        clippy::all,
        clippy::allow_attributes_without_reason,
        clippy::too_many_lines,
        reason = "generated from shoal/wire.proto"
    )]
    pub mod v1 {
        include!("generated/shoal.wire.v1.rs");
    }
}

/// Name of the binary gRPC metadata entry that carries an encoded [`origin::v1::UpstreamError`].
pub const UPSTREAM_ERROR_METADATA: &str = "shoal-upstream-error-bin";
