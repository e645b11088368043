//! For any files that someone wrote: the mirror comes first, a second run changes nothing, and removing puts all back.

use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::containerd::hosts::{self, Standing};
use super::*;

const CERTS: &str = "/etc/containerd/certs.d";

fn put(root: &Path, path: &str, text: &str) {
    let path = root.join(path.trim_start_matches('/'));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// Every file and directory, as text.
fn snapshot(directory: &Path) -> Vec<String> {
    let mut out = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            out.extend(snapshot(&path));
        }
        out.push(format!("{}: {:?}", path.display(), fs::read(&path).ok()));
    }
    out.sort();
    out
}

/// One run of `shoal node configure`; the paths that changed.
fn configure(root: &Path, registries: &[&str], remove: bool) -> Vec<PathBuf> {
    let wish = WishArgs {
        root: root.to_owned(),
        registries: registries.iter().map(|name| (*name).to_owned()).collect(),
        mirror: "http://127.0.0.1:5050".parse().unwrap(),
        runtimes: Vec::new(),
        set_config_path: true,
    };
    let node = Node::open_to_change(Root::new(root).unwrap()).unwrap();
    let wanted = want(&node, &wish, remove).unwrap();
    let plan = node.plan(&wanted.files).unwrap();
    node.apply(&plan).unwrap();
    plan.changes.into_iter().map(|change| change.path).collect()
}

/// hosts.toml as people write them, and worse.
fn hosts_toml() -> impl Strategy<Value = String> {
    let line = proptest::sample::select(
        &[
            "# the office's cache\n",
            "\n",
            "[host.\"https://cache.example\"]\n  capabilities = [\"pull\"]\n",
            "[host.\"https://other.example\"] # slow\nskip_verify = true\n",
            "[host.\"https://cache.example\".header]\n  x-a = [\"b\"]\n",
            "[host.\"http://127.0.0.1:5050\"]\ncapabilities = [\"pull\"]\n",
            "[host]\n",
            "[",
        ][..],
    );
    let head = proptest::sample::select(
        &["", "server = \"https://a\" # b\n", "server = \"http://127.0.0.1:5050\"\n", "ca = \"x\"\r\n"][..],
    );
    (head, proptest::collection::vec(line, 0..5)).prop_map(|(head, lines)| head.to_owned() + &lines.concat())
}

fn daemon_json() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(
        &["", "{}", "{\"b\": 1,\t\"a\": 2.50}", "{\n \"registry-mirrors\": [\"https://a\"]}\n\n"][..],
    )
}

proptest! {
    #[test]
    fn whatever_was_there_the_mirror_comes_first_and_all_is_put_back(
        hub in hosts_toml(), other in hosts_toml(), daemon in daemon_json(), one in any::<bool>()
    ) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let files = [("docker.io", &hub), ("r.example:5000", &other)].map(|(name, text)| (format!("{CERTS}/{name}/hosts.toml"), text));
        files.iter().for_each(|(path, text)| put(root, path, text));
        put(root, "/etc/containerd/config.toml", "version = 3\n");
        put(root, "/etc/docker/daemon.json", daemon);
        let before = snapshot(root);
        let registries: &[&str] = if one { &["docker.io"] } else { &[] };
        configure(root, registries, false);
        let mirror = "http://127.0.0.1:5050".parse().unwrap();
        for (path, text) in files.iter().take(if one { 1 } else { 2 }) {
            let now = fs::read_to_string(root.join(&path[1..])).unwrap();
            match hosts::standing(text, &mirror) {
                Ok(_) => prop_assert_eq!(hosts::standing(&now, &mirror), Ok(Standing::First), "{}", now),
                Err(_) if text.trim().is_empty() => {}
                Err(_) => prop_assert_eq!(&now, *text, "what nobody understands is left alone"),
            }
        }
        prop_assert_eq!(configure(root, registries, false), Vec::<PathBuf>::new(), "a second run changes nothing");
        configure(root, &[], false);
        configure(root, &[], true);
        prop_assert_eq!(snapshot(root), before);
    }
}
