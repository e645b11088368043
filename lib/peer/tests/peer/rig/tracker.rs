//! A tracker that remembers what it is told and can go away and come back.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use shoal_proto::tracker::v1::tracker_server::{Tracker, TrackerServer};
use shoal_proto::tracker::v1::{self as proto, TorrentState};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// What a tracker knows: by peer and by digest.
#[derive(Default)]
pub(crate) struct Book {
    pub(crate) held: BTreeMap<Vec<u8>, BTreeMap<String, TorrentState>>,
    pub(crate) peers: BTreeMap<Vec<u8>, proto::Peer>,
    pub(crate) calls: usize,
    pub(crate) left: usize,
}

/// A running tracker.
pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    book: Arc<Mutex<Book>>,
    shutdown: CancellationToken,
}

struct Service(Arc<Mutex<Book>>);

impl Fake {
    pub(crate) async fn start() -> Self {
        Self::start_at(([127, 0, 0, 1], 0).into()).await
    }

    pub(crate) async fn start_at(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (book, shutdown) = (Arc::<Mutex<Book>>::default(), CancellationToken::new());
        let server = tonic::transport::Server::builder().add_service(TrackerServer::new(Service(book.clone())));
        let serving =
            server.serve_with_incoming_shutdown(TcpIncoming::from(listener), shutdown.clone().cancelled_owned());
        tokio::spawn(serving);
        Self { address, book, shutdown }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap()
    }

    /// What a peer is known to do with a blob.
    pub(crate) fn state(&self, peer: &shoal_meta::PeerInfo, digest: &shoal_meta::Digest) -> Option<TorrentState> {
        self.book().held.get(&peer.id.0[..])?.get(&digest.to_string()).copied()
    }

    pub(crate) fn stop(self) -> SocketAddr {
        self.address
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

#[tonic::async_trait]
impl Tracker for Service {
    async fn announce(
        &self,
        request: Request<proto::AnnounceRequest>,
    ) -> Result<Response<proto::AnnounceResponse>, Status> {
        let request = request.into_inner();
        let mut book = self.0.lock().unwrap();
        book.calls += 1;
        let me = request.peer.unwrap();
        let resync = !request.full && !book.held.contains_key(&me.id);
        if request.full {
            book.held.remove(&me.id);
        }
        book.peers.insert(me.id.clone(), me.clone());
        let mut torrents = Vec::new();
        for torrent in request.torrents {
            let state = torrent.state();
            let mine = book.held.entry(me.id.clone()).or_default();
            match state {
                TorrentState::Gone => mine.remove(&torrent.digest),
                TorrentState::Leeching | TorrentState::Seeding | TorrentState::Unspecified => {
                    mine.insert(torrent.digest.clone(), state)
                }
            };
            if torrent.peers_wanted > 0 {
                let others = book.held.iter().filter(|(id, held)| **id != me.id && held.contains_key(&torrent.digest));
                let peers = others.map(|(id, _)| book.peers[id].clone()).collect();
                torrents.push(proto::TorrentPeers { digest: torrent.digest, peers, lead: None });
            }
        }
        Ok(Response::new(proto::AnnounceResponse { lease_ms: 3000, interval_ms: 1000, resync, torrents }))
    }

    async fn leave(&self, request: Request<proto::LeaveRequest>) -> Result<Response<proto::LeaveResponse>, Status> {
        let mut book = self.0.lock().unwrap();
        book.held.remove(&request.into_inner().peer_id);
        book.left += 1;
        Ok(Response::new(proto::LeaveResponse {}))
    }
}
