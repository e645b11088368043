//! What images are made of, platform by platform: asked of the origins, which ask the registry once and remember it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use oci_spec::image::{ImageIndex, ImageManifest};
use prost::Message as _;
use shoal_identity::{Identity, Part};
use shoal_kube::{ImageStatus, Platform};
use shoal_meta::{Digest, Server};
use shoal_proto::UPSTREAM_ERROR_METADATA;
use shoal_proto::origin::v1::origin_client::OriginClient;
use shoal_proto::origin::v1::{self as origin, GrantRequest, ResolveRequest, ResolveResponse};
use shoal_proto::preheat::v1 as proto;
use shoal_registry::image::{manifest_for, own_layers};
use shoal_registry::reference::parse_image;
use shoal_registry::{MANIFEST_ACCEPT, MANIFEST_LENGTH_MAX, Reference, ReferenceError, Repository, TICKET_SCHEME};
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::plan::{Tasks, bytes};

/// How long a connection to an origin may take, and one call: the registry answers within it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a ticket is good; it is prolonged more often.
const TICKET_VALID: Duration = Duration::from_secs(600);
/// The most blobs of one image; images have at most 127 layers.
const BLOBS_MAX: usize = 512;

/// Says why an image cannot be preheated. All are worth another try, as the registry may have changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    /// The spec's fault.
    #[error("the image {image:?} cannot be read")]
    Reference {
        image: String,
        #[source]
        source: ReferenceError,
    },
    /// The registry refuses, or the image is not there.
    #[error("{image}: {message}")]
    Refused { image: String, message: String },
    /// No origin can be asked.
    #[error("no origin answers: {0}")]
    Away(String),
    /// What the origin gave makes no sense.
    #[error("{image}: what the registry gave is no image: {message}")]
    Malformed { image: String, message: String },
}

/// The origins, and what they are asked.
#[derive(Debug, Clone)]
pub(crate) struct Images {
    origins: watch::Receiver<Vec<Server>>,
    identity: Identity,
}

/// What a round fetches, and what is said of it.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) tasks: Tasks,
    pub(crate) statuses: Vec<ImageStatus>,
}

/// The right to read private images, as the origins know it.
#[derive(Debug, Clone)]
pub(crate) struct Ticket {
    text: String,
    docker_configs: Vec<Vec<u8>>,
}

impl Ticket {
    /// One that stands for these pull secrets once origins were told; `None` without any.
    pub(crate) fn for_secrets(docker_configs: Vec<Vec<u8>>) -> Option<Self> {
        let text = format!("{:032x}", rand::random::<u128>());
        (!docker_configs.is_empty()).then_some(Self { text, docker_configs })
    }

    /// Each image has one of its own: a ticket opens one repository.
    fn of_image(&self, index: usize) -> String {
        format!("{}-{index}", self.text)
    }
}

impl Images {
    pub(crate) fn new(origins: watch::Receiver<Vec<Server>>, identity: Identity) -> Self {
        Self { origins, identity }
    }

    /// Looks up what each platform fetches of these images. A platform that one of them has nothing for is left out.
    pub(crate) async fn find(
        &self,
        id: &str,
        images: &[String],
        platforms: &[Platform],
        ticket: Option<&Ticket>,
    ) -> Result<Found, ImageError> {
        let revision = rand::random();
        let new = || proto::Task { id: id.to_owned(), revision, images: Vec::new() };
        let origins = self.clients();
        let mut tasks: BTreeMap<_, _> = platforms.iter().map(|platform| (platform.clone(), new())).collect();
        let mut statuses = Vec::new();
        for (index, image) in images.iter().enumerate() {
            let (repository, reference) = parse(image)?;
            let authorization = ticket.map(|ticket| format!("{TICKET_SCHEME} {}", ticket.of_image(index)));
            let access = shoal_proto::access(&repository.registry, &repository.name, authorization.as_deref());
            let top = resolve(&origins, image, &access, &reference).await?;
            let manifests = manifests(&origins, image, &access, &top, platforms).await?;
            let mut bytes_max = 0;
            tasks.retain(|platform, _| manifests.contains_key(platform));
            for (platform, task) in &mut tasks {
                let blobs = manifests.get(platform).cloned().unwrap_or_default();
                let (registry, name) = (access.registry.clone(), access.repository.clone());
                let authorization = access.authorization.clone();
                let before = bytes(task);
                task.images.push(proto::Image { registry, repository: name, authorization, blobs });
                bytes_max = bytes_max.max(bytes(task) - before);
            }
            statuses.push(ImageStatus { image: image.clone(), digest: top.digest, bytes: bytes_max });
        }
        let tasks = tasks.into_iter().map(|(platform, task)| (platform, Arc::new(task))).collect();
        Ok(Found { tasks, statuses })
    }

    /// Lets origins know what the ticket stands for, each of them, for some minutes. What one refuses none lets pass.
    pub(crate) async fn grant(&self, images: &[String], ticket: &Ticket) -> Result<(), ImageError> {
        let origins = self.clients();
        for (index, image) in images.iter().enumerate() {
            let (repository, _) = parse(image)?;
            let request = GrantRequest {
                registry: repository.registry,
                repository: repository.name,
                docker_configs: ticket.docker_configs.clone(),
                ticket: ticket.of_image(index),
                valid_ms: u32::try_from(TICKET_VALID.as_millis()).unwrap_or(u32::MAX),
            };
            let mut granted = Err(ImageError::Away("there is none".to_owned()));
            for mut origin in origins.iter().cloned() {
                match origin.grant(request.clone()).await {
                    Ok(_) => granted = Ok(()),
                    Err(status) => match refusal(image, &status) {
                        Some(refused) => return Err(refused),
                        None if granted.is_err() => granted = Err(ImageError::Away(status.message().to_owned())),
                        None => {}
                    },
                }
            }
            granted?;
        }
        Ok(())
    }

    /// The ways to the origins there are, for all that one operation asks of them.
    fn clients(&self) -> Vec<OriginClient<Channel>> {
        let origins = self.origins.borrow();
        let client = |server: &Server| {
            let endpoint = shoal_identity::endpoint(&server.url)?;
            let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT).timeout(CALL_TIMEOUT);
            let channel = self.identity.channel(&endpoint, Part::Origin);
            Some(OriginClient::new(channel).max_decoding_message_size(MANIFEST_LENGTH_MAX + (64 << 10)))
        };
        origins.iter().filter_map(client).collect()
    }
}

/// The blobs of each platform that an image has something for.
async fn manifests(
    origins: &[OriginClient<Channel>],
    image: &str,
    access: &origin::Access,
    top: &ResolveResponse,
    platforms: &[Platform],
) -> Result<BTreeMap<Platform, Vec<proto::Blob>>, ImageError> {
    let malformed = |message: String| ImageError::Malformed { image: image.to_owned(), message };
    if !is_index(&top.content) {
        // It does not say what it is for: its config would.
        let blobs = blobs(&top.content).map_err(malformed)?;
        return Ok(platforms.iter().map(|platform| (platform.clone(), blobs.clone())).collect());
    }
    let index = ImageIndex::from_reader(top.content.as_slice()).map_err(|error| malformed(error.to_string()))?;
    let mut found = BTreeMap::new();
    for platform in platforms {
        let Some(descriptor) = manifest_for(&index, &platform.os, &platform.architecture) else { continue };
        let digest: Digest =
            descriptor.digest().as_ref().parse().map_err(|error| malformed(format!("its digest: {error}")))?;
        let manifest = resolve(origins, image, access, &Reference::Digest(digest)).await?;
        found.insert(platform.clone(), blobs(&manifest.content).map_err(malformed)?);
    }
    Ok(found)
}

/// Asks one origin after the other for a manifest.
async fn resolve(
    origins: &[OriginClient<Channel>],
    image: &str,
    access: &origin::Access,
    reference: &Reference,
) -> Result<ResolveResponse, ImageError> {
    let mut away = "there is none".to_owned();
    for mut origin in origins.iter().cloned() {
        let request = ResolveRequest {
            access: Some(access.clone()),
            reference: reference.to_string(),
            head: false,
            accept: MANIFEST_ACCEPT.map(str::to_owned).to_vec(),
        };
        match origin.resolve(request).await {
            Ok(response) => return Ok(response.into_inner()),
            Err(status) => match refusal(image, &status) {
                Some(refused) => return Err(refused),
                None => status.message().clone_into(&mut away),
            },
        }
    }
    Err(ImageError::Away(away))
}

fn parse(image: &str) -> Result<(Repository, Reference), ImageError> {
    parse_image(image).map_err(|source| ImageError::Reference { image: image.to_owned(), source })
}

/// What the registry said, if the origin got that far.
fn refusal(image: &str, status: &Status) -> Option<ImageError> {
    let image = image.to_owned();
    if status.code() == Code::InvalidArgument {
        return Some(ImageError::Refused { image, message: status.message().to_owned() });
    }
    let bytes = status.metadata().get_bin(UPSTREAM_ERROR_METADATA)?.to_bytes().ok()?;
    let error = origin::UpstreamError::decode(bytes).ok()?;
    Some(ImageError::Refused { image, message: format!("{}: {}", error.code, error.message) })
}

fn is_index(content: &[u8]) -> bool {
    let document: Result<serde_json::Value, _> = serde_json::from_slice(content);
    document.is_ok_and(|document| document.get("manifests").is_some())
}

/// The blobs that a manifest names and the registry has, its config among them.
fn blobs(manifest: &[u8]) -> Result<Vec<proto::Blob>, String> {
    let manifest = ImageManifest::from_reader(manifest).map_err(|error| error.to_string())?;
    let mut blobs: Vec<proto::Blob> = Vec::new();
    for descriptor in std::iter::once(manifest.config()).chain(own_layers(&manifest)) {
        let digest: Digest = descriptor.digest().as_ref().parse().map_err(|error| format!("a digest: {error}"))?;
        let blob = proto::Blob { digest: digest.to_string(), length_bytes: descriptor.size() };
        if !blobs.contains(&blob) {
            blobs.push(blob);
        }
    }
    if blobs.len() > BLOBS_MAX {
        return Err(format!("it has {} layers, more than {BLOBS_MAX}", blobs.len()));
    }
    Ok(blobs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_proto::origin::v1::UpstreamError;

    fn digest(name: &str) -> String {
        Digest::sha256_of(name.as_bytes()).to_string()
    }

    fn layer(name: &str) -> serde_json::Value {
        let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
        serde_json::json!({ "mediaType": media_type, "digest": digest(name), "size": name.len() })
    }

    fn manifest(layers: &[serde_json::Value]) -> Vec<u8> {
        let manifest = serde_json::json!({ "schemaVersion": 2, "config": layer("config"), "layers": layers });
        serde_json::to_vec(&manifest).unwrap()
    }

    #[test]
    fn an_image_is_its_config_and_each_of_its_own_layers_once() {
        let mut foreign = layer("foreign");
        foreign["urls"] = serde_json::json!(["https://elsewhere.example/layer"]);
        let blobs = blobs(&manifest(&[layer("base"), foreign, layer("top"), layer("base")])).unwrap();
        let names: Vec<_> = blobs.iter().map(|blob| (blob.digest.as_str(), blob.length_bytes)).collect();
        let (config, base, top) = (digest("config"), digest("base"), digest("top"));
        assert_eq!(names, [(config.as_str(), 6), (base.as_str(), 4), (top.as_str(), 3)]);
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let many: Vec<_> = (0..BLOBS_MAX).map(|n| layer(&format!("{n}"))).collect();
        assert_eq!(blobs(&manifest(&many)).unwrap_err(), "it has 513 layers, more than 512");
        for content in ["", "{}", "[]", r#"{"schemaVersion":2,"layers":[]}"#] {
            assert!(blobs(content.as_bytes()).is_err(), "{content}");
        }
    }

    #[test]
    fn of_an_index_a_platform_takes_its_own_manifest_and_no_attestation() {
        let entry = |os: &str, architecture: &str| {
            let media_type = "application/vnd.oci.image.manifest.v1+json";
            let platform = serde_json::json!({ "os": os, "architecture": architecture });
            serde_json::json!({ "mediaType": media_type, "digest": digest(architecture), "size": 1, "platform": platform })
        };
        let manifests = [entry("unknown", "unknown"), entry("linux", "arm64"), entry("windows", "amd64")];
        let index = serde_json::to_vec(&serde_json::json!({ "schemaVersion": 2, "manifests": manifests })).unwrap();
        assert!(is_index(&index) && !is_index(&manifest(&[])));
        let index = ImageIndex::from_reader(index.as_slice()).unwrap();
        let found = |os: &str, architecture: &str| {
            let found = manifest_for(&index, os, architecture)?;
            index.manifests().iter().position(|entry| entry == found)
        };
        assert_eq!(
            (found("linux", "arm64"), found("linux", "amd64"), found("windows", "amd64")),
            (Some(1), None, Some(2))
        );
    }

    #[test]
    fn the_words_of_the_registry_are_told_and_an_origin_that_is_away_is_none() {
        assert!(refusal("app", &Status::unavailable("connection refused")).is_none());
        let error = UpstreamError { code: "DENIED".into(), message: "not yours".into(), ..UpstreamError::default() };
        let mut status = Status::permission_denied("");
        let bytes = tonic::metadata::MetadataValue::from_bytes(&error.encode_to_vec());
        status.metadata_mut().insert_bin(UPSTREAM_ERROR_METADATA, bytes);
        assert_eq!(refusal("app", &status).unwrap().to_string(), "app: DENIED: not yours");
    }
}
