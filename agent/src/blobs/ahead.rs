//! What is done ahead of requests: a manifest warms the metainfo of its layers, and a layer that is asked for starts those
//! above it.
//!
//! The front says when. Warming moves no payload and makes nobody fetch; neither fetches from upstream here. Warm
//! metainfo is a head start and no leave: a blob request is authorised as any other.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use shoal_meta::Digest;
use shoal_registry::{Access, UpstreamError};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::{Blobs, Opened};
use crate::origin::{Feed, OriginError};

/// Most layers above the one asked for that are fetched at a time.
const PREFETCHES_MAX: usize = 4;
/// Most layers waiting to be prefetched.
const PREFETCH_QUEUE_MAX: usize = 512;
/// Most layers whose metainfo is asked for ahead at a time.
const WARMINGS_MAX: usize = 4;
/// How long an origin may take to give all of it.
const WARMING_PATIENCE: Duration = Duration::from_secs(2);
/// Most layers waiting to be warmed, and most that are warm; the oldest goes first.
const WARM_MAX: usize = 64;
/// How long warmed metainfo is used: the origin that gave it seeds the blob, and may have evicted it later.
const WARM_FOR: Duration = Duration::from_secs(60);

/// What is under way ahead of requests, and what came of it.
#[derive(Debug)]
pub(super) struct Ahead {
    prefetches: Semaphore,
    warmings: Semaphore,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    prefetching: HashSet<Digest>,
    warming: HashSet<Digest>,
    warm: Warm,
}

/// Metainfo at hand, oldest first. Used once: an origin is asked again if it was of no use.
#[derive(Debug, Default)]
struct Warm(VecDeque<(Digest, Instant, Feed)>);

impl Ahead {
    pub(super) fn new() -> Self {
        let (prefetches, warmings) = (Semaphore::new(PREFETCHES_MAX), Semaphore::new(WARMINGS_MAX));
        Self { prefetches, warmings, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }
}

impl Warm {
    fn has(&self, digest: &Digest, now: Instant) -> bool {
        self.0.iter().any(|(warm, at, _)| warm == digest && is_warm(*at, now))
    }

    fn count(&self, now: Instant) -> usize {
        self.0.iter().filter(|(_, at, _)| is_warm(*at, now)).count()
    }

    fn put(&mut self, digest: Digest, now: Instant, feed: Feed) {
        self.0.retain(|(warm, at, _)| *warm != digest && is_warm(*at, now));
        if self.0.len() >= WARM_MAX {
            self.0.pop_front();
        }
        self.0.push_back((digest, now, feed));
    }

    fn take(&mut self, digest: &Digest, now: Instant) -> Option<Feed> {
        let position = self.0.iter().position(|(warm, _, _)| warm == digest)?;
        let (_, at, feed) = self.0.remove(position)?;
        is_warm(at, now).then_some(feed)
    }
}

fn is_warm(at: Instant, now: Instant) -> bool {
    now.duration_since(at) < WARM_FOR
}

impl Blobs {
    /// Asks for the metainfo of layers that are likely to be asked for, as far as an origin holds them.
    pub(crate) fn warm(self: &Arc<Self>, access: &Access, layers: &[Digest]) {
        if !self.origins.is_up() {
            return;
        }
        for &digest in layers {
            let known = self.find(&digest).is_some();
            let mut state = self.ahead.lock();
            let warm = state.warm.has(&digest, Instant::now());
            if known || warm || state.warming.len() >= WARM_MAX || !state.warming.insert(digest) {
                continue;
            }
            drop(state);
            let (blobs, access) = (self.clone(), access.clone());
            self.spawn(async move {
                let feed = blobs.warmed(&access, &digest).await;
                let mut state = blobs.ahead.lock();
                state.warming.remove(&digest);
                if let Some(feed) = feed {
                    state.warm.put(digest, Instant::now(), feed);
                }
            });
        }
    }

    /// How many layers are warm.
    pub(crate) fn warm_count(&self) -> usize {
        self.ahead.lock().warm.count(Instant::now())
    }

    async fn warmed(&self, access: &Access, digest: &Digest) -> Option<Feed> {
        let _permit = self.ahead.warmings.acquire().await.ok()?;
        let asked = async {
            let Some(feed) = self.origins.metainfo_held(access, digest).await? else { return Ok(None) };
            let feed = feed.gathered().await?;
            if feed.is_some() {
                // So that the request itself need not wait for it. Unlike the stream, this says how long the leave holds.
                self.authorizer.check(access, digest).await.map_err(OriginError::Upstream)?;
            }
            Ok(feed)
        };
        match timeout(WARMING_PATIENCE, asked).await.unwrap_or(Err(OriginError::Away)) {
            Ok(feed) => feed,
            Err(error) => {
                tracing::debug!(%digest, %error, "metainfo of a layer is not warmed");
                None
            }
        }
    }

    /// Opens a blob whose metainfo is at hand, for an access that upstream lets have it.
    ///
    /// # Errors
    /// With what upstream says to this access, or why nobody can be asked.
    pub(super) async fn open_warm(
        self: &Arc<Self>,
        access: &Access,
        digest: &Digest,
    ) -> Result<Option<Opened>, UpstreamError> {
        if !self.origins.is_up() || !self.ahead.lock().warm.has(digest, Instant::now()) {
            return Ok(None);
        }
        self.authorizer.check(access, digest).await?;
        let feed = self.ahead.lock().warm.take(digest, Instant::now());
        match feed {
            Some(feed) => Ok(Some(self.begin_fed(access, digest, feed).await)),
            None => Ok(None),
        }
    }

    /// Fetches layers that will be asked for next, from the swarm alone: a swarm that is away is no reason to go upstream.
    pub(crate) fn prefetch(self: &Arc<Self>, access: &Access, layers: Vec<Digest>) {
        if !self.origins.is_up() {
            return;
        }
        for digest in layers {
            let known = self.find(&digest).is_some();
            let mut state = self.ahead.lock();
            if known || state.prefetching.len() >= PREFETCH_QUEUE_MAX || !state.prefetching.insert(digest) {
                continue;
            }
            drop(state);
            let (blobs, access) = (self.clone(), access.clone());
            self.spawn(async move {
                blobs.fetch_ahead(&access, &digest).await;
                blobs.ahead.lock().prefetching.remove(&digest);
            });
        }
    }

    async fn fetch_ahead(self: &Arc<Self>, access: &Access, digest: &Digest) {
        let Ok(_permit) = self.ahead.prefetches.acquire().await else { return };
        if self.find(digest).is_some() {
            return;
        }
        match self.open_ahead(access, digest).await {
            // One that a client came to want makes room for the next.
            Ok(Opened::Arriving(download)) => {
                download.fetch_whole();
                loop {
                    let changed = download.readers_changed();
                    if download.over.is_cancelled() || download.is_wanted() {
                        break;
                    }
                    tokio::select! {
                        () = download.over.cancelled() => {}
                        () = changed => {}
                    }
                }
            }
            Ok(Opened::Stored(_) | Opened::Upstream { .. }) => {}
            Err(error) => tracing::debug!(%digest, %error, "layer is not fetched ahead"),
        }
    }

    /// Fetches a blob from the swarm alone and returns when it is whole. Whoever lets it go before lets the download go on.
    ///
    /// # Errors
    /// Why it is not here, for people.
    pub(crate) async fn preheat(self: &Arc<Self>, access: &Access, digest: &Digest) -> Result<(), String> {
        let opened = match self.find(digest) {
            Some(opened) => opened,
            None => {
                let feed = self.origins.metainfo(access, digest, 0).await.map_err(|error| error.to_string())?;
                self.begin_fed(access, digest, feed).await
            }
        };
        match opened {
            Opened::Stored(_) | Opened::Upstream { length: 0 } => Ok(()),
            Opened::Upstream { .. } => Err("the store does not take it".to_owned()),
            Opened::Arriving(download) => {
                download.fetch_whole();
                download.over.cancelled().await;
                let whole = self.store.blob(digest).map(drop);
                whole.ok_or_else(|| "nobody brought it whole".to_owned())
            }
        }
    }

    /// How much of a blob is here, in bytes.
    pub(crate) fn held_bytes(&self, digest: &Digest) -> u64 {
        match self.find(digest) {
            None | Some(Opened::Upstream { .. }) => 0,
            Some(Opened::Stored(blob)) => blob.length(),
            Some(Opened::Arriving(download)) => {
                let geometry = download.geometry();
                let held = u64::from(download.partial().have().count()) * u64::from(geometry.piece_length());
                held.min(geometry.length())
            }
        }
    }

    async fn open_ahead(self: &Arc<Self>, access: &Access, digest: &Digest) -> Result<Opened, OriginError> {
        if let Some(opened) = self.open_warm(access, digest).await.map_err(OriginError::Upstream)? {
            return Ok(opened);
        }
        let feed = self.origins.metainfo(access, digest, 0).await?;
        self.authorizer.note(access, digest, &Ok(()));
        Ok(self.begin_fed(access, digest, feed).await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: usize) -> Digest {
        Digest::sha256_of(&n.to_le_bytes())
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_warm_is_bounded_used_once_and_cools_down() {
        let (mut warm, now) = (Warm::default(), Instant::now());
        for n in 0..=WARM_MAX {
            warm.put(digest(n), now, Feed::empty());
            warm.put(digest(n), now, Feed::empty());
        }
        assert_eq!(warm.0.len(), WARM_MAX);
        assert!(!warm.has(&digest(0), now) && warm.has(&digest(1), now));
        assert!(warm.take(&digest(1), now).is_some());
        assert!(warm.take(&digest(1), now).is_none());
        assert!(!warm.has(&digest(2), now + WARM_FOR));
        assert!(warm.take(&digest(2), now + WARM_FOR).is_none());
        warm.put(digest(0), now + WARM_FOR, Feed::empty());
        assert_eq!(warm.0.len(), 1);
    }
}
