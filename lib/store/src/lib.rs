//! Blobs on disk: partial files, verification, commit, eviction.
