//! Accepting connections, a bounded number at a time, and for tonic's servers.
//!
//! The gRPC servers of tracker and origin call it, and the admin server. It knows nothing of what the connections carry.
//! tonic's own accept loop has no bound, and spins when file descriptors run out.

use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::transport::server::{Connected, TcpConnectInfo};

/// The pause after a failed accept, as when file descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// An accepted connection; dropping it makes room for another.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    _permit: OwnedSemaphorePermit,
}

/// Accepts connections for `Router::serve_with_incoming_shutdown`, at most `connections_max` at a time.
///
/// Further ones wait in the kernel's queue until one ends: a client then sees a slow connection, not a reset.
pub fn incoming(
    listener: TcpListener,
    connections_max: usize,
) -> impl Stream<Item = Result<Connection, Infallible>> + Send {
    let permits = Arc::new(Semaphore::new(connections_max));
    futures_util::stream::unfold((listener, permits), async |(listener, permits)| {
        let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        let stream = accept(&listener).await;
        Some((Ok(Connection { stream, _permit: permit }), (listener, permits)))
    })
}

/// Accepts the next connection, without delayed sends. After an error it waits a little and goes on.
pub async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await.and_then(|(stream, _)| stream.set_nodelay(true).map(|()| stream)) {
            Ok(stream) => return stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;

    use futures_util::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn past_the_limit_a_connection_waits_for_another_to_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut incoming = pin!(incoming(listener, 1));
        let _clients = (TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap());
        let first = incoming.next().await.unwrap();
        assert!(poll_fn(|cx| Poll::Ready(incoming.as_mut().poll_next(cx).is_pending())).await);
        drop(first);
        assert!(incoming.next().await.is_some());
    }
}
