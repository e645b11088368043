//! Manifests by digest and tag. A digest is asked of upstream once and kept; a tag is confirmed by one HEAD for the whole
//! cluster, good for a short while, and served stale only while upstream is down or limiting.
//!
//! Called by the gRPC service and the HTTP front. It checks the caller before it gives anything.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use shoal_meta::Digest;
use shoal_registry::{Access, MANIFEST_ACCEPT, Manifest, Reference, Repository, UpstreamError};
use tokio::time::Instant;

use crate::authorize::Authorizer;
use crate::error::OriginError;
use crate::flight::{Flights, Turn};
use crate::gate::{Gate, Kind};
use crate::lock;
use crate::metrics::OriginMetrics;
use crate::notes::Notes;
use crate::recent::Recent;
use crate::shelf::Shelf;

/// The most tags remembered.
const TAGS_MAX: usize = 16 * 1024;
/// The most media types taken from one request.
const ACCEPT_MAX: usize = 32;
/// The longest media type taken from a request.
const ACCEPT_LENGTH_MAX: usize = 255;
/// How long a tag that is known waits to be confirmed by a silent upstream before it is served stale.
const CONFIRM_PATIENCE: Duration = Duration::from_secs(2);
/// How often a caller tries for itself after sharing in the refusal of another.
const TRIES: usize = 3;

/// Gives manifests.
pub(crate) struct Manifests {
    gate: Arc<Gate>,
    authorizer: Arc<Authorizer>,
    shelf: Shelf,
    notes: Notes,
    tag_ttl: Duration,
    tags: Arc<Mutex<Recent<TagKey, Tagged>>>,
    confirming: Flights<TagKey, Result<Tagged, OriginError>>,
    fetching: Flights<(Repository, Digest), Result<Manifest, OriginError>>,
    metrics: OriginMetrics,
}

/// What was asked for.
#[derive(Debug)]
pub(crate) struct Resolved {
    /// The manifest; its content is empty when only the head was wanted.
    pub(crate) manifest: Manifest,
    /// The tag may have moved: upstream could not be asked.
    pub(crate) stale: bool,
}

/// What a tag names depends on the media types accepted: some registries convert. Their order says nothing, and dockerd
/// shuffles them.
#[derive(Clone, PartialEq, Eq, Hash)]
struct TagKey {
    repository: Repository,
    tag: String,
    accept: Vec<String>,
}

/// What a tag named when upstream was last asked: a manifest without its content.
#[derive(Clone)]
struct Tagged {
    manifest: Manifest,
    at: Instant,
}

impl Manifests {
    pub(crate) fn new(
        gate: Arc<Gate>,
        authorizer: Arc<Authorizer>,
        shelf: Shelf,
        notes: Notes,
        tag_ttl: Duration,
        metrics: OriginMetrics,
    ) -> Self {
        let tags = Arc::new(Mutex::new(Recent::new(TAGS_MAX)));
        let (confirming, fetching) = (Flights::new(), Flights::new());
        Self { gate, authorizer, shelf, notes, tag_ttl, tags, confirming, fetching, metrics }
    }

    /// Gives a manifest, or only its head, to a caller that may have it.
    pub(crate) async fn resolve(
        &self,
        access: &Access,
        reference: &Reference,
        head: bool,
        accept: &[String],
    ) -> Result<Resolved, OriginError> {
        let accept = checked_accept(accept);
        match reference {
            Reference::Digest(digest) => {
                let mut manifest = self.by_digest(access, digest, &accept).await?;
                if head {
                    manifest.content = Bytes::new();
                }
                Ok(Resolved { manifest, stale: false })
            }
            Reference::Tag(tag) => {
                let key = TagKey { repository: access.repository.clone(), tag: tag.clone(), accept };
                let (tagged, stale) = self.by_tag(access, &key, head).await?;
                if head {
                    return Ok(Resolved { manifest: tagged.manifest, stale });
                }
                let digest = tagged.manifest.digest;
                // Whoever was given the tag may have what it names.
                let manifest = match self.shelf.get(&digest).await {
                    Some(manifest) => manifest,
                    None => self.by_digest(access, &digest, &key.accept).await?,
                };
                Ok(Resolved { manifest, stale })
            }
        }
    }

    /// Whether a manifest is kept here, whoever may have it.
    pub(crate) fn holds(&self, digest: &Digest) -> bool {
        self.shelf.contains(digest)
    }

    /// How many manifests are kept, and their bytes on disk.
    pub(crate) fn usage(&self) -> (usize, u64) {
        self.shelf.usage()
    }

    async fn by_tag(&self, access: &Access, key: &TagKey, head: bool) -> Result<(Tagged, bool), OriginError> {
        let known = self.known(key).await;
        if let Some(tagged) = known.clone().filter(|tagged| tagged.at.elapsed() < self.tag_ttl) {
            self.count("tag", "hit");
            self.authorizer.check_tag(access, &tagged.manifest.digest).await?;
            return Ok((tagged, false));
        }
        self.count("tag", "miss");
        let confirmed = self.confirm(access, key, head || known.is_some());
        let last = match known {
            Some(tagged) => Some(tagged),
            // While upstream cannot be asked, what it named for another client's media types is better than nothing.
            None => self.known(&key.of_any_type()).await,
        };
        let Some(tagged) = last else { return confirmed.await.map(|tagged| (tagged, false)) };
        let refusal = match tokio::time::timeout(CONFIRM_PATIENCE, confirmed).await {
            Ok(Err(error)) if error.is_outage() || self.authorizer.overrules(&error) => error,
            Ok(answer) => return answer.map(|tagged| (tagged, false)),
            Err(_) => UpstreamError::Timeout { awaited: "a tag", after: CONFIRM_PATIENCE }.into(),
        };
        // Upstream has just shown that it cannot be asked about the caller either, or what it says does not count.
        if !self.authorizer.knows_tag_unasked(access, &tagged.manifest.digest).await {
            return Err(refusal);
        }
        self.metrics.stale_tags.inc();
        Ok((tagged, true))
    }

    /// What a tag named when upstream was last asked, be it before a restart.
    async fn known(&self, key: &TagKey) -> Option<Tagged> {
        let known = lock(&self.tags).get(key).cloned();
        if known.is_some() {
            return known;
        }
        let (at, note) = self.notes.get(&key.about()).await?;
        Tagged::from_note(&note, at)
    }

    /// Asks upstream what a tag names, once at a time for all callers. Each caller is checked.
    async fn confirm(&self, access: &Access, key: &TagKey, head: bool) -> Result<Tagged, OriginError> {
        for _ in 0..TRIES {
            let job = self.look_up(access.clone(), key.clone(), head);
            let (answer, turn) = self.confirming.run(key.clone(), job).await.map_err(|_| OriginError::Lost)?;
            match (answer, turn) {
                (Ok(tagged), Turn::Started) => return Ok(tagged),
                (Ok(tagged), Turn::Joined) => {
                    self.authorizer.check_tag(access, &tagged.manifest.digest).await?;
                    return Ok(tagged);
                }
                (Err(error), Turn::Joined) if error.is_about_the_caller() => {}
                (Err(error), _) => return Err(error),
            }
        }
        Err(OriginError::Busy("too many callers are refused this tag"))
    }

    fn look_up(
        &self,
        access: Access,
        key: TagKey,
        head: bool,
    ) -> impl Future<Output = Result<Tagged, OriginError>> + Send + use<> {
        let (gate, authorizer) = (Arc::clone(&self.gate), Arc::clone(&self.authorizer));
        let (shelf, tags, notes) = (self.shelf.clone(), Arc::clone(&self.tags), self.notes.clone());
        async move {
            let reference = Reference::Tag(key.tag.clone());
            let mut manifest = gate.manifest(&access, &reference, head, &key.accept).await?;
            authorizer.note_given(&access, &manifest.digest).await;
            if !head {
                keep(&shelf, &manifest).await;
                manifest.content = Bytes::new();
            }
            let tagged = Tagged { manifest, at: Instant::now() };
            notes.put(&key.about(), tagged.to_note()).await;
            if !key.accept.is_empty() {
                notes.put(&key.of_any_type().about(), tagged.to_note()).await;
            }
            lock(&tags).put(key, tagged.clone());
            Ok(tagged)
        }
    }

    async fn by_digest(&self, access: &Access, digest: &Digest, accept: &[String]) -> Result<Manifest, OriginError> {
        for _ in 0..TRIES {
            if let Some(manifest) = self.shelf.get(digest).await {
                self.count("manifest", "hit");
                self.authorizer.check(access, Kind::Manifest, digest).await?;
                return Ok(manifest);
            }
            self.count("manifest", "miss");
            let key = (access.repository.clone(), *digest);
            let job = self.fetch(access.clone(), *digest, accept);
            let (answer, turn) = self.fetching.run(key, job).await.map_err(|_| OriginError::Lost)?;
            match (answer, turn) {
                (Ok(manifest), Turn::Started) => return Ok(manifest),
                (Ok(manifest), Turn::Joined) => {
                    self.authorizer.check(access, Kind::Manifest, digest).await?;
                    return Ok(manifest);
                }
                // Its own credentials decide, before it tries itself.
                (Err(error), Turn::Joined) if error.is_about_the_caller() => {
                    self.authorizer.check(access, Kind::Manifest, digest).await?;
                }
                (Err(error), _) => return Err(error),
            }
        }
        Err(OriginError::Busy("too many callers are refused this manifest"))
    }

    fn fetch(
        &self,
        access: Access,
        digest: Digest,
        accept: &[String],
    ) -> impl Future<Output = Result<Manifest, OriginError>> + Send + use<> {
        let (gate, authorizer) = (Arc::clone(&self.gate), Arc::clone(&self.authorizer));
        let shelf = self.shelf.clone();
        // A registry converts, or denies having, what the media types do not cover; a digest wants it as it is.
        let own = MANIFEST_ACCEPT.iter().map(|media_type| (*media_type).to_owned());
        let mut accept: Vec<_> = own.chain(accept.iter().cloned()).collect();
        accept.dedup();
        async move {
            let manifest = gate.manifest(&access, &Reference::Digest(digest), false, &accept).await?;
            authorizer.note_given(&access, &digest).await;
            keep(&shelf, &manifest).await;
            Ok(manifest)
        }
    }

    fn count(&self, kind: &str, result: &str) {
        self.metrics.cache_requests.with_label_values(&[kind, result]).inc();
    }
}

impl TagKey {
    /// The same tag, whatever is accepted.
    fn of_any_type(&self) -> Self {
        Self { accept: Vec::new(), ..self.clone() }
    }

    /// What its note is about.
    fn about(&self) -> impl std::fmt::Debug {
        ("tag", &self.repository.registry, &self.repository.name, &self.tag, &self.accept)
    }
}

impl Tagged {
    fn to_note(&self) -> String {
        let Manifest { digest, length, media_type, .. } = &self.manifest;
        format!("{digest}\n{length}\n{media_type}\n")
    }

    /// None from a torn one.
    fn from_note(note: &str, at: Instant) -> Option<Self> {
        let mut lines = note.strip_suffix('\n')?.splitn(3, '\n');
        let (digest, length) = (lines.next()?.parse().ok()?, lines.next()?.parse().ok()?);
        let media_type = lines.next()?.to_owned();
        Some(Self { manifest: Manifest { digest, media_type, length, content: Bytes::new() }, at })
    }
}

/// A full disk costs the cache and not the answer.
async fn keep(shelf: &Shelf, manifest: &Manifest) {
    if let Err(error) = shelf.put(manifest).await {
        tracing::warn!(digest = %manifest.digest, %error, "manifest cannot be kept");
    }
}

/// The media types of a request, bounded and in one order whatever the client's (RFC 9110, section 12.5.1: it has no meaning).
fn checked_accept(accept: &[String]) -> Vec<String> {
    let words = accept.iter().flat_map(|line| line.split(',')).map(str::trim);
    let fine = words.filter(|word| !word.is_empty() && word.len() <= ACCEPT_LENGTH_MAX);
    let mut fine: Vec<_> = fine.take(ACCEPT_MAX).map(str::to_owned).collect();
    fine.sort();
    fine.dedup();
    fine
}
