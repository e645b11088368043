//! The tracker's configuration, as it is written and as it is used.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shoal_kit::{HumanDuration, Rejected};

use crate::harbor::Config as HarborConfig;
use crate::state::Limits;

/// How the tracker is configured. Every key may be left out.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where gRPC is served. Default `0.0.0.0:7400`; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where health, metrics and status are served, over HTTP. Default `0.0.0.0:7402`.
    pub admin_listen: SocketAddr,
    /// A directory with `tls.crt` and `tls.key`, the part's certificate and key, and `ca.crt`, its authority's, in PEM, read again
    /// when they change. With it, all that parts say to each other is TLS 1.3, and who has no certificate of that authority for
    /// what it says it is, is refused. Give all parts one, or none. Default: none, plaintext.
    pub certificates: Option<PathBuf>,
    /// The name of the Kubernetes Lease by which one of several trackers is chosen to see to the `Preheat` objects of the cluster;
    /// its namespace is the pod's. Default: none; then they are left alone.
    pub preheat_lease: Option<String>,
    /// Origins, which know what images to preheat are made of, as agents name them. Default: none.
    pub origins: Vec<String>,
    /// Harbor's preheat API, for which `preheat_lease` is needed. Default: it is not served.
    pub harbor: Option<HarborConfig>,
    /// How long a peer is handed out after its last announce. Default `45s`; longer means that dead peers are dialled
    /// for longer, shorter that a slow network loses live ones.
    pub lease: HumanDuration,
    /// How often peers are told to announce, when nothing changes at them. Default `15s`; less than `lease`. Shorter
    /// means more announces: peers / interval per second.
    pub interval: HumanDuration,
    /// How many peers are handed out for one torrent at most. Default 50, at most 200. Fewer than about 30 make swarms of
    /// hundreds slower; more make larger answers and more dialling.
    pub handout_max: usize,
    /// How many peers are known at a time; further ones are refused. Default 20,000; each holds a connection too. A sixteenth
    /// may announce from one address.
    pub peers_max: usize,
    /// How many torrents of one peer are recorded; further ones are answered, but not recorded. Default 4,000.
    pub torrents_per_peer_max: usize,
    /// How many members of one torrent are recorded; further ones are answered, but not recorded. Default 20,000.
    pub members_max: usize,
    /// How many members are recorded over all torrents. Default 3,000,000; each costs about 150 bytes, and 300 more in a
    /// torrent of its own. A sixteenth may come from one address.
    pub memberships_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::UNSPECIFIED, 7400).into(),
            admin_listen: (Ipv4Addr::UNSPECIFIED, 7402).into(),
            certificates: None,
            preheat_lease: None,
            origins: Vec::new(),
            harbor: None,
            lease: HumanDuration::from_secs(45),
            interval: HumanDuration::from_secs(15),
            handout_max: 50,
            peers_max: 20_000,
            torrents_per_peer_max: 4_000,
            members_max: 20_000,
            memberships_max: 3_000_000,
        }
    }
}

/// The shortest interval that is not a mistake.
const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// The longest lease: after that, a peer that vanished would be handed out for another day.
const LEASE_MAX: Duration = Duration::from_secs(24 * 3600);

impl Config {
    /// Checks what the types alone cannot.
    ///
    /// # Errors
    /// When a value is out of range; the error names the key, the value and the values accepted.
    pub fn validate(&self) -> Result<(), Rejected> {
        if let (Some(harbor), None) = (&self.harbor, &self.preheat_lease) {
            return Err(Rejected::new("harbor", harbor.listen, "preheat_lease beside it"));
        }
        if self.interval.get() < INTERVAL_MIN {
            return Err(Rejected::new("interval", self.interval, "at least 100ms"));
        }
        if self.lease <= self.interval || self.lease.get() > LEASE_MAX {
            let accepted = format!("more than interval ({}) and at most 24h", self.interval);
            return Err(Rejected::new("lease", self.lease, accepted));
        }
        for (key, value, max) in [
            ("handout_max", self.handout_max, 200),
            ("peers_max", self.peers_max, 1_000_000),
            ("torrents_per_peer_max", self.torrents_per_peer_max, 1_000_000),
            ("members_max", self.members_max, 1_000_000),
            ("memberships_max", self.memberships_max, 1_000_000_000),
        ] {
            if !(1..=max).contains(&value) {
                return Err(Rejected::new(key, value, format!("1 to {max}")));
            }
        }
        Ok(())
    }

    /// The bounds of the state.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits {
            peers_max: self.peers_max,
            torrents_per_peer_max: self.torrents_per_peer_max,
            members_max: self.members_max,
            memberships_max: self.memberships_max,
            handout_max: self.handout_max,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(Config::default().validate(), Ok(()));
        assert_eq!(shoal_kit::config::load::<Config>(None).unwrap(), Config::default());
    }

    #[test]
    fn a_lease_is_longer_than_the_interval() {
        let config = Config { lease: HumanDuration::from_secs(15), ..Config::default() };
        let message = config.validate().unwrap_err().to_string();
        assert_eq!(message, "config key `lease` = 15s is refused: expected more than interval (15s) and at most 24h");
    }

    #[test]
    fn a_limit_of_zero_is_refused() {
        let config = Config { handout_max: 0, ..Config::default() };
        assert_eq!(config.validate(), Err(Rejected::new("handout_max", 0, "1 to 200")));
    }
}
