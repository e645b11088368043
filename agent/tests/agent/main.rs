//! The agent over real sockets: a registry that misbehaves when told to, a real origin and tracker, real stores.

mod authorize;
mod fallback;
mod rig;
mod serve;
mod swarm;
