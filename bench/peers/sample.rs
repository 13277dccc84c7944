//! The raw numbers, one JSON object a line. The report is computed from this file only.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::fault::{Context, Result};
use crate::work::{Outcome, Work};

/// One figure of one target in one round, or the error instead.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) round: u32,
    pub(crate) work: String,
    pub(crate) title: String,
    pub(crate) target: String,
    pub(crate) figure: String,
    pub(crate) unit: String,
    pub(crate) value: f64,
    pub(crate) compared: bool,
    pub(crate) units: u64,
    pub(crate) cpu_ns: u64,
    pub(crate) wall_ns: u64,
    pub(crate) failures: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

/// The file of samples, which is written at once, so that an interrupted run loses none.
#[derive(Debug)]
pub(crate) struct Samples {
    file: File,
    path: PathBuf,
}

impl Samples {
    pub(crate) fn create(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).context(|| format!("cannot make {}", directory.display()))?;
        let path = directory.join("samples.jsonl");
        let file = File::create(&path).context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { file, path })
    }

    /// Records the outcome of one target in one round.
    pub(crate) fn note(&mut self, round: u32, work: Work, target: &str, outcome: &Result<Outcome>) -> Result<()> {
        let blank = Sample {
            round,
            work: work.name.to_owned(),
            title: work.title.to_owned(),
            target: target.to_owned(),
            figure: String::new(),
            unit: String::new(),
            value: 0.0,
            compared: false,
            units: 0,
            cpu_ns: 0,
            wall_ns: 0,
            failures: 0,
            error: None,
        };
        match outcome {
            Err(error) => self.write(&Sample { error: Some(error.to_string()), ..blank }),
            Ok(outcome) => outcome.figures.iter().try_for_each(|figure| {
                self.write(&Sample {
                    figure: figure.name.clone(),
                    unit: figure.unit.to_owned(),
                    value: figure.value,
                    compared: figure.compared,
                    units: outcome.units,
                    cpu_ns: outcome.cpu.as_nanos().try_into()?,
                    wall_ns: outcome.wall.as_nanos().try_into()?,
                    failures: outcome.failures,
                    ..blank.clone()
                })
            }),
        }
    }

    fn write(&mut self, sample: &Sample) -> Result<()> {
        let line = serde_json::to_string(sample)?;
        writeln!(self.file, "{line}").context(|| format!("cannot write {}", self.path.display()))
    }

    /// Reads all samples of this run.
    pub(crate) fn read(&self) -> Result<Vec<Sample>> {
        let text = fs::read_to_string(&self.path).context(|| format!("cannot read {}", self.path.display()))?;
        text.lines().map(|line| serde_json::from_str(line).context(|| format!("sample {line}"))).collect()
    }
}
