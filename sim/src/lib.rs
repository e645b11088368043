//! Deterministic simulator of whole swarms over the shipped lib/swarm.
