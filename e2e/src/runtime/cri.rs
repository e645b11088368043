//! Pulls as the kubelet makes them: through containerd's CRI plugin, by `crictl`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Client, Containerd};
use crate::node::Node;
use crate::process::output;
use crate::tokens::User;

/// `crictl` of [`crate::tools`] beside a containerd that has its CRI plugin.
#[derive(Debug)]
pub struct Cri {
    containerd: Containerd,
    crictl: PathBuf,
}

impl Cri {
    /// Pulls through this containerd from now on.
    #[must_use]
    pub fn new(containerd: Containerd, tools: &Path) -> Self {
        Self { containerd, crictl: tools.join("crictl") }
    }

    fn crictl(&self, words: &[&str]) -> Result<String> {
        let endpoint = format!("unix://{}", self.containerd.socket().display());
        let mut command = self.node().bounded(&self.crictl.to_string_lossy());
        command.args(["--timeout", "300s", "--runtime-endpoint", &endpoint, "--image-endpoint", &endpoint]);
        output(command.args(words)).with_context(|| format!("on {}", self.node().name()))
    }
}

impl Client for Cri {
    fn node(&self) -> &Node {
        self.containerd.node()
    }

    fn pull(&self, reference: &str) -> Result<()> {
        self.crictl(&["pull", reference]).map(drop)
    }

    /// As the kubelet with the pull secret of a Pod.
    fn pull_as(&self, reference: &str, user: &User) -> Result<()> {
        self.crictl(&["pull", "--creds", &user.with_password(), reference]).map(drop)
    }

    fn digest(&self, reference: &str) -> Result<String> {
        let status: serde_json::Value = serde_json::from_str(&self.crictl(&["inspecti", "-o", "json", reference])?)?;
        let name = status["status"]["repoDigests"][0].as_str();
        let digest = name.and_then(|name| name.split_once('@')).map(|(_, digest)| digest.to_owned());
        digest.with_context(|| format!("no digest in {status}"))
    }

    fn run(&self, reference: &str, words: &[&str]) -> Result<Option<String>> {
        // The plugin's images are in this namespace.
        self.containerd.run_in("k8s.io", reference, words).map(Some)
    }
}
