//! The node agent: registry front and local peer.
