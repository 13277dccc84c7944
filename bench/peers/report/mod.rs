//! The report: tables of medians and ratios, a chart, and the circumstances of the measurement.

mod chart;
mod figures;
mod surroundings;

use std::fs;
use std::path::Path;

use crate::fault::{Context, Result};
use crate::machine::Cores;
use crate::options::Plan;
use crate::rounds::Record;
use crate::sample::Sample;
use crate::targets::Target;
use figures::Table;

/// The target that all others are divided by.
const REFERENCE: &str = "haproxy";
const BASELINE: &str = "relay";
/// The reference where HAProxy does not support the work.
const FOR_POSTGRES: &str = "stunnel";

/// The inputs of the report besides the samples.
#[derive(Debug)]
pub(crate) struct Report<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) cores: Cores,
    pub(crate) targets: &'a [Target],
    pub(crate) absent: &'a [String],
    pub(crate) record: &'a Record,
}

impl Report<'_> {
    /// Writes report.md and chart.svg, and returns the tables.
    pub(crate) fn write(&self, samples: &[Sample], directory: &Path) -> Result<String> {
        let table = Table::of(samples, self.targets.iter().map(|target| target.name.clone()).collect());
        let tables = table.markdown();
        let text = format!(
            "# Cost of the same work\n\n{}\n![CPU and memory compared with HAProxy](chart.svg)\n\n{tables}\n{}",
            self.heading(),
            self.surroundings()
        );
        for (name, text) in [("report.md", &text), ("chart.svg", &chart::draw(&table))] {
            let path = directory.join(name);
            fs::write(&path, text).context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(tables)
    }
}
