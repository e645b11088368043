//! The tracker: announces with leases, peer handout.
