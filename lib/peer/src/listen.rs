//! Accepts connections from peers, and sets the options every peer socket has.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tracing::warn;

use crate::conn::{self, Net};
use crate::rate::RateCap;

/// Connections not accepted yet that the kernel keeps.
const BACKLOG: i32 = 1024;
/// Accepted connections at most, over what the swarm takes: those saying Hello, and those about to be refused.
const NEWCOMERS_MAX: usize = 256;
/// Pause after an accept that failed: mostly too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Unsent bytes the kernel keeps on a connection, so that a control frame waits behind one block and not behind many.
const UNSENT_BYTES_MAX: u32 = 256 * 1024;
/// A peer that is silent for this long is asked whether it is there, this often, this many times.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(10), 3);

/// Binds the address peers connect to.
pub(crate) fn bind(address: SocketAddr, upload: &RateCap, download: &RateCap) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    bound_buffers(&SockRef::from(&socket), upload, download)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Bounds the kernel's buffers of a capped node. Before the connection is made, as the window's scale follows from it;
/// an accepted connection inherits it.
pub(crate) fn bound_buffers(socket: &SockRef<'_>, upload: &RateCap, download: &RateCap) -> io::Result<()> {
    if let Some(bytes) = upload.socket_buffer() {
        socket.set_send_buffer_size(bytes)?;
    }
    if let Some(bytes) = download.socket_buffer() {
        socket.set_recv_buffer_size(bytes)?;
    }
    Ok(())
}

/// Sets what every connected peer socket has.
pub(crate) fn set_options(socket: &SockRef<'_>) -> io::Result<()> {
    let (time, interval, retries) = KEEPALIVE;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(time).with_interval(interval).with_retries(retries))
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
            set_options(&SockRef::from(&stream))?;
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
