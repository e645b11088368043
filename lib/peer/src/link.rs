//! The socket of a connection, and TLS over it where parts have certificates.
//!
//! A connection reads through one half and writes through a [`Link`]; [`crate::send`] knows what is written. The socket's
//! options stay in reach whatever runs over it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use shoal_identity::{Identity, Part, Parts, Stream};
use shoal_meta::Role;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, ReadHalf, WriteHalf};
use tokio::net::TcpStream;

/// What is read from.
pub(crate) type Receiving = ReadHalf<Stream<Socket>>;

/// What is written to.
pub(crate) struct Link {
    pub(crate) socket: Arc<TcpStream>,
    /// Without it, bytes go into the socket as they are.
    pub(crate) encrypted: Option<WriteHalf<Stream<Socket>>>,
}

/// Sets a connection up at one end: `dialled` is what the peer is said to be. Tells which parts it may be.
pub(crate) async fn establish(
    identity: &Identity,
    stream: TcpStream,
    dialled: Option<Role>,
) -> io::Result<(Receiving, Link, Parts)> {
    let socket = Arc::new(stream);
    let (stream, parts) = match dialled {
        Some(role) => identity.connect(Socket(socket.clone()), part(role)).await?,
        None => identity.accept(Socket(socket.clone())).await?,
    };
    let encrypts = matches!(stream, Stream::Tls(_));
    let (receiving, sending) = tokio::io::split(stream);
    Ok((receiving, Link { socket, encrypted: encrypts.then_some(sending) }, parts))
}

/// What a peer of this role is to show.
pub(crate) fn part(role: Role) -> Part {
    match role {
        Role::Agent => Part::Agent,
        Role::Origin => Part::Origin,
    }
}

/// A socket that others hold too: one task reads it and one writes.
#[derive(Debug)]
pub(crate) struct Socket(Arc<TcpStream>);

impl Socket {
    /// Tries again whenever the socket is ready, until it does something.
    fn poll_io<T>(
        &self,
        mut poll_ready: impl FnMut(&TcpStream) -> Poll<io::Result<()>>,
        mut attempt: impl FnMut(&TcpStream) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        loop {
            ready!(poll_ready(&self.0))?;
            match attempt(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read =
            self.poll_io(|socket| socket.poll_read_ready(cx), |socket| socket.try_read(buffer.initialize_unfilled()));
        read.map_ok(|bytes| buffer.advance(bytes))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_io(|socket| socket.poll_write_ready(cx), |socket| socket.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_io(|socket| socket.poll_write_ready(cx), |socket| socket.try_write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(socket2::SockRef::from(&*self.0).shutdown(std::net::Shutdown::Write))
    }
}
