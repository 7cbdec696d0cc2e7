//! What attention must obey whatever the problem: keys may be permuted, split and joined by log-sum-exp; what is masked out
//! may hold anything. On every device, fused and unfused, over random problems.

mod common;

use std::process::ExitCode;

use common::{Subject, Verdict, each_device, run};
use libtest_mimic::Completion;
use proptest::prelude::{Just, Strategy as _, any, prop, prop_oneof};
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestRunner};
use regard::capabilities::Backend;
use regard::case::{CaseInput, Values};
use regard::compare::{NanMeans, Tolerance, compare};
use regard::{Attention, Causal, Device, Dtype, Fill, Graph, HostTensor, Plan, Strategy, TensorDesc, Window};

fn main() -> ExitCode {
    let properties: [(&str, Property); 3] = [
        ("keys may be permuted with their masks", permuted),
        ("keys may be split anywhere and joined by log-sum-exp", split),
        ("what is masked out may hold anything", poisoned),
    ];
    run(properties.into_iter().flat_map(|(name, property)| each_device(name, move |s| hold(s, property))).collect())
}

/// Whether it holds of this problem, split or turned by this number.
type Property = fn(&Device, Strategy, &Problem, usize) -> Result<(), String>;

const HEAD_DIM: usize = 8;

/// A problem in full: the first three tensors are q, k and v in rank 4, the others are named as the fields of [`Attention`].
#[derive(Debug, Clone)]
struct Problem {
    options: Attention,
    tensors: Vec<(&'static str, HostTensor)>,
}

/// Cases for each property: the CPU backend computes one in microseconds; on a GPU many of them are a pipeline to compile, and
/// run-time checks change nothing about attention.
fn hold(subject: &Subject, property: Property) -> Verdict {
    let cases = match subject.device.capabilities().backend {
        Backend::Cpu => 400,
        Backend::Gpu if subject.name.ends_with(" checked") => 10,
        Backend::Gpu => 30,
    };
    // A fixed seed: a failure on one machine is one on all.
    let config = Config { cases, failure_persistence: None, rng_seed: RngSeed::Fixed(5), ..Config::default() };
    let drawn = (problems(), 0..60usize);
    let outcome = TestRunner::new(config).run(&drawn, |(problem, number)| {
        for strategy in [Strategy::Fused, Strategy::Unfused] {
            property(&subject.device, strategy, &problem, number)
                .map_err(|why| TestCaseError::fail(format!("{strategy:?}: {why}")))?;
        }
        Ok(())
    });
    outcome.map_err(|error| format!("on {}: {error}", subject.name))?;
    Ok(Completion::Completed)
}

fn problems() -> impl proptest::strategy::Strategy<Value = Problem> {
    let sizes = (1..=2usize, 1..=2usize, 1..=2usize, 1..=40usize, 1..=70usize);
    let alignment = prop_oneof![
        Just(None),
        Just(Some(Causal::TopLeft)),
        Just(Some(Causal::BottomRight)),
        (0..20u32).prop_map(|past| Some(Causal::Past(past))),
    ];
    let side = || prop::option::of(0..30i64);
    let window = prop::option::of((side(), side()).prop_map(|(left, right)| Window { left, right, align: None }));
    let softcap = prop_oneof![Just(None), Just(Some(2.5f32))];
    let fill = prop_oneof![Just(Fill::Exclude), Just(Fill::Assign(-1.5))];
    let lengths = prop::collection::vec(0..80u32, 2);
    let tensors = (any::<[bool; 4]>(), any::<[bool; 5]>(), lengths.clone(), lengths);
    let drawn = (sizes, alignment, window, (softcap, fill), tensors, any::<u64>());
    drawn.prop_map(|(sizes, causal, window, (softcap, fill), (axes, has, q_lengths, kv_lengths), seed)| {
        let (batch, kv_heads, group, seq_q, seq_kv) = sizes;
        let heads = kv_heads * group;
        let options = Attention { causal, window, softcap, fill, ..Attention::default() };
        let scores = [batch, heads, seq_q, seq_kv];
        let broadcast: Vec<usize> =
            scores.iter().zip(axes).map(|(&size, whole)| if whole { size } else { 1 }).collect();
        let floats = |shape: &[usize]| CaseInput::normal(Dtype::F32, shape, 1.0);
        let drawn = |dtype, shape: &[usize], values| CaseInput { desc: TensorDesc::new(dtype, shape), values };
        let counts = |lengths: Vec<u32>| {
            let lengths = HostTensor::u32(&[batch], lengths[..batch].to_vec()).expect("one for each");
            CaseInput { desc: lengths.desc().clone(), values: Values::Given(lengths) }
        };
        let mut inputs = vec![
            ("q", floats(&[batch, heads, seq_q, HEAD_DIM])),
            ("k", floats(&[batch, kv_heads, seq_kv, HEAD_DIM])),
            ("v", floats(&[batch, kv_heads, seq_kv, HEAD_DIM])),
        ];
        let mask = Values::Mask { keep: 0.7, empty_rows: true };
        inputs.extend(has[0].then(|| ("mask", drawn(Dtype::Bool, &broadcast, mask))));
        inputs.extend(has[1].then(|| ("bias", drawn(Dtype::F32, &scores, Values::Bias { excluded: 0.2 }))));
        inputs.extend(has[2].then(|| ("q_lengths", counts(q_lengths))));
        inputs.extend(has[3].then(|| ("kv_lengths", counts(kv_lengths))));
        inputs.extend(has[4].then(|| ("sinks", floats(&[heads]))));
        let tensors = inputs.into_iter().zip(seed..).map(|((name, input), seed)| (name, input.draw(seed))).collect();
        Problem { options, tensors }
    })
}

impl Problem {
    fn get(&self, name: &str) -> Option<&HostTensor> {
        self.tensors.iter().find(|(given, _)| *given == name).map(|(_, tensor)| tensor)
    }

    fn set(&mut self, name: &'static str, tensor: HostTensor) {
        self.tensors.retain(|(given, _)| *given != name);
        self.tensors.push((name, tensor));
    }

    fn without(&self, names: &[&str]) -> Self {
        let tensors = self.tensors.iter().filter(|(name, _)| !names.contains(name)).cloned().collect();
        Self { tensors, ..self.clone() }
    }

    /// `[batch, heads, seq_q, seq_kv]`.
    fn sizes(&self) -> [usize; 4] {
        let [q, k] = ["q", "k"].map(|name| self.get(name).expect("every problem has it").shape());
        [q[0], q[1], q[2], k[2]]
    }

    /// Output and log-sum-exp.
    fn run(&self, device: &Device, strategy: Strategy) -> Result<[HostTensor; 2], String> {
        self.try_run(device, strategy).map_err(|error| error.to_string())
    }

    fn try_run(&self, device: &Device, strategy: Strategy) -> regard::Result<[HostTensor; 2]> {
        let mut graph = Graph::new();
        let mut added = Vec::new();
        for (name, value) in &self.tensors {
            added.push((*name, graph.input(name, value.desc().clone())?));
        }
        let get = |wanted: &str| added.iter().find(|(name, _)| *name == wanted).map(|(_, tensor)| *tensor);
        let options = Attention {
            mask: get("mask"),
            bias: get("bias"),
            q_lengths: get("q_lengths"),
            kv_lengths: get("kv_lengths"),
            sinks: get("sinks"),
            strategy,
            ..self.options
        };
        let [q, k, v] = ["q", "k", "v"].map(|name| get(name).expect("every problem has it"));
        let (y, lse) = graph.attention_lse(q, k, v, &options)?;
        graph.output("y", y)?;
        graph.output("lse", lse)?;
        let inputs: Vec<_> = self.tensors.iter().map(|(name, value)| (*name, value)).collect();
        let mut outputs = Plan::new(device, &graph)?.run(&inputs)?;
        Ok(["y", "lse"].map(|name| outputs.remove(name).expect("it was named")))
    }

    /// Whether query `i` and key `j` of a batch element exist.
    fn exists(&self, batch: usize, i: usize, j: usize) -> bool {
        let [_, _, seq_q, seq_kv] = self.sizes();
        i < self.count("q_lengths", batch, seq_q) && j < self.count("kv_lengths", batch, seq_kv)
    }

    fn count(&self, name: &str, batch: usize, size: usize) -> usize {
        self.get(name).map_or(size, |lengths| size.min(lengths.as_u32().expect("lengths are u32")[batch] as usize))
    }

    /// Whether causality, window and boolean mask show key `j` to query `i`.
    fn allows(&self, [batch, head, i, j]: [usize; 4]) -> bool {
        let [_, _, seq_q, seq_kv] = self.sizes();
        let (queries, keys) = (self.count("q_lengths", batch, seq_q), self.count("kv_lengths", batch, seq_kv));
        let position = match self.options.causal {
            Some(Causal::TopLeft) => 0,
            Some(Causal::Past(past)) => i64::from(past),
            Some(Causal::BottomRight) | None => keys as i64 - queries as i64,
        };
        let ahead = j as i64 - i as i64 - position;
        let window = self.options.window.unwrap_or_default();
        let masked = self.get("mask").is_some_and(|mask| {
            let shape = mask.shape();
            let at = [batch, head, i, j];
            let index = (0..4).fold(0, |index, axis| index * shape[axis] + if shape[axis] == 1 { 0 } else { at[axis] });
            !mask.as_bool().expect("masks are bool")[index]
        });
        (self.options.causal.is_none() || ahead <= 0)
            && window.left.is_none_or(|left| -ahead <= left)
            && window.right.is_none_or(|right| ahead <= right)
            && !masked
    }

    /// The same problem with causality, window and mask as one boolean mask for all scores, and lengths of the keys as a bias.
    fn dense(&self) -> Self {
        let [batch, heads, seq_q, seq_kv] = self.sizes();
        let shape = [batch, heads, seq_q, seq_kv];
        let at = |index: usize| {
            [index / seq_kv / seq_q / heads, index / seq_kv / seq_q % heads, index / seq_kv % seq_q, index % seq_kv]
        };
        let len: usize = shape.iter().product();
        // What does not exist must not take part under `Fill::Assign` either, so it is the bias that hides it.
        let exists = |[batch, _, i, j]: [usize; 4]| self.exists(batch, i, j);
        let allowed = (0..len).map(|index| !exists(at(index)) || self.allows(at(index))).collect();
        let added = self.get("bias").map(|bias| bias.as_f32().expect("drawn as f32").to_vec());
        let bias = (0..len).map(|index| {
            if exists(at(index)) { added.as_ref().map_or(0.0, |bias| bias[index]) } else { f32::NEG_INFINITY }
        });
        let mut dense = self.without(&["mask", "bias", "kv_lengths"]);
        dense.options = Attention { causal: None, window: None, ..self.options };
        dense.set("bias", HostTensor::f32(&shape, bias.collect()).expect("one for each score"));
        dense.set("mask", HostTensor::bool(&shape, allowed).expect("one for each score"));
        dense
    }

    /// The same problem over some of the keys, in this order.
    fn keys(&self, keys: &[usize]) -> Self {
        let mut picked = self.clone();
        for (name, axis) in [("k", 2), ("v", 2), ("mask", 3), ("bias", 3)] {
            let tensor = self.get(name).expect("a dense problem has them all");
            picked.set(name, pick(tensor, axis, keys));
        }
        picked
    }
}

/// A tensor of some positions of one axis.
fn pick(tensor: &HostTensor, axis: usize, positions: &[usize]) -> HostTensor {
    let shape = tensor.shape();
    let (size, inner) = (shape[axis], shape[axis + 1..].iter().product::<usize>() * tensor.desc().dtype.size());
    let mut bytes = Vec::new();
    for block in tensor.bytes().chunks_exact((size * inner).max(1)) {
        positions.iter().for_each(|position| bytes.extend_from_slice(&block[position * inner..][..inner]));
    }
    let mut picked = shape.to_vec();
    picked[axis] = positions.len();
    HostTensor::from_bytes(TensorDesc::new(tensor.desc().dtype, picked), &bytes).expect("whole positions were picked")
}

/// Two ways to one result: each is off by some roundings of scores of up to √head_dim × 9 or so, and of the sums.
const CLOSE: f64 = 400.0 / (1 << 24) as f64;

fn same(what: &str, got: &HostTensor, wanted: &HostTensor) -> Result<(), String> {
    let tolerance = Tolerance { of_scale: CLOSE, relative: 0.0, absolute: CLOSE };
    let comparison = compare(got, wanted, tolerance, NanMeans::Nan);
    if comparison.passed() { Ok(()) } else { Err(format!("{what}: {comparison}")) }
}

fn permuted(device: &Device, strategy: Strategy, problem: &Problem, number: usize) -> Result<(), String> {
    let [y, lse] = problem.run(device, strategy)?;
    let seq_kv = problem.sizes()[3];
    // Every step that shares no factor with the count visits all keys.
    let step = (number + 1..).find(|&step| gcd(step, seq_kv) == 1).expect("there are primes above every number");
    let order: Vec<usize> = (0..seq_kv).map(|key| (key * step + number) % seq_kv).collect();
    let [turned, turned_lse] = problem.dense().keys(&order).run(device, strategy)?;
    same("output", &turned, &y)?;
    same("log-sum-exp", &turned_lse, &lse)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn split(device: &Device, strategy: Strategy, problem: &Problem, number: usize) -> Result<(), String> {
    let [y, lse] = problem.run(device, strategy)?;
    let seq_kv = problem.sizes()[3];
    let (first, second): (Vec<usize>, Vec<usize>) = (0..seq_kv).partition(|&key| key < number % (seq_kv + 1));
    let dense = problem.dense();
    // A sink is one score more: it belongs to one of the parts.
    let parts = [dense.keys(&first), dense.without(&["sinks"]).keys(&second)];
    let parts = parts.map(|part| part.run(device, strategy).map(|outputs| outputs.map(|output| output.to_f64())));
    let [[first_y, first_lse], [second_y, second_lse]] = match parts {
        [Ok(first), Ok(second)] => [first, second],
        [Err(error), _] | [_, Err(error)] => return Err(error),
    };
    let joined_lse: Vec<f64> = first_lse.iter().zip(&second_lse).map(|(&a, &b)| log_add(a, b)).collect();
    let weight = |part: f64, row: usize| if part == f64::NEG_INFINITY { 0.0 } else { (part - joined_lse[row]).exp() };
    let joined = (0..first_y.len()).map(|index| {
        let row = index / HEAD_DIM;
        weight(first_lse[row], row) * first_y[index] + weight(second_lse[row], row) * second_y[index]
    });
    let joined = HostTensor::f64(y.shape(), joined.collect()).map_err(|error| error.to_string())?;
    same("output", &y, &joined)?;
    let joined_lse = HostTensor::f64(lse.shape(), joined_lse).map_err(|error| error.to_string())?;
    same("log-sum-exp", &lse, &joined_lse)
}

/// ln(eᵃ + eᵇ).
fn log_add(a: f64, b: f64) -> f64 {
    let greatest = a.max(b);
    if greatest == f64::NEG_INFINITY { greatest } else { greatest + ((a - greatest).exp() + (b - greatest).exp()).ln() }
}

fn poisoned(device: &Device, strategy: Strategy, problem: &Problem, _: usize) -> Result<(), String> {
    let mut problem = problem.clone();
    problem.options.fill = Fill::Exclude;
    let [y, lse] = problem.run(device, strategy)?;
    let [_, heads, seq_q, seq_kv] = problem.sizes();
    let kv_heads = problem.get("k").expect("every problem has it").shape()[1];
    let bias = problem.get("bias").map(|bias| bias.as_f32().expect("drawn as f32").to_vec());
    let seen = |b: usize, kv_head: usize, j: usize| {
        let group = heads / kv_heads;
        (kv_head * group..(kv_head + 1) * group).any(|head| {
            (0..seq_q).any(|i| {
                let index = ((b * heads + head) * seq_q + i) * seq_kv + j;
                let excluded = bias.as_ref().is_some_and(|bias| bias[index] == f32::NEG_INFINITY);
                problem.exists(b, i, j) && problem.allows([b, head, i, j]) && !excluded
            })
        })
    };
    let mut changed = problem.clone();
    for (name, poison) in [("k", [f32::NAN, f32::INFINITY]), ("v", [f32::NEG_INFINITY, f32::NAN])] {
        let tensor = problem.get(name).expect("every problem has it");
        let mut data = tensor.as_f32().expect("drawn as f32").to_vec();
        for (row, elements) in data.chunks_exact_mut(HEAD_DIM).enumerate() {
            let (b, kv_head, j) = (row / seq_kv / kv_heads, row / seq_kv % kv_heads, row % seq_kv);
            if !seen(b, kv_head, j) {
                elements[j % HEAD_DIM] = poison[j % 2];
            }
        }
        changed.set(name, HostTensor::f32(tensor.shape(), data).map_err(|error| error.to_string())?);
    }
    let [poisoned, poisoned_lse] = changed.run(device, strategy)?;
    same("output", &poisoned, &y)?;
    same("log-sum-exp", &poisoned_lse, &lse)
}
