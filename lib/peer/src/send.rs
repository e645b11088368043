//! How a block gets from the store to a socket: the one place that knows.
//!
//! [`Payload::begin`] is called by the driver when the swarm hands out a block, [`send`] by the connection's writer. A
//! block that the kernel holds in memory goes by sendfile and never enters this process, unless it is to be encrypted; one it
//! does not is read on a blocking thread into a pooled buffer, ahead of the socket, so that no disk holds up the reactor.

use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::sendfile;
use rustix::net::SendFlags;
use shoal_meta::BlockRef;
use shoal_store::{Region, Source};
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::link::Link;
use crate::rate::RateCap;

/// A peer that takes no byte for this long is gone.
pub(crate) const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// What is encrypted at a time: four TLS records, and as much as rustls holds back for the socket.
const ENCRYPT_BYTES: usize = 64 * 1024;

/// A block that is to be sent.
pub(crate) enum Payload {
    /// The kernel held it in memory a moment ago.
    Cached(Region),
    /// It is being read from the disk.
    Reading(JoinHandle<io::Result<Bytes>>),
}

/// A block that can be sent without waiting for the disk.
pub(crate) enum Ready {
    Cached(Region),
    Read(Bytes),
}

impl Payload {
    /// Begins to read a block, unless that takes no disk.
    pub(crate) fn begin(source: Source, block: BlockRef) -> Self {
        let offset = source.geometry().piece_range(block.piece).start + u64::from(block.offset);
        match source.region(offset, block.length) {
            Ok(region) if region.is_cached() => Self::Cached(region),
            Ok(_) | Err(_) => Self::Reading(tokio::spawn(async move { source.read(offset, block.length).await })),
        }
    }

    /// Waits until the block is read. May be dropped and called again, until it gave something.
    pub(crate) async fn ready(&mut self) -> io::Result<Ready> {
        match self {
            Self::Cached(region) => Ok(Ready::Cached(region.clone())),
            Self::Reading(job) => job.await.unwrap_or_else(|error| Err(io::Error::other(error))).map(Ready::Read),
        }
    }
}

/// Writes a block frame, slice by slice as the cap allows.
pub(crate) async fn send(out: &mut Link, cap: &RateCap, header: &[u8], payload: &Ready) -> io::Result<()> {
    let (mut header, mut sent) = (header, 0);
    let length = match payload {
        Ready::Cached(region) => region.length as usize,
        Ready::Read(bytes) => bytes.len(),
    };
    while sent < length {
        let slice = cap.slice().min(length - sent);
        cap.take(header.len() + slice).await;
        match payload {
            Ready::Cached(region) if out.encrypted.is_none() => {
                write_more(&out.socket, header).await?;
                send_file(&out.socket, region, sent, slice).await?;
            }
            Ready::Cached(region) => {
                write_all(out, header, &[]).await?;
                encrypt_file(out, region, sent, slice).await?;
            }
            Ready::Read(bytes) => write_all(out, header, &bytes[sent..sent + slice]).await?,
        }
        (header, sent) = (&[], sent + slice);
    }
    Ok(())
}

/// Writes two runs of bytes.
pub(crate) async fn write_all(out: &mut Link, mut first: &[u8], mut second: &[u8]) -> io::Result<()> {
    if let Some(encrypted) = &mut out.encrypted {
        for chunk in first.chunks(ENCRYPT_BYTES).chain(second.chunks(ENCRYPT_BYTES)) {
            patiently(encrypted.write_all(chunk)).await?;
        }
        return patiently(encrypted.flush()).await;
    }
    let out = &*out.socket;
    while !first.is_empty() || !second.is_empty() {
        let slices = [IoSlice::new(first), IoSlice::new(second)];
        let written = progress(out, || out.try_write_vectored(&slices)).await?;
        let of_first = written.min(first.len());
        first = &first[of_first..];
        second = &second[written - of_first..];
    }
    Ok(())
}

/// Writes bytes that others follow at once: the kernel sends them together.
async fn write_more(out: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
        let written = progress(out, || Ok(rustix::net::send(out, bytes, flags)?)).await?;
        bytes = &bytes[written..];
    }
    Ok(())
}

/// Lets the kernel send a part of a region.
async fn send_file(out: &TcpStream, region: &Region, sent: usize, length: usize) -> io::Result<()> {
    let mut at = region.offset + sent as u64;
    let end = at + length as u64;
    while at < end {
        let left = usize::try_from(end - at).unwrap_or(length);
        progress(out, || Ok(sendfile(out, &region.file, Some(&mut at), left)?)).await?;
    }
    Ok(())
}

/// Sends a part of a region that the kernel held in memory a moment ago.
async fn encrypt_file(out: &mut Link, region: &Region, sent: usize, length: usize) -> io::Result<()> {
    let mut bytes = vec![0; ENCRYPT_BYTES.min(length)];
    for at in (sent..sent + length).step_by(ENCRYPT_BYTES) {
        let bytes = &mut bytes[..ENCRYPT_BYTES.min(sent + length - at)];
        region.file.read_exact_at(bytes, region.offset + at as u64)?;
        write_all(out, bytes, &[]).await?;
    }
    Ok(())
}

/// Waits for a write, as long as a peer that reads may take.
async fn patiently(write: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    timeout(STALL_TIMEOUT, write).await.unwrap_or_else(|_elapsed| Err(stalled()))
}

fn stalled() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the peer does not read")
}

/// Tries to write until some bytes went; fails when the peer takes none of them for [`STALL_TIMEOUT`].
async fn progress(out: &TcpStream, write: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    match timeout(STALL_TIMEOUT, out.async_io(Interest::WRITABLE, write)).await {
        Ok(Ok(0)) => Err(io::ErrorKind::WriteZero.into()),
        Ok(written) => written,
        Err(_elapsed) => Err(stalled()),
    }
}
