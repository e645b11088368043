//! A worker: a node of the lab with containerd, kubelet and kube-proxy. It can lose its power and come back with its files.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cgroup::Cgroup;
use super::control_plane::ControlPlane;
use super::{FORWARD, PARITY, PAUSE, PODS, path_text};
use crate::node::Node;
use crate::process::{Process, run};
use crate::registry::HOST;
use crate::runtime::Containerd;

/// What programs need of the machine's /etc; the rest of it is not seen.
const ETC: [&str; 7] = ["alternatives", "group", "ld.so.cache", "nsswitch.conf", "os-release", "passwd", "ssl"];

/// A worker, alive or dead.
#[derive(Debug)]
pub(super) struct Worker {
    number: u8,
    name: String,
    alive: Option<Alive>,
}

/// What runs on it.
#[derive(Debug)]
struct Alive {
    // First: all others die with it.
    node: Arc<Node>,
    _containerd: Containerd,
    kubelet: Process,
    _kube_proxy: Process,
    // Last: nothing may run in it.
    _cgroup: Cgroup,
}

impl Worker {
    /// The worker of this number, without power.
    pub(super) fn new(number: u8) -> Self {
        Self { number, name: format!("n{number}"), alive: None }
    }

    /// What it is called.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The addresses of its pods.
    pub(super) fn pods(&self) -> String {
        format!("10.244.{}.0/24", self.number)
    }

    /// Starts everything on its node.
    pub(super) fn boot(&mut self, node: Arc<Node>, control_plane: &ControlPlane, archives: &[PathBuf]) -> Result<()> {
        let first_time = self.prepare(&node, control_plane.ip())?;
        let containerd = Containerd::start_for_kubelet(&node, PAUSE)?;
        if first_time {
            containerd.set_hosts(HOST, &format!("http://{HOST}"), &[])?;
            archives.iter().try_for_each(|archive| containerd.import(archive))?;
        }
        let cgroup = Cgroup::make(&format!("shoal-{}", self.name))?;
        let kubelet = node.start("kubelet", self.kubelet(&node, &cgroup, control_plane)?)?;
        let kube_proxy = node.start("kube-proxy", self.kube_proxy(&node, control_plane)?)?;
        self.alive = Some(Alive { node, _containerd: containerd, kubelet, _kube_proxy: kube_proxy, _cgroup: cgroup });
        Ok(())
    }

    /// Takes its power.
    pub(super) fn kill(&mut self) {
        self.alive = None;
    }

    /// Its node.
    pub(super) fn node(&self) -> Result<&Arc<Node>> {
        Ok(&self.alive()?.node)
    }

    /// What its kubelet says.
    pub(super) fn kubelet_log(&self) -> Option<&Path> {
        self.alive.as_ref().map(|alive| alive.kubelet.log())
    }

    fn alive(&self) -> Result<&Alive> {
        self.alive.as_ref().with_context(|| format!("{} has no power", self.name))
    }

    /// Gives the node the directories of a machine that is only a worker of this cluster. True when it had none.
    fn prepare(&self, node: &Node, dns: Ipv4Addr) -> Result<bool> {
        let var = node.own("/var")?;
        let etc = node.dir().join("own/etc");
        let first_time = !etc.exists();
        if first_time {
            for dir in ["lib", "log", "tmp"] {
                fs::create_dir_all(var.join(dir))?;
            }
            symlink("/run", var.join("run"))?;
            fs::create_dir_all(etc.join("cni/net.d"))?;
            for name in ETC.iter().filter(|name| Path::new("/etc").join(name).exists()) {
                run("cp", [Path::new("-a"), &Path::new("/etc").join(name), &etc])?;
            }
            symlink(node.dir().with_file_name("hosts"), etc.join("hosts"))?;
            fs::write(etc.join("resolv.conf"), format!("nameserver {dns}\n"))?;
            fs::write(etc.join("machine-id"), format!("{:032x}\n", self.number))?;
            fs::write(etc.join("cni/net.d/10-pods.conflist"), self.pod_network().to_string())?;
        }
        node.own("/etc")?;
        node.run("mount", &["-t", "tmpfs", "tmpfs", "/run"])?;
        // Of the mounts that pods share with their node, the kubelet asks this.
        node.run("mount", &["--make-rshared", "/"])?;
        node.run("sh", &["-c", FORWARD])?;
        Ok(first_time)
    }

    fn pod_network(&self) -> Value {
        let ranges = json!([[{ "subnet": self.pods() }]]);
        let bridge = json!({
            "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
            "ipam": { "type": "host-local", "ranges": ranges, "routes": [{ "dst": "0.0.0.0/0" }] },
        });
        let ports = json!({ "type": "portmap", "capabilities": { "portMappings": true } });
        json!({ "cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, ports] })
    }

    fn kubelet(&self, node: &Node, cgroup: &Cgroup, control_plane: &ControlPlane) -> Result<Command> {
        let access = control_plane.access();
        let subject = format!("/O=system:nodes/CN=system:node:{}", self.name);
        let kubeconfig = access.kubeconfig(&self.name, &subject)?;
        let server =
            access.authority.issue(&format!("{}-server", self.name), &subject, &format!("IP:{}", node.ip()))?;
        let config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": { "enabled": false }, "webhook": { "enabled": true },
                "x509": { "clientCAFile": server.ca },
            },
            "authorization": { "mode": "Webhook" },
            "tlsCertFile": server.certificate, "tlsPrivateKeyFile": server.key,
            "cgroupDriver": "cgroupfs", "cgroupRoot": cgroup.path(), "failSwapOn": false,
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "clusterDNS": [control_plane.ip()],
            // It reports by a lease, four times in this time, and else by its status.
            "nodeLeaseDurationSeconds": 8, "nodeStatusUpdateFrequency": "2s",
            // By default in /usr, which is the machine's.
            "volumePluginDir": "/var/lib/kubelet/volume-plugins",
            // The machine's disk is shared by all, and may be nearly full.
            "evictionHard": { "memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%" },
            "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
        });
        let mut kubelet = Self::configured(node, control_plane, "kubelet", &config)?;
        kubelet.arg("--kubeconfig").arg(kubeconfig).args(["--hostname-override", &self.name]);
        kubelet.args(["--node-ip", &node.ip().to_string()]);
        // From the beginning: kube-proxy writes all of its rules anew when a label changes, and takes the API server's Service away
        // where nft tells protocols by number, as Debian's does.
        let parity = if self.number.is_multiple_of(2) { "even" } else { "odd" };
        kubelet.arg(format!("--node-labels={PARITY}={parity}"));
        Ok(kubelet)
    }

    fn kube_proxy(&self, node: &Node, control_plane: &ControlPlane) -> Result<Command> {
        let name = format!("{}-proxy", self.name);
        let kubeconfig = control_plane.access().kubeconfig(&name, "/CN=system:kube-proxy")?;
        let config = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "mode": "nftables", "clusterCIDR": PODS, "hostnameOverride": self.name,
            "clientConnection": { "kubeconfig": kubeconfig },
            // These are the machine's own settings, and not a namespace's.
            "conntrack": {
                "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s",
            },
        });
        Self::configured(node, control_plane, "kube-proxy", &config)
    }

    fn configured(node: &Node, control_plane: &ControlPlane, name: &str, config: &Value) -> Result<Command> {
        let file = node.dir().join(format!("{name}.json"));
        fs::write(&file, config.to_string())?;
        let mut command = node.command(&path_text(&control_plane.tools().join(name)));
        command.arg("--config").arg(file);
        Ok(command)
    }
}
