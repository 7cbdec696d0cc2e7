//! Attention problems over the whole option space. Head dimensions, dtypes and page sizes come from small sets: each combination
//! is a pipeline for each combination of rules.

use std::cell::Cell;

use libtest_mimic::{Completion, Failed};
use proptest::prelude::{Just, Strategy as Draw, any, prop, prop_oneof};
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestRunner};
use regard::capabilities::Backend;
use regard::{Attention, Causal, Device, Dtype, Fill, Layout, Plan, PlanOptions, Strategy, Window};

use crate::common::{Subject, Verdict};
use crate::embed::{ALL_FEATURES, wgpu_device};
use crate::problem::{Pages, Problem, check, check_split, graph, problem};

/// How queries and keys belong together.
#[derive(Debug, Clone)]
enum Sequences {
    Batched,
    /// Starts of queries and keys.
    Packed(Vec<u32>, Vec<u32>),
    /// Starts of queries; each sequence has a batch element of keys.
    BatchedKeys(Vec<u32>),
}

/// How q, k and v are stored.
#[derive(Debug, Clone)]
struct Storage {
    dtype: Dtype,
    kv_dtype: Dtype,
    layouts: [Order; 2],
    page_size: Option<usize>,
    /// Entries of a block table, whatever its size; taken modulo the number of pages.
    entries: Vec<u32>,
}

/// A layout before the number of heads is known.
#[derive(Debug, Clone, Copy)]
enum Order {
    HeadsFirst,
    SeqFirst,
    Merged,
    Joined,
}

impl Order {
    fn layout(self, heads: usize, [all, kv_heads]: [usize; 2]) -> Layout {
        match self {
            Self::HeadsFirst => Layout::HeadsFirst,
            Self::SeqFirst => Layout::SeqFirst,
            Self::Merged => Layout::Merged { heads },
            Self::Joined => Layout::Joined { heads: all, kv_heads },
        }
    }
}

/// Pages of a pool, fewer than some block tables have entries, so that sequences share them.
const POOL: usize = 7;

/// The most entries that a block table has: four sequences of pages of 4 for 43 keys.
const ENTRIES: usize = 4 * 11;

/// Small problems with any sizes, heads, storage, masks, lengths and fills.
pub fn problems(device: &Device) -> impl Draw<Value = Problem> + use<> {
    drawn(device, SMALL)
}

/// How large sizes may be.
#[derive(Clone, Copy)]
struct Sizes {
    seq_q: usize,
    seq_kv: usize,
    /// Lengths and starts are smaller, so that some lie past the ends.
    ends: u32,
    page_sizes: [usize; 2],
}

const SMALL: Sizes = Sizes { seq_q: 40, seq_kv: 40, ends: 44, page_sizes: [4, 16] };

/// Few queries over several shares of keys.
const FEW_QUERIES: Sizes = Sizes { seq_q: 3, seq_kv: 200, ends: 220, page_sizes: [20, 64] };

fn drawn(device: &Device, limits: Sizes) -> impl Draw<Value = Problem> + use<> {
    let head_dims = prop_oneof![Just([8, 8]), Just([16, 12]), Just([33, 20])];
    let sizes = (0..=2usize, 1..=3usize, 1..=2usize, 0..=limits.seq_q, 0..=limits.seq_kv);
    let numbers = (prop::option::of(0.1..9.0f32), prop::option::of(-0.5..0.5f32));
    let tensors = (any::<[bool; 4]>(), any::<[bool; 10]>(), prop::collection::vec(0..limits.ends, 8));
    let drawn = ((sizes, head_dims, storage(device, limits)), (band(), numbers), sequences(limits), tensors);
    drawn.prop_map(|((sizes, head_dims, storage), (options, numbers), sequences, (axes, has, lengths))| {
        let (batch, group, kv_heads, seq_q, seq_kv) = sizes;
        let heads = group * kv_heads;
        let [q_order, kv_order] = storage.layouts;
        let paged = storage.page_size.is_some();
        let each = [heads, kv_heads];
        let kv_layout = if paged { Layout::HeadsFirst } else { kv_order.layout(kv_heads, each) };
        let (softcap, scale) = numbers;
        let options = Attention { softcap, scale, q_layout: q_order.layout(heads, each), kv_layout, ..options };
        let batch = if matches!(sequences, Sequences::Batched) { batch } else { 1 };
        let seq_kv = storage.page_size.map_or(seq_kv, |size| seq_kv.next_multiple_of(size));
        let sizes = [batch, heads, kv_heads, seq_q, seq_kv, head_dims[0], head_dims[1]];
        let scores = [batch, heads, seq_q, seq_kv];
        let mut shape: Vec<usize> =
            scores.iter().zip(axes).map(|(&size, whole)| if whole { size } else { 1 }).collect();
        let bias = has[1].then(|| (if has[8] { storage.half() } else { Dtype::F32 }, shape[1..].to_vec()));
        // A mask may end before the keys.
        shape[3] -= if has[9] { shape[3] / 3 } else { 0 };
        let mut problem = Problem {
            dtype: storage.dtype,
            kv_dtype: storage.kv_dtype,
            mask: has[0].then_some(shape),
            bias,
            sinks: has[2].then(|| [0.5, f32::NEG_INFINITY, 4.0].into_iter().cycle().take(heads).collect()),
            lse: has[3],
            ..problem("random", sizes, options)
        };
        let count = place(&mut problem, sequences, [has[4], has[5]], &lengths);
        problem.slopes = has[6].then(|| if has[7] { vec![heads] } else { vec![count, heads] });
        problem.pages = storage.pages(&problem);
        problem
    })
}

impl Storage {
    /// f16 where q has it, so the device does too.
    fn half(&self) -> Dtype {
        if self.dtype == Dtype::F16 { Dtype::F16 } else { Dtype::F32 }
    }

    /// A table whose entries past the lengths are no pages.
    fn pages(&self, problem: &Problem) -> Option<Pages> {
        let size = self.page_size?;
        let (batch, per_sequence) = (problem.k[0], problem.k[2] / size);
        let exists = |sequence: usize, page: usize| {
            let lengths = problem.kv_lengths.as_ref();
            lengths.is_none_or(|lengths| page * size < lengths[sequence] as usize)
        };
        let entry = |at: usize| {
            let exists = exists(at / per_sequence, at % per_sequence);
            if exists { self.entries[at] % POOL as u32 } else { u32::MAX - self.entries[at] }
        };
        Some(Pages { size, count: POOL, table: (0..batch * per_sequence).map(entry).collect() })
    }
}

fn storage(device: &Device, limits: Sizes) -> impl Draw<Value = Storage> + use<> {
    let f16 = device.capabilities().f16;
    let supported = move |dtype| if dtype == Dtype::F16 && !f16 { Dtype::F32 } else { dtype };
    let float = || prop_oneof![Just(Dtype::F32), Just(Dtype::F16), Just(Dtype::BF16)].prop_map(supported);
    let pair = prop_oneof![
        2 => float().prop_map(|dtype| [dtype; 2]),
        1 => [float(), float()],
        1 => float().prop_map(|dtype| [dtype, Dtype::I8]),
    ];
    let order =
        || prop_oneof![Just(Order::HeadsFirst), Just(Order::SeqFirst), Just(Order::Merged), Just(Order::Joined)];
    let page_size = prop::option::weighted(0.5, prop_oneof![Just(limits.page_sizes[0]), Just(limits.page_sizes[1])]);
    let entries = prop::collection::vec(any::<u32>(), ENTRIES);
    (pair, [order(), order()], page_size, entries).prop_map(|([dtype, kv_dtype], layouts, page_size, entries)| {
        let entries = entries.into_iter().map(|entry| entry >> 8).collect();
        Storage { dtype, kv_dtype, layouts, page_size, entries }
    })
}

/// Adds starts and lengths; returns how many sequences there are.
fn place(problem: &mut Problem, sequences: Sequences, [kv, q]: [bool; 2], lengths: &[u32]) -> usize {
    let batch = problem.q[0];
    match sequences {
        Sequences::Batched => {
            problem.kv_lengths = kv.then(|| lengths[..batch].to_vec());
            problem.q_lengths = q.then(|| lengths[4..][..batch].to_vec());
            batch
        }
        Sequences::Packed(q_starts, kv_starts) => {
            let count = q_starts.len() - 1;
            problem.q_starts = Some(q_starts);
            problem.kv_starts = Some(kv_starts);
            count
        }
        Sequences::BatchedKeys(starts) => {
            let count = starts.len() - 1;
            problem.q_starts = Some(starts);
            problem.kv_lengths = kv.then(|| lengths[..count].to_vec());
            problem.k[0] = count;
            problem.v[0] = count;
            count
        }
    }
}

/// Causality, window and fill.
fn band() -> impl Draw<Value = Attention> {
    let past = (0..20u32).prop_map(Causal::Past);
    let alignment = || prop_oneof![Just(Causal::TopLeft), Just(Causal::BottomRight), past.clone()];
    let side = || prop::option::of(0..12i64);
    let window = (side(), side(), prop::option::of(alignment()));
    let fill = prop_oneof![Just(Fill::Exclude), Just(Fill::Assign(-1e9))];
    let drawn = (prop::option::of(alignment()), prop::option::of(window), fill);
    drawn.prop_map(|(causal, window, fill)| {
        let window = window.map(|(left, right, align)| Window { left, right, align: causal.or(align) });
        Attention { causal, window, fill, ..Attention::default() }
    })
}

/// Starts mostly do not decrease; they may begin behind the first row and end before or behind the last.
fn sequences(limits: Sizes) -> impl Draw<Value = Sequences> {
    let (queries, keys) = (limits.seq_q as u32 + 4, limits.ends);
    let starts = move |most: usize| {
        (prop::collection::vec((0..queries, 0..keys), 1..=most), 0..4u8).prop_map(|(starts, wild)| {
            let (mut q, mut kv): (Vec<u32>, Vec<u32>) = starts.into_iter().unzip();
            if wild != 0 {
                q.sort_unstable();
                kv.sort_unstable();
            }
            (q, kv)
        })
    };
    prop_oneof![
        3 => Just(Sequences::Batched),
        2 => starts(5).prop_map(|(q, kv)| Sequences::Packed(q, kv)),
        2 => starts(4).prop_map(|(q, _)| Sequences::BatchedKeys(q)),
    ]
}

/// A runner whose failures are shrunk and printed. The seed is fixed: a failure on one machine is one on all.
fn runner(cases: u32) -> TestRunner {
    TestRunner::new(Config { cases, failure_persistence: None, rng_seed: RngSeed::Fixed(5), ..Config::default() })
}

/// How many problems a native kernel gets; on a GPU nearly every problem is a pipeline to compile.
const NATIVE_CASES: u32 = 2000;
const GPU_CASES: u32 = 40;

/// Random problems on a device.
pub fn check_some(subject: &Subject) -> Verdict {
    let native = subject.device.capabilities().backend == Backend::Cpu;
    let outcome = runner(if native { NATIVE_CASES } else { GPU_CASES })
        .run(&problems(&subject.device), |problem| check(&subject.device, &problem).map_err(TestCaseError::fail));
    outcome.map_err(|error| format!("on {}: {error}", subject.name))?;
    Ok(Completion::Completed)
}

/// Random problems of few queries as shares of the keys.
pub fn check_shares(subject: &Subject) -> Verdict {
    let native = subject.device.capabilities().backend == Backend::Cpu;
    let cases = if native { NATIVE_CASES / 4 } else { GPU_CASES };
    let split = Cell::new(0);
    let outcome = runner(cases).run(&drawn(&subject.device, FEW_QUERIES), |problem| {
        let has_shares = check_split(&subject.device, &problem).map_err(TestCaseError::fail)?;
        split.set(split.get() + u32::from(has_shares));
        Ok(())
    });
    outcome.map_err(|error| format!("on {}: {error}", subject.name))?;
    assert!(split.get() > cases / 4, "{} of {cases} problems have shares", split.get());
    Ok(Completion::Completed)
}

/// Random problems on a device that binds eight storage buffers to a kernel, WebGPU's least: what the fused kernel cannot bind goes
/// unfused, and the plan says so.
pub fn check_poor(subject: &Subject) -> Verdict {
    let (_device, _queue, poor) = wgpu_device(subject, ALL_FEATURES)?;
    assert_eq!(poor.capabilities().storage_buffers, 8);
    let lowered = Cell::new(0);
    let outcome = runner(GPU_CASES).run(&problems(&poor), |problem| {
        let plan = Plan::preview(&poor, &graph(&problem, Strategy::Auto), &PlanOptions::default());
        let plan = plan.map_err(|why| TestCaseError::fail(why.to_string()))?;
        if problem.fuses(&poor) {
            assert!(plan.steps.iter().all(|step| step.instead_of.is_none()), "{plan}");
        } else {
            assert!(plan.steps.iter().all(|step| step.instead_of == Some("attention_fused")), "{plan}");
            assert!(plan.to_string().contains(" for attention_fused"), "{plan}");
            lowered.set(lowered.get() + 1);
        }
        check(&poor, &problem).map_err(TestCaseError::fail)
    });
    outcome.map_err(|error| format!("on {}: {error}", subject.name))?;
    assert!(lowered.get() > GPU_CASES / 4, "{} problems went unfused", lowered.get());
    Ok(Completion::Completed)
}

type Has = fn(&Problem) -> bool;

/// The control of the trials above: each option, and pairs that meet in a kernel, are among as few problems as a GPU gets.
pub fn have_every_option() -> Result<(), Failed> {
    let options: [(&str, Has); 25] = [
        ("bf16", |p| p.dtype == Dtype::BF16),
        ("f16", |p| p.dtype == Dtype::F16),
        ("f32", |p| p.dtype == Dtype::F32),
        ("bf16 cache", |p| p.kv_dtype == Dtype::BF16),
        ("f16 cache", |p| p.kv_dtype == Dtype::F16),
        ("i8 cache", |p| p.kv_dtype == Dtype::I8),
        ("two float dtypes", |p| p.kv_dtype != Dtype::I8 && p.kv_dtype != p.dtype),
        ("i8 pages", |p| p.kv_dtype == Dtype::I8 && p.pages.is_some()),
        ("seq first", |p| p.options.q_layout == Layout::SeqFirst),
        ("merged", |p| matches!(p.options.q_layout, Layout::Merged { .. })),
        ("merged cache", |p| matches!(p.options.kv_layout, Layout::Merged { .. })),
        ("joined", |p| matches!(p.options.q_layout, Layout::Joined { .. })),
        ("joined cache", |p| matches!(p.options.kv_layout, Layout::Joined { .. })),
        ("joined i8 cache", |p| matches!(p.options.kv_layout, Layout::Joined { .. }) && p.kv_dtype == Dtype::I8),
        ("two layouts", |p| p.options.q_layout == Layout::HeadsFirst && p.options.kv_layout == Layout::SeqFirst),
        ("packed", |p| p.kv_starts.is_some()),
        ("packed pages", |p| p.kv_starts.is_some() && p.pages.is_some()),
        ("served", |p| p.q_starts.is_some() && p.kv_starts.is_none()),
        ("served with sinks or log-sum-exp", |p| {
            p.q_starts.is_some() && p.kv_starts.is_none() && (p.lse || p.sinks.is_some())
        }),
        ("served pages", |p| p.q_starts.is_some() && p.kv_starts.is_none() && p.pages.is_some()),
        ("entries past the lengths", |p| {
            p.pages.as_ref().is_some_and(|pages| pages.table.iter().any(|page| *page as usize >= pages.count))
        }),
        ("lengths", |p| p.kv_lengths.is_some() && p.q_lengths.is_some()),
        ("slopes and window", |p| p.slopes.is_some() && p.options.window.is_some()),
        ("mask and bias", |p| p.mask.is_some() && p.bias.is_some()),
        ("assigned", |p| p.options.fill != Fill::Exclude),
    ];
    let mut runner = runner(GPU_CASES);
    let problems = problems(&Device::cpu());
    let drawn = (0..GPU_CASES).map(|_| problems.new_tree(&mut runner).map(|tree| tree.current()));
    let drawn = drawn.collect::<Result<Vec<_>, _>>().map_err(|why| why.to_string())?;
    let missing: Vec<_> = options.iter().filter(|(_, has)| !drawn.iter().any(has)).map(|(name, _)| *name).collect();
    if missing.is_empty() { Ok(()) } else { Err(format!("no problem has: {}", missing.join(", ")).into()) }
}
