//! `shoal sim faults`: many failure schedules, each checked; the first that breaks a rule is named with its replay.

use std::any::Any;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use crate::scenario::{Bug, FaultKind, Scenario};
use crate::{Report, run, schedule};

/// What `shoal sim faults` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultArgs {
    /// The first schedule.
    pub first_seed: u64,
    /// How many, one after the other.
    pub seeds: u64,
}

/// Says which schedule broke a rule, and how. `Display` gives the command that replays it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}; replay: shoal sim faults --seed {seed}")]
pub struct Broken {
    /// The schedule.
    pub seed: u64,
    /// The rule.
    pub what: String,
}

/// Says why `shoal sim faults` failed.
#[derive(Debug, thiserror::Error)]
pub enum FaultsError {
    /// A schedule broke a rule: our fault.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// The figures could not be written.
    #[error("cannot print the figures")]
    Output(#[from] io::Error),
}

/// What some schedules had in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
struct Sum {
    schedules: u64,
    agents: u64,
    liars: u64,
    pieces: u64,
    events: u64,
    crashes: u64,
    returns: u64,
    parts: u64,
    pauses: u64,
    jumps: u64,
    lags: u64,
    cuts: u64,
    amnesias: u64,
}

/// Plays one schedule, with a bug put in or without.
///
/// # Errors
/// When it breaks a rule.
pub fn play(seed: u64, bug: Option<Bug>) -> Result<Report, Broken> {
    let scenario = Scenario { bug, ..schedule(seed) };
    let what = |panic: Box<dyn Any + Send>| match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => {
            panic.downcast::<&str>().map_or_else(|_| "a panic without words".to_owned(), |text| (*text).to_owned())
        }
    };
    let played = catch_unwind(AssertUnwindSafe(|| run(&scenario))).map_err(what);
    played.and_then(|report| report.map_err(|error| error.to_string())).map_err(|what| Broken { seed, what })
}

/// Plays schedules and prints what was in them; stops at the first that breaks a rule.
///
/// # Errors
/// When one breaks a rule or the output fails.
pub fn run_faults(args: FaultArgs, out: &mut dyn Write) -> Result<(), FaultsError> {
    let begun = Instant::now();
    let mut sum = Sum::default();
    for seed in (args.first_seed..).take(usize::try_from(args.seeds).unwrap_or(usize::MAX)) {
        sum.add(&schedule(seed), &play(seed, None)?);
    }
    sum.print(begun.elapsed().as_secs_f64(), out)?;
    Ok(())
}

impl Sum {
    fn add(&mut self, scenario: &Scenario, report: &Report) {
        self.schedules += 1;
        self.agents += u64::from(scenario.nodes());
        self.liars += u64::from(scenario.nodes() - scenario.honest());
        self.pieces += u64::from(report.pieces);
        self.events += report.events;
        for fault in &scenario.faults {
            *match fault.kind {
                FaultKind::Crash | FaultKind::Vanish => &mut self.crashes,
                FaultKind::Return { .. } => &mut self.returns,
                FaultKind::Part(_) => &mut self.parts,
                FaultKind::Pause(_) => &mut self.pauses,
                FaultKind::Jump(_) => &mut self.jumps,
                FaultKind::Lag { .. } => &mut self.lags,
                FaultKind::CutConnections => &mut self.cuts,
                FaultKind::Amnesia => &mut self.amnesias,
            } += 1;
        }
    }

    fn print(&self, seconds: f64, out: &mut dyn Write) -> io::Result<()> {
        let Self { schedules, .. } = self;
        writeln!(out, "{schedules} schedules hold, {:.0} a second; each has on average", *schedules as f64 / seconds)?;
        let sums = [
            ("agents", self.agents),
            ("of them liars", self.liars),
            ("pieces", self.pieces),
            ("nodes that crash or vanish", self.crashes),
            ("that come back", self.returns),
            ("parts of the network", self.parts),
            ("processes that stand still", self.pauses),
            ("clocks that jump", self.jumps),
            ("late messages for a while", self.lags),
            ("losses of all connections", self.cuts),
            ("losses of the tracker's memory", self.amnesias),
            ("events", self.events),
        ];
        for (name, sum) in sums {
            writeln!(out, "  {:9.2} {name}", sum as f64 / (*schedules).max(1) as f64)?;
        }
        Ok(())
    }
}
