//! Credentials from a Docker config file (`config.json`, a Kubernetes pull secret's `.dockerconfigjson`, podman's
//! `auth.json`): its `auths`, not its credential helpers.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::ConfigError;
use crate::reference::{DOCKER_HUB, Repository};
use crate::secret::Secret;

/// The longest file we read, in bytes.
const FILE_LENGTH_MAX: u64 = 1024 * 1024;

/// How to prove who we are to one registry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Credential {
    /// A user and a password: the value of an `Authorization` header of the Basic scheme.
    Basic(Secret),
    /// A refresh token, to be exchanged at the token service.
    Identity(Secret),
}

/// All credentials, by registry or by registry and the beginning of a repository name.
#[derive(Debug, Default)]
pub(super) struct Credentials(BTreeMap<String, Credential>);

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default, rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(rename = "credsStore")]
    store: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

impl Credentials {
    pub(super) fn read(path: &Path) -> Result<Self, ConfigError> {
        let refused = |cause: Box<dyn Error + Send + Sync>| ConfigError::DockerConfig { path: path.to_owned(), cause };
        let length = std::fs::metadata(path).map_err(|error| refused(error.into()))?.len();
        if length > FILE_LENGTH_MAX {
            return Err(refused(format!("it is longer than {FILE_LENGTH_MAX} bytes").into()));
        }
        let text = std::fs::read_to_string(path).map_err(|error| refused(error.into()))?;
        Self::parse(&text).map_err(refused)
    }

    fn parse(text: &str) -> Result<Self, Box<dyn Error + Send + Sync>> {
        // serde_json's messages may quote a value: only the place is told.
        let file: File = serde_json::from_str(text)
            .map_err(|error| format!("it is not a Docker config: line {}, column {}", error.line(), error.column()))?;
        if file.store.is_some() || !file.helpers.is_empty() {
            tracing::warn!("credential helpers of the docker config are not run; only its auths are used");
        }
        let mut credentials = BTreeMap::new();
        for (key, entry) in file.auths {
            if let Some(credential) = entry.credential().map_err(|reason| format!("auths.{key:?}: {reason}"))? {
                credentials.insert(normalised(&key), credential);
            }
        }
        Ok(Self(credentials))
    }

    /// The credential for a repository: the one whose key matches most of `registry/name`.
    pub(super) fn find(&self, repository: &Repository) -> Option<&Credential> {
        let path = repository.to_string();
        let mut key = path.as_str();
        loop {
            if let Some(credential) = self.0.get(key) {
                return Some(credential);
            }
            key = key.rsplit_once('/')?.0;
        }
    }
}

impl Entry {
    /// `None` for an entry that a credential helper left empty.
    fn credential(self) -> Result<Option<Credential>, &'static str> {
        let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
        if let Some(token) = filled(self.identitytoken) {
            return Ok(Some(Credential::Identity(Secret::new(token))));
        }
        let pair = match (filled(self.auth), filled(self.username), filled(self.password)) {
            (Some(auth), _, _) => {
                let bytes = STANDARD.decode(auth.trim()).map_err(|_| "auth is not base64")?;
                let pair = String::from_utf8(bytes).map_err(|_| "auth is not UTF-8")?;
                // Docker ends what it wrote with NUL bytes at times.
                let pair = pair.trim_end_matches('\0');
                pair.contains(':').then(|| pair.to_owned()).ok_or("auth is not base64 of user:password")?
            }
            (None, Some(username), Some(password)) => format!("{username}:{password}"),
            (None, _, _) => return Ok(None),
        };
        Ok(Some(Credential::Basic(Secret::new(format!("Basic {}", STANDARD.encode(pair))))))
    }
}

/// A key without scheme and without the legacy `/v1/` or `/v2/`; Docker Hub's hosts under its one name.
fn normalised(key: &str) -> String {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key).trim_end_matches('/');
    let key = key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key);
    let (host, path) = key.split_once('/').map_or((key, None), |(host, path)| (host, Some(path)));
    let host = match host.to_ascii_lowercase().as_str() {
        "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB.to_owned(),
        other => other.to_owned(),
    };
    path.map_or(host.clone(), |path| format!("{host}/{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(config: &str, image: &str) -> Option<Credential> {
        Credentials::parse(config).unwrap().find(&Repository::parse(image).unwrap()).cloned()
    }

    fn basic(pair: &str) -> Option<Credential> {
        Some(Credential::Basic(Secret::new(format!("Basic {}", STANDARD.encode(pair)))))
    }

    #[test]
    fn legacy_keys_are_understood() {
        for key in ["https://index.docker.io/v1/", "index.docker.io", "docker.io", "https://registry-1.docker.io/v2/"] {
            let config = format!(r#"{{"auths":{{"{key}":{{"auth":"{}"}}}}}}"#, STANDARD.encode("me:secret"));
            assert_eq!(find(&config, "nginx"), basic("me:secret"), "{key}");
            assert_eq!(find(&config, "ghcr.io/org/app"), None, "{key}");
        }
        let config = r#"{"auths":{"http://LOCALHOST:5000":{"username":"u","password":"p:q"}},"other":1}"#;
        assert_eq!(find(config, "localhost:5000/app"), basic("u:p:q"));
    }

    #[test]
    fn the_longest_matching_key_decides() {
        let config = r#"{"auths":{
            "quay.io":{"username":"a","password":"a"},
            "quay.io/org":{"username":"b","password":"b"},
            "quay.io/org/app":{"username":"c","password":"c"}}}"#;
        assert_eq!(find(config, "quay.io/other/app"), basic("a:a"));
        assert_eq!(find(config, "quay.io/org/other"), basic("b:b"));
        assert_eq!(find(config, "quay.io/org/app"), basic("c:c"));
        assert_eq!(find(config, "quay.io/organ/app"), basic("a:a"));
    }

    #[test]
    fn an_identity_token_goes_before_a_password_and_an_empty_entry_is_none() {
        let config = r#"{"auths":{"a.io":{"auth":"PHRva2VuPjo=","identitytoken":"t"},"b.io":{}}}"#;
        assert_eq!(find(config, "a.io/x"), Some(Credential::Identity(Secret::new("t"))));
        assert_eq!(find(config, "b.io/x"), None);
    }

    #[test]
    fn a_broken_file_is_refused_without_showing_its_values() {
        for config in
            ["{", "[1]", r#"{"auths":{"a":{"auth":"s3cret!"}}}"#, r#"{"auths":{"a":{"auth":"czNjcmV0IQ=="}}}"#]
        {
            let message = Credentials::parse(config).unwrap_err().to_string();
            assert!(!message.contains("s3cret!"), "{message}");
        }
        let broken = r#"{"auths":{"a":"s3cret!"}}"#;
        assert!(!Credentials::parse(broken).unwrap_err().to_string().contains("s3cret!"));
    }
}
