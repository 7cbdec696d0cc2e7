//! What a cache holds after appends, however it is stored, and lengths, positions and pages that are out of range.

mod common;
#[path = "common/embed.rs"]
mod embed;

use std::process::ExitCode;

use common::{Subject, Verdict, each_device, each_of, run};
use embed::{ALL_FEATURES, wgpu_device};
use libtest_mimic::Completion;
use regard::capabilities::Backend;
use regard::case::CaseInput;
use regard::compare::{NanMeans, Tolerance, compare};
use regard::ops::{Angles, AppendOptions, HeadNorm, KvCache, Layout, Pairs, Positions, RotaryOptions, rotary_caches};
use regard::{Device, Dtype, Graph, HostTensor, Plan, PlanOptions, Result, RunOptions, TensorDesc, reference};

const CHECKED: RunOptions = RunOptions { check: true };

fn main() -> ExitCode {
    let mut trials = Vec::new();
    for (name, quantised, paged) in [("i8", true, false), ("pages", false, true), ("i8 pages", true, true)] {
        trials.extend(each_device(&format!("what a cache holds, {name}"), move |subject| {
            contents(subject, Store { quantised, paged })
        }));
    }
    for (name, body) in [
        ("a full cache is reported", a_full_cache_is_reported as fn(&Subject) -> Verdict),
        ("a full cache stays as it is", a_full_cache_stays),
        ("bad positions and pages are reported", bad_data_is_reported),
    ] {
        trials.extend(each_device(name, body));
    }
    trials.extend(each_of(&[Backend::Gpu], "eight storage buffers: keys are normed and turned first", turned_first));
    run(trials)
}

fn desc(dtype: Dtype, shape: &[usize]) -> TensorDesc {
    TensorDesc::new(dtype, shape)
}

fn numbers(data: &[u32]) -> HostTensor {
    HostTensor::u32(&[data.len()], data.to_vec()).expect("as many as there are")
}

const BATCH: usize = 3;
const KV_HEADS: usize = 2;
const DIMS: [usize; 2] = [8, 12];
const PAGE: usize = 16;
const PER_SEQUENCE: usize = 5;

/// Rows that come at once, at most.
const AT_ONCE: usize = 7;

/// How a cache is stored.
#[derive(Clone, Copy)]
struct Store {
    quantised: bool,
    paged: bool,
}

impl Store {
    /// Rows of keys or of values.
    fn shape(self) -> [usize; 3] {
        match self.paged {
            true => [BATCH * PER_SEQUENCE, PAGE, KV_HEADS],
            false => [BATCH, KV_HEADS, PAGE * PER_SEQUENCE],
        }
    }

    /// Appends `k` and `v`; it has no output but what it leaves in the cache.
    fn graph(self) -> Result<Graph> {
        let mut graph = Graph::new();
        let new = |dim| desc(Dtype::F32, &[BATCH, AT_ONCE, KV_HEADS, dim]);
        let (k, v) = (graph.input("k", new(DIMS[0]))?, graph.input("v", new(DIMS[1]))?);
        let new_lengths = Some(graph.input("new_lengths", desc(Dtype::U32, &[BATCH]))?);
        let dtype = if self.quantised { Dtype::I8 } else { Dtype::F32 };
        let rows = |dim: usize| desc(dtype, &[&self.shape()[..], &[dim]].concat());
        let mut cache = KvCache {
            keys: graph.input("keys", rows(DIMS[0]))?,
            values: graph.input("values", rows(DIMS[1]))?,
            lengths: graph.input("lengths", desc(Dtype::U32, &[BATCH]))?,
            scales: None,
            block_table: None,
        };
        if self.quantised {
            let scales = desc(Dtype::F32, &self.shape());
            cache.scales = Some([graph.input("keys scales", scales.clone())?, graph.input("values scales", scales)?]);
        }
        if self.paged {
            cache.block_table = Some(graph.input("block_table", desc(Dtype::U32, &[BATCH, PER_SEQUENCE]))?);
        }
        let options = AppendOptions { layout: Layout::SeqFirst, new_lengths, ..AppendOptions::default() };
        let after = graph.append_kv(&cache, k, v, &options)?;
        graph.assign(cache.lengths, after.lengths)?;
        Ok(graph)
    }

    /// Where a row lies.
    fn row(self, b: usize, head: usize, position: usize) -> usize {
        if !self.paged {
            return (b * KV_HEADS + head) * PAGE * PER_SEQUENCE + position;
        }
        let page = block_table()[b * PER_SEQUENCE + position / PAGE] as usize;
        (page * PAGE + position % PAGE) * KV_HEADS + head
    }

    /// What keys or values hold: rows of elements.
    fn read(self, device: &Device, plan: &Plan, name: &str) -> Result<Vec<Vec<f64>>> {
        let get = |name: &str| device.download(&plan.tensor(name)?);
        let data = get(name)?;
        let rows = data.to_f64().chunks(data.desc().row_length()).map(<[f64]>::to_vec).collect::<Vec<_>>();
        if !self.quantised {
            return Ok(rows);
        }
        let scales = get(&format!("{name} scales"))?.to_f64();
        Ok(rows.iter().zip(scales).map(|(row, scale)| row.iter().map(|level| level * scale).collect()).collect())
    }
}

/// Every page once, in an order of their own.
fn block_table() -> Vec<u32> {
    (0..15).map(|entry| entry * 4 % 15).collect()
}

/// Four appends of up to seven rows into levels, pages or both: every row is where it belongs, and as exact as a level is.
fn contents(subject: &Subject, store: Store) -> Verdict {
    let graph = store.graph()?;
    let mut plan = Plan::new(&subject.device, &graph)?;
    for (name, desc) in graph.inputs() {
        plan.write(name, &HostTensor::zeros(desc.clone()))?;
    }
    if store.paged {
        plan.write("block_table", &HostTensor::u32(&[BATCH, PER_SEQUENCE], block_table())?)?;
    }
    // Of each sequence: the elements that each position's row came with, and where among them it starts.
    let mut held: [Vec<([Vec<f64>; 2], usize)>; BATCH] = Default::default();
    for (round, counts) in (0..).zip([[7, 1, 3], [0, 7, 7], [5, 7, 7], [7, 7, 7]]) {
        let draw = |which: usize| {
            let shape = [BATCH, AT_ONCE, KV_HEADS, DIMS[which]];
            CaseInput::normal(Dtype::F32, &shape, 1.0).draw(2 * round + which as u64)
        };
        let (k, v) = (draw(0), draw(1));
        for (name, value) in [("k", &k), ("v", &v), ("new_lengths", &numbers(&counts))] {
            plan.write(name, value)?;
        }
        plan.submit_with(&CHECKED)?;
        for (b, held) in held.iter_mut().enumerate() {
            held.extend((0..counts[b] as usize).map(|i| ([k.to_f64(), v.to_f64()], b * AT_ONCE + i)));
        }
    }
    let lengths = subject.device.download(&plan.tensor("lengths")?)?;
    assert_eq!(lengths, numbers(&[19, 22, 24]));
    for (which, name) in ["keys", "values"].into_iter().enumerate() {
        let rows = store.read(&subject.device, &plan, name)?;
        for (b, head) in (0..BATCH).flat_map(|b| (0..KV_HEADS).map(move |head| (b, head))) {
            for (position, (data, token)) in held[b].iter().enumerate() {
                let wanted = &data[which][(token * KV_HEADS + head) * DIMS[which]..][..DIMS[which]];
                let got = &rows[store.row(b, head, position)];
                let largest = wanted.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
                // Half a level, and the roundings of scale and quotient.
                let allowed = if store.quantised { largest * (0.5 / 127.0 + 1e-5) } else { 0.0 };
                let near = got.iter().zip(wanted).all(|(got, wanted)| (got - wanted).abs() <= allowed);
                assert!(near, "{name} of {b}, head {head}, position {position}: {got:?}, wanted {wanted:?}");
            }
        }
    }
    Ok(Completion::Completed)
}

/// A cache of four rows of one element that gets its step's number.
fn counting(device: &Device) -> Result<Plan> {
    let mut graph = Graph::new();
    let row = desc(Dtype::F32, &[2, 1, 1, 1]);
    let (k, v) = (graph.input("k", row.clone())?, graph.input("v", row)?);
    let rows = desc(Dtype::F32, &[2, 1, 4, 1]);
    let cache = KvCache {
        keys: graph.input("keys", rows.clone())?,
        values: graph.input("values", rows)?,
        lengths: graph.input("lengths", desc(Dtype::U32, &[2]))?,
        scales: None,
        block_table: None,
    };
    let after = graph.append_kv(&cache, k, v, &AppendOptions::default())?;
    graph.assign(cache.lengths, after.lengths)?;
    graph.output("all keys", after.keys)?;
    let mut plan = Plan::new(device, &graph)?;
    let zeros = HostTensor::zeros(desc(Dtype::F32, &[2, 1, 4, 1]));
    plan.write("keys", &zeros)?;
    plan.write("values", &zeros)?;
    plan.write("lengths", &numbers(&[0, 2]))?;
    Ok(plan)
}

fn count(plan: &mut Plan, number: usize, options: &RunOptions) -> Result<()> {
    let row = HostTensor::f32(&[2, 1, 1, 1], vec![number as f32; 2])?;
    plan.write("k", &row)?;
    plan.write("v", &row)?;
    plan.submit_with(options)
}

fn a_full_cache_is_reported(subject: &Subject) -> Verdict {
    let mut plan = counting(&subject.device)?;
    count(&mut plan, 1, &CHECKED)?;
    count(&mut plan, 2, &CHECKED)?;
    for _ in 0..2 {
        let why = count(&mut plan, 3, &CHECKED).expect_err("sequence 1 is full");
        let expected = "append_kv: sequence 1 has 4 keys and 1 more come, the cache holds 4";
        assert_eq!(why.to_string(), expected);
        assert_eq!(plan.run_with(&[], &CHECKED).expect_err("still full").to_string(), expected);
    }
    assert_eq!(plan.read("all keys")?.to_f64(), [1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0]);
    assert_eq!(subject.device.download(&plan.tensor("lengths")?)?, numbers(&[2, 4]), "the refused step did not run");
    plan.write("lengths", &numbers(&[0, 3]))?;
    let row = HostTensor::f32(&[2, 1, 1, 1], vec![9.0; 2])?;
    let got = plan.run_with(&[("k", &row), ("v", &row)], &CHECKED)?;
    assert_eq!(got["all keys"].to_f64(), [9.0, 2.0, 0.0, 0.0, 0.0, 0.0, 1.0, 9.0]);
    Ok(Completion::Completed)
}

fn a_full_cache_stays(subject: &Subject) -> Verdict {
    let mut plan = counting(&subject.device)?;
    for number in 1..9 {
        count(&mut plan, number, &RunOptions::default())?;
    }
    assert_eq!(plan.read("all keys")?.to_f64(), [1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 1.0, 2.0]);
    assert_eq!(subject.device.download(&plan.tensor("lengths")?)?, numbers(&[4, 4]));
    plan.write("lengths", &numbers(&[u32::MAX, 77]))?;
    count(&mut plan, 9, &RunOptions::default())?;
    assert_eq!(plan.read("all keys")?.to_f64(), [1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 1.0, 2.0]);
    Ok(Completion::Completed)
}

fn bad_data_is_reported(subject: &Subject) -> Verdict {
    let mut graph = Graph::new();
    let row = desc(Dtype::F32, &[2, 1, 3, 4]);
    let (k, v) = (graph.input("k", row.clone())?, graph.input("v", row)?);
    let pages = desc(Dtype::F32, &[6, 2, 1, 4]);
    let cache = KvCache {
        keys: graph.input("keys", pages.clone())?,
        values: graph.input("values", pages)?,
        lengths: graph.input("lengths", desc(Dtype::U32, &[2]))?,
        scales: None,
        block_table: Some(graph.input("table", desc(Dtype::U32, &[2, 4]))?),
    };
    let angles = |graph: &mut Graph, positions| -> Result<Angles> {
        let [cos, sin] = rotary_caches(10_000.0, 4, positions)?;
        Ok(Angles { cos: graph.constant(cos)?, sin: graph.constant(sin)?, pairs: Pairs::Interleaved })
    };
    let q = graph.input("q", desc(Dtype::F32, &[2, 1, 1, 4]))?;
    let positions = Positions::Given(graph.input("positions", desc(Dtype::U32, &[2, 1]))?);
    let angles_of_q = angles(&mut graph, 9)?;
    let options = RotaryOptions { layout: Layout::HeadsFirst, angles: angles_of_q, positions, norm: None };
    let turned = graph.rotary(q, &options)?;
    graph.output("turned", turned)?;
    let new_lengths = Some(graph.input("new", desc(Dtype::U32, &[2]))?);
    let rotary = Some(angles(&mut graph, 7)?);
    graph.append_kv(&cache, k, v, &AppendOptions { new_lengths, rotary, ..AppendOptions::default() })?;
    let mut plan = Plan::new(&subject.device, &graph)?;
    let inputs: Vec<_> =
        graph.inputs().map(|(name, desc)| (name.to_owned(), HostTensor::zeros(desc.clone()))).collect();
    for (name, zeros) in &inputs {
        plan.write(name, zeros)?;
    }
    let good: [&[u32]; 4] = [&[8, 0], &[3, 2], &[3, 2], &[0, 1, 5, 0, 9, 3, 4, 0]];
    let mut run = |[positions, lengths, new, table]: [&[u32]; 4]| -> std::result::Result<(), String> {
        let table = HostTensor::u32(&[2, 4], table.to_vec()).expect("eight entries");
        let positions = HostTensor::u32(&[2, 1], positions.to_vec()).expect("two positions");
        let given = [("positions", positions), ("lengths", numbers(lengths)), ("new", numbers(new)), ("table", table)];
        let given: Vec<_> = given.iter().map(|(name, value)| (*name, value)).collect();
        plan.run(&given).expect("an unchecked run does not look");
        plan.run_with(&given, &CHECKED).map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(run(good), Ok(()));
    let [positions, lengths, new, table] = good;
    let refused = |data: [&[u32]; 4], expected: &str| match run(data) {
        Err(why) if why == expected => {}
        other => panic!("wanted: {expected}\n   got: {other:?}"),
    };
    let mut refused = refused;
    refused([&[0, 9], lengths, new, table], "rotary: sequence 1 reaches position 9, cos and sin have 9 positions");
    refused([positions, lengths, &[3, 4], table], "append_kv: sequence 1 brings 4 rows, k has 3");
    refused([positions, &[3, 7], new, table], "append_kv: sequence 1 has 7 keys and 2 more come, the cache holds 8");
    refused([positions, &[5, 0], new, table], "append_kv: sequence 0 reaches position 7, cos and sin have 7 positions");
    refused([positions, &[3, 1], new, table], "append_kv: page 0 of sequence 1 is 9, the cache has 6");
    let shared = [0, 1, 5, 0, 9, 5, 4, 0];
    refused([positions, lengths, new, &shared], "append_kv: page 5 would get rows of sequence 0 and of sequence 1");
    Ok(Completion::Completed)
}

/// What new keys go through in [`turned_first`].
struct Turned {
    layout: Layout,
    /// Shape of the angles; none turn where it is empty.
    angles: Vec<usize>,
    normed: bool,
    paged: bool,
    counted: bool,
    steps: &'static [&'static str],
}

impl Turned {
    /// Of 2 sequences, 3 new rows, 2 heads and head_dim 4; values are 5 wide.
    fn graph(&self) -> Result<Graph> {
        let mut graph = Graph::new();
        let new = |dim| match self.layout {
            Layout::HeadsFirst => vec![2, 2, 3, dim],
            Layout::SeqFirst => vec![2, 3, 2, dim],
            Layout::Merged { heads } => vec![2, 3, heads * dim],
            Layout::Joined { .. } => unreachable!("append_kv takes none"),
        };
        let mut input = |name: &str, shape: &[usize]| graph.input(name, desc(Dtype::F32, shape));
        let (k, v) = (input("k", &new(4))?, input("v", &new(5))?);
        let rows = if self.paged { [8, 2, 2] } else { [2, 2, 8] };
        let [keys, values] = [("keys", 4), ("values", 5)].map(|(name, dim)| input(name, &[&rows[..], &[dim]].concat()));
        let angles = |name: &str, input: &mut dyn FnMut(&str, &[usize]) -> Result<_>| input(name, &self.angles);
        let rotary = match self.angles.is_empty() {
            true => None,
            false => {
                Some(Angles { cos: angles("cos", &mut input)?, sin: angles("sin", &mut input)?, pairs: Pairs::Halves })
            }
        };
        let weight = if self.normed { Some(input("weight", &[4])?) } else { None };
        let key_norm = weight.map(|weight| HeadNorm { weight: Some(weight), epsilon: 1e-5 });
        let mut numbers = |name: &str, shape: &[usize]| graph.input(name, desc(Dtype::U32, shape));
        let lengths = numbers("lengths", &[2])?;
        let new_lengths = if self.counted { Some(numbers("new", &[2])?) } else { None };
        let block_table = if self.paged { Some(numbers("table", &[2, 4])?) } else { None };
        let cache = KvCache { keys: keys?, values: values?, lengths, scales: None, block_table };
        let options = AppendOptions { layout: self.layout, new_lengths, rotary, key_norm };
        let after = graph.append_kv(&cache, k, v, &options)?;
        for (name, tensor) in [("all keys", after.keys), ("all values", after.values), ("count", after.lengths)] {
            graph.output(name, tensor)?;
        }
        Ok(graph)
    }
}

/// WebGPU's least is eight storage buffers; an append of turned keys binds more, and becomes two steps there.
fn turned_first(subject: &Subject) -> Verdict {
    let (_device, _queue, poor) = wgpu_device(subject, ALL_FEATURES)?;
    let by_position = Turned {
        layout: Layout::HeadsFirst,
        angles: vec![9, 2],
        normed: true,
        paged: false,
        counted: false,
        steps: &["rotary", "append_kv"],
    };
    let by_row = Turned { layout: Layout::SeqFirst, angles: vec![2, 3, 1], normed: false, paged: true, ..by_position };
    let merged = Layout::Merged { heads: 2 };
    let steps = &["rms_norm", "append_kv"];
    let only_normed = Turned { layout: merged, angles: vec![], normed: true, paged: true, counted: true, steps };
    let counted =
        Turned { layout: merged, angles: vec![9, 2], normed: false, paged: true, counted: true, ..by_position };
    for turned in [by_position, by_row, only_normed, counted] {
        let graph = turned.graph()?;
        let mut plan = Plan::new(&poor, &graph)?;
        let description = plan.describe();
        let ops: Vec<_> = description.steps.iter().map(|step| step.op).collect();
        assert_eq!(ops, turned.steps, "{description}");
        assert!(description.steps.iter().all(|step| step.instead_of == Some("append_kv")), "{description}");
        let elsewhere = |options| Ok::<_, regard::Error>(Plan::preview(&Device::cpu(), &graph, &options)?.steps);
        assert_eq!(elsewhere(PlanOptions::default())?.len(), 1);
        let forced = elsewhere(PlanOptions::technique("append_kv", "turn_first"))?;
        assert_eq!(forced.iter().map(|step| step.op).collect::<Vec<_>>(), turned.steps);
        let inputs: Vec<_> = graph
            .inputs()
            .zip(1..)
            .map(|((name, desc), seed)| {
                let value = match name {
                    "lengths" => numbers(&[4, 0]),
                    "new" => numbers(&[3, 1]),
                    "table" => HostTensor::u32(&[2, 4], vec![7, 2, 1, 6, 3, 0, 4, 5]).expect("eight entries"),
                    _ => CaseInput::normal(Dtype::F32, &desc.shape, 1.0).draw(seed),
                };
                (name, value)
            })
            .collect();
        let inputs: Vec<_> = inputs.iter().map(|(name, value)| (*name, value)).collect();
        let wanted = reference::run(&graph, &inputs)?;
        for (name, got) in plan.run_with(&inputs, &CHECKED)? {
            let comparison = compare(&got, &wanted[&name], Tolerance::of_scale(1e-6), NanMeans::Nan);
            assert!(comparison.passed(), "{name}, {ops:?}: {comparison}");
        }
    }
    Ok(Completion::Completed)
}
