//! OCI distribution: references, upstream client, error bodies.
