//! The metainfo stream of one blob, which grows while the blob is fetched: a header, hashes as pieces come, and the word
//! that the whole digest was checked, sealed so that peers may pass all of it on. Made for each caller by the gRPC service.

use std::time::Duration;

use futures_util::Stream;
use prometheus::IntGauge;
use shoal_identity::Identity;
use shoal_meta::{Geometry, Metainfo, PeerInfo};
use shoal_proto::origin::v1::MetainfoUpdate;
use shoal_proto::origin::v1::metainfo_update::{Complete, Header, PieceHashes, Update};
use shoal_proto::peer_to_proto;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;

use crate::error::OriginError;
use crate::ingest::{Holding, Progress};

/// Hashes that come within this time after others travel in one message.
const COALESCE: Duration = Duration::from_millis(20);
/// The most hashes in one message: 64 KiB of them.
const HASHES_MAX: usize = 2048;

/// One caller's stream.
struct Feed {
    /// Taken by the first message.
    header: Option<Header>,
    source: Source,
    next: u32,
    pieces: u32,
    sent: Option<Instant>,
    ended: bool,
    /// Seals it.
    identity: Identity,
    _open: OpenStream,
}

enum Source {
    /// A blob that is whole; none of the empty one.
    Whole(Option<Metainfo>),
    Growing(std::sync::Arc<crate::ingest::Ingest>, watch::Receiver<Progress>),
}

/// Counts a stream while it is open.
struct OpenStream(IntGauge);

/// Streams the metainfo of a blob from a piece on; `origin` seeds it.
///
/// # Errors
/// When the blob has fewer pieces than the caller says it knows, or is not kept here.
pub(crate) fn stream(
    holding: Holding,
    first_piece: u32,
    origin: &PeerInfo,
    identity: &Identity,
    streams: &IntGauge,
) -> Result<impl Stream<Item = Result<MetainfoUpdate, Status>> + Send + use<>, Status> {
    let length_bytes = holding.length();
    let (geometry, source) = match holding {
        Holding::Empty => (None, Source::Whole(None)),
        Holding::Whole(blob) => (Some(blob.geometry()), Source::Whole(Some(blob.metainfo()))),
        Holding::Growing(ingest) => {
            let progress = ingest.progress();
            (Some(ingest.geometry()), Source::Growing(ingest, progress))
        }
        Holding::Passing { .. } => return Err(OriginError::disk("it did not take the blob lately").to_status()),
    };
    let pieces = geometry.map_or(0, |geometry| geometry.piece_count());
    if first_piece > pieces {
        return Err(Status::invalid_argument(format!("the blob has {pieces} pieces, not {first_piece}")));
    }
    let header = header(length_bytes, geometry, origin);
    streams.inc();
    let feed = Feed {
        header: Some(header),
        source,
        next: first_piece,
        pieces,
        sent: None,
        ended: false,
        identity: identity.clone(),
        _open: OpenStream(streams.clone()),
    };
    Ok(futures_util::stream::unfold(feed, |mut feed| async move {
        let update = feed.next().await?;
        Some((update.map_err(|error| error.to_status()), feed))
    }))
}

/// What a stream begins with; `geometry` is none for the blob without bytes.
pub(crate) fn header(length_bytes: u64, geometry: Option<Geometry>, origin: &PeerInfo) -> Header {
    let piece_length_bytes = geometry.map_or(0, |geometry| geometry.piece_length());
    Header { length_bytes, piece_length_bytes, origin: Some(peer_to_proto(origin)) }
}

impl Feed {
    async fn next(&mut self) -> Option<Result<MetainfoUpdate, OriginError>> {
        if self.ended {
            return None;
        }
        let update = match self.header.take() {
            Some(header) => Ok(Update::Header(header)),
            None => self.follow().await,
        };
        self.ended = matches!(update, Err(_) | Ok(Update::Complete(_)));
        Some(update.map(|update| MetainfoUpdate { update: Some(update) }))
    }

    /// The next hashes, or how it ended.
    async fn follow(&mut self) -> Result<Update, OriginError> {
        let hashes = match &mut self.source {
            Source::Whole(metainfo) => {
                let hashes = metainfo.iter().flat_map(Metainfo::hashes);
                hashes.skip(self.next as usize).take(HASHES_MAX).copied().collect()
            }
            Source::Growing(ingest, progress) => {
                let (next, pieces) = (self.next, self.pieces);
                if next < pieces {
                    let some = progress.wait_for(|now| now.known > next || now.end.is_some()).await;
                    some.map_err(|_| OriginError::Lost)?;
                    if let Some(sent) = self.sent {
                        let more = progress.wait_for(|now| now.known == pieces || now.end.is_some());
                        let _ = tokio::time::timeout_at(sent + COALESCE, more).await;
                    }
                }
                ingest.hashes(next, HASHES_MAX)
            }
        };
        if hashes.is_empty() {
            return self.end().await;
        }
        let first_piece = self.next;
        self.next += u32::try_from(hashes.len()).unwrap_or(u32::MAX);
        self.sent = Some(Instant::now());
        Ok(Update::Hashes(PieceHashes { first_piece, states: hashes.iter().flat_map(|hash| hash.0).collect() }))
    }

    /// Every hash there is has been sent: waits for the check of the whole digest.
    async fn end(&mut self) -> Result<Update, OriginError> {
        let (ingest, progress) = match &mut self.source {
            Source::Whole(metainfo) => return Ok(complete(&self.identity, metainfo.as_ref())),
            Source::Growing(ingest, progress) => (ingest, progress),
        };
        let ended = progress.wait_for(|now| now.end.is_some()).await.map_err(|_| OriginError::Lost)?;
        match &ended.end {
            Some(Ok(_)) => Ok(complete(&self.identity, Some(&ingest.partial().metainfo()))),
            Some(Err(error)) => Err(error.clone()),
            None => Err(OriginError::Lost),
        }
    }
}

/// The last word, with a seal where there are certificates to seal with.
fn complete(identity: &Identity, metainfo: Option<&Metainfo>) -> Update {
    let seal = metainfo.and_then(|metainfo| identity.seal(&metainfo.statement()));
    Update::Complete(Complete { seal: seal.unwrap_or_default() })
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.dec();
    }
}
