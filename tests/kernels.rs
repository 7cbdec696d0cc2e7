//! Every op × case × device: each technique that is offered against the reference.
//!
//! Outputs start as NaN and are followed by guard bytes (`regard::verify`). A trial is named `op/case/device`.

mod common;

use std::process::ExitCode;
use std::sync::OnceLock;

use common::{Subject, Verdict, each_device, run};
use libtest_mimic::Completion;
use regard::case::Case;
use regard::verify::{Outcome, Prepared, cases};

fn main() -> ExitCode {
    let trials = cases(None, None).into_iter().flat_map(|case| {
        let name = format!("{}/{}", case.op.name(), case.name);
        // One reference for all devices, computed by the first trial and dropped with the last.
        let prepared = OnceLock::new();
        each_device(&name, move |subject| check(subject, prepared.get_or_init(|| Prepared::new(case.clone()))))
    });
    run(trials.collect())
}

fn check(subject: &Subject, prepared: &Prepared) -> Verdict {
    let mut skipped = None;
    let mut failures = String::new();
    for (technique, outcome) in prepared.run(&subject.device) {
        match outcome {
            Outcome::Skipped(reason) => skipped = Some(reason),
            outcome if outcome.failed() => failures += &failure(subject, &prepared.case, &technique, &outcome),
            _ => {}
        }
    }
    match skipped {
        _ if !failures.is_empty() => Err(failures.into()),
        None => Ok(Completion::Completed),
        Some(reason) if lacks_f16(subject, &prepared.case) => Ok(Completion::ignored_with(reason)),
        // Baseline: a kernel is missing, not a feature.
        Some(reason) => Err(failure(subject, &prepared.case, "none", &Outcome::Skipped(reason)).into()),
    }
}

fn lacks_f16(subject: &Subject, case: &Case) -> bool {
    case.has_f16() && !subject.device.capabilities().f16
}

fn failure(subject: &Subject, case: &Case, technique: &str, outcome: &Outcome) -> String {
    format!("{}, case `{}`, {technique} on {}: {outcome}\n", case.op.name(), case.name, subject.name)
}
