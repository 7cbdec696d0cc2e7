//! The decode loop: 512 steps of one row on a cache that grows in place are one prefill.

mod common;

use std::process::ExitCode;

use common::{Subject, Verdict, each_device, run};
use libtest_mimic::{Completion, Failed};
use regard::capabilities::Backend;
use regard::case::CaseInput;
use regard::compare::{NanMeans, Tolerance, compare};
use regard::ops::{Angles, AppendOptions, KvCache, Layout, Pairs, Positions, RotaryOptions, rotary_caches};
use regard::{
    Attention, Causal, Checks, Device, DeviceOptions, Dtype, Graph, HostTensor, Plan, Result, Select, TensorDesc,
    reference,
};

const BATCH: usize = 3;
const HEADS: usize = 2;
const HEAD_DIM: usize = 16;

/// Rows of each sequence's prompt, the longest of which the others are padded to.
const PROMPTS: [usize; BATCH] = [10, 100, 300];
const LONGEST: usize = 300;
const STEPS: usize = 512;

/// A few more than are needed, and no power of two.
const CAPACITY: usize = LONGEST + STEPS + 19;

/// A prime, so that comparisons fall on every position of a tile.
const COMPARED: usize = 37;

fn main() -> ExitCode {
    let mut trials = Vec::new();
    trials.extend(each_device("512 steps are one prefill, f32", |subject| steps_are_one_prefill(subject, Dtype::F32)));
    trials.extend(each_device("512 steps are one prefill, f16", |subject| steps_are_one_prefill(subject, Dtype::F16)));
    run(trials)
}

/// A trial's own device, for counting buffers while other trials make theirs.
fn fresh(subject: &Subject) -> std::result::Result<Device, Failed> {
    match subject.device.capabilities().backend {
        Backend::Cpu => Ok(Device::cpu()),
        Backend::Gpu => {
            let checks = if subject.name.ends_with("unchecked") { Checks::Unchecked } else { Checks::Checked };
            Ok(Device::new(&DeviceOptions { select: Select::Named(subject.device.name()), checks })?)
        }
    }
}

fn desc(dtype: Dtype, shape: &[usize]) -> TensorDesc {
    TensorDesc::new(dtype, shape)
}

fn numbers(data: &[u32]) -> HostTensor {
    HostTensor::u32(&[data.len()], data.to_vec()).expect("as many as there are")
}

/// Keys, values and lengths as inputs of these names, for one key head.
fn cache(graph: &mut Graph, dtype: Dtype) -> Result<KvCache> {
    let rows = desc(dtype, &[BATCH, 1, CAPACITY, HEAD_DIM]);
    Ok(KvCache {
        keys: graph.input("keys", rows.clone())?,
        values: graph.input("values", rows)?,
        lengths: graph.input("lengths", desc(Dtype::U32, &[BATCH]))?,
        scales: None,
        block_table: None,
    })
}

/// Whole sequences, of which the prompts are the beginning and each step has one row.
struct Sequences {
    /// `[batch, heads, positions, head_dim]`, for queries, keys and values.
    data: [HostTensor; 3],
    angles: [HostTensor; 2],
}

impl Sequences {
    fn new(dtype: Dtype) -> Self {
        let draw = |heads, seed| CaseInput::normal(dtype, &[BATCH, heads, LONGEST + STEPS, HEAD_DIM], 1.0).draw(seed);
        // Three quarters of a row turn.
        let angles = rotary_caches(10_000.0, HEAD_DIM * 3 / 4, CAPACITY).expect("an even width");
        Self { data: [draw(HEADS, 1), draw(1, 2), draw(1, 3)], angles }
    }

    /// `count` rows of queries, keys or values, sequence b's from `from(b)` on.
    fn rows(&self, which: usize, from: impl Fn(usize) -> usize, count: usize) -> HostTensor {
        let tensor = &self.data[which];
        let &[_, heads, positions, _] = tensor.shape() else { panic!("it was drawn with rank 4") };
        let row = HEAD_DIM * tensor.desc().dtype.size();
        let mut bytes = Vec::new();
        for (b, head) in (0..BATCH).flat_map(|b| (0..heads).map(move |head| (b, head))) {
            let start = (b * heads + head) * positions + from(b);
            bytes.extend_from_slice(&tensor.bytes()[start * row..(start + count) * row]);
        }
        let shape = [BATCH, heads, count, HEAD_DIM];
        HostTensor::from_bytes(desc(tensor.desc().dtype, &shape), &bytes).expect("so many rows")
    }

    /// Causal attention over every whole sequence at once, by definition: `[batch, heads, positions, head_dim]`.
    fn expected(&self) -> Result<HostTensor> {
        let mut graph = Graph::new();
        let inputs = [0, 1, 2].map(|which| graph.input(["q", "k", "v"][which], self.data[which].desc().clone()));
        let [q, k, v] = [inputs[0].clone()?, inputs[1].clone()?, inputs[2].clone()?];
        let [q, k] = [q, k].map(|tensor| {
            let options = RotaryOptions {
                layout: Layout::HeadsFirst,
                angles: self.angles(&mut graph)?,
                positions: Positions::Counted,
                norm: None,
            };
            graph.rotary(tensor, &options)
        });
        let causal = Attention { causal: Some(Causal::TopLeft), ..Attention::default() };
        let y = graph.attention(q?, k?, v, &causal)?;
        graph.output("y", y)?;
        let [q, k, v] = &self.data;
        Ok(reference::run(&graph, &[("q", q), ("k", k), ("v", v)])?.remove("y").expect("an output"))
    }

    fn angles(&self, graph: &mut Graph) -> Result<Angles> {
        let [cos, sin] = &self.angles;
        Ok(Angles { cos: graph.constant(cos.clone())?, sin: graph.constant(sin.clone())?, pairs: Pairs::Halves })
    }

    /// All prompts at once, padded; it has no output but what it leaves in the cache.
    fn prefill(&self, dtype: Dtype) -> Result<Graph> {
        let mut graph = Graph::new();
        let rows = desc(dtype, &[BATCH, 1, LONGEST, HEAD_DIM]);
        let (k, v) = (graph.input("k", rows.clone())?, graph.input("v", rows)?);
        let new_lengths = Some(graph.input("new_lengths", desc(Dtype::U32, &[BATCH]))?);
        let cache = cache(&mut graph, dtype)?;
        let options = AppendOptions { new_lengths, rotary: Some(self.angles(&mut graph)?), ..AppendOptions::default() };
        let after = graph.append_kv(&cache, k, v, &options)?;
        graph.assign(cache.lengths, after.lengths)?;
        Ok(graph)
    }

    /// One row of each sequence.
    fn step(&self, dtype: Dtype) -> Result<Graph> {
        let mut graph = Graph::new();
        let q = graph.input("q", desc(dtype, &[BATCH, HEADS, 1, HEAD_DIM]))?;
        let row = desc(dtype, &[BATCH, 1, 1, HEAD_DIM]);
        let (k, v) = (graph.input("k", row.clone())?, graph.input("v", row)?);
        let cache = cache(&mut graph, dtype)?;
        let angles = self.angles(&mut graph)?;
        let positions = Positions::After(cache.lengths);
        let q = graph.rotary(q, &RotaryOptions { layout: Layout::HeadsFirst, angles, positions, norm: None })?;
        let options = AppendOptions { rotary: Some(angles), ..AppendOptions::default() };
        let after = graph.append_kv(&cache, k, v, &options)?;
        let causal = Some(Causal::BottomRight);
        let options = Attention { kv_lengths: Some(after.lengths), causal, ..Attention::default() };
        let y = graph.attention(q, after.keys, after.values, &options)?;
        graph.output("y", y)?;
        graph.assign(cache.lengths, after.lengths)?;
        Ok(graph)
    }
}

fn steps_are_one_prefill(subject: &Subject, dtype: Dtype) -> Verdict {
    if dtype == Dtype::F16 && !subject.device.capabilities().f16 {
        return Ok(Completion::ignored_with("the device has no f16 in shaders"));
    }
    let device = fresh(subject)?;
    let sequences = Sequences::new(dtype);
    let expected = sequences.expected()?.to_f64();
    let mut prefill = Plan::new(&device, &sequences.prefill(dtype)?)?;
    let mut step = Plan::new(&device, &sequences.step(dtype)?)?;
    let rows = desc(dtype, &[BATCH, 1, CAPACITY, HEAD_DIM]);
    let zeros = [rows.clone(), rows, desc(Dtype::U32, &[BATCH])].map(HostTensor::zeros);
    for (name, zeros) in ["keys", "values", "lengths"].iter().zip(&zeros) {
        let shared = device.upload(zeros)?;
        prefill.bind(name, &shared)?;
        step.bind(name, &shared)?;
    }
    let prompts = PROMPTS.map(|prompt| prompt as u32);
    prefill.write("new_lengths", &numbers(&prompts))?;
    prefill.write("k", &sequences.rows(1, |_| 0, LONGEST))?;
    prefill.write("v", &sequences.rows(2, |_| 0, LONGEST))?;
    prefill.submit()?;
    let before = device.buffers_created();
    for number in 0..STEPS {
        let from = |b: usize| PROMPTS[b] + number;
        for (which, name) in ["q", "k", "v"].iter().enumerate() {
            step.write(name, &sequences.rows(which, from, 1))?;
        }
        step.submit()?;
        if number % COMPARED == 0 || number + 1 == STEPS {
            check_step(&step.read("y")?, &expected, from).map_err(|why| format!("step {number}: {why}"))?;
        }
    }
    assert_eq!(device.buffers_created(), before, "a step makes no buffer");
    let one_early = |b: usize| PROMPTS[b] + STEPS - 2;
    check_step(&step.read("y")?, &expected, one_early).expect_err("the row before is another");
    let lengths = device.download(&step.tensor("lengths")?)?;
    assert_eq!(lengths, numbers(&prompts.map(|prompt| prompt + STEPS as u32)));
    Ok(Completion::Completed)
}

/// A score of two turned normals over √head_dim has deviation 1 and reaches 5, and each weight is off relatively by as much as
/// its score. In f32 that is 10 roundings for each of √head_dim + 2 sums and 2 × 3 of turning; sums over the keys add √812, exp
/// and the rest 32. In f16 the turned query and key are rounded, 10 times a score's 5 √2 / √16 sums, and so are value and result.
/// The values that the weights are of have magnitude 1 on average.
fn check_step(got: &HostTensor, expected: &[f64], from: impl Fn(usize) -> usize) -> std::result::Result<(), String> {
    let (f32_rounding, f16_rounding) = (2.0_f64.powi(-24), 2.0_f64.powi(-11));
    let storage = if got.desc().dtype == Dtype::F16 { 20.0 * f16_rounding } else { 0.0 };
    let absolute = (10.0 * 12.0 + 29.0 + 32.0) * f32_rounding + storage;
    let mut wanted = Vec::new();
    for (b, head) in (0..BATCH).flat_map(|b| (0..HEADS).map(move |head| (b, head))) {
        let row = (b * HEADS + head) * (LONGEST + STEPS) + from(b);
        wanted.extend_from_slice(&expected[row * HEAD_DIM..(row + 1) * HEAD_DIM]);
    }
    let wanted = HostTensor::f64(got.shape(), wanted).map_err(|error| error.to_string())?;
    let comparison = compare(got, &wanted, Tolerance { absolute, ..Tolerance::of_scale(0.0) }, NanMeans::Nan);
    if comparison.passed() { Ok(()) } else { Err(comparison.to_string()) }
}
