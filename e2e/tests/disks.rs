//! Pulls by dockerd through an agent whose disk does not take them.

use anyhow::{Context, Result, ensure};
use shoal_e2e::cluster::{Cluster, Plan, check_pulls, metrics};
use shoal_e2e::harness::{Bench, Test};
use shoal_e2e::image::Recipe;
use shoal_e2e::node::Rate;
use shoal_e2e::program::{ADMIN, FRONT, store_dir};
use shoal_e2e::runtime::{Docker, DockerOptions};

pub(crate) const TESTS: &[Test] = &[
    Test {
        name: "dockerd_pulls_through_an_agent_whose_disk_is_full",
        needs: &["dockerd", "docker"],
        run: |bench| pulls(bench, "size=4m", Some("dd if=/dev/zero of=ballast bs=4k 2>/dev/null || true"), "full"),
    },
    Test {
        name: "dockerd_pulls_through_an_agent_whose_disk_is_read_only_from_the_start",
        needs: &["dockerd", "docker"],
        run: |bench| pulls(bench, "ro", None, "closed"),
    },
];

const RATE: Rate = Rate::mbit(150);

/// Pulls through an agent with a file system of its own for its store, which is filled by a command after the agent began.
fn pulls(bench: &Bench, options: &str, fill: Option<&str>, state: &str) -> Result<()> {
    let image = bench.image(&Recipe::Realistic)?;
    let mut cluster = Cluster::start(bench, Plan::equal(2, RATE), &image, "library/app")?;
    let node = std::sync::Arc::clone(&cluster.agents[0].node);
    let store = store_dir(&node, "agent").to_string_lossy().into_owned();
    cluster.kill_agent(0)?;
    node.run("mount", &["-t", "tmpfs", "-o", options, "tmpfs", &store])?;
    cluster.restart_agent_with(0, "free_floor = \"0B\"\n")?;
    if let Some(fill) = fill {
        node.run("sh", &["-c", &format!("cd {store} && {{ {fill}; }}")])?;
    }
    let options = DockerOptions { mirror: Some(format!("http://{FRONT}")), ..Default::default() };
    let clients =
        cluster.agents.iter().map(|agent| Docker::start(&agent.node, &options)).collect::<Result<Vec<_>>>()?;
    let reference = "docker.io/library/app:1";
    check_pulls(&[(&clients[0], reference), (&clients[1], reference)], &image)?;
    let metrics = metrics(&node, ADMIN).context("the agent's metrics")?;
    let line = format!("shoal_agent_store_state{{state=\"{state}\"}} 1");
    ensure!(metrics.contains(&line), "no `{line}` in\n{metrics}");
    ensure!(
        metrics.contains("shoal_agent_requests_total{route=\"blob\",status=\"200\"}"),
        "dockerd went past the agent"
    );
    Ok(())
}
