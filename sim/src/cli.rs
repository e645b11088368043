//! `shoal sim`: a scenario in words, and the run's figures as text or JSON. The program parses its flags into [`Args`].

use std::fmt;
use std::io::{self, Write};
use std::time::Duration;

use crate::settings::{SettingError, Value, apply};
use crate::{Arrivals, Fault, FaultKind, Named, Rates, Report, Scenario, ScenarioError, run};

/// What `shoal sim` takes. What is `None` is as the scenario has it. `Display` gives the command that replays it.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Args {
    /// Which scenario.
    pub named: Named,
    /// Agents that want the blobs.
    pub nodes: Option<u32>,
    /// Length of the blobs in bytes.
    pub blob_length: Option<u64>,
    /// Length of their pieces in bytes.
    pub piece_length: Option<u32>,
    /// Draws everything that is random.
    pub seed: u64,
    /// Each agent's up and down rate, in bytes per second; a scenario of unequal nodes has it for a middle.
    pub rate: Option<u64>,
    /// The origin's rates; `None`: as the agents'.
    pub origin_rate: Option<u64>,
    /// The rate at which the origin gets the blobs.
    pub upstream_rate: Option<u64>,
    /// One way.
    pub latency: Option<Duration>,
    /// Agents arrive at random within this many milliseconds.
    pub arrivals_ms: Option<u64>,
    /// Share of the agents that crash at random times while the blobs are spread, besides the scenario's.
    pub crash_share: f64,
    /// Share of the agents that lose all connections at random times while the blobs are spread.
    pub cut_share: f64,
    /// The origin crashes at this time, in milliseconds.
    pub origin_crash_ms: Option<u64>,
    /// Settings by their names, in order: see [`Args::set`].
    pub settings: Vec<(String, Value)>,
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
    /// A setting does not fit the scenario: the user's fault.
    #[error("cannot set that")]
    Setting(#[from] SettingError),
    /// The figures could not be written.
    #[error("cannot print the figures")]
    Output(#[from] io::Error),
}

impl Args {
    /// The scenario the flags stand for.
    ///
    /// # Errors
    /// When they make none.
    pub fn scenario(&self) -> Result<Scenario, CliError> {
        let size = self.named.size();
        let rate = self.rate.unwrap_or(size.rate);
        let crowd = Scenario::crowd(self.nodes.unwrap_or(size.nodes), self.blob_length.unwrap_or(size.length), rate);
        let mut scenario = Scenario {
            piece_length: self.piece_length,
            seed: self.seed,
            origin_rates: Rates::equal(self.origin_rate.unwrap_or(rate)),
            upstream_rate: self.upstream_rate,
            latency: self.latency.unwrap_or(crowd.latency),
            check_invariants: self.check,
            ..crowd
        };
        scenario.check()?;
        self.named.shape(&mut scenario);
        if let Some(within) = self.arrivals_ms.map(Duration::from_millis) {
            scenario.groups.iter_mut().for_each(|group| group.arrivals = Arrivals { within, ..group.arrivals });
        }
        for (key, value) in &self.settings {
            apply(&mut scenario, key, value)?;
        }
        let within = Duration::from_millis(self.arrivals_ms.unwrap_or(0));
        let within = within + Duration::from_secs_f64(scenario.optimum_seconds());
        scenario.add_random_faults(&[FaultKind::Crash], self.crash_share, within);
        scenario.add_random_faults(&[FaultKind::CutConnections], self.cut_share, within);
        let crash = |ms| Fault { at: Duration::from_millis(ms), node: 0, kind: FaultKind::Crash };
        scenario.faults.extend(self.origin_crash_ms.map(crash));
        scenario.check()?;
        Ok(scenario)
    }
}

impl fmt::Display for Args {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shoal sim --scenario {} --seed {}", self.named, self.seed)?;
        let rate = |rate| format!("{rate}B/s");
        let optional = [
            ("nodes", self.nodes.map(|nodes| nodes.to_string())),
            ("blob", self.blob_length.map(|length| format!("{length}B"))),
            ("piece-length", self.piece_length.map(|length| format!("{length}B"))),
            ("rate", self.rate.map(rate)),
            ("origin-rate", self.origin_rate.map(rate)),
            ("upstream-rate", self.upstream_rate.map(rate)),
            ("latency-us", self.latency.map(|latency| latency.as_micros().to_string())),
            ("arrivals-ms", self.arrivals_ms.map(|ms| ms.to_string())),
            ("crash-share", (self.crash_share > 0.0).then(|| self.crash_share.to_string())),
            ("cut-share", (self.cut_share > 0.0).then(|| self.cut_share.to_string())),
            ("origin-crash-ms", self.origin_crash_ms.map(|ms| ms.to_string())),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                write!(f, " --{name} {value}")?;
            }
        }
        for (key, value) in &self.settings {
            write!(f, " --set {key}={value}")?;
        }
        for (name, _) in [("check", self.check), ("json", self.json)].iter().filter(|flag| flag.1) {
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
    let report = run(&args.scenario()?)?;
    if args.json {
        serde_json::to_writer(&mut *out, &report).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        print(&report, out)?;
    }
    Ok(report)
}

/// Prints the scenarios that have a name: name, default size, what happens.
///
/// # Errors
/// When the output fails.
pub fn list(out: &mut dyn Write) -> io::Result<()> {
    for named in Named::ALL {
        let size = named.size();
        let (nodes, mib, mbit) = (size.nodes, size.length >> 20, size.rate * 8 / 1_000_000);
        writeln!(out, "{named:13} {nodes:6} nodes {mib:5} MiB {mbit:5} Mbit/s  {}", named.about())?;
    }
    Ok(())
}

fn print(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let Report { nodes, completed, crashed, pieces, seed, percentiles, .. } = report;
    writeln!(out, "{completed} of {nodes} nodes completed, {crashed} crashed; {pieces} pieces, seed {seed}")?;
    writeln!(out, "                seconds  over the optimum")?;
    let times = [
        ("last node", percentiles.max),
        ("99.9 %", percentiles.p999),
        ("99 %", percentiles.p99),
        ("95 %", percentiles.p95),
        ("median node", percentiles.p50),
    ];
    for (name, seconds) in times {
        writeln!(out, "  {name:11} {seconds:9.3}  {:.3}", seconds / report.optimum_seconds)?;
    }
    writeln!(out, "  optimum     {:9.3}", report.optimum_seconds)?;
    writeln!(out, "  first piece {:9.3}  (median)", report.first_piece.p50)?;
    if !report.groups.is_empty() {
        writeln!(out, "                         last  median  over one with the origin to itself")?;
    }
    for group in &report.groups {
        let crate::report::GroupReport { name, nodes, ratio_last, ratio_median, .. } = group;
        writeln!(out, "  {nodes:5} {name:14} {ratio_last:7.3} {ratio_median:7.3}")?;
    }
    writeln!(out, "copies that left the origin  {:.3}", report.origin_copies)?;
    for (zone, copies) in report.copies_per_zone.iter().enumerate() {
        writeln!(out, "copies that came into zone {zone} {copies:.3}")?;
    }
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
        let mut args = Args {
            nodes: Some(9),
            crash_share: 0.25,
            latency: Some(Duration::from_micros(50)),
            upstream_rate: Some(9),
            ..Args::default()
        };
        args.set("readers", Value::Word("true".to_owned())).unwrap();
        assert_eq!(
            args.to_string(),
            "shoal sim --scenario flash-crowd --seed 0 --nodes 9 --upstream-rate 9B/s --latency-us 50 \
             --crash-share 0.25 --set readers=true"
        );
    }

    #[test]
    fn flags_that_make_no_scenario_are_refused() {
        let args = Args { nodes: Some(0), ..Args::default() };
        let error = run_cli(&args, &mut Vec::new()).unwrap_err();
        assert!(matches!(error, CliError::Scenario(ScenarioError::Nodes(0))));
        let mut args = Args::default();
        args.set("zone_rate", Value::Number(1)).unwrap();
        assert!(matches!(args.scenario(), Err(CliError::Setting(SettingError::Value { .. }))));
    }
}
