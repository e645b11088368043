//! Plays failure schedules, without the rest of the program to build: `cargo run --release -p shoal-sim --example faults -- [FIRST [COUNT]]`.

use shoal_sim::faults::{FaultArgs, run_faults};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let numbers: Vec<u64> = std::env::args().skip(1).map(|word| word.parse()).collect::<Result<_, _>>()?;
    let (first_seed, seeds) = (numbers.first().copied().unwrap_or(1), numbers.get(1).copied().unwrap_or(2000));
    run_faults(FaultArgs { first_seed, seeds }, &mut std::io::stdout())?;
    Ok(())
}
