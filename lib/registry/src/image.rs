//! What an image's documents say, where all who read them have to see the same: which manifest of an index is a platform's, and which
//! layers a registry has. Called by agents and trackers for what they fetch ahead, and by the demonstration.

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};

/// The manifest in an index for a platform, both words as Go has them: `linux`, `amd64`. One without variant runs on every machine of
/// its architecture and goes first; those with one stand in no known order. Attestations are of no platform.
#[must_use]
pub fn manifest_for<'a>(index: &'a ImageIndex, os: &str, architecture: &str) -> Option<&'a Descriptor> {
    let platforms = index.manifests().iter().filter_map(|manifest| Some((manifest, manifest.platform().as_ref()?)));
    let fitting = platforms
        .filter(|(_, platform)| platform.os().to_string() == os && platform.architecture().to_string() == architecture);
    fitting.min_by_key(|(_, platform)| platform.variant().is_some()).map(|(manifest, _)| manifest)
}

/// The layers of an image, lowest first, without foreign ones: those have addresses of their own, and the registry has them not.
pub fn own_layers(image: &ImageManifest) -> impl Iterator<Item = &Descriptor> {
    image.layers().iter().filter(|layer| layer.urls().as_ref().is_none_or(Vec::is_empty))
}
