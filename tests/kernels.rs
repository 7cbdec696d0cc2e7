//! Every op × case × device: each technique that is offered against the reference; of attention, in turns ([`IN_TURN`]). Run-time
//! checks are on for every other kernel.
//!
//! Outputs start as NaN and are followed by guard bytes (`regard::verify`). A trial is named `op/case/device`.

mod common;
#[path = "common/turns.rs"]
mod turns;

use std::collections::{HashMap, HashSet};
use std::process::ExitCode;
use std::sync::OnceLock;

use common::{Subject, Verdict, each_device, each_of, run};
use libtest_mimic::{Completion, Trial};
use regard::capabilities::{Backend, Capabilities, CooperativeMatrix};
use regard::case::Case;
use regard::op::Technique;
use regard::verify::{Outcome, Prepared, cases, kernels};
use turns::in_turn;

fn main() -> ExitCode {
    let all = cases(None, None);
    let numbers = turns_of(&all);
    let trials = all.into_iter().zip(numbers).flat_map(|(case, number)| {
        let name = format!("{}/{}", case.op.name(), case.name);
        // One reference for all devices, computed by the first trial and dropped with the last.
        let prepared = OnceLock::new();
        let turn = IN_TURN.contains(&case.op.name()).then_some(Turn { number });
        let check = move |subject: &Subject| check(subject, prepared.get_or_init(|| Prepared::new(case.clone())), turn);
        in_turn(number, each_device(&name, check))
    });
    let repeated = cases(None, None).into_iter().filter(|case| REPEATED.contains(&case.name.as_str()));
    let repeated = repeated.flat_map(|case| {
        let name = format!("larger subgroups/{}/{}", case.op.name(), case.name);
        each_of(&[Backend::Gpu], &name, move |subject| larger_subgroups(subject, &case))
    });
    let rare = [Rare::SubgroupOperations, Rare::CooperativeMatrices].into_iter().flat_map(Rare::trials);
    run(trials.chain(repeated).chain(rare).collect())
}

/// A number for each case, the same where kernels differ in nothing but their parameters: what is compiled for the first is there for
/// the others, when they take the same turn.
fn turns_of(cases: &[Case]) -> Vec<usize> {
    let mut numbers = HashMap::new();
    let number = |case: &Case| {
        let next = numbers.len();
        *numbers.entry(kernels(case, &roomy())).or_insert(next)
    };
    cases.iter().map(number).collect()
}

/// A device on which every kernel without matrices is offered.
fn roomy() -> Capabilities {
    Capabilities {
        subgroups: Some((8, 8)),
        storage_buffers: 32,
        workgroup_memory: 32 << 10,
        ..Capabilities::baseline_f16()
    }
}

/// Kernels that need what few devices have, tried by themselves on those that have it.
#[derive(Debug, Clone, Copy)]
enum Rare {
    /// For each size of subgroups, which the environment of a software device says.
    SubgroupOperations,
    CooperativeMatrices,
}

impl Rare {
    /// What its trials are called, one in how many kernels is run, and a device that has it.
    fn parts(self) -> (&'static str, usize, Capabilities) {
        let matrices = CooperativeMatrix { m: 8, n: 8, k: 8, factors: "f16".into(), accumulator: "f32".into() };
        match self {
            Self::SubgroupOperations => ("subgroup operations", 30, roomy()),
            Self::CooperativeMatrices => {
                ("cooperative matrices", 4, Capabilities { cooperative: vec![matrices], ..roomy() })
            }
        }
    }

    /// Those of its kernels that a device offers for a case.
    fn techniques(self, case: &Case, capabilities: &Capabilities) -> Vec<Technique> {
        let mut techniques = case.op.techniques(&case.descs(), capabilities);
        techniques.retain(|technique| match (self, technique) {
            (Self::CooperativeMatrices, _) => on_matrices(technique.name()),
            (Self::SubgroupOperations, Technique::Gpu(launch)) => {
                launch.shader.needs_subgroups() && !on_matrices(technique.name())
            }
            (Self::SubgroupOperations, Technique::Cpu(_)) => false,
        });
        techniques
    }

    /// Of cases with the same kernels the first.
    fn trials(self) -> Vec<Trial> {
        let (name, one_in, capabilities) = self.parts();
        let mut seen = HashSet::new();
        let mut cases = cases(None, None);
        cases.retain(|case| {
            let kernels: Vec<_> = self.techniques(case, &capabilities).iter().filter_map(Technique::wgsl).collect();
            !kernels.is_empty() && seen.insert(kernels)
        });
        let trials = cases.into_iter().step_by(one_in).enumerate().flat_map(|(number, case)| {
            let name = format!("{name}/{}/{}", case.op.name(), case.name);
            in_turn(number, each_of(&[Backend::Gpu], &name, move |subject| self.check(subject, &case)))
        });
        trials.collect()
    }

    fn check(self, subject: &Subject, case: &Case) -> Verdict {
        let own = subject.device.capabilities();
        let techniques = self.techniques(case, own);
        let has_it = match self {
            Self::SubgroupOperations => own.subgroups.is_some(),
            Self::CooperativeMatrices => own.matrix_edge().is_some(),
        };
        assert_eq!(!techniques.is_empty(), has_it, "{} is offered", case.name);
        let prepared = Prepared::new(case.clone());
        for technique in &techniques {
            let outcome = prepared.check(&subject.device, technique);
            if outcome.failed() {
                return Err(failure(subject, case, technique.name(), &outcome).into());
            }
        }
        Ok(Completion::Completed)
    }
}

fn on_matrices(technique: &str) -> bool {
    technique.ends_with("_coop")
}

/// Cases whose kernels take another form where subgroups are large.
const REPEATED: [&str; 3] = [
    "f16 [65, 100] x [100, 72] b of 30",
    "f16 b1 h2/1 70x35 d16/16 of 1 causal bottom-right",
    "f16 b1 h1/1 35x37 d1/1 of 1 no mask",
];

/// Kernels on cooperative matrices may not rely on how many subgroups a workgroup has: those of a device with larger ones than
/// this device's have more lanes than they need here.
fn larger_subgroups(subject: &Subject, case: &Case) -> Verdict {
    let own = subject.device.capabilities();
    let (Some(_), Some((least, largest))) = (own.matrix_edge(), own.subgroups) else {
        // Without matrices there is no such kernel to offer.
        let techniques = case.op.techniques(&case.descs(), own);
        assert!(techniques.iter().all(|technique| !on_matrices(technique.name())), "{}", case.name);
        return Ok(Completion::Completed);
    };
    let prepared = Prepared::new(case.clone());
    for factor in [2, 8] {
        let capabilities = Capabilities { subgroups: Some((least, factor * largest)), ..own.clone() };
        let techniques = case.op.techniques(&case.descs(), &capabilities);
        let Some(coop) = techniques.iter().find(|technique| on_matrices(technique.name())) else {
            return Err(format!("{}: no technique with matrices is offered", case.name).into());
        };
        let outcome = prepared.check(&subject.device, coop);
        if outcome.failed() {
            return Err(failure(subject, case, coop.name(), &outcome).into());
        }
    }
    Ok(Completion::Completed)
}

/// Ops whose techniques take turns, as there are hundreds of cases.
const IN_TURN: [&str; 2] = ["attention_fused", "attention_split"];

/// Which technique of a case is run where cases take turns.
#[derive(Debug, Clone, Copy)]
struct Turn {
    /// That of the case's kernels ([`turns_of`]).
    number: usize,
}

impl Turn {
    /// Cooperative matrices, which few devices have, run each case; the others by turns.
    fn is_of(self, place: usize, names: &[&str]) -> bool {
        let others: Vec<usize> = (0..names.len()).filter(|&place| !on_matrices(names[place])).collect();
        on_matrices(names[place]) || others.get(self.number % others.len().max(1)) == Some(&place)
    }
}

fn check(subject: &Subject, prepared: &Prepared, turn: Option<Turn>) -> Verdict {
    let mut skipped = None;
    let mut failures = String::new();
    let wanted = |place: usize, names: &[&str]| turn.is_none_or(|turn| turn.is_of(place, names));
    for (technique, outcome) in prepared.run_some(&subject.device, wanted) {
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
