//! The tracker: announces with leases, peer handout.

pub mod state;
