//! Every parser of bytes from outside, as a function of bytes that must not panic, hang or hold more than it may.
//!
//! `cargo +nightly fuzz run TARGET --features libfuzzer` makes bytes up; what it found worth keeping is in `corpus/TARGET`, and a
//! test replays that. Each target says in its own words what has to hold besides.

mod peers;

pub use peers::{swarm, tracker, wire};

use std::fmt::{Debug, Display};
use std::path::Path;
use std::str::FromStr;
use std::sync::OnceLock;

use oci_spec::image::{ImageIndex, ImageManifest};
use shoal_identity::{Identity, Part};
use shoal_kit::{ByteSize, HumanDuration, Rate};
use shoal_meta::{Digest, PeerId};
use shoal_registry::image::{manifest_for, own_layers};
use shoal_registry::reference::parse_image;
use shoal_registry::upstream::challenge;
use shoal_registry::{Account, RangeSet, Reference, Repository, path, range};

/// What is done with bytes.
pub type Target = fn(&[u8]);

/// The targets by name.
pub const TARGETS: [(&str, Target); 9] = [
    ("config", config),
    ("credentials", credentials),
    ("manifest", manifest),
    ("names", names),
    ("range", range),
    ("seal", seal),
    ("swarm", swarm),
    ("tracker", tracker),
    ("wire", wire),
];

/// The configuration of each part, and the words in it.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let file = Path::new("shoal.toml");
    if let Ok(config) = shoal_kit::config::parse::<shoal_agent::Config>(text, file) {
        let _ = config.validate();
    }
    if let Ok(config) = shoal_kit::config::parse::<shoal_origin::Config>(text, file) {
        let _ = config.validate();
    }
    if let Ok(config) = shoal_kit::config::parse::<shoal_tracker::Config>(text, file) {
        let _ = config.validate();
    }
    says_itself::<ByteSize>(text);
    says_itself::<Rate>(text);
    says_itself::<HumanDuration>(text);
}

/// What is parsed is said in a way that is parsed alike.
fn says_itself<T: FromStr + Display + PartialEq + Debug>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        let said = value.to_string();
        assert_eq!(said.parse::<T>().ok(), Some(value), "{text:?} is said {said:?}");
    }
}

/// Credentials of clients and pull secrets, and challenges of registries.
pub fn credentials(data: &[u8]) {
    if let Ok(repository) = Repository::new("registry.example:5000", "team/app") {
        let _ = Account::from_docker_configs(&[data.to_vec()], &repository);
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = Account::parse(text);
    let _ = challenge::parse(text);
}

/// Manifests and indexes of registries.
pub fn manifest(data: &[u8]) {
    if let Ok(index) = ImageIndex::from_reader(data) {
        let _ = manifest_for(&index, "linux", "amd64");
    }
    if let Ok(image) = ImageManifest::from_reader(data) {
        let _ = own_layers(&image).count();
    }
}

/// References, digests, peer ids and paths of requests.
pub fn names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    says_itself::<Digest>(text);
    says_itself::<PeerId>(text);
    says_itself::<Reference>(text);
    let _ = parse_image(text);
    let (first, second) = text.split_once('\n').unwrap_or((text, ""));
    let _ = Repository::new(first, second);
    let _ = path::parse(first, Some(second).filter(|ns| !ns.is_empty()));
}

/// The `Range` header: what is served lies inside the blob and is not more than it.
///
/// # Panics
/// When it does not.
pub fn range(data: &[u8]) {
    let Some((length, header)) = data.split_first_chunk::<8>() else { return };
    let Ok(header) = std::str::from_utf8(header) else { return };
    let length = u64::from_le_bytes(*length);
    let ranges = match range::parse(header, length) {
        RangeSet::Whole | RangeSet::Unsatisfiable => Vec::new(),
        RangeSet::Single(range) => vec![range],
        RangeSet::Multi(ranges) => {
            assert!((2..=range::RANGES_MAX).contains(&ranges.len()), "{} ranges", ranges.len());
            ranges
        }
    };
    let total: u128 = ranges.iter().map(|range| u128::from(range.end - range.start)).sum();
    assert!(total <= u128::from(length), "{total} of {length} bytes");
    assert!(ranges.iter().all(|range| range.start < range.end && range.end <= length), "{ranges:?} of {length} bytes");
}

/// Seals on metainfo: nothing that is made up is one.
///
/// # Panics
/// When something is.
pub fn seal(data: &[u8]) {
    static AGENT: OnceLock<(tokio::runtime::Runtime, Identity)> = OnceLock::new();
    let (_, agent) = AGENT.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let scratch = tempfile::tempdir().expect("a directory");
        shoal_identity::issue(scratch.path()).expect("certificates");
        let identity = {
            let _inside = runtime.enter();
            Identity::start(
                Some(&scratch.path().join("agent")),
                Part::Agent,
                tokio_util::sync::CancellationToken::new(),
            )
        };
        (runtime, identity.expect("an identity"))
    });
    assert!(agent.check_seal(b"metainfo", data, Part::Origin).is_err(), "a made-up seal is good");
}
