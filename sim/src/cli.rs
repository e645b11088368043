//! `shoal sim`: a scenario in words, and the run's figures as text or JSON. The program parses its flags into [`Args`].

use std::fmt;
use std::io::{self, Write};
use std::time::Duration;

use crate::{Arrivals, Fault, FaultKind, Rates, Report, Scenario, ScenarioError, run};

/// What `shoal sim` takes. `Display` gives the command that replays it.
#[derive(Clone, Debug, PartialEq)]
pub struct Args {
    /// Agents that want the blob.
    pub nodes: u32,
    /// Length of the blob in bytes.
    pub blob_length: u64,
    /// Length of its pieces in bytes; `None`: as the blob's length gives it.
    pub piece_length: Option<u32>,
    /// Draws everything that is random.
    pub seed: u64,
    /// Each agent's up and down rate, in bytes per second.
    pub rate: u64,
    /// The origin's rates; `None`: as the agents'.
    pub origin_rate: Option<u64>,
    /// The rate at which the origin gets the blob; `None`: it has the blob.
    pub upstream_rate: Option<u64>,
    /// One way, in microseconds.
    pub latency_us: u64,
    /// Agents arrive at random within this many milliseconds.
    pub arrivals_ms: u64,
    /// Share of the agents that crash at random times while the blob is spread.
    pub crash_share: f64,
    /// Share of the agents that lose all connections at random times while the blob is spread.
    pub cut_share: f64,
    /// The origin crashes at this time, in milliseconds.
    pub origin_crash_ms: Option<u64>,
    /// Whether each agent has a reader.
    pub readers: bool,
    /// Whether invariants are checked after each event.
    pub check: bool,
    /// Prints one JSON object instead of a table.
    pub json: bool,
}

/// Says why `shoal sim` failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The flags make no scenario: the user's fault.
    #[error("cannot simulate that")]
    Scenario(#[from] ScenarioError),
    /// The figures could not be written.
    #[error("cannot print the figures")]
    Output(#[from] io::Error),
}

impl Default for Args {
    fn default() -> Self {
        let scenario = Scenario::default();
        Self {
            nodes: scenario.nodes,
            blob_length: scenario.blob_length,
            piece_length: None,
            seed: scenario.seed,
            rate: 125_000_000,
            origin_rate: None,
            upstream_rate: None,
            latency_us: 250,
            arrivals_ms: 0,
            crash_share: 0.0,
            cut_share: 0.0,
            origin_crash_ms: None,
            readers: false,
            check: false,
            json: false,
        }
    }
}

impl Args {
    /// The scenario the flags stand for.
    #[must_use]
    pub fn scenario(&self) -> Scenario {
        let mut scenario = Scenario {
            nodes: self.nodes,
            blob_length: self.blob_length,
            piece_length: self.piece_length,
            seed: self.seed,
            rates: vec![Rates::equal(self.rate)],
            origin_rates: Rates::equal(self.origin_rate.unwrap_or(self.rate)),
            upstream_rate: self.upstream_rate,
            latency: Duration::from_micros(self.latency_us),
            arrivals: match self.arrivals_ms {
                0 => Arrivals::Together,
                ms => Arrivals::Spread(Duration::from_millis(ms)),
            },
            readers: self.readers,
            check_invariants: self.check,
            ..Scenario::default()
        };
        if scenario.check().is_ok() {
            let within = Duration::from_secs_f64(scenario.optimum_seconds()) + Duration::from_millis(self.arrivals_ms);
            scenario.add_random_faults(FaultKind::Crash, self.crash_share, within);
            scenario.add_random_faults(FaultKind::CutConnections, self.cut_share, within);
        }
        let crash = |ms| Fault { at: Duration::from_millis(ms), node: 0, kind: FaultKind::Crash };
        scenario.faults.extend(self.origin_crash_ms.map(crash));
        scenario
    }
}

impl fmt::Display for Args {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { nodes, blob_length, seed, rate, latency_us, .. } = self;
        write!(f, "shoal sim --nodes {nodes} --blob {blob_length}B --seed {seed}")?;
        write!(f, " --rate {rate}B/s --latency-us {latency_us}")?;
        let optional = [
            ("piece-length", self.piece_length.map(|length| format!("{length}B"))),
            ("origin-rate", self.origin_rate.map(|rate| format!("{rate}B/s"))),
            ("upstream-rate", self.upstream_rate.map(|rate| format!("{rate}B/s"))),
            ("arrivals-ms", (self.arrivals_ms > 0).then(|| self.arrivals_ms.to_string())),
            ("crash-share", (self.crash_share > 0.0).then(|| self.crash_share.to_string())),
            ("cut-share", (self.cut_share > 0.0).then(|| self.cut_share.to_string())),
            ("origin-crash-ms", self.origin_crash_ms.map(|ms| ms.to_string())),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                write!(f, " --{name} {value}")?;
            }
        }
        for (name, _) in [("readers", self.readers), ("check", self.check), ("json", self.json)].iter().filter(|f| f.1)
        {
            write!(f, " --{name}")?;
        }
        Ok(())
    }
}

/// Runs a simulation and prints its figures; the report tells whether all went well.
///
/// # Errors
/// When the flags make no scenario or the output fails.
pub fn run_cli(args: &Args, out: &mut dyn Write) -> Result<Report, CliError> {
    let report = run(&args.scenario())?;
    if args.json {
        serde_json::to_writer(&mut *out, &report).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        print(&report, out)?;
    }
    Ok(report)
}

fn print(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let Report { nodes, completed, crashed, pieces, seed, .. } = report;
    writeln!(out, "{completed} of {nodes} nodes completed, {crashed} crashed; {pieces} pieces, seed {seed}")?;
    writeln!(out, "                seconds  over the optimum")?;
    writeln!(out, "  last node   {:9.3}  {:.3}", report.seconds_last, report.ratio_last)?;
    writeln!(out, "  median node {:9.3}  {:.3}", report.seconds_median, report.ratio_median)?;
    writeln!(out, "  optimum     {:9.3}", report.optimum_seconds)?;
    writeln!(out, "copies that left the origin  {:.3}", report.origin_copies)?;
    writeln!(out, "bytes received twice         {:.2} %", report.duplicate_share * 100.0)?;
    writeln!(out, "uplinks in use               {:.1} %", report.uplink_share * 100.0)?;
    let Report { blocks, messages, connections, .. } = report;
    writeln!(out, "{blocks} blocks, {messages} messages, {connections} connections")?;
    for (reason, count) in &report.disconnects {
        writeln!(out, "{count} connections given up: {reason}")?;
    }
    writeln!(out, "{} events, trace {}", report.events, report.trace_hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_print_as_the_command_that_replays_them() {
        let args = Args { crash_share: 0.25, readers: true, upstream_rate: Some(9), ..Args::default() };
        assert_eq!(
            args.to_string(),
            "shoal sim --nodes 16 --blob 536870912B --seed 1 --rate 125000000B/s --latency-us 250 \
             --upstream-rate 9B/s --crash-share 0.25 --readers"
        );
    }

    #[test]
    fn flags_that_make_no_scenario_are_refused() {
        let args = Args { nodes: 0, ..Args::default() };
        let error = run_cli(&args, &mut Vec::new()).unwrap_err();
        assert!(matches!(error, CliError::Scenario(ScenarioError::Nodes(0))));
    }
}
