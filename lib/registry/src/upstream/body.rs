//! The body of a blob: opened at an offset, taken up again where it broke, and never shorter or longer than declared.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Method, StatusCode, header};
use hyper::body::Incoming;
use shoal_meta::Digest;

use super::backoff::{Backoff, retry};
use super::endpoint::Endpoint;
use super::request::{Ask, next_bytes, text_header};
use super::{Access, BlobBody, Givers, Upstream, UpstreamError};
use crate::error::OciCode;
use crate::range::parse_content_range;

/// How often one body is taken up again, however far it moves between.
const RESUMES_MAX: u32 = 256;

/// Opens a blob, with retries until headers came.
pub(super) async fn open(
    upstream: &Upstream,
    access: &Access,
    digest: &Digest,
    offset: u64,
) -> Result<BlobBody, UpstreamError> {
    let timing = upstream.0.timing;
    let opened = retry(timing, || open_once(upstream, access, digest, offset, None)).await;
    let opened = match opened {
        Ok(opened) => opened,
        // Nothing is left at the very end of a blob, which a server says with 416.
        Err(UpstreamError::Refused { status: 416, message }) => {
            let length = length(upstream, access, digest).await?;
            if length != offset {
                return Err(UpstreamError::Refused { status: 416, message });
            }
            return Ok(BlobBody { length, offset, givers: Givers::default(), stream: Box::pin(stream::empty()) });
        }
        Err(error) => return Err(error),
    };
    let (length, givers) = (opened.length, Givers::default());
    opened.mirror.iter().for_each(|mirror| givers.add(mirror));
    let resuming = Resuming {
        upstream: upstream.clone(),
        access: access.clone(),
        digest: *digest,
        length,
        position: offset,
        body: opened.body,
        mirror: opened.mirror,
        givers: givers.clone(),
        skip: opened.skip,
        backoff: Backoff::new(timing),
        resumes: 0,
    };
    let stream = stream::try_unfold(Box::new(resuming), |mut resuming| async move {
        Ok(resuming.next().await?.map(|bytes| (bytes, resuming)))
    });
    Ok(BlobBody { length, offset, givers, stream: Box::pin(stream) })
}

/// Asks for a blob's length by HEAD, and by a range where HEAD does not tell it.
pub(super) async fn length(upstream: &Upstream, access: &Access, digest: &Digest) -> Result<u64, UpstreamError> {
    let path = format!("blobs/{digest}");
    let ask = Ask::new(access, Method::HEAD, &path, OciCode::BlobUnknown);
    match retry(upstream.0.timing, || upstream.ask(&ask)).await {
        Ok(response) => {
            if let Some(length) = content_length(response.headers()) {
                return Ok(length);
            }
        }
        // 405, or 403 and the like behind a redirect that is signed for GET only.
        Err(UpstreamError::Refused { .. }) => {}
        Err(error) => return Err(error),
    }
    let ask = Ask::new(access, Method::GET, &path, OciCode::BlobUnknown).first_byte();
    let response = retry(upstream.0.timing, || upstream.ask(&ask)).await?;
    let declared = match response.status() {
        StatusCode::PARTIAL_CONTENT => partial_of(response.headers(), 0)?.1,
        _ => content_length(response.headers()),
    };
    declared.ok_or_else(|| UpstreamError::Protocol("the blob's length is not declared".to_owned()))
}

/// An answer that begins at or before the offset asked for.
struct Opened {
    body: Incoming,
    /// The mirror that answered, if one did.
    mirror: Option<Arc<Endpoint>>,
    /// The whole blob's length.
    length: u64,
    /// Bytes to throw away first, when the server ignored the range.
    skip: u64,
}

async fn open_once(
    upstream: &Upstream,
    access: &Access,
    digest: &Digest,
    offset: u64,
    known_length: Option<u64>,
) -> Result<Opened, UpstreamError> {
    let path = format!("blobs/{digest}");
    let ask = Ask::new(access, Method::GET, &path, OciCode::BlobUnknown).starting_at(offset);
    let response = upstream.ask(&ask).await?;
    let headers = response.headers();
    if text_header(headers, "content-encoding").is_some_and(|coding| !coding.eq_ignore_ascii_case("identity")) {
        return Err(UpstreamError::Protocol("the blob came encoded where identity was asked for".to_owned()));
    }
    let (start, declared) = match response.status() {
        StatusCode::PARTIAL_CONTENT => partial_of(headers, offset)?,
        _ => (0, content_length(headers)),
    };
    let length = match declared.or(known_length) {
        Some(length) => length,
        None => self::length(upstream, access, digest).await?,
    };
    if let Some(known) = known_length.filter(|known| *known != length) {
        return Err(UpstreamError::Protocol(format!("the blob has {length} bytes and had {known} before")));
    }
    if offset > length {
        return Err(UpstreamError::Protocol(format!("the blob has {length} bytes and byte {offset} was asked for")));
    }
    let mirror = response.extensions().get().cloned();
    Ok(Opened { body: response.into_body(), mirror, length, skip: offset - start })
}

/// Where a 206 begins, and the whole length.
fn partial_of(headers: &HeaderMap, offset: u64) -> Result<(u64, Option<u64>), UpstreamError> {
    match text_header(headers, header::CONTENT_RANGE.as_str()).and_then(parse_content_range) {
        Some((Some(range), length)) if range.start == offset => Ok((offset, length)),
        Some(_) | None => Err(UpstreamError::Protocol(format!("the range does not begin at byte {offset} as asked"))),
    }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    text_header(headers, header::CONTENT_LENGTH.as_str())?.parse().ok()
}

/// A body on its way, and all it takes to open it again.
struct Resuming {
    upstream: Upstream,
    access: Access,
    digest: Digest,
    length: u64,
    /// The next byte to give out. Never beyond `length`.
    position: u64,
    body: Incoming,
    mirror: Option<Arc<Endpoint>>,
    givers: Givers,
    skip: u64,
    backoff: Backoff,
    resumes: u32,
}

impl Resuming {
    /// The next bytes; `None` only when exactly `length` bytes have been given out.
    async fn next(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        while self.position < self.length {
            match self.read().await {
                Ok(bytes) if bytes.is_empty() => {}
                Ok(bytes) => {
                    self.backoff.reset();
                    self.position += bytes.len() as u64;
                    return Ok(Some(bytes));
                }
                Err(error) => self.recover(error).await?,
            }
        }
        Ok(None)
    }

    async fn read(&mut self) -> Result<Bytes, UpstreamError> {
        let Some(mut bytes) = next_bytes(&mut self.body, self.upstream.0.timing).await? else {
            let message = format!("the body ended at byte {} of {}", self.position, self.length);
            return Err(UpstreamError::transport(message));
        };
        let skipped = self.skip.min(bytes.len() as u64);
        self.skip -= skipped;
        let skipped = usize::try_from(skipped).expect("it is at most the length of a slice");
        let bytes = bytes.split_off(skipped);
        if bytes.len() as u64 > self.length - self.position {
            return Err(UpstreamError::Protocol(format!("the body is longer than the {} bytes declared", self.length)));
        }
        Ok(bytes)
    }

    /// Opens the body again at `position`, or gives the error that ends it.
    async fn recover(&mut self, mut error: UpstreamError) -> Result<(), UpstreamError> {
        if let Some(mirror) = self.mirror.take() {
            mirror.note(&error);
        }
        loop {
            self.resumes += 1;
            let pause = self.backoff.pause_after(&error).filter(|_| self.resumes <= RESUMES_MAX);
            let Some(pause) = pause else { return Err(error) };
            tracing::debug!(digest = %self.digest, position = self.position, %error, "taking the body up again");
            tokio::time::sleep(pause).await;
            let known = Some(self.length);
            match open_once(&self.upstream, &self.access, &self.digest, self.position, known).await {
                Ok(opened) => {
                    self.body = opened.body;
                    self.mirror = opened.mirror;
                    self.mirror.iter().for_each(|mirror| self.givers.add(mirror));
                    self.skip = opened.skip;
                    return Ok(());
                }
                Err(next) => error = next,
            }
        }
    }
}
