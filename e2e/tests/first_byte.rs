//! Nobody waits for a whole blob: the first byte of a cold layer arrives while the origin is still at its beginning.

use std::time::Duration;

use anyhow::{Result, ensure};
use shoal_e2e::cluster::{Cluster, Plan, disk_bytes};
use shoal_e2e::harness::{Bench, Test, note};
use shoal_e2e::image::Recipe;
use shoal_e2e::node::{Link, Rate};
use shoal_e2e::program::{FRONT, store_dir};
use shoal_e2e::registry::HOST;
use shoal_e2e::wait::wait_until;

pub(crate) const TESTS: &[Test] = &[Test {
    name: "the_first_byte_of_a_cold_layer_arrives_when_a_twentieth_of_it_is_on_the_origin",
    needs: &[],
    run: first_byte,
}];

fn first_byte(bench: &Bench) -> Result<()> {
    let image = bench.image(&Recipe::Random { layers_mib: vec![512], seed: 4 })?;
    let slow = Link { up: Some(Rate::mbit(50)), down: None };
    let plan = Plan { upstream_link: slow, ..Plan::equal(1, Rate::mbit(1000)) };
    let cluster = Cluster::start(bench, plan, &image, "org/app")?;
    let layer = &image.layers[1];
    let node = &cluster.agents[0].node;
    let file = node.dir().join("layer");
    let mut curl = node.bounded("curl");
    curl.args(["-sSf", "--no-buffer", "-o"]).arg(&file);
    curl.arg(format!("http://{FRONT}/v2/org/app/blobs/{}?ns={HOST}", layer.digest));
    let mut curl = node.start("curl", curl)?;
    wait_until("the first byte", Duration::from_secs(60), || {
        curl.check_running()?;
        Ok(file.metadata().is_ok_and(|metadata| metadata.len() > 0))
    })?;
    let sent = cluster.upstream.node().traffic()?.sent_bytes;
    let on_origin = disk_bytes(&store_dir(&cluster.origin_node, "origin"))?;
    note(format!("at the first byte of {}: {on_origin} on the origin, {sent} sent by the upstream", layer.length));
    ensure!(sent > 0, "nothing left the upstream");
    for (bytes, what) in [(on_origin, "were on the origin"), (sent, "had left the upstream")] {
        ensure!(20 * bytes < layer.length, "{bytes} of {} bytes {what}, a twentieth or more", layer.length);
    }
    Ok(())
}
