//! Runs a few flash crowds and prints their figures: `cargo run --release -p shoal-sim --example swarm -- NODES MIB SEED`.
#![expect(clippy::print_stdout, reason = "an example prints")]

use std::time::Instant;

use shoal_sim::cli::{Args, run_cli};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let numbers = std::env::args().skip(1).map(|word| word.parse()).collect::<Result<Vec<u64>, _>>()?;
    let at = |index: usize, default: u64| numbers.get(index).copied().unwrap_or(default);
    let nodes = Some(u32::try_from(at(0, 100))?);
    let args = Args { nodes, blob_length: Some(at(1, 512) << 20), seed: at(2, 1), ..Args::default() };
    println!("{args}");
    let begun = Instant::now();
    run_cli(&args, &mut std::io::stdout())?;
    println!("{:.1} s of real time", begun.elapsed().as_secs_f64());
    Ok(())
}
