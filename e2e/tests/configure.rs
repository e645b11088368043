//! `shoal node configure` tells real runtimes, `shoal doctor` says so, and `--remove` puts everything back.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use shoal_e2e::cluster::{Cluster, Plan, answered, check_pulls};
use shoal_e2e::harness::{Bench, Test};
use shoal_e2e::image::{Image, Recipe};
use shoal_e2e::node::{Node, Rate};
use shoal_e2e::program::FRONT;
use shoal_e2e::registry::HOST;
use shoal_e2e::runtime::{Client, Containerd, Docker, DockerOptions, Podman};

pub(crate) const TESTS: &[Test] = &[Test {
    name: "node_configure_tells_containerd_dockerd_and_podman_and_puts_all_back",
    needs: &["containerd", "ctr", "dockerd", "docker", "podman"],
    run: configure,
}];

const RATE: Rate = Rate::mbit(400);

fn configure(bench: &Bench) -> Result<()> {
    let [first, second] = [5, 6].map(|seed| bench.image(&Recipe::Random { layers_mib: vec![4], seed }));
    let (first, second) = (first?, second?);
    let cluster = Cluster::start(bench, Plan { docker_hub: true, ..Plan::equal(1, RATE) }, &first, "library/first")?;
    cluster.upstream.push(&second, "library/second", "1")?;
    let ca = &cluster.identity.as_ref().context("Docker Hub's identity")?.ca;
    let node = &cluster.agents[0].node;
    let own = files_of_an_administrator(node)?;

    let containerd = Containerd::start_installed(node, ca)?;
    let options = DockerOptions { ca: Some(ca.clone()), ..Default::default() };
    let docker = Docker::start(node, &options)?;
    let podman = Podman::installed(node)?;
    let before = snapshot(&own)?;
    check_doctor(&cluster, &docker, "fail", "none asks the agent")?;

    cluster.program().configure(node, &[])?;
    docker.reload(&format!("http://{FRONT}/"))?;
    check_doctor(&cluster, &docker, "ok", "3 of 3 ask the agent first")?;
    for client in [&containerd as &dyn Client, &docker, &podman] {
        check_pull(client, "docker.io/library/first:1", &first, true)?;
    }
    check_pull(&containerd, &format!("{HOST}/library/first:1"), &first, true)?;

    let said = cluster.program().configure(node, &["--remove"])?;
    ensure!(said.contains("systemctl restart docker"), "{said}");
    docker.stop()?;
    let docker = Docker::start(node, &options)?;
    ensure!(snapshot(&own)? == before, "not all was put back: {said}");
    check_doctor(&cluster, &docker, "fail", "none asks the agent")?;
    for client in [&containerd as &dyn Client, &docker, &podman] {
        check_pull(client, "docker.io/library/second:1", &second, false)?;
    }
    check_pull(&containerd, &format!("{HOST}/library/second:1"), &second, false)
}

/// Gives the node directories of its own where runtimes are configured, with files that someone wrote. Returns where they are.
fn files_of_an_administrator(node: &Node) -> Result<PathBuf> {
    let insecure = "insecure = true\n";
    let hub = format!("[[registry]]\nprefix = \"docker.io\"\nlocation = \"{HOST}\"\n{insecure}");
    let hosts = format!(
        "# plain HTTP\nserver = \"http://{HOST}\"\n\n[host.\"http://{HOST}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
    );
    for (directory, file, text) in [
        ("/etc/containerd", format!("certs.d/{HOST}/hosts.toml"), hosts.as_str()),
        ("/etc/docker", "daemon.json".to_owned(), "{\n    \"max-concurrent-downloads\": 2\n}"),
        ("/etc/containers", "registries.conf".to_owned(), &hub),
        ("/etc/containers", "policy.json".to_owned(), "{\"default\": [{\"type\": \"insecureAcceptAnything\"}]}"),
    ] {
        let path = node.own(directory)?.join(file);
        fs::create_dir_all(path.parent().context("a directory")?)?;
        fs::write(path, text)?;
    }
    let state = node.own("/var/lib/shoal")?;
    Ok(state.ancestors().nth(3).context("where the node's own directories are")?.to_owned())
}

/// Every file and directory of the node's own ones, but for what podman keeps among them.
fn snapshot(directory: &Path) -> Result<BTreeMap<PathBuf, Option<Vec<u8>>>> {
    let mut out = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.ends_with("etc/containers/networks") {
            continue;
        }
        if path.is_dir() {
            out.extend(snapshot(&path)?);
        }
        let text = if path.is_file() { Some(fs::read(&path)?) } else { None };
        out.insert(path, text);
    }
    Ok(out)
}

/// Pulls, and shows that the agent was asked, or was not.
fn check_pull(client: &dyn Client, reference: &str, image: &Image, through_agent: bool) -> Result<()> {
    let before = answered(client.node(), "manifest", "200")?;
    check_pulls(&[(client, reference)], image)?;
    let asked = answered(client.node(), "manifest", "200")? > before;
    ensure!(asked == through_agent, "{reference}: the agent was {}asked", if asked { "" } else { "not " });
    Ok(())
}

/// Shows what the doctor says of the runtimes as a whole, and that it fails exactly when any check does.
fn check_doctor(cluster: &Cluster, docker: &Docker, status: &str, why: &str) -> Result<()> {
    let (checks, passed) = cluster.program().doctor(&cluster.agents[0].node, docker.host())?;
    let runtimes = checks.iter().find(|check| check["name"] == "runtimes").context("a check of all runtimes")?;
    ensure!(runtimes["status"] == status && runtimes["why"] == why, "{checks:#?}");
    let failed = checks.iter().filter(|check| check["status"] == "fail").count();
    ensure!(passed == (failed == 0) && failed == usize::from(status == "fail"), "{checks:#?}");
    Ok(())
}
