//! The decode loop: 512 steps of one row on a cache that grows in place are one prefill, however the cache is stored.

mod common;

use std::process::ExitCode;

use common::{Subject, Verdict, each_device, run};
use libtest_mimic::{Completion, Failed};
use regard::capabilities::Backend;
use regard::case::CaseInput;
use regard::compare::{NanMeans, Tolerance, compare};
use regard::ops::{Angles, AppendOptions, KvCache, Layout, Pairs, Positions, RotaryOptions, rotary_caches};
use regard::{
    Attention, Cache, Causal, Checks, Device, DeviceOptions, Dtype, Graph, HostTensor, Plan, PlanOptions, Result,
    Select, Tensor, TensorDesc, reference,
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
    for (name, kind) in [("", Kind::Floats), (", i8 cache", Kind::Levels), (", paged cache", Kind::Pages)] {
        for dtype in [Dtype::F32, Dtype::F16] {
            let name = format!("512 steps are one prefill, {dtype}{name}");
            trials
                .extend(each_device(&name, move |subject| steps_are_one_prefill(subject, Store { dtype, kind }, None)));
        }
        // What the device does not choose: shares of the keys, or one pass.
        let name = format!("512 steps are one prefill, f32{name}, the other way");
        let store = Store { dtype: Dtype::F32, kind };
        trials.extend(each_device(&name, move |subject| {
            let native = subject.device.capabilities().backend == Backend::Cpu;
            steps_are_one_prefill(subject, store, Some(if native { "split" } else { "attention_fused" }))
        }));
    }
    run(trials)
}

/// A trial's own device, for counting buffers while other trials make theirs.
fn fresh(subject: &Subject) -> std::result::Result<Device, Failed> {
    match subject.device.capabilities().backend {
        Backend::Cpu => Ok(Device::cpu()),
        Backend::Gpu => {
            let checks = if subject.name.ends_with("unchecked") { Checks::Unchecked } else { Checks::Checked };
            Ok(Device::new(&DeviceOptions {
                select: Select::Named(subject.device.name()),
                checks,
                cache: Cache::None,
            })?)
        }
    }
}

fn desc(dtype: Dtype, shape: &[usize]) -> TensorDesc {
    TensorDesc::new(dtype, shape)
}

fn numbers(data: &[u32]) -> HostTensor {
    HostTensor::u32(&[data.len()], data.to_vec()).expect("as many as there are")
}

/// How the cache is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Floats,
    Levels,
    Pages,
}

/// What comes is of this dtype, and so is a cache of floats or pages.
#[derive(Debug, Clone, Copy)]
struct Store {
    dtype: Dtype,
    kind: Kind,
}

const PAGE: usize = 16;
const PER_SEQUENCE: usize = CAPACITY.div_ceil(PAGE);

impl Store {
    /// What the cache starts as, by the names of its inputs. The pages lie in an order of their own, each once.
    fn empty(self) -> Vec<(&'static str, HostTensor)> {
        let (dtype, rows) = match self.kind {
            Kind::Floats => (self.dtype, [BATCH, 1, CAPACITY]),
            Kind::Levels => (Dtype::I8, [BATCH, 1, CAPACITY]),
            Kind::Pages => (self.dtype, [BATCH * PER_SEQUENCE, PAGE, 1]),
        };
        let data = HostTensor::zeros(desc(dtype, &[&rows[..], &[HEAD_DIM]].concat()));
        let lengths = HostTensor::zeros(desc(Dtype::U32, &[BATCH]));
        let mut empty = vec![("keys", data.clone()), ("values", data), ("lengths", lengths)];
        match self.kind {
            Kind::Floats => {}
            Kind::Levels => {
                let scales = HostTensor::zeros(desc(Dtype::F32, &rows));
                empty.extend([("scales of keys", scales.clone()), ("scales of values", scales)]);
            }
            Kind::Pages => {
                let pages = BATCH * PER_SEQUENCE;
                // 7 does not divide the number of pages, so each comes once.
                let table = (0..pages).map(|entry| ((entry * 7 + 3) % pages) as u32).collect();
                let table = HostTensor::u32(&[BATCH, PER_SEQUENCE], table).expect("an entry for each page");
                empty.push(("block table", table));
            }
        }
        empty
    }

    /// Inputs for one key head.
    fn cache(self, graph: &mut Graph) -> Result<KvCache> {
        let inputs = self.empty().into_iter().map(|(name, value)| graph.input(name, value.desc().clone()));
        let inputs = inputs.collect::<Result<Vec<_>>>()?;
        Ok(KvCache {
            keys: inputs[0],
            values: inputs[1],
            lengths: inputs[2],
            scales: (self.kind == Kind::Levels).then(|| [inputs[3], inputs[4]]),
            block_table: (self.kind == Kind::Pages).then(|| inputs[3]),
        })
    }

    /// Keys and values that attention sees, where they are not those that came: f32 `[batch, 1, positions, head_dim]`.
    fn held(self, device: &Device, plan: &Plan) -> Result<Option<[HostTensor; 2]>> {
        if self.kind != Kind::Levels {
            return Ok(None);
        }
        let held = ["keys", "values"].map(|name| {
            let levels = device.download(&plan.tensor(name)?)?.to_f64();
            let scales = device.download(&plan.tensor(&format!("scales of {name}"))?)?.to_f64();
            let rows = levels.chunks(HEAD_DIM).zip(scales);
            let rows = rows.enumerate().filter(|(at, _)| at % CAPACITY < LONGEST + STEPS);
            let data = rows.flat_map(|(_, (row, scale))| row.iter().map(move |level| (level * scale) as f32));
            HostTensor::f32(&[BATCH, 1, LONGEST + STEPS, HEAD_DIM], data.collect())
        });
        let [keys, values] = held;
        Ok(Some([keys?, values?]))
    }
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

    /// Queries or keys, turned by their positions.
    fn turned(&self, graph: &mut Graph, tensor: Tensor) -> Result<Tensor> {
        let angles = self.angles(graph)?;
        let positions = Positions::Counted;
        graph.rotary(tensor, &RotaryOptions { layout: Layout::HeadsFirst, angles, positions, norm: None })
    }

    /// Causal attention over every whole sequence at once, by definition: `[batch, heads, positions, head_dim]`. A cache that does
    /// not hold the keys and values that came, but others, is `held`.
    fn expected(&self, held: Option<&[HostTensor; 2]>) -> Result<HostTensor> {
        let mut graph = Graph::new();
        let [q, new_k, new_v] = &self.data;
        let [k, v] = held.map_or([new_k, new_v], |[k, v]| [k, v]);
        let inputs = [("q", q), ("k", k), ("v", v)];
        let tensors = inputs.map(|(name, value)| graph.input(name, value.desc().clone()).expect("a new name"));
        let q = self.turned(&mut graph, tensors[0])?;
        let k = if held.is_some() { tensors[1] } else { self.turned(&mut graph, tensors[1])? };
        let causal = Attention { causal: Some(Causal::TopLeft), ..Attention::default() };
        let y = graph.attention(q, k, tensors[2], &causal)?;
        graph.output("y", y)?;
        Ok(reference::run(&graph, &inputs)?.remove("y").expect("an output"))
    }

    /// Every element that a cache of levels has is half a level off at most, and a rounding of scale and quotient.
    fn check_held(&self, held: &[HostTensor; 2]) -> Verdict {
        let mut graph = Graph::new();
        let k = graph.input("k", self.data[1].desc().clone())?;
        let turned = self.turned(&mut graph, k)?;
        graph.output("turned", turned)?;
        let turned = reference::run(&graph, &[("k", &self.data[1])])?.remove("turned").expect("an output");
        for (name, held, wanted) in [("keys", &held[0], &turned), ("values", &held[1], &self.data[2])] {
            let (held, wanted) = (held.to_f64(), wanted.to_f64());
            for (at, (held, wanted)) in held.chunks(HEAD_DIM).zip(wanted.chunks(HEAD_DIM)).enumerate() {
                let (b, position) = (at / (LONGEST + STEPS), at % (LONGEST + STEPS));
                let largest = wanted.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
                let near = |(held, wanted): (&f64, &f64)| (held - wanted).abs() <= largest * (0.5 / 127.0 + 1e-5);
                if position < PROMPTS[b] + STEPS && !held.iter().zip(wanted).all(near) {
                    return Err(format!("{name} of {b}, position {position}: {held:?}, wanted {wanted:?}").into());
                }
            }
        }
        Ok(Completion::Completed)
    }

    fn angles(&self, graph: &mut Graph) -> Result<Angles> {
        let [cos, sin] = &self.angles;
        Ok(Angles { cos: graph.constant(cos.clone())?, sin: graph.constant(sin.clone())?, pairs: Pairs::Halves })
    }

    /// All prompts at once, padded; it has no output but what it leaves in the cache.
    fn prefill(&self, store: Store) -> Result<Graph> {
        let mut graph = Graph::new();
        let rows = desc(store.dtype, &[BATCH, 1, LONGEST, HEAD_DIM]);
        let (k, v) = (graph.input("k", rows.clone())?, graph.input("v", rows)?);
        let new_lengths = Some(graph.input("new_lengths", desc(Dtype::U32, &[BATCH]))?);
        let cache = store.cache(&mut graph)?;
        let options = AppendOptions { new_lengths, rotary: Some(self.angles(&mut graph)?), ..AppendOptions::default() };
        let after = graph.append_kv(&cache, k, v, &options)?;
        graph.assign(cache.lengths, after.lengths)?;
        Ok(graph)
    }

    /// One row of each sequence.
    fn step(&self, store: Store) -> Result<Graph> {
        let mut graph = Graph::new();
        let q = graph.input("q", desc(store.dtype, &[BATCH, HEADS, 1, HEAD_DIM]))?;
        let row = desc(store.dtype, &[BATCH, 1, 1, HEAD_DIM]);
        let (k, v) = (graph.input("k", row.clone())?, graph.input("v", row)?);
        let cache = store.cache(&mut graph)?;
        let angles = self.angles(&mut graph)?;
        let positions = Positions::After(cache.lengths);
        let q = graph.rotary(q, &RotaryOptions { layout: Layout::HeadsFirst, angles, positions, norm: None })?;
        let options = AppendOptions { rotary: Some(angles), ..AppendOptions::default() };
        let after = graph.append_kv(&cache, k, v, &options)?;
        let options = Attention {
            kv_lengths: Some(after.lengths),
            kv_scales: after.scales,
            block_table: after.block_table,
            causal: Some(Causal::BottomRight),
            ..Attention::default()
        };
        let y = graph.attention(q, after.keys, after.values, &options)?;
        graph.output("y", y)?;
        graph.assign(cache.lengths, after.lengths)?;
        Ok(graph)
    }
}

fn steps_are_one_prefill(subject: &Subject, store: Store, attention: Option<&str>) -> Verdict {
    if store.dtype == Dtype::F16 && !subject.device.capabilities().f16 {
        return Ok(Completion::ignored_with("the device has no f16 in shaders"));
    }
    let device = fresh(subject)?;
    let sequences = Sequences::new(store.dtype);
    let mut prefill = Plan::new(&device, &sequences.prefill(store)?)?;
    let techniques = attention.map(|technique| ("attention_fused".into(), technique.into()));
    let options = PlanOptions { techniques: techniques.into_iter().collect(), ..PlanOptions::default() };
    let mut step = Plan::with_options(&device, &sequences.step(store)?, &options)?;
    for (name, empty) in store.empty() {
        let shared = device.upload(&empty)?;
        prefill.bind(name, &shared)?;
        step.bind(name, &shared)?;
    }
    let prompts = PROMPTS.map(|prompt| prompt as u32);
    prefill.write("new_lengths", &numbers(&prompts))?;
    prefill.write("k", &sequences.rows(1, |_| 0, LONGEST))?;
    prefill.write("v", &sequences.rows(2, |_| 0, LONGEST))?;
    prefill.submit()?;
    let before = device.buffers_created();
    let mut results = Vec::new();
    for number in 0..STEPS {
        for (which, name) in ["q", "k", "v"].iter().enumerate() {
            step.write(name, &sequences.rows(which, |b| PROMPTS[b] + number, 1))?;
        }
        step.submit()?;
        if number % COMPARED == 0 || number + 1 == STEPS {
            results.push((number, step.read("y")?));
        }
    }
    assert_eq!(device.buffers_created(), before, "a step makes no buffer");
    let held = store.held(&device, &step)?;
    if let Some(held) = &held {
        sequences.check_held(held)?;
    }
    let expected = sequences.expected(held.as_ref())?.to_f64();
    for (number, got) in &results {
        check_step(got, &expected, |b| PROMPTS[b] + number).map_err(|why| format!("step {number}: {why}"))?;
    }
    let (last, got) = results.last().expect("there are steps");
    check_step(got, &expected, |b| PROMPTS[b] + last - 1).expect_err("the row before is another");
    let lengths = device.download(&step.tensor("lengths")?)?;
    assert_eq!(lengths, numbers(&prompts.map(|prompt| prompt + STEPS as u32)));
    Ok(Completion::Completed)
}

/// A score of two turned normals over √head_dim has deviation 1 and reaches 5, and each weight is off relatively by as much as
/// its score. In f32 that is 10 roundings for each of √head_dim + 2 sums and 2 × 3 of turning; sums over the keys add √812, exp
/// and the rest 32. In f16 the turned query and key are rounded, 10 times a score's 5 √2 / √16 sums, and so are value and result.
/// The values that the weights are of have magnitude 1 on average. A cache of levels is expected as it is: it adds the rounding of a
/// level times its scale.
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
