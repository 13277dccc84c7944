//! The run: every round starts each target anew, and each work takes all targets in turn, so that other load on the machine
//! affects all of them equally.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::fault::Result;
use crate::machine::load;
use crate::options::Plan;
use crate::sample::Samples;
use crate::site::Site;
use crate::targets::{Instance, Target};
use crate::work::{Outcome, Trial, Work};

/// The results of a run besides its samples.
#[derive(Debug, Default)]
pub(crate) struct Record {
    /// The configurations of the first round, by target.
    pub(crate) configurations: BTreeMap<String, String>,
    /// Failed measurements with their reasons.
    pub(crate) failures: Vec<String>,
    /// The load of the machine at the start of each round.
    pub(crate) loads: Vec<f64>,
}

pub(crate) async fn run(
    site: &Site,
    plan: &Plan,
    works: &[Work],
    targets: &[Target],
    samples: &mut Samples,
) -> Result<Record> {
    let mut record = Record::default();
    for round in 1..=plan.rounds {
        record.loads.push(load());
        eprintln!("round {round} of {}", plan.rounds);
        let mut instances = Vec::new();
        for target in targets {
            match target.start(site, 1).await {
                Ok(instance) => instances.push((target, instance)),
                Err(error) => fail(&mut record, round, &format!("{} does not start: {error}", target.name)),
            }
        }
        for (target, instance) in &instances {
            record.configurations.entry(target.name.clone()).or_insert_with(|| instance.configuration.clone());
        }
        for work in works.iter().filter(|work| round <= work.rounds(plan.rounds)) {
            let begun = Instant::now();
            let turn = rotated(&instances, round);
            for (target, instance) in turn.filter(|(target, _)| work.suits(target.can)) {
                let outcome = work.sample(Trial { site, plan, target, instance }).await;
                samples.note(round, *work, &target.name, &outcome)?;
                if let Some(text) = trouble(&outcome) {
                    fail(&mut record, round, &format!("{}: {}: {text}", work.name, target.name));
                }
            }
            eprintln!("  {:<18} {:>5.1} s", work.name, begun.elapsed().as_secs_f64());
        }
    }
    Ok(record)
}

/// All targets, starting with another one in each round.
fn rotated<'a>(
    instances: &'a [(&'a Target, Instance)],
    round: u32,
) -> impl Iterator<Item = &'a (&'a Target, Instance)> {
    instances.iter().cycle().skip(round as usize - 1).take(instances.len())
}

fn trouble(outcome: &Result<Outcome>) -> Option<String> {
    match outcome {
        Err(error) => Some(error.to_string()),
        Ok(outcome) if outcome.failures > 0 => {
            Some(format!("{} of {} failed", outcome.failures, outcome.failures + outcome.units))
        }
        Ok(_) => None,
    }
}

fn fail(record: &mut Record, round: u32, text: &str) {
    eprintln!("  round {round}: {text}");
    record.failures.push(format!("round {round}: {text}"));
}
