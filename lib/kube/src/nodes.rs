//! The nodes of the cluster by their labels. Of a Node nothing else is read, so that ten thousand of them are small and their
//! heartbeats cost nothing.

use std::collections::BTreeMap;

use futures_util::stream::BoxStream;
use k8s_openapi::api::core::v1::Node;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher;
use kube::{Api, Client};

use crate::{Change, changes};

/// The well-known labels of a node's platform.
const OS_LABEL: &str = "kubernetes.io/os";
const ARCHITECTURE_LABEL: &str = "kubernetes.io/arch";

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeLabels {
    /// Its name.
    pub name: String,
    /// All of its labels.
    pub labels: BTreeMap<String, String>,
}

/// What programs a node runs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Platform {
    /// As Go names it, such as `linux`.
    pub os: String,
    /// As Go names it, such as `amd64`.
    pub architecture: String,
}

impl NodeLabels {
    /// Its platform; that of most where its labels say nothing.
    #[must_use]
    pub fn platform(&self) -> Platform {
        let label = |name, default: &str| self.labels.get(name).map_or(default, String::as_str).to_owned();
        Platform { os: label(OS_LABEL, "linux"), architecture: label(ARCHITECTURE_LABEL, "amd64") }
    }

    /// Whether it has each of these labels.
    #[must_use]
    pub fn matches(&self, selector: &BTreeMap<String, String>) -> bool {
        selector.iter().all(|(name, value)| self.labels.get(name) == Some(value))
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

/// Follows the nodes of the cluster.
#[must_use]
pub fn nodes(client: Client) -> BoxStream<'static, Change<NodeLabels>> {
    let api: Api<PartialObjectMeta<Node>> = Api::all(client);
    changes(watcher(api, watcher::Config::default()), "nodes", |node: PartialObjectMeta<Node>| NodeLabels {
        name: node.metadata.name.unwrap_or_default(),
        labels: node.metadata.labels.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_say_what_a_node_runs_and_who_selects_it() {
        let labels = [(ARCHITECTURE_LABEL, "arm64"), ("role", "web")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let node = NodeLabels { name: "a".into(), labels: labels.into() };
        assert_eq!(node.platform().to_string(), "linux/arm64");
        let selector = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
        assert!(node.matches(&BTreeMap::new()) && node.matches(&selector("role", "web")));
        assert!(!node.matches(&selector("role", "db")) && !node.matches(&selector("zone", "")));
    }
}
