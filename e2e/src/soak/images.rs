//! The images: drawn from the seed, some layers in several of them, some pulled more often than others.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::image::{Image, Recipe};
use crate::registry::{HOST, Registry};
use crate::usage::to_f64;

/// How many there are.
const IMAGES: u64 = 40;
/// Layers of an image above its base of a megabyte.
const LAYERS: std::ops::RangeInclusive<u64> = 1..=5;
/// Their lengths in bytes.
const LAYER_BYTES: std::ops::RangeInclusive<u64> = 200_000..=8_000_000;
/// How many layers are there to be shared.
const SHARED_LAYERS: u64 = 12;
/// How likely a layer is one of those.
const SHARED: f64 = 0.25;
const TAG: &str = "1";

/// The images of a run. The first is pulled most often: the n-th, one n-th as often.
#[derive(Debug)]
pub(super) struct Images(Vec<Image>);

impl Images {
    /// Draws them and writes them under `dir`.
    pub(super) fn draw(seed: u64, dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let mut random = StdRng::seed_from_u64(seed);
        let shared = (0..SHARED_LAYERS).map(|_| layer(&mut random)).collect::<Vec<_>>();
        let images = (0..IMAGES).map(|index| {
            let count = random.random_range(LAYERS);
            let mut layers = Vec::<(u64, u64)>::new();
            for _ in 0..count {
                let common = shared[random.random_range(0..shared.len())];
                let one = if random.random_bool(SHARED) { common } else { layer(&mut random) };
                // No image has a layer twice.
                if !layers.contains(&one) {
                    layers.push(one);
                }
            }
            Image::build(dir, &Recipe::Mixed { name: name(index), layers })
        });
        Ok(Self(images.collect::<Result<_>>()?))
    }

    /// Gives them all to a registry.
    pub(super) fn push(&self, registry: &Registry) -> Result<()> {
        self.0.iter().zip(0..).try_for_each(|(image, index)| registry.push(image, &name(index), TAG))
    }

    /// The n-th image and how it is named.
    pub(super) fn choose(&self, random: &mut StdRng) -> (&Image, String) {
        let weight = |index: usize| 1.0 / to_f64(index as u64 + 1);
        let mut left = random.random_range(0.0..1.0) * (0..self.0.len()).map(weight).sum::<f64>();
        let chosen = (0..self.0.len()).find(|index| {
            left -= weight(*index);
            left < 0.0
        });
        let index = chosen.unwrap_or(0);
        (&self.0[index], format!("{HOST}/{}:{TAG}", name(index as u64)))
    }

    /// Bytes of all blobs, each counted once, and how many those are.
    pub(super) fn length(&self) -> (u64, usize) {
        let mut blobs = self.0.iter().flat_map(Image::blobs).collect::<Vec<_>>();
        blobs.sort_unstable_by_key(|blob| &blob.digest);
        blobs.dedup();
        (blobs.iter().map(|blob| blob.length).sum(), blobs.len())
    }

    pub(super) fn describe(&self) -> String {
        let (bytes, blobs) = self.length();
        let mut text = format!("{} images of {blobs} blobs, {:.0} MB", self.0.len(), to_f64(bytes) / 1e6);
        for (index, image) in self.0.iter().enumerate() {
            let _infallible = write!(text, "\n  {} {} {}", name(index as u64), image.digest, image.length());
        }
        text
    }
}

fn layer(random: &mut StdRng) -> (u64, u64) {
    (random.random_range(LAYER_BYTES), random.random())
}

fn name(index: u64) -> String {
    format!("soak{index:02}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Blob;

    #[test]
    fn all_images_are_chosen_and_the_first_most_often() {
        let image = |_| Image { dir: "".into(), digest: String::new(), config: blob(), layers: Vec::new() };
        fn blob() -> Blob {
            Blob { digest: String::new(), length: 0 }
        }
        let images = Images((0..IMAGES).map(image).collect());
        let mut random = StdRng::seed_from_u64(1);
        let mut chosen = std::collections::BTreeMap::<String, u32>::new();
        for _ in 0..20_000 {
            *chosen.entry(images.choose(&mut random).1).or_default() += 1;
        }
        assert_eq!(chosen.len() as u64, IMAGES);
        assert_eq!(chosen.values().max(), chosen.values().next());
    }
}
