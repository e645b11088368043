//! How a block gets from the store to a socket: the one place to change for another way (sendfile).
//!
//! [`Payload::read`] is called by the driver when the swarm hands out a block, so that the disk works ahead of the
//! socket; [`send`] by the connection's writer. Now: pread on a blocking thread into a pooled buffer, one vectored write.

use std::io::{self, IoSlice};
use std::time::Duration;

use bytes::Bytes;
use shoal_meta::BlockRef;
use shoal_store::Source;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::rate::RateCap;

/// A peer that takes no byte for this long is gone.
pub(crate) const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// The bytes of a block, being read.
pub(crate) struct Payload(JoinHandle<io::Result<Bytes>>);

impl Payload {
    /// Begins to read a block.
    pub(crate) fn read(source: Source, block: BlockRef) -> Self {
        let offset = source.geometry().piece_range(block.piece).start + u64::from(block.offset);
        Self(tokio::spawn(async move { source.read(offset, block.length).await }))
    }

    /// Waits until the block is read. May be dropped and called again.
    pub(crate) async fn ready(&mut self) -> io::Result<Bytes> {
        (&mut self.0).await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

/// Writes a block frame, slice by slice as the cap allows.
pub(crate) async fn send(out: &mut OwnedWriteHalf, cap: &RateCap, header: &[u8], payload: &[u8]) -> io::Result<()> {
    let mut header = header;
    for slice in payload.chunks(cap.slice().max(1)) {
        cap.take(header.len() + slice.len()).await;
        write_all(out, header, slice).await?;
        header = &[];
    }
    Ok(())
}

/// Writes two runs of bytes; fails when the peer takes none of them for [`STALL_TIMEOUT`].
pub(crate) async fn write_all(out: &mut OwnedWriteHalf, mut first: &[u8], mut second: &[u8]) -> io::Result<()> {
    while !first.is_empty() || !second.is_empty() {
        let slices = [IoSlice::new(first), IoSlice::new(second)];
        let written = match timeout(STALL_TIMEOUT, out.write_vectored(&slices)).await {
            Ok(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => written?,
            Err(_elapsed) => return Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not read")),
        };
        let of_first = written.min(first.len());
        first = &first[of_first..];
        second = &second[written - of_first..];
    }
    Ok(())
}
