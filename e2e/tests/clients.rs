//! The matrix: every client pulls every kind of image from docker-registry through the agent of its node, and nothing from the
//! registry itself. The table is printed at the end.

use std::fs;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use shoal_e2e::cluster::{Cluster, Plan, answered, check_pulls};
use shoal_e2e::harness::{Bench, Skip, Test, free_bytes, note};
use shoal_e2e::image::{Image, Recipe};
use shoal_e2e::node::{Link, Node};
use shoal_e2e::program::FRONT;
use shoal_e2e::registry::{Guard, HOST, Registry};
use shoal_e2e::runtime::{Buildah, Client, Containerd, Crane, Cri, Docker, DockerOptions, Mirror, Podman, Skopeo};
use shoal_e2e::tokens::User;
use shoal_e2e::tools;

pub(crate) const TESTS: &[Test] = &[
    Test {
        name: "every_client_pulls_every_kind_of_image_through_its_agent",
        needs: &["dockerd", "docker", "containerd", "ctr", "podman", "buildah"],
        run: matrix,
    },
    Test {
        name: "every_client_pulls_private_images_through_its_agent_and_none_without_a_password",
        needs: &["dockerd", "docker", "containerd", "ctr", "podman", "buildah", "htpasswd"],
        run: private_matrix,
    },
    Test { name: "a_layer_of_five_gibibytes_is_pulled_whole", needs: &["containerd", "ctr"], run: five_gibibytes },
];

/// A kind of image: a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    /// An index of images for two architectures.
    Index,
    /// No image: types of its own.
    Artifact,
    /// Its layers are compressed by zstd.
    Zstd,
}

const KINDS: [Kind; 4] = [Kind::Plain, Kind::Index, Kind::Artifact, Kind::Zstd];

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Index => "index",
            Self::Artifact => "artifact",
            Self::Zstd => "zstd",
        }
    }
}

/// What the upstream holds of a kind.
struct Held {
    kind: Kind,
    /// What a client may say it pulled: of an index, that or the image it chose.
    digests: Vec<String>,
    image: Image,
}

/// A client: a row.
struct Row {
    what: &'static str,
    /// What it refuses, from whatever registry.
    refuses: &'static [Kind],
    make: fn(&Arc<Node>) -> Result<Made>,
}

/// A client on a node.
struct Made {
    client: Box<dyn Client>,
    version: String,
    /// What goes before an image's name.
    prefix: String,
    /// The same of images that it is given a password for, and whose.
    private: (String, User),
}

/// Clients that unpack whatever they pull take images only.
const UNPACKS: &[Kind] = &[Kind::Artifact];

const ROWS: [Row; 9] = [
    // It takes zstd from 23.0 on.
    Row { what: "dockerd", refuses: &[Kind::Artifact, Kind::Zstd], make: docker },
    Row { what: "containerd 1.x, ctr", refuses: &[], make: containerd },
    Row { what: "containerd 1.x, CRI", refuses: UNPACKS, make: containerd_by_cri },
    Row { what: "containerd 2.x, ctr", refuses: &[], make: containerd_2 },
    Row { what: "containerd 2.x, CRI", refuses: &[], make: containerd_2_by_cri },
    Row { what: "podman", refuses: UNPACKS, make: podman },
    Row { what: "skopeo", refuses: &[], make: skopeo },
    Row { what: "buildah", refuses: UNPACKS, make: buildah },
    Row { what: "crane", refuses: &[], make: crane },
];

fn matrix(bench: &Bench) -> Result<()> {
    let plain = bench.image(&image(6))?;
    let plan = Plan { nodes: u8::try_from(ROWS.len())?, ..fast() };
    let cluster = Cluster::start(bench, plan, &plain, "library/plain")?;
    let held = push_kinds(bench, &cluster.upstream, plain)?;
    let mut table = vec![line("", KINDS.iter().map(|kind| kind.name().to_owned()), "version")];
    let mut failed = Vec::new();
    for (row, agent) in ROWS.iter().zip(&cluster.agents) {
        let made = match (row.make)(&agent.node) {
            Ok(made) => made,
            Err(error) if error.is::<Skip>() => {
                bench.skip(KINDS.len() - row.refuses.len(), row.what, &error.to_string());
                table.push(line(row.what, KINDS.map(|_| "skipped".to_owned()), ""));
                continue;
            }
            Err(error) => return Err(error).context(row.what),
        };
        let cells = held.iter().map(|held| match pull(&cluster, &made, held) {
            Ok(seconds) => format!("{seconds:.1} s"),
            Err(error) if error.is::<Refused>() && row.refuses.contains(&held.kind) => "refused".to_owned(),
            Err(error) => {
                failed.push(format!("{}, {}: {error:#}", row.what, held.kind.name()));
                "FAILED".to_owned()
            }
        });
        table.push(line(row.what, cells.collect::<Vec<_>>(), &made.version));
    }
    table.iter().for_each(note);
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// At an agent, which serves many registries, people sign in with their registry's name.
const ALICE: User = User { name: "alice", password: "al1ce+%:&", repositories: &["org/app"] };
const ALICE_AT_AGENT: User = User { name: "registry.lab/alice", ..ALICE };

fn private_matrix(bench: &Bench) -> Result<()> {
    let image = bench.image(&image(12))?;
    let columns = [("token", Guard::Tokens(&[ALICE])), ("password", Guard::Passwords(&[ALICE]))];
    let mut cells = vec![Vec::new(); ROWS.len()];
    let mut failed = Vec::new();
    for (column, guard) in columns {
        let plan = Plan { nodes: u8::try_from(ROWS.len())?, guard, ..fast() };
        let cluster = Cluster::start(bench, plan, &image, "org/app")?;
        for ((row, agent), cells) in ROWS.iter().zip(&cluster.agents).zip(&mut cells) {
            let pulled = (row.make)(&agent.node).and_then(|made| private_pull(&cluster, &made, &image));
            cells.push(match pulled {
                Ok(seconds) => format!("{seconds:.1} s"),
                Err(error) if error.is::<Skip>() => {
                    bench.skip(1, &format!("{}, {column}", row.what), &error.to_string());
                    "skipped".to_owned()
                }
                Err(error) => {
                    failed.push(format!("{}, {column}: {error:#}", row.what));
                    "FAILED".to_owned()
                }
            });
        }
        cluster.check_fetched_once(&image)?;
    }
    note(line("", columns.map(|(column, _)| column.to_owned()), ""));
    ROWS.iter().zip(cells).for_each(|(row, cells)| note(line(row.what, cells, "")));
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// One cell: nothing comes without a password, and with one all of the image from the agent. Gives the seconds the pull took.
fn private_pull(cluster: &Cluster, made: &Made, image: &Image) -> Result<f64> {
    let (client, node) = (&made.client, made.client.node());
    let (prefix, user) = &made.private;
    let reference = format!("{prefix}/org/app:1");
    ensure!(client.pull(&reference).is_err(), "it came without a password");
    let given = answered(node, "blob", "200")? + answered(node, "blob", "206")?;
    ensure!(given == 0, "{given} blobs were given to one without a password");
    // Without a password podman and its kin ask the registry itself as well.
    let past = node.received_from(cluster.upstream.node())?;
    let started = Instant::now();
    client.pull_as(&reference, user)?;
    let seconds = started.elapsed().as_secs_f64();
    let digest = client.digest(&reference)?;
    ensure!(digest == image.digest, "{digest} instead of {}", image.digest);
    let past = node.received_from(cluster.upstream.node())? - past;
    ensure!(past < 1 << 20, "{past} bytes came from the upstream itself");
    Ok(seconds)
}

fn line(what: &str, cells: impl IntoIterator<Item = String>, version: &str) -> String {
    let cells = cells.into_iter().map(|cell| format!("{cell:>10}")).collect::<String>();
    format!("{what:<21}{cells}  {version}")
}

/// Two layers of a few MiB above the base.
fn image(seed: u64) -> Recipe {
    Recipe::Random { layers_mib: vec![5, 3], seed }
}

/// Links as fast as the machine goes.
fn fast() -> Plan {
    let link = Link::default();
    Plan { node_link: link, upstream_link: link, origin_link: link, ..Plan::equal(1, shoal_e2e::node::Rate::mbit(1)) }
}

/// Pushes an image of every kind; the plain one is there.
fn push_kinds(bench: &Bench, upstream: &Registry, plain: Image) -> Result<[Held; 4]> {
    let [amd64, arm64] = [7, 8].map(|seed| bench.image(&image(seed)));
    // What is listed for another architecture is never run, and need not be of it.
    let (amd64, arm64) = (amd64?, arm64?);
    upstream.push(&amd64, "library/index", "amd64")?;
    upstream.push(&arm64, "library/index", "arm64")?;
    let index = upstream.put_index("library/index", "1", &[("arm64", &arm64), ("amd64", &amd64)])?;
    let artifact = bench.image(&Recipe::Artifact { mib: 2, seed: 9 })?;
    upstream.push(&artifact, "library/artifact", "1")?;
    let zstd = bench.image(&image(10))?;
    let zstd_digest = upstream.push_zstd(&zstd, "library/zstd", "1")?;
    Ok([
        Held { kind: Kind::Plain, digests: vec![plain.digest.clone()], image: plain },
        Held { kind: Kind::Index, digests: vec![index, amd64.digest.clone()], image: amd64 },
        Held { kind: Kind::Artifact, digests: vec![artifact.digest.clone()], image: artifact },
        Held { kind: Kind::Zstd, digests: vec![zstd_digest], image: zstd },
    ])
}

/// The error of a pull for which the agent has given the manifest.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(String);

/// One cell: pulls, and shows that the client has the image, that the image runs, and where it came from. Gives the seconds the
/// pull took.
fn pull(cluster: &Cluster, made: &Made, held: &Held) -> Result<f64> {
    let (client, node) = (&made.client, made.client.node());
    let reference = format!("{}/library/{}:1", made.prefix, held.kind.name());
    let asked_before = answered(node, "manifest", "200")?;
    let started = Instant::now();
    let pulled = match held.kind {
        Kind::Artifact => client.fetch(&reference),
        Kind::Plain | Kind::Index | Kind::Zstd => client.pull(&reference),
    };
    let seconds = started.elapsed().as_secs_f64();
    ensure!(answered(node, "manifest", "200")? > asked_before, "the agent gave no manifest: {pulled:?}");
    pulled.map_err(|error| Refused(format!("{error:#}")))?;
    let digest = client.digest(&reference)?;
    ensure!(held.digests.contains(&digest), "{digest} instead of one of {:?}", held.digests);
    if held.kind != Kind::Artifact {
        let printed = client.run(&reference, &["/bin/cat", "/etc/image"])?;
        let expected = held.image.dir.file_name().unwrap_or_default().to_string_lossy();
        ensure!(printed.as_deref().is_none_or(|printed| printed == expected), "it ran and printed {printed:?}");
    }
    let past = node.received_from(cluster.upstream.node())?;
    ensure!(past == 0, "{past} bytes came from the upstream itself");
    Ok(seconds)
}

/// The first word of a program's output that begins with a number.
fn version(node: &Node, program: &str, words: &[&str]) -> Result<String> {
    let printed = node.run(program, words)?;
    let mut words = printed.split_whitespace().map(|word| word.trim_start_matches('v').trim_end_matches(','));
    let found = words.find(|word| word.starts_with(|first: char| first.is_ascii_digit()));
    found.map(str::to_owned).with_context(|| format!("no version of {program} in {printed}"))
}

fn tool(name: &str) -> Result<String> {
    Ok(tools::find().map_err(Skip)?.join(name).to_string_lossy().into_owned())
}

/// Nothing listens at the server: what containerd gets, it gets from the agent.
fn set_hosts(containerd: &Containerd) -> Result<()> {
    containerd.set_hosts(HOST, "http://127.0.0.1:9", &[&format!("http://{FRONT}")])
}

fn mirrors() -> [Mirror; 1] {
    [Mirror { registry: HOST.to_owned(), mirror: Some(format!("{FRONT}/{HOST}")) }]
}

fn made(client: impl Client + 'static, version: String) -> Made {
    let private = (HOST.to_owned(), ALICE);
    Made { client: Box::new(client), version, prefix: HOST.to_owned(), private }
}

/// It signs in at its mirror.
fn at_mirror(made: Made) -> Made {
    Made { private: (HOST.to_owned(), ALICE_AT_AGENT), ..made }
}

fn docker(node: &Arc<Node>) -> Result<Made> {
    let options = DockerOptions { mirror: Some(format!("http://{FRONT}")), ..Default::default() };
    let docker = Docker::start(node, &options)?;
    let private = (format!("localhost:5050/{HOST}"), ALICE_AT_AGENT);
    Ok(Made { prefix: "docker.io".to_owned(), private, ..made(docker, version(node, "dockerd", &["--version"])?) })
}

fn containerd(node: &Arc<Node>) -> Result<Made> {
    let containerd = Containerd::start(node)?;
    set_hosts(&containerd)?;
    Ok(made(containerd, version(node, "containerd", &["--version"])?))
}

fn containerd_by_cri(node: &Arc<Node>) -> Result<Made> {
    let tools = tools::find().map_err(Skip)?;
    let containerd = Containerd::start_with_cri(node)?;
    set_hosts(&containerd)?;
    Ok(made(Cri::new(containerd, tools), version(node, "containerd", &["--version"])?))
}

/// Every layer of more than a MiB comes by ranges side by side.
fn containerd_2(node: &Arc<Node>) -> Result<Made> {
    let containerd = Containerd::start_2(node, tools::find().map_err(Skip)?)?;
    set_hosts(&containerd)?;
    Ok(made(containerd, version(node, &tool("containerd")?, &["--version"])?))
}

fn containerd_2_by_cri(node: &Arc<Node>) -> Result<Made> {
    let tools = tools::find().map_err(Skip)?;
    let containerd = Containerd::start_2(node, tools)?;
    set_hosts(&containerd)?;
    Ok(made(Cri::new(containerd, tools), version(node, &tool("containerd")?, &["--version"])?))
}

fn podman(node: &Arc<Node>) -> Result<Made> {
    Ok(at_mirror(made(Podman::new(node, &mirrors())?, version(node, "podman", &["--version"])?)))
}

fn skopeo(node: &Arc<Node>) -> Result<Made> {
    Ok(at_mirror(made(Skopeo::new(node, &mirrors())?, version(node, "skopeo", &["--version"])?)))
}

fn buildah(node: &Arc<Node>) -> Result<Made> {
    Ok(at_mirror(made(Buildah::new(node, &mirrors())?, version(node, "buildah", &["--version"])?)))
}

fn crane(node: &Arc<Node>) -> Result<Made> {
    let crane = Crane::new(node, tools::find().map_err(Skip)?);
    let (prefix, private) = (format!("{FRONT}/{HOST}"), (format!("{FRONT}/{HOST}"), ALICE_AT_AGENT));
    Ok(Made { prefix, private, ..made(crane, version(node, &tool("crane")?, &["version"])?) })
}

/// Room for the image, and for copies of it at the upstream, the origin, the agent and two clients.
const FIVE_GIBIBYTES_NEED: u64 = 36 << 30;

fn five_gibibytes(bench: &Bench) -> Result<()> {
    let free = free_bytes()?;
    if free < FIVE_GIBIBYTES_NEED {
        bail!(Skip(format!("{} GiB free of the disk, {} are needed", free >> 30, FIVE_GIBIBYTES_NEED >> 30)));
    }
    let image = bench.image(&Recipe::Random { layers_mib: vec![5 << 10], seed: 11 })?;
    let pulled = five_gibibytes_through(bench, &image);
    fs::remove_dir_all(&image.dir)?;
    pulled
}

/// containerd by ranges side by side, where it can be had, through an agent that has nothing; then skopeo through the same.
fn five_gibibytes_through(bench: &Bench, image: &Image) -> Result<()> {
    let cluster = Cluster::start(bench, fast(), image, "library/large")?;
    let node = &cluster.agents[0].node;
    let (containerd, by_ranges) = match containerd_2(node) {
        Err(error) if error.is::<Skip>() => {
            bench.skip(1, "by ranges side by side", &error.to_string());
            (containerd(node)?, false)
        }
        made => (made?, true),
    };
    for made in [containerd, skopeo(node)?] {
        let started = Instant::now();
        let reference = format!("{HOST}/library/large:1");
        check_pulls(&[(made.client.as_ref(), &reference)], image)?;
        note(format!("{:.1} s by version {}", started.elapsed().as_secs_f64(), made.version));
    }
    let ranges = answered(node, "blob", "206")?;
    ensure!(!by_ranges || ranges >= 5 << 10, "{ranges} ranges of a MiB brought 5 GiB");
    cluster.check_fetched_once(image)
}
