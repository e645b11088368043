//! Parts die in mid-pull by `kill -9`, and no pull fails.

use std::time::Duration;

use anyhow::{Result, ensure};
use shoal_e2e::cluster::{Cluster, Plan, check_pulls};
use shoal_e2e::harness::{Bench, Skip, Test, note};
use shoal_e2e::image::{Image, Recipe};
use shoal_e2e::node::{Node, Rate};
use shoal_e2e::process::Process;
use shoal_e2e::program::FRONT;
use shoal_e2e::registry::{HOST, Registry};
use shoal_e2e::runtime::{Client, Containerd, Docker, DockerOptions};
use shoal_e2e::tools;
use shoal_e2e::wait::wait_until;

pub(crate) const TESTS: &[Test] = &[
    Test {
        name: "containerd_falls_back_when_the_agent_is_killed_in_mid_pull",
        needs: &["containerd", "ctr"],
        run: containerd_loses_its_agent,
    },
    Test {
        name: "containerd_2_that_fetches_by_ranges_falls_back_at_its_next_try_when_the_agent_is_killed_in_mid_pull",
        needs: &[],
        run: containerd_2_loses_its_agent,
    },
    Test {
        name: "containerd_goes_on_at_its_next_host_when_the_agent_can_deliver_no_more",
        needs: &["containerd", "ctr"],
        run: containerd_loses_its_agents_sources,
    },
    Test {
        name: "containerd_2_that_fetches_by_ranges_goes_on_at_its_next_host_when_the_agent_can_deliver_no_more",
        needs: &[],
        run: containerd_2_loses_its_agents_sources,
    },
    Test {
        name: "dockerd_falls_back_to_docker_hub_when_the_agent_is_killed_in_mid_pull",
        needs: &["dockerd", "docker"],
        run: dockerd_loses_its_agent,
    },
    Test { name: "a_restarted_agent_resumes_from_what_it_had", needs: &["sha256sum"], run: agent_resumes },
    Test {
        name: "agents_finish_pulls_when_tracker_and_origin_are_killed_in_mid_pull",
        needs: &["containerd", "ctr"],
        run: tracker_and_origin_are_lost,
    },
];

/// Slow enough that an image takes some ten seconds, so there is a middle.
const RATE: Rate = Rate::mbit(80);
/// Long enough for every part of the path to come to a halt or an end.
const PATIENCE: Duration = Duration::from_secs(120);

fn image(bench: &Bench) -> Result<Image> {
    bench.image(&Recipe::Random { layers_mib: vec![48, 40], seed: 3 })
}

/// Waits until a node has received this share of the image, which `pull` is still pulling.
fn wait_received(node: &Node, image: &Image, percent: u64) -> Result<()> {
    let wanted = image.length() * percent / 100;
    wait_until(&format!("{percent} % of the image on {}", node.name()), PATIENCE, || {
        Ok(node.traffic()?.received_bytes >= wanted)
    })
}

/// Pulls on every client at once and does `disturb` meanwhile; shows that it did so in mid-pull and that all pulls succeed.
fn check_disturbed(pulls: &[(&dyn Client, &str)], image: &Image, disturb: impl FnOnce() -> Result<()>) -> Result<()> {
    std::thread::scope(|scope| {
        let pulling = scope.spawn(|| check_pulls(pulls, image));
        let disturbed = disturb();
        let ended_before = pulling.is_finished();
        pulling.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        disturbed?;
        ensure!(!ended_before, "the pull had ended before it was disturbed");
        Ok(())
    })
}

fn containerd_loses_its_agent(bench: &Bench) -> Result<()> {
    let image = image(bench)?;
    let mut cluster = Cluster::start(bench, Plan::equal(1, RATE), &image, "org/app")?;
    let node = std::sync::Arc::clone(&cluster.agents[0].node);
    let containerd = Containerd::start_with_mirrors(&node, HOST, &[&format!("http://{FRONT}")])?;
    let reference = format!("{HOST}/org/app:1");
    check_disturbed(&[(&containerd, &reference)], &image, || {
        wait_received(&node, &image, 30)?;
        cluster.kill_agent(0)
    })?;
    check_fell_back(&cluster, &node)
}

/// Of ranges side by side containerd asks its next host only for the first, or for one that was cut: a pull in whose midst the
/// agent dies may fail. As the kubelet does, it is tried again.
fn containerd_2_loses_its_agent(bench: &Bench) -> Result<()> {
    let programs = tools::find().map_err(Skip)?;
    let image = image(bench)?;
    let mut cluster = Cluster::start(bench, Plan::equal(1, RATE), &image, "org/app")?;
    let node = std::sync::Arc::clone(&cluster.agents[0].node);
    let containerd = Containerd::start_2(&node, programs)?;
    containerd.set_hosts(HOST, &format!("http://{HOST}"), &[&format!("http://{FRONT}")])?;
    let reference = format!("{HOST}/org/app:1");
    let first = std::thread::scope(|scope| {
        let pulling = scope.spawn(|| containerd.pull(&reference));
        wait_received(&node, &image, 30)?;
        ensure!(!pulling.is_finished(), "the pull had ended before the agent was killed");
        cluster.kill_agent(0)?;
        Ok(pulling.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    note(format!("the first try {}", if first.is_ok() { "succeeded" } else { "failed" }));
    check_pulls(&[(&containerd, &reference)], &image)?;
    check_fell_back(&cluster, &node)
}

fn containerd_loses_its_agents_sources(bench: &Bench) -> Result<()> {
    let rest = check_sources_lost(bench, Containerd::start)?;
    let length = image(bench)?.length();
    ensure!(10 * rest < 9 * length, "{rest} of {length} bytes came anew");
    Ok(())
}

fn containerd_2_loses_its_agents_sources(bench: &Bench) -> Result<()> {
    let programs = tools::find().map_err(Skip)?;
    // What it had is not told by the bytes of its next host: it drops each range after its share, and what is on the way is lost.
    check_sources_lost(bench, |node| Containerd::start_2(node, programs)).map(drop)
}

/// Kills the origin and the registry in mid-pull. What the agent then answers has to lead containerd on to a registry that only
/// containerd knows, in the same pull. Gives the bytes that came from there.
fn check_sources_lost(bench: &Bench, start: impl FnOnce(&std::sync::Arc<Node>) -> Result<Containerd>) -> Result<u64> {
    let image = image(bench)?;
    let mut cluster = Cluster::start(bench, Plan::equal(2, RATE), &image, "org/app")?;
    let [node, spare] = [0, 1].map(|index| std::sync::Arc::clone(&cluster.agents[index].node));
    let next_host = Registry::start(&spare, None)?;
    next_host.push(&image, "org/app", "1")?;
    let containerd = start(&node)?;
    containerd.set_hosts(HOST, &format!("http://{}", spare.name()), &[&format!("http://{FRONT}")])?;
    let reference = format!("{HOST}/org/app:1");
    check_disturbed(&[(&containerd, &reference)], &image, || {
        wait_received(&node, &image, 30)?;
        cluster.origin.kill_dash_9()?;
        cluster.upstream.kill_dash_9()
    })?;
    let [agent, rest] = [&cluster.origin_node, &spare].map(|source| node.received_from(source));
    let (agent, rest) = (agent?, rest?);
    note(format!("{agent} bytes from the origin, {rest} from the next host"));
    ensure!(agent > 1 << 20 && rest > 1 << 20, "{agent} bytes from the origin, {rest} from the next host");
    Ok(rest)
}

fn dockerd_loses_its_agent(bench: &Bench) -> Result<()> {
    let image = image(bench)?;
    let plan = Plan { docker_hub: true, ..Plan::equal(1, RATE) };
    let mut cluster = Cluster::start(bench, plan, &image, "library/app")?;
    let node = std::sync::Arc::clone(&cluster.agents[0].node);
    let ca = cluster.identity.as_ref().map(|identity| identity.ca.clone());
    let mirror = Some(format!("http://{FRONT}"));
    let options = DockerOptions { mirror, ca, download_attempts: Some(2), ..Default::default() };
    let docker = Docker::start(&node, &options)?;
    check_disturbed(&[(&docker, "docker.io/library/app:1")], &image, || {
        wait_received(&node, &image, 30)?;
        cluster.kill_agent(0)
    })?;
    check_fell_back(&cluster, &node)
}

/// A pull that lost its agent got its beginning from the origin and the rest from the upstream itself.
fn check_fell_back(cluster: &Cluster, node: &Node) -> Result<()> {
    for source in [&cluster.origin_node, cluster.upstream.node()] {
        let bytes = node.received_from(source)?;
        note(format!("{bytes} bytes from the {}", source.name()));
        ensure!(bytes > 1 << 20, "only {bytes} bytes came from the {}", source.name());
    }
    Ok(())
}

fn agent_resumes(bench: &Bench) -> Result<()> {
    let image = image(bench)?;
    let mut cluster = Cluster::start(bench, Plan::equal(1, RATE), &image, "org/app")?;
    let node = std::sync::Arc::clone(&cluster.agents[0].node);
    let layer = &image.layers[1];
    let file = node.dir().join("layer");
    let get = || -> Result<Process> {
        let mut curl = node.bounded("curl");
        curl.args(["-sSf", "-o"]).arg(&file);
        curl.arg(format!("http://{FRONT}/v2/org/app/blobs/{}?ns={HOST}", layer.digest));
        node.start("curl", curl)
    };
    let mut first = get()?;
    wait_until("half of the layer", PATIENCE, || Ok(2 * node.traffic()?.received_bytes >= layer.length))?;
    cluster.kill_agent(0)?;
    ensure!(!first.wait(PATIENCE)?, "the first download had ended before the agent was killed");

    let received_before = node.traffic()?.received_bytes;
    cluster.restart_agent(0)?;
    ensure!(get()?.wait(PATIENCE)?, "the download after the restart failed");
    let printed = node.run("sha256sum", &[&file.to_string_lossy()])?;
    ensure!(format!("sha256:{printed}").starts_with(&layer.digest), "the layer is another: {printed}");
    let received_after = node.traffic()?.received_bytes - received_before;
    // What was in flight when it died comes again, and headers count.
    let allowed = (layer.length - layer.length / 2) * 11 / 10 + (4 << 20);
    note(format!("{received_after} bytes of {} came after the restart, {allowed} are allowed", layer.length));
    ensure!(received_after <= allowed, "{received_after} bytes came after the restart, more than {allowed}");
    Ok(())
}

fn tracker_and_origin_are_lost(bench: &Bench) -> Result<()> {
    let image = image(bench)?;
    let mut cluster = Cluster::start(bench, Plan::equal(3, RATE), &image, "org/app")?;
    let node = std::sync::Arc::clone(&cluster.agents[0].node);
    let mut all = Vec::new();
    for agent in &cluster.agents {
        let containerd = Containerd::start(&agent.node)?;
        // Nothing listens at the server: what containerd gets, it gets from the agent.
        containerd.set_hosts(HOST, "http://127.0.0.1:9", &[&format!("http://{FRONT}")])?;
        all.push(containerd);
    }
    let reference = format!("{HOST}/org/app:1");
    let pulls = all.iter().map(|client| (client as &dyn Client, reference.as_str())).collect::<Vec<_>>();
    check_disturbed(&pulls, &image, || {
        wait_received(&node, &image, 20)?;
        cluster.tracker.kill_dash_9()?;
        wait_received(&node, &image, 45)?;
        cluster.origin.kill_dash_9()
    })
}
