//! `shoal node configure` and `shoal doctor` as users run them: the real program against the root of a made-up node.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tempfile::TempDir;

const HOSTS: &str = "etc/containerd/certs.d/docker.io/hosts.toml";
const DAEMON: &str = "{\n    \"log-driver\": \"journald\"\n}";
const OUR_HOST: &str =
    "[host.\"http://127.0.0.1:5050\"]\ncapabilities = [\"pull\", \"resolve\"]\ndial_timeout = \"2s\"\n";

/// A node with containerd, dockerd and podman, and files that someone wrote.
fn node() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in [
        ("usr/bin/containerd", ""),
        ("usr/bin/podman", ""),
        (
            "etc/containerd/config.toml",
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n",
        ),
        (
            HOSTS,
            "# ours\nserver = \"https://registry-1.docker.io\"\n\n[host.\"https://cache.example\"]\n  ca = \"a.crt\"\n",
        ),
        ("etc/containerd/certs.d/private.example/ca.crt", "certificate"),
        ("etc/docker/daemon.json", DAEMON),
        ("etc/containers/registries.conf", "unqualified-search-registries = [\"docker.io\"]\n"),
    ] {
        put(root.path(), path, text);
    }
    root
}

fn put(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// Every file and directory under one.
fn snapshot(root: &Path) -> BTreeMap<PathBuf, Option<String>> {
    let mut out = BTreeMap::new();
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            out.extend(snapshot(&path));
        }
        let text = path.is_file().then(|| fs::read_to_string(&path).unwrap());
        out.insert(path, text);
    }
    out
}

fn shoal(root: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_shoal")).args(words).arg("--root").arg(root).output().unwrap()
}

fn configure(root: &Path, words: &[&str]) -> String {
    let output = shoal(root, &[&["node", "configure"], words].concat());
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn refusal(root: &Path, words: &[&str]) -> String {
    let output = shoal(root, &[&["node", "configure"], words].concat());
    assert!(!output.status.success(), "{words:?} was taken");
    String::from_utf8(output.stderr).unwrap()
}

fn read(root: &Path, path: &str) -> String {
    fs::read_to_string(root.join(path)).unwrap()
}

#[test]
fn all_runtimes_are_configured_and_put_back_byte_for_byte() {
    let node = node();
    let root = node.path();
    let before = snapshot(root);
    let said = configure(root, &[]);
    assert!(
        said.contains("wrote /etc/docker/daemon.json") && said.contains("to do: systemctl reload docker"),
        "{said}"
    );

    let hosts = read(root, HOSTS);
    let (head, tail) = hosts.split_once(OUR_HOST).unwrap();
    assert_eq!(head, "# ours\nserver = \"https://registry-1.docker.io\"\n\n");
    assert_eq!(tail, "\n[host.\"https://cache.example\"]\n  ca = \"a.crt\"\n");
    assert!(read(root, "etc/containerd/certs.d/_default/hosts.toml").ends_with(OUR_HOST));
    assert!(read(root, "etc/containerd/certs.d/private.example/hosts.toml").contains("ca = [\"ca.crt\"]"));
    assert!(
        read(root, "etc/docker/daemon.json").contains("    \"registry-mirrors\": [\n        \"http://127.0.0.1:5050\"")
    );
    let drop_in = read(root, "etc/containers/registries.conf.d/50-shoal.conf");
    assert!(drop_in.contains("location = \"127.0.0.1:5050/quay.io\"\ninsecure = true"), "{drop_in}");

    let configured = snapshot(root);
    assert!(configure(root, &[]).contains("nothing to change"));
    assert_eq!(snapshot(root), configured, "a second run changes nothing");
    let said = configure(root, &["--remove"]);
    assert!(said.contains("restored /etc/docker/daemon.json") && said.contains("removed /etc/containers"), "{said}");
    assert_eq!(snapshot(root), before);
}

#[test]
fn a_dry_run_shows_the_change_and_changes_nothing() {
    let node = node();
    let before = snapshot(node.path());
    let said = configure(node.path(), &["--dry-run"]);
    for line in
        ["+++ /etc/containerd/certs.d/docker.io/hosts.toml", "+[host.\"http://127.0.0.1:5050\"]", "--- /dev/null"]
    {
        assert!(said.lines().any(|said| said == line), "{line} in\n{said}");
    }
    assert_eq!(snapshot(node.path()), before);
}

#[test]
fn registries_and_runtimes_can_be_chosen() {
    let node = node();
    let root = node.path();
    configure(root, &[]);
    configure(
        root,
        &[
            "--registry",
            "ghcr.io",
            "--registry",
            "r.local:5000",
            "--runtime",
            "containerd",
            "--mirror",
            "http://10.0.0.9:80",
        ],
    );
    assert!(!root.join("etc/containerd/certs.d/_default").exists());
    assert_eq!(read(root, "etc/docker/daemon.json"), DAEMON);
    for registry in ["ghcr.io", "r.local:5000"] {
        let hosts = read(root, &format!("etc/containerd/certs.d/{registry}/hosts.toml"));
        assert!(hosts.contains("[host.\"http://10.0.0.9:80\"]") && !hosts.contains("server"), "{hosts}");
    }
}

#[test]
fn files_edited_since_are_kept_and_told() {
    let node = node();
    let root = node.path();
    configure(root, &[]);
    put(root, "etc/docker/daemon.json", "{\"debug\": true}");
    let said = configure(root, &["--remove"]);
    assert!(said.contains("kept /etc/docker/daemon.json: it was edited since"), "{said}");
    assert_eq!(read(root, "etc/docker/daemon.json"), "{\"debug\": true}");
    assert!(!root.join("etc/containers/registries.conf.d").exists());
}

#[test]
fn an_unset_config_path_is_told_and_set_when_asked() {
    let node = node();
    let root = node.path();
    let config = "version = 3 # kept\n";
    put(root, "etc/containerd/config.toml", config);
    let said = configure(root, &[]);
    assert!(said.contains("[plugins.\"io.containerd.cri.v1.images\".registry]"), "{said}");
    assert_eq!(read(root, "etc/containerd/config.toml"), config);
    let said = configure(root, &["--set-config-path"]);
    assert!(said.contains("to do: systemctl restart containerd"), "{said}");
    assert!(read(root, "etc/containerd/config.toml").contains("config_path = \"/etc/containerd/certs.d\""));
    configure(root, &["--remove"]);
    assert_eq!(read(root, "etc/containerd/config.toml"), config);
}

#[test]
fn distributions_have_paths_of_their_own() {
    for (sign, hosts) in [
        ("var/lib/rancher/k3s/agent/x", "var/lib/rancher/k3s/agent/etc/containerd/certs.d/_default/hosts.toml"),
        ("etc/rancher/rke2/x", "var/lib/rancher/rke2/agent/etc/containerd/certs.d/_default/hosts.toml"),
        ("var/snap/microk8s/current/args/x", "var/snap/microk8s/current/args/certs.d/_default/hosts.toml"),
        ("etc/k0s/containerd.toml", "etc/k0s/certs.d/_default/hosts.toml"),
    ] {
        let root = tempfile::tempdir().unwrap();
        put(root.path(), sign, "");
        let before = snapshot(root.path());
        configure(root.path(), &[]);
        assert!(read(root.path(), hosts).ends_with(OUR_HOST), "{sign}");
        configure(root.path(), &["--remove"]);
        assert_eq!(snapshot(root.path()), before, "{sign}");
    }
}

#[test]
fn refusals_name_what_is_wrong_and_leave_no_trace() {
    let empty = tempfile::tempdir().unwrap();
    assert!(refusal(empty.path(), &[]).contains("no containerd, docker, crio or podman is found"));
    let node = node();
    put(node.path(), "etc/docker/daemon.json", "{");
    let before = snapshot(node.path());
    assert!(refusal(node.path(), &[]).contains("/etc/docker/daemon.json: not a JSON object"));
    assert!(refusal(node.path(), &["--mirror", "127.0.0.1:5050"]).contains("expected http://host:port"));
    assert!(refusal(node.path(), &["--registry", "https://ghcr.io"]).contains("such as ghcr.io"));
    assert!(refusal(node.path(), &["--runtime", "rkt"]).contains("containerd, docker, crio, podman"));
    assert!(refusal(node.path(), &["--remove", "--registry", "a.b"]).contains("cannot be used with"));
    assert_eq!(snapshot(node.path()), before);
}

#[test]
fn where_no_files_are_written_it_is_said_what_to_write() {
    let talos = tempfile::tempdir().unwrap();
    put(talos.path(), "etc/os-release", "ID=talos\n");
    let before = snapshot(talos.path());
    assert!(configure(talos.path(), &[]).contains("to do: this is Talos"));
    assert_eq!(snapshot(talos.path()), before);
}

#[test]
fn the_store_is_made_for_its_user_and_purged_with_all_else() {
    let node = node();
    let before = snapshot(node.path());
    let user = rustix::process::getuid().as_raw().to_string();
    configure(node.path(), &["--own-store", &user]);
    put(node.path(), "var/lib/shoal/agent/blobs/x", "layer");
    configure(node.path(), &["--remove"]);
    assert_eq!(read(node.path(), "var/lib/shoal/agent/blobs/x"), "layer");
    configure(node.path(), &["--remove", "--purge"]);
    // The directory above it is the system's.
    fs::remove_dir(node.path().join("var/lib")).unwrap();
    fs::remove_dir(node.path().join("var")).unwrap();
    assert_eq!(snapshot(node.path()), before);
}

/// Answers as an agent does, until it is dropped.
struct Agent {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    fn start(address: &str) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let (address, ended) = (listener.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
        let told = ended.clone();
        let serve = move || {
            for stream in listener.incoming().take_while(|_| !told.load(Ordering::SeqCst)) {
                let mut stream = stream.unwrap();
                let _any = stream.read(&mut [0; 4096]);
                let _gone = stream.write_all(b"HTTP/1.1 200 OK\r\nserver: shoal/0\r\ncontent-length: 0\r\n\r\n");
            }
        };
        Self { address, ended, thread: Some(std::thread::spawn(serve)) }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes it.
        let _gone = TcpStream::connect(self.address);
        self.thread.take().map(JoinHandle::join).unwrap().unwrap();
    }
}

fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "never came true: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn the_mirror_is_told_while_the_agent_answers_and_taken_back_while_it_does_not_and_at_the_end() {
    let node = node();
    let before = snapshot(node.path());
    let agent = Agent::start("127.0.0.1:0");
    let address = agent.address.to_string();
    let mut watch = Command::new(env!("CARGO_BIN_EXE_shoal"));
    watch.args(["node", "watch", "--mirror", &format!("http://{address}"), "--root"]).arg(node.path());
    let mut watch = watch.stdout(Stdio::null()).spawn().unwrap();
    let is_told = || read(node.path(), HOSTS).contains(&address);
    eventually("told", is_told);
    drop(agent);
    eventually("taken back", || snapshot(node.path()) == before);
    let _agent = Agent::start(&address);
    eventually("told again", is_told);
    rustix::process::kill_process(rustix::process::Pid::from_child(&watch), rustix::process::Signal::TERM).unwrap();
    assert!(watch.wait().unwrap().success());
    assert_eq!(snapshot(node.path()), before);
}

/// The checks by name: status and why.
fn doctor(root: &Path) -> BTreeMap<String, (String, String)> {
    // Ports where nothing answers.
    let output = shoal(root, &["doctor", "--json", "--mirror", "http://127.0.0.1:9", "--admin", "http://127.0.0.1:9"]);
    assert_eq!(output.status.code(), Some(1), "the agent is not there");
    let checks: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    let text = |check: &serde_json::Value, key: &str| check[key].as_str().unwrap().to_owned();
    let named = |check: &serde_json::Value| {
        assert!(check["status"] == "ok" || !check["mend"].as_str().unwrap().is_empty(), "{check}");
        (text(check, "name"), (text(check, "status"), text(check, "why")))
    };
    checks.iter().map(named).collect()
}

#[test]
fn the_doctor_says_what_is_wrong() {
    let node = node();
    let root = node.path();
    let checks = doctor(root);
    assert_eq!(checks["runtimes"].0, "fail");
    assert_eq!(checks["containerd hosts.toml"].1, "the mirror is in none");
    assert_eq!(checks["agent's registry front"].0, "fail");

    configure(root, &["--mirror", "http://127.0.0.1:9"]);
    let checks = doctor(root);
    assert_eq!(checks["runtimes"], ("ok".to_owned(), "3 of 3 ask the agent first".to_owned()));
    assert_eq!(checks["containerd hosts.toml"].0, "ok");

    put(root, "etc/containerd/certs.d/ghcr.io/hosts.toml", "server = \"http://127.0.0.1:9\"\n");
    put(root, "etc/containerd/certs.d/quay.io/hosts.toml", "[host");
    put(
        root,
        "etc/containerd/config.toml",
        "version = 3\n[plugins.'io.containerd.grpc.v1.cri'.registry]\nconfig_path = '/a'\n",
    );
    put(root, "etc/docker/daemon.json", "{");
    let checks = doctor(root);
    assert!(
        checks["containerd /etc/containerd/certs.d/ghcr.io/hosts.toml"]
            .1
            .contains("pulls fail while the agent is down")
    );
    assert!(checks["containerd /etc/containerd/certs.d/quay.io/hosts.toml"].1.contains("not TOML"));
    assert_eq!(checks["containerd config_path"].0, "fail");
    assert!(checks["containerd config_path"].1.contains("io.containerd.grpc.v1.cri"));
    assert!(checks["docker daemon.json"].1.contains("dockerd will not start again"));
}
