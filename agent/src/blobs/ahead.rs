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
use tokio::sync::{Semaphore, SemaphorePermit};
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
    prefetches: Line,
    warmings: Line,
    warm: Mutex<Warm>,
}

/// Layers that are worked on a few at a time, in the order they came: tasks start in any order, and nodes that begin with
/// different layers have less to give each other.
#[derive(Debug)]
struct Line {
    at_a_time: Semaphore,
    length_max: usize,
    state: Mutex<LineState>,
}

#[derive(Debug, Default)]
struct LineState {
    /// Waiting or worked on.
    members: HashSet<Digest>,
    waiting: VecDeque<(Access, Digest)>,
}

/// Metainfo at hand, oldest first. Used once: an origin is asked again if it was of no use.
#[derive(Debug, Default)]
struct Warm(VecDeque<(Digest, Instant, Feed)>);

impl Ahead {
    pub(super) fn new() -> Self {
        let line =
            |at_a_time, length_max| Line { at_a_time: Semaphore::new(at_a_time), length_max, state: Mutex::default() };
        Self {
            prefetches: line(PREFETCHES_MAX, PREFETCH_QUEUE_MAX),
            warmings: line(WARMINGS_MAX, WARM_MAX),
            warm: Mutex::default(),
        }
    }

    fn warm(&self) -> MutexGuard<'_, Warm> {
        self.warm.lock().expect("nothing panics while it holds this lock")
    }
}

impl Line {
    /// Puts a layer at the end. Tells whether it is now to wait for [`next`](Self::next): it was not there before, and there
    /// is room.
    fn join(&self, access: &Access, digest: Digest) -> bool {
        let mut state = self.lock();
        if state.members.len() >= self.length_max || !state.members.insert(digest) {
            return false;
        }
        state.waiting.push_back((access.clone(), digest));
        true
    }

    /// The first that waits, once fewer are worked on than may be. To be called once for each that joined.
    async fn next(&self) -> Option<(SemaphorePermit<'_>, Access, Digest)> {
        let permit = self.at_a_time.acquire().await.ok()?;
        let (access, digest) = self.lock().waiting.pop_front()?;
        Some((permit, access, digest))
    }

    fn leave(&self, digest: &Digest) {
        self.lock().members.remove(digest);
    }

    fn lock(&self) -> MutexGuard<'_, LineState> {
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
            let known = self.find(&digest).is_some() || self.ahead.warm().has(&digest, Instant::now());
            if known || !self.ahead.warmings.join(access, digest) {
                continue;
            }
            let blobs = self.clone();
            self.spawn(async move {
                let Some((_permit, access, digest)) = blobs.ahead.warmings.next().await else { return };
                if let Some(feed) = blobs.warmed(&access, &digest).await {
                    blobs.ahead.warm().put(digest, Instant::now(), feed);
                }
                blobs.ahead.warmings.leave(&digest);
            });
        }
    }

    /// How many layers are warm.
    pub(crate) fn warm_count(&self) -> usize {
        self.ahead.warm().count(Instant::now())
    }

    async fn warmed(&self, access: &Access, digest: &Digest) -> Option<Feed> {
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
        if !self.origins.is_up() || !self.ahead.warm().has(digest, Instant::now()) {
            return Ok(None);
        }
        self.authorizer.check(access, digest).await?;
        let feed = self.ahead.warm().take(digest, Instant::now());
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
            if self.find(&digest).is_some() || !self.ahead.prefetches.join(access, digest) {
                continue;
            }
            let blobs = self.clone();
            self.spawn(async move {
                let Some((_permit, access, digest)) = blobs.ahead.prefetches.next().await else { return };
                blobs.fetch_ahead(&access, &digest).await;
                blobs.ahead.prefetches.leave(&digest);
            });
        }
    }

    async fn fetch_ahead(self: &Arc<Self>, access: &Access, digest: &Digest) {
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
    use std::pin::pin;

    use futures_util::FutureExt as _;
    use shoal_registry::Repository;

    use super::*;

    fn digest(n: usize) -> Digest {
        Digest::sha256_of(&n.to_le_bytes())
    }

    #[tokio::test]
    async fn layers_are_worked_on_in_the_order_they_came_whatever_runs_first() {
        let access = Access { repository: Repository::new("r.example", "app").unwrap(), authorization: None };
        let line = Line { at_a_time: Semaphore::new(2), length_max: 3, state: Mutex::default() };
        let joined = [0, 1, 1, 2, 3].map(|n| line.join(&access, digest(n)));
        assert_eq!(joined, [true, true, false, true, false]);
        let (mut first, mut second, mut third) = (pin!(line.next()), pin!(line.next()), pin!(line.next()));
        let (_held, _, next) = third.as_mut().now_or_never().unwrap().unwrap();
        assert_eq!(next, digest(0));
        let (permit, _, next) = second.as_mut().now_or_never().unwrap().unwrap();
        assert_eq!(next, digest(1));
        assert!(first.as_mut().now_or_never().is_none());
        drop(permit);
        line.leave(&next);
        assert!(line.join(&access, next));
        assert!(first.await.unwrap().2 == digest(2));
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
