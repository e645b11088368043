//! OCI distribution, as far as pulling goes: names, paths, ranges and error bodies of the registry protocol, the client
//! of upstream registries, and a small registry to embed in demonstrations and tests.
//!
//! The agent's front and the origin speak to their clients in these words, and both go upstream through [`Upstream`].
//! Nothing here knows of torrents, pieces, stores or peers: a blob is a stream of bytes with a length.
//!
//! Rules are those of the OCI distribution-spec 1.1 unless another source is named.

pub mod embedded;
pub mod error;
pub mod image;
pub mod path;
mod pattern;
mod private_images;
pub mod range;
pub mod reference;
mod secret;
pub mod upstream;

pub use error::{OciCode, OciError};
pub use path::Route;
pub use private_images::PrivateImages;
pub use range::RangeSet;
pub use reference::{Reference, ReferenceError, Repository};
pub use secret::{Secret, TICKET_SCHEME};
pub use upstream::{
    Access, Account, BlobBody, Config, ConfigError, Document, ErrorParts, Givers, Manifest, RegistryConfig, SignedIn,
    Timing, Upstream, UpstreamError,
};

/// The media types of manifests and indexes we ask for when a caller names none: OCI and Docker v2, in that order.
pub const MANIFEST_ACCEPT: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// The `Warning` of a tag that may have moved: the one code and agent that the specification allows (section "Warnings").
pub const STALE_WARNING: &str = "299 - \"Response is Stale\"";

/// The longest manifest, index or listing we take, in bytes: 4 MiB, the limit the specification asks registries to allow.
pub const MANIFEST_LENGTH_MAX: usize = 4 * 1024 * 1024;

/// Cuts a text from outside to what may stand in a message.
pub(crate) fn excerpt(text: &str) -> String {
    const SHOWN: usize = 200;
    text.chars().filter(|character| !character.is_control()).take(SHOWN).collect()
}
