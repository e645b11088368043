//! The checked-in code in `src/generated` is what the `.proto` files generate today.
//!
//! After changing a `.proto` file: `SHOAL_REGENERATE=1 cargo test -p shoal-proto --test generated`.

use std::fs;
use std::path::Path;

const PROTOS: [&str; 4] = ["shoal/tracker.proto", "shoal/origin.proto", "shoal/preheat.proto", "shoal/wire.proto"];

#[test]
fn generated_code_has_not_drifted() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let descriptors = protox::compile(PROTOS, [root]).unwrap();
    let out = tempfile::tempdir().unwrap();
    tonic_prost_build::configure()
        .out_dir(out.path())
        .server_mod_attribute(".", "#[cfg(feature = \"grpc\")]")
        .client_mod_attribute(".", "#[cfg(feature = \"grpc\")]")
        .compile_fds(descriptors)
        .unwrap();
    let checked_in = root.join("src/generated");
    let regenerate = std::env::var_os("SHOAL_REGENERATE").is_some();
    for entry in fs::read_dir(out.path()).unwrap() {
        let entry = entry.unwrap();
        let target = checked_in.join(entry.file_name());
        let fresh = fs::read_to_string(entry.path()).unwrap();
        if regenerate {
            fs::write(&target, &fresh).unwrap();
        }
        let kept = fs::read_to_string(&target).unwrap_or_default();
        assert!(kept == fresh, "{} drifted from its .proto; run with SHOAL_REGENERATE=1", target.display());
    }
}
