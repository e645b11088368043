//! Who is who in a cluster: certificates and the kubeconfig files that name them. Used by control plane and workers.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::json;

use crate::tls::{Authority, Identity};

/// The address of the API within the cluster: the first of the services' addresses.
const SERVICE_IP: &str = "10.96.0.1";

/// Certifies everybody of one cluster.
#[derive(Debug)]
pub(super) struct Access {
    dir: PathBuf,
    url: String,
    pub(super) authority: Authority,
}

impl Access {
    /// For an API server on this address.
    pub(super) fn new(dir: &Path, ip: &str) -> Result<Self> {
        let authority = Authority::make(dir)?;
        Ok(Self { dir: dir.to_owned(), url: format!("https://{ip}:6443"), authority })
    }

    /// What the API server shows.
    pub(super) fn api_server(&self, ip: &str) -> Result<Identity> {
        let names = format!("DNS:kubernetes.default.svc,IP:{ip},IP:{SERVICE_IP},IP:127.0.0.1");
        self.authority.issue("api-server", "/CN=kube-apiserver", &names)
    }

    /// A kubeconfig file for a subject, of which the common name is the user and the organization the group.
    pub(super) fn kubeconfig(&self, name: &str, subject: &str) -> Result<PathBuf> {
        let Identity { ca, certificate, key } = self.authority.issue(name, subject, &format!("DNS:{name}"))?;
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{ "name": "lab", "cluster": { "server": self.url, "certificate-authority": ca } }],
            "users": [{ "name": name, "user": { "client-certificate": certificate, "client-key": key } }],
            "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": name } }],
        });
        let file = self.dir.join(format!("{name}.kubeconfig"));
        fs::write(&file, config.to_string())?;
        Ok(file)
    }
}
