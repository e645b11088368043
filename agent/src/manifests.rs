//! Manifests and indexes: from the origin, else straight from upstream; and the order of layers in those seen.
//!
//! Called by the front, and by `pods` for what is fetched ahead. It knows nothing of torrents: the order of layers is what
//! `blobs` asks it for.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use oci_spec::image::ImageManifest;
use shoal_meta::Digest;
use shoal_proto::origin::v1::ResolveResponse;
use shoal_registry::image::own_layers;
use shoal_registry::upstream::Upstream;
use shoal_registry::{Access, MANIFEST_ACCEPT, Manifest, Reference, UpstreamError};
use tokio::time::timeout;

use crate::origin::{OriginError, Origins, PATIENCE, is_verdict};

/// Most manifests whose layers are remembered; the oldest goes first.
const IMAGES_MAX: usize = 256;
/// Most layers remembered of one manifest; images have at most 127.
const LAYERS_MAX: usize = 256;

/// Fetches manifests.
#[derive(Debug)]
pub(crate) struct Manifests {
    origins: Arc<Origins>,
    upstream: Upstream,
    images: Images,
}

/// A manifest, and what is to be known of it.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) manifest: Manifest,
    /// The tag may have moved: upstream could not be asked.
    pub(crate) stale: bool,
    /// The layers it names, lowest first.
    pub(crate) layers: Arc<[Digest]>,
}

/// The layers of the manifests asked for lately, lowest layer first. Bounded.
#[derive(Debug, Default)]
struct Images(Mutex<VecDeque<Arc<[Digest]>>>);

impl Manifests {
    pub(crate) fn new(origins: Arc<Origins>, upstream: Upstream) -> Self {
        Self { origins, upstream, images: Images::default() }
    }

    /// Gives a manifest, or with `head` what is to be said of it.
    ///
    /// # Errors
    /// With what upstream said, to us or to the origin.
    pub(crate) async fn get(
        &self,
        access: &Access,
        reference: &Reference,
        head: bool,
        accept: &[String],
    ) -> Result<Found, UpstreamError> {
        let given = |manifest: Manifest, stale| {
            let layers = self.images.remember(&manifest.content);
            Found { manifest, stale, layers }
        };
        let mut resolved = std::pin::pin!(self.origins.resolve(access, reference, head, accept));
        let early = timeout(PATIENCE, &mut resolved).await;
        let silent = early.is_err();
        match early {
            Ok(Ok(response)) => {
                if let Some((manifest, stale)) = from_origin(response, reference, head) {
                    return Ok(given(manifest, stale));
                }
            }
            Ok(Err(OriginError::Upstream(error))) if is_verdict(&error) => return Err(error),
            Ok(Err(OriginError::Upstream(_) | OriginError::Away)) | Err(_) => {}
        }
        let late = async {
            let response = resolved.await.ok();
            response.and_then(|response| from_origin(response, reference, head))
        };
        tokio::select! {
            manifest = self.upstream.manifest(access, reference, head, accept) => Ok(given(manifest?, false)),
            Some((manifest, stale)) = late, if silent => Ok(given(manifest, stale)),
        }
    }

    /// Gives a manifest that no client has asked for yet: from an origin, and never straight from upstream.
    ///
    /// # Errors
    /// With what upstream said to the origin, or when no origin answers.
    pub(crate) async fn get_of_origin(&self, access: &Access, reference: &Reference) -> Result<Found, OriginError> {
        // Asked for as containerd does, so that the origin's answer serves both.
        let accept: Vec<_> = MANIFEST_ACCEPT.into_iter().chain(["*/*"]).map(str::to_owned).collect();
        let response = self.origins.resolve(access, reference, false, &accept).await?;
        let (manifest, stale) = from_origin(response, reference, false).ok_or(OriginError::Away)?;
        let layers = self.images.remember(&manifest.content);
        Ok(Found { manifest, stale, layers })
    }

    /// The layers above this one in the image asked for last that has it.
    pub(crate) fn layers_above(&self, layer: &Digest) -> Vec<Digest> {
        self.images.above(layer)
    }
}

/// Checks what an origin gave and tells whether it is stale; `None` when it is not what was asked.
fn from_origin(response: ResolveResponse, reference: &Reference, head: bool) -> Option<(Manifest, bool)> {
    let digest: Digest = response.digest.parse().ok()?;
    let content = Bytes::from(response.content);
    let expected = reference.digest().is_none_or(|asked| *asked == digest);
    let intact = head || {
        let mut hasher = digest.hasher();
        hasher.update(&content);
        hasher.finish() == digest && content.len() as u64 == response.length_bytes
    };
    if !expected || !intact {
        tracing::error!(%digest, "origin gave another manifest than asked for");
        return None;
    }
    if response.stale {
        tracing::warn!(%digest, "manifest may be stale: upstream could not be asked");
    }
    let manifest = Manifest { digest, media_type: response.media_type, length: response.length_bytes, content };
    Some((manifest, response.stale))
}

impl Images {
    fn remember(&self, manifest: &[u8]) -> Arc<[Digest]> {
        let layers: Arc<[_]> = layers(manifest).into();
        if layers.len() < 2 {
            return layers;
        }
        let mut images = self.lock();
        images.retain(|known| **known != *layers);
        images.push_back(layers.clone());
        if images.len() > IMAGES_MAX {
            images.pop_front();
        }
        layers
    }

    fn above(&self, layer: &Digest) -> Vec<Digest> {
        let images = self.lock();
        let found = images.iter().rev().find_map(|layers| {
            let position = layers.iter().position(|digest| digest == layer)?;
            Some(layers[position + 1..].to_vec())
        });
        found.unwrap_or_default()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Arc<[Digest]>>> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }
}

/// The layers of an image manifest that its registry has; none of an index, or of what is not a manifest.
fn layers(manifest: &[u8]) -> Vec<Digest> {
    let Ok(image) = ImageManifest::from_reader(manifest) else { return Vec::new() };
    own_layers(&image).filter_map(|layer| layer.digest().as_ref().parse().ok()).take(LAYERS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(name: &str) -> Digest {
        Digest::sha256_of(name.as_bytes())
    }

    fn manifest(layers: &[&str]) -> Vec<u8> {
        let blob = |name: &&str| {
            let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
            serde_json::json!({ "mediaType": media_type, "digest": digest(name).to_string(), "size": 1 })
        };
        let layers: Vec<_> = layers.iter().map(blob).collect();
        let config = blob(&"config");
        serde_json::to_vec(&serde_json::json!({ "schemaVersion": 2, "config": config, "layers": layers })).unwrap()
    }

    #[test]
    fn a_layer_is_followed_by_those_above_it_and_never_by_those_below() {
        let images = Images::default();
        images.remember(&manifest(&["base", "middle", "top"]));
        assert_eq!(images.above(&digest("base")), [digest("middle"), digest("top")]);
        assert_eq!(images.above(&digest("middle")), [digest("top")]);
        assert!(images.above(&digest("top")).is_empty());
        assert!(images.above(&digest("unknown")).is_empty());
    }

    #[test]
    fn the_image_asked_for_last_decides_and_the_memory_is_bounded() {
        let images = Images::default();
        images.remember(&manifest(&["base", "old"]));
        images.remember(&manifest(&["base", "new"]));
        assert_eq!(images.above(&digest("base")), [digest("new")]);
        images.remember(&manifest(&["base", "old"]));
        assert_eq!(images.above(&digest("base")), [digest("old")]);
        for n in 0..IMAGES_MAX {
            images.remember(&manifest(&[&format!("{n}"), "x"]));
        }
        assert_eq!(images.lock().len(), IMAGES_MAX);
        assert!(images.above(&digest("base")).is_empty());
    }

    #[test]
    fn what_is_not_an_image_has_no_layers() {
        for text in
            ["", "{", "[]", r#"{"manifests":[{"digest":"sha256:00"}]}"#, r#"{"layers":[{"digest":"nonsense"}]}"#]
        {
            assert!(layers(text.as_bytes()).is_empty(), "{text}");
        }
        let foreign = serde_json::json!({ "layers": [{ "digest": digest("f").to_string(), "urls": ["https://x"] }] });
        assert!(layers(foreign.to_string().as_bytes()).is_empty());
    }

    #[test]
    fn a_manifest_of_the_origin_is_believed_only_if_it_has_the_digest_asked_for() {
        let content = manifest(&["a", "b"]);
        let given = Digest::sha256_of(&content);
        let response = |digest: Digest| ResolveResponse {
            digest: digest.to_string(),
            media_type: "application/vnd.oci.image.manifest.v1+json".into(),
            length_bytes: content.len() as u64,
            content: content.clone(),
            stale: false,
        };
        assert!(from_origin(response(given), &Reference::Digest(given), false).is_some());
        assert!(from_origin(response(given), &Reference::Tag("v1".into()), false).is_some());
        assert!(from_origin(response(given), &Reference::Digest(digest("other")), false).is_none());
        assert!(from_origin(response(digest("other")), &Reference::Tag("v1".into()), false).is_none());
    }
}
