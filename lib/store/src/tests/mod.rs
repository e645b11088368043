//! Facts about the store as a whole.
