//! CRI-O, podman, buildah and skopeo: one drop-in for the library they share, which has no word for "every registry".
//!
//! A `[[registry]]` of a drop-in replaces one of the same prefix in registries.conf and in drop-ins earlier by name
//! (containers-registries.conf.d(5)), so what those say of the registry is repeated in ours, behind the mirror.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, TableLike, value};

use super::mirror::Mirror;
use super::root::Root;
use super::state::{Node, Wanted};

/// The drop-in.
pub(crate) const FILE: &str = "/etc/containers/registries.conf.d/50-shoal.conf";
const DIRECTORY: &str = "/etc/containers/registries.conf.d";
const MAIN: &str = "/etc/containers/registries.conf";
const HEADER: &str = "# Written by `shoal node configure`; `shoal node configure --remove` takes it away.\n";

/// The registries that have a mirror when none is named.
pub(crate) const REGISTRIES: [&str; 7] =
    ["docker.io", "quay.io", "ghcr.io", "registry.k8s.io", "gcr.io", "public.ecr.aws", "mcr.microsoft.com"];

/// Whether CRI-O is on a node.
pub(crate) fn has_crio(root: &Root) -> bool {
    root.first_of(&["/usr/bin/crio", "/usr/local/bin/crio", "/etc/crio"]).is_some()
}

/// Whether podman is on a node.
pub(crate) fn has_podman(root: &Root) -> bool {
    root.first_of(&["/usr/bin/podman", "/usr/local/bin/podman"]).is_some()
}

/// What to do after one of its files changed.
pub(super) fn after_change(path: &Path) -> Option<&'static str> {
    (path == Path::new(FILE)).then_some("systemctl reload crio, where CRI-O runs; podman reads it at its next pull")
}

/// A `[[registry]]` that a file has.
struct Found {
    file: PathBuf,
    prefix: String,
    table: Box<dyn TableLike>,
}

/// Has the mirror asked first for `registries`, or for [`REGISTRIES`] when none is named.
///
/// # Errors
/// When a file that the library reads cannot be read or is not TOML.
pub(super) fn want(node: &Node, registries: &[String], mirror: &Mirror) -> Result<Wanted> {
    let found = found(&|path| node.before(path), &|path| node.list_before(path))?;
    let names = if registries.is_empty() { REGISTRIES.map(str::to_owned).to_vec() } else { registries.to_vec() };
    let mut wanted = Wanted::default();
    let mut tables = ArrayOfTables::new();
    for name in names {
        let theirs = found.iter().filter(|found| found.prefix == name).collect::<Vec<_>>();
        let (later, earlier): (Vec<_>, Vec<_>) = theirs.into_iter().partition(|found| found.file > Path::new(FILE));
        if let Some(Found { file, .. }) = later.last() {
            let file = file.display();
            wanted.todo.push(format!(
                "{file} comes after {FILE} and replaces what it says of {name}: give it a name that sorts before"
            ));
        }
        tables.push(registry(&name, earlier.last().map(|found| &*found.table), mirror));
    }
    let mut document = DocumentMut::new();
    document.insert("registry", Item::ArrayOfTables(tables));
    wanted.files.insert(FILE.into(), format!("{HEADER}\n{document}"));
    Ok(wanted)
}

/// The mirrors asked first, by registry, as the files say now.
///
/// # Errors
/// As [`want`].
pub(crate) fn first_mirrors(root: &Root) -> Result<Vec<(String, Option<String>)>> {
    let found = found(&|path| root.read(path), &|path| root.list(path))?;
    let first = |table: &dyn TableLike| mirrors(table).first()?.get("location")?.as_str().map(str::to_owned);
    Ok(found.into_iter().map(|found| (found.prefix, first(&*found.table))).collect())
}

/// All `[[registry]]` tables, in the order in which later ones replace earlier ones.
fn found(
    read: &dyn Fn(&Path) -> Result<Option<String>>,
    list: &dyn Fn(&Path) -> Result<Vec<String>>,
) -> Result<Vec<Found>> {
    let drop_ins = list(Path::new(DIRECTORY))?.into_iter().filter(|name| name.ends_with(".conf"));
    let files = [PathBuf::from(MAIN)].into_iter().chain(drop_ins.map(|name| Path::new(DIRECTORY).join(name)));
    let mut out = Vec::new();
    for file in files {
        let text = read(&file)?.unwrap_or_default();
        let document = text.parse::<DocumentMut>();
        let document = document.map_err(|error| anyhow::anyhow!("not TOML: {}", error.to_string().trim_end()));
        let document = document.with_context(|| file.display().to_string())?;
        for table in tables(document.get("registry")) {
            let name = table.get("prefix").or_else(|| table.get("location")).and_then(Item::as_str);
            let Some(prefix) = name.map(str::to_owned) else { continue };
            out.push(Found { file: file.clone(), prefix, table });
        }
    }
    Ok(out)
}

/// The tables of a list, however it is written.
fn tables(item: Option<&Item>) -> Vec<Box<dyn TableLike>> {
    match item {
        Some(Item::ArrayOfTables(tables)) => {
            tables.iter().map(|table| Box::new(table.clone()) as Box<dyn TableLike>).collect()
        }
        Some(Item::Value(list)) => {
            let tables = list.as_array().into_iter().flatten().filter_map(|table| table.as_inline_table());
            tables.map(|table| Box::new(table.clone()) as Box<dyn TableLike>).collect()
        }
        Some(Item::Table(_) | Item::None) | None => Vec::new(),
    }
}

fn mirrors(table: &dyn TableLike) -> Vec<Box<dyn TableLike>> {
    tables(table.get("mirror"))
}

/// The table of one registry: the mirror, then all that is said of it already.
fn registry(name: &str, theirs: Option<&dyn TableLike>, mirror: &Mirror) -> Table {
    let mut table = Table::new();
    table.insert("prefix", value(name));
    table.insert("location", value(name));
    let ours = format!("{}/{name}", mirror.authority());
    let mut first = Table::new();
    first.insert("location", value(&ours));
    if mirror.is_plain() {
        first.insert("insecure", value(true));
    }
    let mut list = ArrayOfTables::new();
    list.push(first);
    if let Some(theirs) = theirs {
        copy(theirs, &mut table);
        let others =
            mirrors(theirs).into_iter().filter(|other| other.get("location").and_then(Item::as_str) != Some(&ours));
        for other in others {
            let mut table = Table::new();
            copy(&*other, &mut table);
            list.push(table);
        }
    }
    table.insert("mirror", Item::ArrayOfTables(list));
    table
}

/// Copies plain values, without the comments and blanks around them.
fn copy(from: &dyn TableLike, to: &mut Table) {
    for (key, item) in from.iter().filter(|(key, _)| !matches!(*key, "prefix" | "mirror")) {
        if let Item::Value(plain) = item {
            let mut plain = plain.clone();
            plain.decor_mut().clear();
            to.insert(key, Item::Value(plain));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(files: &[(&str, &str)], registries: &[&str]) -> Wanted {
        let directory = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = directory.path().join(path.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let node = Node::open(Root::new(directory.path()).unwrap()).unwrap();
        let registries = registries.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        want(&node, &registries, &"http://127.0.0.1:5050".parse().unwrap()).unwrap()
    }

    #[test]
    fn each_registry_has_the_mirror_with_the_registry_in_its_path() {
        let wanted = wanted(&[], &["ghcr.io"]);
        let table = "[[registry]]\nprefix = \"ghcr.io\"\nlocation = \"ghcr.io\"\n\n[[registry.mirror]]\n\
                     location = \"127.0.0.1:5050/ghcr.io\"\ninsecure = true\n";
        assert_eq!(wanted.files[Path::new(FILE)], format!("{HEADER}\n{table}"));
    }

    #[test]
    fn all_known_registries_have_it_when_none_is_named() {
        let text = wanted(&[], &[]).files.into_values().next().unwrap();
        for name in REGISTRIES {
            assert!(text.contains(&format!("location = \"127.0.0.1:5050/{name}\"")), "{name} in\n{text}");
        }
    }

    #[test]
    fn what_earlier_files_say_of_a_registry_is_kept() {
        let main = "unqualified-search-registries = ['docker.io']\n[[registry]]\nlocation = 'docker.io' # Hub\nblocked = true\n";
        let drop_in = "[[registry]]\nprefix = 'docker.io'\nlocation = 'hub.example' # ours\ninsecure = true\n\
                       mirror = [{ location = 'cache.example', pull-from-mirror = 'digest-only' }]\n";
        let wanted = wanted(&[(MAIN, main), ("/etc/containers/registries.conf.d/10-a.conf", drop_in)], &["docker.io"]);
        let text = &wanted.files[Path::new(FILE)];
        let table = "[[registry]]\nprefix = \"docker.io\"\nlocation = 'hub.example'\ninsecure = true\n\n[[registry.mirror]]\n\
                     location = \"127.0.0.1:5050/docker.io\"\ninsecure = true\n\n[[registry.mirror]]\nlocation = 'cache.example'\n\
                     pull-from-mirror = 'digest-only'\n";
        assert_eq!(*text, format!("{HEADER}\n{table}"));
        assert!(wanted.todo.is_empty());
    }

    #[test]
    fn a_later_file_that_replaces_ours_is_told() {
        let wanted =
            wanted(&[("/etc/containers/registries.conf.d/99-z.conf", "[[registry]]\nprefix = 'quay.io'\n")], &[]);
        assert!(wanted.todo[0].contains("99-z.conf") && wanted.todo[0].contains("quay.io"), "{:?}", wanted.todo);
    }
}
