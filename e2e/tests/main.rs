//! The end-to-end tests: one program, one topic a file, one test at a time. Run with `cargo test -p shoal-e2e`, as root;
//! words after `--` choose tests by name.

mod clients;
mod configure;
mod disks;
mod faults;
mod first_byte;
mod kubernetes;
mod lab;
mod losses;
mod private;
mod pulls;
mod rogue;
mod strangers;

use std::process::ExitCode;

use shoal_e2e::harness;

fn main() -> ExitCode {
    harness::main(
        &[
            lab::TESTS,
            pulls::TESTS,
            clients::TESTS,
            configure::TESTS,
            disks::TESTS,
            first_byte::TESTS,
            losses::TESTS,
            faults::TESTS,
            private::TESTS,
            rogue::TESTS,
            strangers::TESTS,
            kubernetes::TESTS,
        ]
        .concat(),
    )
}
