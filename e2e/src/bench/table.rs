//! Rows as Markdown, and its place in `docs/benchmarks.md`.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::case::Start;
use super::row::{Direct, Row};

const BEGIN: &str = "<!-- written by make bench: begin -->\n";
const END: &str = "<!-- written by make bench: end -->\n";

/// The table of one case. Rows of the same case only.
pub(super) fn table(rows: &[Row], direct: Option<Direct>) -> String {
    let Some(first) = rows.first() else { return String::new() };
    let case = first.case;
    let mut text = format!("`{case}`: {}; the bound is {:.2} s.\n\n", case.describe(), first.bound);
    let names = match case.start {
        Start::Alone => "seconds | over direct | first byte, ms | later than direct, ms",
        Start::Cold | Start::Warm => "min | median | p95 | max | last, s",
    };
    let costs = "registry copies | origin copies | received copies | twice | CPU-s a node | anon MiB | idle";
    let columns = names.split('|').chain(costs.split('|')).count();
    let _infallible = writeln!(text, "| system | {names} | {costs} |\n|{}", " --- |".repeat(columns + 1));
    for row in rows {
        let times = if case.start == Start::Alone { alone(row, direct) } else { swarm(row) };
        let _infallible = writeln!(text, "| {} | {times} | {} |", row.system, costs_of(row));
    }
    for line in rows.iter().flat_map(Row::doubts) {
        let _infallible = write!(text, "\nDoubtful: {line}.");
    }
    for line in rows.iter().filter(|row| row.system == "shoal").flat_map(|row| row.misses(direct)) {
        let _infallible = write!(text, "\nMissed by shoal in {line}.");
    }
    text.trim_end().to_owned() + "\n\n"
}

fn swarm(row: &Row) -> String {
    let ratios = [0.0, 0.5, 0.95, 1.0].map(|share| format!("{:.2}", row.ratio_at(share)));
    format!("{} | {:.2}", ratios.join(" | "), row.seconds_at(1.0))
}

fn alone(row: &Row, direct: Option<Direct>) -> String {
    let over = direct.map(|direct| format!("{:.2}", row.seconds_at(1.0) / direct.seconds));
    let first = row.first_byte().map(|first| format!("{:.0}", first * 1e3));
    let later = direct.zip(row.first_byte()).map(|(direct, first)| format!("{:.0}", (first - direct.first_byte) * 1e3));
    format!("{:.2} | {} | {} | {}", row.seconds_at(1.0), or_dash(over), or_dash(first), or_dash(later))
}

fn costs_of(row: &Row) -> String {
    format!(
        "{:.3} | {} | {:.3} | {} | {:.2} | {:.0} | {:.0} %",
        row.upstream_copies,
        or_dash(row.origin_copies.map(|copies| format!("{copies:.2}"))),
        row.received_copies(),
        or_dash(row.twice.map(|share| format!("{:.2} %", share * 100.0))),
        row.cpu_seconds(),
        row.anon_mib(),
        row.cost.idle * 100.0,
    )
}

fn or_dash(figure: Option<String>) -> String {
    figure.unwrap_or_else(|| "–".to_owned())
}

/// Puts `text` between the marks of a document.
///
/// # Errors
/// When the file cannot be read or written, or lacks the marks.
pub(super) fn write_into(document: &Path, text: &str) -> Result<()> {
    let name = document.display();
    let before = fs::read_to_string(document).with_context(|| name.to_string())?;
    let after = replaced(&before, text).with_context(|| format!("{name} lacks the marks {BEGIN:?} and {END:?}"))?;
    fs::write(document, after).with_context(|| name.to_string())
}

fn replaced(document: &str, text: &str) -> Option<String> {
    let (head, rest) = document.split_once(BEGIN)?;
    let (_, tail) = rest.split_once(END)?;
    Some(format!("{head}{BEGIN}\n{}\n\n{END}{tail}", text.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_changes() {
        let document = format!("a\n{BEGIN}old\n{END}b\n");
        let after = replaced(&document, "new\n\n").unwrap_or_default();
        assert_eq!(after, format!("a\n{BEGIN}\nnew\n\n{END}b\n"));
        assert_eq!(replaced("no marks", "new"), None);
    }
}
