//! Memory: slots are shared by tensors that are never alive together, and a plan says how much it takes.

mod common;

use std::process::ExitCode;

use common::{Subject, Verdict, each_device, run};
use libtest_mimic::{Completion, Failed, Trial};
use proptest::prelude::{Strategy as _, prop, prop_assert, prop_assert_eq};
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestRunner};
use regard::capabilities::Backend;
use regard::memory::{Assignment, Lifetime, assign};
use regard::{Attention, Dtype, Graph, Plan, PlanOptions, Strategy, TensorDesc};

fn main() -> ExitCode {
    let mut trials = vec![
        Trial::test("no two live tensors share a slot", slots_of_random_lifetimes),
        Trial::test("the check of an assignment can fail", the_check_can_fail),
    ];
    trials.extend(each_device("a chain needs two slots", chain));
    trials.extend(each_device("fused attention stores no scores", fused_stores_no_scores));
    trials.extend(each_device("weights count once", weights_count_once));
    run(trials)
}

fn slots_of_random_lifetimes() -> Result<(), Failed> {
    let lifetime = (0..1000u64, 0..40usize, 0..10usize);
    let lifetime = lifetime.prop_map(|(bytes, first, length)| Lifetime { bytes, first, last: first + length });
    let config = Config { cases: 1000, failure_persistence: None, rng_seed: RngSeed::Fixed(3), ..Config::default() };
    TestRunner::new(config)
        .run(&prop::collection::vec(lifetime, 0..60), |lifetimes| valid(&lifetimes, &assign(&lifetimes)))
        .map_err(|error| error.to_string().into())
}

/// No slot holds two live tensors, each is large enough and as large as one of its tensors, so nothing is wasted.
fn valid(lifetimes: &[Lifetime], assignment: &Assignment) -> Result<(), TestCaseError> {
    prop_assert_eq!(assignment.slot_of.len(), lifetimes.len());
    for (one, (lifetime, slot)) in lifetimes.iter().zip(&assignment.slot_of).enumerate() {
        prop_assert!(assignment.slots[*slot] >= lifetime.bytes, "tensor {one} does not fit slot {slot}");
        for (other, earlier) in lifetimes[..one].iter().enumerate() {
            let together = lifetime.first <= earlier.last && earlier.first <= lifetime.last;
            let shared = assignment.slot_of[other] == *slot;
            prop_assert!(!(together && shared), "tensors {other} and {one} live together in slot {slot}");
        }
    }
    for (slot, &bytes) in assignment.slots.iter().enumerate() {
        let largest = lifetimes.iter().zip(&assignment.slot_of).filter(|(_, of)| **of == slot);
        prop_assert_eq!(Some(bytes), largest.map(|(lifetime, _)| lifetime.bytes).max());
    }
    let total: u64 = lifetimes.iter().map(|lifetime| lifetime.bytes).sum();
    prop_assert!(assignment.slots.iter().sum::<u64>() <= total);
    Ok(())
}

fn the_check_can_fail() -> Result<(), Failed> {
    let lifetimes = [Lifetime { bytes: 4, first: 0, last: 2 }, Lifetime { bytes: 8, first: 2, last: 3 }];
    let assignment = |slots: &[u64], slot_of: [usize; 2]| Assignment { slots: slots.into(), slot_of: slot_of.into() };
    valid(&lifetimes, &assignment(&[4, 8], [0, 1])).expect("this one is right");
    for (what, wrong) in [
        ("two live tensors in one slot", assignment(&[8], [0, 0])),
        ("a slot that is too small", assignment(&[4, 4], [0, 1])),
        ("a slot that is too large", assignment(&[4, 9], [0, 1])),
        ("a slot for nothing", assignment(&[4, 8, 1], [0, 1])),
        ("a tensor without a slot", Assignment { slots: vec![4], slot_of: vec![0] }),
    ] {
        assert!(valid(&lifetimes, &wrong).is_err(), "{what}");
    }
    Ok(())
}

fn chain(subject: &Subject) -> Verdict {
    let mut graph = Graph::new();
    let mut x = graph.input("x", TensorDesc::new(Dtype::F32, [10, 100]))?;
    for _ in 0..7 {
        x = graph.softmax(x, 1.0)?;
    }
    graph.output("y", x)?;
    let description = Plan::new(&subject.device, &graph)?.describe();
    assert_eq!(description.steps.len(), 7);
    assert_eq!(description.scratch_bytes, 2 * 4000, "six intermediates in two slots");
    assert_eq!(description.peak_bytes(), 4 * 4000);
    Ok(Completion::Completed)
}

fn fused_stores_no_scores(subject: &Subject) -> Verdict {
    let preview = |strategy| {
        let mut graph = Graph::new();
        let mut input = |name| graph.input(name, TensorDesc::new(Dtype::F32, [1, 16, 16_384, 64]));
        let [q, k, v] = [input("q")?, input("k")?, input("v")?];
        let y = graph.attention(q, k, v, &Attention { strategy, ..Attention::default() })?;
        graph.output("y", y)?;
        Plan::preview(&subject.device, &graph, &PlanOptions::default())
    };
    let tensor = 16 * 16_384 * 64 * 4_u64;
    let fused = preview(Strategy::Fused)?;
    let least = 4 * tensor;
    assert!(fused.peak_bytes() >= least && fused.peak_bytes() * 100 <= least * 101, "{fused}");
    let staging = if subject.device.capabilities().backend == Backend::Gpu { least } else { 0 };
    assert_eq!(fused.staging_bytes, staging, "{fused}");
    let scores = 16 * 16_384 * 16_384 * 4_u64;
    let unfused = preview(Strategy::Unfused)?;
    assert_eq!(unfused.peak_bytes(), least + 2 * scores, "{unfused}");
    assert!(unfused.to_string().contains(&format!("peak {} bytes", unfused.peak_bytes())), "{unfused}");
    Ok(Completion::Completed)
}

fn weights_count_once(subject: &Subject) -> Verdict {
    let mut graph = Graph::new();
    let x = graph.input("x", TensorDesc::new(Dtype::F32, [3, 8]))?;
    let w = regard::HostTensor::zeros(TensorDesc::new(Dtype::F32, [8, 8]));
    let w = graph.weight("w", w)?;
    let y = graph.matmul(x, w, None, Default::default())?;
    let y = graph.matmul(y, w, None, Default::default())?;
    graph.output("y", y)?;
    let description = Plan::new(&subject.device, &graph)?.describe();
    let bytes =
        [description.input_bytes, description.weight_bytes, description.output_bytes, description.scratch_bytes];
    assert_eq!(bytes, [96, 256, 96, 96], "{description}");
    Ok(Completion::Completed)
}
