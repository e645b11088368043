//! hosts.toml of one registry: puts the mirror first in it, and says where the mirror stands. Text in, text out.
//!
//! As containerd reads it (`core/remotes/docker/config/hosts.go`, 1.5 to 2.3): hosts are tried in the order of the file, then
//! `server`, and without `server` the registry itself. Keys it does not know it ignores, so `dial_timeout`, which
//! containerd 2.1 brought, does no harm to older ones. Before 2.0 a file without any `host` table was refused as a whole.

use toml_edit::{Array, DocumentMut, Item, Table, value};

use crate::node::mirror::Mirror;

/// How long containerd may wait for the agent to accept: enough for one lost SYN, and not the 30 s of its default.
const DIAL_TIMEOUT: &str = "2s";
const HEADER: &str = "# Written by `shoal node configure`; `shoal node configure --remove` takes it away.\n";

/// Says why a hosts.toml is not touched. The one who wrote it must mend it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// It is not TOML: containerd goes by the certificates beside it alone.
    Syntax(String),
    /// Its hosts are not written as `[host."…"]` tables, whose order counts.
    Shape,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Syntax(message) => write!(f, "it is not TOML, and containerd ignores it: {message}"),
            Self::Shape => f.write_str("its hosts are not written as [host.\"https://…\"] tables"),
        }
    }
}

/// Where a mirror stands in a hosts.toml.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It is asked first.
    First,
    /// It is not in it.
    Absent,
    /// This host is asked before it.
    Behind(String),
    /// It is `server`: when it is down, nobody else is asked.
    Server,
    /// It is a host that may not both pull and resolve.
    Incapable,
}

/// Puts the mirror first. `certificates` are the files in the directory of a registry that has no hosts.toml: containerd
/// reads them only as long as there is none, so they are named in the new one.
///
/// # Errors
/// When the text is not touched.
pub(crate) fn with_mirror(base: Option<&str>, certificates: &[String], mirror: &Mirror) -> Result<String, Refused> {
    let Some(base) = base.filter(|text| !text.trim().is_empty()) else {
        return with_mirror(Some(&from_certificates(certificates)), &[], mirror);
    };
    let mut document = parse(base)?;
    if standing_in(&document, mirror)? == Standing::First {
        return Ok(base.to_owned());
    }
    let bare = document.is_empty();
    if document.get("server").and_then(Item::as_str).is_some_and(|server| mirror.is(server)) {
        document.remove("server");
    }
    let hosts = document.entry("host").or_insert_with(implicit).as_table_mut().ok_or(Refused::Shape)?;
    let known = hosts.iter().map(|(url, _)| url.to_owned()).find(|url| mirror.is(url));
    let url = known.unwrap_or_else(|| mirror.to_string());
    spread(document.as_table_mut());
    let hosts = document.get_mut("host").and_then(Item::as_table_mut).ok_or(Refused::Shape)?;
    let first =
        hosts.iter().filter(|(other, _)| *other != url).filter_map(|(_, host)| position(host.as_table()?)).min();
    let host = hosts.entry(&url).or_insert_with(|| Item::Table(Table::new())).as_table_mut().ok_or(Refused::Shape)?;
    host["capabilities"] = value(["pull", "resolve"].into_iter().collect::<Array>());
    host.entry("dial_timeout").or_insert_with(|| value(DIAL_TIMEOUT));
    if let Some(first) = first {
        move_to(host, first - 1);
    }
    if bare {
        // What a file without keys has is comments, which stay at its head.
        host.decor_mut().set_prefix(format!("{}\n\n", base.trim_end()));
        document.set_trailing("");
    }
    Ok(document.to_string())
}

/// Where the mirror stands.
///
/// # Errors
/// When containerd, or `shoal node configure`, does not understand the text.
pub(crate) fn standing(text: &str, mirror: &Mirror) -> Result<Standing, Refused> {
    standing_in(&parse(text)?, mirror)
}

fn standing_in(document: &DocumentMut, mirror: &Mirror) -> Result<Standing, Refused> {
    if document.get("server").and_then(Item::as_str).is_some_and(|server| mirror.is(server)) {
        return Ok(Standing::Server);
    }
    let Some(hosts) = document.get("host") else { return Ok(Standing::Absent) };
    let hosts = hosts.as_table().ok_or(Refused::Shape)?;
    let hosts = hosts.iter().map(|(url, host)| Some((url, host.as_table().filter(|host| !host.is_dotted())?)));
    let mut hosts = hosts.collect::<Option<Vec<_>>>().ok_or(Refused::Shape)?;
    hosts.sort_by_key(|(_, host)| position(host));
    let Some((_, host)) = hosts.iter().find(|(url, _)| mirror.is(url)) else { return Ok(Standing::Absent) };
    if !is_capable(host) {
        return Ok(Standing::Incapable);
    }
    let (first, _) = hosts[0];
    Ok(if mirror.is(first) { Standing::First } else { Standing::Behind(first.to_owned()) })
}

/// Whether it may pull and resolve; without `capabilities` a host may do all.
fn is_capable(host: &Table) -> bool {
    let Some(capabilities) = host.get("capabilities").and_then(Item::as_array) else { return true };
    let may = |what| capabilities.iter().any(|may| may.as_str().is_some_and(|may| may.eq_ignore_ascii_case(what)));
    capabilities.is_empty() || (may("pull") && may("resolve"))
}

fn parse(text: &str) -> Result<DocumentMut, Refused> {
    text.parse::<DocumentMut>()
        .map_err(|error| Refused::Syntax(error.to_string().lines().next().unwrap_or("").to_owned()))
}

fn implicit() -> Item {
    let mut table = Table::new();
    table.set_implicit(true);
    Item::Table(table)
}

/// Where a table begins: one that is only named by those in it begins with the first of them.
fn position(table: &Table) -> Option<isize> {
    let inner = || table.iter().filter_map(|(_, item)| position(item.as_table()?)).min();
    if table.is_implicit() { inner() } else { table.position() }
}

/// Doubles the position of every table, so that there is room between any two.
fn spread(table: &mut Table) {
    table.set_position(table.position().map(|position| 2 * position));
    for (_, item) in table.iter_mut() {
        match item {
            Item::Table(table) => spread(table),
            Item::ArrayOfTables(tables) => tables.iter_mut().for_each(spread),
            Item::None | Item::Value(_) => {}
        }
    }
}

/// Moves a table and those in it.
fn move_to(table: &mut Table, position: isize) {
    table.set_position(Some(position));
    for (_, item) in table.iter_mut() {
        if let Item::Table(table) = item {
            move_to(table, position);
        }
    }
}

/// What containerd makes of certificates in Docker's layout (`loadCertFiles`), as text.
fn from_certificates(names: &[String]) -> String {
    let authorities = names.iter().filter(|name| name.ends_with(".crt")).collect::<Array>();
    let pairs = names.iter().filter_map(|name| {
        let key = format!("{}.key", name.strip_suffix(".cert")?);
        let key = if names.contains(&key) { key } else { String::new() };
        Some([name.clone(), key].into_iter().collect::<Array>())
    });
    let pairs = pairs.collect::<Array>();
    let line = |key: &str, list: Array| if list.is_empty() { String::new() } else { format!("{key} = {list}\n") };
    format!("{HEADER}{}{}", line("ca", authorities), line("client", pairs))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIRROR: &str =
        "[host.\"http://127.0.0.1:5050\"]\ncapabilities = [\"pull\", \"resolve\"]\ndial_timeout = \"2s\"\n";

    fn mirror() -> Mirror {
        "http://127.0.0.1:5050".parse().unwrap()
    }

    fn edited(base: &str) -> String {
        let text = with_mirror(Some(base), &[], &mirror()).unwrap();
        assert_eq!(standing(&text, &mirror()).unwrap(), Standing::First, "{text}");
        assert_eq!(with_mirror(Some(&text), &[], &mirror()).unwrap(), text, "a second edit changes nothing");
        text
    }

    #[test]
    fn a_new_file_names_the_mirror_alone() {
        let text = with_mirror(None, &[], &mirror()).unwrap();
        assert_eq!(text, format!("{HEADER}\n{MIRROR}"));
        assert_eq!(with_mirror(Some("\n"), &[], &mirror()).unwrap(), text);
    }

    #[test]
    fn certificates_of_a_directory_without_hosts_toml_stay_in_use() {
        let names = ["ca.crt", "client.cert", "client.key", "one.cert", "readme"].map(str::to_owned);
        let text = with_mirror(None, &names, &mirror()).unwrap();
        let keys = "ca = [\"ca.crt\"]\nclient = [[\"client.cert\", \"client.key\"], [\"one.cert\", \"\"]]\n";
        assert_eq!(text, format!("{HEADER}{keys}\n{MIRROR}"));
    }

    #[test]
    fn the_mirror_goes_before_other_hosts_and_all_else_stays() {
        let base = "# ours\nserver = \"https://registry-1.docker.io\" # Hub\n\n# the office's\n[host.\"https://cache.example\"]\n  \
                    capabilities = [\"pull\"]\n  ca = \"cache.crt\"\n  [host.\"https://cache.example\".header]\n    x-a = [\"b\"]\n\n\
                    [host.\"https://other.example\"]\n";
        let (head, tail) = base.split_once("\n# the office's").unwrap();
        assert_eq!(edited(base), format!("{head}\n{MIRROR}\n# the office's{tail}"));
    }

    #[test]
    fn a_file_without_hosts_gets_one() {
        assert_eq!(edited("server = \"https://a\"\n"), format!("server = \"https://a\"\n\n{MIRROR}"));
    }

    #[test]
    fn a_header_of_its_own_for_the_hosts_stays_before_them() {
        // As k3s writes it.
        let base = "# File generated by k3s. DO NOT EDIT.\nserver = \"https://a/v2\"\ncapabilities = [\"pull\"]\n\n[host]\n\
                    [host.\"https://b/v2\"]\n  capabilities = [\"pull\", \"resolve\"]\n";
        let text = edited(base);
        let at = |what| text.find(what).unwrap_or_else(|| panic!("{what} in\n{text}"));
        assert!(
            at("[host]") < at("[host.\"http://127") && at("[host.\"http://127") < at("[host.\"https://b"),
            "{text}"
        );
    }

    #[test]
    fn a_mirror_that_comes_later_is_moved_to_the_front_with_its_own_keys() {
        let ours = "[host.\"http://127.0.0.1:5050/v2\"]\nskip_verify = true\n[host.\"http://127.0.0.1:5050/v2\".header]\na = \"b\"\n";
        let text = edited(&format!("[host.\"https://a\"]\n{ours}"));
        assert_eq!(text.matches("5050").count(), 2, "{text}");
        assert!(text.contains("skip_verify = true") && text.find("5050") < text.find("https://a"), "{text}");
    }

    #[test]
    fn a_mirror_as_server_becomes_a_host_so_that_there_is_a_fallback() {
        let base = "server = \"http://127.0.0.1:5050\"\n";
        assert_eq!(standing(base, &mirror()).unwrap(), Standing::Server);
        assert!(!edited(base).contains("server"));
    }

    #[test]
    fn a_mirror_that_may_not_resolve_is_given_the_capability() {
        let base = "[host.\"http://127.0.0.1:5050\"]\ncapabilities = [\"pull\"]\n";
        assert_eq!(standing(base, &mirror()).unwrap(), Standing::Incapable);
        edited(base);
    }

    #[test]
    fn a_handwritten_mirror_that_is_first_is_left_as_it_is() {
        let base = "[host.\"http://127.0.0.1:5050\"]\n  capabilities = [\"pull\", \"resolve\"]\n[host.\"https://b\"]\n";
        assert_eq!(edited(base), base);
    }

    #[test]
    fn where_the_mirror_stands_is_told() {
        let standing = |text: &str| standing(text, &mirror()).unwrap();
        assert_eq!(standing("server = \"https://a\"\n"), Standing::Absent);
        assert_eq!(standing("[host.\"https://a\"]\n"), Standing::Absent);
        assert_eq!(standing(&format!("[host.\"https://a\"]\n{MIRROR}")), Standing::Behind("https://a".to_owned()));
        assert_eq!(standing(MIRROR), Standing::First);
    }

    #[test]
    fn what_containerd_would_not_understand_is_not_touched() {
        let refused = |text| with_mirror(Some(text), &[], &mirror()).unwrap_err();
        assert!(matches!(refused("[host"), Refused::Syntax(_)));
        assert_eq!(refused("host = { \"https://a\" = {} }\n"), Refused::Shape);
        assert_eq!(refused("[host]\n\"https://a\".capabilities = []\n"), Refused::Shape);
    }
}
