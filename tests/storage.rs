//! `Graph::attention` over every layout and storage of its operands: fused = unfused = reference on every device; and what is
//! refused.

mod common;
#[path = "common/turns.rs"]
mod turns;

use std::process::ExitCode;

use common::{Subject, Verdict, each_device, run};
use libtest_mimic::{Completion, Failed, Trial};
use regard::capabilities::{Backend, Capabilities};
use regard::case::CaseInput;
use regard::compare::{NanMeans, Tolerance, compare};
use regard::op::Op;
use regard::ops::{AttentionFused, AxisSlice, Operands, ScoreRule};
use regard::{Attention, Causal, Dtype, Graph, HostTensor, Layout, Plan, Strategy, Tensor, TensorDesc, reference};
use turns::in_turn;

const BATCH: usize = 2;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const SEQ_Q: usize = 5;
const SEQ_KV: usize = 48;
const WIDTH: usize = 7;
const WIDTH_V: usize = 6;

fn main() -> ExitCode {
    let mut trials = Vec::new();
    for (number, problem) in problems().into_iter().enumerate() {
        let each = each_device(&problem.name(), move |subject| agree(subject, &problem));
        trials.extend(in_turn(number, each));
    }
    trials.extend(each_device("layouts add no step", layouts_add_no_step));
    trials.extend(each_device("one tensor that is query, key and value", one_tensor));
    trials.push(Trial::test("what does not fit is refused", refused));
    trials.push(Trial::test("a page that is not there is named by a checked run", missing_page));
    trials.push(Trial::test("a pool of pages costs what the sequences have", pool_costs));
    trials.push(Trial::test("too many bindings are not offered", too_many_bindings));
    run(trials)
}

#[derive(Debug, Clone, Copy)]
struct Problem {
    q: Dtype,
    kv: Dtype,
    q_layout: Layout,
    kv_layout: Layout,
    page_size: Option<usize>,
}

fn problems() -> Vec<Problem> {
    let merged = |heads| Layout::Merged { heads };
    let joined = |heads| Layout::Joined { heads, kv_heads: KV_HEADS };
    let (f32, f16, bf16, i8) = (Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::I8);
    let mut problems = Vec::new();
    for (q, kv) in [(f32, f32), (f16, f16), (bf16, bf16), (f32, i8), (f16, i8), (bf16, f32), (f32, f16)] {
        for (q_layout, kv_layout, page_size) in [
            (Layout::HeadsFirst, Layout::HeadsFirst, None),
            (Layout::SeqFirst, Layout::SeqFirst, None),
            (merged(HEADS), merged(KV_HEADS), None),
            (merged(HEADS), Layout::SeqFirst, None),
            (joined(HEADS), joined(HEADS), None),
            (merged(HEADS), joined(0), None),
            (Layout::SeqFirst, Layout::HeadsFirst, Some(16)),
            (Layout::HeadsFirst, Layout::HeadsFirst, Some(48)),
        ] {
            problems.push(Problem { q, kv, q_layout, kv_layout, page_size });
        }
    }
    problems
}

impl Problem {
    fn name(&self) -> String {
        let pages = self.page_size.map(|size| format!(", pages of {size}")).unwrap_or_default();
        format!("{} {:?} over {} {:?}{pages}", self.q, self.q_layout, self.kv, self.kv_layout)
    }

    /// Name and value of every input.
    fn inputs(&self) -> Vec<(&'static str, HostTensor)> {
        let normal = |dtype, shape: &[usize], seed| CaseInput::normal(dtype, shape, 1.0).draw(seed);
        let kv = |width| match self.page_size {
            Some(size) => vec![7, size, KV_HEADS, width],
            None => shape(self.kv_layout, [BATCH, KV_HEADS, SEQ_KV, width]),
        };
        let mut inputs = vec![
            ("q", normal(self.q, &shape(self.q_layout, [BATCH, HEADS, SEQ_Q, WIDTH]), 1)),
            ("lengths", HostTensor::u32(&[BATCH], vec![30, 48]).expect("one for each")),
        ];
        for (name, scales, width) in [("k", "k_scales", WIDTH), ("v", "v_scales", WIDTH_V)] {
            let shape = kv(width);
            if self.kv != Dtype::I8 {
                inputs.push((name, normal(self.kv, &shape, 2 + width as u64)));
                continue;
            }
            let wide = CaseInput::normal(Dtype::F32, &shape, 60.0).draw(2 + width as u64);
            inputs.push((name, wide.cast(Dtype::I8)));
            let mut rows = shape;
            *rows.last_mut().expect("an axis") /= width;
            if rows[rows.len() - 1] == 1 {
                rows.pop();
            }
            inputs.push((scales, CaseInput::normal(Dtype::F32, &rows, 0.02).draw(9 + width as u64)));
        }
        if let Some(size) = self.page_size {
            let each = SEQ_KV / size;
            // The last entry of the first sequence lies past its length: it may be anything.
            let mut table: Vec<u32> = (0..BATCH * each).map(|at| (at * 3 % 7) as u32).collect();
            if each > 2 {
                table[each - 1] = u32::MAX;
            }
            inputs.push(("table", HostTensor::u32(&[BATCH, each], table).expect("an entry for each page")));
        }
        inputs
    }

    fn graph(&self, inputs: &[(&str, HostTensor)], strategy: Strategy) -> regard::Result<Graph> {
        let mut graph = Graph::new();
        let tensors = inputs.iter().map(|(name, value)| graph.input(name, value.desc().clone()));
        let tensors = tensors.collect::<regard::Result<Vec<_>>>()?;
        let find = |wanted: &str| inputs.iter().position(|(name, _)| *name == wanted).map(|at| tensors[at]);
        let required = |name: &str| find(name).expect("every problem has it");
        let scales = find("k_scales").zip(find("v_scales")).map(|(k, v)| [k, v]);
        let options = Attention {
            causal: Some(Causal::BottomRight),
            kv_lengths: find("lengths"),
            q_layout: self.q_layout,
            kv_layout: self.kv_layout,
            kv_scales: scales,
            block_table: find("table"),
            strategy,
            ..Attention::default()
        };
        let y = graph.attention(required("q"), required("k"), required("v"), &options)?;
        graph.output("y", y)?;
        Ok(graph)
    }
}

fn shape(layout: Layout, [batch, heads, seq, width]: [usize; 4]) -> Vec<usize> {
    match layout {
        Layout::HeadsFirst => vec![batch, heads, seq, width],
        Layout::SeqFirst => vec![batch, seq, heads, width],
        Layout::Merged { .. } => vec![batch, seq, heads * width],
        Layout::Joined { heads, kv_heads } => vec![batch, seq, (heads + 2 * kv_heads) * width],
    }
}

fn agree(subject: &Subject, problem: &Problem) -> Verdict {
    if [problem.q, problem.kv].contains(&Dtype::F16) && !subject.device.capabilities().f16 {
        return Ok(Completion::ignored_with("the device has no f16 in shaders"));
    }
    let inputs = problem.inputs();
    let named: Vec<(&str, &HostTensor)> = inputs.iter().map(|(name, value)| (*name, value)).collect();
    let wanted = reference::run(&problem.graph(&inputs, Strategy::Fused)?, &named)?.remove("y").expect("an output y");
    // Products of seven terms and sums of 48, of magnitudes around 1, with a few roundings each in f32; one to storage, which may
    // go the other way than the reference's.
    let storage = match problem.q {
        Dtype::F16 => 2.0 * (-11.0_f64).exp2(),
        Dtype::BF16 => 2.0 * (-8.0_f64).exp2(),
        _ => 0.0,
    };
    let tolerance = Tolerance::of_scale(100.0 * (-24.0_f64).exp2() + storage);
    for strategy in [Strategy::Fused, Strategy::Unfused] {
        let graph = problem.graph(&inputs, strategy)?;
        let defined = reference::run(&graph, &named)?.remove("y").expect("an output y");
        let comparison = compare(&defined, &wanted, Tolerance::of_scale(1e-12), NanMeans::Nan);
        if !comparison.passed() {
            return Err(format!("the reference of {strategy:?}: {comparison}").into());
        }
        let got = Plan::new(&subject.device, &graph)?.run(&named)?.remove("y").expect("an output y");
        assert_eq!((got.desc().dtype, got.shape()), (problem.q, wanted.shape()));
        let comparison = compare(&got, &wanted.cast(problem.q), tolerance, NanMeans::Nan);
        if !comparison.passed() {
            return Err(format!("{strategy:?} on {}: {comparison}", subject.name).into());
        }
    }
    Ok(Completion::Completed)
}

fn layouts_add_no_step(subject: &Subject) -> Verdict {
    for problem in problems() {
        if [problem.q, problem.kv].contains(&Dtype::F16) && !subject.device.capabilities().f16 {
            continue;
        }
        let inputs = problem.inputs();
        let plan = Plan::new(&subject.device, &problem.graph(&inputs, Strategy::Auto)?)?;
        let steps: Vec<_> = plan.describe().steps.iter().map(|step| step.op).collect();
        if steps != ["attention_fused"] {
            return Err(format!("{}: {steps:?}", problem.name()).into());
        }
    }
    Ok(Completion::Completed)
}

/// A joined tensor is read as its slices are, in one step.
fn one_tensor(subject: &Subject) -> Verdict {
    let x = CaseInput::normal(Dtype::F32, &[BATCH, SEQ_KV, (HEADS + 2 * KV_HEADS) * WIDTH], 1.0).draw(3);
    let joined = Layout::Joined { heads: HEADS, kv_heads: KV_HEADS };
    let graph = |strategy, sliced: bool| -> regard::Result<Graph> {
        let mut graph = Graph::new();
        let all = graph.input("x", x.desc().clone())?;
        let mut options = Attention { causal: Some(Causal::TopLeft), strategy, ..Attention::default() };
        let mut qkv = [all; 3];
        if sliced {
            let ends = [0, HEADS, HEADS + KV_HEADS, HEADS + 2 * KV_HEADS].map(|head| (head * WIDTH) as i64);
            for (part, tensor) in qkv.iter_mut().enumerate() {
                *tensor =
                    graph.slice(all, &[AxisSlice { axis: 2, start: ends[part], end: ends[part + 1], step: 1 }])?;
            }
            (options.q_layout, options.kv_layout) =
                (Layout::Merged { heads: HEADS }, Layout::Merged { heads: KV_HEADS });
        } else {
            (options.q_layout, options.kv_layout) = (joined, joined);
        }
        let y = graph.attention(qkv[0], qkv[1], qkv[2], &options)?;
        graph.output("y", y)?;
        Ok(graph)
    };
    let wanted = reference::run(&graph(Strategy::Fused, true)?, &[("x", &x)])?.remove("y").expect("an output y");
    assert_eq!(wanted.shape(), [BATCH, SEQ_KV, HEADS * WIDTH]);
    for strategy in [Strategy::Fused, Strategy::Unfused] {
        let graph = graph(strategy, false)?;
        let mut plan = Plan::new(&subject.device, &graph)?;
        if strategy == Strategy::Fused {
            assert_eq!(plan.describe().steps.iter().map(|step| step.op).collect::<Vec<_>>(), ["attention_fused"]);
        }
        let got = plan.run(&[("x", &x)])?.remove("y").expect("an output y");
        // As in `agree`.
        let tolerance = Tolerance::of_scale(100.0 * (-24.0_f64).exp2());
        let comparison = compare(&got, &wanted.cast(Dtype::F32), tolerance, NanMeans::Nan);
        if !comparison.passed() {
            return Err(format!("{strategy:?} on {}: {comparison}", subject.name).into());
        }
    }
    Ok(Completion::Completed)
}

/// Changes one thing of a graph that fits.
type Spoil = fn(&mut Graph, &mut [Tensor; 3], &mut Attention);

fn refused() -> Result<(), Failed> {
    let cases: &[(Spoil, &str)] = &[
        (
            |graph, qkv, _| qkv[1] = input(graph, Dtype::I8, &[2, 2, 48, 8]),
            "attention: key and value are both f32, f16, bf16 or i8, key is i8 [2, 2, 48, 8], value is f32 [2, 2, 48, 8]",
        ),
        (
            |graph, qkv, _| [1, 2].iter().for_each(|&at| qkv[at] = input(graph, Dtype::I8, &[2, 2, 48, 8])),
            "attention: kv_scales belong to i8; they are missing, and key is i8 [2, 2, 48, 8]",
        ),
        (
            |graph, _, options| options.kv_scales = Some([input(graph, Dtype::F32, &[2, 2, 48]); 2]),
            "attention: kv_scales belong to i8; they are given, and key is f32 [2, 2, 48, 8]",
        ),
        (
            |graph, qkv, options| {
                [1, 2].iter().for_each(|&at| qkv[at] = input(graph, Dtype::I8, &[2, 2, 48, 8]));
                options.kv_scales = Some([input(graph, Dtype::F32, &[2, 2, 47]); 2]);
            },
            "attention: the scales of key are f32 [2, 2, 47], they must be f32 [2, 2, 48] for key i8 [2, 2, 48, 8]",
        ),
        (
            |_, _, options| options.q_layout = Layout::Merged { heads: 4 },
            "attention: query is [batch, seq, heads × head_dim], got f32 [2, 4, 5, 8]",
        ),
        (
            |graph, qkv, options| {
                qkv[0] = input(graph, Dtype::F32, &[2, 5, 32]);
                options.q_layout = Layout::Merged { heads: 5 };
            },
            "attention: query has width 32, which 5 heads do not divide",
        ),
        (
            |graph, qkv, options| {
                qkv[0] = input(graph, Dtype::F32, &[2, 5, 32]);
                options.q_layout = Layout::Joined { heads: 4, kv_heads: 1 };
            },
            "attention: query has width 32, which 4 + 2 × 1 heads do not divide",
        ),
        (
            |_, _, options| options.kv_layout = Layout::Joined { heads: 4, kv_heads: 2 },
            "attention: key is [batch, seq, (heads + 2 × kv_heads) × head_dim], got f32 [2, 2, 48, 8]",
        ),
        (
            |graph, qkv, options| {
                [1, 2].iter().for_each(|&at| qkv[at] = input(graph, Dtype::F32, &[2, 48, 64]));
                options.kv_layout = Layout::Joined { heads: 4, kv_heads: 0 };
            },
            "attention: key has head_dim 16, query has 8",
        ),
        (
            |graph, _, options| options.block_table = Some(input(graph, Dtype::F32, &[2, 3])),
            "attention: block_table is u32 [batch, per_sequence], got f32 [2, 3]",
        ),
        (
            |graph, _, options| options.block_table = Some(input(graph, Dtype::U32, &[3, 3])),
            "attention: query has 4 heads, which 48 key heads do not divide",
        ),
        (
            |graph, qkv, options| {
                [1, 2].iter().for_each(|&at| qkv[at] = input(graph, Dtype::F32, &[9, 16, 2, 8]));
                options.block_table = Some(input(graph, Dtype::U32, &[3, 3]));
            },
            "attention: key has batch 3, query has 2",
        ),
        (
            |graph, _, options| {
                options.block_table = Some(input(graph, Dtype::U32, &[2, 3]));
                options.kv_layout = Layout::SeqFirst;
            },
            "attention: pages have a layout of their own, kv_layout is SeqFirst",
        ),
        (
            |graph, _, options| options.sinks = Some(input(graph, Dtype::F32, &[2])),
            "attention: sinks are f32 [2], they must be f32 [4]",
        ),
    ];
    for (spoil, message) in cases {
        let mut graph = Graph::new();
        let mut qkv = [[2, 4, 5, 8], [2, 2, 48, 8], [2, 2, 48, 8]].map(|shape| input(&mut graph, Dtype::F32, &shape));
        let mut options = Attention::default();
        spoil(&mut graph, &mut qkv, &mut options);
        let error = graph.attention(qkv[0], qkv[1], qkv[2], &options).expect_err(message);
        if error.to_string() != *message {
            return Err(format!("got `{error}`, wanted `{message}`").into());
        }
    }
    Ok(())
}

fn input(graph: &mut Graph, dtype: Dtype, shape: &[usize]) -> Tensor {
    let name = format!("input {}", graph.inputs().count());
    graph.input(&name, TensorDesc::new(dtype, shape)).expect("a new name")
}

/// Attention over a pool of `pages` pages, of which each of two sequences has three, and its inputs.
fn paged(pages: usize) -> (AttentionFused, Vec<TensorDesc>) {
    let operands = Operands { has_pages: true, ..Operands::default() };
    let rule = ScoreRule { has_lengths: true, ..ScoreRule::default() };
    let desc = |dtype, shape: &[usize]| TensorDesc::new(dtype, shape);
    let kv = desc(Dtype::F32, &[pages, 16, 2, 8]);
    let inputs =
        vec![desc(Dtype::F32, &[2, 4, 1, 8]), kv.clone(), kv, desc(Dtype::U32, &[2, 3]), desc(Dtype::U32, &[2])];
    (AttentionFused { operands, rule, ..AttentionFused::default() }, inputs)
}

fn missing_page() -> Result<(), Failed> {
    let (op, descs) = paged(7);
    let lengths = HostTensor::u32(&[2], vec![40, 20])?;
    let check = |table: Vec<u32>| {
        let table = HostTensor::u32(&[2, 3], table).expect("six entries");
        op.check(&descs, &[None, None, None, Some(&table), Some(&lengths)]).map_err(|error| error.to_string())
    };
    assert_eq!(check(vec![6, 0, 1, 2, 3, 99]), Ok(()));
    let message = "attention: block_table[1, 1] is page 7, the cache has 7";
    assert_eq!(check(vec![6, 0, 1, 2, 7, 99]), Err(message.to_owned()));
    Ok(())
}

fn pool_costs() -> Result<(), Failed> {
    let cost = |pages| {
        let (op, descs) = paged(pages);
        op.cost(&descs)
    };
    let rows = 2 * 48 * 2 * 8 * 4;
    assert_eq!(cost(7).read, cost(7000).read);
    assert_eq!(cost(7).read, 2 * rows + 4 * (2 * 4 * 8 + 2 * 3 + 2));
    Ok(())
}

fn too_many_bindings() -> Result<(), Failed> {
    let operands = Operands { has_pages: true, ..Operands::default() };
    let rule = ScoreRule { has_lengths: true, has_mask: true, has_bias: true, ..ScoreRule::default() };
    let op = AttentionFused { operands, rule, has_sinks: true, ..AttentionFused::default() };
    let mut descs = paged(7).1;
    descs.pop();
    descs.extend([
        TensorDesc::new(Dtype::F32, [4]),
        TensorDesc::new(Dtype::Bool, [48]),
        TensorDesc::new(Dtype::F32, [48]),
        TensorDesc::new(Dtype::U32, [2]),
    ]);
    op.outputs(&descs)?;
    let offered = |storage_buffers| {
        let capabilities = Capabilities { backend: Backend::Gpu, storage_buffers, ..Capabilities::baseline() };
        !op.techniques(&descs, &capabilities).is_empty()
    };
    assert_eq!([offered(8), offered(9)], [false, true]);
    Ok(())
}
