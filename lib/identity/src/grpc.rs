//! gRPC between parts: channels to a part, connections for tonic's servers, and who may call what.
//!
//! tonic's own accept loop has no bound, and spins when file descriptors run out.

use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream as Items;
use http::Uri;
use hyper_util::rt::TokioIo;
use shoal_kit::incoming::{Incoming, Place};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::{Identity, Part, Parts, Stream};

/// How to reach a server at `http://host:port`; `None` when the text is no such address.
#[must_use]
pub fn endpoint(url: &str) -> Option<Endpoint> {
    let endpoint = Endpoint::from_shared(url.to_owned()).ok()?;
    let uri = endpoint.uri();
    let usable =
        uri.scheme_str() == Some("http") && uri.port_u16().is_some() && uri.host().is_some_and(|host| !host.is_empty());
    usable.then_some(endpoint)
}

impl Identity {
    /// A channel to a part, which connects when it is first used. The endpoint's time-outs hold; whether it is encrypted does
    /// not depend on the address, but on the certificates.
    #[must_use]
    pub fn channel(&self, endpoint: &Endpoint, part: Part) -> Channel {
        let identity = self.clone();
        endpoint.connect_with_connector_lazy(tower::service_fn(move |uri: Uri| {
            let identity = identity.clone();
            async move {
                let stream = TcpStream::connect(address(&uri)).await?;
                stream.set_nodelay(true)?;
                let (stream, _) = identity.connect(stream, part).await?;
                Ok::<_, io::Error>(TokioIo::new(stream))
            }
        }))
    }

    /// Accepts connections for `Router::serve_with_incoming_shutdown`, bounded and ended as [`Incoming`] says.
    pub fn incoming(
        &self,
        listener: TcpListener,
        connections_max: usize,
        shutdown: CancellationToken,
    ) -> impl Items<Item = Result<Connection, Infallible>> + Send + use<> {
        let incoming = Incoming::new(listener, connections_max, shutdown);
        let accepting = Accepting { identity: self.clone(), incoming, handshakes: JoinSet::new() };
        futures_util::stream::unfold(accepting, async |mut accepting| {
            let connection = accepting.next().await?;
            Some((Ok(connection), accepting))
        })
    }
}

/// Where a server is, for the resolver: an IPv6 address is in brackets in a URI alone.
fn address(uri: &Uri) -> (String, u16) {
    let host = uri.host().unwrap_or_default();
    (host.trim_matches(['[', ']']).to_owned(), uri.port_u16().unwrap_or_default())
}

/// Whoever calls: where it is, and who it may be.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    /// Where it called from.
    pub address: SocketAddr,
    /// What its certificate says it is.
    pub parts: Parts,
}

impl Caller {
    /// Who made a request. One that came over no connection of ours is nobody's.
    #[must_use]
    pub fn of<T>(request: &Request<T>) -> Option<Self> {
        request.extensions().get().copied()
    }
}

/// Lets a request be made by these parts only.
///
/// # Errors
/// `PERMISSION_DENIED` when the caller is none of them.
pub fn only<T>(request: &Request<T>, parts: &[Part]) -> Result<(), Status> {
    let caller = Caller::of(request);
    if caller.is_some_and(|caller| parts.iter().any(|part| caller.parts.contain(*part))) {
        return Ok(());
    }
    let names: Vec<_> = parts.iter().map(|part| part.name()).collect();
    Err(Status::permission_denied(format!("only a caller with a certificate for {} may ask this", names.join(" or "))))
}

/// An accepted connection; dropping it makes room for another.
#[derive(Debug)]
pub struct Connection {
    stream: Stream<TcpStream>,
    caller: Caller,
    _place: Place,
}

struct Accepting {
    identity: Identity,
    incoming: Incoming,
    handshakes: JoinSet<io::Result<Connection>>,
}

impl Accepting {
    async fn next(&mut self) -> Option<Connection> {
        loop {
            tokio::select! {
                arrived = self.incoming.next() => {
                    let (stream, from, place) = arrived?;
                    self.handshakes.spawn(shake_hands(self.identity.clone(), stream, from, place));
                }
                Some(Ok(ended)) = self.handshakes.join_next() => match ended {
                    Ok(connection) => return Some(connection),
                    Err(error) => tracing::debug!(%error, "a caller is refused"),
                },
            }
        }
    }
}

async fn shake_hands(
    identity: Identity,
    stream: TcpStream,
    address: SocketAddr,
    place: Place,
) -> io::Result<Connection> {
    let (stream, parts) = identity.accept(stream).await?;
    Ok(Connection { stream, caller: Caller { address, parts }, _place: place })
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller
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
    use super::*;

    #[test]
    fn servers_are_named_by_address_and_port() {
        for good in ["http://origin.shoal:7500", "http://10.0.0.1:1", "http://[::1]:7400"] {
            assert!(endpoint(good).is_some(), "{good}");
        }
        for bad in ["", "origin:7500", "http://origin", "https://origin:7500", "ftp://origin:1", "http://:7500"] {
            assert!(endpoint(bad).is_none(), "{bad}");
        }
        assert_eq!(address(&"http://[::1]:7400".parse().unwrap()), ("::1".to_owned(), 7400));
        assert_eq!(address(&"http://tracker:7400/x".parse().unwrap()), ("tracker".to_owned(), 7400));
    }

    #[test]
    fn a_request_over_no_connection_is_nobodys() {
        let mut request = Request::new(());
        assert!(only(&request, &Part::ALL).is_err());
        request.extensions_mut().insert(Caller { address: ([127, 0, 0, 1], 1).into(), parts: Parts::ANY });
        assert!(only(&request, &[Part::Agent]).is_ok());
    }
}
