//! Credentials for requests that bring none, from files: Docker's `config.json`, podman's `auth.json`, pull secrets of
//! Kubernetes. Asked by `token` when upstream wants to know who we are.
//!
//! A file is read again when it has changed, as a mounted secret does when it is rotated.

mod document;
mod helper;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use self::document::Document;
use self::helper::Helpers;
use super::endpoint::registry_name;
use super::{Config, ConfigError};
use crate::reference::Repository;
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

/// All credentials.
#[derive(Debug, Default)]
pub(super) struct Credentials {
    /// Files that are for one registry, by its name.
    registries: BTreeMap<String, Watched>,
    /// The file for all others, and for what those do not have.
    common: Option<Watched>,
    helpers: Helpers,
}

impl Credentials {
    /// Reads the files a configuration names.
    pub(super) fn open(config: &Config) -> Result<Self, ConfigError> {
        let mut registries = BTreeMap::new();
        for (registry, config) in &config.registries {
            if let Some(path) = &config.credentials_file {
                let key = format!("credentials_file of registry {registry:?}");
                registries.insert(registry_name(registry)?, Watched::open(key, path)?);
            }
        }
        let common = config.docker_config.as_deref().map(|path| Watched::open("docker_config".to_owned(), path));
        Ok(Self { registries, common: common.transpose()?, helpers: Helpers::default() })
    }

    /// The credential for a repository. In each file a helper for its registry goes first, then the entry that fits best,
    /// then the store for all registries.
    pub(super) async fn find(&self, repository: &Repository) -> Option<Credential> {
        for file in self.registries.get(&repository.registry).into_iter().chain(&self.common) {
            let document = file.current();
            if let Some(helper) = document.helper(&repository.registry)
                && let Some(credential) = self.helpers.get(helper, &repository.registry).await
            {
                return Some(credential);
            }
            if let Some(credential) = document.entry(repository) {
                return Some(credential.clone());
            }
            if let Some(store) = document.store()
                && let Some(credential) = self.helpers.get(store, &repository.registry).await
            {
                return Some(credential);
            }
        }
        None
    }
}

/// The entry for a repository in a file that came from elsewhere: helpers and the store that it names are never run.
pub(super) fn entry_of(text: &[u8], repository: &Repository) -> Result<Option<Credential>, Cause> {
    Ok(Document::parse(text)?.entry(repository).cloned())
}

/// A file, as it was when it could last be read.
#[derive(Debug)]
struct Watched {
    key: String,
    path: PathBuf,
    read: Mutex<Read>,
}

#[derive(Debug)]
struct Read {
    /// Of the file last looked at, readable or not; none when there was none.
    stamp: Option<Stamp>,
    document: Arc<Document>,
}

/// What changes when a file is written, or another put in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    length: u64,
    modified: Option<SystemTime>,
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

impl Watched {
    fn open(key: String, path: &Path) -> Result<Self, ConfigError> {
        // Before it is read: a change in between is then seen at the first use.
        let stamp = Stamp::of(path);
        match read(path) {
            Ok(document) => {
                let read = Mutex::new(Read { stamp, document: Arc::new(document) });
                Ok(Self { key, path: path.to_owned(), read })
            }
            Err(cause) => Err(ConfigError::Credentials { key, path: path.to_owned(), cause }),
        }
    }

    /// What the file says now. One that is gone or broken changes nothing until it is whole again.
    fn current(&self) -> Arc<Document> {
        let mut last = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = Stamp::of(&self.path);
        if stamp != last.stamp {
            last.stamp = stamp;
            match read(&self.path) {
                Ok(document) => {
                    last.document = Arc::new(document);
                    tracing::info!(path = %self.path.display(), "credentials are read anew");
                }
                Err(error) => {
                    let (key, path) = (&self.key, self.path.display());
                    tracing::error!(key, %path, error, "credentials cannot be read; using those read before");
                }
            }
        }
        Arc::clone(&last.document)
    }
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(Self { inode: metadata.ino(), length: metadata.len(), modified: metadata.modified().ok() })
    }
}

fn read(path: &Path) -> Result<Document, Cause> {
    if std::fs::metadata(path)?.len() > FILE_LENGTH_MAX {
        return Err(format!("it is longer than {FILE_LENGTH_MAX} bytes").into());
    }
    Document::parse(&std::fs::read(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config_of(password: &str) -> String {
        format!(r#"{{"auths":{{"r.example":{{"username":"me","password":"{password}"}}}}}}"#)
    }

    async fn found(credentials: &Credentials) -> Option<Credential> {
        credentials.find(&Repository::new("r.example", "app").unwrap()).await
    }

    #[tokio::test]
    async fn a_file_is_read_again_when_another_is_put_in_its_place_and_a_broken_one_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        let replace = |text: &str| {
            std::fs::write(directory.path().join("next"), text).unwrap();
            std::fs::rename(directory.path().join("next"), &path).unwrap();
        };
        replace(&config_of("one"));
        let config = Config { docker_config: Some(path.clone()), ..Config::default() };
        let credentials = Credentials::open(&config).unwrap();
        assert_eq!(found(&credentials).await, Some(document::basic("me", "one")));
        replace(&config_of("two"));
        assert_eq!(found(&credentials).await, Some(document::basic("me", "two")));
        replace("{");
        assert_eq!(found(&credentials).await, Some(document::basic("me", "two")));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(found(&credentials).await, Some(document::basic("me", "two")));
        replace(&config_of("three"));
        assert_eq!(found(&credentials).await, Some(document::basic("me", "three")));
    }

    #[tokio::test]
    async fn the_file_of_a_registry_goes_before_the_common_one() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            std::fs::write(directory.path().join(name), text).unwrap();
            Some(directory.path().join(name))
        };
        let own = super::super::RegistryConfig {
            credentials_file: file("own", &config_of("own")),
            ..super::super::RegistryConfig::default()
        };
        let common = file("common", &config_of("common"));
        let other = Config { docker_config: common.clone(), ..Config::default() };
        let config =
            Config { registries: [("R.example".to_owned(), own)].into(), docker_config: common, ..other.clone() };
        assert_eq!(found(&Credentials::open(&config).unwrap()).await, Some(document::basic("me", "own")));
        assert_eq!(found(&Credentials::open(&other).unwrap()).await, Some(document::basic("me", "common")));
    }
}
