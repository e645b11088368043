//! dockerd: `registry-mirrors` in daemon.json, which apply to docker.io alone. Images of other registries are named through
//! the agent, as in `localhost:5050/ghcr.io/org/app:1`. Text in, text out.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::Serialize as _;
use serde_json::ser::{PrettyFormatter, Serializer};
use serde_json::{Map, Value};

use super::mirror::Mirror;
use super::root::Root;
use super::state::{Node, Wanted};

/// dockerd's configuration.
pub(crate) const FILE: &str = "/etc/docker/daemon.json";
/// The registry that `registry-mirrors` are for.
pub(crate) const HUB: &str = "docker.io";
const KEY: &str = "registry-mirrors";
const SIGNS: [&str; 4] = ["/usr/bin/dockerd", "/usr/sbin/dockerd", "/usr/local/bin/dockerd", FILE];

/// Whether dockerd is on a node.
pub(crate) fn is_found(root: &Root) -> bool {
    root.first_of(&SIGNS).is_some()
}

/// What to do after a file of its changed: SIGHUP makes dockerd take a new list of mirrors, but it keeps the old one when
/// there is none (found with 20.10).
pub(super) fn after_change(path: &Path, to: Option<&str>) -> Option<&'static str> {
    let has_list = to.is_some_and(|text| mirrors(text).is_ok_and(|mirrors| !mirrors.is_empty()));
    (path == Path::new(FILE)).then_some(if has_list {
        "systemctl reload docker (or SIGHUP to dockerd): it takes the new registry-mirrors"
    } else {
        "systemctl restart docker: a reload does not take registry-mirrors away; until then it falls back when the agent is gone"
    })
}

/// Has the mirror asked first for docker.io.
///
/// # Errors
/// When daemon.json cannot be read or is not what dockerd would take.
pub(super) fn want(node: &Node, registries: &[String], mirror: &Mirror) -> Result<Wanted> {
    let mut wanted = Wanted::default();
    if registries.is_empty() || registries.iter().any(|registry| registry == HUB) {
        let base = node.before(Path::new(FILE))?;
        wanted.files.insert(FILE.into(), with_mirror(base.as_deref(), mirror).context(FILE)?);
    }
    let port = mirror.authority().rsplit(':').next().unwrap_or_default();
    let example = registries.iter().find(|registry| *registry != HUB).map_or("ghcr.io", String::as_str);
    wanted.notes.push(format!(
        "docker: registry-mirrors are for docker.io alone; name other images through the agent: docker pull localhost:{port}/{example}/org/app:1"
    ));
    Ok(wanted)
}

/// Puts the mirror first in a daemon.json; an empty text is an empty object.
///
/// # Errors
/// When it is not a JSON object, or its `registry-mirrors` are not a list.
pub(crate) fn with_mirror(base: Option<&str>, mirror: &Mirror) -> Result<String> {
    let base = base.filter(|text| !text.trim().is_empty()).unwrap_or("{}");
    let mut object = parse(base)?;
    let mirrors = object.entry(KEY).or_insert_with(|| Value::Array(Vec::new()));
    let Value::Array(mirrors) = mirrors else { bail!("`{KEY}` is refused: expected a list of URLs, as dockerd does") };
    if mirrors.first().and_then(Value::as_str).is_some_and(|first| mirror.is(first)) {
        return Ok(base.to_owned());
    }
    mirrors.retain(|other| !other.as_str().is_some_and(|other| mirror.is(other)));
    mirrors.insert(0, Value::String(mirror.to_string()));
    let indent = base.lines().skip(1).map(|line| &line[..line.len() - line.trim_start().len()]).find(|i| !i.is_empty());
    let mut out = Vec::new();
    let formatter = PrettyFormatter::with_indent(indent.unwrap_or("  ").as_bytes());
    object.serialize(&mut Serializer::with_formatter(&mut out, formatter)).context("JSON")?;
    Ok(String::from_utf8(out).context("JSON")? + "\n")
}

/// The mirrors named in a daemon.json.
///
/// # Errors
/// When it is not a JSON object.
pub(crate) fn mirrors(text: &str) -> Result<Vec<String>> {
    let object = if text.trim().is_empty() { Map::new() } else { parse(text)? };
    let mirrors = object.get(KEY).and_then(Value::as_array).into_iter().flatten();
    Ok(mirrors.filter_map(Value::as_str).map(str::to_owned).collect())
}

fn parse(text: &str) -> Result<Map<String, Value>> {
    serde_json::from_str(text).map_err(|error| anyhow::anyhow!("not a JSON object: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edited(base: &str) -> String {
        let mirror = "http://127.0.0.1:5050".parse().unwrap();
        let text = with_mirror(Some(base), &mirror).unwrap();
        assert_eq!(with_mirror(Some(&text), &mirror).unwrap(), text, "a second edit changes nothing");
        text
    }

    #[test]
    fn other_keys_keep_their_order_and_the_indentation_stays() {
        let base = "{\n    \"log-driver\": \"journald\",\n    \"exec-opts\": [\"native.cgroupdriver=systemd\"],\n    \"debug\": false\n}";
        let expected = "{\n    \"log-driver\": \"journald\",\n    \"exec-opts\": [\n        \"native.cgroupdriver=systemd\"\n    ],\n    \
                        \"debug\": false,\n    \"registry-mirrors\": [\n        \"http://127.0.0.1:5050\"\n    ]\n}\n";
        assert_eq!(edited(base), expected);
        assert_eq!(edited(""), "{\n  \"registry-mirrors\": [\n    \"http://127.0.0.1:5050\"\n  ]\n}\n");
    }

    #[test]
    fn the_mirror_goes_before_others_and_stands_there_once() {
        let text = edited("{\"registry-mirrors\": [\"https://a\", \"http://127.0.0.1:5050/\"]}");
        assert_eq!(mirrors(&text).unwrap(), ["http://127.0.0.1:5050", "https://a"]);
        let first = "{\"registry-mirrors\": [\"http://127.0.0.1:5050/\"]}";
        assert_eq!(edited(first), first);
    }

    #[test]
    fn what_dockerd_would_refuse_is_an_error() {
        let refused = |text| with_mirror(Some(text), &"http://a".parse().unwrap()).unwrap_err().to_string();
        assert!(refused("{\"debug\": tru}").contains("line 1"), "{}", refused("{\"debug\": tru}"));
        assert!(refused("{\"registry-mirrors\": \"https://a\"}").contains("a list of URLs"));
        assert!(refused("[]").contains("not a JSON object"));
    }
}
