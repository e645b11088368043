//! What is written is put back: for any files there were, and after a crash at any point.

use std::os::unix::fs::symlink;

use proptest::prelude::*;

use super::*;

/// Every directory, file (with mode and text) and link under a directory.
fn snapshot(directory: &Path) -> BTreeMap<PathBuf, (u32, Option<String>)> {
    let mut out = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let metadata = path.symlink_metadata().unwrap();
        let text = match (metadata.is_dir(), metadata.is_symlink()) {
            (true, _) => None,
            (false, true) => Some(fs::read_link(&path).unwrap().to_string_lossy().into_owned()),
            (false, false) => Some(fs::read_to_string(&path).unwrap()),
        };
        if metadata.is_dir() {
            out.extend(snapshot(&path));
        }
        out.insert(path, (metadata.mode(), text));
    }
    out
}

fn put(root: &Path, path: &str, text: &str) {
    let path = root.join(path.trim_start_matches('/'));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn open(root: &Path) -> Node {
    Node::open_to_change(Root::new(root).unwrap()).unwrap()
}

fn wish(files: &[(&str, &str)]) -> BTreeMap<PathBuf, String> {
    files.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned())).collect()
}

/// One run; returns what it changed, and what it kept because someone edited it.
fn run(root: &Path, files: &[(&str, &str)]) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let node = open(root);
    let plan = node.plan(&wish(files)).unwrap();
    node.apply(&plan).unwrap();
    (plan.changes.into_iter().map(|change| change.path).collect(), plan.edited)
}

#[test]
fn what_was_there_is_put_back_with_its_mode_and_directories_go_again() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    put(root, "/etc/docker/daemon.json", "{}");
    fs::set_permissions(root.join("etc/docker/daemon.json"), Permissions::from_mode(0o640)).unwrap();
    let before = snapshot(root);
    let files = [("/etc/docker/daemon.json", "{\"a\": 1}"), ("/etc/containerd/certs.d/_default/hosts.toml", "x")];
    assert_eq!(run(root, &files).0.len(), 2);
    let configured = snapshot(root);
    assert_eq!(configured[&root.join("etc/docker/daemon.json")], (0o100_640, Some("{\"a\": 1}".to_owned())));
    assert_eq!(configured[&root.join("var/lib/shoal/node/state.json")].0, 0o100_600, "originals may hold secrets");
    assert_eq!(run(root, &files), (vec![], vec![]), "a second run changes nothing");
    assert_eq!(snapshot(root), configured);
    assert_eq!(run(root, &[]).0.len(), 2);
    assert_eq!(snapshot(root), before);
    assert_eq!(run(root, &[]).0.len(), 0);
    assert_eq!(snapshot(root), before, "removing what is not there leaves nothing behind");
}

#[test]
fn a_file_behind_a_link_is_written_where_it_is() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    put(root, "/opt/daemon.json", "old");
    fs::create_dir_all(root.join("etc/docker")).unwrap();
    symlink("/opt/daemon.json", root.join("etc/docker/daemon.json")).unwrap();
    let before = snapshot(root);
    run(root, &[("/etc/docker/daemon.json", "new")]);
    assert_eq!(fs::read_to_string(root.join("opt/daemon.json")).unwrap(), "new");
    run(root, &[]);
    assert_eq!(snapshot(root), before);
}

#[test]
fn what_a_later_run_does_not_want_is_put_back() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    put(root, "/a/one", "1");
    let before = snapshot(root);
    run(root, &[("/a/one", "i"), ("/b/two", "ii")]);
    run(root, &[("/a/one", "I")]);
    assert_eq!(fs::read_to_string(root.join("a/one")).unwrap(), "I");
    assert!(!root.join("b").exists());
    run(root, &[]);
    assert_eq!(snapshot(root), before);
}

#[test]
fn an_edited_file_is_left_to_its_editor_and_its_original_is_kept() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    put(root, "/a", "original");
    run(root, &[("/a", "ours"), ("/b", "ours")]);
    put(root, "/a", "ours, edited");
    let (changed, edited) = run(root, &[]);
    assert_eq!((changed, edited), (vec![PathBuf::from("/b")], vec![PathBuf::from("/a")]));
    assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "ours, edited");
    assert!(fs::read_to_string(root.join("var/lib/shoal/node/state.json")).unwrap().contains("\"original\""));
    put(root, "/a", "original");
    assert_eq!(run(root, &[]), (vec![], vec![]), "put back by hand, it is forgotten");
    assert!(!root.join("var").exists());
}

#[test]
fn an_edit_becomes_what_was_there_when_it_is_written_over() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    run(root, &[("/a", "ours")]);
    put(root, "/a", "theirs");
    assert_eq!(open(root).before(Path::new("/a")).unwrap().as_deref(), Some("theirs"));
    run(root, &[("/a", "theirs and ours")]);
    run(root, &[]);
    assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "theirs");
}

#[test]
fn directories_we_made_stay_while_others_use_them() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    run(root, &[("/certs.d/_default/hosts.toml", "x"), ("/certs.d/ghcr.io/hosts.toml", "x")]);
    put(root, "/certs.d/quay.io/hosts.toml", "theirs");
    put(root, "/certs.d/ghcr.io/ca.crt", "theirs");
    assert_eq!(open(root).list_before(Path::new("/certs.d")).unwrap(), ["ghcr.io", "quay.io"]);
    assert_eq!(open(root).list_before(Path::new("/certs.d/ghcr.io")).unwrap(), ["ca.crt"]);
    run(root, &[]);
    let left = snapshot(root).into_iter().filter(|(_, (_, text))| text.is_some()).map(|(path, _)| path);
    assert_eq!(
        left.collect::<Vec<_>>(),
        ["certs.d/ghcr.io/ca.crt", "certs.d/quay.io/hosts.toml"].map(|p| root.join(p))
    );
}

#[test]
fn a_state_that_is_not_ours_is_refused() {
    let root = tempfile::tempdir().unwrap();
    put(root.path(), FILE, "{\"version\": 2, \"files\": {}, \"directories\": []}");
    let error = Node::open(Root::new(root.path()).unwrap()).unwrap_err();
    assert!(error.to_string().contains("version 2"), "{error}");
}

const PATHS: [&str; 4] = ["/etc/a.toml", "/etc/certs.d/x/hosts.toml", "/etc/certs.d/y/hosts.toml", "/b.json"];

fn texts() -> impl Strategy<Value = BTreeMap<&'static str, String>> {
    proptest::collection::btree_map(proptest::sample::select(&PATHS[..]), "[ab\n]{0,3}", 0..4)
}

fn pairs<'a>(texts: &'a BTreeMap<&'static str, String>) -> Vec<(&'static str, &'a str)> {
    texts.iter().map(|(path, text)| (*path, text.as_str())).collect()
}

proptest! {
    /// Whatever was there, whatever is written, and wherever a run is killed: the next run finishes, and removing puts all back.
    #[test]
    fn a_killed_run_is_finished_by_the_next(there in texts(), first in texts(), second in texts(), crash in 0_usize..8) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        there.iter().for_each(|(path, text)| put(root, path, text));
        let before = snapshot(root);
        run(root, &pairs(&first));
        let node = open(root);
        let plan = node.plan(&wish(&pairs(&second))).unwrap();
        // Killed after the state said what would be written, and some of it was.
        node.save(Path::new(FILE), &plan.pending).unwrap();
        for change in plan.changes.iter().take(crash) {
            node.change(change).unwrap();
        }
        if let Some(next) = plan.changes.get(crash) {
            let torn = temporary(&node.root.real(&next.path));
            fs::create_dir_all(torn.parent().unwrap()).unwrap();
            fs::write(torn, "half").unwrap();
        }
        drop(node);
        if crash % 2 == 0 {
            run(root, &pairs(&second));
            for (path, text) in &second {
                prop_assert_eq!(&fs::read_to_string(root.join(path.trim_start_matches('/'))).unwrap(), text);
            }
        }
        run(root, &[]);
        prop_assert_eq!(snapshot(root), before);
    }
}
