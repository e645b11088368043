//! What a miss costs: a blob that nobody in the cluster has, beside the same request to the registry itself.

use std::time::{Duration, Instant};

use shoal_registry::embedded::Options;

use crate::rig::{REGISTRY, Rig, first_bytes_of, get, manifest};

/// How long the registry takes for each answer: far longer than anything here but asking it.
const LATENCY: Duration = Duration::from_secs(1);

async fn timed<T>(work: impl Future<Output = T>) -> Duration {
    let began = Instant::now();
    work.await;
    began.elapsed()
}

#[tokio::test]
#[expect(clippy::print_stdout, reason = "a measurement says what it measured")]
async fn a_miss_adds_no_round_trip_to_the_registry() {
    let rig = Rig::with_layers(Options { latency: LATENCY, ..Options::default() }, &[1 << 20; 2]).await;
    let origin = rig.origin(rig.shutdown.child_token(), Vec::new()).await;
    let agent = rig.agent(|config| config.origins = vec![format!("http://{}", origin.grpc_addr)]).await;
    get(&agent, &manifest("v1")).await;
    let path = |digest| format!("/v2/app/blobs/{digest}?ns={REGISTRY}");
    // Without prefetching the next: each layer is asked for before those below it.
    let [below, above] = &rig.image.layers[..] else { panic!("two layers") };
    let direct = timed(first_bytes_of(&format!("{}{}", rig.registry.url(), path(*above)))).await;
    let through = timed(first_bytes_of(&format!("http://{}{}", agent.front_addr(), path(*below)))).await;
    let unknown = timed(get(&agent, &manifest("v2"))).await;
    println!("first byte of a cold blob: {direct:?} direct, {through:?} through the agent; an unknown tag {unknown:?}");
    assert!(through < direct + LATENCY / 2, "{through:?}, and {direct:?} direct");
    assert!(unknown < direct + LATENCY / 2, "an unknown tag took {unknown:?}");
}
