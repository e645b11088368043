//! The formats: Docker's config, its forerunner `.dockercfg` without the level `auths`, and a Secret of Kubernetes that
//! holds either. Knows no files and runs nothing.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Cause, Credential};
use crate::pattern::{Pattern, has_wildcards};
use crate::reference::{Repository, one_name};
use crate::secret::Secret;

/// Credentials by registry, or by registry and the beginning of a repository name, and the programs that have more.
#[derive(Debug, Default)]
pub(super) struct Document {
    entries: BTreeMap<String, Credential>,
    /// Keys with wildcards, the narrowest first.
    patterns: Vec<(Pattern, Credential)>,
    /// By registry.
    helpers: BTreeMap<String, String>,
    store: Option<String>,
}

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

impl Document {
    /// Reads any of the formats. Errors never show a value: it may be a password.
    pub(super) fn parse(text: &[u8]) -> Result<Self, Cause> {
        // serde_json's messages may quote a value: only the place is told.
        let mut object: Map<String, Value> = serde_json::from_slice(text)
            .map_err(|error| format!("it is not a JSON object: line {}, column {}", error.line(), error.column()))?;
        if object.get("kind").is_some_and(|kind| kind == "Secret") {
            let text = secret_data(&object)?;
            object = serde_json::from_slice(&text).map_err(|_| "what the Secret holds is not a JSON object")?;
        }
        let is_config = ["auths", "credHelpers", "credsStore"].iter().any(|key| object.contains_key(*key));
        if is_config { Self::from_config(object) } else { Self::from_legacy(object) }
    }

    fn from_config(object: Map<String, Value>) -> Result<Self, Cause> {
        let file = File::deserialize(Value::Object(object)).map_err(|_| "it is not a Docker config")?;
        let mut document = Self::default();
        for (key, entry) in file.auths {
            document.add(&key, entry)?;
        }
        for (registry, helper) in file.helpers {
            document.helpers.insert(normalised(&registry), checked_helper(helper)?);
        }
        document.store = file.store.filter(|store| !store.is_empty()).map(checked_helper).transpose()?;
        document.patterns.sort_by_key(|(pattern, _)| std::cmp::Reverse(pattern.rank()));
        Ok(document)
    }

    /// A `.dockercfg`. Configs without credentials hold other things, which are passed over.
    fn from_legacy(object: Map<String, Value>) -> Result<Self, Cause> {
        let is_entry = |value: &Value| value.get("auth").or(value.get("username")).is_some();
        let auths: Map<_, _> = object.into_iter().filter(|(_, value)| is_entry(value)).collect();
        Self::from_config([("auths".to_owned(), Value::Object(auths))].into_iter().collect())
    }

    fn add(&mut self, key: &str, entry: Entry) -> Result<(), Cause> {
        let credential = entry.credential().map_err(|reason| format!("auths.{key:?}: {reason}"))?;
        let Some(credential) = credential else { return Ok(()) };
        let key = normalised(key);
        if !has_wildcards(&key) {
            self.entries.insert(key, credential);
        } else if let Some(pattern) = Pattern::parse(&key) {
            self.patterns.push((pattern, credential));
        }
        Ok(())
    }

    /// The entry for a repository: the one whose key is most of `registry/name`, or else the narrowest with wildcards.
    pub(super) fn entry(&self, repository: &Repository) -> Option<&Credential> {
        let path = repository.to_string();
        let exact = prefixes(&path).find_map(|key| self.entries.get(key));
        exact.or_else(|| self.patterns.iter().find(|(pattern, _)| pattern.matches(repository)).map(|(_, found)| found))
    }

    /// The name of the helper for a registry.
    pub(super) fn helper(&self, registry: &str) -> Option<&str> {
        self.helpers.get(registry).map(String::as_str)
    }

    /// The name of the helper for all registries.
    pub(super) fn store(&self) -> Option<&str> {
        self.store.as_deref()
    }
}

impl Entry {
    /// `None` for an entry that a credential helper left empty.
    fn credential(self) -> Result<Option<Credential>, &'static str> {
        let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
        if let Some(token) = filled(self.identitytoken) {
            return Ok(Some(Credential::Identity(Secret::new(token))));
        }
        match (filled(self.auth), filled(self.username), filled(self.password)) {
            (Some(auth), _, _) => {
                let bytes = STANDARD.decode(auth.trim()).map_err(|_| "auth is not base64")?;
                let pair = String::from_utf8(bytes).map_err(|_| "auth is not UTF-8")?;
                // Docker ends what it wrote with NUL bytes at times.
                let pair = pair.trim_end_matches('\0').split_once(':').ok_or("auth is not base64 of user:password")?;
                Ok(Some(basic(pair.0, pair.1)))
            }
            (None, Some(username), Some(password)) => Ok(Some(basic(&username, &password))),
            (None, _, _) => Ok(None),
        }
    }
}

pub(super) fn basic(username: &str, password: &str) -> Credential {
    Credential::Basic(Secret::basic(username, password))
}

/// A path, and what remains of it word by word.
fn prefixes(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |key| key.rsplit_once('/').map(|(key, _)| key))
}

/// The file inside a Secret of one of the types for pull secrets.
fn secret_data(secret: &Map<String, Value>) -> Result<Vec<u8>, Cause> {
    let field = |holder: &str| {
        let holder = secret.get(holder)?;
        holder.get(".dockerconfigjson").or(holder.get(".dockercfg"))?.as_str()
    };
    match (field("data"), field("stringData")) {
        (Some(encoded), _) => {
            Ok(STANDARD.decode(encoded.trim()).map_err(|_| "the data of the Secret is not base64")?)
        }
        (None, Some(text)) => Ok(text.as_bytes().to_vec()),
        (None, None) => Err("the Secret holds neither .dockerconfigjson nor .dockercfg".into()),
    }
}

/// The end of a program's name, and no path to one.
fn checked_helper(name: String) -> Result<String, Cause> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if !name.is_empty() && name.bytes().all(is_plain) {
        Ok(name)
    } else {
        Err("a credential helper's name is not letters, digits, '-', '_' and '.'".into())
    }
}

/// A key without scheme and without the legacy `/v1/` or `/v2/`; Docker Hub's hosts under its one name.
fn normalised(key: &str) -> String {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key).trim_end_matches('/');
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    // As in Kubernetes, a path may follow the version, or be it.
    let path = ["v1", "v2"].iter().find_map(|version| path.strip_prefix(version)).map_or(path, |rest| {
        if rest.is_empty() || rest.starts_with('/') { rest.trim_start_matches('/') } else { path }
    });
    let host = one_name(host);
    if path.is_empty() { host } else { format!("{host}/{path}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(config: &str, image: &str) -> Option<Credential> {
        Document::parse(config.as_bytes()).unwrap().entry(&Repository::parse(image).unwrap()).cloned()
    }

    #[test]
    fn legacy_keys_are_understood() {
        for key in ["https://index.docker.io/v1/", "index.docker.io", "docker.io", "https://registry-1.docker.io/v2/"] {
            let config = format!(r#"{{"auths":{{"{key}":{{"auth":"{}"}}}}}}"#, STANDARD.encode("me:secret"));
            assert_eq!(find(&config, "nginx"), Some(basic("me", "secret")), "{key}");
            assert_eq!(find(&config, "ghcr.io/org/app"), None, "{key}");
        }
        let config = r#"{"auths":{"http://LOCALHOST:5000":{"username":"u","password":"p:q"}},"other":1}"#;
        assert_eq!(find(config, "localhost:5000/app"), Some(basic("u", "p:q")));
        let config = r#"{"auths":{"https://r.io/v2/org/":{"username":"u","password":"p"}}}"#;
        assert_eq!(find(config, "r.io/org/app"), Some(basic("u", "p")));
        assert_eq!(find(config, "r.io/v2/app"), None);
    }

    #[test]
    fn the_longest_matching_key_decides_and_a_name_goes_before_a_wildcard() {
        let config = r#"{"auths":{
            "quay.io":{"username":"a","password":"a"},
            "quay.io/org":{"username":"b","password":"b"},
            "quay.io/org/app":{"username":"c","password":"c"},
            "*.io":{"username":"d","password":"d"},
            "*.io/org/app":{"username":"e","password":"e"},
            "*.gcr.io":{"username":"f","password":"f"},
            "eu*.gcr.io":{"username":"g","password":"g"}}}"#;
        for (image, user) in [
            ("quay.io/other/app", "a"),
            ("quay.io/org/other", "b"),
            ("quay.io/org/app", "c"),
            ("quay.io/organ/app", "a"),
            ("ghcr.io/app", "d"),
            ("ghcr.io/org/app", "e"),
            ("us.gcr.io/app", "f"),
            ("eu.gcr.io/app", "g"),
        ] {
            assert_eq!(find(config, image), Some(basic(user, user)), "{image}");
        }
        assert_eq!(find(config, "r.example/app"), None);
    }

    #[test]
    fn an_identity_token_goes_before_a_password_and_an_empty_entry_is_none() {
        let config = r#"{"auths":{"a.io":{"auth":"PHRva2VuPjo=","identitytoken":"t"},"b.io":{}}}"#;
        assert_eq!(find(config, "a.io/x"), Some(Credential::Identity(Secret::new("t"))));
        assert_eq!(find(config, "b.io/x"), None);
    }

    #[test]
    fn pull_secrets_are_read_as_they_are_mounted_and_as_kubectl_prints_them() {
        let auth = STANDARD.encode("me:secret");
        let legacy = format!(r#"{{"https://index.docker.io/v1/":{{"auth":"{auth}","email":"me@example.com"}}}}"#);
        let config = format!(r#"{{"auths":{{"docker.io":{{"auth":"{auth}"}}}}}}"#);
        let secret = |key: &str, text: &str| {
            let data = serde_json::json!({ key: STANDARD.encode(text) });
            serde_json::json!({ "apiVersion": "v1", "kind": "Secret", "data": data }).to_string()
        };
        let plain = serde_json::json!({ "kind": "Secret", "stringData": { ".dockerconfigjson": config } }).to_string();
        for text in [&legacy, &secret(".dockercfg", &legacy), &secret(".dockerconfigjson", &config), &plain] {
            assert_eq!(find(text, "nginx"), Some(basic("me", "secret")), "{text}");
        }
        assert!(Document::parse(br#"{"kind":"Secret","data":{"password":"eA=="}}"#).is_err());
    }

    #[test]
    fn a_config_without_credentials_has_none() {
        assert_eq!(find("{}", "nginx"), None);
        assert_eq!(find(r#"{"experimental":"enabled","proxies":{"default":{"httpProxy":"x"}}}"#, "nginx"), None);
    }

    #[test]
    fn helpers_are_found_by_registry_and_are_no_paths() {
        let config = r#"{"credHelpers":{"https://gcr.io":"gcloud","index.docker.io":"hub"},"credsStore":"pass"}"#;
        let document = Document::parse(config.as_bytes()).unwrap();
        assert_eq!(document.helper("gcr.io"), Some("gcloud"));
        assert_eq!(document.helper("docker.io"), Some("hub"));
        assert_eq!(document.helper("quay.io"), None);
        assert_eq!(document.store(), Some("pass"));
        for name in ["../evil", "/bin/sh", "", "a b"] {
            let config = serde_json::json!({ "credHelpers": { "gcr.io": name } }).to_string();
            assert!(Document::parse(config.as_bytes()).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_broken_file_is_refused_without_showing_its_values() {
        let secret = r#"{"kind":"Secret","data":{".dockerconfigjson":"czNjcmV0IQ=="}}"#;
        for config in [
            "{",
            "[1]",
            r#"{"auths":{"a":"s3cret!"}}"#,
            r#"{"auths":{"a":{"auth":"s3cret!"}}}"#,
            r#"{"auths":{"a":{"auth":"czNjcmV0IQ=="}}}"#,
            secret,
        ] {
            let message = Document::parse(config.as_bytes()).unwrap_err().to_string();
            assert!(!message.contains("s3cret!"), "{message}");
        }
    }
}
