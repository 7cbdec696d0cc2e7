//! Plans and clocks of the benches that time a case.

use std::time::Duration;

use criterion::Throughput;
use regard::case::Case;
use regard::verify::Prepared;
use regard::{Device, Graph, Plan, PlanOptions};

/// Every technique of the case against the reference, before anything is timed.
pub fn check(device: &Device, case: &Case) {
    for (technique, outcome) in Prepared::new(case.clone()).run(device) {
        assert!(!outcome.failed(), "{}, case `{}`, {technique} on {device}: {outcome}", case.op.name(), case.name);
    }
}

/// One node that runs this technique, with its inputs written.
pub fn plan(device: &Device, case: &Case, technique: &str) -> Plan {
    let mut graph = Graph::new();
    let names: Vec<String> = (0..case.inputs.len()).map(|index| format!("input {index}")).collect();
    let inputs: Vec<_> =
        names.iter().zip(case.descs()).map(|(name, desc)| graph.input(name, desc).expect("new")).collect();
    let outputs = graph.add_shared(case.op.clone(), &inputs).expect("a case fits its op");
    graph.output("output", outputs[0]).expect("the only output");
    let options = PlanOptions::technique(case.op.name(), technique);
    let mut plan = Plan::with_options(device, &graph, &options).expect("the technique is offered");
    names.iter().zip(case.draw()).for_each(|(name, value)| plan.write(name, &value).expect("the device is there"));
    plan
}

/// Flops, or elements where an op only moves them.
pub fn throughput(case: &Case) -> Throughput {
    let cost = case.op.cost(&case.descs());
    match cost.flops {
        0 => Throughput::Elements(case.descs().iter().map(|desc| desc.len() as u64).sum()),
        flops => Throughput::Elements(flops),
    }
}

/// Time of this many runs, as the plan's own clock has it.
pub fn seconds(plan: &mut Plan, runs: u64) -> Duration {
    (0..runs).map(|_| Duration::from_secs_f64(plan.measure().expect("the device is there").seconds)).sum()
}
