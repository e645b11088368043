//! Private images: who has rights upstream pulls through the agents, with the credentials the runtimes have anyway, and nobody
//! else gets a byte from nodes that hold every one.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use shoal_e2e::cluster::{Cluster, Plan, answered};
use shoal_e2e::harness::{Bench, Test};
use shoal_e2e::image::{Image, Recipe};
use shoal_e2e::node::{Link, Node, Rate};
use shoal_e2e::program::FRONT;
use shoal_e2e::registry::{Guard, HOST};
use shoal_e2e::runtime::{Client, Containerd, Docker, DockerOptions, Mirror, Podman};
use shoal_e2e::tokens::User;

pub(crate) const TESTS: &[Test] = &[
    Test {
        name: "private_images_go_through_containerd_and_agents_to_who_may_read_them_alone",
        needs: &["containerd", "ctr"],
        run: containerd,
    },
    Test {
        name: "private_images_go_through_docker_login_and_podman_login",
        needs: &["dockerd", "docker", "podman"],
        run: docker_and_podman,
    },
    Test { name: "a_private_pull_outlives_its_token", needs: &["containerd", "ctr"], run: short_tokens },
    Test {
        name: "private_images_of_a_registry_with_passwords_go_through_every_client",
        needs: &["containerd", "ctr", "dockerd", "docker", "podman", "htpasswd"],
        run: passwords,
    },
];

const RATE: Rate = Rate::mbit(400);
const ALICE: User = User { name: "alice", password: "al1ce+%:&", repositories: &["org/app", "library/app"] };
const BOB: User = User { name: "bob", password: "b0b", repositories: &["org/other"] };
const USERS: &[User] = &[ALICE, BOB];
/// What calls of one agent or origin may move at most, without any byte of a layer.
const CALLS_BYTES_MAX: u64 = 128 * 1024;

fn containerd(bench: &Bench) -> Result<()> {
    let image = bench.image(&Recipe::Random { layers_mib: vec![6, 3], seed: 31 })?;
    let plan = Plan { guard: Guard::Tokens(USERS), ..Plan::equal(2, RATE) };
    let cluster = Cluster::start(bench, plan, &image, "org/app")?;
    let [first, second] = [0, 1].map(|index| &cluster.agents[index].node);
    let clients = [start_containerd(first)?, start_containerd(second)?];
    let reference = format!("{HOST}/org/app:1");
    pull_through_agent(&clients[0], &image, &reference, || clients[0].pull_as(&reference, &ALICE))?;

    // Named in the path, and so signed in at the agent: there is no other host that could give it.
    let path = format!("localhost:5050/{HOST}/org/app:1");
    let by_path = User { name: "registry.lab/alice", ..ALICE };
    ensure!(clients[0].pull_as(&path, &ALICE).is_err(), "a password for docker.io went to another registry");
    clients[0].pull_as(&path, &by_path)?;

    let tokens = cluster.upstream.tokens()?;
    let (bob, alice) = (tokens.token(Some(&BOB), "org/app")?, tokens.token(Some(&ALICE), "org/app")?);
    for node in [first, second] {
        for token in [None, Some(&*bob), Some("forged")] {
            check_answers(node, &image, token, ["401"; 6])?;
        }
    }
    let from_others = second.received_from(first)? + second.received_from(&cluster.origin_node)?;
    ensure!(from_others < CALLS_BYTES_MAX, "{from_others} bytes came to a node whose clients have no rights");
    check_answers(first, &image, Some(&alice), ["200", "200", "200", "206", "200", "200"])?;

    for refused in [clients[1].pull(&reference), clients[1].pull_as(&reference, &BOB)] {
        ensure!(refused.is_err(), "a pull without rights went through");
    }
    pull_through_agent(&clients[1], &image, &reference, || clients[1].pull_as(&reference, &ALICE))?;
    cluster.check_fetched_once(&image)
}

fn docker_and_podman(bench: &Bench) -> Result<()> {
    let image = bench.image(&Recipe::Random { layers_mib: vec![4, 2], seed: 32 })?;
    let other = bench.image(&Recipe::Random { layers_mib: vec![2, 1], seed: 34 })?;
    let plan = Plan { guard: Guard::Tokens(USERS), docker_hub: true, ..Plan::equal(1, RATE) };
    let cluster = Cluster::start(bench, plan, &image, "library/app")?;
    cluster.upstream.push(&other, "org/app", "1")?;
    let ca = cluster.identity.as_ref().map(|identity| identity.ca.clone());
    let options = DockerOptions { mirror: Some(format!("http://{FRONT}")), ca, ..Default::default() };
    let docker = Docker::start(&cluster.agents[0].node, &options)?;

    let hub = "docker.io/library/app:1";
    ensure!(docker.pull(hub).is_err(), "nobody is signed in, and the image came");
    docker.login("", ALICE.name, ALICE.password)?;
    pull_through_agent(&docker, &image, hub, || docker.pull(hub))?;
    docker.login("", BOB.name, BOB.password)?;
    ensure!(docker.pull(hub).is_err(), "bob has no rights, and the image came");
    docker.logout("")?;

    let (agent, path) = ("localhost:5050", format!("localhost:5050/{HOST}/org/app:1"));
    ensure!(docker.pull(&path).is_err(), "nobody is signed in, and the image came");
    let [alice, bob] = [ALICE, BOB].map(|user| format!("{HOST}/{}", user.name));
    ensure!(docker.login(agent, &alice, BOB.password).is_err(), "a wrong password was taken");
    docker.login(agent, &alice, ALICE.password)?;
    pull_through_agent(&docker, &other, &path, || docker.pull(&path))?;
    docker.login(agent, &bob, BOB.password)?;
    ensure!(docker.pull(&path).is_err(), "bob has no rights, and the image came");
    // A password for one registry is not for another.
    docker.login(agent, &alice, ALICE.password)?;
    ensure!(docker.pull("localhost:5050/docker.io/library/app:1").is_err(), "a password went to another registry");

    let (mirror, reference) = (format!("{FRONT}/{HOST}"), format!("{HOST}/org/app:1"));
    let podman =
        Podman::new(&cluster.agents[0].node, &[Mirror { registry: HOST.to_owned(), mirror: Some(mirror.clone()) }])?;
    ensure!(podman.login(&mirror, &alice, BOB.password).is_err(), "a wrong password was taken");
    podman.login(&mirror, &bob, BOB.password)?;
    ensure!(podman.pull(&reference).is_err(), "bob has no rights, and the image came");
    podman.login(&mirror, &alice, ALICE.password)?;
    pull_through_agent(&podman, &other, &reference, || podman.pull(&reference))?;
    cluster.check_fetched_once(&image)
}

fn short_tokens(bench: &Bench) -> Result<()> {
    let image = bench.image(&Recipe::Random { layers_mib: vec![6, 3], seed: 31 })?;
    let plan = Plan { guard: Guard::Tokens(USERS), node_link: Link::symmetric(Rate::mbit(16)), ..Plan::equal(1, RATE) };
    let cluster = Cluster::start(bench, plan, &image, "org/app")?;
    let (node, tokens) = (&cluster.agents[0].node, cluster.upstream.tokens()?);
    let (containerd, reference) = (start_containerd(node)?, format!("{HOST}/org/app:1"));
    tokens.let_tokens_live(2);
    let started = Instant::now();
    pull_through_agent(&containerd, &image, &reference, || containerd.pull_as(&reference, &ALICE))?;
    ensure!(started.elapsed() > Duration::from_secs(3), "the pull was over before its token was");
    cluster.check_fetched_once(&image)?;

    tokens.let_tokens_live(-1);
    let ended = tokens.token(Some(&ALICE), "org/app")?;
    check_answers(node, &image, Some(&ended), ["401"; 6])?;
    tokens.let_tokens_live(60);
    let fresh = tokens.token(Some(&ALICE), "org/app")?;
    check_answers(node, &image, Some(&fresh), ["200", "200", "200", "206", "200", "200"])
}

fn passwords(bench: &Bench) -> Result<()> {
    let image = bench.image(&Recipe::Random { layers_mib: vec![4, 2], seed: 33 })?;
    let plan = Plan { guard: Guard::Passwords(&[ALICE]), ..Plan::equal(1, RATE) };
    let cluster = Cluster::start(bench, plan, &image, "org/app")?;
    let node = &cluster.agents[0].node;
    let (reference, path) = (format!("{HOST}/org/app:1"), format!("localhost:5050/{HOST}/org/app:1"));
    let user = format!("{HOST}/{}", ALICE.name);

    let containerd = start_containerd(node)?;
    let from_upstream = node.received_from(cluster.upstream.node())?;
    ensure!(containerd.pull(&reference).is_err(), "containerd pulled without a password");
    let went_on = node.received_from(cluster.upstream.node())? > from_upstream;
    ensure!(went_on, "challenged with Basic by the mirror, containerd did not go on to the registry");
    pull_through_agent(&containerd, &image, &reference, || containerd.pull_as(&reference, &ALICE))?;

    let docker = Docker::start(node, &DockerOptions::default())?;
    ensure!(docker.login("localhost:5050", &user, BOB.password).is_err(), "a wrong password was taken");
    docker.login("localhost:5050", &user, ALICE.password)?;
    pull_through_agent(&docker, &image, &path, || docker.pull(&path))?;

    let mirror = format!("{FRONT}/{HOST}");
    let podman = Podman::new(node, &[Mirror { registry: HOST.to_owned(), mirror: Some(mirror.clone()) }])?;
    ensure!(podman.pull(&reference).is_err(), "podman pulled without a password");
    podman.login(&mirror, &user, ALICE.password)?;
    pull_through_agent(&podman, &image, &reference, || podman.pull(&reference))?;

    check_answers(node, &image, None, ["401"; 6])?;
    cluster.check_fetched_once(&image)
}

fn start_containerd(node: &std::sync::Arc<Node>) -> Result<Containerd> {
    Containerd::start_with_mirrors(node, HOST, &[&format!("http://{FRONT}")])
}

/// Pulls, and shows that the image came and that the agent gave every blob of it.
fn pull_through_agent(
    client: &dyn Client,
    image: &Image,
    reference: &str,
    pull: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let given = || answered(client.node(), "blob", "200");
    let before = given()?;
    pull().with_context(|| format!("{} pulls {reference}", client.node().name()))?;
    let digest = client.digest(reference)?;
    ensure!(digest == image.digest, "{digest} was pulled instead of {}", image.digest);
    let (given, blobs) = (given()? - before, image.blobs().count() as u64);
    ensure!(given >= blobs, "the agent gave {given} of {blobs} blobs");
    Ok(())
}

/// Shows what the agent answers to one with this token who asks for the manifest by tag and by digest, for a layer, a range of
/// it, and by HEAD for the layer and the manifest.
fn check_answers(node: &Node, image: &Image, token: Option<&str>, expected: [&str; 6]) -> Result<()> {
    let (layer, manifest) = (&image.layers[1].digest, &image.digest);
    let asked = [
        ("manifests/1".to_owned(), &[][..]),
        (format!("manifests/{manifest}"), &[]),
        (format!("blobs/{layer}"), &[]),
        (format!("blobs/{layer}"), &["--range", "5-99"]),
        (format!("blobs/{layer}"), &["--head"]),
        (format!("manifests/{manifest}"), &["--head"]),
    ];
    for ((path, flags), expected) in asked.iter().zip(expected) {
        let url = format!("http://{FRONT}/v2/org/app/{path}?ns={HOST}");
        let bearer = token.map(|token| format!("authorization: Bearer {token}"));
        let bearer = bearer.iter().flat_map(|bearer| ["--header", bearer]).collect::<Vec<_>>();
        let accept = "accept: application/vnd.oci.image.manifest.v1+json";
        let told = ["-so", "/dev/null", "--header", accept, "--write-out", "%{http_code} %{size_download}", &url];
        let answer = node.run("curl", &[&told[..], flags, &bearer].concat())?;
        let (status, bytes) = answer.split_once(' ').context("status and bytes")?;
        ensure!(status == expected, "{flags:?} {path} on {}: {status} and not {expected}", node.name());
        ensure!(expected.starts_with('2') || bytes.parse::<u64>()? < 1024, "{path}: {bytes} bytes of a refusal");
    }
    Ok(())
}
