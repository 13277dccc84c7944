//! The circumstances of a measurement: time, machine, versions and configurations.

use std::fmt::Write;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Report;
use super::figures::number;
use crate::machine::describe;
use crate::process::{find, version_line};

impl Report<'_> {
    /// The first lines: time, rounds and sample length.
    pub(super) fn heading(&self) -> String {
        let plan = self.plan;
        let now = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_else(|_| "an unknown time".to_owned());
        let mut text = format!(
            "{now}; {} rounds, {:?} a sample after {:?} of warm-up. CPU is the CPU time of all processes of a target in user and \
             kernel mode.\n",
            plan.rounds, plan.sample, plan.warm_up
        );
        if !self.absent.is_empty() {
            let _ = write!(text, "\nNot installed, and therefore not measured: {}.\n", self.absent.join(", "));
        }
        if self.cores.proxy == self.cores.clients {
            text += "\n**Only one core was available: clients, databases and proxies shared it.**\n";
        }
        text
    }

    /// The last lines: failures, machine, versions, configurations.
    pub(super) fn surroundings(&self) -> String {
        let mut text = String::new();
        if !self.record.failures.is_empty() {
            text += "\n## What failed\n\n";
            self.record.failures.iter().for_each(|failure| text += &format!("- {failure}\n"));
        }
        text += "\n## Machine\n\n| | |\n|---|---|\n";
        for (name, value) in describe(self.cores) {
            let _ = writeln!(text, "| {name} | {value} |");
        }
        let loads: Vec<String> = self.record.loads.iter().map(|load| number(*load)).collect();
        let _ = writeln!(text, "| load at the start of each round | {} |", loads.join(", "));
        text += "\n## Versions\n\n| | |\n|---|---|\n";
        for target in self.targets {
            let _ = writeln!(text, "| {} | {} |", target.name, target.version);
        }
        for (name, argument) in [("redis-server", "--version"), ("postgres", "--version"), ("openssl", "version")] {
            let version =
                find(name).map_or_else(|| "not installed".to_owned(), |program| version_line(&program, argument));
            let _ = writeln!(text, "| {name} | {version} |");
        }
        text += "\n## Configurations\n\nAs written in the first round.\n";
        for (name, configuration) in &self.record.configurations {
            let _ = write!(text, "\n### {name}\n\n```\n{}\n```\n", configuration.trim_end());
        }
        text
    }
}
