//! What both doors of the origin, gRPC and HTTP, lead into.

use std::sync::Arc;

use crate::authorize::Authorizer;
use crate::gate::Gate;
use crate::ingest::Ingests;
use crate::manifests::Manifests;
use crate::metrics::OriginMetrics;

/// Handles on everything that answers; clones share it.
#[derive(Clone)]
pub(crate) struct Rooms {
    pub(crate) gate: Arc<Gate>,
    pub(crate) authorizer: Arc<Authorizer>,
    pub(crate) manifests: Arc<Manifests>,
    pub(crate) ingests: Ingests,
    pub(crate) metrics: OriginMetrics,
}
