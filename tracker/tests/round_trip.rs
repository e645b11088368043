//! A tracker over loopback, as its peers, kubelets and Prometheus see it.

#![allow(clippy::unwrap_used, reason = "the helpers of tests may unwrap as the tests do")]

use std::time::Duration;

use shoal_kit::HumanDuration;
use shoal_meta::{Digest, PeerId, PeerInfo, Role, Topology};
use shoal_proto::peer_to_proto;
use shoal_proto::tracker::v1::tracker_client::TrackerClient;
use shoal_proto::tracker::v1::{AnnounceRequest, AnnounceResponse, LeaveRequest, TorrentAnnounce, TorrentState};
use shoal_tracker::{Config, Running, start};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

const DEADLINE: Duration = Duration::from_secs(10);

async fn tracker() -> (Running, TrackerClient<Channel>, CancellationToken) {
    tracker_with(Config::default()).await
}

async fn tracker_with(config: Config) -> (Running, TrackerClient<Channel>, CancellationToken) {
    let loopback = "127.0.0.1:0".parse().unwrap();
    let shutdown = CancellationToken::new();
    let config = Config { listen: loopback, admin_listen: loopback, ..config };
    let running = start(config, shutdown.clone()).await.unwrap();
    let client = TrackerClient::connect(format!("http://{}", running.addr)).await.unwrap();
    (running, client, shutdown)
}

fn peer(number: u8) -> PeerInfo {
    PeerInfo {
        id: PeerId([number; 16]),
        address: std::net::SocketAddr::from(([10, 0, 0, number], 5051)),
        role: Role::Agent,
        topology: Topology { zone: "a".into(), rack: "1".into() },
    }
}

fn announce(number: u8, state: TorrentState) -> AnnounceRequest {
    let torrent =
        TorrentAnnounce { digest: Digest::sha256_of(b"layer").to_string(), state: state.into(), peers_wanted: 50 };
    AnnounceRequest { peer: Some(peer_to_proto(&peer(number))), full: true, torrents: vec![torrent] }
}

async fn ask(client: &mut TrackerClient<Channel>, request: AnnounceRequest) -> AnnounceResponse {
    client.announce(request).await.unwrap().into_inner()
}

async fn get(running: &Running, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(running.admin_addr).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn two_peers_of_a_torrent_learn_of_each_other() {
    let (_running, mut client, _shutdown) = tracker().await;
    let first = ask(&mut client, announce(1, TorrentState::Seeding)).await;
    assert_eq!((first.lease_ms, first.interval_ms, first.resync), (45_000, 15_000, false));
    assert_eq!(first.torrents[0].peers, []);
    let second = ask(&mut client, announce(2, TorrentState::Leeching)).await;
    assert_eq!(second.torrents[0].digest, Digest::sha256_of(b"layer").to_string());
    assert_eq!(second.torrents[0].peers, [peer_to_proto(&peer(1))]);
}

#[tokio::test]
async fn a_peer_that_left_is_not_handed_out_and_must_resync() {
    let (_running, mut client, _shutdown) = tracker().await;
    ask(&mut client, announce(1, TorrentState::Seeding)).await;
    for _ in 0..2 {
        client.leave(LeaveRequest { peer_id: vec![1; 16] }).await.unwrap();
    }
    assert_eq!(ask(&mut client, announce(2, TorrentState::Leeching)).await.torrents[0].peers, []);
    let renewal = AnnounceRequest { full: false, torrents: Vec::new(), ..announce(1, TorrentState::Seeding) };
    assert!(ask(&mut client, renewal).await.resync);
}

#[tokio::test]
async fn a_peer_that_falls_silent_is_forgotten() {
    let short = |ms| HumanDuration(Duration::from_millis(ms));
    let config = Config { lease: short(200), interval: short(100), ..Config::default() };
    let (running, mut client, _shutdown) = tracker_with(config).await;
    ask(&mut client, announce(1, TorrentState::Seeding)).await;
    let forgotten = async {
        while running.service().sizes().peers > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, forgotten).await.unwrap();
    assert_eq!(running.service().counters().lease_expiries, 1);
}

#[tokio::test]
async fn a_malformed_announce_is_refused_and_the_connection_lives_on() {
    let (_running, mut client, _shutdown) = tracker().await;
    let mut malformed = announce(1, TorrentState::Seeding);
    malformed.torrents[0].digest = "latest".into();
    let status = client.announce(malformed).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    ask(&mut client, announce(1, TorrentState::Seeding)).await;
}

#[tokio::test]
async fn a_request_beyond_the_limit_is_refused_before_it_is_read() {
    let (running, mut client, _shutdown) = tracker().await;
    let mut long = announce(1, TorrentState::Seeding);
    long.torrents[0].digest = "x".repeat(3 << 20);
    let status = client.announce(long).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::OutOfRange, "{status}");
    assert_eq!(running.service().sizes().peers, 0);
}

#[tokio::test]
async fn health_is_reported_over_grpc() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::health_client::HealthClient;
    let (running, _client, _shutdown) = tracker().await;
    let channel = Channel::from_shared(format!("http://{}", running.addr)).unwrap().connect().await.unwrap();
    let mut health = HealthClient::new(channel);
    let request = HealthCheckRequest { service: "shoal.tracker.v1.Tracker".into() };
    let response = health.check(request).await.unwrap().into_inner();
    assert_eq!(response.status(), ServingStatus::Serving);
}

#[tokio::test]
async fn metrics_and_status_count_announces() {
    let (running, mut client, _shutdown) = tracker().await;
    ask(&mut client, announce(1, TorrentState::Seeding)).await;
    ask(&mut client, announce(2, TorrentState::Leeching)).await;
    let metrics = get(&running, "/metrics").await;
    for line in [
        "shoal_tracker_announces_total 2",
        "shoal_tracker_torrents_announced_total 2",
        "shoal_tracker_peers_handed_out_total 1",
        "shoal_tracker_lease_expiries_total 0",
        "shoal_tracker_peers 2",
        "shoal_tracker_torrents 1",
        "shoal_tracker_memberships_seeding 1",
    ] {
        assert!(metrics.contains(&format!("\n{line}\n")), "no {line:?} in {metrics}");
    }
    assert!(get(&running, "/status").await.contains("\"peers\":2"));
    assert!(get(&running, "/readyz").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_cancelled_token_ends_the_tracker_though_clients_are_connected() {
    let (running, mut client, shutdown) = tracker().await;
    ask(&mut client, announce(1, TorrentState::Seeding)).await;
    shutdown.cancel();
    tokio::time::timeout(DEADLINE, running.stopped()).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_rejected_config_names_the_key() {
    let config = Config { lease: HumanDuration::from_secs(1), ..Config::default() };
    let error = start(config, CancellationToken::new()).await.unwrap_err();
    assert!(error.to_string().starts_with("config key `lease` = 1s is refused"), "{error}");
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let (running, _client, _shutdown) = tracker().await;
    let config = Config { listen: running.addr, ..Config::default() };
    let error = start(config, CancellationToken::new()).await.unwrap_err();
    assert_eq!(error.to_string(), format!("cannot listen on {} for gRPC (key `listen`)", running.addr));
}
