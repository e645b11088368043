//! The corpus of each target: what a fuzzer found worth keeping still harms nobody.

use std::fs;
use std::path::Path;

#[test]
fn nothing_in_the_corpus_breaks_a_parser() {
    for (name, target) in shoal_fuzz::TARGETS {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        let files: Vec<_> = fs::read_dir(&corpus).expect("each target has a corpus").collect();
        assert!(!files.is_empty(), "the corpus of {name} is empty");
        for file in files {
            let file = file.expect("a name").path();
            let bytes = fs::read(&file).expect("its bytes");
            assert!(std::panic::catch_unwind(|| target(&bytes)).is_ok(), "{name} does not bear {}", file.display());
        }
    }
}
