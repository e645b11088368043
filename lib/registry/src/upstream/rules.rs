//! Which repositories are served at all: the lists `allow` and `deny`. Asked by the fronts before anything else, and by the
//! client itself before it goes upstream.

use std::fmt;

use super::{ConfigError, UpstreamError};
use crate::pattern::Pattern;
use crate::reference::Repository;

/// The lists, checked. What `deny` holds is refused; of the rest, what `allow` holds is served, or all if it is empty.
#[derive(Debug, Default)]
pub(super) struct Rules {
    allow: Vec<Pattern>,
    deny: Vec<(String, Pattern)>,
}

impl Rules {
    pub(super) fn new(allow: &[String], deny: &[String]) -> Result<Self, ConfigError> {
        let allow = allow.iter().map(|text| pattern("allow", text)).collect::<Result<_, _>>()?;
        let deny = deny.iter().map(|text| Ok((text.clone(), pattern("deny", text)?)));
        Ok(Self { allow, deny: deny.collect::<Result<_, ConfigError>>()? })
    }

    /// Lets a repository pass, or names the rule that does not.
    pub(super) fn check(&self, repository: &Repository) -> Result<(), UpstreamError> {
        let meant = |pattern: &Pattern| pattern.matches(repository);
        self.judge(repository, meant, meant)
    }

    /// Lets a registry pass of which any repository may be served.
    pub(super) fn check_registry(&self, registry: &str) -> Result<(), UpstreamError> {
        let (all, some) = (|it: &Pattern| it.matches_all_of(registry), |it: &Pattern| it.matches_some_of(registry));
        self.judge(registry, all, some)
    }

    fn judge(
        &self,
        what: impl fmt::Display,
        denies: impl Fn(&Pattern) -> bool,
        allows: impl Fn(&Pattern) -> bool,
    ) -> Result<(), UpstreamError> {
        if let Some((text, _)) = self.deny.iter().find(|(_, pattern)| denies(pattern)) {
            return Err(UpstreamError::Excluded { reason: format!("{what} is in deny, by {text:?}") });
        }
        if !self.allow.is_empty() && !self.allow.iter().any(allows) {
            return Err(UpstreamError::Excluded { reason: format!("{what} is not in allow") });
        }
        Ok(())
    }
}

fn pattern(list: &'static str, text: &str) -> Result<Pattern, ConfigError> {
    // A lone `*` matches hosts of one label only, which is not what its author means.
    let pattern = Pattern::parse(text).filter(|pattern| !pattern.is_any_host());
    pattern.ok_or_else(|| ConfigError::Rule { list, rule: text.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(allow: &[&str], deny: &[&str], image: &str) -> Option<String> {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let rules = Rules::new(&owned(allow), &owned(deny)).unwrap();
        rules.check(&Repository::parse(image).unwrap()).err().map(|error| error.to_string())
    }

    #[test]
    fn without_lists_everything_is_served() {
        assert_eq!(refusal(&[], &[], "ghcr.io/org/app"), None);
    }

    #[test]
    fn deny_goes_before_allow_and_its_rule_is_named() {
        let lists: (&[&str], &[&str]) = (&["docker.io", "r.example/team/*"], &["docker.io/evil"]);
        assert_eq!(refusal(lists.0, lists.1, "nginx"), None);
        assert_eq!(refusal(lists.0, lists.1, "r.example/team/app"), None);
        let denied = "the configuration excludes it: docker.io/evil/app is in deny, by \"docker.io/evil\"";
        assert_eq!(refusal(lists.0, lists.1, "evil/app").as_deref(), Some(denied));
        let unlisted = "the configuration excludes it: ghcr.io/org/app is not in allow";
        assert_eq!(refusal(lists.0, lists.1, "ghcr.io/org/app").as_deref(), Some(unlisted));
    }

    #[test]
    fn a_registry_passes_if_anything_of_it_does() {
        let lists = (vec!["docker.io".to_owned(), "r.example/team/*".to_owned()], vec!["docker.io/evil".to_owned()]);
        let rules = Rules::new(&lists.0, &lists.1).unwrap();
        assert!(rules.check_registry("docker.io").is_ok() && rules.check_registry("r.example").is_ok());
        assert!(rules.check_registry("ghcr.io").unwrap_err().to_string().ends_with("ghcr.io is not in allow"));
        let rules = Rules::new(&[], &["*.evil.example".to_owned()]).unwrap();
        assert!(rules.check_registry("r.evil.example").is_err() && rules.check_registry("docker.io").is_ok());
    }

    #[test]
    fn a_rule_that_matches_nothing_is_refused_at_the_start() {
        for rule in ["", "*", "https://docker.io", "r.example/Team", "r.example/"] {
            let error = Rules::new(&[], &[rule.to_owned()]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("deny holds {rule:?}")), "{error}");
        }
    }
}
