//! The options of peer sockets: how far the kernel may run ahead, when a silent peer is asked whether it is there, and how
//! peer traffic yields to that of applications.
//!
//! Used by the listener and the dialler.

use std::io;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tracing::info;

use crate::pace::UNSENT_BYTES_MIN;
use crate::rate::RateCap;

/// A peer that is silent for this long is asked whether it is there, this often, this many times.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(10), 3);
/// The DSCP "lower effort" (RFC 8622, 000001) in its place in the traffic class: routers that know it let others go first.
const LOWER_EFFORT: u32 = 0b0000_0100;
/// The kernel's `TC_PRIO_FILLER`: queues of this node that know priorities let others go first.
const PRIORITY_FILLER: u32 = 1;
/// TCP-LP takes what other flows leave over (Kuzmanovic and Knightly 2003).
const LOW_PRIORITY: &[u8] = b"lp";

/// What the sockets of one node have in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manners {
    send_buffer: Option<usize>,
    receive_buffer: Option<usize>,
    background: bool,
    /// The kernel has [`LOW_PRIORITY`] and lets us choose it.
    low_priority: bool,
}

impl Manners {
    /// Bounds buffers as the caps need it; `background` traffic yields to others.
    pub(crate) fn new(background: bool, upload: &RateCap, download: &RateCap) -> Self {
        let low_priority = background && has_low_priority();
        if background && !low_priority {
            info!("the kernel has no congestion control `lp`: peer traffic yields by its DSCP and priority alone");
        }
        let (send_buffer, receive_buffer) = (upload.socket_buffer(), download.socket_buffer());
        Self { send_buffer, receive_buffer, background, low_priority }
    }

    /// Sets what must be set before a connection is made; an accepted one inherits it from its listener.
    pub(crate) fn prepare(&self, socket: &SockRef<'_>) -> io::Result<()> {
        // The window's scale follows from these.
        self.send_buffer.map_or(Ok(()), |bytes| socket.set_send_buffer_size(bytes))?;
        self.receive_buffer.map_or(Ok(()), |bytes| socket.set_recv_buffer_size(bytes))?;
        if self.background {
            if socket.domain()? == Domain::IPV6 {
                socket.set_tclass_v6(LOWER_EFFORT)?;
            }
            // An IPv6 socket may carry IPv4.
            socket.set_tos_v4(LOWER_EFFORT)?;
        }
        if self.low_priority {
            socket.set_tcp_congestion(LOW_PRIORITY)?;
        }
        Ok(())
    }

    /// Sets what is set once a connection stands.
    pub(crate) fn settle(&self, socket: &SockRef<'_>) -> io::Result<()> {
        let (time, interval, retries) = KEEPALIVE;
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_notsent_lowat(UNSENT_BYTES_MIN)?;
        if self.background {
            // Not inherited, and a traffic class sets it anew.
            socket.set_priority(PRIORITY_FILLER)?;
        }
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(time).with_interval(interval).with_retries(retries))
    }
}

/// Tells whether a socket takes [`LOW_PRIORITY`]; a privileged process makes the kernel load it.
fn has_low_priority() -> bool {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP));
    socket.is_ok_and(|socket| socket.set_tcp_congestion(LOW_PRIORITY).is_ok())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

    use tokio::net::TcpStream;

    use super::*;
    use crate::dial::connect;
    use crate::listen::bind;

    async fn pair(manners: Manners, address: SocketAddr) -> [TcpStream; 2] {
        let listener = bind(address, &manners).unwrap();
        let (dialled, accepted) = tokio::join!(connect(&manners, listener.local_addr().unwrap()), listener.accept());
        let accepted = accepted.unwrap().0;
        manners.settle(&SockRef::from(&accepted)).unwrap();
        [dialled.unwrap(), accepted]
    }

    fn manners(background: bool) -> Manners {
        Manners::new(background, &RateCap::new(None), &RateCap::new(None))
    }

    #[tokio::test]
    async fn both_ends_of_a_background_connection_yield() {
        for stream in pair(manners(true), (Ipv4Addr::LOCALHOST, 0).into()).await {
            let socket = SockRef::from(&stream);
            assert_eq!((socket.tos_v4().unwrap(), socket.priority().unwrap()), (LOWER_EFFORT, PRIORITY_FILLER));
            let congestion = socket.tcp_congestion().unwrap();
            assert_eq!(congestion.starts_with(LOW_PRIORITY), has_low_priority(), "{congestion:?}");
        }
        for stream in pair(manners(true), (Ipv6Addr::LOCALHOST, 0).into()).await {
            let socket = SockRef::from(&stream);
            assert_eq!((socket.tclass_v6().unwrap(), socket.priority().unwrap()), (LOWER_EFFORT, PRIORITY_FILLER));
        }
    }

    #[tokio::test]
    async fn other_connections_are_as_the_kernel_makes_them() {
        for stream in pair(manners(false), (Ipv4Addr::LOCALHOST, 0).into()).await {
            let socket = SockRef::from(&stream);
            assert_eq!((socket.tos_v4().unwrap(), socket.priority().unwrap()), (0, 0));
        }
    }
}
