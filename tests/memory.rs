//! Memory: slots are shared by tensors that are never alive together, and a plan says how much it takes.

mod common;
#[path = "common/encoder.rs"]
mod encoder;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use common::{Subject, Verdict, each_device, run};
use encoder::Encoder;
use libtest_mimic::{Completion, Failed, Trial};
use proptest::prelude::{Strategy as _, prop, prop_assert, prop_assert_eq};
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestRunner};
use regard::capabilities::Backend;
use regard::memory::{Assignment, Lifetime, assign, largest_live_set};
use regard::{Attention, Device, Dtype, Graph, Plan, PlanOptions, Rewrites, Strategy, TensorDesc};

fn main() -> ExitCode {
    let mut trials = vec![
        Trial::test("no two live tensors share a slot", slots_of_random_lifetimes),
        Trial::test("the check of an assignment can fail", the_check_can_fail),
    ];
    trials.extend(each_device("a chain needs two slots", chain));
    trials.extend(each_device("fused attention stores no scores", fused_stores_no_scores));
    trials.extend(each_device("weights count once", weights_count_once));
    trials.extend(each_device("a model takes little more than what is alive", models_live_sets));
    trials.push(Trial::test("planning takes time as the graph grows", planning_is_linear));
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
    prop_assert!(assignment.slots.iter().sum::<u64>() >= largest_live_set(lifetimes));
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

/// Weights and at most 1.2 times the largest live set, in each shape of model that has long-lived intermediates.
fn models_live_sets(subject: &Subject) -> Verdict {
    let base = Encoder { layers: 12, heads: 2, hidden: 32, inner: 128, tokens: 16 };
    for encoder in [Encoder::BERT_BASE, base, Encoder { inner: 40, ..base }, Encoder { inner: 16, ..base }] {
        let weights = encoder.weights();
        for rewrites in [Rewrites::default(), Rewrites::NONE] {
            let graph = encoder.graph(&weights)?;
            let options = PlanOptions { rewrites, ..PlanOptions::default() };
            let plan = Plan::preview(&subject.device, &graph, &options)?;
            let beside_weights = plan.peak_bytes() - plan.weight_bytes;
            let row = 4 * encoder.tokens as u64;
            // Attention has its input, q, k, v and its result; the feed-forward network its input and its inner rows at least.
            let least = row * (5 * encoder.hidden).max(encoder.hidden + encoder.inner) as u64;
            assert!(plan.live_bytes >= least, "{encoder:?}: {plan}");
            assert!(beside_weights * 10 <= plan.live_bytes * 12, "{encoder:?}: {plan}");
        }
    }
    Ok(Completion::Completed)
}

/// Eight times the layers take eight times as long, not sixty-four. The least of several runs, for other work on the machine.
fn planning_is_linear() -> Result<(), Failed> {
    let small = Encoder { layers: 12, heads: 2, hidden: 8, inner: 16, tokens: 4 };
    let device = Device::cpu();
    let time = |layers: usize| -> Result<Duration, Failed> {
        let encoder = Encoder { layers, ..small };
        let graph = encoder.graph(&encoder.weights())?;
        let mut least = Duration::MAX;
        for _ in 0..7 {
            let start = Instant::now();
            Plan::preview(&device, &graph, &PlanOptions::default())?;
            least = least.min(start.elapsed());
        }
        Ok(least)
    };
    let (short, long) = (time(24)?, time(8 * 24)?);
    assert!(long < 24 * short, "24 layers take {short:?}, eight times as many {long:?}");
    Ok(())
}
