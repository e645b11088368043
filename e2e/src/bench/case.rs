//! What is measured: an image, how many nodes of which rate pull it, and what holds it beforehand. Read from the command line
//! by [`super::args`].

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Error, Result, ensure};

use crate::image::{Image, Recipe};
use crate::node::{Link, Rate};
use crate::usage::to_f64;

/// Bytes on the wire over bytes of payload: a full segment at an MTU of 1500 carries 1448 of its 1514 bytes.
const WIRE_FACTOR: f64 = 1.0456;

/// What is there before the clock starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// Everything is empty but the registry.
    Cold,
    /// The system's own server holds the image.
    Warm,
    /// Everything is empty, and one node pulls; it is held against a pull straight from the registry.
    Alone,
}

/// One case. As text: `4x32@16x50` is 4 layers of 32 MiB on 16 nodes of 50 Mbit/s; `-warm` or `-alone` may follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Case {
    layers: usize,
    layer_mib: u64,
    /// How many nodes pull at once.
    pub(super) nodes: u8,
    rate_mbit: u64,
    /// What is there before.
    pub(super) start: Start,
}

/// What Shoal is to reach; see `docs/benchmarks.md`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Target {
    /// The last node's time over the fluid bound, or, alone, over a direct pull.
    pub(super) last: f64,
    /// Copies of the image that leave the registry.
    pub(super) upstream_copies: f64,
    /// Share of the payload that is received twice.
    pub(super) twice: f64,
    /// How much later than a direct pull's the first byte may come, in seconds.
    pub(super) first_byte_later: f64,
}

impl Case {
    /// The cases of a run that chooses none.
    pub(super) fn all() -> Vec<Self> {
        let case = |layers, layer_mib, nodes, rate_mbit, start| Self { layers, layer_mib, nodes, rate_mbit, start };
        vec![
            case(4, 32, 16, 50, Start::Cold),
            case(4, 32, 8, 100, Start::Cold),
            case(24, 3, 8, 100, Start::Cold),
            case(4, 32, 8, 100, Start::Warm),
            case(1, 32, 1, 100, Start::Alone),
        ]
    }

    /// The image: layers of random bytes, on a small base.
    pub(super) fn recipe(&self) -> Recipe {
        Recipe::Random { layers_mib: vec![self.layer_mib; self.layers], seed: 7 }
    }

    /// The link of every node, of the registry and of the system's own servers.
    pub(super) const fn link(&self) -> Link {
        Link::symmetric(Rate::mbit(self.rate_mbit))
    }

    /// The fluid bound in seconds, headers included: max(F/us, F/dmin, N·F/(us + Σui)), which is F over the rate when all
    /// rates are equal.
    pub(super) fn bound(&self, image: &Image) -> f64 {
        to_f64(image.length()) * WIRE_FACTOR / to_f64(Rate::mbit(self.rate_mbit).bytes_per_second())
    }

    /// What Shoal is to reach.
    pub(super) fn target(&self) -> Target {
        let last = match self.start {
            Start::Cold if self.layer_mib < 32 => 1.25,
            Start::Cold => 1.15,
            Start::Warm => 1.12,
            Start::Alone => 1.1,
        };
        Target { last, upstream_copies: 1.02, twice: 0.01, first_byte_later: 0.05 }
    }

    /// The case in words.
    pub(super) fn describe(&self) -> String {
        let Self { layers, layer_mib, nodes, rate_mbit, start } = self;
        let start = match start {
            Start::Cold => "cold",
            Start::Warm => "the system's server holds the image",
            Start::Alone => "cold, beside a direct pull",
        };
        format!("{layers} × {layer_mib} MiB, {nodes} nodes at {rate_mbit} Mbit/s, {start}")
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { layers, layer_mib, nodes, rate_mbit, start } = self;
        let suffix = match start {
            Start::Cold => "",
            Start::Warm => "-warm",
            Start::Alone => "-alone",
        };
        write!(f, "{layers}x{layer_mib}@{nodes}x{rate_mbit}{suffix}")
    }
}

impl FromStr for Case {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let (numbers, start) = match text.split_once('-') {
                None => (text, Start::Cold),
                Some((numbers, "warm")) => (numbers, Start::Warm),
                Some((numbers, "alone")) => (numbers, Start::Alone),
                Some(_) => return None,
            };
            let (image, nodes) = numbers.split_once('@')?;
            let ((layers, layer_mib), (nodes, rate_mbit)) = (image.split_once('x')?, nodes.split_once('x')?);
            let (layers, layer_mib) = (layers.parse().ok()?, layer_mib.parse().ok()?);
            Some(Self { layers, layer_mib, nodes: nodes.parse().ok()?, rate_mbit: rate_mbit.parse().ok()?, start })
        };
        let case = parse().with_context(|| format!("{text:?} is not like 4x32@16x50, with -warm or -alone behind"))?;
        let Self { layers, layer_mib, nodes, rate_mbit, start } = case;
        ensure!(layers > 0 && layer_mib > 0 && rate_mbit > 0, "{text:?} has nothing to measure");
        ensure!((1..=60).contains(&nodes), "{text:?}: 1 to 60 nodes fit the lab");
        ensure!(start != Start::Alone || nodes == 1, "{text:?}: alone is one node");
        Ok(case)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_is_read_as_it_is_written() {
        for case in Case::all() {
            assert_eq!(case.to_string().parse::<Case>().unwrap(), case);
        }
        for wrong in ["", "4x32", "4x32@16", "4x32@16x50-hot", "0x32@16x50", "4x32@0x50", "4x32@2x50-alone"] {
            assert!(wrong.parse::<Case>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_bound_is_the_image_over_the_rate_with_headers() {
        let blob = |length| crate::image::Blob { digest: String::new(), length };
        let image = Image { dir: "".into(), digest: String::new(), config: blob(0), layers: vec![blob(128 << 20)] };
        let bound = "4x32@8x100".parse::<Case>().unwrap().bound(&image);
        assert!((bound - 11.227).abs() < 0.001, "{bound}");
    }
}
