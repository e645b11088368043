//! The body of a blob in order, whole or ranges of it, as its pieces are verified. Made by the HTTP front.
//!
//! Invariant: a body ends cleanly only when every byte of it was sent, and the last byte of a blob that is kept here is sent
//! only after the whole digest was checked. Everything else is an error, on which the connection is closed short; but when
//! it is the disk that fails, the body goes on past it.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;

use bytes::Bytes;
use futures_util::Stream;
use shoal_registry::range;
use tokio::sync::watch;

use crate::error::OriginError;
use crate::ingest::{Holding, Progress};
use crate::pass_through::PassThrough;

/// How much is read from the disk at a time, in bytes.
const READ_BYTES: u64 = 256 * 1024;
/// Between the ranges of an answer with several; the blob's bytes cannot be mistaken for it, as each range has a length.
pub(crate) const BOUNDARY: &str = "shoal-range-7f3b9c1e5d";

/// What is sent, in order.
pub(crate) struct Plan {
    segments: VecDeque<Segment>,
    /// How many bytes it is together.
    pub(crate) length: u64,
}

enum Segment {
    Text(Bytes),
    Blob(Range<u64>),
}

impl Plan {
    /// One range of the blob; empty for none of it.
    pub(crate) fn single(range: Range<u64>) -> Self {
        let length = range.end - range.start;
        Self { segments: VecDeque::from([Segment::Blob(range)]), length }
    }

    /// Several ranges as `multipart/byteranges` (RFC 9110, section 14.6).
    pub(crate) fn multi(ranges: Vec<Range<u64>>, total: u64) -> Self {
        let mut plan = Self { segments: VecDeque::new(), length: 0 };
        for range in ranges {
            let content_range = range::content_range(&range, total);
            plan.text(format!(
                "\r\n--{BOUNDARY}\r\nContent-Type: application/octet-stream\r\nContent-Range: {content_range}\r\n\r\n"
            ));
            plan.length += range.end - range.start;
            plan.segments.push_back(Segment::Blob(range));
        }
        plan.text(format!("\r\n--{BOUNDARY}--\r\n"));
        plan
    }

    fn text(&mut self, text: String) {
        self.length += text.len() as u64;
        self.segments.push_back(Segment::Text(text.into()));
    }

    /// The first byte of the blob that is sent, if one is.
    pub(crate) fn first(&self) -> Option<u64> {
        self.segments.iter().find_map(|segment| match segment {
            Segment::Blob(range) => (!range.is_empty()).then_some(range.start),
            Segment::Text(_) => None,
        })
    }

    /// Sends it from a blob, or past the store.
    pub(crate) fn stream(self, holding: Holding, past: PassThrough) -> impl Stream<Item = io::Result<Bytes>> + Send {
        let follow = match &holding {
            Holding::Growing(ingest) => Some(ingest.progress()),
            Holding::Empty | Holding::Whole(_) | Holding::Passing { .. } => None,
        };
        let body = Body { segments: self.segments, holding, follow, past };
        futures_util::stream::try_unfold(
            body,
            |mut body| async move { Ok(body.next().await?.map(|bytes| (bytes, body))) },
        )
    }
}

struct Body {
    segments: VecDeque<Segment>,
    holding: Holding,
    follow: Option<watch::Receiver<Progress>>,
    past: PassThrough,
}

impl Body {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let range = match self.segments.pop_front() {
                None => return Ok(None),
                Some(Segment::Text(text)) => return Ok(Some(text)),
                Some(Segment::Blob(range)) if range.is_empty() => continue,
                Some(Segment::Blob(range)) => range,
            };
            let bytes = match self.read(range.clone()).await {
                Err(_) if self.disk_failed() => {
                    self.follow = None;
                    self.holding = Holding::Passing { length: self.holding.length() };
                    self.read(range.clone()).await?
                }
                read => read?,
            };
            let end = range.start + bytes.len() as u64;
            if end < range.end {
                self.segments.push_front(Segment::Blob(end..range.end));
            }
            return Ok(Some(bytes));
        }
    }

    /// The first bytes of a range, from wherever they are.
    async fn read(&mut self, range: Range<u64>) -> io::Result<Bytes> {
        let limit = self.readable(range.start).await.map_err(io::Error::other)?;
        let end = range.end.min(limit).min(range.start + READ_BYTES);
        let length = u32::try_from(end - range.start).map_err(io::Error::other)?;
        match &self.holding {
            Holding::Empty => Ok(Bytes::new()),
            Holding::Whole(blob) => blob.read(range.start, length).await,
            Holding::Growing(ingest) => ingest.partial().read(range.start, length).await,
            Holding::Passing { .. } => self.past.read(range.start..end).await.map_err(io::Error::other),
        }
    }

    /// Whether the blob was given up in the midst because of the disk, or cannot be read from it.
    fn disk_failed(&self) -> bool {
        let follow = self.follow.as_ref();
        matches!(self.holding, Holding::Whole(_))
            || follow.is_some_and(|follow| matches!(follow.borrow().end, Some(Err(OriginError::Disk(_)))))
    }

    /// Waits until the byte at `offset` can be sent, and tells where what can be sent ends.
    async fn readable(&mut self, offset: u64) -> Result<u64, OriginError> {
        let (Holding::Growing(ingest), Some(follow)) = (&self.holding, &mut self.follow) else {
            return Ok(self.holding.length());
        };
        let geometry = ingest.geometry();
        // All but the last piece before the end: a blob whose digest is wrong is never sent whole.
        let limit = |now: &Progress| match &now.end {
            Some(Ok(_)) => geometry.length(),
            Some(Err(_)) | None => {
                let last = geometry.piece_count() - 1;
                u64::from(now.ready.min(last)) * u64::from(geometry.piece_length())
            }
        };
        let now = follow.wait_for(|now| limit(now) > offset || now.end.is_some()).await;
        let now = now.map_err(|_| OriginError::Lost)?;
        match &now.end {
            Some(Err(error)) if limit(&now) <= offset => Err(error.clone()),
            Some(Ok(_) | Err(_)) | None => Ok(limit(&now)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_several_ranges_counts_what_is_between_them() {
        let plan = Plan::multi(vec![0..1, 10..20], 100);
        let text: usize = plan
            .segments
            .iter()
            .map(|segment| match segment {
                Segment::Text(text) => text.len(),
                Segment::Blob(_) => 0,
            })
            .sum();
        assert_eq!(plan.length, text as u64 + 11);
    }
}
