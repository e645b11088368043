//! `docs/configuration.md` is what the parts' `Config` types say today: their fields' docs, in order.
//!
//! After changing a config field: `SHOAL_REGENERATE=1 cargo test --test configuration`.

use std::fs;
use std::path::Path;

const PARTS: [(&str, &str); 5] = [
    ("shoal agent", "agent/src/config.rs"),
    ("shoal origin", "origin/src/config.rs"),
    ("shoal tracker", "tracker/src/config.rs"),
    ("The table `[harbor]` of the tracker", "tracker/src/harbor.rs"),
    ("A table `[registries.\"name\"]` of agent or origin", "lib/registry/src/upstream/config.rs"),
];

const INTRODUCTION: &str = "# Configuration

Every part reads a TOML file (`--config FILE`), then the environment, then flags; the later wins, and every key may be left out.
`shoal <part> --help` lists the flags and their environment variables. A refused file is named with line, key, the value given
and the values accepted.

Units: sizes as `512MiB`, `10GiB`; rates as `200mbit`, `50MiB/s`; durations as `500ms`, `30s`, `1m 30s`.

Mirrors, credentials, allow and deny lists and `offline` are explained in [registries.md](registries.md), `private_images` in
[private-images.md](private-images.md). This page is generated from the fields' docs; a test holds it to them.
";

#[test]
fn the_reference_has_not_drifted() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut page = INTRODUCTION.to_owned();
    for (title, file) in PARTS {
        let source = fs::read_to_string(root.join(file)).unwrap();
        let name = if file.contains("registry") { "pub struct RegistryConfig {" } else { "pub struct Config {" };
        page += &format!("\n## {title}\n\n| key | meaning |\n| --- | --- |\n");
        for (key, meaning) in fields(&source, name) {
            page += &format!("| `{key}` | {meaning} |\n");
        }
    }
    let kept = root.join("docs/configuration.md");
    if std::env::var_os("SHOAL_REGENERATE").is_some() {
        fs::write(&kept, &page).unwrap();
    }
    let kept = fs::read_to_string(kept).unwrap_or_default();
    assert!(kept == page, "docs/configuration.md drifted; run with SHOAL_REGENERATE=1");
}

/// The fields of a struct that can stand in a file, each with its doc as one line.
fn fields(source: &str, start: &str) -> Vec<(String, String)> {
    let body = source.split_once(start).expect("the struct is there").1;
    let body = body.split_once("\n}").expect("the struct ends").0;
    let mut out = Vec::new();
    let (mut doc, mut skipped) = (Vec::new(), false);
    for line in body.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            doc.push(text.trim().replace('|', "\\|"));
        } else if line.starts_with("#[serde(skip)]") {
            skipped = true;
        } else if let Some((name, _)) = line.strip_prefix("pub ").and_then(|field| field.split_once(':')) {
            let doc = std::mem::take(&mut doc);
            if !std::mem::take(&mut skipped) {
                assert!(!doc.is_empty(), "{name} has no doc");
                out.push((name.to_owned(), doc.join(" ")));
            }
        }
    }
    assert!(!out.is_empty(), "no fields after {start}");
    out
}
