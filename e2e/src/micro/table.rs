//! Figures of one subject over the rounds, and how two subjects compare.

/// One transfer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) bytes: u64,
    /// Of the subject.
    pub(crate) cpu_seconds: f64,
    /// Of the thread at the other end.
    pub(crate) other_cpu_seconds: f64,
    pub(crate) seconds: f64,
    /// The most anonymous memory of the subject, where that was watched.
    pub(crate) anon_bytes: Option<u64>,
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

    /// The best round's GB per second of: the subject's CPU, both ends' CPU, the clock.
    fn figures(&self) -> [f64; 3] {
        let costs: [fn(&Sample) -> f64; 3] = [
            |sample| sample.cpu_seconds,
            |sample| sample.cpu_seconds + sample.other_cpu_seconds,
            |sample| sample.seconds,
        ];
        costs.map(|cost| self.samples.iter().map(|sample| sample.bytes as f64 / 1e9 / cost(sample)).fold(0.0, f64::max))
    }
}

/// Prints rows beside each other; ratios are to the first.
#[expect(clippy::print_stdout, reason = "its output is its purpose")]
pub(crate) fn print(title: &str, rows: &[Row]) {
    let heads = ["GB/CPU-second", "of both ends", "GB/s"].map(|head| format!("{head:>14} {:>5}", "ratio"));
    println!("\n{title}\n  {:44}{}", "", heads.concat());
    let Some(first) = rows.first().map(Row::figures) else { return };
    for row in rows {
        let figures = row.figures().into_iter().zip(first);
        let cells: String = figures.map(|(figure, first)| format!("{figure:>14.2} {:>5.2}", figure / first)).collect();
        println!("  {:44}{cells}", row.name);
    }
}
