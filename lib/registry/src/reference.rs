//! What an image is called: registry, repository name, tag or digest.
//!
//! Every name that came from a client or a configuration passes through here before it is put into a URL.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use shoal_meta::{Digest, ParseDigestError};

use crate::excerpt;

/// The longest repository name or registry host, in characters; the specification's own advice for both together.
pub const NAME_LENGTH_MAX: usize = 255;
/// The longest tag, in characters (distribution-spec, "Pulling manifests").
pub const TAG_LENGTH_MAX: usize = 128;
/// The registry that is meant when none is named.
pub const DOCKER_HUB: &str = "docker.io";

/// A repository in a registry, its names checked: only [`Repository::new`] and the parsers here make one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub struct Repository {
    /// The registry's host, with the port if it is not the default one: `docker.io`, `10.0.0.5:5000`. Lower case.
    pub registry: String,
    /// The name inside the registry: `library/nginx`.
    pub name: String,
}

/// Names a manifest inside a repository.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Reference {
    /// A name that may move.
    Tag(String),
    /// The content itself.
    Digest(Digest),
}

/// Says which part of a reference is not one. The client's fault; not retryable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// The registry is not `host`, `host:port`, `[v6]` or `[v6]:port`.
    #[error("registry {0:?} is not a host name or address with an optional port")]
    Registry(String),
    /// The repository name is outside the grammar of the distribution-spec.
    #[error("repository name {0:?} is not lower-case words joined by '/', '.', '_' or '-', of at most 255 characters")]
    Name(String),
    /// The tag is outside the grammar of the distribution-spec.
    #[error("tag {0:?} is not 1 to 128 characters of letters, digits, '.', '_' and '-'")]
    Tag(String),
    /// The digest is malformed, or of an algorithm we cannot verify.
    #[error("the reference's digest is malformed")]
    Digest(#[source] ParseDigestError),
}

impl Repository {
    /// Checks a registry and a name. Docker Hub's other hosts become `docker.io`, and a one-word name there gets its
    /// `library/`, as Docker does.
    ///
    /// # Errors
    /// When either is outside its grammar.
    pub fn new(registry: &str, name: &str) -> Result<Self, ReferenceError> {
        let registry = checked_registry(registry)?;
        let bare = registry == DOCKER_HUB && !name.contains('/');
        let name = if bare { format!("library/{name}") } else { name.to_owned() };
        if !is_name(&name) {
            return Err(ReferenceError::Name(excerpt(&name)));
        }
        Ok(Self { registry, name })
    }

    /// Splits `ghcr.io/org/app` or `org/app`: the first word is a registry if it has a `.` or `:` or is `localhost`.
    ///
    /// # Errors
    /// When either part is outside its grammar.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let (registry, name) = split_registry(text);
        Self::new(registry, name)
    }
}

/// Splits a reference as users write it: `nginx`, `ghcr.io/org/app:1.2`, `localhost:5000/app@sha256:…`. The tag is `latest`
/// if none is given; with a tag and a digest the digest decides.
///
/// # Errors
/// When a part is outside its grammar.
pub fn parse_image(text: &str) -> Result<(Repository, Reference), ReferenceError> {
    let (named, digest) = match text.split_once('@') {
        Some((named, digest)) => (named, Some(digest.parse().map_err(ReferenceError::Digest)?)),
        None => (text, None),
    };
    let (name, tag) = match named.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        Some(_) | None => (named, "latest"),
    };
    let tag = Reference::tag(tag)?;
    Ok((Repository::parse(name)?, digest.map_or(tag, Reference::Digest)))
}

impl Reference {
    fn tag(text: &str) -> Result<Self, ReferenceError> {
        if is_tag(text) { Ok(Self::Tag(text.to_owned())) } else { Err(ReferenceError::Tag(excerpt(text))) }
    }

    /// The digest, if the reference is one.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        match self {
            Self::Tag(_) => None,
            Self::Digest(digest) => Some(digest),
        }
    }
}

/// Splits off the registry: the first word if it looks like one, else Docker Hub.
pub(crate) fn split_registry(text: &str) -> (&str, &str) {
    text.split_once('/').filter(|(first, _)| is_registry_like(first)).unwrap_or((DOCKER_HUB, text))
}

/// Whether the first word of a path names a registry and not a repository, by Docker's rule.
pub(crate) fn is_registry_like(word: &str) -> bool {
    word.contains(['.', ':']) || word == "localhost"
}

fn checked_registry(text: &str) -> Result<String, ReferenceError> {
    let refused = || ReferenceError::Registry(excerpt(text));
    if text.len() > NAME_LENGTH_MAX {
        return Err(refused());
    }
    let registry = text.to_ascii_lowercase();
    let (host, port) = match registry.strip_prefix('[') {
        Some(rest) => {
            let (address, rest) = rest.split_once(']').ok_or_else(refused)?;
            let is_v6 = matches!(address.parse(), Ok(IpAddr::V6(_)));
            let port = match rest {
                "" => None,
                rest => Some(rest.strip_prefix(':').ok_or_else(refused)?),
            };
            (is_v6, port)
        }
        None => match registry.split_once(':') {
            Some((host, port)) => (is_host(host), Some(port)),
            None => (is_host(&registry), None),
        },
    };
    let port_is_fine = port.is_none_or(|port| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok());
    if !host || !port_is_fine {
        return Err(refused());
    }
    Ok(one_name(&registry))
}

/// A host in lower case, and Docker Hub's under its one name.
pub(crate) fn one_name(host: &str) -> String {
    match host.to_ascii_lowercase() {
        hub if matches!(hub.as_str(), "index.docker.io" | "registry-1.docker.io") => DOCKER_HUB.to_owned(),
        host => host,
    }
}

fn is_host(host: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.split('.').all(is_label)
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*`, at most [`NAME_LENGTH_MAX`] long.
fn is_name(name: &str) -> bool {
    name.len() <= NAME_LENGTH_MAX && name.split('/').all(is_name_component)
}

fn is_name_component(component: &str) -> bool {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_separator = |s: &str| matches!(s, "." | "_" | "__") || (!s.is_empty() && s.bytes().all(|b| b == b'-'));
    let mut rest = component;
    loop {
        let after_word = rest.trim_start_matches(is_word);
        if after_word.len() == rest.len() {
            return false;
        }
        let next = after_word.trim_start_matches(|c| !is_word(c));
        if after_word.is_empty() {
            return true;
        }
        if !is_separator(&after_word[..after_word.len() - next.len()]) {
            return false;
        }
        rest = next;
    }
}

/// `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
fn is_tag(tag: &str) -> bool {
    tag.len() <= TAG_LENGTH_MAX
        && tag.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
        && tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

impl FromStr for Reference {
    type Err = ReferenceError;

    /// A text with a `:` is a digest, any other a tag.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains(':') {
            text.parse().map(Self::Digest).map_err(ReferenceError::Digest)
        } else {
            Self::tag(text)
        }
    }
}

impl From<Digest> for Reference {
    fn from(digest: Digest) -> Self {
        Self::Digest(digest)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => write!(f, "{digest}"),
        }
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn repository(text: &str) -> String {
        Repository::parse(text).map_or_else(|error| format!("{error:?}"), |r| r.to_string())
    }

    #[test]
    fn a_name_without_registry_is_docker_hubs() {
        assert_eq!(repository("nginx"), "docker.io/library/nginx");
        assert_eq!(repository("org/app"), "docker.io/org/app");
        assert_eq!(repository("index.docker.io/nginx"), "docker.io/library/nginx");
        assert_eq!(repository("registry-1.docker.io/org/app"), "docker.io/org/app");
    }

    #[test]
    fn the_first_word_is_a_registry_if_it_looks_like_a_host() {
        assert_eq!(repository("ghcr.io/org/app"), "ghcr.io/org/app");
        assert_eq!(repository("localhost/app"), "localhost/app");
        assert_eq!(repository("LOCALHOST:5000/app"), "localhost:5000/app");
        assert_eq!(repository("[2001:db8::1]:5000/app"), "[2001:db8::1]:5000/app");
        assert_eq!(repository("reg_istry:5000/app"), "reg_istry:5000/app");
    }

    #[test]
    fn names_outside_the_grammar_are_refused() {
        for name in ["", "Nginx", "a//b", "a/", "/a", "a__.b", "a.", "-a", "a___b", "a b", "../etc", "a/../b", "ü"] {
            assert!(matches!(Repository::new("ghcr.io", name), Err(ReferenceError::Name(_))), "{name:?}");
        }
        assert!(Repository::new("ghcr.io", &"a".repeat(256)).is_err());
        for name in ["a", "a.b", "a_b", "a__b", "a---b", "a/b/c", "0", "a-b_c.d/e"] {
            assert!(Repository::new("ghcr.io", name).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn registries_outside_the_grammar_are_refused() {
        for registry in
            ["", "a b", "a:port", "a:99999", "a:+80", "a/b", "user@host", "[::1", "[nope]", "[::1]x", "-a.b", "a..b"]
        {
            assert!(matches!(Repository::new(registry, "app"), Err(ReferenceError::Registry(_))), "{registry:?}");
        }
    }

    #[test]
    fn references_are_tags_or_digests() {
        let digest = Digest::sha256_of(b"");
        assert_eq!(digest.to_string().parse(), Ok(Reference::Digest(digest)));
        assert_eq!("v1.2_3-x".parse(), Ok(Reference::Tag("v1.2_3-x".to_owned())));
        for text in ["", ".hidden", "a/b", "sha256:zz", &"t".repeat(129)] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_image_is_split_as_docker_does() {
        let split = |text: &str| parse_image(text).map(|(repository, reference)| format!("{repository} {reference}"));
        let digest = Digest::sha256_of(b"");
        assert_eq!(split("nginx").unwrap(), "docker.io/library/nginx latest");
        assert_eq!(split("localhost:5000/app").unwrap(), "localhost:5000/app latest");
        assert_eq!(split("localhost:5000/app:1.0").unwrap(), "localhost:5000/app 1.0");
        assert_eq!(split(&format!("ghcr.io/a/b:1@{digest}")).unwrap(), format!("ghcr.io/a/b {digest}"));
        assert!(split("nginx:bad/tag:").is_err());
        assert!(split("nginx@sha256:1").is_err());
    }

    proptest! {
        #[test]
        fn what_is_accepted_prints_as_it_parses(text in "[a-z0-9.:_/-]{1,40}") {
            if let Ok(parsed) = Repository::parse(&text) {
                prop_assert_eq!(Repository::parse(&parsed.to_string()), Ok(parsed));
            }
        }
    }
}
