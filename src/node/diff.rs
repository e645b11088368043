//! Shows a change to a file as lines taken away and lines added, for `--dry-run`.

use std::fmt::Write as _;

/// Unchanged lines shown around what changes.
const CONTEXT: usize = 2;

/// A diff of one change: what all lines before and after the first and last difference have in common is left out.
pub(super) fn diff(path: &str, from: Option<&str>, to: Option<&str>) -> String {
    let name = |text: Option<&str>| if text.is_some() { path.to_owned() } else { "/dev/null".to_owned() };
    let mut out = format!("--- {}\n+++ {}\n", name(from), name(to));
    let (from, to) = (lines(from), lines(to));
    let same = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let same_end = from[same..].iter().rev().zip(to[same..].iter().rev()).take_while(|(a, b)| a == b).count();
    let mut show = |sign: char, lines: &[&str]| {
        lines.iter().for_each(|line| writeln!(out, "{sign}{line}").expect("a string takes all"));
    };
    show(' ', &from[same.saturating_sub(CONTEXT)..same]);
    show('-', &from[same..from.len() - same_end]);
    show('+', &to[same..to.len() - same_end]);
    show(' ', &from[from.len() - same_end..][..same_end.min(CONTEXT)]);
    out
}

fn lines(text: Option<&str>) -> Vec<&str> {
    text.unwrap_or_default().lines().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_shows_its_lines_and_a_little_around() {
        let shown = diff("/a", Some("1\n2\n3\n4\n5\n6\n7\n"), Some("1\n2\n3\nfour\n5\n6\n7\n"));
        assert_eq!(shown, "--- /a\n+++ /a\n 2\n 3\n-4\n+four\n 5\n 6\n");
        assert_eq!(diff("/a", None, Some("x\n")), "--- /dev/null\n+++ /a\n+x\n");
        assert_eq!(diff("/a", Some("x\nx\n"), Some("x\n")), "--- /a\n+++ /a\n x\n-x\n");
    }
}
