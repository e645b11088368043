//! Connections to registries. One that is near gets no more ahead than its rate needs (`shoal_kit::window`): layers fetched
//! side by side fill the node's downlink otherwise, and what peers ask for waits behind them or is dropped.

use std::collections::HashSet;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::Uri;
use http::uri::Authority;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use shoal_kit::window::{PAUSE, Window};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tower_service::Service;

/// A registry is near when it was connected to within this time once, its name's look-up included; later what is on its way
/// already may be in the way. A window once set is bounded by `net.core.rmem_max`: with what that is by default, and this round
/// trip, a connection has 40 MB/s.
const NEAR: Duration = Duration::from_millis(5);
/// A connection with so many bytes in 25 ms or fewer has all of a 100 Mbit/s link, or a part of a faster one.
const SLOW: u32 = 256 * 1024;
/// Most registries known to be near.
const NEAR_MAX: usize = 64;

/// Connects over TCP. Clones share what is near.
#[derive(Debug, Clone)]
pub(super) struct Dialler {
    http: HttpConnector,
    near: Arc<Mutex<HashSet<Authority>>>,
}

impl Dialler {
    pub(super) fn new(http: HttpConnector) -> Self {
        Self { http, near: Arc::default() }
    }
}

/// Tells whether a registry is near, to which it took so long to connect.
fn is_near(near: &Mutex<HashSet<Authority>>, registry: Authority, took: Duration) -> bool {
    let mut near = near.lock().expect("nothing panics while it holds this lock");
    near.contains(&registry) || (took < NEAR && near.len() < NEAR_MAX && near.insert(registry))
}

impl Service<Uri> for Dialler {
    type Response = TokioIo<Stream>;
    type Error = <HttpConnector as Service<Uri>>::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.http.poll_ready(cx)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let (registry, near) = (to.authority().cloned(), self.near.clone());
        let (began, connecting) = (Instant::now(), self.http.call(to));
        Box::pin(async move {
            let stream = connecting.await?.into_inner();
            let is_near = registry.is_some_and(|registry| is_near(&near, registry, began.elapsed()));
            let window = is_near.then(|| Window::new(SLOW));
            Ok(TokioIo::new(Stream { stream, window, waits_since: None }))
        })
    }
}

/// A connection that keeps to its window, if it has one.
#[derive(Debug)]
pub(super) struct Stream {
    stream: TcpStream,
    window: Option<Window>,
    /// Since when the reader waits.
    waits_since: Option<Instant>,
}

impl Stream {
    fn received(&mut self, bytes: usize) -> io::Result<()> {
        let ended = Instant::now();
        let waited_since = self.waits_since.take().unwrap_or(ended);
        // Between two answers a reader waits for nothing that is on its way.
        let began = if ended - waited_since < PAUSE { waited_since } else { ended };
        let ahead = self.window.as_mut().and_then(|window| window.received(began, ended, bytes as u64));
        ahead.map_or(Ok(()), |ahead| SockRef::from(&self.stream).set_recv_buffer_size(ahead as usize))
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.waits_since.get_or_insert_with(Instant::now);
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        Poll::Ready(self.received(buf.filled().len() - before))
    }
}

/// Requests are small: nothing is gained by writing several buffers at a time.
impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        self.stream.connected()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn what_was_near_once_is_near() {
        let near = Mutex::default();
        let registry = |n: usize| format!("r{n}.example:5000").parse().unwrap();
        assert!(!is_near(&near, registry(0), NEAR));
        assert!(is_near(&near, registry(0), NEAR / 2));
        assert!(is_near(&near, registry(0), NEAR * 100));
        assert!((1..NEAR_MAX).all(|n| is_near(&near, registry(n), NEAR / 2)));
        assert!(!is_near(&near, registry(NEAR_MAX), NEAR / 2));
    }

    #[tokio::test]
    async fn a_slow_connection_to_a_registry_nearby_has_little_ahead() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri: Uri = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
        let server = tokio::spawn(async move {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut clock = tokio::time::interval(Duration::from_millis(8));
            // Two megabytes a second, for as long as the client is there.
            while client.write_all(&[0; 16 * 1024]).await.is_ok() {
                clock.tick().await;
            }
        });
        let mut stream = Dialler::new(HttpConnector::new()).call(uri).await.unwrap().into_inner();
        // Near, however busy this machine is.
        stream.window.get_or_insert_with(|| Window::new(SLOW));
        let buffer = |stream: &Stream| SockRef::from(&stream.stream).recv_buffer_size().unwrap();
        SockRef::from(&stream.stream).set_recv_buffer_size(100 * 1024).unwrap();
        assert!(buffer(&stream) > 2 * 64 * 1024);
        let received = async {
            let mut bytes = vec![0; 64 * 1024];
            while stream.read(&mut bytes).await.unwrap() > 0 {
                // The kernel doubles what it is told.
                if buffer(&stream) == 2 * 64 * 1024 {
                    return;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), received).await.expect("a small window");
        drop(stream);
        server.await.unwrap();
    }
}
