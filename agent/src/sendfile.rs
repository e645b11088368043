//! Bodies of which the kernel sends a part straight from a file, though hyper writes them.
//!
//! The front gives each connection its [`Slots`] and its [`Outlet`]; the bodies of its answers place slices in the slots.
//! Knows files and sockets, but neither HTTP nor blobs.
//!
//! hyper knows a body as runs of bytes in memory. A [`FileSlice`] shows it addresses instead of bytes: a slot is a stretch
//! of one placeholder that nobody reads, and the slice in a slot shows that stretch. When hyper hands it to the outlet to
//! be written, the address says which slot and how far into it, the slot says which file, and the outlet calls sendfile.
//!
//! Why no wrong byte is ever sent:
//! - What is sent depends on the address alone, never on an order that two sides would have to keep alike: pipelining, HEAD
//!   and a body dropped half-way cannot shift it.
//! - A slot is taken while its slice lives, so an address means one byte of one file. Slots are of one connection, and its
//!   bodies alone place slices in them.
//! - A placeholder without a slice, or past the end of one, is an error that ends the connection, and so is a file that is
//!   shorter than its region.
//! - The placeholder is seen by [`Buf::chunks_vectored`] alone, which hyper calls to write. Whoever would copy a slice's
//!   bytes, as hyper does when it does not write vectored, comes by [`Buf::chunk`], and that panics.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use rustix::fs::sendfile;
use rustix::io::Errno;
use rustix::net::SendFlags;
use shoal_store::Region;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// Most bytes of one slice. What of it turns out not to be in memory is read from the disk by the thread that sends, so
/// it is short.
const SLOT_LENGTH: usize = 256 * 1024;
/// Fewest bytes of one slice. Fewer are read, and leave in one write with the headers before them.
const SLICE_LENGTH_MIN: usize = 32 * 1024;
/// Most slices of one connection at a time. hyper takes no further run while its buffer's length is unsent, so more than
/// two are rare; a body that finds no slot reads instead.
const SLOTS: usize = 4;
/// Most bytes read at a time where the kernel does not send a file.
const COPY_LENGTH: usize = 64 * 1024;

/// The addresses of all slots: zeroed pages that nobody touches, so they take address space and hardly memory.
static PLACEHOLDER: LazyLock<Vec<u8>> = LazyLock::new(|| vec![0; SLOTS * SLOT_LENGTH]);

/// Where the slices of one connection's bodies sit.
#[derive(Debug, Clone, Default)]
pub(crate) struct Slots(Arc<Mutex<[Option<Region>; SLOTS]>>);

impl Slots {
    /// Makes a slice of a region; none if every slot is taken, or if it is too long or too short to be one.
    pub(crate) fn place(&self, region: Region) -> Option<FileSlice> {
        let length = region.length as usize;
        if !(SLICE_LENGTH_MIN..=SLOT_LENGTH).contains(&length) {
            return None;
        }
        let mut slots = self.lock();
        let slot = slots.iter().position(Option::is_none)?;
        slots[slot] = Some(region);
        let start = slot * SLOT_LENGTH;
        Some(FileSlice { slots: self.clone(), slot, unsent: start..start + length })
    }

    /// What a stretch of the placeholder stands for.
    fn find(&self, stretch: &Range<usize>) -> io::Result<Region> {
        let (slot, sent) = (stretch.start / SLOT_LENGTH, stretch.start % SLOT_LENGTH);
        let region = self.lock().get(slot).cloned().flatten();
        let region = region.filter(|region| sent + stretch.len() <= region.length as usize);
        let Region { file, offset, .. } = region.ok_or_else(|| io::Error::other("no slice of a file is there"))?;
        let length = u32::try_from(stretch.len()).map_err(io::Error::other)?;
        Ok(Region { file, offset: offset + sent as u64, length })
    }

    fn lock(&self) -> MutexGuard<'_, [Option<Region>; SLOTS]> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A range of a file, as bytes to be sent.
#[derive(Debug)]
pub(crate) struct FileSlice {
    slots: Slots,
    slot: usize,
    /// In the placeholder.
    unsent: Range<usize>,
}

impl Buf for FileSlice {
    fn remaining(&self) -> usize {
        self.unsent.len()
    }

    fn chunk(&self) -> &[u8] {
        panic!("a slice of a file is sent, and never copied")
    }

    fn chunks_vectored<'a>(&'a self, out: &mut [IoSlice<'a>]) -> usize {
        let Some(out) = out.first_mut().filter(|_| !self.unsent.is_empty()) else { return 0 };
        *out = IoSlice::new(&PLACEHOLDER[self.unsent.clone()]);
        1
    }

    fn advance(&mut self, count: usize) {
        assert!(count <= self.unsent.len(), "no more is sent than there was");
        self.unsent.start += count;
    }
}

impl Drop for FileSlice {
    fn drop(&mut self) {
        self.slots.lock()[self.slot] = None;
    }
}

/// A run of an answer's bytes.
#[derive(Debug)]
pub(crate) enum Run {
    /// In memory.
    Bytes(Bytes),
    /// In a file.
    File(FileSlice),
}

impl Buf for Run {
    fn remaining(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.remaining(),
            Self::File(slice) => slice.remaining(),
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes.chunk(),
            Self::File(slice) => slice.chunk(),
        }
    }

    fn chunks_vectored<'a>(&'a self, out: &mut [IoSlice<'a>]) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.chunks_vectored(out),
            Self::File(slice) => slice.chunks_vectored(out),
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Self::Bytes(bytes) => bytes.advance(count),
            Self::File(slice) => slice.advance(count),
        }
    }
}

/// A client's connection, which sends what sits in its slots from the files.
#[derive(Debug)]
pub(crate) struct Outlet {
    stream: TcpStream,
    slots: Slots,
}

impl Outlet {
    pub(crate) fn new(stream: TcpStream, slots: Slots) -> Self {
        Self { stream, slots }
    }

    /// Sends what a stretch of the placeholder stands for, as far as the socket takes it.
    fn poll_send(&self, cx: &mut Context<'_>, stretch: &Range<usize>) -> Poll<io::Result<usize>> {
        let region = self.slots.find(stretch)?;
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match self.stream.try_io(Interest::WRITABLE, || send(&self.stream, &region)) {
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                sent => return Poll::Ready(sent),
            }
        }
    }
}

/// Tries to send a region: at least one byte of it.
fn send(stream: &TcpStream, region: &Region) -> io::Result<usize> {
    let mut at = region.offset;
    match sendfile(stream, &region.file, Some(&mut at), region.length as usize) {
        Ok(0) => Err(too_short(region)),
        Ok(sent) => Ok(sent),
        Err(error @ (Errno::AGAIN | Errno::INTR)) => Err(error.into()),
        // A file system or a sandbox may refuse it. A fault of the socket or the disk shows in the copy as well.
        Err(_) => copy(stream, region),
    }
}

fn copy(stream: &TcpStream, region: &Region) -> io::Result<usize> {
    let mut buffer = vec![0; COPY_LENGTH.min(region.length as usize)];
    match region.file.read_at(&mut buffer, region.offset)? {
        0 => Err(too_short(region)),
        read => Ok(rustix::net::send(stream, &buffer[..read], SendFlags::NOSIGNAL)?),
    }
}

fn too_short(region: &Region) -> io::Error {
    tracing::error!(offset = region.offset, "a file of the store is shorter than its blob");
    io::ErrorKind::UnexpectedEof.into()
}

/// The stretch of the placeholder that bytes are, if they are one.
fn placeholder(bytes: &[u8]) -> Option<Range<usize>> {
    let start = bytes.as_ptr().addr().checked_sub(PLACEHOLDER.as_ptr().addr())?;
    (start < PLACEHOLDER.len() && !bytes.is_empty()).then_some(start..start + bytes.len())
}

impl AsyncWrite for Outlet {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    /// Writes what stands before the first slice of a file, or of that slice.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        runs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let empty = runs.iter().take_while(|run| run.is_empty()).count();
        let runs = &runs[empty..];
        if let Some(stretch) = runs.first().and_then(|run| placeholder(run)) {
            return self.poll_send(cx, &stretch);
        }
        let before = runs.iter().take_while(|run| placeholder(run).is_none()).count();
        Pin::new(&mut self.stream).poll_write_vectored(cx, &runs[..before])
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl AsyncRead for Outlet {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

#[cfg(test)]
mod tests;
