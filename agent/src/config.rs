//! What an agent is told: addresses, its store, where origins, trackers and registries are.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use shoal_kit::{ByteSize, HumanDuration, Rate, Rejected};
use shoal_kube::{Place, RACK_LABEL};
use shoal_meta::Topology;
use shoal_registry::{PrivateImages, RegistryConfig, Repository};

/// The configuration of one agent.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where runtimes reach the registry front. Default `127.0.0.1:5050`: only this node's.
    pub listen: SocketAddr,
    /// Where health, metrics and status are served. Default `0.0.0.0:5052`.
    pub admin_listen: SocketAddr,
    /// Where peers connect. Default `0.0.0.0:5051`.
    pub peer_listen: SocketAddr,
    /// The address peers are told to dial. Default: `peer_listen`'s; if it names no address, that of the Kubernetes node
    /// `node_name`, or of the default route.
    pub peer_advertise: Option<SocketAddr>,
    /// The Kubernetes node the agent runs on. Its zone, its rack and the address that peers dial are read from it, unless they
    /// are given here. Default: none.
    pub node_name: Option<String>,
    /// Whether the layers of Pods bound to the node `node_name` are fetched from the swarm before its kubelet asks for them, as far
    /// as anybody may have them and the node lacks them. Needs the right to list and watch Pods. Default: true.
    pub prefetch_pods: bool,
    /// The registries that the node's runtime asks for here, such as `docker.io`: of others nothing is fetched for Pods. Default:
    /// all.
    pub prefetch_registries: Vec<String>,
    /// The node's failure zone. Default: the node's label `topology.kubernetes.io/zone`, or unknown.
    pub zone: String,
    /// The node's rack inside the zone. Default: the node's label `rack_label`, or unknown.
    pub rack: String,
    /// The label of Kubernetes nodes that names their rack. Default `topology.kubernetes.io/rack`.
    pub rack_label: String,
    /// Origins, as `http://host:port`, or as `kubernetes:///service[.namespace]:port`, which are the ready pods of a Service.
    /// Default: none; then every blob comes from upstream.
    pub origins: Vec<String>,
    /// Trackers, as `origins`. Default: none; then peers are known from origins and each other only.
    pub trackers: Vec<String>,
    /// A directory with `tls.crt` and `tls.key`, the part's certificate and key, and `ca.crt`, its authority's, in PEM, read again
    /// when they change. With it, all that parts say to each other is TLS 1.3, and who has no certificate of that authority for
    /// what it says it is, is refused. Give all parts one, or none. Default: none, plaintext.
    pub certificates: Option<PathBuf>,
    /// The directory of the store. Default `/var/lib/shoal/agent`.
    pub store: PathBuf,
    /// Most bytes of blobs kept. More keeps more for the neighbours. Default: 10 % of the disk, within 1 and 50 GiB.
    pub store_max: Option<ByteSize>,
    /// Bytes of the disk that are left free, whatever `store_max` says. Default 1 GiB.
    pub free_floor: ByteSize,
    /// Cap on what is sent to peers, such as `200mbit`. Default: none.
    pub upload_rate: Option<Rate>,
    /// Cap on what is received from peers. Default: none.
    pub download_rate: Option<Rate>,
    /// Whether traffic between peers yields to that of applications: it is marked DSCP "lower effort" (RFC 8622) and has the
    /// lowest socket priority, and its congestion control is TCP-LP where the kernel has it. Pulls then wait for everything
    /// else. Default: false.
    pub background: bool,
    /// How long the piece a runtime waits for may make no progress before it is fetched from upstream. Lower reacts faster
    /// to a dead swarm, and costs upstream copies when the swarm is only slow. Default 3 s.
    pub stall_timeout: HumanDuration,
    /// Registries that are not reached as `https://<name>/v2/`. Default: none.
    pub registries: BTreeMap<String, RegistryConfig>,
    /// A file with credentials for requests that bring none, as Docker or a pull secret holds them, read again when it
    /// changes: whoever reaches the front may pull with them. Default: none.
    pub docker_config: Option<PathBuf>,
    /// The repositories that are served, such as `docker.io` or `registry.example/team/*`; all others are refused with 403.
    /// Default: all.
    pub allow: Vec<String>,
    /// Repositories that are refused with 403, whatever `allow` says. Default: none.
    pub deny: Vec<String>,
    /// What must be shown before something held here is given: `strict`, upstream lets these credentials read this repository;
    /// `digest-known`, the content's digest; `off`, nothing. Set the origins' alike. Default `strict`.
    pub private_images: PrivateImages,
    /// Whether upstream is never asked: what the store, peers and origins hold is served, to whoever reaches the front, and
    /// anything else is 404 at once. Default: false.
    pub offline: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 5050)),
            admin_listen: SocketAddr::from(([0, 0, 0, 0], 5052)),
            peer_listen: SocketAddr::from(([0, 0, 0, 0], 5051)),
            peer_advertise: None,
            node_name: None,
            prefetch_pods: true,
            prefetch_registries: Vec::new(),
            zone: String::new(),
            rack: String::new(),
            rack_label: RACK_LABEL.to_owned(),
            origins: Vec::new(),
            trackers: Vec::new(),
            certificates: None,
            store: PathBuf::from("/var/lib/shoal/agent"),
            store_max: None,
            free_floor: ByteSize::gib(1),
            upload_rate: None,
            download_rate: None,
            background: false,
            stall_timeout: HumanDuration(Duration::from_secs(3)),
            registries: BTreeMap::new(),
            docker_config: None,
            allow: Vec::new(),
            deny: Vec::new(),
            private_images: PrivateImages::default(),
            offline: false,
        }
    }
}

impl Config {
    /// Checks what the types alone cannot.
    ///
    /// # Errors
    /// Naming the key, the value given and the values accepted.
    pub fn validate(&self) -> Result<(), Rejected> {
        let stall = self.stall_timeout.get();
        if stall < Duration::from_millis(100) || stall > Duration::from_secs(60) {
            return Err(Rejected::new("stall_timeout", self.stall_timeout, "100ms to 1m"));
        }
        if let Some(advertise) = self.peer_advertise
            && (advertise.ip().is_unspecified() || advertise.port() == 0)
        {
            return Err(Rejected::new("peer_advertise", advertise, "an address and port that peers can dial"));
        }
        self.registries_ahead().map(|_| ())
    }

    /// The registries of which something is fetched for Pods, by their one name; none given means all.
    pub(crate) fn registries_ahead(&self) -> Result<Vec<String>, Rejected> {
        let names = self.prefetch_registries.iter().map(|text| {
            // A registry's name is checked with one of a repository.
            let named = Repository::new(text, "library/any").map(|repository| repository.registry);
            named.map_err(|_| {
                Rejected::new("prefetch_registries", text, "a registry such as docker.io or 10.0.0.5:5000")
            })
        });
        names.collect()
    }

    /// Where the node stands, and what peers are told to dial: as given, and for the rest as Kubernetes knows its node.
    pub(crate) async fn place(&self) -> (Topology, Option<SocketAddr>) {
        let Place { topology, address } = shoal_kube::place_of(self.node_name.as_deref(), &self.rack_label).await;
        let port = self.peer_listen.port();
        // Another address listened on is what others dial, and a port that is not known yet is no use.
        let address = address.filter(|_| self.peer_listen.ip().is_unspecified() && port != 0);
        let topology_given = Topology { zone: self.zone.clone(), rack: self.rack.clone() };
        (topology_given.or(topology), self.peer_advertise.or(address.map(|ip| SocketAddr::new(ip, port))))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_config_is_checked_once_and_the_key_is_named() {
        let parse = |text| shoal_kit::config::parse::<Config>(text, Path::new("agent.toml"));
        let config = parse("stall_timeout = \"1ms\"\n").unwrap();
        let message = config.validate().unwrap_err().to_string();
        assert_eq!(message, "config key `stall_timeout` = 1ms is refused: expected 100ms to 1m");
        assert!(parse("upstream = \"x\"\n").is_err());
        let message = parse("private_images = \"lax\"\n").unwrap_err().to_string();
        let expected = "config key `private_images` = \"lax\" is refused: unknown variant `lax`, expected one of `strict`, \
                        `digest-known`, `off`";
        assert!(message.ends_with(expected), "{message}");
        let registries = "[registries.\"localhost:5000\"]\nplain_http = true\n";
        assert!(parse(registries).unwrap().registries["localhost:5000"].plain_http);
        Config::default().validate().unwrap();
        let registries = parse("prefetch_registries = [\"index.docker.io\", \"LOCALHOST:5000\"]\n").unwrap();
        assert_eq!(registries.registries_ahead().unwrap(), ["docker.io", "localhost:5000"]);
        assert!(parse("prefetch_registries = [\"a/b\"]\n").unwrap().validate().is_err());
    }
}
