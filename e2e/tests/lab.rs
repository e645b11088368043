//! The lab itself, without Shoal: links have their rates, nothing is left behind, and every client pulls straight from the
//! upstream. When one of these fails, the failures of the other tests mean nothing.

use std::time::Instant;

use anyhow::{Result, ensure};
use shoal_e2e::harness::{Bench, Test};
use shoal_e2e::image::{Image, Recipe};
use shoal_e2e::node::{Link, Rate};
use shoal_e2e::process;
use shoal_e2e::registry::{HOST, PORT, Registry};
use shoal_e2e::runtime::{Client, Containerd, Docker, DockerOptions, Mirror, Podman, Skopeo, pull_at_once};

pub(crate) const TESTS: &[Test] = &[
    Test {
        name: "links_carry_their_rate_in_each_direction",
        needs: &["docker-registry", "skopeo", "curl"],
        run: rates,
    },
    Test {
        name: "every_client_pulls_and_runs_an_image_straight_from_the_upstream",
        needs: &["dockerd", "docker", "containerd", "ctr", "podman"],
        run: clients,
    },
    Test {
        name: "a_dropped_lab_leaves_no_process_and_no_namespace",
        needs: &["containerd", "ctr"],
        run: leaves_nothing,
    },
];

fn small(seed: u64) -> Recipe {
    Recipe::Random { layers_mib: vec![8, 4], seed }
}

fn blob_url(image: &Image, index: usize) -> String {
    format!("http://upstream:{PORT}/v2/app/blobs/{}", image.layers[index].digest)
}

fn rates(bench: &Bench) -> Result<()> {
    let image = bench.image(&small(1))?;
    for (link, upstream_link, what) in [
        (Link { up: None, down: Some(Rate::mbit(40)) }, Link::default(), "down"),
        (Link::default(), Link { up: Some(Rate::mbit(40)), down: None }, "up"),
    ] {
        let mut lab = bench.lab()?;
        let upstream = lab.add_node("upstream", upstream_link)?;
        let node = lab.add_node("n1", link)?;
        let registry = Registry::start(&upstream, None)?;
        registry.push(&image, "app", "1")?;
        let started = Instant::now();
        node.run("curl", &["-sSfo", "/dev/null", &blob_url(&image, 1)])?;
        let seconds = started.elapsed().as_secs_f64();
        let bytes = image.layers[1].length;
        let ideal = f64::from(u32::try_from(bytes)?) * 1.0456 / 5e6;
        ensure!(
            (0.9..1.25).contains(&(seconds / ideal)),
            "{what}: {bytes} bytes in {seconds:.2} s instead of {ideal:.2}"
        );
        ensure!(node.traffic()?.received_bytes > bytes, "the counter of received bytes counts");
        ensure!(upstream.traffic()?.sent_bytes > bytes, "the counter of sent bytes counts");
        let fetched = registry.fetches()?[&image.layers[1].digest];
        ensure!((fetched.count, fetched.bytes) == (1, bytes), "the access log says {fetched:?}");
    }
    Ok(())
}

fn clients(bench: &Bench) -> Result<()> {
    let image = bench.image(&small(2))?;
    let mut lab = bench.lab()?;
    let upstream = lab.add_node("upstream", Link::default())?;
    lab.add_alias(HOST, &upstream)?;
    let nodes =
        ["docker", "containerd", "podman", "skopeo"].map(|name| lab.add_node(name, Link::symmetric(Rate::mbit(400))));
    let [docker, containerd, podman, skopeo] = nodes;
    let registry = Registry::start(&upstream, None)?;
    registry.push(&image, "app", "1")?;

    let plain = [Mirror { registry: HOST.to_owned(), mirror: None }];
    let docker = Docker::start(&docker?, &DockerOptions { insecure: vec![HOST.to_owned()], ..Default::default() })?;
    let containerd = Containerd::start_with_mirrors(&containerd?, HOST, &[])?;
    let podman = Podman::new(&podman?, &plain)?;
    let skopeo = Skopeo::new(&skopeo?, &plain)?;

    let reference = format!("{HOST}/app:1");
    let clients: [&dyn Client; 4] = [&docker, &containerd, &podman, &skopeo];
    pull_at_once(&clients.map(|client| (client, reference.as_str())))?;
    for client in clients {
        let name = client.node().name();
        ensure!(client.digest(&reference)? == image.digest, "{name}: another digest");
        let printed = client.run(&reference, &["/bin/cat", "/etc/image"])?;
        ensure!(printed.is_none_or(|printed| printed.starts_with("random-2")), "{name}: the image does not run");
    }
    let fetches = registry.fetches()?;
    for blob in image.blobs() {
        let fetched = fetches[&blob.digest];
        ensure!((fetched.count, fetched.bytes) == (4, 4 * blob.length), "{}: {fetched:?}", blob.digest);
    }
    Ok(())
}

fn leaves_nothing(bench: &Bench) -> Result<()> {
    let mut lab = bench.lab()?;
    let node = lab.add_node("n1", Link::default())?;
    let containerd = Containerd::start(&node)?;
    let inside = process::run("ip", ["netns", "pids", "shoal-n1"])?;
    let pids = inside.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    ensure!(pids.len() >= 2, "containerd and the node's first process run: {inside}");
    drop((containerd, node, lab));
    for pid in pids {
        ensure!(!std::path::Path::new("/proc").join(&pid).exists(), "process {pid} is left");
    }
    let left = process::run("ip", ["netns", "list"])?;
    ensure!(!left.contains("shoal-"), "namespaces are left: {left}");
    Ok(())
}
