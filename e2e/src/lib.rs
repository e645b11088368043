//! End-to-end lab: real container daemons and a real registry on one machine, each node in namespaces of its own, with links
//! shaped in both directions. Called by the tests of this crate and by its benchmark.
//!
//! Participants, from the bottom up: [`lab`] makes the network and its [`node`]s; [`process`] runs programs on them;
//! [`image`] writes images; [`registry`] is Debian's docker-registry, the upstream, with [`tokens`] beside it if it is private,
//! and [`faulty`] what can stand before it and do wrong; [`runtime`] holds the clients (dockerd, containerd, podman, skopeo and others), some of them built by [`tools`];
//! [`program`] starts `shoal`; [`cluster`] puts all of it together; [`kubernetes`] is one, for the chart; [`rogue`] lies to it;
//! [`harness`] runs the tests and counts; [`bench`] measures, and [`soak`] pulls for half an hour while parts are killed.
//!
//! Non-goals: no emulated delay or loss, no mocks, no knowledge of Shoal's insides. Only [`program`] knows its command line
//! and configuration.

pub mod bench;
pub mod cluster;
pub mod faulty;
pub mod harness;
pub mod image;
pub mod kubernetes;
pub mod lab;
pub mod node;
pub mod process;
pub mod program;
pub mod registry;
pub mod rogue;
pub mod runtime;
pub mod soak;
pub mod tls;
pub mod tokens;
pub mod tools;
pub mod usage;
pub mod wait;
