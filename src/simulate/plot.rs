//! A line chart as SVG, readable on light and dark grounds: no ground of its own, greys and colours of middle lightness.

use std::fmt::Write as _;

/// One line: a value for each place on the x axis.
pub(super) struct Line {
    pub(super) name: String,
    /// Lines of the same number have the same colour.
    pub(super) color: usize,
    pub(super) dashed: bool,
    pub(super) y: Vec<f64>,
}

const COLORS: [&str; 7] = ["#4e86c6", "#e0791f", "#46a35a", "#d0504f", "#9a72c2", "#9c755f", "#1fa3a3"];
const GREY: &str = "#808080";
/// The plot's box, in pixels: left, top, width, height; the legend stands right of it.
const BOX: (f64, f64, f64, f64) = (64.0, 16.0, 520.0, 300.0);
const LEGEND_WIDTH: f64 = 280.0;

/// Draws the lines over named places on the x axis, evenly spaced.
pub(super) fn chart(x_name: &str, y_name: &str, x: &[&str], lines: &[Line]) -> String {
    let (left, top, width, height) = BOX;
    let ticks = ticks(lines.iter().flat_map(|line| line.y.iter().copied()));
    let (low, high) = (ticks[0], ticks[ticks.len() - 1]);
    let at_x = |index: usize| left + width * (index as f64 + 0.5) / x.len().max(1) as f64;
    let at_y = |value: f64| top + height * (high - value) / (high - low);
    let (bottom, all_width, all_height) = (top + height, left + width + LEGEND_WIDTH, top + height + 56.0);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {all_width} {all_height}\" width=\"{all_width}\" \
         height=\"{all_height}\" font-family=\"sans-serif\" font-size=\"13\" fill=\"{GREY}\">\n"
    );
    for tick in &ticks {
        let (y, right) = (at_y(*tick), left + width);
        let label = decimals(*tick, ticks[1] - ticks[0]);
        put(&mut out, format_args!("<path d=\"M{left} {y:.1}H{right}\" stroke=\"{GREY}\" stroke-opacity=\"0.35\"/>"));
        put(
            &mut out,
            format_args!("<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>", left - 8.0, y + 4.0),
        );
    }
    for (index, name) in x.iter().enumerate() {
        let (x, y, name) = (at_x(index), bottom + 20.0, escape(name));
        put(&mut out, format_args!("<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{name}</text>"));
    }
    let (x_middle, y_middle) = (left + width / 2.0, top + height / 2.0);
    let (x_name, y_name) = (escape(x_name), escape(y_name));
    put(
        &mut out,
        format_args!("<text x=\"{x_middle}\" y=\"{}\" text-anchor=\"middle\">{x_name}</text>", bottom + 44.0),
    );
    let turned = format!("transform=\"rotate(-90 16 {y_middle})\" text-anchor=\"middle\"");
    put(&mut out, format_args!("<text x=\"16\" y=\"{y_middle}\" {turned}>{y_name}</text>"));
    for (index, line) in lines.iter().enumerate() {
        let color = COLORS[line.color % COLORS.len()];
        let dash = if line.dashed { " stroke-dasharray=\"5 4\"" } else { "" };
        let stroke = format!("fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"{dash}");
        let points: String =
            line.y.iter().enumerate().map(|(x, y)| format!("{:.1},{:.1} ", at_x(x), at_y(*y))).collect();
        put(&mut out, format_args!("<polyline points=\"{}\" {stroke}/>", points.trim_end()));
        for (x, y) in line.y.iter().enumerate() {
            put(
                &mut out,
                format_args!("<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{color}\"/>", at_x(x), at_y(*y)),
            );
        }
        let (x, y) = (left + width + 16.0, top + 12.0 + 20.0 * index as f64);
        put(&mut out, format_args!("<path d=\"M{x} {y}h24\" {stroke}/>"));
        put(&mut out, format_args!("<text x=\"{}\" y=\"{}\">{}</text>", x + 32.0, y + 4.0, escape(line.name.trim())));
    }
    out + "</svg>\n"
}

fn put(out: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = writeln!(out, "{line}");
}

/// Round values from at or below the least to at or above the greatest: two to about eight.
fn ticks(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
    let (low, span) = if high > low { (low, high - low) } else { (if high < low { 0.0 } else { low }, 0.1) };
    let power = 10f64.powf((span / 5.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| span / step <= 6.0);
    let step = step.unwrap_or(span);
    let first = (low / step).floor();
    let mut out = vec![first * step];
    while out[out.len() - 1] < low + span || out.len() < 2 {
        out.push((first + out.len() as f64) * step);
    }
    out
}

/// A tick with as many decimals as the step between ticks has.
fn decimals(tick: f64, step: f64) -> String {
    let count = (-step.log10().floor()).clamp(0.0, 6.0);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
    let count = count as usize;
    format!("{tick:.count$}")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_enclose_the_values() {
        let show = |values: &[f64]| {
            let ticks = ticks(values.iter().copied());
            ticks.iter().map(|tick| decimals(*tick, ticks[1] - ticks[0])).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(show(&[1.03, 1.11]), "1.02 1.04 1.06 1.08 1.10 1.12");
        assert_eq!(show(&[0.0, 10.0]), "0 2 4 6 8 10");
        assert!(show(&[1.0]).starts_with("1.00"), "{}", show(&[1.0]));
        assert!(show(&[]).starts_with("0.00"), "{}", show(&[]));
    }

    #[test]
    fn names_are_escaped() {
        let line = Line { name: "a<b".to_owned(), color: 0, dashed: true, y: vec![1.0, 2.0] };
        let chart = chart("x&y", "z", &["1", "2"], &[line]);
        assert!(chart.contains("a&lt;b") && chart.contains("x&amp;y") && chart.ends_with("</svg>\n"), "{chart}");
    }
}
