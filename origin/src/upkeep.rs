//! What is done for the store while the origin runs, and what is told of it: others may fill its disk, and bits rot on it.

use std::time::Duration;

use shoal_kit::Metrics;
use shoal_store::{Health, Store};

/// How often the store looks whether others have filled the disk.
const TRIM_INTERVAL: Duration = Duration::from_secs(60);

/// Keeps the store in its bounds and looks for rot, for ever.
pub(crate) async fn run(store: Store) {
    let trim = async {
        loop {
            tokio::time::sleep(TRIM_INTERVAL).await;
            store.trim().await;
        }
    };
    tokio::join!(trim, store.scrub());
}

/// The metrics of the store's disk.
pub(crate) fn observe(kit: &Metrics, store: &Store) {
    let corrupt = store.clone();
    let help = "Blobs dropped as they had rotted on the disk.";
    kit.counter_fn("corrupt_blobs_total", help, &[], move || corrupt.usage().corrupt_blobs);
    let (store, states) = (store.clone(), Health::ALL.map(Health::as_str));
    kit.state_fn("store_state", "1 for the state the store is in.", states, move || store.health().as_str());
}
