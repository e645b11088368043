//! Where a blob comes from: the store, ONE download for each digest, or past the store straight from upstream.
//!
//! The front calls it with a checked name and an access; it sees to it that the access is allowed, and single-flight.

mod ahead;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, FusedFuture as _, Shared};
use shoal_meta::{Digest, Geometry};
use shoal_peer::{Failure, Node, TorrentError};
use shoal_registry::upstream::Upstream;
use shoal_registry::{Access, UpstreamError};
use shoal_store::{Blob, PartialError, Store, WriteError};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::ahead::Ahead;
use crate::authorize::Authorizer;
use crate::body::SLICES_MAX;
use crate::download::{Download, Link};
use crate::fallback::{Ladder, Pulse};
use crate::metrics::{Counters, Fallback};
use crate::origin::{Feed, OriginError, Origins, PATIENCE, is_verdict};

/// How long it may take when upstream may not be asked, or not with a ticket; the front gives up sooner, and this goes on for the
/// next request.
const OFFLINE_PATIENCE: Duration = Duration::from_secs(20);
/// Most blobs being asked for at a time; further requests are answered 503.
const OPENINGS_MAX: usize = 1024;
/// Most downloads at a time; further blobs are passed through.
const DOWNLOADS_MAX: usize = 1024;
/// Most blobs fetched from upstream directly at a time.
const WEB_SEEDS_MAX: usize = 16;
/// How long the origin has, once a blob is whole here, to say that it is whole there too, and seal that.
const SEAL_PATIENCE: Duration = Duration::from_secs(5);
/// A download without readers or progress for this long is let go; what it has stays on disk.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);

/// The room of blobs.
pub(crate) struct Blobs {
    pub(crate) store: Store,
    pub(crate) node: Node,
    pub(crate) origins: Arc<Origins>,
    pub(crate) upstream: Upstream,
    pub(crate) counters: Counters,
    pub(crate) stall_timeout: Duration,
    pub(crate) pulse: Pulse,
    /// Permits to fetch from upstream directly.
    pub(crate) web_seeds: Semaphore,
    /// Permits to hold a slice of the full length for a client.
    pub(crate) slices: Arc<Semaphore>,
    authorizer: Authorizer,
    ahead: Ahead,
    state: Mutex<State>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

#[derive(Default)]
struct State {
    downloads: HashMap<Digest, Arc<Download>>,
    /// Blobs being asked for on behalf of one access, shared by all who ask alike.
    openings: HashMap<(Digest, Access), Opening>,
}

type Opening = Shared<BoxFuture<'static, Result<Opened, UpstreamError>>>;

/// A blob that can be read.
#[derive(Debug, Clone)]
pub(crate) enum Opened {
    /// It is here.
    Stored(Blob),
    /// It is on its way.
    Arriving(Arc<Download>),
    /// It is not kept here: the store has no room, it is empty, or only a little of it is wanted.
    Upstream {
        /// Its length in bytes.
        length: u64,
    },
}

impl Opened {
    /// The blob's length in bytes.
    pub(crate) fn length(&self) -> u64 {
        match self {
            Self::Stored(blob) => blob.length(),
            Self::Arriving(download) => download.geometry().length(),
            Self::Upstream { length } => *length,
        }
    }
}

impl Blobs {
    pub(crate) fn new(
        store: Store,
        node: Node,
        origins: Arc<Origins>,
        upstream: Upstream,
        counters: Counters,
        stall_timeout: Duration,
        shutdown: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            authorizer: Authorizer::new(origins.clone(), upstream.clone()),
            pulse: Pulse::new(node.clone()),
            store,
            node,
            origins,
            upstream,
            counters,
            stall_timeout,
            web_seeds: Semaphore::new(WEB_SEEDS_MAX),
            slices: Arc::new(Semaphore::new(SLICES_MAX)),
            ahead: Ahead::new(),
            state: Mutex::default(),
            tasks: TaskTracker::new(),
            shutdown,
        })
    }

    /// Opens a blob to be read: from the store, from its download, or by beginning one.
    ///
    /// # Errors
    /// With what upstream says to this access, or why nobody can be asked.
    pub(crate) async fn open(self: &Arc<Self>, access: &Access, digest: &Digest) -> Result<Opened, UpstreamError> {
        let opened = self.find_or_begin(access, digest).await?;
        if let Opened::Arriving(download) = &opened {
            download.want();
        }
        Ok(opened)
    }

    /// Opens a blob of which only a little may be wanted: a download that this begins fetches nothing by itself, and none
    /// is begun where no origin could tell what its pieces are.
    ///
    /// # Errors
    /// With what upstream says to this access, or why nobody can be asked.
    pub(crate) async fn peek(self: &Arc<Self>, access: &Access, digest: &Digest) -> Result<Opened, UpstreamError> {
        if self.origins.is_up() || self.find(digest).is_some() {
            return self.find_or_begin(access, digest).await;
        }
        self.length(access, digest).await.map(|length| Opened::Upstream { length })
    }

    async fn find_or_begin(self: &Arc<Self>, access: &Access, digest: &Digest) -> Result<Opened, UpstreamError> {
        let mut opened = self.held(access, digest).await?;
        if opened.is_none() {
            opened = self.open_warm(access, digest).await?;
        }
        let opened = match opened {
            Some(opened) => opened,
            None => self.opening(access, digest).await?,
        };
        // Another may have begun it meanwhile, with another access.
        if let Opened::Arriving(download) = &opened {
            download.renew(access, self.authorizer.asks())?;
        }
        Ok(opened)
    }

    /// Gives the blob if it is here or on its way, and the access covers it. Starts nothing.
    ///
    /// # Errors
    /// With what upstream says to this access, or why nobody can be asked.
    pub(crate) async fn held(&self, access: &Access, digest: &Digest) -> Result<Option<Opened>, UpstreamError> {
        if self.find(digest).is_none() {
            return self.authorizer.refused(access, digest).map_or(Ok(None), Err);
        }
        self.authorizer.check(access, digest).await?;
        Ok(self.find(digest))
    }

    /// Tells a blob's length without fetching it.
    ///
    /// # Errors
    /// With what upstream says to this access, or why nobody can be asked.
    pub(crate) async fn length(&self, access: &Access, digest: &Digest) -> Result<u64, UpstreamError> {
        if let Some(opened) = self.held(access, digest).await? {
            return Ok(opened.length());
        }
        let length = match self.origins.length(access, digest).await {
            Ok(length) => Ok(length),
            Err(OriginError::Upstream(error)) if is_verdict(&error) => Err(error),
            Err(OriginError::Upstream(_) | OriginError::Away) => self.upstream.blob_length(access, digest).await,
        };
        self.authorizer.note(access, digest, &length.as_ref().map(|_| ()).map_err(Clone::clone));
        length
    }

    /// What goes on with each torrent, for the status page.
    pub(crate) fn downloads(&self) -> Vec<Arc<Download>> {
        let mut downloads: Vec<_> = self.lock().downloads.values().cloned().collect();
        downloads.sort_by_key(|download| download.digest());
        downloads
    }

    /// Waits for the downloads to stop, after shutdown began.
    pub(crate) async fn stopped(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// The blob's download, if it is on its way.
    pub(crate) fn arriving(&self, digest: &Digest) -> Option<Arc<Download>> {
        self.lock().downloads.get(digest).cloned()
    }

    fn find(&self, digest: &Digest) -> Option<Opened> {
        self.store.blob(digest).map(Opened::Stored).or_else(|| self.arriving(digest).map(Opened::Arriving))
    }

    /// Asks for a blob nobody has, once for all who ask with the same access. It goes on when they leave.
    async fn opening(self: &Arc<Self>, access: &Access, digest: &Digest) -> Result<Opened, UpstreamError> {
        let key = (*digest, access.clone());
        let opening = {
            let mut state = self.lock();
            match state.openings.get(&key) {
                Some(opening) => opening.clone(),
                None if state.openings.len() >= OPENINGS_MAX => {
                    return Err(unreachable_now("too many blobs are asked for"));
                }
                None => {
                    let (blobs, inner) = (self.clone(), key.clone());
                    let task = self.tasks.spawn(async move {
                        let (digest, access) = &inner;
                        let asked = blobs.shutdown.run_until_cancelled(blobs.ask_around(access, digest)).await;
                        let result = asked.unwrap_or_else(|| Err(unreachable_now("the agent is stopping")));
                        let answer = result.as_ref().map(|_| ()).map_err(Clone::clone);
                        blobs.authorizer.note(access, digest, &answer);
                        blobs.lock().openings.remove(&inner);
                        result
                    });
                    let joined = task.map(|joined| match joined {
                        Ok(result) => result,
                        Err(_) => Err(unreachable_now("the agent failed")),
                    });
                    let opening = joined.boxed().shared();
                    state.openings.insert(key.clone(), opening.clone());
                    opening
                }
            }
        };
        let result = opening.await;
        if result.is_err() {
            // Its task has done so, unless it panicked.
            self.lock().openings.remove(&key);
        }
        result
    }

    /// Asks the origin, and upstream beside it when it is silent or away.
    async fn ask_around(self: &Arc<Self>, access: &Access, digest: &Digest) -> Result<Opened, UpstreamError> {
        let mut metainfo = std::pin::pin!(self.origins.metainfo(access, digest, 0));
        // Offline, or with a ticket, there is nobody else to ask.
        let patience = if self.upstream.is_offline() || access.is_ticket() { OFFLINE_PATIENCE } else { PATIENCE };
        let early = tokio::time::timeout(patience, &mut metainfo).await;
        let silent = early.is_err();
        match early {
            Ok(Ok(feed)) => return Ok(self.begin_fed(access, digest, feed).await),
            Ok(Err(OriginError::Upstream(error))) if is_verdict(&error) => return Err(error),
            Ok(Err(OriginError::Upstream(_) | OriginError::Away)) | Err(_) => {}
        }
        let length = tokio::select! {
            length = self.upstream.blob_length(access, digest) => length?,
            Ok(feed) = &mut metainfo, if silent => {
                return Ok(self.begin_fed(access, digest, feed).await);
            }
        };
        match Geometry::for_length(length) {
            Ok(geometry) => Ok(self.begin(access, digest, geometry, None).await),
            Err(_) => Ok(Opened::Upstream { length }),
        }
    }

    async fn begin_fed(self: &Arc<Self>, access: &Access, digest: &Digest, feed: Feed) -> Opened {
        match feed.geometry {
            Some(geometry) => self.begin(access, digest, geometry, Some(feed)).await,
            None => Opened::Upstream { length: 0 },
        }
    }

    /// Begins the download, unless another has in the meantime. It fetches what it is told to.
    async fn begin(
        self: &Arc<Self>,
        access: &Access,
        digest: &Digest,
        geometry: Geometry,
        feed: Option<Feed>,
    ) -> Opened {
        let past = Opened::Upstream { length: geometry.length() };
        if self.lock().downloads.len() >= DOWNLOADS_MAX {
            return past;
        }
        let partial = match self.node.partial(*digest, geometry).await {
            Ok(partial) => partial,
            Err(PartialError::Committed(blob)) => return Opened::Stored(blob),
            Err(error) => {
                if let Some(found) = self.find(digest) {
                    return found;
                }
                // What is wrong with the disk is said once, by the store.
                tracing::info!(%digest, %error, "the store does not take a blob: passing it through");
                self.counters.fell_back(Fallback::Store);
                return past;
            }
        };
        let mut state = self.lock();
        if let Some(download) = state.downloads.get(digest) {
            return Opened::Arriving(download.clone());
        }
        let download = Download::new(partial, access.clone(), feed.as_ref());
        state.downloads.insert(*digest, download.clone());
        drop(state);
        let (blobs, driven) = (self.clone(), download.clone());
        self.spawn(async move {
            blobs.drive(&driven, feed).await;
            blobs.lock().downloads.remove(&driven.digest());
            driven.end();
        });
        Opened::Arriving(download)
    }

    /// Sees a download to its end.
    async fn drive(&self, download: &Download, feed: Option<Feed>) {
        let Some(torrent) = download.join(&self.node).await else { return };
        let digest = download.digest();
        let ladder = Ladder { download, torrent: &torrent, blobs: self, givers: Mutex::default() };
        let mut feeding = std::pin::pin!(download.follow(&self.node, &torrent, &self.origins, feed).fuse());
        let fed = async {
            feeding.as_mut().await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            ended = torrent.committed() => match ended {
                Ok(_) => {
                    tracing::debug!(%digest, "blob is complete");
                    let is_live = *download.link().borrow() == Link::Live;
                    if !feeding.is_terminated() && is_live && !self.node.identity().is_plaintext() {
                        let _ = tokio::time::timeout(SEAL_PATIENCE, feeding).await;
                    }
                }
                Err(error) => {
                    ladder.blame(&error);
                    self.torrent_failed(&digest, &error);
                }
            },
            error = ladder.run() => {
                self.torrent_failed(&digest, &error);
                self.node.withdraw(digest, "the store does not take it").await;
            }
            () = fed => {}
            () = idle(download) => tracing::info!(%digest, "download is let go: nobody brings or wants it"),
        }
    }

    /// A disk that fails is for an operator to mend, whom the store has told; the rest mends itself.
    fn torrent_failed(&self, digest: &Digest, error: &TorrentError) {
        let (cause, is_disk) = match error {
            TorrentError::Failed(failure) => (failure.as_str(), matches!(failure, Failure::Disk(_))),
            TorrentError::Write(WriteError::Disk(_)) => ("disk", true),
            TorrentError::Write(_) | TorrentError::Hashes(_) => ("store", false),
            TorrentError::Closed => return,
        };
        self.counters.torrents_failed.with_label_values(&[cause]).inc();
        let error = error as &dyn std::error::Error;
        if is_disk {
            tracing::info!(%digest, error, "the disk does not take a blob: passing it through");
        } else {
            tracing::warn!(%digest, error, cause, "torrent failed");
        }
    }

    /// Does something until shutdown, which waits for it to end.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let shutdown = self.shutdown.clone();
        self.tasks.spawn(async move {
            shutdown.run_until_cancelled(work).await;
        });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }
}

impl fmt::Debug for Blobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Blobs")
    }
}

/// Returns when a download had neither readers nor progress for [`IDLE_TIMEOUT`].
async fn idle(download: &Download) {
    let mut before = None;
    loop {
        let now = download.partial().have().count();
        if before == Some(now) && !download.has_readers() {
            return;
        }
        before = Some(now);
        tokio::time::sleep(IDLE_TIMEOUT).await;
    }
}

fn unreachable_now(message: &str) -> UpstreamError {
    UpstreamError::from_parts(shoal_registry::upstream::ErrorParts {
        code: "UNAVAILABLE".to_owned(),
        message: message.to_owned(),
        ..Default::default()
    })
}
