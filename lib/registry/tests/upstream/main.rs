//! The upstream client against the embedded registry, over real sockets on loopback.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod blobs;
mod credentials;
mod manifests;
mod mirrors;
mod redirects;
mod rig;
mod rules;
mod tls;
