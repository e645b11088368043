//! Where a node stands: its zone, its rack and its address, as its Node object says.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client};
use shoal_meta::Topology;

/// The well-known label of a node's zone.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// How long the API server may take: a part does not start before.
const PATIENCE: Duration = Duration::from_secs(5);

/// The label of a node's rack, unless another is configured.
pub const RACK_LABEL: &str = "topology.kubernetes.io/rack";

/// Where a node stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    /// Its zone and rack; empty where it has none.
    pub topology: Topology,
    /// What others in the cluster dial: its first `InternalIP`.
    pub address: Option<IpAddr>,
}

/// Reads where the node of this name stands, if there is a name; its rack is in the label named. Takes five seconds at most. What
/// cannot be read is not known, and logged.
pub async fn place_of(node: Option<&str>, rack_label: &str) -> Place {
    let Some(node) = node else { return Place::default() };
    let read = async {
        let client = Client::try_default().await?;
        Api::<Node>::all(client).get(node).await
    };
    match tokio::time::timeout(PATIENCE, read).await {
        Ok(Ok(object)) => {
            let place = place(&object, rack_label);
            tracing::info!(node, ?place, "read where the node stands");
            place
        }
        Ok(Err(error)) => {
            tracing::warn!(
                node,
                error = &error as &dyn std::error::Error,
                "cannot read where the node stands; it goes without zone and rack"
            );
            Place::default()
        }
        Err(_) => {
            tracing::warn!(node, "the Kubernetes API server does not answer; the node goes without zone and rack");
            Place::default()
        }
    }
}

fn place(node: &Node, rack_label: &str) -> Place {
    let label = |name| node.metadata.labels.as_ref().and_then(|labels| labels.get(name)).cloned().unwrap_or_default();
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let internal = addresses.filter(|address| address.type_ == "InternalIP");
    Place {
        topology: Topology { zone: label(ZONE_LABEL), rack: label(rack_label) },
        address: internal.filter_map(|address| address.address.parse().ok()).next(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_the_first_internal_address_tell_where_a_node_stands() {
        let node: Node = serde_json::from_value(serde_json::json!({
            "metadata": { "labels": { "topology.kubernetes.io/zone": "eu-1a", "example.com/rack": "r7" } },
            "status": { "addresses": [
                { "type": "ExternalIP", "address": "192.0.2.1" },
                { "type": "InternalIP", "address": "10.0.0.7" },
                { "type": "InternalIP", "address": "fd00::7" },
            ] },
        }))
        .unwrap();
        let topology = Topology { zone: "eu-1a".into(), rack: "r7".into() };
        let expected = Place { topology, address: Some([10, 0, 0, 7].into()) };
        assert_eq!(place(&node, "example.com/rack"), expected);
        assert_eq!(place(&Node::default(), "example.com/rack"), Place::default());
    }
}
