//! Figures of one subject over the rounds, and how two subjects compare.

/// One transfer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) bytes: u64,
    pub(crate) cpu_seconds: f64,
    pub(crate) seconds: f64,
}

/// All transfers of one subject.
#[derive(Debug)]
pub(crate) struct Row {
    name: &'static str,
    samples: Vec<Sample>,
}

impl Row {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, samples: Vec::new() }
    }

    pub(crate) fn add(&mut self, sample: Sample) {
        self.samples.push(sample);
    }

    /// The best round's bytes per second of CPU, in GB.
    pub(crate) fn per_cpu_second(&self) -> f64 {
        self.best(|sample| sample.cpu_seconds)
    }

    /// The best round's bytes per second, in GB.
    pub(crate) fn per_second(&self) -> f64 {
        self.best(|sample| sample.seconds)
    }

    fn best(&self, cost: impl Fn(&Sample) -> f64) -> f64 {
        self.samples.iter().map(|sample| sample.bytes as f64 / 1e9 / cost(sample)).fold(0.0, f64::max)
    }
}

/// Prints rows beside each other; ratios are to the first.
#[expect(clippy::print_stdout, reason = "its output is its purpose")]
pub(crate) fn print(title: &str, rows: &[Row]) {
    println!("\n{title}\n  {:44} {:>13} {:>6} {:>8} {:>6}", "", "GB/CPU-second", "ratio", "GB/s", "ratio");
    let Some(first) = rows.first() else { return };
    for row in rows {
        let (cpu, wall) = (row.per_cpu_second(), row.per_second());
        let (of_cpu, of_wall) = (cpu / first.per_cpu_second(), wall / first.per_second());
        println!("  {:44} {cpu:>13.2} {of_cpu:>6.2} {wall:>8.2} {of_wall:>6.2}", row.name);
    }
}
