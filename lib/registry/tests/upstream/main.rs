//! The upstream client against the embedded registry, over real sockets on loopback.

mod blobs;
mod credentials;
mod manifests;
mod rig;
