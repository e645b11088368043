//! What the embedded registry serves: blobs, manifests, tags.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde_json::{Value, json};
use shoal_meta::Digest;

/// Blobs and manifests in memory. Every blob is in every repository.
#[derive(Debug, Clone, Default)]
pub struct Content {
    blobs: BTreeMap<Digest, Bytes>,
    manifests: BTreeMap<Digest, Document>,
    /// By repository, then by tag.
    tags: BTreeMap<String, BTreeMap<String, Digest>>,
    /// What each repository holds.
    holdings: BTreeSet<(String, Digest)>,
    /// Descriptors of the manifests that refer to another, by the one referred to.
    referrers: BTreeMap<Digest, Vec<Value>>,
}

/// A manifest with its media type.
#[derive(Debug, Clone)]
pub(super) struct Document {
    pub(super) media_type: String,
    pub(super) content: Bytes,
}

/// A layer of an image.
#[derive(Debug, Clone)]
pub struct Layer {
    media_type: &'static str,
    content: Bytes,
    diff_id: Digest,
}

/// An image that was added: its digests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The manifest.
    pub manifest: Digest,
    /// The configuration blob.
    pub config: Digest,
    /// The layers, lowest first.
    pub layers: Vec<Digest>,
}

impl Layer {
    /// An uncompressed tar archive.
    #[must_use]
    pub fn tar(content: impl Into<Bytes>) -> Self {
        let content = content.into();
        let diff_id = Digest::sha256_of(&content);
        Self { media_type: "application/vnd.oci.image.layer.v1.tar", content, diff_id }
    }

    /// A gzipped tar archive; `diff_id` is the digest of the archive before compression.
    #[must_use]
    pub fn gzip(content: impl Into<Bytes>, diff_id: Digest) -> Self {
        Self { media_type: "application/vnd.oci.image.layer.v1.tar+gzip", content: content.into(), diff_id }
    }
}

impl Content {
    /// Nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a blob.
    pub fn add_blob(&mut self, content: impl Into<Bytes>) -> Digest {
        let content = content.into();
        let digest = Digest::sha256_of(&content);
        self.blobs.insert(digest, content);
        digest
    }

    /// Adds a manifest or index to a repository, under a tag or by digest only.
    pub fn add_manifest(
        &mut self,
        repository: &str,
        tag: Option<&str>,
        media_type: &str,
        content: impl Into<Bytes>,
    ) -> Digest {
        let content = content.into();
        let digest = Digest::sha256_of(&content);
        self.manifests.insert(digest, Document { media_type: media_type.to_owned(), content });
        self.holdings.insert((repository.to_owned(), digest));
        let tags = self.tags.entry(repository.to_owned()).or_default();
        if let Some(tag) = tag {
            tags.insert(tag.to_owned(), digest);
        }
        digest
    }

    /// Adds a manifest that refers to another, by digest only. The registry offers referrers when there is one.
    pub fn add_referrer(&mut self, repository: &str, subject: &Digest, artifact_type: &str) -> Digest {
        const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
        let empty = json!({
            "mediaType": "application/vnd.oci.empty.v1+json", "digest": self.add_blob("{}").to_string(), "size": 2
        });
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "artifactType": artifact_type, "config": empty, "layers": [empty],
            "subject": { "mediaType": MANIFEST_TYPE, "digest": subject.to_string(), "size": 1 },
        });
        let manifest = manifest.to_string();
        let size = manifest.len();
        let digest = self.add_manifest(repository, None, MANIFEST_TYPE, manifest);
        self.referrers.entry(*subject).or_default().push(json!({
            "mediaType": MANIFEST_TYPE, "digest": digest.to_string(), "size": size, "artifactType": artifact_type
        }));
        digest
    }

    /// Adds an OCI image of these layers, lowest first, for Linux on this machine's architecture.
    pub fn add_image(&mut self, repository: &str, tag: &str, layers: Vec<Layer>) -> Image {
        const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
        const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id.to_string()).collect();
        let config = json!({
            "architecture": architecture, "os": "linux", "config": {}, "rootfs": { "type": "layers", "diff_ids": diff_ids }
        });
        let config = Bytes::from(config.to_string());
        let config_length = config.len();
        let config = self.add_blob(config);
        let mut digests = Vec::new();
        let mut descriptors = Vec::new();
        for layer in layers {
            let length = layer.content.len();
            let digest = self.add_blob(layer.content);
            digests.push(digest);
            descriptors.push(json!({ "mediaType": layer.media_type, "digest": digest.to_string(), "size": length }));
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": { "mediaType": CONFIG_TYPE, "digest": config.to_string(), "size": config_length },
            "layers": descriptors,
        });
        let manifest = self.add_manifest(repository, Some(tag), MANIFEST_TYPE, manifest.to_string());
        Image { manifest, config, layers: digests }
    }

    /// The bytes of a blob.
    #[must_use]
    pub fn blob(&self, digest: &Digest) -> Option<&Bytes> {
        self.blobs.get(digest)
    }

    pub(super) fn manifest(&self, repository: &str, digest: &Digest) -> Option<&Document> {
        let held = self.holdings.contains(&(repository.to_owned(), *digest));
        self.manifests.get(digest).filter(|_| held)
    }

    /// Descriptors of what refers to a manifest; `None` if referrers are not offered at all.
    pub(super) fn referrers(&self, subject: &Digest) -> Option<&[Value]> {
        (!self.referrers.is_empty()).then(|| self.referrers.get(subject).map_or(&[][..], Vec::as_slice))
    }

    /// The tags of a repository in order; `None` if there is no such repository.
    pub(super) fn tags(&self, repository: &str) -> Option<&BTreeMap<String, Digest>> {
        self.tags.get(repository)
    }
}
