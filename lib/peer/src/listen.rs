//! Accepts connections from peers.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use shoal_kit::incoming::Incoming;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::TcpListener;
use tracing::debug;

use crate::conn::{self, Net};
use crate::socket::Manners;

/// Connections not accepted yet that the kernel keeps.
const BACKLOG: i32 = 1024;
/// Accepted connections at most, over what the swarm takes: those saying Hello, and those about to be refused.
const NEWCOMERS_MAX: usize = 256;

/// Binds the address peers connect to.
pub(crate) fn bind(address: SocketAddr, manners: &Manners) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    manners.prepare(&SockRef::from(&socket))?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Accepts connections until the node shuts down.
pub(crate) async fn accept(net: Arc<Net>, listener: TcpListener, connections_max: usize) {
    let mut incoming = Incoming::new(listener, connections_max + NEWCOMERS_MAX, net.handle.shutdown.clone());
    while let Some((stream, remote, place)) = incoming.next().await {
        if let Err(error) = net.manners.settle(&SockRef::from(&stream)) {
            // It is gone already.
            debug!(%remote, %error, "cannot set up a peer's connection");
            continue;
        }
        let net = net.clone();
        net.tasks.clone().spawn(async move {
            conn::run(net, stream, remote, None).await;
            drop(place);
        });
    }
}
