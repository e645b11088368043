//! The control plane: etcd, API server, controller manager, scheduler and a DNS server on one node.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::Result;
use serde_json::json;

use super::access::Access;
use super::{PATIENCE, SERVICES, path_text};
use crate::node::Node;
use crate::process::Process;
use crate::tls::{Authority, Identity};
use crate::wait::wait_until;

const ETCD_PORT: u16 = 2379;
const API_PORT: u16 = 6443;
const CONTROLLERS_PORT: u16 = 10257;
const SCHEDULER_PORT: u16 = 10259;
const DNS_PORT: u16 = 53;
/// The user of whom each request is noted.
const AUDITED: &str = "audited";

/// A running control plane.
#[derive(Debug)]
pub(super) struct ControlPlane {
    node: Arc<Node>,
    tools: PathBuf,
    access: Access,
    administrator: PathBuf,
    /// Signs the tokens of service accounts.
    accounts: Identity,
    processes: Vec<Process>,
}

impl ControlPlane {
    /// Starts it and waits until its API answers.
    pub(super) fn start(node: Arc<Node>, tools: &Path, lab_dir: &Path) -> Result<Self> {
        let access = Access::new(&lab_dir.join("access"), &node.ip().to_string())?;
        let administrator = access.kubeconfig("administrator", "/O=system:masters/CN=administrator")?;
        let tools = tools.to_owned();
        let accounts = access.authority.issue("accounts", "/CN=accounts", "DNS:accounts")?;
        let mut control_plane = Self { node, tools, access, administrator, accounts, processes: Vec::new() };
        control_plane.start_etcd()?;
        control_plane.start_api_server()?;
        control_plane.start_controllers()?;
        control_plane.start_dns(&lab_dir.join("hosts"))?;
        Ok(control_plane)
    }

    /// The address of its API and of the cluster's DNS.
    pub(super) fn ip(&self) -> Ipv4Addr {
        self.node.ip()
    }

    /// The node it is on.
    pub(super) fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// A kubeconfig file of the user of whom each request is noted: an administrator.
    pub(super) fn audited(&self) -> Result<PathBuf> {
        self.access.kubeconfig(AUDITED, &format!("/O=system:masters/CN={AUDITED}"))
    }

    /// Where requests are noted.
    pub(super) fn audit_log(&self) -> PathBuf {
        self.node.dir().join("audit.log")
    }

    /// Where the programs of Kubernetes are.
    pub(super) fn tools(&self) -> &Path {
        &self.tools
    }

    /// Who certifies.
    pub(super) fn access(&self) -> &Access {
        &self.access
    }

    /// Runs a client of the API as the administrator.
    pub(super) fn run(&self, program: &str, words: &[&str]) -> Result<String> {
        let program = path_text(&self.tools.join(program));
        let kubeconfig = format!("KUBECONFIG={}", self.administrator.display());
        // They keep caches there.
        let home = format!("HOME={}", self.node.dir().display());
        self.node.run("env", &[&[kubeconfig.as_str(), &home, &program], words].concat())
    }

    fn start_etcd(&mut self) -> Result<()> {
        let url = format!("http://127.0.0.1:{ETCD_PORT}");
        let mut etcd = self.node.command("etcd");
        etcd.args(["--unsafe-no-fsync", "--listen-client-urls", &url, "--advertise-client-urls", &url]);
        etcd.arg("--data-dir").arg(self.node.dir().join("etcd"));
        self.run_part("etcd", etcd, ETCD_PORT)
    }

    fn start_api_server(&mut self) -> Result<()> {
        let ip = self.node.ip().to_string();
        let Identity { ca, certificate, key } = self.access.api_server(&ip)?;
        let kubelets =
            self.access.authority.issue("kubelets", "/O=system:masters/CN=kube-apiserver", "DNS:kubelets")?;
        let mut server = self.program("kube-apiserver");
        server.args(["--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction"]);
        server.args(["--allow-privileged=true", "--service-account-issuer=https://kubernetes.default.svc"]);
        server.arg(format!("--service-cluster-ip-range={SERVICES}"));
        server.arg(format!("--advertise-address={ip}"));
        server.arg(format!("--etcd-servers=http://127.0.0.1:{ETCD_PORT}"));
        server.args(["--kubelet-preferred-address-types=InternalIP"]);
        let policy = self.node.dir().join("audit-policy.json");
        let rules = json!([{ "level": "Metadata", "users": [AUDITED] }, { "level": "None" }]);
        let noted = json!({ "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": rules });
        fs::write(&policy, noted.to_string())?;
        server.arg("--audit-policy-file").arg(policy).arg("--audit-log-path").arg(self.audit_log());
        for (flag, file) in [
            ("client-ca-file", &ca),
            ("tls-cert-file", &certificate),
            ("tls-private-key-file", &key),
            ("kubelet-certificate-authority", &ca),
            ("kubelet-client-certificate", &kubelets.certificate),
            ("kubelet-client-key", &kubelets.key),
            // A public key, which a certificate holds too.
            ("service-account-key-file", &self.accounts.certificate),
            ("service-account-signing-key-file", &self.accounts.key),
        ] {
            server.arg(format!("--{flag}={}", file.display()));
        }
        self.run_part("kube-apiserver", server, API_PORT)?;
        wait_until("the API to be ready", PATIENCE, || Ok(self.run("kubectl", &["get", "--raw", "/readyz"]).is_ok()))
    }

    fn start_controllers(&mut self) -> Result<()> {
        let Authority { certificate, key, .. } = self.access.authority.clone();
        let mut manager = self.client("kube-controller-manager")?;
        manager.args(["--use-service-account-credentials=true", "--allocate-node-cidrs=false"]);
        // By default in /usr, which is the machine's.
        manager.arg("--flex-volume-plugin-dir").arg(self.node.dir().join("volume-plugins"));
        // A few reports that a worker missed.
        manager.args(["--node-monitor-grace-period=10s", "--node-monitor-period=1s"]);
        for (flag, file) in [
            ("root-ca-file", &certificate),
            ("cluster-signing-cert-file", &certificate),
            ("cluster-signing-key-file", &key),
            ("service-account-private-key-file", &self.accounts.key),
        ] {
            manager.arg(format!("--{flag}={}", file.display()));
        }
        self.run_part("kube-controller-manager", manager, CONTROLLERS_PORT)?;
        let scheduler = self.client("kube-scheduler")?;
        self.run_part("kube-scheduler", scheduler, SCHEDULER_PORT)
    }

    /// For pods, which see no hosts file.
    fn start_dns(&mut self, hosts: &Path) -> Result<()> {
        let mut dns = self.node.command("dnsmasq");
        dns.args(["--keep-in-foreground", "--log-facility=-", "--user=root", "--pid-file="]);
        dns.args(["--no-resolv", "--no-hosts", "--addn-hosts"]).arg(hosts);
        self.run_part("dnsmasq", dns, DNS_PORT)
    }

    /// A program that finds the API by a kubeconfig file, and listens for nobody but the lab.
    fn client(&self, name: &str) -> Result<Command> {
        let kubeconfig = self.access.kubeconfig(name, &format!("/CN=system:{name}"))?;
        let mut command = self.program(name);
        command.args(["--leader-elect=false", "--bind-address=127.0.0.1"]);
        for flag in ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"] {
            command.arg(format!("--{flag}={}", kubeconfig.display()));
        }
        Ok(command)
    }

    fn program(&self, name: &str) -> Command {
        self.node.command(&path_text(&self.tools.join(name)))
    }

    fn run_part(&mut self, name: &str, command: Command, port: u16) -> Result<()> {
        let mut process = self.node.start(name, command)?;
        self.node.wait_listening(&mut process, port)?;
        self.processes.push(process);
        Ok(())
    }
}
