//! Runs a scenario and prints its figures, without the rest of the program to build:
//! `cargo run --release -p shoal-sim --example swarm -- [NODES [MIB [SEED]]] [SCENARIO] [KEY=VALUE…]`.
#![expect(clippy::print_stdout, reason = "an example prints")]

use std::time::Instant;

use shoal_sim::Value;
use shoal_sim::cli::{Args, run_cli};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = Args { seed: 1, ..Args::default() };
    let mut numbers = Vec::new();
    for word in std::env::args().skip(1) {
        match (word.parse::<u64>(), word.split_once('=')) {
            (Ok(number), _) => numbers.push(number),
            (Err(_), Some((key, text))) => {
                let number = text.parse().map(Value::Number).or_else(|_| text.parse().map(Value::Share));
                args.set(key, number.unwrap_or_else(|_| Value::Word(text.to_owned())))?;
            }
            (Err(_), None) => args.named = word.parse()?,
        }
    }
    args.nodes = numbers.first().map(|&nodes| u32::try_from(nodes)).transpose()?;
    args.blob_length = numbers.get(1).map(|mib| mib << 20);
    args.seed = numbers.get(2).copied().unwrap_or(args.seed);
    println!("{args}");
    let begun = Instant::now();
    run_cli(&args, &mut std::io::stdout())?;
    println!("{:.1} s of real time", begun.elapsed().as_secs_f64());
    Ok(())
}
