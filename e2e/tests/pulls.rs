//! Three nodes, each with its own runtime, pull the same image at the same time through their agents.

use anyhow::{Context, Result};
use shoal_e2e::cluster::{Cluster, Plan, check_pulls};
use shoal_e2e::harness::{Bench, Test};
use shoal_e2e::image::Recipe;
use shoal_e2e::node::Rate;
use shoal_e2e::program::FRONT;
use shoal_e2e::registry::HOST;
use shoal_e2e::runtime::{Client, Containerd, Docker, DockerOptions, Mirror, Podman, Skopeo};

pub(crate) const TESTS: &[Test] = &[
    Test {
        name: "three_dockerd_pull_from_docker_hub_through_registry_mirrors",
        needs: &["dockerd", "docker"],
        run: docker_hub,
    },
    Test {
        name: "three_dockerd_pull_from_another_registry_named_in_the_reference",
        needs: &["dockerd", "docker"],
        run: docker_path,
    },
    Test { name: "three_containerd_pull_through_hosts_toml", needs: &["containerd", "ctr"], run: containerd },
    Test { name: "podman_and_skopeo_pull_through_mirrors", needs: &["podman"], run: podman_and_skopeo },
];

/// Two cores carry this for three nodes, an origin and an upstream, and unpack the image meanwhile.
const RATE: Rate = Rate::mbit(150);

fn docker_hub(bench: &Bench) -> Result<()> {
    let image = bench.image(&Recipe::Realistic)?;
    let cluster = Cluster::start(bench, Plan::equal(3, RATE), &image, "library/app")?;
    let options = DockerOptions { mirror: Some(format!("http://{FRONT}")), ..Default::default() };
    let docker = start_on_all(&cluster, |agent| Docker::start(agent, &options))?;
    check_shared(&cluster, &docker, "docker.io/library/app:1", &image)
}

fn docker_path(bench: &Bench) -> Result<()> {
    let image = bench.image(&Recipe::Realistic)?;
    let cluster = Cluster::start(bench, Plan::equal(3, RATE), &image, "org/app")?;
    let docker = start_on_all(&cluster, |agent| Docker::start(agent, &DockerOptions::default()))?;
    check_shared(&cluster, &docker, &format!("localhost:5050/{HOST}/org/app:1"), &image)
}

fn containerd(bench: &Bench) -> Result<()> {
    let image = bench.image(&Recipe::Realistic)?;
    let cluster = Cluster::start(bench, Plan::equal(3, RATE), &image, "org/app")?;
    let mirror = format!("http://{FRONT}");
    let containerd = start_on_all(&cluster, |agent| Containerd::start_with_mirrors(agent, HOST, &[&mirror]))?;
    check_shared(&cluster, &containerd, &format!("{HOST}/org/app:1"), &image)
}

fn podman_and_skopeo(bench: &Bench) -> Result<()> {
    let image = bench.image(&Recipe::Realistic)?;
    let cluster = Cluster::start(bench, Plan::equal(2, RATE), &image, "org/app")?;
    let mirrors = [Mirror { registry: HOST.to_owned(), mirror: Some(format!("{FRONT}/{HOST}")) }];
    let podman = Podman::new(&cluster.agents[0].node, &mirrors)?;
    let skopeo = Skopeo::new(&cluster.agents[1].node, &mirrors)?;
    let reference = format!("{HOST}/org/app:1");
    check_pulls(&[(&podman, &reference), (&skopeo, &reference)], &image)?;
    cluster.check_fetched_once(&image)
}

fn start_on_all<C>(
    cluster: &Cluster,
    start: impl Fn(&std::sync::Arc<shoal_e2e::node::Node>) -> Result<C>,
) -> Result<Vec<C>> {
    cluster.agents.iter().map(|agent| start(&agent.node)).collect()
}

fn check_shared<C: Client>(
    cluster: &Cluster,
    clients: &[C],
    reference: &str,
    image: &shoal_e2e::image::Image,
) -> Result<()> {
    let pulls = clients.iter().map(|client| (client as &dyn Client, reference)).collect::<Vec<_>>();
    check_pulls(&pulls, image)?;
    cluster.check_fetched_once(image).context("upstream's access log")?;
    cluster.check_bytes_from_peers(image)
}
