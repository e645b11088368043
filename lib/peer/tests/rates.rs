//! The caps of a node are real on the wire.
#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

mod rig;

use rig::{MIB, config, content, soon, start};
use shoal_peer::Config;
use tokio::time::Instant;

/// Bytes per second of a transfer of 6 MiB between nodes with these caps.
async fn measure(upload_rate: Option<u64>, download_rate: Option<u64>) -> f64 {
    let from = start(Config { upload_rate, ..config() }).await;
    let to = start(Config { download_rate, ..config() }).await;
    let blob = from.hold(&content(6 * MIB, 1)).await;
    let torrent = to.join(&blob, &[&from]).await;
    // From the first piece to the last: connecting is not the cap's business.
    soon(torrent.wait_piece_count(1)).await;
    let begin = Instant::now();
    let before = torrent.progress().borrow().received.total();
    // And not to the commit: the disk is not either.
    soon(torrent.wait_piece_count(torrent.geometry().piece_count())).await;
    (6.0 * MIB as f64 - before as f64) / begin.elapsed().as_secs_f64()
}

/// The cap is never passed. That it is reached shows in one of three runs: a busy machine may hold up the others.
async fn keeps_to_its_cap(run: impl AsyncFn() -> f64) {
    let mut best = 0.0;
    for _ in 0..3 {
        let share = run().await;
        assert!(share < 1.1, "{share} of the cap");
        best = f64::max(best, share);
        if best > 0.9 {
            return;
        }
    }
    panic!("{best} of the cap at best");
}

trait Count {
    async fn wait_piece_count(&self, count: u32);
}

impl Count for shoal_peer::Torrent {
    async fn wait_piece_count(&self, count: u32) {
        self.progress().wait_for(|progress| progress.have >= count).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_cap_holds_within_a_tenth() {
    keeps_to_its_cap(async || measure(Some(3 * MIB), None).await / (3 * MIB) as f64).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_cap_holds_within_a_tenth() {
    keeps_to_its_cap(async || measure(None, Some(3 * MIB)).await / (3 * MIB) as f64).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cap_is_for_all_connections_together() {
    let from = start(Config { upload_rate: Some(4 * MIB), ..config() }).await;
    let blob = from.hold(&content(3 * MIB, 2)).await;
    let (a, b) = (start(config()).await, start(config()).await);
    let begin = Instant::now();
    let (a, b) = (a.join(&blob, &[&from]).await, b.join(&blob, &[&from]).await);
    let (a, b) = tokio::join!(soon(a.committed()), soon(b.committed()));
    a.and(b).unwrap();
    let seconds = begin.elapsed().as_secs_f64();
    let sent = from.node.status().sent_bytes as f64 / MIB as f64;
    assert!(sent / seconds < 4.0 * 1.1, "{sent} MiB in {seconds} s");
}
