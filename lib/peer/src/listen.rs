//! Accepts connections from peers.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tracing::warn;

use crate::conn::{self, Net};
use crate::socket::Manners;

/// Connections not accepted yet that the kernel keeps.
const BACKLOG: i32 = 1024;
/// Accepted connections at most, over what the swarm takes: those saying Hello, and those about to be refused.
const NEWCOMERS_MAX: usize = 256;
/// Pause after an accept that failed: mostly too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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
    let room = Arc::new(Semaphore::new(connections_max + NEWCOMERS_MAX));
    loop {
        let accepted = async {
            let place = room.clone().acquire_owned().await.expect("this semaphore is never closed");
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            accepted = accepted => accepted,
            () = net.handle.shutdown.cancelled() => return,
        };
        let accepted = accepted.and_then(|(stream, remote)| {
            net.manners.settle(&SockRef::from(&stream))?;
            Ok((stream, remote))
        });
        match accepted {
            Ok((stream, remote)) => {
                let net = net.clone();
                net.tasks.clone().spawn(async move {
                    conn::run(net, stream, remote, None).await;
                    drop(place);
                });
            }
            Err(error) => {
                warn!(%error, "cannot accept a peer's connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
