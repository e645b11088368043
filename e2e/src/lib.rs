//! End-to-end tests with real daemons in shaped network namespaces.
