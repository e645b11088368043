//! crane: pulls into an OCI layout. It knows no mirrors: references name the agent.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};

use super::Client;
use crate::node::Node;
use crate::process::output;

/// crane of [`crate::tools`] on a node.
#[derive(Debug)]
pub struct Crane {
    node: Arc<Node>,
    program: PathBuf,
}

impl Crane {
    /// Prepares it on a node.
    #[must_use]
    pub fn new(node: &Arc<Node>, tools: &Path) -> Self {
        Self { node: Arc::clone(node), program: tools.join("crane") }
    }

    fn layout(&self, reference: &str) -> PathBuf {
        self.node.dir().join("crane").join(reference.replace(['/', ':'], "_"))
    }
}

impl Client for Crane {
    fn node(&self) -> &Node {
        &self.node
    }

    fn pull(&self, reference: &str) -> Result<()> {
        let mut command = self.node.bounded(&self.program.to_string_lossy());
        command.args(["pull", "--platform", "linux/amd64", "--format", "oci", reference]).arg(self.layout(reference));
        output(&mut command).map(drop).with_context(|| format!("on {}", self.node.name()))
    }

    fn digest(&self, reference: &str) -> Result<String> {
        let index: serde_json::Value = serde_json::from_slice(&fs::read(self.layout(reference).join("index.json"))?)?;
        index["manifests"][0]["digest"].as_str().map(str::to_owned).with_context(|| format!("no digest in {index}"))
    }

    fn run(&self, _reference: &str, _words: &[&str]) -> Result<Option<String>> {
        Ok(None)
    }
}
