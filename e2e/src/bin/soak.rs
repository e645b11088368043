//! The program of `make soak`: see [`shoal_e2e::soak`].

use std::process::ExitCode;

fn main() -> ExitCode {
    shoal_e2e::soak::main()
}
