//! The cost of the allowlist by its size: the decision alone, and a rejected connection.

use super::untrusted::reject;
use super::{Figure, Outcome, Trial};
use crate::decision::Decision;
use crate::fault::Result;

pub(super) async fn sample(trial: Trial<'_>) -> Result<Outcome> {
    let mut sum = Outcome::default();
    for &rules in &trial.plan.rules {
        let instance = trial.target.start(trial.site, rules).await?;
        let measured = reject(Trial { instance: &instance, ..trial }).await?;
        let spent = measured.cpu.as_secs_f64() * 1e6 / measured.steps as f64;
        sum.figures.push(Figure::new(format!("CPU of a rejected client, {rules} rules"), "µs/connection", spent));
        // This measures the library of this build, and not a binary of `--binary`.
        let decision = Decision::measure(rules, trial.plan.lookups, 7);
        sum.figures.push(Figure::info(format!("lookup, trusted, {rules} rules"), "ns", decision.trusted_ns));
        sum.figures.push(Figure::info(format!("lookup, untrusted, {rules} rules"), "ns", decision.untrusted_ns));
        sum.figures.push(Figure::info(format!("building {rules} rules"), "ms", decision.build_ms));
        sum.units += measured.steps;
        sum.cpu += measured.cpu;
        sum.wall += measured.wall;
        sum.failures += measured.failures;
    }
    Ok(sum)
}
