//! What repositories are called where a registry's `url` and `mirrors` are: the beginning of a name is replaced.

use std::collections::BTreeMap;

use super::ConfigError;
use crate::reference::Repository;

/// Beginnings of names in whole words and their replacements, the longest first.
#[derive(Debug, Default, Clone)]
pub(super) struct Remap(Vec<(String, String)>);

impl Remap {
    pub(super) fn new(registry: &str, map: &BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let mut pairs = Vec::new();
        for (from, to) in map {
            let (from, to) = (from.trim_end_matches('/'), to.trim_end_matches('/'));
            // Only names made of valid beginnings are names.
            if [from, to].iter().any(|part| !part.is_empty() && Repository::new("r.example", part).is_err()) {
                return Err(refused(registry, from, to));
            }
            pairs.push((from.to_owned(), to.to_owned()));
        }
        pairs.sort_by_key(|(from, _)| std::cmp::Reverse(from.len()));
        Ok(Self(pairs))
    }

    /// The refusal of a map that nothing would use.
    pub(super) fn unused(&self, registry: &str) -> Option<ConfigError> {
        self.0.first().map(|(from, to)| refused(registry, from, to))
    }

    /// The name there.
    pub(super) fn apply(&self, name: &str) -> String {
        let mapped = self.0.iter().find_map(|(from, to)| {
            let rest = if from.is_empty() { Some(name) } else { name.strip_prefix(from.as_str()) }?;
            let rest = match rest.strip_prefix('/') {
                Some(rest) => rest,
                None if from.is_empty() || rest.is_empty() => rest,
                // The beginning of another word.
                None => return None,
            };
            let words = [to.as_str(), rest].into_iter().filter(|part| !part.is_empty());
            Some(words.collect::<Vec<_>>().join("/")).filter(|mapped| !mapped.is_empty())
        });
        mapped.unwrap_or_else(|| name.to_owned())
    }
}

fn refused(registry: &str, from: &str, to: &str) -> ConfigError {
    ConfigError::Remap { registry: registry.to_owned(), from: from.to_owned(), to: to.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remap(pairs: &[(&str, &str)]) -> Result<Remap, ConfigError> {
        Remap::new("r", &pairs.iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned())).collect())
    }

    #[test]
    fn a_beginning_is_replaced_in_whole_words_and_the_longest_counts() {
        let remap = remap(&[("library/", "hub/library/"), ("", "proxy"), ("old/app", ""), ("a", "b")]).unwrap();
        assert_eq!(remap.apply("library/nginx"), "hub/library/nginx");
        assert_eq!(remap.apply("librarything/nginx"), "proxy/librarything/nginx");
        assert_eq!(remap.apply("old/app/part"), "part");
        assert_eq!(remap.apply("old/app"), "proxy/old/app");
        assert_eq!(remap.apply("a"), "b");
        assert_eq!(Remap::default().apply("org/app"), "org/app");
    }

    #[test]
    fn what_is_no_beginning_of_a_name_is_refused() {
        for pair in [("Library", "x"), ("x", "../y"), ("x", "y?z"), ("/x", "y")] {
            assert!(remap(&[pair]).is_err(), "{pair:?}");
        }
    }
}
