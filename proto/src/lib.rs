//! Protocol buffers of the tracker, the origin, preheating and the peer wire, and their conversions to `shoal-meta`'s words.
//!
//! The code in `generated/` is checked in, so building needs no protoc; a test fails when it drifts from `shoal/*.proto`.
//! Without the feature `grpc` only message types are built: the sans-IO swarm uses those and must not see tokio.
//! This crate must not know what the messages are for.

mod convert;

pub use convert::{ConvertError, access, peer_from_proto, peer_to_proto};

/// A module with the checked-in code of one `.proto` file.
macro_rules! generated {
    ($(#[$doc:meta])* $name:ident, $file:literal) => {
        $(#[$doc])*
        pub mod $name {
            #[allow(
                missing_docs,
                unreachable_pub,
                clippy::all,
                clippy::allow_attributes_without_reason,
                clippy::too_many_lines,
                reason = "generated from the .proto file"
            )]
            pub mod v1 {
                include!(concat!("generated/", $file));
            }
        }
    };
}

generated! {
    /// The tracker's service and messages.
    tracker, "shoal.tracker.v1.rs"
}
generated! {
    /// The origin's service and messages.
    origin, "shoal.origin.v1.rs"
}
generated! {
    /// The service and messages of preheating.
    preheat, "shoal.preheat.v1.rs"
}
generated! {
    /// Control messages of the peer wire.
    wire, "shoal.wire.v1.rs"
}

/// Name of the binary gRPC metadata entry that carries an encoded [`origin::v1::UpstreamError`].
pub const UPSTREAM_ERROR_METADATA: &str = "shoal-upstream-error-bin";
