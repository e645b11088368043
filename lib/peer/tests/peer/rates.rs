//! The caps of a node hold on the wire and are reached there. In virtual time, where only waiting takes time: a busy
//! machine makes these tests slower and changes nothing they see.

use crate::rig::{MIB, config, content, soon, start};
use shoal_peer::{Config, Torrent};
use tokio::time::Instant;

const CAP: u64 = 3 * MIB;

/// What a transfer between nodes with these caps moves in a second, as a share of [`CAP`]. From the first piece to the
/// last: connecting is not the cap's business, nor is the disk.
async fn share(upload_rate: Option<u64>, download_rate: Option<u64>) -> f64 {
    let from = start(Config { upload_rate, ..config() }).await;
    let to = start(Config { download_rate, ..config() }).await;
    let blob = from.hold(&content(6 * MIB, 1)).await;
    let torrent = to.join(&blob, &[&from]).await;
    had(&torrent, 1).await;
    let (begin, before) = (Instant::now(), received(&torrent));
    had(&torrent, torrent.geometry().piece_count()).await;
    (received(&torrent) - before) as f64 / begin.elapsed().as_secs_f64() / CAP as f64
}

async fn had(torrent: &Torrent, pieces: u32) {
    soon(torrent.progress().wait_for(|progress| progress.have >= pieces)).await.unwrap();
}

fn received(torrent: &Torrent) -> u64 {
    torrent.progress().borrow().received.total()
}

#[tokio::test(start_paused = true)]
async fn an_upload_cap_holds_and_is_reached() {
    let share = share(Some(CAP), None).await;
    assert!((0.95..1.05).contains(&share), "{share} of the cap");
}

#[tokio::test(start_paused = true)]
async fn a_download_cap_holds_and_is_reached() {
    let share = share(None, Some(CAP)).await;
    assert!((0.95..1.05).contains(&share), "{share} of the cap");
}

#[tokio::test(start_paused = true)]
async fn a_cap_is_for_all_connections_together() {
    let from = start(Config { upload_rate: Some(CAP), ..config() }).await;
    let (a, b) = (start(config()).await, start(config()).await);
    let (one, other) = (from.hold(&content(3 * MIB, 2)).await, from.hold(&content(3 * MIB, 3)).await);
    let (one, other) = (a.join(&one, &[&from]).await, b.join(&other, &[&from]).await);
    tokio::join!(had(&one, 1), had(&other, 1));
    let both = || received(&one) + received(&other);
    let (begin, before) = (Instant::now(), both());
    tokio::join!(had(&one, 12), had(&other, 12));
    let share = (both() - before) as f64 / begin.elapsed().as_secs_f64() / CAP as f64;
    assert!((0.95..1.05).contains(&share), "{share} of the cap");
}
