//! What came of it, as Markdown, and which promises were broken.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

use super::cast::{AGENT_STORE_BYTES, Cast, Kind};
use super::chaos::Deeds;
use super::images::Images;
use super::pulls::Pull;
use super::watch::{Sample, Store, Watched};
use crate::registry::{Fetched, Registry};
use crate::usage::to_f64;

/// What caches, pools and connection tables need to fill: a tenth of the run, and this at least. It does not count.
const WARM_UP_SECONDS_MIN: f64 = 60.0;
/// How much more the last third of the run may have than the first: a quarter, and what follows. Between thirds of eight minutes, less
/// would be noise of what happens to be under way, and a leak of a quarter in that time is one of gigabytes in a month.
const GROWTH: f64 = 1.25;
const GROWTH_BYTES: f64 = 4.0 * 1024.0 * 1024.0;
const GROWTH_FILES: f64 = 8.0;
/// Ages of processes, in seconds, up to which the killed ones are shown together.
const AGES: [f64; 4] = [10.0, 60.0, 180.0, f64::INFINITY];
/// Blocks, directories and what says which pieces are there, beside the bytes that a store counts.
const STORE_SLACK_BYTES: u64 = 4 << 20;

/// The figures of a run.
#[derive(Debug)]
pub(super) struct Report {
    /// What was done and how it went: name and figures.
    lines: Vec<(String, String)>,
    /// Of each part that is never killed.
    spared: Vec<String>,
    /// Of the others, by age.
    killed: Vec<String>,
    failures: Vec<String>,
}

impl Report {
    pub(super) fn new(
        cast: &Cast,
        images: &Images,
        registry: &Registry,
        pulls: Vec<Pull>,
        watched: Watched,
        deeds: &Deeds,
        lasted: Duration,
    ) -> Result<Self> {
        let mut report = Self { lines: Vec::new(), spared: Vec::new(), killed: Vec::new(), failures: Vec::new() };
        report.of_pulls(&pulls);
        report.of_sources(cast, images, &registry.fetched()?);
        report.of_deeds(cast, deeds);
        report.of_stores(cast, &watched.stores);
        report.of_logs(cast)?;
        report.of_spared(cast, &watched.samples, lasted.as_secs_f64());
        report.of_killed(cast, &watched.samples);
        Ok(report)
    }

    pub(super) fn failures(&self) -> &[String] {
        &self.failures
    }

    fn line(&mut self, name: &str, figures: String) {
        self.lines.push((name.to_owned(), figures));
    }

    fn of_pulls(&mut self, pulls: &[Pull]) {
        let failed = pulls.iter().filter_map(|pull| Some((pull, pull.failure.as_ref()?)));
        let failed = failed.map(|(pull, why)| {
            let Pull { node, reference, at, seconds, .. } = pull;
            format!("{node} failed to pull {reference} at {at:.0} s after {seconds:.1} s: {why}")
        });
        let before = self.failures.len();
        self.failures.extend(failed);
        let failed = self.failures.len() - before;
        let done = pulls.iter().filter(|pull| pull.failure.is_none());
        let bytes = done.clone().map(|pull| pull.bytes).sum::<u64>();
        let mut seconds = done.map(|pull| pull.seconds).collect::<Vec<_>>();
        self.line("pulls, done and failed", format!("{}, {failed}", seconds.len()));
        self.line("pulled and checked", gb(to_f64(bytes)));
        seconds.sort_unstable_by(f64::total_cmp);
        let [median, late, last] = [0.5, 0.99, 1.0].map(|share| at(&seconds, share));
        self.line("seconds of a pull, median, p99, max", format!("{median:.2}, {late:.2}, {last:.2}"));
    }

    fn of_sources(&mut self, cast: &Cast, images: &Images, fetched: &[Fetched]) {
        let of = |kind, name: &str| cast.of(kind).map(|part| part.counted(name)).sum::<f64>();
        let received = |source| of(Kind::Agent, &format!("shoal_agent_bytes_total{{source=\"{source}\"}}"));
        let peers = received("peer_same_zone") + received("peer_other_zone");
        let [local, origin, upstream] = ["local", "origin", "upstream"].map(received);
        let all = local + peers + origin + upstream;
        let shares = [local, peers, origin, upstream].map(|bytes| format!("{:.1} %", 100.0 * bytes / all));
        self.line("agents had it from own store, peers, origins, registry", shares.join(", "));
        let kind_of = |fetched: &Fetched| {
            let by = cast.parts.iter().find(|part| part.node.ip().to_string() == fetched.by);
            by.map(|part| part.kind).filter(|_| fetched.agent.starts_with("shoal"))
        };
        let sent = |kind: Option<Kind>| {
            let to = fetched.iter().filter(|fetched| kind_of(fetched) == kind);
            gb(to_f64(to.map(|fetched| fetched.bytes).sum()))
        };
        let to = [Some(Kind::Origin), Some(Kind::Agent), None].map(sent);
        self.line("the registry sent to origins, agents, containerd", to.join(", "));
        let mut counts = BTreeMap::<&str, u64>::new();
        for Fetched { digest, .. } in fetched {
            *counts.entry(digest).or_default() += 1;
        }
        let mut counts = counts.into_values().map(to_f64).collect::<Vec<_>>();
        counts.sort_unstable_by(f64::total_cmp);
        let (length, blobs) = images.length();
        let copies = to_f64(fetched.iter().map(|fetched| fetched.bytes).sum()) / to_f64(length);
        let figures = format!("{copies:.1}; {:.0}, {:.0}", at(&counts, 0.5), at(&counts, 1.0));
        self.line(
            &format!("copies of the set ({}, {blobs} blobs); requests for a blob, median and max", gb(to_f64(length))),
            figures,
        );
        let evicted =
            [(Kind::Agent, "shoal_agent_cache_evictions_total"), (Kind::Origin, "shoal_origin_store_evictions_total")];
        let evicted = evicted.map(|(kind, name)| format!("{:.0}", of(kind, name)));
        self.line("evictions of agents, origins", evicted.join(", "));
        let reasons = ["alone", "stalled", "store", "small_range"];
        let fallbacks = reasons.map(|reason| {
            let name = format!("shoal_agent_fallbacks_total{{reason=\"{reason}\"}}");
            format!("{reason} {:.0}", of(Kind::Agent, &name))
        });
        let cut = of(Kind::Agent, "shoal_agent_bodies_cut_total");
        self.line("agents asked the registry beside the swarm", fallbacks.join(", "));
        self.line("bodies cut short as no source was left", format!("{cut:.0}"));
    }

    fn of_deeds(&mut self, cast: &Cast, deeds: &Deeds) {
        for kind in Kind::ALL {
            let killable = cast.of(kind).filter(|part| !part.spared).count();
            let [killed, ended, robbed] = deeds.done.get(&kind).copied().unwrap_or_default();
            let name = format!("{}s, {killable} may be killed: kill -9, SIGTERM, stores removed", kind.name());
            self.line(&name, format!("{killed}, {ended}, {robbed}"));
        }
        let mut endings = deeds.endings.clone();
        endings.sort_unstable_by(f64::total_cmp);
        if !endings.is_empty() {
            let (median, last) = (at(&endings, 0.5), at(&endings, 1.0));
            self.line("seconds from SIGTERM to the end, median, max", format!("{median:.1}, {last:.1}"));
        }
        self.line("ended by themselves, badly or not started", deeds.broken.len().to_string());
        self.failures.extend(deeds.broken.iter().cloned());
    }

    fn of_stores(&mut self, cast: &Cast, stores: &[Store]) {
        let of_agents = || stores.iter().filter(|store| cast.parts[store.part].kind == Kind::Agent);
        let held = of_agents().map(|store| store.held_bytes).fold(0.0, f64::max);
        let disk = of_agents().map(|store| store.disk_bytes).max().unwrap_or(0);
        let budget = to_f64(AGENT_STORE_BYTES);
        let figures = [budget, held, to_f64(disk)].map(|bytes| format!("{:.1}", mib(bytes)));
        self.line("an agent's budget, most it held, most on its disk, MiB", figures.join(", "));
        for store in of_agents() {
            let (held, disk) = (store.held_bytes, store.disk_bytes);
            if held > budget || disk > AGENT_STORE_BYTES + STORE_SLACK_BYTES {
                let part = &cast.parts[store.part];
                self.failures
                    .push(format!("{part} held {held:.0} bytes, {disk} on its disk: its budget is {budget:.0}"));
            }
        }
    }

    fn of_logs(&mut self, cast: &Cast) -> Result<()> {
        let (mut errors, mut panics) = (Vec::new(), 0);
        for part in &cast.parts {
            let path = part.node.dir().join(format!("{}.log", part.kind.name()));
            let log = fs::read(&path).with_context(|| path.display().to_string())?;
            let log = String::from_utf8_lossy(&log);
            errors.extend(log.lines().filter(|line| line.contains(" ERROR ")).map(|line| format!("{part}: {line}")));
            let panicked = log.lines().filter(|line| line.contains("panicked at"));
            let panicked = panicked.map(|line| format!("{part}: {line}")).collect::<Vec<_>>();
            panics += panicked.len();
            self.failures.extend(panicked);
        }
        self.line("panics, lines of level error in logs", format!("{panics}, {}", errors.len()));
        Ok(())
    }

    fn of_spared(&mut self, cast: &Cast, samples: &[Sample], lasted: f64) {
        for (index, part) in cast.parts.iter().enumerate().filter(|(_, part)| part.spared) {
            let of_part = samples.iter().filter(|sample| sample.part == index).collect::<Vec<_>>();
            let memory = Thirds::new(of_part.iter().map(|sample| (sample.at, to_f64(sample.anon_bytes))), lasted);
            let files = Thirds::new(of_part.iter().map(|sample| (sample.at, to_f64(sample.open_files))), lasted);
            let threads = of_part.iter().map(|sample| sample.threads).max().unwrap_or(0);
            let row = format!(
                "| {part} | {} | {} | {threads} |",
                memory.cells(|bytes| format!("{:.1}", mib(bytes))),
                files.cells(|count| format!("{count:.0}"))
            );
            self.spared.push(row);
            for (what, thirds, more) in [("bytes of memory", memory, GROWTH_BYTES), ("files", files, GROWTH_FILES)] {
                let [first, _, last] = thirds.medians;
                if thirds.grew(more) {
                    self.failures
                        .push(format!("{part} grew: {first:.0} {what} in the first third, {last:.0} in the last"));
                }
            }
        }
    }

    fn of_killed(&mut self, cast: &Cast, samples: &[Sample]) {
        for kind in Kind::ALL {
            let mut from = 0.0;
            for to in AGES {
                let here = |sample: &&Sample| {
                    let part = &cast.parts[sample.part];
                    part.kind == kind && !part.spared && (from..to).contains(&sample.age)
                };
                let seen = samples.iter().filter(here).collect::<Vec<_>>();
                let memory = || seen.iter().map(|sample| to_f64(sample.anon_bytes));
                let files = || seen.iter().map(|sample| to_f64(sample.open_files));
                let age = if to.is_finite() { format!("{from:.0} to {to:.0} s") } else { format!("over {from:.0} s") };
                self.killed.push(format!(
                    "| {} | {age} | {} | {:.1} | {:.1} | {:.0} | {:.0} |",
                    kind.name(),
                    seen.len(),
                    mib(median(memory())),
                    mib(memory().fold(0.0, f64::max)),
                    median(files()),
                    files().fold(0.0, f64::max),
                ));
                from = to;
            }
        }
    }
}

/// A figure of one process over a run.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Thirds {
    /// Of each third of what follows the warm-up.
    medians: [f64; 3],
    /// Of all of it.
    most: f64,
}

impl Thirds {
    /// Of figures at seconds of a run that lasted so many.
    fn new(figures: impl Iterator<Item = (f64, f64)> + Clone, lasted: f64) -> Self {
        let warm_up = WARM_UP_SECONDS_MIN.max(lasted / 10.0);
        let third = (lasted - warm_up) / 3.0;
        let medians = [0.0, 1.0, 2.0].map(|number| {
            let from = warm_up + third * number;
            let here = figures.clone().filter(|(at, _)| (from..from + third).contains(at));
            median(here.map(|(_, figure)| figure))
        });
        Self { medians, most: figures.map(|(_, figure)| figure).fold(0.0, f64::max) }
    }

    fn grew(&self, more: f64) -> bool {
        let [first, _, last] = self.medians;
        last > first * GROWTH + more
    }

    fn cells(&self, text: impl Fn(f64) -> String) -> String {
        let [first, second, last] = self.medians;
        [first, second, last, self.most].map(text).join(" | ")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| | |\n| --- | --- |")?;
        for (name, figures) in &self.lines {
            writeln!(f, "| {name} | {figures} |")?;
        }
        let thirds = "first third | second | last | max";
        writeln!(
            f,
            "\n| never killed | anon MiB, {thirds} | files, {thirds} | threads, max |\n|{}",
            " --- |".repeat(10)
        )?;
        self.spared.iter().try_for_each(|row| writeln!(f, "{row}"))?;
        let columns = "samples | anon MiB, median | max | files, median | max";
        writeln!(f, "\n| killed again and again | age | {columns} |\n|{}", " --- |".repeat(7))?;
        self.killed.iter().try_for_each(|row| writeln!(f, "{row}"))?;
        self.failures.iter().try_for_each(|failure| write!(f, "\nBROKEN: {failure}"))
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values = values.collect::<Vec<_>>();
    values.sort_unstable_by(f64::total_cmp);
    at(&values, 0.5)
}

/// What this share of the values, in order, does not pass; nothing of none.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index among them")]
fn at(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let index = (to_f64(last as u64) * share).round() as usize;
    sorted.get(index).copied().unwrap_or(0.0)
}

fn mib(bytes: f64) -> f64 {
    bytes / 1024.0 / 1024.0
}

fn gb(bytes: f64) -> String {
    format!("{:.2} GB", bytes / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a run of 1,060 seconds: a minute to warm up, and ten of each figure a third.
    fn thirds(figures: [f64; 4]) -> Thirds {
        let seconds = (0..106).map(|ten| f64::from(ten) * 10.0);
        let figure = |at: f64| figures.into_iter().zip([106.0, 424.0, 742.0, f64::INFINITY]).find(|(_, to)| at < *to);
        let figures = seconds.map(|at| (at, figure(at).map_or(0.0, |(figure, _)| figure))).collect::<Vec<_>>();
        Thirds::new(figures.into_iter(), 1_060.0)
    }

    #[test]
    fn what_is_there_while_it_warms_up_is_no_growth() {
        let thirds = thirds([1.0, 100.0, 90.0, 110.0]);
        assert_eq!(thirds, Thirds { medians: [100.0, 90.0, 110.0], most: 110.0 });
        assert!(!thirds.grew(0.0));
    }

    #[test]
    fn more_than_a_quarter_and_the_noise_is_growth() {
        let thirds = thirds([1.0, 100.0, 110.0, 130.0]);
        assert!(thirds.grew(4.0));
        assert!(!thirds.grew(5.0));
    }

    #[test]
    fn a_share_of_values_is_found() {
        assert_eq!([0.0, 0.5, 1.0].map(|share| at(&[1.0, 2.0, 3.0], share)), [1.0, 2.0, 3.0]);
        assert!(at(&[], 0.5).abs() < f64::EPSILON);
    }
}
