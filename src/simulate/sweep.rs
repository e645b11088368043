//! `shoal sim sweep`: every combination of some settings' values, each with several seeds, as a table, CSV or a plot.
//!
//! One world at a time per thread; the figures do not depend on how many threads there are.

use std::fs;
use std::io::{self, Write as _};
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::Context as _;
use clap::Args as ClapArgs;
use shoal_sim::{Report, Value, cli};

use super::plot::{Line, chart};
use super::{Flags, value};

/// Flags of `shoal sim sweep`.
#[derive(ClapArgs)]
pub(crate) struct Args {
    #[command(flatten)]
    flags: Flags,
    /// A setting and the values to try, such as `upload_slots=2,4,8`; given again, every combination is tried.
    #[arg(long, required = true, value_name = "KEY=V1,V2,…", value_parser = axis)]
    vary: Vec<Axis>,
    /// How many seeds each combination is run with, from `--seed` on.
    #[arg(long, default_value_t = 3)]
    seeds: u64,
    /// How many worlds to run at a time; default: one per core.
    #[arg(long)]
    jobs: Option<NonZero<usize>>,
    /// Write the table to this file, as CSV.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Plot the ratios over the first setting to this file, as SVG.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// One setting and its values, each as it was written and as it is read.
#[derive(Clone)]
struct Axis {
    key: String,
    values: Vec<(String, Value)>,
}

type Figure = (&'static str, fn(&Report) -> f64);

/// What a table's columns show of a run.
const FIGURES: [Figure; 5] = [
    ("ratio_last", |report| report.ratio_last),
    ("ratio_median", |report| report.ratio_median),
    ("origin_copies", |report| report.origin_copies),
    ("duplicate_share", |report| report.duplicate_share),
    ("first_piece_seconds", |report| report.first_piece.p50),
];

/// The figures of one combination over its seeds.
struct Row {
    labels: Vec<String>,
    /// Seeds with which a node that could complete did not.
    stuck: usize,
    /// Mean and worst of each of [`FIGURES`].
    figures: [(f64, f64); FIGURES.len()],
}

/// Runs the sweep, prints the table and writes the files asked for.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let base = args.flags.read()?;
    let combinations = combinations(&args.vary);
    let seeds = args.seeds.max(1);
    let mut worlds = Vec::new();
    for combination in &combinations {
        let mut told = base.clone();
        for (axis, (_, value)) in args.vary.iter().zip(combination) {
            told.set(&axis.key, value.clone())?;
        }
        // So that a sweep fails before it begins, not hours later.
        told.scenario().with_context(|| told.to_string())?;
        worlds.extend((0..seeds).map(|seed| cli::Args { seed: base.seed + seed, ..told.clone() }));
    }
    let jobs = args.jobs.or(thread::available_parallelism().ok()).map_or(1, NonZero::get);
    let reports = play(&worlds, jobs)?;
    let per_row = usize::try_from(seeds).context("too many seeds")?;
    let rows: Vec<Row> =
        combinations.iter().zip(reports.chunks(per_row)).map(|(labels, runs)| row(labels, runs)).collect();
    let keys: Vec<&str> = args.vary.iter().map(|axis| axis.key.as_str()).collect();
    write!(io::stdout().lock(), "{}", table(&keys, &rows))?;
    if let Some(file) = &args.csv {
        fs::write(file, csv(&keys, &rows)).with_context(|| format!("cannot write {}", file.display()))?;
    }
    if let Some(file) = &args.svg {
        fs::write(file, plot(&args.vary, &rows)).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// Plays worlds, as many at a time as there are jobs; gives the reports in the worlds' order.
fn play(worlds: &[cli::Args], jobs: usize) -> anyhow::Result<Vec<Report>> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some((index, told)) = {
            let index = next.fetch_add(1, Ordering::Relaxed);
            worlds.get(index).map(|told| (index, told))
        } {
            let report = told.scenario().and_then(|scenario| Ok(shoal_sim::run(&scenario)?));
            done.lock().expect("nothing panics while it holds this lock").push((index, report));
        }
    };
    thread::scope(|scope| (0..jobs.min(worlds.len())).for_each(|_| drop(scope.spawn(work))));
    let mut done = done.into_inner().expect("nothing panics while it holds this lock");
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(index, report)| report.with_context(|| worlds[index].to_string())).collect()
}

/// Every combination of the axes' values; the last axis changes fastest.
fn combinations(axes: &[Axis]) -> Vec<Vec<(String, Value)>> {
    axes.iter().fold(vec![Vec::new()], |done, axis| {
        let longer = |begun: &Vec<_>| {
            axis.values.iter().map(|value| [begun.clone(), vec![value.clone()]].concat()).collect::<Vec<_>>()
        };
        done.iter().flat_map(longer).collect()
    })
}

fn row(combination: &[(String, Value)], runs: &[Report]) -> Row {
    let figure = |(_, of): Figure| {
        let values = || runs.iter().map(of);
        (values().sum::<f64>() / runs.len() as f64, values().fold(0.0, f64::max))
    };
    Row {
        labels: combination.iter().map(|(label, _)| label.clone()).collect(),
        stuck: runs.iter().filter(|run| !run.all_completed()).count(),
        figures: FIGURES.map(figure),
    }
}

/// A Markdown table: mean, and worst in brackets.
fn table(keys: &[&str], rows: &[Row]) -> String {
    let names = keys.iter().copied().chain(FIGURES.map(|(name, _)| name));
    let head: String = names.map(|name| format!(" {name} |")).collect();
    let rule = " --- |".repeat(keys.len() + FIGURES.len());
    let line = |row: &Row| {
        let labels: String = row.labels.iter().map(|label| format!(" {label} |")).collect();
        let figures: String = row.figures.iter().map(|(mean, worst)| format!(" {mean:.4} ({worst:.4}) |")).collect();
        let stuck = if row.stuck > 0 { format!(" {} runs did not complete", row.stuck) } else { String::new() };
        format!("|{labels}{figures}{stuck}\n")
    };
    format!("|{head}\n|{rule}\n{}", rows.iter().map(line).collect::<String>())
}

fn csv(keys: &[&str], rows: &[Row]) -> String {
    let mut out = keys.join(",");
    for (name, _) in FIGURES {
        out += &format!(",{name}_mean,{name}_worst");
    }
    out += ",stuck\n";
    for row in rows {
        out += &row.labels.join(",");
        row.figures.iter().for_each(|(mean, worst)| out += &format!(",{mean},{worst}"));
        out += &format!(",{}\n", row.stuck);
    }
    out
}

/// The ratios of last and median node over the first axis, a pair of lines for each combination of the others.
fn plot(axes: &[Axis], rows: &[Row]) -> String {
    let x: Vec<&str> = axes[0].values.iter().map(|(label, _)| label.as_str()).collect();
    let others = rows.len() / x.len();
    let line = |other: usize, figure: usize, dashed: bool| {
        let rest = axes[1..].iter().zip(&rows[other].labels[1..]);
        let rest: Vec<String> = rest.map(|(axis, label)| format!("{}={label}", axis.key)).collect();
        Line {
            name: [if dashed { "median" } else { "last" }, &rest.join(" ")].join(" "),
            color: other,
            dashed,
            y: rows.iter().skip(other).step_by(others).map(|row| row.figures[figure].0).collect(),
        }
    };
    let lines: Vec<Line> = (0..others).flat_map(|other| [line(other, 0, false), line(other, 1, true)]).collect();
    chart(&axes[0].key, "time over the optimum", &x, &lines)
}

/// Reads `KEY=V1,V2,…`.
fn axis(text: &str) -> Result<Axis, String> {
    let (key, values) = text.split_once('=').ok_or("give it as KEY=V1,V2,…")?;
    let values = values.split(',').map(|text| (text.to_owned(), value(text))).collect();
    Ok(Axis { key: key.to_owned(), values })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(vary: &[&str]) -> (Vec<Axis>, Vec<cli::Args>) {
        let axes: Vec<_> = vary.iter().map(|text| axis(text).unwrap()).collect();
        let worlds = combinations(&axes).into_iter().map(|combination| {
            let mut told = cli::Args { nodes: Some(4), blob_length: Some(2 << 20), ..cli::Args::default() };
            axes.iter().zip(combination).for_each(|(axis, (_, value))| told.set(&axis.key, value).unwrap());
            told
        });
        (axes.clone(), worlds.collect())
    }

    #[test]
    fn every_combination_is_run_and_threads_change_nothing() {
        let (axes, worlds) = small(&["nodes=2,3", "upload_slots=1,2,4"]);
        assert_eq!(worlds.len(), 6);
        let (one, two) = (play(&worlds, 1).unwrap(), play(&worlds, 2).unwrap());
        assert_eq!(one, two);
        assert_eq!(one.iter().map(|report| report.nodes).collect::<Vec<_>>(), [2, 2, 2, 3, 3, 3]);
        let rows: Vec<Row> = combinations(&axes).iter().zip(one.chunks(1)).map(|(c, runs)| row(c, runs)).collect();
        let keys = ["nodes", "upload_slots"];
        assert_eq!(csv(&keys, &rows).lines().count(), 7);
        let table = table(&keys, &rows);
        assert!(table.starts_with("| nodes | upload_slots | ratio_last |"), "{table}");
        assert_eq!(plot(&axes, &rows).matches("<polyline").count(), 6);
    }
}
