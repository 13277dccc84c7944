//! What the length of the allowlist costs: the decision by itself, and a stranger turned away by it.

use super::stranger::turn_away;
use super::{Figure, Outcome, Trial};
use crate::decision::Decision;
use crate::fault::Result;

pub(super) async fn sample(trial: Trial<'_>) -> Result<Outcome> {
    let mut sum = Outcome::default();
    for &rules in &trial.plan.rules {
        let instance = trial.target.start(trial.site, rules).await?;
        let measured = turn_away(Trial { instance: &instance, ..trial }).await?;
        let spent = measured.cpu.as_secs_f64() * 1e6 / measured.steps as f64;
        sum.figures.push(Figure::new(format!("CPU of a stranger turned away, {rules} rules"), "µs/connection", spent));
        // Of the library this program is built with, whatever binary is measured.
        let decision = Decision::measure(rules, trial.plan.lookups, 7);
        sum.figures.push(Figure::told(format!("lookup, trusted, {rules} rules"), "ns", decision.trusted_ns));
        sum.figures.push(Figure::told(format!("lookup, stranger, {rules} rules"), "ns", decision.stranger_ns));
        sum.figures.push(Figure::told(format!("building {rules} rules"), "ms", decision.build_ms));
        sum.units += measured.steps;
        sum.cpu += measured.cpu;
        sum.wall += measured.wall;
        sum.failures += measured.failures;
    }
    Ok(sum)
}
