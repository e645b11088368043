//! Loads a part's configuration from TOML, and says precisely what is wrong with one that is refused.
//!
//! Config types carry `#[serde(default, deny_unknown_fields)]`; rules that join several keys are checked by the part
//! after flags and environment have been laid over the file, and refused with [`Rejected`].

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// The longest configuration file read, in bytes.
const FILE_LENGTH_MAX: u64 = 1 << 20;

/// Says why a configuration file is not used. The one who wrote the file must mend it; never retryable.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("config file {} cannot be read", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The file is longer than any configuration is.
    #[error("config file {} is longer than 1MiB", file.display())]
    TooLong {
        /// The file.
        file: PathBuf,
    },
    /// The file is not TOML.
    #[error("{}:{line}: not TOML: {message}", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What was found and what was expected.
        message: String,
    },
    /// A key is unknown or missing, or its value is of the wrong kind or out of range.
    #[error("{}:{line}: {rejected}", file.display())]
    Value {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key, the value given and the values accepted.
        rejected: Rejected,
    },
}

/// Names a key whose value is refused, the value given and the values accepted.
///
/// Also used for rules that a type alone cannot hold: `Rejected::new("lease", lease, "more than interval (15s)")`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// The key with its tables, as in `cache.budget`; empty for the file as a whole.
    pub key: String,
    /// The value as it was given; empty when there is none.
    pub given: String,
    /// What would have been accepted.
    pub accepted: String,
}

impl Rejected {
    /// Refuses a value that parsed but cannot be used.
    #[must_use]
    pub fn new(key: &str, given: impl fmt::Display, accepted: impl fmt::Display) -> Self {
        Self { key: key.to_owned(), given: given.to_string(), accepted: format!("expected {accepted}") }
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.key.is_empty(), self.given.is_empty()) {
            (true, _) => write!(f, "config is refused: {}", self.accepted),
            (false, true) => write!(f, "config key `{}` is refused: {}", self.key, self.accepted),
            (false, false) => write!(f, "config key `{}` = {} is refused: {}", self.key, self.given, self.accepted),
        }
    }
}

impl std::error::Error for Rejected {}

/// Reads a configuration from a TOML file; without a file, every key has its default.
///
/// # Errors
/// When the file cannot be read or is not TOML, or a key or value in it is refused.
pub fn load<T: DeserializeOwned>(file: Option<&Path>) -> Result<T, ConfigError> {
    let Some(file) = file else {
        return parse("", Path::new("defaults"));
    };
    let read = |source| ConfigError::Read { file: file.to_owned(), source };
    let mut text = String::new();
    let opened = std::fs::File::open(file).map_err(read)?;
    opened.take(FILE_LENGTH_MAX + 1).read_to_string(&mut text).map_err(read)?;
    if text.len() as u64 > FILE_LENGTH_MAX {
        return Err(ConfigError::TooLong { file: file.to_owned() });
    }
    parse(&text, file)
}

/// Reads a configuration from TOML text; `file` is only named in errors.
///
/// # Errors
/// When the text is not TOML, or a key or value in it is refused.
pub fn parse<T: DeserializeOwned>(text: &str, file: &Path) -> Result<T, ConfigError> {
    let deserializer = toml::Deserializer::parse(text).map_err(|error| ConfigError::Syntax {
        file: file.to_owned(),
        line: line_of(text, &error),
        message: error.message().to_owned(),
    })?;
    serde_path_to_error::deserialize(deserializer).map_err(|error| {
        let key = error.path().to_string();
        let key = if key == "." { String::new() } else { key };
        let error = error.into_inner();
        let given = error.span().and_then(|span| text.get(span)).unwrap_or_default();
        let given = if key.ends_with(given) { "" } else { given };
        let rejected = Rejected { key, given: clipped(given), accepted: error.message().to_owned() };
        ConfigError::Value { file: file.to_owned(), line: line_of(text, &error), rejected }
    })
}

fn line_of(text: &str, error: &toml::de::Error) -> usize {
    let start = error.span().map_or(0, |span| span.start).min(text.len());
    text.as_bytes()[..start].iter().filter(|byte| **byte == b'\n').count() + 1
}

/// The first line of a value, cut at 80 characters.
fn clipped(given: &str) -> String {
    given.lines().next().unwrap_or_default().chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::units::{ByteSize, HumanDuration};

    #[derive(Debug, Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Config {
        listen: Option<std::net::SocketAddr>,
        cache: Cache,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Cache {
        budget: ByteSize,
        idle: HumanDuration,
        peers_max: u16,
    }

    fn refusal(text: &str) -> String {
        parse::<Config>(text, Path::new("shoal.toml")).unwrap_err().to_string()
    }

    #[test]
    fn a_file_is_laid_over_the_defaults() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("shoal.toml");
        std::fs::write(&file, "listen = \"127.0.0.1:0\"\n[cache]\nbudget = \"10GiB\"\nidle = \"30s\"\n").unwrap();
        let config: Config = load(Some(&file)).unwrap();
        assert_eq!(config.cache.budget, ByteSize::gib(10));
        assert_eq!(config.cache.idle, HumanDuration::from_secs(30));
        assert_eq!(config.cache.peers_max, 0);
        assert!(load::<Config>(None).unwrap().listen.is_none());
    }

    #[test]
    fn a_refused_value_names_file_line_key_given_and_accepted() {
        let message = refusal("[cache]\nbudget = \"10 gigs\"\n");
        assert!(message.starts_with("shoal.toml:2: config key `cache.budget` = \"10 gigs\" is refused: "), "{message}");
        assert!(message.contains("expected a size such as 512MiB"), "{message}");
        let message = refusal("[cache]\npeers_max = 70000\n");
        assert!(message.starts_with("shoal.toml:2: config key `cache.peers_max` = 70000 is refused: "), "{message}");
        let message = refusal("[cache]\nidle = 30\n");
        assert!(
            message.contains("`cache.idle` = 30 ") && message.contains("expected a duration such as 30s"),
            "{message}"
        );
    }

    #[test]
    fn an_unknown_key_names_the_keys_there_are() {
        let message = refusal("\n[cache]\nbugdet = \"1GiB\"\n");
        assert!(message.starts_with("shoal.toml:3: config key `cache.bugdet` is refused: "), "{message}");
        assert!(message.contains("`budget`, `idle`"), "{message}");
    }

    #[test]
    fn text_that_is_not_toml_names_its_line() {
        let message = refusal("[cache]\nbudget = \n");
        assert!(message.starts_with("shoal.toml:2: not TOML: "), "{message}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = load::<Config>(Some(Path::new("/nowhere/shoal.toml"))).unwrap_err();
        assert_eq!(error.to_string(), "config file /nowhere/shoal.toml cannot be read");
    }

    #[test]
    fn a_rule_between_keys_reads_like_any_other_refusal() {
        let rejected = Rejected::new("lease", HumanDuration::from_secs(5), "more than interval (15s)");
        assert_eq!(rejected.to_string(), "config key `lease` = 5s is refused: expected more than interval (15s)");
    }
}
