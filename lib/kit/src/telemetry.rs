//! Logging to stderr, as text for people or JSON lines for machines. Called once by each program, never by libraries.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::units::ParseUnitError;

/// How log lines are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One readable line for each event.
    #[default]
    Text,
    /// One JSON object for each event, its fields at the top level.
    Json,
}

/// Says why logging could not be set up. The operator's or the caller's fault.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is malformed.
    #[error("log filter {given:?} is malformed; expected directives such as info or warn,shoal_peer=debug")]
    Filter {
        /// The filter given.
        given: String,
        /// What is wrong with it.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// Logging was set up before in this process.
    #[error("logging is already set up")]
    AlreadySet(#[source] tracing_subscriber::util::TryInitError),
}

impl FromStr for LogFormat {
    type Err = ParseUnitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(ParseUnitError { given: other.chars().take(80).collect(), accepted: "text or json" }),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// Sends log events to stderr. `filter` is a list of directives: `info`, or `warn,shoal_peer=debug`.
///
/// # Errors
/// When the filter is malformed or logging was set up before.
pub fn init(format: LogFormat, filter: &str) -> Result<(), TelemetryError> {
    let parsed = EnvFilter::try_new(filter);
    let filter = parsed.map_err(|source| TelemetryError::Filter { given: filter.to_owned(), source })?;
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Text => registry.with(layer.with_ansi(false)).try_init(),
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).try_init(),
    }
    .map_err(TelemetryError::AlreadySet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_malformed_filter_is_named() {
        let error = init(LogFormat::Text, "shoal=loudly").unwrap_err();
        assert!(error.to_string().contains("\"shoal=loudly\""), "{error}");
    }

    #[test]
    fn logging_is_set_up_once() {
        init(LogFormat::Json, "off").unwrap();
        assert!(matches!(init(LogFormat::Text, "off"), Err(TelemetryError::AlreadySet(_))));
    }

    #[test]
    fn a_format_prints_as_it_was_parsed() {
        for text in ["text", "json"] {
            assert_eq!(text.parse::<LogFormat>().unwrap().to_string(), text);
        }
        assert_eq!("xml".parse::<LogFormat>().unwrap_err().to_string(), "\"xml\" is not text or json");
    }
}
