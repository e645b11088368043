//! The service: checks messages, asks the state under its lock, writes answers. No rule of the tracker is here, and nothing
//! of gRPC but its messages and statuses.

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use bytes::Bytes;
use prost::Message as _;
use rand::SeedableRng as _;
use rand_pcg::Pcg64;
use shoal_kit::incoming::share_holder;
use shoal_meta::{PeerId, PeerInfo};
use shoal_proto::tracker::v1 as proto;
use shoal_proto::{peer_from_proto, peer_to_proto};
use tonic::Status;

use crate::Config;
use crate::state::{Announce, AnnounceError, Counters, Handout, Holding, Sizes, State, TorrentAnnounce};

/// How many torrents one announce may list; a peer with more announces them in several calls.
pub const TORRENTS_PER_ANNOUNCE_MAX: usize = 10_000;
/// The longest request taken, in bytes: [`TORRENTS_PER_ANNOUNCE_MAX`] torrents with the longest digests.
pub const REQUEST_LENGTH_MAX: usize = 2 << 20;

/// The tracker, as seen from the wire.
#[derive(Debug)]
pub struct Service {
    config: Config,
    seed: u64,
    state: Mutex<State<Bytes>>,
}

/// `AnnounceResponse` as it goes out. Its peers are encoded already: each once, however often it is handed out.
///
/// On the wire an embedded message is a length and its bytes, just as a field of type `bytes`. Making 50 messages for
/// each torrent instead would cost more than choosing them, encoding them and all the rest together.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AnnounceResponse {
    /// As in the protocol.
    #[prost(uint32, tag = "1")]
    pub lease_ms: u32,
    /// As in the protocol.
    #[prost(uint32, tag = "2")]
    pub interval_ms: u32,
    /// As in the protocol.
    #[prost(bool, tag = "3")]
    pub resync: bool,
    /// As in the protocol.
    #[prost(message, repeated, tag = "4")]
    pub torrents: Vec<TorrentPeers>,
}

/// `TorrentPeers` as it goes out.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TorrentPeers {
    /// As in the protocol.
    #[prost(string, tag = "1")]
    pub digest: String,
    /// Encoded `Peer` messages.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub peers: Vec<Bytes>,
    /// As in the protocol.
    #[prost(message, optional, tag = "3")]
    pub lead: Option<proto::Lead>,
}

impl Service {
    /// A tracker that knows nobody. The configuration must be valid.
    #[must_use]
    pub fn new(config: Config, seed: u64) -> Self {
        let state = Mutex::new(new_state(&config, seed));
        Self { config, seed, state }
    }

    /// Answers an announce that came from the address `from`, if that is known.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a malformed message, `RESOURCE_EXHAUSTED` when there are too many peers.
    pub fn answer(
        &self,
        now: Instant,
        from: Option<IpAddr>,
        request: &proto::AnnounceRequest,
    ) -> Result<AnnounceResponse, Status> {
        let announce = check_announce(from, request)?;
        let answer = self.state().announce(now, &announce).map_err(refusal)?;
        let entry = |handout: Handout<Bytes>| TorrentPeers {
            digest: handout.digest.to_string(),
            peers: handout.peers,
            lead: handout.lead.map(|lead| proto::Lead { rank: lead.rank(), leaders: lead.leaders() }),
        };
        let response = AnnounceResponse {
            lease_ms: milliseconds(self.config.lease),
            interval_ms: milliseconds(self.config.interval),
            resync: answer.resync,
            torrents: answer.handouts.into_iter().map(entry).collect(),
        };
        let (id, full, torrents) = (announce.peer.id, announce.full, announce.torrents.len());
        tracing::debug!(peer_id = %id, full, torrents, resync = answer.resync, "announced");
        Ok(response)
    }

    /// Forgets a peer that leaves.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a malformed message.
    pub fn leave(&self, request: &proto::LeaveRequest) -> Result<proto::LeaveResponse, Status> {
        let id = request.peer_id.as_slice();
        let malformed = |_| Status::invalid_argument(format!("a peer id has 16 bytes, not {}", id.len()));
        let id = PeerId(id.try_into().map_err(malformed)?);
        let known = self.state().leave(&id);
        tracing::debug!(peer_id = %id, known, "left");
        Ok(proto::LeaveResponse {})
    }

    /// Forgets peers whose lease has run out; between steps others get their turn.
    pub async fn expire(&self, now: Instant) {
        let expire = || {
            let mut state = self.state();
            state.expire(now) > 0
        };
        while expire() {
            tokio::task::yield_now().await;
        }
    }

    /// How much there is now.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        self.state().sizes()
    }

    /// What has happened since the start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.state().counters()
    }

    /// The state. All of it may be lost at any time, so a panic in the midst of a change costs just that.
    fn state(&self) -> MutexGuard<'_, State<Bytes>> {
        self.state.lock().unwrap_or_else(|poisoned| {
            tracing::error!("the state was lost in a panic; peers announce anew");
            let mut state = poisoned.into_inner();
            *state = new_state(&self.config, self.seed);
            self.state.clear_poison();
            state
        })
    }
}

fn new_state(config: &Config, seed: u64) -> State<Bytes> {
    let card = |peer: &PeerInfo| Bytes::from(peer_to_proto(peer).encode_to_vec());
    State::new(config.limits(), config.lease.get(), card, Pcg64::seed_from_u64(seed))
}

fn milliseconds(duration: shoal_kit::HumanDuration) -> u32 {
    u32::try_from(duration.get().as_millis()).unwrap_or(u32::MAX)
}

fn refusal(error: AnnounceError) -> Status {
    match error {
        AnnounceError::PeersFull { .. } | AnnounceError::ShareFull { .. } => {
            Status::resource_exhausted(error.to_string())
        }
    }
}

fn check_announce(from: Option<IpAddr>, request: &proto::AnnounceRequest) -> Result<Announce, Status> {
    let peer = peer_from_proto(request.peer.as_ref()).map_err(|error| Status::invalid_argument(error.to_string()))?;
    let peer = check_address(from, peer)?;
    let count = request.torrents.len();
    if count > TORRENTS_PER_ANNOUNCE_MAX {
        let message = format!("an announce lists at most {TORRENTS_PER_ANNOUNCE_MAX} torrents, not {count}");
        return Err(Status::invalid_argument(message));
    }
    let torrents = request.torrents.iter().map(check_torrent).collect::<Result<_, _>>()?;
    Ok(Announce { peer, from: from.and_then(share_holder), full: request.full, torrents })
}

/// A peer that listens on every address may not know its own: it is where it announces from.
fn check_address(from: Option<IpAddr>, mut peer: PeerInfo) -> Result<PeerInfo, Status> {
    if let (true, Some(from)) = (peer.address.ip().is_unspecified(), from) {
        peer.address.set_ip(from.to_canonical());
    }
    if peer.address.ip().is_unspecified() || peer.address.port() == 0 {
        return Err(Status::invalid_argument(format!("nobody can dial the peer address {}", peer.address)));
    }
    Ok(peer)
}

fn check_torrent(torrent: &proto::TorrentAnnounce) -> Result<TorrentAnnounce, Status> {
    let digest = torrent.digest.parse().map_err(|error| Status::invalid_argument(format!("{error}")))?;
    let holding = match proto::TorrentState::try_from(torrent.state) {
        Ok(proto::TorrentState::Leeching) => Some(Holding::Leeching),
        Ok(proto::TorrentState::Seeding) => Some(Holding::Seeding),
        Ok(proto::TorrentState::Gone) => None,
        Ok(proto::TorrentState::Unspecified) | Err(_) => {
            return Err(Status::invalid_argument(format!("torrent state {} is not known", torrent.state)));
        }
    };
    Ok(TorrentAnnounce { digest, holding, peers_wanted: torrent.peers_wanted })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> Service {
        Service::new(Config::default(), 7)
    }

    fn request() -> proto::AnnounceRequest {
        let peer = proto::Peer {
            id: vec![1; 16],
            address: "10.0.0.1:5051".into(),
            role: proto::Role::Agent.into(),
            zone: "a".into(),
            ..proto::Peer::default()
        };
        let torrent = proto::TorrentAnnounce {
            digest: shoal_meta::Digest::sha256_of(b"layer").to_string(),
            state: proto::TorrentState::Leeching.into(),
            peers_wanted: 1,
        };
        proto::AnnounceRequest { peer: Some(peer), full: true, torrents: vec![torrent] }
    }

    #[test]
    fn malformed_announces_are_named() {
        let refused = |mend: fn(&mut proto::AnnounceRequest)| {
            let mut request = request();
            mend(&mut request);
            let status = service().answer(Instant::now(), None, &request).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            status.message().to_owned()
        };
        assert_eq!(refused(|r| r.peer = None), "the field peer is missing");
        assert_eq!(refused(|r| r.torrents[0].state = 9), "torrent state 9 is not known");
        assert_eq!(refused(|r| r.torrents[0].state = 0), "torrent state 0 is not known");
        assert!(refused(|r| r.torrents[0].digest = "sha256:0".into()).starts_with("digest hash of sha256 must be"));
        let port = |r: &mut proto::AnnounceRequest| r.peer.as_mut().unwrap().address = "10.0.0.1:0".into();
        assert_eq!(refused(port), "nobody can dial the peer address 10.0.0.1:0");
        let many = |r: &mut proto::AnnounceRequest| r.torrents = vec![r.torrents[0].clone(); 10_001];
        assert_eq!(refused(many), "an announce lists at most 10000 torrents, not 10001");
    }

    #[test]
    fn a_peer_that_listens_on_every_address_is_where_it_announces_from() {
        let (service, now) = (service(), Instant::now());
        let mut announce = request();
        announce.peer.as_mut().unwrap().address = "0.0.0.0:5051".into();
        assert!(service.answer(now, None, &announce).is_err());
        service.answer(now, Some("::ffff:10.1.2.3".parse().unwrap()), &announce).unwrap();
        announce.peer.as_mut().unwrap().id = vec![2; 16];
        let response = service.answer(now, Some("10.9.9.9".parse().unwrap()), &announce).unwrap();
        let peer = proto::Peer::decode(response.torrents[0].peers[0].clone()).unwrap();
        assert_eq!(peer.address, "10.1.2.3:5051");
    }

    #[test]
    fn an_answer_reads_as_the_message_of_the_protocol() {
        let (service, now) = (service(), Instant::now());
        service.answer(now, None, &request()).unwrap();
        let mut second = request();
        second.peer.as_mut().unwrap().id = vec![2; 16];
        second.full = false;
        let response = service.answer(now, None, &second).unwrap();
        let expected = proto::AnnounceResponse {
            lease_ms: 45_000,
            interval_ms: 15_000,
            resync: true,
            torrents: vec![proto::TorrentPeers {
                digest: request().torrents[0].digest.clone(),
                peers: vec![request().peer.unwrap()],
                lead: Some(proto::Lead { rank: 1, leaders: 2 }),
            }],
        };
        assert_eq!(proto::AnnounceResponse::decode(response.encode_to_vec().as_slice()).unwrap(), expected);
        assert_eq!(response.encode_to_vec(), expected.encode_to_vec());
    }

    #[test]
    fn a_panic_costs_the_state_and_not_the_tracker() {
        let (service, now) = (service(), Instant::now());
        service.answer(now, None, &request()).unwrap();
        std::thread::scope(|scope| {
            let panics = scope.spawn(|| {
                let _state = service.state();
                std::panic::resume_unwind(Box::new("while the state is locked"));
            });
            assert!(panics.join().is_err());
        });
        assert_eq!(service.sizes().peers, 0);
        let mut delta = request();
        delta.full = false;
        assert!(service.answer(now, None, &delta).unwrap().resync);
    }

    #[test]
    fn the_longest_requests_and_answers_are_within_the_limits() {
        let torrent = proto::TorrentAnnounce {
            digest: shoal_meta::Digest::Sha512([255; 64]).to_string(),
            state: proto::TorrentState::Leeching.into(),
            peers_wanted: u32::MAX,
        };
        let peer = proto::Peer {
            id: vec![255; 16],
            address: "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535".into(),
            role: proto::Role::Origin.into(),
            zone: "z".repeat(63),
            rack: "r".repeat(63),
        };
        let lead = Some(proto::Lead { rank: 1, leaders: 2 });
        let entry = proto::TorrentPeers { digest: torrent.digest.clone(), peers: Vec::new(), lead };
        let torrents = vec![torrent; TORRENTS_PER_ANNOUNCE_MAX];
        let request = proto::AnnounceRequest { peer: Some(peer.clone()), full: true, torrents };
        assert!(request.encoded_len() <= REQUEST_LENGTH_MAX);
        let framing = 4;
        let peers = (peer.encoded_len() + framing) * crate::state::ANSWER_PEERS_MAX;
        let entries = (entry.encoded_len() + framing) * TORRENTS_PER_ANNOUNCE_MAX;
        assert!(peers + entries + 64 <= 4 << 20, "a client takes 4 MiB by default");
    }
}
