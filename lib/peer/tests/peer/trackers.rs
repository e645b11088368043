//! Nodes find each other through trackers, and do without them.

use crate::rig::tracker::Fake;
use crate::rig::{MIB, config, content, soon, start, until};
use shoal_meta::Server;
use shoal_peer::{Config, Node, StartError};
use shoal_proto::tracker::v1::TorrentState;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

fn with(trackers: &[&Fake]) -> Config {
    at(&trackers.iter().map(|tracker| tracker.url()).collect::<Vec<_>>())
}

fn at(urls: &[String]) -> Config {
    Config { trackers: watch::channel(servers(urls)).1, ..config() }
}

fn servers(urls: &[String]) -> Vec<Server> {
    urls.iter().map(|url| Server::at(url)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tracker_brings_nodes_together_and_hears_of_all_that_changes() {
    let tracker = Fake::start().await;
    let (a, b) = (start(with(&[&tracker])).await, start(with(&[&tracker])).await);
    let blob = a.hold(&content(2 * MIB, 1)).await;
    let digest = blob.digest();
    until(|| tracker.state(&a.info(), &digest) == Some(TorrentState::Seeding)).await;
    let torrent = b.join(&blob, &[]).await;
    soon(torrent.committed()).await.unwrap();
    until(|| tracker.state(&b.info(), &digest) == Some(TorrentState::Seeding)).await;
    assert_eq!(b.node.status().trackers_up, 1);
    b.store.remove(&digest).await;
    until(|| tracker.state(&b.info(), &digest).is_none()).await;
    a.shutdown.cancel();
    soon(a.node.stopped()).await;
    assert_eq!(tracker.book().left, 1);
    assert_eq!(tracker.state(&a.info(), &digest), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn connected_nodes_go_on_when_the_tracker_dies() {
    let tracker = Fake::start().await;
    let slow = Config { upload_rate: Some(4 * MIB), ..with(&[&tracker]) };
    let (a, b) = (start(slow).await, start(with(&[&tracker])).await);
    let (first, second) = (a.hold(&content(4 * MIB, 1)).await, a.hold(&content(MIB, 2)).await);
    let torrent = b.join(&first, &[]).await;
    soon(torrent.progress().wait_for(|progress| progress.have > 0)).await.unwrap();
    drop(tracker);
    soon(torrent.committed()).await.unwrap();
    // Neighbours are asked instead.
    soon(b.join(&second, &[]).await.committed()).await.unwrap();
    until(|| b.node.status().trackers_up == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tracker_that_restarts_is_told_all_again() {
    let tracker = Fake::start().await;
    let a = start(with(&[&tracker])).await;
    let digest = a.hold(&content(MIB, 1)).await.digest();
    until(|| tracker.state(&a.info(), &digest).is_some()).await;
    let address = tracker.stop();
    until(|| a.node.status().trackers_up == 0).await;
    let tracker = Fake::start_at(address).await;
    until(|| tracker.state(&a.info(), &digest) == Some(TorrentState::Seeding)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_tracker_stands_in_for_one_that_is_away() {
    let (one, two) = (Fake::start().await, Fake::start().await);
    let a = start(with(&[&one, &two])).await;
    let mut digests = Vec::new();
    for seed in 0..24 {
        digests.push(a.hold(&content(1000 + seed, seed)).await.digest());
    }
    let at = |tracker: &Fake| digests.iter().filter(|digest| tracker.state(&a.info(), digest).is_some()).count();
    until(|| at(&one) + at(&two) == 24).await;
    assert!(at(&one) > 0 && at(&two) > 0, "{} and {}", at(&one), at(&two));
    let (share, address) = (at(&one), one.stop());
    until(|| at(&two) == 24).await;
    let one = Fake::start_at(address).await;
    until(|| at(&one) == share && at(&two) == 24 - share).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trackers_that_come_later_are_told_their_share_and_those_that_go_are_done_without() {
    let (one, two) = (Fake::start().await, Fake::start().await);
    let (known, trackers) = watch::channel(Vec::new());
    let a = start(Config { trackers, ..config() }).await;
    let mut digests = Vec::new();
    for seed in 0..24 {
        digests.push(a.hold(&content(1000 + seed, seed)).await.digest());
    }
    let at = |tracker: &Fake| digests.iter().filter(|digest| tracker.state(&a.info(), digest).is_some()).count();
    known.send_replace(servers(&[one.url()]));
    until(|| at(&one) == 24).await;
    known.send_replace(servers(&[one.url(), two.url()]));
    until(|| at(&two) > 0 && at(&one) + at(&two) == 24).await;
    assert!(at(&one) > 0, "the first has nothing left");
    known.send_replace(servers(&[two.url()]));
    until(|| at(&two) == 24).await;
    assert_eq!((a.node.status().trackers, a.node.status().trackers_up), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_starts_and_joins_while_no_tracker_answers() {
    let away = at(&["http://127.0.0.1:1".to_owned()]);
    let (a, b) = (start(away.clone()).await, start(away).await);
    let blob = a.hold(&content(MIB, 1)).await;
    soon(b.join(&blob, &[&a]).await.committed()).await.unwrap();
    assert_eq!((b.node.status().trackers, b.node.status().trackers_up), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_cannot_work_is_refused() {
    let store = start(config()).await.store.clone();
    let refused = async |config| Node::start(config, store.clone(), CancellationToken::new()).await.unwrap_err();
    assert!(
        matches!(refused(at(&["tracker:7400".to_owned()])).await, StartError::Tracker(url) if url == "tracker:7400")
    );
    assert!(matches!(refused(Config { upload_rate: Some(0), ..config() }).await, StartError::Rate));
    let taken = Config { listen: ([192, 0, 2, 1], 1).into(), ..config() };
    assert!(matches!(refused(taken).await, StartError::Listen { .. }));
}
