//! Drives the sans-IO swarm over sockets and the store.
