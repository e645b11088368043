//! The command line of the benchmark.

use clap::Parser;

use super::case::Case;
use super::system::Kind;

/// Pulls images through Shoal and other systems on shaped links, and holds the times against the optimum. Needs root.
#[derive(Debug, Parser)]
#[command(name = "make bench")]
pub(super) struct Args {
    /// Systems to measure. Default: all whose programs are there.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(super) only: Vec<Kind>,
    /// Cases to measure, as LAYERSxMIB@NODESxMBIT, with -warm or -alone behind. Default: those of docs/benchmarks.md.
    #[arg(long, value_delimiter = ',')]
    pub(super) case: Vec<Case>,
    /// Prints one JSON object per system and case, with each node's times and bytes, in place of tables.
    #[arg(long)]
    pub(super) json: bool,
    /// Puts the tables into the section "Shaped lab" of docs/benchmarks.md.
    #[arg(long)]
    pub(super) write: bool,
}

impl Args {
    pub(super) fn systems(&self) -> Vec<Kind> {
        if self.only.is_empty() { Kind::ALL.to_vec() } else { self.only.clone() }
    }

    pub(super) fn cases(&self) -> Vec<Case> {
        if self.case.is_empty() { Case::all() } else { self.case.clone() }
    }
}
