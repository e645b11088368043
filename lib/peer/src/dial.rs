//! Connects to peers as the swarm wishes; it bounds how many dials are under way.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use shoal_meta::PeerInfo;
use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tracing::debug;

use crate::conn::{self, Net};
use crate::mailbox::Input;
use crate::socket::Manners;

/// How long a peer has to accept; inside a cluster it takes a millisecond.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Dials a peer and runs the connection, or reports that it failed.
pub(crate) async fn dial(net: Arc<Net>, peer: PeerInfo) {
    let connected = tokio::select! {
        connected = timeout(CONNECT_TIMEOUT, connect(&net.manners, peer.address)) => connected,
        () = net.handle.shutdown.cancelled() => return,
    };
    match connected.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into())) {
        Ok(stream) => conn::run(net, stream, peer.address, Some(peer)).await,
        Err(error) => {
            debug!(remote = %peer.address, %error, "cannot dial a peer");
            // The driver's end is the node's end.
            let _ = net.handle.send(Input::DialFailed(peer.id)).await;
        }
    }
}

pub(crate) async fn connect(manners: &Manners, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    manners.prepare(&SockRef::from(&socket))?;
    let stream = socket.connect(address).await?;
    manners.settle(&SockRef::from(&stream))?;
    Ok(stream)
}
