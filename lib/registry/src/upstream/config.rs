//! What the configuration of agent and origin says of upstream registries. Read here, checked where it is used.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::private_images::PrivateImages;

/// How upstream registries are reached.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Registries that differ from the rule `https://<registry>/v2/`, by the name clients call them. Default: none; then
    /// only registries on localhost and 127.0.0.0/8 are reached over plain HTTP, as Docker does.
    pub registries: BTreeMap<String, RegistryConfig>,
    /// Credentials for requests that bring none: a Docker config or a pull secret. Default: none.
    pub docker_config: Option<PathBuf>,
    /// Repositories that are served, as patterns such as `docker.io` or `registry.example/team/*`; all if empty.
    pub allow: Vec<String>,
    /// Repositories that are not served, whatever `allow` says.
    pub deny: Vec<String>,
    /// What must be shown before content that is held is given. Default: strict.
    pub private_images: PrivateImages,
    /// Whether nothing is ever asked of upstream. Default: false.
    pub offline: bool,
    /// Time-outs and retries.
    #[serde(skip)]
    pub timing: Timing,
}

/// How one registry is reached.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistryConfig {
    /// Where it is, such as `https://registry.example:5000`. A path before `/v2/` is kept, and one after it is put before every
    /// repository: `https://harbor.example/v2/proxy`. Default: the registry's own name.
    pub url: Option<String>,
    /// Whether it is reached without TLS. Default: false; a `url` with a scheme decides by itself.
    pub plain_http: bool,
    /// A file of PEM certificates to trust beside the system's. Default: none.
    pub ca_file: Option<PathBuf>,
    /// A PEM file with the certificate chain shown to this registry, and to nobody it redirects to; needs `client_key_file`.
    /// Default: none.
    pub client_cert_file: Option<PathBuf>,
    /// A PEM file with the key of `client_cert_file`. Default: none.
    pub client_key_file: Option<PathBuf>,
    /// Mirrors asked in this order before the registry, written like `url`. Whatever one does not give is asked of the next; one
    /// that is down is left alone for 30 s. A request with credentials of its own goes to the registry alone. TLS and
    /// credentials of a mirror are those of the table for its own host. Default: none.
    pub mirrors: Vec<String>,
    /// Beginnings of repository names, in whole words, and what `url` and `mirrors` have in their place, such as
    /// `{ "library" = "hub/library" }`; `""` is before every name. The longest that matches counts. Default: none.
    pub remap: BTreeMap<String, String>,
    /// Credentials for this registry, looked up before those of `docker_config` and in the same formats. Default: none.
    pub credentials_file: Option<PathBuf>,
}

/// Time-outs and retries of upstream requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Until a TCP connection stands. Default: 5 s.
    pub connect: Duration,
    /// From a request to its headers, with connection and TLS; a mirror has half of it. Default: 10 s.
    pub headers: Duration,
    /// Without one byte of a body, before it counts as stalled. Default: 10 s.
    pub progress: Duration,
    /// The first pause before a retry; it doubles with each and is drawn between half and all of it. Default: 200 ms.
    pub backoff_first: Duration,
    /// The longest pause, and the longest `Retry-After` that is waited for; a longer one is an error. Default: 5 s.
    pub backoff_max: Duration,
    /// How often in a row a request may fail. Default: 4.
    pub attempts: u32,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            headers: Duration::from_secs(10),
            progress: Duration::from_secs(10),
            backoff_first: Duration::from_millis(200),
            backoff_max: Duration::from_secs(5),
            attempts: 4,
        }
    }
}
