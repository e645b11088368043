//! What can be set or varied by name: a swarm's settings, a scenario's, and the sizes a scenario is made of.

use std::fmt;
use std::time::Duration;

use shoal_swarm::ChokePolicy;

use crate::cli::Args;
use crate::scenario::Scenario;

/// A value for a setting. The program reads it from what people write; it prints in a form that reads back.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A number, a size in bytes or a rate in bytes per second.
    Number(u64),
    /// A share.
    Share(f64),
    /// A span of time.
    Time(Duration),
    /// Anything else.
    Word(String),
}

/// Says why a setting cannot be set: the user's fault.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SettingError {
    /// There is no such setting.
    #[error("nothing is called {key:?}; there are {names}", names = names().collect::<Vec<_>>().join(", "))]
    NoSuchSetting {
        /// The name given.
        key: String,
    },
    /// The value is not one of its values.
    #[error("{key} cannot be {value}")]
    Value {
        /// The setting.
        key: String,
        /// The value given.
        value: Value,
    },
}

type Set<T> = fn(&mut T, &Value) -> Option<()>;

/// What a scenario is made of.
const SIZES: [(&str, Set<Args>); 8] = [
    ("scenario", |args, value| set(&mut args.named, value.word()?.parse().ok())),
    ("nodes", |args, value| set(&mut args.nodes, value.number().map(Some))),
    ("blob", |args, value| set(&mut args.blob_length, value.number().map(Some))),
    ("piece_length", |args, value| set(&mut args.piece_length, value.number().map(Some))),
    ("rate", |args, value| set(&mut args.rate, value.number().map(Some))),
    ("origin_rate", |args, value| set(&mut args.origin_rate, value.number().map(Some))),
    ("upstream_rate", |args, value| set(&mut args.upstream_rate, value.number().map(Some))),
    ("latency", |args, value| set(&mut args.latency, value.time().map(Some))),
];

/// Settings of a scenario and of its nodes' swarms, by the names of the fields.
const SETTINGS: [(&str, Set<Scenario>); 20] = [
    ("upload_slots", |scenario, value| set(&mut scenario.swarm.upload_slots, value.number())),
    ("grant_bytes_min", |scenario, value| set(&mut scenario.swarm.grant_bytes_min, value.number())),
    ("grant_timeout", |scenario, value| set(&mut scenario.swarm.grant_timeout, value.time())),
    ("inflight_bytes_max", |scenario, value| set(&mut scenario.swarm.inflight_bytes_max, value.number())),
    ("inflight_pieces", |scenario, value| set(&mut scenario.swarm.inflight_pieces, value.number())),
    ("snub_timeout", |scenario, value| set(&mut scenario.swarm.snub_timeout, value.time())),
    ("connections_soft_max", |scenario, value| set(&mut scenario.swarm.connections_soft_max, value.number())),
    ("connections_max", |scenario, value| set(&mut scenario.swarm.connections_max, value.number())),
    ("reader_share", |scenario, value| set(&mut scenario.swarm.reader_share, value.share())),
    ("reader_window_pieces", |scenario, value| set(&mut scenario.swarm.reader_window_pieces, value.number())),
    ("reader_patience", |scenario, value| set(&mut scenario.swarm.reader_patience, value.time())),
    ("choke_policy", |scenario, value| set(&mut scenario.swarm.choke_policy, value.policy())),
    ("block_length", |scenario, value| set(&mut scenario.block_length, value.number().map(Some))),
    ("handout_max", |scenario, value| set(&mut scenario.handout_max, value.number())),
    ("parallel", |scenario, value| set(&mut scenario.parallel, value.number())),
    ("readers", |scenario, value| set(&mut scenario.readers, value.flag())),
    ("sockets_buffer", |scenario, value| set(&mut scenario.sockets_buffer, value.flag())),
    ("verify_delay", |scenario, value| set(&mut scenario.verify_delay, value.time())),
    ("zone_rate", |scenario, value| set(&mut scenario.zones.as_mut()?.rate, value.number())),
    ("zone_latency", |scenario, value| set(&mut scenario.zones.as_mut()?.latency, value.time())),
];

fn set<T>(field: &mut T, value: Option<T>) -> Option<()> {
    *field = value?;
    Some(())
}

/// Every name.
fn names() -> impl Iterator<Item = &'static str> {
    SIZES.iter().map(|(name, _)| *name).chain(SETTINGS.iter().map(|(name, _)| *name))
}

impl Args {
    /// Sets something by its name.
    ///
    /// # Errors
    /// When there is nothing of that name, or it takes no such value.
    pub fn set(&mut self, key: &str, value: Value) -> Result<(), SettingError> {
        if let Some((_, size)) = SIZES.iter().find(|(name, _)| *name == key) {
            return size(self, &value).ok_or_else(|| SettingError::Value { key: key.to_owned(), value });
        }
        // Zones may be missing from this scenario, and are there to try the value on.
        let mut scratch = Scenario { zones: Some(crate::scenario::Zones::default()), ..Scenario::default() };
        apply(&mut scratch, key, &value)?;
        self.settings.push((key.to_owned(), value));
        Ok(())
    }
}

/// Sets one of a scenario's settings.
///
/// # Errors
/// When there is none of that name, or it takes no such value.
pub(crate) fn apply(scenario: &mut Scenario, key: &str, value: &Value) -> Result<(), SettingError> {
    let (_, set) = SETTINGS
        .iter()
        .find(|(name, _)| *name == key)
        .ok_or_else(|| SettingError::NoSuchSetting { key: key.to_owned() })?;
    set(scenario, value).ok_or_else(|| SettingError::Value { key: key.to_owned(), value: value.clone() })
}

impl Value {
    fn number<T: TryFrom<u64>>(&self) -> Option<T> {
        match self {
            Self::Number(number) => T::try_from(*number).ok(),
            Self::Share(_) | Self::Time(_) | Self::Word(_) => None,
        }
    }

    fn share(&self) -> Option<f64> {
        match self {
            Self::Number(number) => Some(*number as f64),
            Self::Share(share) => Some(*share),
            Self::Time(_) | Self::Word(_) => None,
        }
        .filter(|share| (0.0..=1.0).contains(share))
    }

    fn time(&self) -> Option<Duration> {
        match self {
            Self::Time(time) => Some(*time),
            Self::Number(_) | Self::Share(_) | Self::Word(_) => None,
        }
    }

    fn word(&self) -> Option<&str> {
        match self {
            Self::Word(word) => Some(word),
            Self::Number(_) | Self::Share(_) | Self::Time(_) => None,
        }
    }

    fn flag(&self) -> Option<bool> {
        self.word()?.parse().ok()
    }

    fn policy(&self) -> Option<ChokePolicy> {
        match self.word()? {
            "cluster" => Some(ChokePolicy::Cluster),
            "reciprocal" => Some(ChokePolicy::Reciprocal),
            _ => None,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Share(share) => write!(f, "{share}"),
            Self::Time(time) => write!(f, "{}us", time.as_micros()),
            Self::Word(word) => f.write_str(word),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_reach_the_scenario() {
        let mut args = Args::default();
        args.set("upload_slots", Value::Number(2)).unwrap();
        args.set("reader_share", Value::Share(0.25)).unwrap();
        args.set("choke_policy", Value::Word("reciprocal".to_owned())).unwrap();
        args.set("piece_length", Value::Number(1 << 20)).unwrap();
        let scenario = args.scenario().unwrap();
        assert_eq!(scenario.swarm.upload_slots, 2);
        assert_eq!(scenario.swarm.choke_policy, ChokePolicy::Reciprocal);
        assert_eq!(scenario.piece_length, Some(1 << 20));
    }

    #[test]
    fn what_cannot_be_set_is_named() {
        let mut args = Args::default();
        let error = args.set("slots", Value::Number(2)).unwrap_err();
        assert!(error.to_string().starts_with("nothing is called \"slots\"; there are scenario, nodes,"), "{error}");
        let error = args.set("reader_share", Value::Number(2)).unwrap_err();
        assert_eq!(error.to_string(), "reader_share cannot be 2");
    }
}
