//! One blob on its way in: its torrent, the metainfo that grows from the origin, and who waits for which piece.
//!
//! `blobs` makes one for each digest; bodies read through it; `fallback` watches over it. It lives until the blob is
//! committed or its torrent fails, whatever becomes of the clients that asked for it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use shoal_meta::{Bitfield, Digest, Geometry, PieceIndex};
use shoal_peer::{Node, Torrent, TorrentError};
use shoal_registry::{Access, UpstreamError};
use shoal_store::{ExtendError, Partial, Source};
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::origin::{Feed, OriginError, Origins, Update};

/// The first pause before the origin is asked for metainfo again; it doubles with each.
const BACKOFF_FIRST: Duration = Duration::from_millis(250);
/// The longest pause before the origin is asked for metainfo again.
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// How long a small range may wait for pieces that nobody has published: the origin is still fetching them.
const UNPUBLISHED_PATIENCE: Duration = Duration::from_millis(50);
/// How long it may wait for pieces that are published, so that some peer or the origin has them.
const PUBLISHED_PATIENCE: Duration = Duration::from_secs(1);
/// A blob of which small ranges have touched one piece in so many is fetched whole: the rest is likely to be read as well,
/// and half of a blob can only be read here, while a whole one is kept and seeded.
const WHOLE_FROM_ONE_IN: u32 = 4;

/// How long a client has to take what was sent, or to leave the others after a reader of its failed, before the next fails.
const FAIL_STEP: Duration = Duration::from_millis(500);
/// How long a reader waits at most for those behind it, once every source has failed.
const FAIL_MAX: Duration = Duration::from_secs(5);
/// How long after an answer was cut those who come back are refused, so that they go to their next host.
const REFUSED_AFTER_CUT: Duration = Duration::from_secs(5);

/// A blob on its way in.
#[derive(Debug)]
pub(crate) struct Download {
    digest: Digest,
    partial: Partial,
    /// The access upstream let through last: what a fallback goes upstream with.
    access: Mutex<Access>,
    joined: watch::Sender<Joined>,
    link: watch::Sender<Link>,
    /// Why no source has what a reader needs, while that is so.
    exhausted: watch::Sender<Option<UpstreamError>>,
    /// When an answer was first cut, since that was last forgotten.
    cut: Mutex<Option<Instant>>,
    readers: Mutex<Readers>,
    readers_changed: Notify,
    /// Cancelled when the download has ended, well or not.
    pub(crate) over: CancellationToken,
}

/// Where the torrent stands.
#[derive(Debug, Clone)]
enum Joined {
    /// What an earlier run left is being verified. Left for one of the others.
    Joining,
    /// The swarm works on it, or has done so. Final.
    Torrent(Torrent),
    /// The node could not take it in. Final.
    Ended,
}

/// Where the metainfo stream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    /// Asked, or asked again after a break; no answer yet.
    Asking,
    /// The origin streams, or has sent every hash.
    Live,
    /// No origin answers; it is asked again after a pause.
    Away,
}

#[derive(Debug)]
struct Readers {
    next: u64,
    /// Each reader by its ticket.
    all: BTreeMap<u64, Standing>,
    /// A client asked for the blob: it is completed even if the client leaves.
    wanted: bool,
    /// Every piece is fetched, and not only those that small ranges touched.
    whole: bool,
    /// The pieces that small ranges touched.
    touched: Bitfield,
}

/// Where a reader began, in bytes, and the piece it is at.
#[derive(Debug, Clone, Copy)]
struct Standing {
    from: u64,
    at: u32,
}

/// Why a reader gets no more bytes from here.
#[derive(Debug)]
pub(crate) enum ReadError {
    /// No source has the piece now: swarm, origin and upstream failed.
    Exhausted(UpstreamError),
    /// The torrent failed or the disk did: the bytes can only come past the store.
    Broken,
}

impl Download {
    pub(crate) fn new(partial: Partial, access: Access, feed: Option<&Feed>) -> Arc<Self> {
        let link = if feed.is_some() { Link::Live } else { Link::Asking };
        Arc::new(Self {
            digest: partial.digest(),
            readers: Mutex::new(Readers {
                next: 0,
                all: BTreeMap::new(),
                wanted: false,
                whole: false,
                touched: Bitfield::empty(&partial.geometry()),
            }),
            partial,
            access: Mutex::new(access),
            joined: watch::Sender::new(Joined::Joining),
            link: watch::Sender::new(link),
            exhausted: watch::Sender::new(None),
            cut: Mutex::new(None),
            readers_changed: Notify::new(),
            over: CancellationToken::new(),
        })
    }

    pub(crate) fn digest(&self) -> Digest {
        self.digest
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.partial.geometry()
    }

    pub(crate) fn partial(&self) -> &Partial {
        &self.partial
    }

    pub(crate) fn access(&self) -> Access {
        self.access.lock().expect("nothing panics while it holds this lock").clone()
    }

    /// Another request was let through: go on with its credentials if they are better (see [`is_better`]). Gives the reason if every
    /// source had failed with these same credentials a moment ago, or an answer was cut for it: whoever comes back then is to go to
    /// its next host.
    pub(crate) fn renew(&self, access: &Access, checked: bool) -> Result<(), UpstreamError> {
        let mut current = self.access.lock().expect("nothing panics while it holds this lock");
        let failed = self.exhausted.borrow().clone();
        let refused = self.refuses(Instant::now());
        let failed = failed.or_else(|| refused.then(|| UpstreamError::Protocol("an answer was cut".to_owned())));
        let failing = failed.is_some();
        if *current != *access && is_better(&current, access, checked, failing, failing && self.has_readers()) {
            current.clone_from(access);
            self.exhausted.send_replace(None);
            *self.cut.lock().expect("nothing panics while it holds this lock") = None;
            return Ok(());
        }
        failed.map_or(Ok(()), Err)
    }

    /// A client asked for the blob itself, not for a layer below it.
    pub(crate) fn want(&self) {
        self.lock().wanted = true;
        self.fetch_whole();
        self.readers_changed.notify_waiters();
    }

    /// Fetches every piece from now on.
    pub(crate) fn fetch_whole(&self) {
        if !std::mem::replace(&mut self.lock().whole, true) {
            self.tell_torrent();
        }
    }

    /// Fetches what a client asked of a blob of which it reads small ranges; tells whether that came soon.
    pub(crate) async fn fetch_ranges(&self, ranges: &[Range<u64>]) -> bool {
        let geometry = self.geometry();
        let touched = ranges.iter().filter_map(|range| {
            let (first, last) = (geometry.piece_at(range.start)?, geometry.piece_at(range.end.checked_sub(1)?)?);
            Some(first.get()..=last.get())
        });
        let pieces: Vec<_> = touched.flatten().filter_map(|index| geometry.piece(index)).collect();
        {
            let mut readers = self.lock();
            pieces.iter().for_each(|piece| _ = readers.touched.insert(*piece));
            readers.whole |= readers.touched.count() >= geometry.piece_count().div_ceil(WHOLE_FROM_ONE_IN);
        }
        self.tell_torrent();
        let come = async {
            let Some(torrent) = self.torrent().await else { return false };
            for piece in &pieces {
                if torrent.wait_piece(*piece).await.is_err() {
                    return false;
                }
            }
            true
        };
        let mut come = std::pin::pin!(come);
        if let Ok(come) = timeout(UNPUBLISHED_PATIENCE, &mut come).await {
            return come;
        }
        let metainfo = self.partial.metainfo();
        let published = pieces.iter().all(|piece| metainfo.hash(*piece).is_some());
        published && timeout(PUBLISHED_PATIENCE, come).await.unwrap_or(false)
    }

    /// Tells the torrent, once there is one, what to fetch.
    fn tell_torrent(&self) {
        let Joined::Torrent(torrent) = &*self.joined.borrow() else { return };
        let readers = self.lock();
        if readers.whole {
            torrent.want(&Bitfield::full(&self.geometry()));
        } else {
            torrent.want(&readers.touched);
        }
    }

    /// Whether a client asked for the blob itself.
    pub(crate) fn is_wanted(&self) -> bool {
        self.lock().wanted
    }

    /// The piece somebody needs next: the first one missing for the reader furthest behind, or for the blob to be whole.
    pub(crate) fn needed(&self) -> Option<PieceIndex> {
        let have = self.partial.have();
        let readers = self.lock();
        if !readers.whole {
            // Small ranges are read when their pieces are here, or past the store.
            return None;
        }
        let of_readers = readers.all.values().filter_map(|reader| have.first_missing(reader.at)).min();
        let needed = of_readers.or_else(|| readers.wanted.then(|| have.first_missing(0)).flatten());
        needed.and_then(|index| self.geometry().piece(index))
    }

    pub(crate) fn has_readers(&self) -> bool {
        !self.lock().all.is_empty()
    }

    /// Waits until readers come or leave, from this call on.
    pub(crate) fn readers_changed(&self) -> Notified<'_> {
        self.readers_changed.notified()
    }

    pub(crate) fn link(&self) -> watch::Receiver<Link> {
        self.link.subscribe()
    }

    /// Tells the readers that every source failed; without readers nobody tries again before one comes.
    pub(crate) fn set_exhausted(&self, error: UpstreamError) {
        self.lock().wanted = false;
        self.exhausted.send_replace(Some(error));
    }

    pub(crate) fn clear_exhausted(&self) {
        self.exhausted.send_replace(None);
    }

    /// Tells whether what was asked for at `asked` is refused, as an answer had been cut shortly before: it may be the same client,
    /// that comes back.
    pub(crate) fn refuses(&self, asked: Instant) -> bool {
        let cut = *self.cut.lock().expect("nothing panics while it holds this lock");
        cut.is_some_and(|at| at < asked && at.elapsed() < REFUSED_AFTER_CUT)
    }

    /// An answer is cut.
    pub(crate) fn note_cut(&self) {
        let mut cut = self.cut.lock().expect("nothing panics while it holds this lock");
        if cut.is_none_or(|at| at.elapsed() >= REFUSED_AFTER_CUT) {
            *cut = Some(Instant::now());
        }
    }

    /// Verifies what an earlier run left, joins the swarm, and lets the readers know.
    pub(crate) async fn join(&self, node: &Node) -> Option<Torrent> {
        if let Err(error) = self.partial.recheck().await {
            tracing::warn!(digest = %self.digest, %error, "cannot verify what was left of a blob");
        }
        match node.join_lazily(self.partial.clone()).await {
            Ok(torrent) => {
                self.joined.send_replace(Joined::Torrent(torrent.clone()));
                self.tell_torrent();
                Some(torrent)
            }
            Err(error) => {
                tracing::warn!(digest = %self.digest, %error, "cannot join the swarm");
                None
            }
        }
    }

    /// The download has ended. Readers of a torrent go on with that, or learn from it that it failed.
    pub(crate) fn end(&self) {
        self.joined.send_if_modified(|joined| match joined {
            Joined::Joining => {
                *joined = Joined::Ended;
                true
            }
            Joined::Torrent(_) | Joined::Ended => false,
        });
        self.over.cancel();
    }

    /// Takes in the metainfo as it grows, and asks again when the stream breaks. Returns when every hash is known.
    pub(crate) async fn follow(&self, node: &Node, torrent: &Torrent, origins: &Origins, mut feed: Option<Feed>) {
        let mut backoff = BACKOFF_FIRST;
        while !self.partial.metainfo().is_complete() {
            let next = match feed.take() {
                Some(feed) => Ok(feed),
                None => origins.metainfo(&self.access(), &self.digest, self.partial.metainfo().known()).await,
            };
            match next {
                Ok(feed) if feed.geometry.is_some_and(|cut| is_same_cut(cut, self.geometry())) => {
                    self.link.send_replace(Link::Live);
                    let known = self.partial.metainfo().known();
                    self.take_in(node, torrent, origins, feed).await;
                    if self.partial.metainfo().known() > known {
                        backoff = BACKOFF_FIRST;
                        self.link.send_replace(Link::Asking);
                        continue;
                    }
                }
                Ok(_) => tracing::warn!(digest = %self.digest, "origin cuts this blob differently"),
                Err(error) => tracing::debug!(digest = %self.digest, %error, "no metainfo from the origin"),
            }
            self.link.send_replace(Link::Away);
            // Peers may have what the origin said before.
            torrent.find_metainfo();
            sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
        self.link.send_replace(Link::Live);
    }

    /// Reads one stream to its end or its break.
    async fn take_in(&self, node: &Node, torrent: &Torrent, origins: &Origins, mut feed: Feed) {
        if let Some(peer) = feed.peer.take() {
            node.add_peers(self.digest, vec![peer]);
        }
        loop {
            match feed.next().await {
                Ok(Some(Update::Hashes { first, hashes })) => {
                    if let Err(error) = torrent.extend_hashes(first, hashes).await {
                        tracing::warn!(digest = %self.digest, %error, "origin's piece hashes do not fit");
                        // What we have came from another publisher, and one of the two is wrong: nothing of it is kept.
                        if let TorrentError::Hashes(ExtendError::Metainfo(_)) = error {
                            node.withdraw(self.digest, "its piece hashes contradict each other").await;
                        }
                        return;
                    }
                }
                Ok(Some(Update::Complete(seal))) => {
                    if !seal.is_empty() {
                        node.keep_seal(&self.digest, seal).await;
                    }
                    return;
                }
                Ok(None) => return,
                Err(error) => {
                    if let OriginError::Upstream(error) = &error {
                        origins.heed(&self.access(), error);
                    }
                    tracing::debug!(digest = %self.digest, %error, "metainfo stream broke");
                    return;
                }
            }
        }
    }

    /// Waits for those whose ranges begin before the byte at `from`, until `deadline`: of the ranges that containerd fetches side
    /// by side, the first that fails ends the others, and only if it is the one being read does containerd ask again. They
    /// end when their client has what it wants, or fail and it leaves.
    pub(crate) async fn turn_to_fail(&self, from: u64, deadline: Instant) {
        loop {
            sleep_until(deadline.min(Instant::now() + FAIL_STEP)).await;
            let changed = self.readers_changed();
            let waits = self.lock().all.values().any(|reader| reader.from < from);
            if !waits || timeout_at(deadline, changed).await.is_err() {
                return;
            }
        }
    }

    /// Begins to read at an offset.
    pub(crate) fn reader(self: &Arc<Self>, from: u64) -> Reader {
        let at = self.geometry().piece_at(from).map_or(0, PieceIndex::get);
        let ticket = {
            let mut readers = self.lock();
            readers.next += 1;
            let ticket = readers.next;
            readers.all.insert(ticket, Standing { from, at });
            ticket
        };
        self.readers_changed.notify_waiters();
        Reader { download: self.clone(), ticket, from, torrent: None, ready: None }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Readers> {
        self.readers.lock().expect("nothing panics while it holds this lock")
    }

    async fn torrent(&self) -> Option<Torrent> {
        let mut joined = self.joined.subscribe();
        let state = joined.wait_for(|state| !matches!(state, Joined::Joining)).await.ok()?;
        match &*state {
            Joined::Torrent(torrent) => Some(torrent.clone()),
            Joined::Joining | Joined::Ended => None,
        }
    }
}

/// Reads a blob in order while it arrives. While it lives the swarm prefers the pieces ahead of it.
#[derive(Debug)]
pub(crate) struct Reader {
    download: Arc<Download>,
    ticket: u64,
    /// The byte it began at.
    from: u64,
    torrent: Option<(Torrent, shoal_peer::Reader, Source)>,
    /// The piece known to be verified.
    ready: Option<PieceIndex>,
}

impl Reader {
    /// Waits until the byte at `offset` can be read.
    ///
    /// # Errors
    /// When every source failed, or the torrent did.
    pub(crate) async fn ready(&mut self, offset: u64) -> Result<(), ReadError> {
        let Some(piece) = self.download.geometry().piece_at(offset) else { return Ok(()) };
        if self.ready == Some(piece) {
            return Ok(());
        }
        let mut exhausted = self.download.exhausted.subscribe();
        let download = self.download.clone();
        if let Some(reader) = download.lock().all.get_mut(&self.ticket) {
            reader.at = piece.get();
        }
        let arrives = async {
            if self.torrent.is_none() {
                let torrent = download.torrent().await.ok_or(ReadError::Broken)?;
                let window = torrent.reader(offset);
                let source = torrent.read_source();
                self.torrent = Some((torrent, window, source));
            }
            let (torrent, window, _) = self.torrent.as_mut().ok_or(ReadError::Broken)?;
            window.advance(offset);
            torrent.wait_piece(piece).await.map_err(|_| ReadError::Broken)
        };
        let fails = async {
            loop {
                let error = exhausted.wait_for(Option::is_some).await.ok()?.clone();
                tokio::select! {
                    () = download.turn_to_fail(self.from, Instant::now() + FAIL_MAX) => return error,
                    _ = exhausted.wait_for(Option::is_none) => {}
                }
            }
        };
        tokio::select! {
            biased;
            arrived = arrives => arrived?,
            Some(error) = fails => return Err(ReadError::Exhausted(error)),
        }
        self.ready = Some(piece);
        Ok(())
    }

    /// The answer that this reader is for is cut.
    pub(crate) fn note_cut(&self) {
        self.download.note_cut();
    }

    /// Reads the bytes from `offset` on: at least one, at most `slice`, never past `end` or the piece.
    ///
    /// # Errors
    /// When every source failed, or the torrent or the disk did.
    pub(crate) async fn read(&mut self, offset: u64, end: u64, slice: u64) -> Result<Bytes, ReadError> {
        self.ready(offset).await?;
        let piece_end = self.ready.map_or(end, |piece| self.download.geometry().piece_range(piece).end);
        let length = slice_length(offset, end.min(piece_end), slice);
        let (_, _, source) = self.torrent.as_ref().ok_or(ReadError::Broken)?;
        source.read(offset, length).await.map_err(|error| {
            tracing::warn!(digest = %self.download.digest, %error, "cannot read a verified piece");
            ReadError::Broken
        })
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.download.lock().all.remove(&self.ticket);
        self.download.readers_changed.notify_waiters();
    }
}

/// Whether to go on with this access: it is fresher, and one that upstream has not `checked` is so only when the current one is
/// `failing`. A ticket is good at origins alone: a client's own access takes its place at once, and it takes that of one only when
/// that failed and nobody `reads`, so that upstream is there for clients.
fn is_better(current: &Access, access: &Access, checked: bool, failing: bool, reads: bool) -> bool {
    match (current.is_ticket(), access.is_ticket()) {
        (true, false) => true,
        (false, true) => failing && !reads,
        (true, true) | (false, false) => checked || failing,
    }
}

/// Whether pieces are the same; blocks are cut for the wire only.
fn is_same_cut(a: Geometry, b: Geometry) -> bool {
    (a.length(), a.piece_length()) == (b.length(), b.piece_length())
}

/// The length of the next slice of a body.
pub(crate) fn slice_length(offset: u64, end: u64, slice: u64) -> u32 {
    u32::try_from(end.saturating_sub(offset).min(slice)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use shoal_registry::Repository;

    use super::*;

    #[test]
    fn a_ticket_never_keeps_a_clients_own_access_out() {
        let access = |authorization: &str| Access {
            repository: Repository::new("r.example", "app").unwrap(),
            authorization: Some(authorization.into()),
        };
        let [ticket, renewed, client, other] = ["Shoal-Ticket a", "Shoal-Ticket b", "Bearer a", "Bearer b"].map(access);
        let anybody = Access { authorization: None, ..client.clone() };
        for (current, next, checked, failing, reads, expected) in [
            (&ticket, &client, false, false, true, true),
            (&ticket, &anybody, false, false, false, true),
            (&ticket, &renewed, true, false, true, true),
            (&client, &ticket, true, false, false, false),
            (&client, &ticket, true, true, true, false),
            (&client, &ticket, false, true, false, true),
            (&client, &other, false, false, false, false),
            (&client, &other, true, false, false, true),
            (&client, &other, false, true, true, true),
        ] {
            assert_eq!(is_better(current, next, checked, failing, reads), expected, "{current:?} {next:?} {failing}");
        }
    }
}
