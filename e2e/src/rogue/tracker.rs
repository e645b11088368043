//! What the rogue tells the tracker: that it seeds, and, when that is its lie, of torrents and peers that are not there, as fast
//! as it can.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::Result;
use shoal_identity::{Identity, Part, endpoint};
use shoal_meta::{Digest, PeerId, PeerInfo};
use shoal_proto::peer_to_proto;
use shoal_proto::tracker::v1 as proto;
use shoal_proto::tracker::v1::tracker_client::TrackerClient;
use tonic::transport::Channel;

use super::{Lie, Shared};

/// How often an honest word is said again.
const INTERVAL: Duration = Duration::from_secs(1);
/// Floods at a time, half of them of torrents.
const FLOODS: usize = 4;
/// Torrents of one announce: as many as the tracker records of one peer.
const TORRENTS: u64 = 4000;

/// The way to the tracker.
pub(super) struct Announcer(TrackerClient<Channel>);

impl Announcer {
    pub(super) fn new(identity: &Identity, tracker: SocketAddr) -> Option<Self> {
        let endpoint = endpoint(&format!("http://{tracker}"))?;
        Some(Self(TrackerClient::new(identity.channel(&endpoint, Part::Tracker))))
    }

    /// Says that the rogue has the blob.
    pub(super) async fn announce(&self, rogue: &Shared) -> Result<()> {
        let torrents = vec![seeding(&rogue.torrent.digest)];
        let peer = Some(peer_to_proto(&rogue.me));
        self.0.clone().announce(proto::AnnounceRequest { peer, full: true, torrents }).await?;
        Ok(())
    }

    /// Says so again and again, and tells the lie meant for trackers.
    pub(super) async fn run(&self, rogue: &Shared) {
        let announcing = async {
            loop {
                tokio::time::sleep(INTERVAL).await;
                // A tracker that does not answer is told again.
                let _ = self.announce(rogue).await;
            }
        };
        if rogue.lie == Lie::FloodsTracker {
            let floods = futures_util::future::join_all((0..FLOODS).map(|number| self.flood(rogue, number % 2 == 0)));
            tokio::join!(announcing, floods);
        } else {
            announcing.await;
        }
    }

    /// Announces peers that are not there, each of which has many torrents that are not there, or the blob.
    async fn flood(&self, rogue: &Shared, torrents: bool) {
        let mut client = self.0.clone();
        for address in rogue.bait.iter().cycle() {
            let peer = PeerInfo { id: PeerId(rand::random()), address: *address, ..rogue.me.clone() };
            let torrents = match torrents {
                true => (0..TORRENTS).map(|_| seeding(&Digest::Sha256(rand::random()))).collect(),
                false => vec![seeding(&rogue.torrent.digest)],
            };
            let count = torrents.len() as u64;
            let request = proto::AnnounceRequest { peer: Some(peer_to_proto(&peer)), full: true, torrents };
            if client.announce(request).await.is_ok() {
                rogue.announced.fetch_add(count, Relaxed);
            }
        }
    }

    pub(super) async fn leave(self, rogue: &Shared) {
        let mut client = self.0;
        // What is not heard ends with the lease.
        let _ = client.leave(proto::LeaveRequest { peer_id: rogue.me.id.0.to_vec() }).await;
    }
}

fn seeding(digest: &Digest) -> proto::TorrentAnnounce {
    let state = proto::TorrentState::Seeding.into();
    proto::TorrentAnnounce { digest: digest.to_string(), state, peers_wanted: 0 }
}
