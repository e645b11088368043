//! The scenarios that have a name: what `shoal sim --scenario NAME` plays and `shoal sim list` lists.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::scenario::{Arrivals, FaultKind, Rates, Scenario, Zones};

/// A scenario with a name. Its size and rates can be chosen; what happens in it follows from them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Named {
    /// All at once.
    #[default]
    FlashCrowd,
    /// One after the other, at random.
    Staggered,
    /// Several blobs, a few at a time.
    Layers,
    /// Slower and faster nodes.
    MixedRates,
    /// The origin gets the blob slower than it could send it.
    SlowOrigin,
    /// Zones with thin links between them.
    Zones,
    /// Nodes that are lost on the way.
    Churn,
    /// Nodes that come when the others are done.
    LateJoiners,
    /// One node far slower than the rest.
    Straggler,
    /// Nodes that take and never give.
    FreeRiders,
    /// Ten thousand nodes.
    Huge,
    /// What Kraken published.
    Kraken,
    /// What `make bench` pulls on shaped links.
    Lab,
}

/// What a name stands for unless told otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size {
    /// How many agents.
    pub nodes: u32,
    /// Bytes each of them wants.
    pub length: u64,
    /// The rate of each link, in bytes per second.
    pub rate: u64,
}

/// Says that no scenario has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no scenario is called {0:?}; there are {names}", names = Named::ALL.map(Named::name).join(", "))]
pub struct NoSuchName(String);

/// Shares of an image's bytes in its layers, in percent: a base, a runtime, many dependencies, a small program on top.
const LAYERS: [u64; 7] = [15, 30, 8, 25, 12, 7, 3];

impl Named {
    /// Every scenario that has a name.
    pub const ALL: [Self; 13] = [
        Self::FlashCrowd,
        Self::Staggered,
        Self::Layers,
        Self::MixedRates,
        Self::SlowOrigin,
        Self::Zones,
        Self::Churn,
        Self::LateJoiners,
        Self::Straggler,
        Self::FreeRiders,
        Self::Huge,
        Self::Kraken,
        Self::Lab,
    ];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::FlashCrowd => "flash-crowd",
            Self::Staggered => "staggered",
            Self::Layers => "layers",
            Self::MixedRates => "mixed-rates",
            Self::SlowOrigin => "slow-origin",
            Self::Zones => "zones",
            Self::Churn => "churn",
            Self::LateJoiners => "late-joiners",
            Self::Straggler => "straggler",
            Self::FreeRiders => "free-riders",
            Self::Huge => "huge",
            Self::Kraken => "kraken",
            Self::Lab => "lab",
        }
    }

    /// What happens in it, in a line.
    #[must_use]
    pub fn about(self) -> &'static str {
        match self {
            Self::FlashCrowd => "equal nodes want one blob at the same time",
            Self::Staggered => "nodes arrive at random within twice the time a pull takes",
            Self::Layers => "an image of seven layers, three at a time, in order, as a runtime fetches it",
            Self::MixedRates => "a third of the nodes at half the rate, a third at twice the rate",
            Self::SlowOrigin => "the origin gets the blob at a quarter of the rate it could send it",
            Self::Zones => "three zones; all of a zone share one link of ten nodes' rate and 2 ms to the others",
            Self::Churn => "5 % of the nodes are lost on the way; a third of those vanish without a word",
            Self::LateJoiners => "a tenth of the nodes arrive when the others are done",
            Self::Straggler => "one node at a tenth of the others' rate",
            Self::FreeRiders => "a fifth of the nodes take and never give",
            Self::Huge => "a flash crowd of ten thousand",
            Self::Kraken => "3 GB in two layers to 2,600 hosts at 300 MB/s, as Kraken published it",
            Self::Lab => "four layers, three at a time, an upstream as fast as a node: as the shaped lab has it",
        }
    }

    /// The size it has unless told otherwise.
    #[must_use]
    pub fn size(self) -> Size {
        let of = |nodes, length| Size { nodes, length, rate: 125_000_000 };
        match self {
            Self::FlashCrowd
            | Self::Staggered
            | Self::Layers
            | Self::MixedRates
            | Self::SlowOrigin
            | Self::Churn
            | Self::LateJoiners
            | Self::Straggler
            | Self::FreeRiders => of(300, 512 << 20),
            Self::Zones => of(900, 512 << 20),
            Self::Huge => of(10_000, 1 << 30),
            Self::Kraken => Size { nodes: 2600, length: 3_000_000_000, rate: 300_000_000 },
            // 50 Mbit/s less the headers of full segments.
            Self::Lab => Size { nodes: 16, length: 128 << 20, rate: 5_977_000 },
        }
    }

    /// Makes it of a crowd: sets what is different, and leaves sizes, rates and latency as they are.
    pub fn shape(self, crowd: &mut Scenario) {
        let (nodes, length) = (crowd.nodes(), crowd.length());
        let (rate, optimum) = (crowd.groups[0].rates.up, Duration::from_secs_f64(crowd.optimum_seconds()));
        match self {
            Self::FlashCrowd | Self::Huge => {}
            Self::Staggered => crowd.groups[0].arrivals.within = optimum * 2,
            Self::Layers => {
                let mut layers = LAYERS.map(|percent| (length * percent / 100).max(1));
                layers[0] += length.saturating_sub(layers.iter().sum());
                crowd.blobs = layers.to_vec();
            }
            Self::MixedRates => {
                crowd.groups[0].name = "full rate";
                crowd.split("half rate", nodes / 3).rates = Rates::equal((rate / 2).max(1));
                crowd.split("twice the rate", nodes / 3).rates = Rates::equal(rate * 2);
            }
            Self::SlowOrigin => crowd.upstream_rate = crowd.upstream_rate.or(Some((rate / 4).max(1))),
            Self::Zones => {
                let latency = crowd.latency.max(Duration::from_millis(2));
                crowd.zones = Some(Zones { count: 3, rate: rate * 10, latency });
            }
            Self::Churn => {
                use FaultKind::{Crash, Vanish};
                crowd.add_random_faults(&[Crash, Vanish, Crash], 0.05, optimum);
            }
            Self::LateJoiners => {
                crowd.groups[0].name = "early";
                crowd.split("late", nodes / 10).arrivals = Arrivals { after: optimum * 3, within: optimum };
            }
            Self::Straggler => {
                crowd.groups[0].name = "others";
                crowd.split("straggler", u32::from(nodes > 1)).rates = Rates::equal((rate / 10).max(1));
            }
            Self::FreeRiders => {
                crowd.groups[0].name = "givers";
                crowd.split("takers", nodes / 5).gives = false;
            }
            Self::Kraken => crowd.blobs = vec![length.div_ceil(2), (length / 2).max(1)],
            Self::Lab => {
                let layer = (length / 4).max(1);
                crowd.blobs = vec![length.saturating_sub(3 * layer).max(1), layer, layer, layer];
                crowd.upstream_rate = crowd.upstream_rate.or(Some(rate));
                crowd.sockets_buffer = true;
            }
        }
    }
}

impl FromStr for Named {
    type Err = NoSuchName;

    fn from_str(name: &str) -> Result<Self, NoSuchName> {
        Self::ALL.into_iter().find(|named| named.name() == name).ok_or_else(|| NoSuchName(name.to_owned()))
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back_and_makes_sense_at_any_size() {
        for named in Named::ALL {
            assert_eq!(named.name().parse(), Ok(named));
            for nodes in [1, 2, 3, 17] {
                let mut scenario = Scenario::crowd(nodes, 100_000_000, 1_000_000);
                named.shape(&mut scenario);
                scenario.check().unwrap();
                assert_eq!((scenario.nodes(), scenario.length()), (nodes, 100_000_000), "{named}");
            }
        }
        let error = "nobody".parse::<Named>().unwrap_err().to_string();
        assert!(error.contains("\"nobody\"; there are flash-crowd, staggered"), "{error}");
    }
}
