//! Tables for a terminal of 120 columns.

use std::fmt::Write as _;

use crate::printable;

/// A table whose last column is wrapped to the remaining width of the line.
#[derive(Debug)]
pub(crate) struct Table<const N: usize> {
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    pub(crate) fn new(heads: [&str; N]) -> Self {
        Self { rows: vec![heads.map(str::to_owned)] }
    }

    pub(crate) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }

    /// Renders the table with `indent` before each line.
    pub(crate) fn render(&self, indent: &str) -> String {
        let widths = self.widths();
        let Some((_, widths)) = widths.split_last() else { return String::new() };
        let before = indent.len() + widths.iter().map(|width| width + GAP).sum::<usize>();
        let width = LINE.saturating_sub(before).max(MIN_LAST_COLUMN);
        let mut out = String::new();
        for row in &self.rows {
            let Some((last, cells)) = row.split_last() else { continue };
            let mut line = indent.to_owned();
            for (cell, width) in cells.iter().zip(widths) {
                let _ = write!(line, "{:<width$}", clipped(cell, *width), width = width + GAP);
            }
            for part in wrapped(last, width) {
                let _ = writeln!(out, "{}", format_args!("{line}{part}").to_string().trim_end());
                line = " ".repeat(before);
            }
        }
        out
    }

    fn widths(&self) -> [usize; N] {
        let mut widths = [0; N];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().clamp(*width, MAX_CELL.max(*width));
            }
        }
        widths
    }
}

/// Cuts the text to `width` characters, with `…` at the cut. Never cuts within an escape sequence.
pub(crate) fn clipped(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut left = width.saturating_sub("…".chars().count());
    let fits = |piece: &&str| {
        let count = piece.chars().count();
        let fits = count <= left;
        left = left.saturating_sub(count);
        fits
    };
    printable::pieces(text).take_while(fits).chain(["…"]).collect()
}

/// Breaks the text between words into at least one line of at most `width` characters.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let Some(line) = lines.last_mut() else { break };
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

const LINE: usize = 120;
const GAP: usize = 2;

/// An IPv6 address with its port, the longest text that must not be cut.
const MAX_CELL: usize = 48;

const MIN_LAST_COLUMN: usize = 24;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clipped_text_keeps_escape_sequences_whole() {
        assert_eq!(clipped("abcdef", 6), "abcdef");
        assert_eq!(clipped("abcdefg", 6), "abcde…");
        assert_eq!(clipped("CN=a\\e2\\80\\aeb", 12), "CN=a…");
        assert_eq!(clipped("CN=a\\u{202e}bcd", 14), "CN=a\\u{202e}b…");
    }

    #[test]
    fn last_column_is_wrapped_below_itself() {
        let mut table = Table::new(["NAME", "WHY"]);
        table.row(["x".repeat(MAX_CELL + 10), "word ".repeat(20)]);
        table.row(["short".to_owned(), String::new()]);
        let text = table.render("  ");
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.iter().all(|line| line.chars().count() <= LINE), "{text}");
        assert_eq!(lines.len(), 4, "{text}");
        let column = |line: &str| line.split(['W', 'w']).next().map(|before| before.chars().count());
        assert_eq!((column(lines[0]), column(lines[1])), (column(lines[2]), column(lines[2])), "{text}");
        assert!(lines[1].contains("x…  word"), "{text}");
        assert_eq!(lines[3], "  short");
    }
}
