//! The end-to-end tests: one program, one topic a file, one test at a time. Run with `cargo test -p shoal-e2e`, as root.

mod lab;

use std::process::ExitCode;

use shoal_e2e::harness;

fn main() -> ExitCode {
    harness::main(&[lab::TESTS].concat())
}
