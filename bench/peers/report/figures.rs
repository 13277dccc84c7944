//! Computes rows from samples: medians, spreads, and ratios by round.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{BASELINE, FOR_POSTGRES, REFERENCE};
use crate::sample::Sample;

/// The values of one target in one row, by round.
type Rounds = BTreeMap<u32, f64>;

/// One kind of figure of one work.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) label: String,
    unit: String,
    pub(super) compared: bool,
    values: BTreeMap<String, Rounds>,
}

/// All rows, in the order in which they were measured.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) targets: Vec<String>,
    pub(super) rows: Vec<Row>,
}

/// The distribution of a value over the rounds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) most: f64,
    /// The first and third quartile.
    quartiles: (f64, f64),
}

impl Spread {
    fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        // Interpolates between two values.
        let at = |quarters: usize| {
            let (place, part) = ((values.len() - 1) * quarters / 4, (values.len() - 1) * quarters % 4);
            let below = values.get(place).copied().unwrap_or(least);
            let above = values.get(place + 1).copied().unwrap_or(below);
            below + (above - below) * part as f64 / 4.0
        };
        Some(Self { median: at(2), least, most, quartiles: (at(1), at(3)) })
    }

    /// The interquartile range relative to the median.
    fn relative(self) -> f64 {
        (self.quartiles.1 - self.quartiles.0) / self.median
    }
}

impl Row {
    pub(super) fn spread(&self, target: &str) -> Option<Spread> {
        Spread::of(self.values.get(target)?.values().copied())
    }

    /// The ratio of two targets in the same round, so that a slowdown of both cancels out.
    pub(super) fn ratio(&self, target: &str, to: &str) -> Option<Spread> {
        let (own, other) = (self.values.get(target)?, self.values.get(to)?);
        Spread::of(own.iter().filter_map(|(round, value)| Some(value / other.get(round)?)))
    }

    /// The target that the others are divided by.
    pub(super) fn reference(&self) -> Option<&'static str> {
        [REFERENCE, FOR_POSTGRES].into_iter().find(|name| self.values.contains_key(*name))
    }

    /// The largest spread of a ratio among the targets. Smaller differences may be chance.
    fn noise(&self) -> Option<f64> {
        let reference = self.reference()?;
        let others = self.values.keys().filter(|name| *name != reference);
        others.filter_map(|name| Some(self.ratio(name, reference)?.relative())).reduce(f64::max)
    }
}

impl Table {
    pub(super) fn of(samples: &[Sample], targets: Vec<String>) -> Self {
        let mut rows: Vec<Row> = Vec::new();
        for sample in samples.iter().filter(|sample| sample.error.is_none()) {
            let label = format!("{}: {}", sample.title, sample.figure);
            let index = rows.iter().position(|row| row.label == label).unwrap_or(rows.len());
            if index == rows.len() {
                let (unit, compared) = (sample.unit.clone(), sample.compared);
                rows.push(Row { label, unit, compared, values: BTreeMap::new() });
            }
            if let Some(row) = rows.get_mut(index) {
                row.values.entry(sample.target.clone()).or_default().insert(sample.round, sample.value);
            }
        }
        // A target without any measured row has no column.
        let targets = targets.into_iter().filter(|name| rows.iter().any(|row| row.values.contains_key(name)));
        Self { targets: targets.collect(), rows }
    }

    pub(super) fn markdown(&self) -> String {
        let mut text = String::new();
        text += "## Compared with HAProxy\n\nRatio to HAProxy (in brackets: to stunnel, where HAProxy does not support the work). Below 1 is less \
                 than HAProxy. Medians of the ratios of each round. **Noise**: the largest interquartile range of a ratio in \
                 the row; smaller differences may be chance.\n\n";
        text += &self.ratios(Row::reference, true);
        text +=
            "\n## Compared with the plain relay\n\nRatio to the plain relay, which has no TLS and no allowlist.\n\n";
        text += &self.ratios(|_| Some(BASELINE), false);
        text += "\n## All figures\n\nMedian over the rounds (least – most).\n\n";
        text + &self.medians()
    }

    fn ratios(&self, reference: impl Fn(&Row) -> Option<&'static str>, noise: bool) -> String {
        let mut text = self.head("", if noise { " noise |" } else { "" });
        for row in self.rows.iter().filter(|row| row.compared) {
            let Some(to) = reference(row).filter(|to| row.values.contains_key(*to)) else { continue };
            let cells = self.targets.iter().map(|target| {
                let ratio = row.ratio(target, to).map_or_else(|| "–".to_owned(), |ratio| number(ratio.median));
                if to == FOR_POSTGRES && ratio != "–" { format!("({ratio})") } else { ratio }
            });
            let _ = write!(text, "| {} |{}", row.label, joined(cells));
            if noise {
                let noise = row.noise().map_or_else(|| "?".to_owned(), |noise| format!("{:.0} %", noise * 100.0));
                let _ = write!(text, " {noise} |");
            }
            text.push('\n');
        }
        text
    }

    fn medians(&self) -> String {
        let mut text = self.head(" unit |", "");
        for row in &self.rows {
            let cells = self.targets.iter().map(|target| match row.spread(target) {
                None => "–".to_owned(),
                Some(spread) if spread.least == spread.most => number(spread.median),
                Some(spread) => {
                    format!("{} ({} – {})", number(spread.median), number(spread.least), number(spread.most))
                }
            });
            let _ = writeln!(text, "| {} | {} |{}", row.label, row.unit, joined(cells));
        }
        text
    }

    /// The head of a table, with further columns before and after those of the targets.
    fn head(&self, before: &str, after: &str) -> String {
        let columns = |text: &str| "---|".repeat(text.matches('|').count());
        let targets = joined(self.targets.iter().cloned());
        let ruler = "---:|".repeat(self.targets.len());
        format!("| |{before}{targets}{after}\n|---|{}{ruler}{}\n", columns(before), columns(after))
    }
}

fn joined(cells: impl Iterator<Item = String>) -> String {
    cells.map(|cell| format!(" {cell} |")).collect()
}

/// Formats a value with its significant digits.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
