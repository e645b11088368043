//! containerd's config.toml, as far as registries go: which directories hold hosts.toml files, and how to name one.
//!
//! Source of the rules: containerd `docs/cri/config.md` and `docs/hosts.md`. Version 3 keeps the registry settings in the plugin
//! `io.containerd.cri.v1.images`, version 2 in `io.containerd.grpc.v1.cri`, version 1 (no `version`) in `cri`; a table of
//! another version is not read. Files named by `imports` come after the file that names them, and override it.

use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use toml_edit::{DocumentMut, Item, Table, value};

/// Most files read: imports may import.
const FILES_MAX: usize = 100;

/// What all files together say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Config {
    /// The directories of hosts.toml files, in order; empty when `config_path` is unset or empty.
    pub(crate) config_path: Vec<PathBuf>,
    /// Whether the CRI plugin, which alone reads `config_path`, is disabled.
    pub(crate) cri_disabled: bool,
    /// Whether the deprecated `registry.mirrors` is in use.
    pub(crate) deprecated_mirrors: bool,
    /// A `config_path` under a plugin of another version, which is not read.
    pub(crate) misplaced: Option<String>,
    /// Whether compressed layers are dropped after they were unpacked.
    pub(crate) discard_unpacked_layers: bool,
}

/// Reads a config.toml and what it imports, through `read` and `list`; a file that is not there says nothing.
///
/// # Errors
/// When a file cannot be read or is not TOML.
pub(crate) fn read(
    file: &Path,
    read: &dyn Fn(&Path) -> Result<Option<String>>,
    list: &dyn Fn(&Path) -> Result<Vec<String>>,
) -> Result<Config> {
    let mut config = Config::default();
    let mut files = vec![(file.to_owned(), 1)];
    let mut done = Vec::new();
    while let Some((file, outer_version)) = files.pop() {
        if done.contains(&file) {
            continue;
        }
        ensure!(done.len() < FILES_MAX, "{} imports more than {FILES_MAX} files", done[0].display());
        let text = read(&file)?.unwrap_or_default();
        done.push(file.clone());
        let document = parse(&text).with_context(|| file.display().to_string())?;
        let version = version(&document).unwrap_or(outer_version);
        config.take(&document, version);
        // The last pushed is the first popped.
        let mut imports = Vec::new();
        for pattern in document.get("imports").and_then(Item::as_array).into_iter().flatten().filter_map(|i| i.as_str())
        {
            imports.extend(glob(&file, pattern, list)?.into_iter().map(|import| (import, version)));
        }
        files.extend(imports.into_iter().rev());
    }
    Ok(config)
}

/// Names `directory` as the `config_path`. An absent or empty file becomes one of version 2, which containerd 1.5 to 2.x read.
///
/// # Errors
/// When the text is not TOML, keeps plugins in a form that is not tables, or has `registry.mirrors`, which containerd refuses
/// beside `config_path`.
pub(crate) fn with_config_path(base: Option<&str>, directory: &Path) -> Result<String> {
    let base = base.filter(|text| !text.trim().is_empty()).unwrap_or("version = 2\n");
    let mut document = parse(base)?;
    let plugin = plugin(version(&document).unwrap_or(1));
    let mut table = document.as_table_mut();
    for name in ["plugins", plugin, "registry"] {
        let next = table.entry(name).or_insert_with(|| {
            let mut table = Table::new();
            table.set_implicit(true);
            Item::Table(table)
        });
        table = next.as_table_mut().with_context(|| format!("`{name}` is not a [table]"))?;
    }
    if table.contains_key("mirrors") {
        bail!("it has `registry.mirrors`, which is deprecated, and which containerd refuses beside `config_path`");
    }
    table["config_path"] = value(directory.to_string_lossy().into_owned());
    Ok(document.to_string())
}

/// What to add by hand.
pub(crate) fn snippet(base: Option<&str>, directory: &Path) -> String {
    let version = base.and_then(|text| parse(text).ok()).and_then(|document| version(&document));
    let plugin = plugin(version.unwrap_or(2));
    format!("[plugins.\"{plugin}\".registry]\n  config_path = \"{}\"", directory.display())
}

impl Config {
    fn take(&mut self, document: &DocumentMut, version: i64) {
        let disabled = document.get("disabled_plugins").and_then(Item::as_array);
        let disabled = disabled.into_iter().flatten().filter_map(|name| name.as_str());
        self.cri_disabled |= disabled.into_iter().any(|name| (1..=3).any(|version| name == plugin(version)));
        for other in 1..=3 {
            let plugin = plugin(other);
            let Some(table) = document.get("plugins").and_then(|plugins| plugins.get(plugin)) else { continue };
            let registry = table.get("registry");
            let path = registry.and_then(|registry| registry.get("config_path")).and_then(Item::as_str);
            if other != version.clamp(1, 3) {
                self.misplaced =
                    path.filter(|path| !path.is_empty()).map(|_| plugin.to_owned()).or(self.misplaced.take());
                continue;
            }
            if let Some(path) = path {
                self.config_path = path.split(':').filter(|path| !path.is_empty()).map(PathBuf::from).collect();
            }
            let mirrors = registry.and_then(|registry| registry.get("mirrors")).and_then(Item::as_table_like);
            self.deprecated_mirrors |= mirrors.is_some_and(|mirrors| !mirrors.is_empty());
            let containerd = table.get("containerd").unwrap_or(table);
            let discard = [table, containerd].map(|table| table.get("discard_unpacked_layers").and_then(Item::as_bool));
            self.discard_unpacked_layers = discard[0].or(discard[1]).unwrap_or(self.discard_unpacked_layers);
        }
    }
}

/// The plugin whose table holds the registry settings.
fn plugin(version: i64) -> &'static str {
    match version {
        ..=1 => "cri",
        2 => "io.containerd.grpc.v1.cri",
        3.. => "io.containerd.cri.v1.images",
    }
}

fn version(document: &DocumentMut) -> Option<i64> {
    document.get("version").and_then(Item::as_integer)
}

fn parse(text: &str) -> Result<DocumentMut> {
    text.parse::<DocumentMut>().map_err(|error| anyhow::anyhow!("not TOML: {}", error.to_string().trim_end()))
}

/// The files an import names: relative to the file that imports, with `*` in the last name only.
fn glob(importer: &Path, pattern: &str, list: &dyn Fn(&Path) -> Result<Vec<String>>) -> Result<Vec<PathBuf>> {
    let pattern = plain(&importer.parent().unwrap_or(Path::new("/")).join(pattern));
    let name = pattern.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let Some((start, end)) = name.split_once('*') else { return Ok(vec![pattern]) };
    let directory = pattern.parent().unwrap_or(Path::new("/"));
    let matches =
        |name: &String| name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end);
    Ok(list(directory)?.into_iter().filter(matches).map(|name| directory.join(name)).collect())
}

/// The path without `.` and `..`, as containerd compares them.
fn plain(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for component in path.components() {
        if component == Component::ParentDir {
            out.pop();
        } else {
            out.push(component);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const MAIN: &str = "/etc/containerd/config.toml";

    fn of(files: &[(&str, &str)]) -> Config {
        let files =
            files.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned())).collect::<BTreeMap<_, _>>();
        let list = |directory: &Path| {
            let inside = files.keys().filter(|path| path.parent() == Some(directory));
            Ok(inside.map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect())
        };
        read(Path::new(MAIN), &|path| Ok(files.get(path).cloned()), &list).unwrap()
    }

    fn paths(config: &Config) -> Vec<&str> {
        config.config_path.iter().map(|path| path.to_str().unwrap()).collect()
    }

    #[test]
    fn each_version_has_its_own_plugin() {
        for (version, plugin) in
            [("", "cri"), ("version = 2", "io.containerd.grpc.v1.cri"), ("version = 3", "io.containerd.cri.v1.images")]
        {
            let config = of(&[(MAIN, &format!("{version}\n[plugins.'{plugin}'.registry]\nconfig_path = '/a:/b'\n"))]);
            assert_eq!((paths(&config), &config.misplaced), (vec!["/a", "/b"], &None), "{version}");
        }
        let config = of(&[(MAIN, "version = 3\n[plugins.'io.containerd.grpc.v1.cri'.registry]\nconfig_path = '/a'\n")]);
        assert_eq!((paths(&config), config.misplaced.as_deref()), (vec![], Some("io.containerd.grpc.v1.cri")));
    }

    #[test]
    fn imports_override_the_file_that_names_them() {
        let registry = |path| format!("[plugins.'io.containerd.grpc.v1.cri'.registry]\nconfig_path = '{path}'\n");
        let main = format!("version = 2\nimports = ['conf.d/*.toml', '/opt/x.toml']\n{}", registry("/main"));
        let config = of(&[
            (MAIN, &main),
            ("/etc/containerd/conf.d/a.toml", &registry("/a")),
            ("/etc/containerd/conf.d/b.toml", "imports = ['../config.toml']\n"),
            ("/etc/containerd/conf.d/c.txt", &registry("/c")),
        ]);
        assert_eq!(paths(&config), ["/a"]);
        assert_eq!(paths(&of(&[(MAIN, &main)])), ["/main"]);
    }

    #[test]
    fn what_else_matters_is_seen() {
        let config = of(&[(
            MAIN,
            "version = 2\ndisabled_plugins = ['cri', 'io.containerd.grpc.v1.cri']\n[plugins.'io.containerd.grpc.v1.cri'.containerd]\n\
             discard_unpacked_layers = true\n[plugins.'io.containerd.grpc.v1.cri'.registry]\nconfig_path = ''\n\
             [plugins.'io.containerd.grpc.v1.cri'.registry.mirrors.'docker.io']\nendpoint = ['https://a']\n",
        )]);
        assert!(config.cri_disabled && config.deprecated_mirrors && config.discard_unpacked_layers);
        assert!(config.config_path.is_empty() && of(&[]) == Config::default());
        let three =
            of(&[(MAIN, "version = 3\n[plugins.'io.containerd.cri.v1.images']\ndiscard_unpacked_layers = true\n")]);
        assert!(three.discard_unpacked_layers && !three.cri_disabled);
    }

    #[test]
    fn a_config_path_is_set_and_all_else_stays() {
        let directory = Path::new("/etc/containerd/certs.d");
        let line = "config_path = \"/etc/containerd/certs.d\"\n";
        let set = |base: Option<&str>| with_config_path(base, directory).unwrap();
        assert_eq!(set(None), format!("version = 2\n\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n{line}"));
        let base = "version = 3 # new\n\n[plugins]\n  [plugins.'io.containerd.cri.v1.images']\n    snapshotter = 'overlayfs' # kept\n\n    \
                    [plugins.'io.containerd.cri.v1.images'.registry]\n      config_path = ''\n";
        let expected = base.replace("config_path = ''", "config_path = \"/etc/containerd/certs.d\"");
        assert_eq!(set(Some(base)), expected);
        for base in ["disabled_plugins = []\n", "version = 2\n[grpc]\naddress = 'x'\n", base] {
            let text = set(Some(base));
            assert_eq!(paths(&of(&[(MAIN, &text)])), ["/etc/containerd/certs.d"], "{text}");
            assert_eq!(set(Some(&text)), text);
        }
    }

    #[test]
    fn deprecated_mirrors_are_not_put_beside_a_config_path() {
        let base = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"a\"]\nendpoint = []\n";
        let error = with_config_path(Some(base), Path::new("/a")).unwrap_err();
        assert!(error.to_string().contains("registry.mirrors"), "{error}");
        assert!(with_config_path(Some("plugins = {}\n"), Path::new("/a")).is_err());
    }

    #[test]
    fn what_to_add_by_hand_fits_the_version() {
        let directory = Path::new("/etc/containerd/certs.d");
        assert!(
            snippet(Some("version = 3\n"), directory).contains("[plugins.\"io.containerd.cri.v1.images\".registry]")
        );
        assert!(snippet(None, directory).contains("[plugins.\"io.containerd.grpc.v1.cri\".registry]"));
    }
}
