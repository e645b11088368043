//! Accepting connections, for every server: a bounded number at a time, of which one address gets no more than its share. It
//! knows nothing of what the connections carry.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// The pause after a failed accept, as when file descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// It takes so many addresses to fill a server: one that takes all it gets leaves room for the others.
pub const SHARES: usize = 16;
/// One address may have so many connections in any case.
const SHARE_MIN: usize = 16;

/// The connections that come to a listener, until the shutdown.
#[derive(Debug)]
pub struct Incoming {
    /// None after the shutdown: whoever comes then is refused at once, and does not wait for a server that drains.
    listener: Option<TcpListener>,
    room: Arc<Semaphore>,
    taken: Arc<Taken>,
    shutdown: CancellationToken,
}

/// Whose share it takes who is at an address. Nobody's on loopback: many may have that address, and they are this machine.
#[must_use]
pub fn share_holder(address: IpAddr) -> Option<IpAddr> {
    Some(address.to_canonical()).filter(|address| !address.is_loopback())
}

/// How many connections each address has that takes from a share.
#[derive(Debug)]
struct Taken {
    share: usize,
    by_address: Mutex<HashMap<IpAddr, usize>>,
}

/// A connection's place; dropping it makes room for another.
#[derive(Debug)]
pub struct Place {
    holder: Option<IpAddr>,
    taken: Arc<Taken>,
    _permit: OwnedSemaphorePermit,
}

impl Incoming {
    /// Accepts from a listener, at most `places` connections at a time, and from one address a sixteenth of them or 16.
    #[must_use]
    pub fn new(listener: TcpListener, places: usize, shutdown: CancellationToken) -> Self {
        let taken = Taken { share: places.div_ceil(SHARES).max(SHARE_MIN), by_address: Mutex::default() };
        Self { listener: Some(listener), room: Arc::new(Semaphore::new(places)), taken: Arc::new(taken), shutdown }
    }

    /// Waits for a place, and for the next connection, which sends without delay. While there is no place connections wait in
    /// the kernel's queue: a client sees a slow server, not a reset. One whose address has its share is closed at once.
    /// After an error it waits a little and goes on. `None` with the shutdown, and from then on.
    ///
    /// # Panics
    /// Never: the semaphore is not closed.
    pub async fn next(&mut self) -> Option<(TcpStream, SocketAddr, Place)> {
        let listener = self.listener.as_ref()?;
        let accepted = self.shutdown.run_until_cancelled(self.accept(listener)).await;
        if accepted.is_none() {
            self.listener = None;
        }
        accepted
    }

    async fn accept(&self, listener: &TcpListener) -> (TcpStream, SocketAddr, Place) {
        loop {
            let permit = self.room.clone().acquire_owned().await.expect("the semaphore is never closed");
            let accepted = listener.accept().await;
            match accepted.and_then(|(stream, from)| stream.set_nodelay(true).map(|()| (stream, from))) {
                Ok((stream, from)) => match Place::take(&self.taken, from.ip(), permit) {
                    Some(place) => return (stream, from, place),
                    None => tracing::debug!(%from, "too many connections from one address"),
                },
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

impl Place {
    fn take(taken: &Arc<Taken>, address: IpAddr, permit: OwnedSemaphorePermit) -> Option<Self> {
        let holder = share_holder(address);
        if let Some(holder) = holder {
            let mut by_address = taken.lock();
            let count = by_address.entry(holder).or_default();
            if *count >= taken.share {
                return None;
            }
            *count += 1;
        }
        Some(Self { holder, taken: taken.clone(), _permit: permit })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(holder) = self.holder else { return };
        if let Entry::Occupied(mut count) = self.taken.lock().entry(holder) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

impl Taken {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.by_address.lock().expect("nothing panics while it holds this lock")
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::task::Poll;

    use super::*;

    async fn listen(places: usize) -> (Incoming, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (Incoming::new(listener, places, CancellationToken::new()), address)
    }

    #[tokio::test]
    async fn past_the_limit_a_connection_waits_for_another_to_end() {
        let (mut incoming, address) = listen(1).await;
        let _clients = (TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap());
        let first = incoming.next().await.unwrap();
        let mut second = pin!(incoming.next());
        assert!(poll_fn(|cx| Poll::Ready(second.as_mut().poll(cx).is_pending())).await);
        drop(first);
        assert!(second.await.is_some());
    }

    #[tokio::test]
    async fn with_the_shutdown_the_listener_goes() {
        let (mut incoming, address) = listen(1).await;
        incoming.shutdown.cancel();
        assert!(incoming.next().await.is_none() && incoming.next().await.is_none());
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn an_address_has_its_share_and_gets_it_back() {
        let (incoming, _) = listen(64).await;
        let take = |address: &str| {
            let permit = incoming.room.clone().try_acquire_owned().unwrap();
            Place::take(&incoming.taken, address.parse().unwrap(), permit)
        };
        let mut one: Vec<_> = (0..SHARE_MIN).map(|_| take("192.0.2.1").unwrap()).collect();
        assert!(take("::ffff:192.0.2.1").is_none());
        let others = [take("192.0.2.2").unwrap(), take("2001:db8::1").unwrap()];
        one.pop();
        assert!(take("192.0.2.1").is_some());
        drop(others);
        assert_eq!(incoming.taken.lock().len(), 1);
        let local: Vec<_> = (0..=SHARE_MIN).map(|_| take("127.0.0.1").unwrap()).collect();
        assert_eq!((local.len(), incoming.taken.lock().len()), (SHARE_MIN + 1, 1));
    }
}
