//! crane: pulls into an OCI layout. It knows no mirrors: references name the agent.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};

use super::Client;
use crate::node::Node;
use crate::process::output;
use crate::tokens::User;

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

    fn crane(&self, words: &[&str]) -> Result<String> {
        let mut command = self.node.bounded(&self.program.to_string_lossy());
        command.env("DOCKER_CONFIG", self.node.dir().join("crane-config"));
        output(command.args(words)).with_context(|| format!("on {}", self.node.name()))
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
        let layout = self.layout(reference);
        let words = ["pull", "--platform", "linux/amd64", "--format", "oci", reference, &layout.to_string_lossy()];
        self.crane(&words).map(drop)
    }

    fn pull_as(&self, reference: &str, user: &User) -> Result<()> {
        let (registry, _) = reference.split_once('/').context("a reference that names a registry")?;
        self.crane(&["auth", "login", "--username", user.name, "--password", user.password, registry])?;
        self.pull(reference)
    }

    fn digest(&self, reference: &str) -> Result<String> {
        let index: serde_json::Value = serde_json::from_slice(&fs::read(self.layout(reference).join("index.json"))?)?;
        index["manifests"][0]["digest"].as_str().map(str::to_owned).with_context(|| format!("no digest in {index}"))
    }

    fn run(&self, _reference: &str, _words: &[&str]) -> Result<Option<String>> {
        Ok(None)
    }
}
