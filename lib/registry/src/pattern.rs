//! Patterns of registries and repositories, as rules and keys of credentials are written: `docker.io`, `*.registry.example`,
//! `registry.example/team/*`.
//!
//! A `*` stands for any run of characters and a `?` for any one, within one label of the host or one word of the name. The
//! words of a pattern are the first words of the names it matches, so `r.example/team` is that repository and all below it.
//! Kubernetes matches the keys of pull secrets in this way, but for paths: there `/team` begins `/teamwork` too.

use crate::reference::{Repository, one_name};

/// A host and the first words of a name, or none of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern {
    host: String,
    words: Vec<String>,
}

impl Pattern {
    /// Reads a pattern; `None` if no repository could match it.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (host, path) = text.split_once('/').map_or((text, None), |(host, path)| (host, Some(path)));
        // With letters for its wildcards it must be a repository, or the beginning of one.
        let filled = |text: &str| text.replace(['*', '?'], "a");
        Repository::new(&filled(host), path.map_or("any/name".to_owned(), filled).as_str()).ok()?;
        let words = path.map(|path| path.split('/').map(str::to_owned).collect()).unwrap_or_default();
        Some(Self { host: one_name(host), words })
    }

    /// Whether the repository is one of those meant.
    pub(crate) fn matches(&self, repository: &Repository) -> bool {
        let words = repository.name.split('/');
        self.matches_some_of(&repository.registry)
            && self.words.len() <= words.clone().count()
            && self.words.iter().zip(words).all(|(pattern, word)| is_like(pattern, word))
    }

    /// Whether some repositories of the registry are among those meant.
    pub(crate) fn matches_some_of(&self, registry: &str) -> bool {
        let (patterns, labels) = (self.host.split('.'), registry.split('.'));
        patterns.clone().count() == labels.clone().count()
            && patterns.zip(labels).all(|(pattern, label)| is_like(pattern, label))
    }

    /// Whether all repositories of the registry are meant.
    pub(crate) fn matches_all_of(&self, registry: &str) -> bool {
        self.words.is_empty() && self.matches_some_of(registry)
    }

    /// Whether it names no host, so that it says nothing.
    pub(crate) fn is_any_host(&self) -> bool {
        self.host.chars().all(|character| character == '*')
    }

    /// How narrow it is: of several that match, the greatest is meant most.
    pub(crate) fn rank(&self) -> (usize, usize) {
        (self.words.len(), self.host.bytes().filter(|byte| !matches!(byte, b'*' | b'?')).count())
    }
}

/// Whether a text has wildcards.
pub(crate) fn has_wildcards(text: &str) -> bool {
    text.contains(['*', '?'])
}

/// Matches one label or word. Goes back to the last `*` only, so the work is bounded by the product of the lengths.
fn is_like(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut at, mut read) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while read < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, read));
                at += 1;
            }
            Some(byte) if *byte == b'?' || *byte == text[read] => {
                at += 1;
                read += 1;
            }
            Some(_) | None => {
                let Some((star_at, taken)) = star else { return false };
                star = Some((star_at, taken + 1));
                at = star_at + 1;
                read = taken + 1;
            }
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matches(pattern: &str, image: &str) -> bool {
        Pattern::parse(pattern).unwrap().matches(&Repository::parse(image).unwrap())
    }

    #[test]
    fn a_host_alone_means_all_of_it() {
        assert!(matches("docker.io", "nginx"));
        assert!(matches("index.docker.io", "nginx"));
        assert!(matches("LOCALHOST:5000", "localhost:5000/app"));
        assert!(!matches("docker.io", "ghcr.io/org/app"));
        assert!(!matches("localhost", "localhost:5000/app"));
    }

    #[test]
    fn a_wildcard_of_a_host_stays_within_its_label() {
        assert!(matches("*.registry.io", "eu.registry.io/app"));
        assert!(!matches("*.registry.io", "registry.io/app"));
        assert!(!matches("*.registry.io", "a.b.registry.io/app"));
        assert!(matches("k8s.*.io", "k8s.gcr.io/app"));
        assert!(matches("eu-*.registry.io", "eu-west.registry.io/app"));
        assert!(!matches("*.registry.io", "eu.registry.io:5000/app"));
        assert!(!matches("*", "registry.io/app"));
    }

    #[test]
    fn words_are_matched_whole_and_from_the_first() {
        assert!(matches("r.io/team", "r.io/team"));
        assert!(matches("r.io/team", "r.io/team/app"));
        assert!(!matches("r.io/team", "r.io/teamwork/app"));
        assert!(matches("r.io/team/*", "r.io/team/app"));
        assert!(matches("r.io/team/*", "r.io/team/app/part"));
        assert!(!matches("r.io/team/*", "r.io/team"));
        assert!(matches("r.io/*/public", "r.io/team/public"));
        assert!(!matches("r.io/*/public", "r.io/team/private"));
        assert!(matches("r.io/team-?", "r.io/team-a"));
        assert!(!matches("r.io/team-?", "r.io/team-ab"));
    }

    #[test]
    fn what_no_repository_matches_is_no_pattern() {
        for text in ["", "/", "r.io/", "r.io//x", "r.io/Team", "a b", "r.io/*/", "https://r.io", "r.io/a@b"] {
            assert_eq!(Pattern::parse(text), None, "{text:?}");
        }
        assert!(Pattern::parse("*").unwrap().is_any_host());
    }

    proptest! {
        #[test]
        fn a_text_is_like_itself_with_any_part_starred(text in "[a-z0-9]{0,8}", from in 0_usize..9, to in 0_usize..9) {
            let (from, to) = (from.min(to).min(text.len()), from.max(to).min(text.len()));
            let starred = format!("{}*{}", &text[..from], &text[to..]);
            prop_assert!(is_like(&starred, &text), "{} {}", starred, text);
        }
    }
}
