//! What a miss costs: a blob that nobody in the cluster has, beside the same request to the registry itself.

use std::time::{Duration, Instant};

use shoal_registry::embedded::Options;

use crate::rig::{REGISTRY, Rig, first_bytes_of, get, manifest};

/// The most a miss may cost.
const MISS_MAX: Duration = Duration::from_millis(50);
/// Pairs measured; the middle one counts, as the machine may be busy.
const PAIRS: usize = 9;

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

async fn timed<T>(work: impl Future<Output = T>) -> Duration {
    let began = Instant::now();
    work.await;
    began.elapsed()
}

#[tokio::test]
#[expect(clippy::print_stdout, reason = "a measurement says what it measured")]
async fn a_miss_costs_at_most_fifty_milliseconds() {
    let lengths = [1 << 20; 2 * PAIRS];
    let rig = Rig::with_layers(Options { latency: Duration::from_millis(20), ..Options::default() }, &lengths).await;
    let origin = rig.origin(rig.shutdown.child_token(), Vec::new()).await;
    let agent = rig.agent(|config| config.origins = vec![format!("http://{}", origin.grpc_addr)]).await;
    get(&agent, &manifest("v1")).await;
    let (mut direct, mut through) = (Vec::new(), Vec::new());
    // Without prefetching the next: each layer is asked for before those below it.
    for pair in rig.image.layers.rchunks(2) {
        let path = |digest| format!("/v2/app/blobs/{digest}?ns={REGISTRY}");
        direct.push(timed(first_bytes_of(&format!("{}{}", rig.registry.url(), path(pair[1])))).await);
        through.push(timed(first_bytes_of(&format!("http://{}{}", agent.front_addr(), path(pair[0])))).await);
    }
    let (direct, through) = (median(direct), median(through));
    let unknown = timed(get(&agent, &manifest("v2"))).await;
    println!("first byte of a cold blob: {direct:?} direct, {through:?} through the agent; an unknown tag {unknown:?}");
    assert!(through < direct + MISS_MAX, "{through:?}, and {direct:?} direct");
    assert!(unknown < direct + MISS_MAX, "an unknown tag took {unknown:?}");
}
