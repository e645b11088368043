//! The program of `make bench`: see [`shoal_e2e::bench`].

use std::process::ExitCode;

fn main() -> ExitCode {
    shoal_e2e::bench::main()
}
