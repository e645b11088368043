//! The origin's settings: one TOML file, laid over by flags and environment in the program, checked once at the start.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use shoal_kit::{ByteSize, HumanDuration, Rate, Rejected};
use shoal_registry::{PrivateImages, RegistryConfig, Timing};

/// How an origin runs. Every key has a default that works.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where agents call the gRPC service. Default `0.0.0.0:7500`.
    pub listen: SocketAddr,
    /// Where peers connect. Default `0.0.0.0:7501`.
    pub peer_listen: SocketAddr,
    /// Where health, metrics and status are served. Default `0.0.0.0:7502`.
    pub admin_listen: SocketAddr,
    /// Where the origin is a plain pull-through registry over HTTP. Default `0.0.0.0:7503`.
    pub http_listen: SocketAddr,
    /// A directory with `tls.crt` and `tls.key`, the part's certificate and key, and `ca.crt`, its authority's, in PEM, read again
    /// when they change. With it, all that parts say to each other is TLS 1.3, and who has no certificate of that authority for
    /// what it says it is, is refused, at `http_listen` too. Give all parts one, or none. Default: none, plaintext.
    pub certificates: Option<PathBuf>,
    /// The address peers are told to dial. Default: `peer_listen`, with the address of the default route if it is
    /// unspecified.
    pub peer_advertise: Option<SocketAddr>,
    /// The directory of everything kept: blobs in `store/`, manifests in `manifests/`, what
    /// upstream said of tags and open repositories in `notes/`. Default `/var/lib/shoal/origin`.
    pub store: PathBuf,
    /// The most bytes of blobs kept. More saves fetching again what was pulled long ago. Default: 10 % of the disk,
    /// at least 1 GiB, at most 50 GiB.
    pub store_max: Option<ByteSize>,
    /// Free space left to others on the same disk. Default `1GiB`.
    pub free_floor: ByteSize,
    /// The most bytes of manifests kept, 4 KiB each at least. Default `256MiB`.
    pub manifests_max: ByteSize,
    /// Trackers, as `http://host:port`, or as `kubernetes:///service[.namespace]:port`, which are the ready pods of a Service.
    /// Default: none; agents then find peers through the origin's metainfo alone.
    pub trackers: Vec<String>,
    /// The most bytes per second sent to peers. Default: no limit.
    pub upload_rate: Option<Rate>,
    /// The most bytes per second received from peers; upstream does not count. Default: no limit.
    pub download_rate: Option<Rate>,
    /// Whether traffic between peers yields to that of applications: it is marked DSCP "lower effort" (RFC 8622) and has the
    /// lowest socket priority, and its congestion control is TCP-LP where the kernel has it. Pulls then wait for everything
    /// else. Default: false.
    pub background: bool,
    /// The Kubernetes node the origin runs on. Its zone and rack are read from it, unless they are given here. Default: none.
    pub node_name: Option<String>,
    /// The failure zone the origin stands in. Default: the node's label `topology.kubernetes.io/zone`, or unknown.
    pub zone: String,
    /// The rack inside the zone. Default: the node's label `rack_label`, or unknown.
    pub rack: String,
    /// The label of Kubernetes nodes that names their rack. Default `topology.kubernetes.io/rack`.
    pub rack_label: String,
    /// How long a tag is good before upstream is asked again by HEAD. Longer spares upstream and shows a moved tag
    /// later. Default `30s`.
    pub tag_ttl: HumanDuration,
    /// How many blobs are fetched from upstream at a time. Each takes up to two pieces of memory: 512 KiB for blobs under
    /// 192 MiB, at most 8 MiB. Default 32.
    pub fetches_max: usize,
    /// Registries that are not reached as `https://<name>/v2/`. Default: none.
    pub registries: BTreeMap<String, RegistryConfig>,
    /// A file with credentials for requests that bring none, as Docker or a pull secret holds them, read again when it
    /// changes: whoever reaches an agent may pull with them. Default: none.
    pub docker_config: Option<PathBuf>,
    /// The repositories that are served, such as `docker.io` or `registry.example/team/*`; all others are refused with 403.
    /// Default: all.
    pub allow: Vec<String>,
    /// Repositories that are refused with 403, whatever `allow` says. Default: none.
    pub deny: Vec<String>,
    /// What must be shown before something held is given, to agents or others: `strict`, upstream lets these credentials read this repository;
    /// `digest-known`, the content's digest; `off`, nothing. Set the agents' alike. Default `strict`.
    pub private_images: PrivateImages,
    /// Whether upstream is never asked: what is held is served, to whoever reaches the origin or its agents, and anything
    /// else is 404 at once. Default: false.
    pub offline: bool,
    /// Time-outs and retries of upstream requests; not in the file.
    #[serde(skip)]
    pub upstream_timing: Timing,
}

impl Default for Config {
    fn default() -> Self {
        let on_port = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        Self {
            listen: on_port(7500),
            peer_listen: on_port(7501),
            admin_listen: on_port(7502),
            http_listen: on_port(7503),
            certificates: None,
            peer_advertise: None,
            store: PathBuf::from("/var/lib/shoal/origin"),
            store_max: None,
            free_floor: ByteSize::gib(1),
            manifests_max: ByteSize::mib(256),
            trackers: Vec::new(),
            upload_rate: None,
            download_rate: None,
            background: false,
            node_name: None,
            zone: String::new(),
            rack: String::new(),
            rack_label: shoal_kube::RACK_LABEL.to_owned(),
            tag_ttl: HumanDuration(Duration::from_secs(30)),
            fetches_max: 32,
            registries: BTreeMap::new(),
            docker_config: None,
            allow: Vec::new(),
            deny: Vec::new(),
            private_images: PrivateImages::default(),
            offline: false,
            upstream_timing: Timing::default(),
        }
    }
}

/// The most blobs fetched at a time that a configuration may allow: 8 GiB of memory.
const FETCHES_MAX: usize = 1024;

impl Config {
    /// Checks what a type alone cannot hold.
    ///
    /// # Errors
    /// Names the key, the value given and the values accepted.
    pub fn validate(&self) -> Result<(), Rejected> {
        if !(1..=FETCHES_MAX).contains(&self.fetches_max) {
            return Err(Rejected::new("fetches_max", self.fetches_max, "1 to 1024"));
        }
        for label in [&self.zone, &self.rack] {
            if label.len() > 63 {
                return Err(Rejected::new("zone, rack", label, "at most 63 bytes"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_the_defaults() {
        let config: Config = shoal_kit::config::parse("", "origin.toml".as_ref()).unwrap();
        assert_eq!(config.listen, Config::default().listen);
        config.validate().unwrap();
    }

    #[test]
    fn a_rejected_value_names_its_key() {
        let config = Config { fetches_max: 0, ..Config::default() };
        assert_eq!(config.validate().unwrap_err().key, "fetches_max");
        let unknown = shoal_kit::config::parse::<Config>("tag_tll = \"1s\"", "origin.toml".as_ref()).unwrap_err();
        assert!(unknown.to_string().contains("tag_tll"), "{unknown}");
    }
}
