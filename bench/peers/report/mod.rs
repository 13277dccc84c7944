//! The report: tables of medians and ratios, a chart, and all that one needs to know to doubt them.

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

/// Who everybody is divided by.
const REFERENCE: &str = "haproxy";
const FLOOR: &str = "floor";
/// Who takes HAProxy's place where it cannot serve.
const FOR_POSTGRES: &str = "stunnel";

/// All but the samples.
#[derive(Debug)]
pub(crate) struct Report<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) cores: Cores,
    pub(crate) targets: &'a [Target],
    pub(crate) absent: &'a [String],
    pub(crate) record: &'a Record,
}

impl Report<'_> {
    /// Writes report.md and chart.svg, and gives the report's tables back.
    pub(crate) fn write(&self, samples: &[Sample], directory: &Path) -> Result<String> {
        let table = Table::of(samples, self.targets.iter().map(|target| target.name.clone()).collect());
        let tables = table.markdown();
        let text = format!(
            "# What each spends on the same work\n\n{}\n![CPU and memory beside HAProxy](chart.svg)\n\n{tables}\n{}",
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
