//! The sans-IO swarm: wire codec, picker, choker, torrents.
