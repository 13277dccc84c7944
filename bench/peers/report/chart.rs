//! The chart, written as SVG: a line for each row and a mark for each target. Further left is less.

use std::fmt::Write;

use super::figures::{Row, Table, number};
use crate::targets::OTHERS;

const LEFT: f64 = 390.0;
const WIDTH: f64 = 560.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 92.0;
const LINE: f64 = 30.0;
/// The ends of the logarithmic scale.
const SCALE: (f64, f64) = (0.05, 10.0);
const GRID: [f64; 8] = [0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];
/// Colours that colour-blind readers can distinguish.
const COLOURS: [&str; 10] =
    ["#999999", "#000000", "#009e73", "#e69f00", "#cc79a7", "#56b4e9", "#8b5a2b", "#d55e00", "#0072b2", "#7b3294"];

pub(super) fn draw(table: &Table) -> String {
    let rows: Vec<(&Row, &str)> = table
        .rows
        .iter()
        .filter(|row| row.compared)
        .filter_map(|row| Some((row, row.reference()?)))
        .filter(|(row, to)| table.targets.iter().any(|target| target != to && row.ratio(target, to).is_some()))
        .collect();
    let (width, bottom) = (LEFT + WIDTH + RIGHT, TOP + LINE * rows.len() as f64);
    let height = bottom + 46.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    text(&mut svg, (12.0, 26.0), "font-size=\"18\" font-weight=\"bold\"", "Ratio to HAProxy");
    let explained = "Further left is less. Marks are medians of the rounds, lines show minimum to maximum. (s): relative to stunnel.";
    text(&mut svg, (12.0, 46.0), "fill=\"#555555\"", explained);
    legend(&mut svg, &table.targets);
    grid(&mut svg, bottom);
    for (number, (row, to)) in rows.iter().enumerate() {
        line(&mut svg, table, (*row, *to), TOP + LINE * (number as f64 + 0.5));
    }
    svg + "</svg>\n"
}

fn legend(svg: &mut String, targets: &[String]) {
    let mut x = 20.0;
    for (index, target) in targets.iter().enumerate() {
        mark(svg, (x, 68.0), index, target);
        text(svg, (x + 10.0, 72.0), "", target);
        x += 36.0 + 8.0 * target.len() as f64;
    }
}

fn grid(svg: &mut String, bottom: f64) {
    for value in GRID {
        let (x, one) = (place(value), (value - 1.0).abs() < f64::EPSILON);
        let stroke = if one { "stroke=\"#444444\" stroke-width=\"1.5\"" } else { "stroke=\"#dddddd\"" };
        let _ = writeln!(svg, "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\" {stroke}/>");
        text(svg, (x, bottom + 18.0), "text-anchor=\"middle\" fill=\"#555555\"", &format!("{value}×"));
    }
}

/// One row: its name, its marks, and the figures of Portcullis.
fn line(svg: &mut String, table: &Table, (row, to): (&Row, &str), y: f64) {
    let stunnel = if to == super::FOR_POSTGRES { " (s)" } else { "" };
    let (start, end) = (LEFT, LEFT + WIDTH);
    let _ = writeln!(svg, "<line x1=\"{start}\" y1=\"{y}\" x2=\"{end}\" y2=\"{y}\" stroke=\"#f0f0f0\"/>");
    text(svg, (LEFT - 12.0, y + 4.0), "text-anchor=\"end\"", &format!("{}{stunnel}", row.label));
    let mut own = Vec::new();
    for (index, target) in table.targets.iter().enumerate() {
        let Some(ratio) = row.ratio(target, to) else { continue };
        // Offset from the line, so that equal values do not hide each other.
        let y = y + (index as f64 - (table.targets.len() as f64 - 1.0) / 2.0) * 2.6;
        let (least, most, colour) = (place(ratio.least), place(ratio.most), colour(index));
        let _ = writeln!(
            svg,
            "<line x1=\"{least:.1}\" y1=\"{y:.1}\" x2=\"{most:.1}\" y2=\"{y:.1}\" stroke=\"{colour}\" stroke-width=\"1.5\"/>"
        );
        mark(svg, (place(ratio.median), y), index, target);
        if ours(target) {
            own.push(number(ratio.median));
        }
    }
    let style = format!("fill=\"{}\" font-weight=\"bold\"", colour(7));
    text(svg, (LEFT + WIDTH + 14.0, y + 4.0), &style, &own.join("  "));
}

/// Whether a target is a Portcullis binary: all others have fixed names.
fn ours(target: &str) -> bool {
    !OTHERS.contains(&target)
}

fn mark(svg: &mut String, (x, y): (f64, f64), index: usize, target: &str) {
    let colour = colour(index);
    let _ = if ours(target) {
        let points = [(x, y - 7.0), (x + 7.0, y), (x, y + 7.0), (x - 7.0, y)].map(|(x, y)| format!("{x:.1},{y:.1}"));
        writeln!(svg, "<polygon points=\"{}\" fill=\"{colour}\"/>", points.join(" "))
    } else {
        writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\" fill=\"{colour}\"/>")
    };
}

fn colour(index: usize) -> &'static str {
    COLOURS.get(index % COLOURS.len()).copied().unwrap_or("#000000")
}

/// The position of a ratio on the scale, clamped to its ends.
fn place(ratio: f64) -> f64 {
    let (least, most) = SCALE;
    LEFT + WIDTH * (ratio.clamp(least, most) / least).ln() / (most / least).ln()
}

fn text(svg: &mut String, (x, y): (f64, f64), style: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" {style}>{text}</text>");
}
