//! The suite `kernels`: each op alone, each technique on a line of its own.

use std::sync::Arc;

use super::EPSILON_F32;
use super::problem::Problem;
use super::suite::Suite;
use super::task::{Definition, Refusal, Task};
use crate::capabilities::Capabilities;
use crate::case::{Case, CaseInput, Values};
use crate::compare::Tolerance;
use crate::error::Result;
use crate::graph::Graph;
use crate::mask::{Causal, Masking};
use crate::op::Technique;
use crate::ops::{
    AppendKv, Assign, AttentionCombine, AttentionSplit, AxisPadding, AxisSlice, Binary, Cast, Concat, Conv2d, Counted,
    Dequantize, Elementwise, Embedding, FmaChain, GatherPages, Gru, ImageLayout, LayerNorm, Layout, LinearAttention,
    LocallyConnected, LogSumExp, Lstm, MaskScores, MaskedSoftmax, MatMul, MatrixChain, MaxPoolIndices, MergeHeads,
    NormRule, Operand, Operands, Pad, Padding, Pairs, Pool2d, PoolKind, PositionRule, Quantize, Reduce, ReducedAxes,
    Reduction, RmsNorm, Rotary, Rounding, ScoreRule, Slice, Softmax, SplitHeads, Statistics, Step, TensorScatter,
    Transpose, Unary, Window2d, Wrap, matrix_chain_factor,
};
use crate::plan::PlanOptions;
use crate::tensor::{Dtype, HostTensor, TensorDesc};

/// A line for each problem and technique that these capabilities offer; one line without a technique where there is
/// none.
pub(super) fn tasks(capabilities: &Capabilities) -> Result<Vec<Task>> {
    let suite = Suite::Kernels.name();
    let mut tasks = cases().into_iter().map(op_task).collect::<Result<Vec<_>>>()?;
    let problem = Problem::new(1, 8, 1024, 64);
    for problem in [problem, problem.causal(), Problem { dtype: Dtype::F16, ..problem }] {
        let attention = Task::attention(suite, &problem)?;
        tasks.push(Task { problem: format!("attention {problem}"), ..attention });
    }
    Ok(tasks.into_iter().flat_map(|task| each_technique(task, capabilities)).collect())
}

fn each_technique(task: Task, capabilities: &Capabilities) -> Vec<Task> {
    let Definition::Op { op, .. } = &task.definition else { return vec![task] };
    let descs: Vec<TensorDesc> = task.inputs.iter().map(|(_, input)| input.desc.clone()).collect();
    let techniques = op.techniques(&descs, capabilities);
    if techniques.is_empty() {
        return vec![task];
    }
    let forced = |technique: &Technique| PlanOptions::technique(op.name(), technique.name());
    techniques.iter().map(|technique| Task { options: forced(technique), ..task.clone() }).collect()
}

/// A graph of one node.
fn op_task(case: Case) -> Result<Task> {
    let mut graph = Graph::new();
    let named: Vec<_> =
        case.inputs.iter().zip(0..).map(|(input, index)| (format!("in{index}"), input.clone())).collect();
    let tensors =
        named.iter().map(|(name, input)| graph.input(name, input.desc.clone())).collect::<Result<Vec<_>>>()?;
    let outputs = graph.add_shared(case.op.clone(), &tensors)?;
    graph.output("out", outputs[0])?;
    let descs = case.descs();
    let work = case.op.cost(&descs).flops / 2;
    Ok(Task {
        suite: Suite::Kernels.name().into(),
        problem: case.name,
        graph,
        inputs: named,
        definition: Definition::Op { op: Arc::clone(&case.op), work },
        tolerance: case.tolerance,
        flops: None,
        options: PlanOptions::default(),
        refusal: Refusal::Skip,
    })
}

/// Tensors of 64 MiB where bytes are what counts: larger than caches, and within the 128 MiB that every device binds.
fn cases() -> Vec<Case> {
    let input = |shape: &[usize]| CaseInput::normal(Dtype::F32, shape, 1.0);
    let causal = Masking { causal: Some(Causal::BottomRight), ..Masking::default() };
    let exact = Tolerance::of_scale(0.0);
    let matmul = |[m, k, n]: [usize; 3]| {
        let name = format!("matmul m={m},k={k},n={n}");
        Case::new(name, MatMul::default(), vec![input(&[m, k]), input(&[k, n])], matmul_tolerance(k))
    };
    let numbers = |data: Vec<u32>| {
        let tensor = HostTensor::u32(&[data.len()], data).expect("one axis");
        CaseInput { desc: tensor.desc().clone(), values: Values::Given(tensor) }
    };
    let reduce = |axis| Reduce { reduction: Reduction::Mean, axes: vec![axis], reduced: ReducedAxes::Dropped };
    let ids = HostTensor::u32(&[16384], (0..16384).map(|i| i * 7919 % 16384).collect()).expect("16384 ids");
    let ids = CaseInput { desc: ids.desc().clone(), values: Values::Given(ids) };
    let every_other = Slice { axes: vec![AxisSlice { axis: 1, start: 0, end: i64::MAX, step: 2 }] };
    let pad = Pad { axes: vec![AxisPadding::default(), AxisPadding { before: 1, after: 1 }], value: 0.0 };
    let mask_scores = MaskScores { rule: ScoreRule { masking: causal, ..ScoreRule::default() } };
    let norm = RmsNorm { rule: NormRule { epsilon: 1e-5, has_weight: false } };
    let rotary =
        Rotary { layout: Layout::HeadsFirst, pairs: Pairs::Halves, positions: PositionRule::Counted, norm: None };
    let append = AppendKv { rotary: Some(Pairs::Halves), ..AppendKv::default() };
    vec![
        matmul([1024, 1024, 1024]),
        matmul([1, 4096, 4096]),
        Case::new(
            "softmax rows=4096,length=4096",
            Softmax { scale: 1.0, has_sinks: false },
            vec![input(&[4096, 4096])],
            softmax_tolerance(4096),
        ),
        Case::new(
            "softmax rows=262144,length=64",
            Softmax { scale: 1.0, has_sinks: false },
            vec![input(&[262_144, 64])],
            softmax_tolerance(64),
        ),
        Case::new(
            "log_sum_exp rows=4096,length=4096",
            LogSumExp::default(),
            vec![input(&[4096, 4096])],
            softmax_tolerance(4096),
        ),
        Case::new("mask_scores b=1,h=16,s=1024,causal", mask_scores, vec![input(&[1, 16, 1024, 1024])], exact),
        Case::new(
            "masked_softmax b=1,h=16,s=1024,causal",
            MaskedSoftmax { rule: mask_scores.rule, has_sinks: false },
            vec![input(&[1, 16, 1024, 1024])],
            softmax_tolerance(1024),
        ),
        Case::new("split_heads b=8,s=1024,h=32,d=64", SplitHeads { heads: 32 }, vec![input(&[8, 1024, 2048])], exact),
        Case::new(
            "concat b=1,h=16,s=4096+4096,d=64",
            Concat { axis: 2 },
            vec![input(&[1, 16, 4096, 64]), input(&[1, 16, 4096, 64])],
            exact,
        ),
        Case::new(
            "elementwise gelu(x + bias) rows=4096,length=4096",
            Elementwise { steps: vec![Step::Binary(Binary::Add, Operand::Input(1)), Step::Unary(Unary::Gelu)] },
            vec![input(&[4096, 4096]), input(&[4096])],
            // A sum that reaches 10 is rounded, and so is a distribution that reaches 1.
            Tolerance::of_scale(16.0 * EPSILON_F32),
        ),
        Case::new("reduce mean rows=4096,length=4096", reduce(1), vec![input(&[4096, 4096])], reduce_tolerance(4096)),
        Case::new(
            "reduce mean columns=4096,length=4096",
            reduce(0),
            vec![input(&[4096, 4096])],
            reduce_tolerance(4096),
        ),
        Case::new("embedding rows=16384,width=1024,ids=16384", Embedding, vec![input(&[16384, 1024]), ids], exact),
        Case::new("slice [4096, 4096] every other column", every_other, vec![input(&[4096, 4096])], exact),
        Case::new("pad [4096, 4094] by a column on each side", pad, vec![input(&[4096, 4094])], exact),
        Case::new("merge_heads b=8,s=1024,h=32,d=64", MergeHeads, vec![input(&[8, 32, 1024, 64])], exact),
        Case::new("cast n=16777216,bf16", Cast { dtype: Dtype::BF16 }, vec![input(&[4096, 4096])], exact),
        Case::new("assign n=16777216", Assign, vec![input(&[4096, 4096]), input(&[4096, 4096])], exact),
        Case::new("rms_norm rows=4096,length=4096", norm, vec![input(&[4096, 4096])], root_tolerance(4096)),
        Case::new("rms_norm rows=131072,length=128", norm, vec![input(&[131_072, 128])], root_tolerance(128)),
        Case::new("rotary b=4,h=32,s=2048,d=64", rotary, turned(&[4, 32, 2048, 64]), TURNED),
        Case::new("append_kv b=4,h=32,s=2048,d=64,rotary", append, appended([4, 32, 2048, 64]), TURNED),
        Case::new("transpose 4096 x 4096", Transpose { axes: vec![1, 0] }, vec![input(&[4096, 4096])], exact),
        Case::new(
            "layer_norm rows=4096,length=4096",
            LayerNorm { axis: 1, epsilon: 1e-5, statistics: Statistics::Omit },
            vec![input(&[4096, 4096]), input(&[4096]), input(&[4096])],
            layer_norm_tolerance(4096),
        ),
        Case::new(
            "layer_norm rows=21845,length=768",
            LayerNorm { axis: 1, epsilon: 1e-5, statistics: Statistics::Omit },
            vec![input(&[21_845, 768]), input(&[768]), input(&[768])],
            layer_norm_tolerance(768),
        ),
        Case::new(
            "tensor_scatter b=1,h=16,s=16 of 8192,d=128",
            TensorScatter { axis: 2, wrap: Wrap::Linear },
            vec![input(&[1, 16, 8192, 128]), input(&[1, 16, 16, 128]), numbers(vec![4096])],
            exact,
        ),
        linear_attention(),
        attention_split(),
        attention_combine(),
        Case::new(
            "conv2d b=8,c=64,56x56,3x3",
            Conv2d { padding: Padding::all(1), ..Conv2d::default() },
            vec![input(&[8, 64, 56, 56]), input(&[64, 64, 3, 3])],
            matmul_tolerance(576),
        ),
        Case::new(
            "lstm b=32,s=64,h=256",
            Lstm::default(),
            vec![input(&[32, 64, 1024]), CaseInput::normal(Dtype::F32, &[256, 1024], 0.03)],
            // A gate's roundings, at most 64 units, four times over as the state carries them on.
            Tolerance::of_scale(256.0 * EPSILON_F32),
        ),
        Case::new(
            "gru b=32,s=64,h=256",
            Gru::default(),
            vec![input(&[32, 64, 768]), CaseInput::normal(Dtype::F32, &[256, 768], 0.03)],
            // As the lstm's.
            Tolerance::of_scale(256.0 * EPSILON_F32),
        ),
        pool2d("max", PoolKind::Max, [2, 2]),
        max_pool_indices(),
        Case::new(
            "locally_connected b=8,32x32,c=16,3x3",
            LocallyConnected { kernel: [3, 3], stride: [1, 1] },
            vec![input(&[8, 34, 34, 16]), input(&[1024, 144, 16])],
            matmul_tolerance(144),
        ),
        Case::new(
            "fma_chain n=1048576,steps=1024",
            FmaChain { steps: 1024, factor: 0.75, addend: 0.25 },
            vec![input(&[16_384, 64])],
            // Each step rounds twice, and a factor of 3/4 leaves four times that.
            Tolerance::of_scale(8.0 * EPSILON_F32),
        ),
        Case::new(
            "matrix_chain groups=256,steps=64,16x16x16",
            MatrixChain { groups: 256, steps: 64 },
            vec![matrix_chain_factor(&[8, 16, 16], 3), matrix_chain_factor(&[16, 16], 1)],
            exact,
        ),
        pool2d("global average", PoolKind::Average(Counted::Image), [56, 56]),
    ]
    .into_iter()
    .chain(caches())
    .collect()
}

/// Keys of 16,384 positions in 16 heads of 64, as caches store them.
fn caches() -> [Case; 3] {
    let [levels, scales] = {
        let levels = (0..16 << 20).map(|at: u32| (at.wrapping_mul(89) % 255) as i32 - 127);
        let levels = HostTensor::i8(&[16, 16_384, 64], levels.map(|level| level as i8).collect());
        let levels = levels.expect("as many as the shape says");
        let scales = CaseInput::normal(Dtype::F32, &[16, 16_384], 1.0);
        [CaseInput { desc: levels.desc().clone(), values: Values::Given(levels) }, scales]
    };
    let table = HostTensor::u32(&[1, 1024], (0..1024).map(|entry| entry * 37 % 1024).collect());
    let table = table.expect("as many as the shape says");
    let table = CaseInput { desc: table.desc().clone(), values: Values::Given(table) };
    let input = |shape: &[usize]| CaseInput::normal(Dtype::F32, shape, 1.0);
    let relative = Tolerance { of_scale: 0.0, relative: 6.0 * EPSILON_F32, absolute: 0.0 };
    // A quotient near a tie may be rounded to either level.
    let a_level = Tolerance { absolute: 1.0, ..relative };
    let gather = GatherPages { has_lengths: false };
    [
        Case::new("quantize h=16,s=16384,d=64", Quantize, vec![input(&[16, 16_384, 64])], a_level),
        Case::new("dequantize h=16,s=16384,d=64", Dequantize { dtype: Dtype::F32 }, vec![levels, scales], relative),
        Case::new(
            "gather_pages h=16,s=16384,d=64,page=16",
            gather,
            vec![input(&[1024, 16, 16, 64]), table],
            Tolerance::of_scale(0.0),
        ),
    ]
}

/// A tensor of heads with its angles, which are any numbers here.
fn turned(shape: &[usize]) -> Vec<CaseInput> {
    let angles = CaseInput::normal(Dtype::F32, &[shape[2], shape[3] / 2], 1.0);
    vec![CaseInput::normal(Dtype::F32, shape, 1.0), angles.clone(), angles]
}

/// New keys and values for caches of their own size, which are empty: every run appends them anew.
fn appended(shape: [usize; 4]) -> Vec<CaseInput> {
    let rows = || CaseInput::normal(Dtype::F32, &shape, 1.0);
    let lengths = HostTensor::zeros(TensorDesc::new(Dtype::U32, [shape[0]]));
    let lengths = CaseInput { desc: lengths.desc().clone(), values: Values::Given(lengths) };
    let mut inputs = vec![rows(), rows(), rows(), rows(), lengths];
    inputs.extend(turned(&shape).into_iter().skip(1));
    inputs
}

/// Two products and their sum, each rounded.
const TURNED: Tolerance = Tolerance::of_scale(4.0 * EPSILON_F32);

/// A sum of squares under a root, which leaves half of its √length roundings, and a few for root, quotient and product.
fn root_tolerance(length: usize) -> Tolerance {
    Tolerance::of_scale((8.0 + (length as f64).sqrt()) * EPSILON_F32)
}

/// Without decay and delta rule, whose inputs must not be any numbers.
fn linear_attention() -> Case {
    let [heads, head_dim, seq] = [8, 64, 1024];
    let op =
        LinearAttention { heads, kv_heads: heads, scale: None, has_past: false, has_decay: false, has_beta: false };
    let input = CaseInput::normal(Dtype::F32, &[1, seq, heads * head_dim], 1.0);
    // Each position rounds every element of the state, of which about √seq add up; then comes a sum of head_dim terms.
    let roundings = 2.0 + (seq as f64).sqrt() + (head_dim as f64).sqrt();
    let tolerance = Tolerance::of_scale(8.0 * roundings * EPSILON_F32);
    Case::new("linear_attention b=1,h=8,s=1024,d=64", op, vec![input.clone(), input.clone(), input], tolerance)
}

/// A decoding step over 4,096 keys in 8 shares; keys and values of 32 MiB each.
fn attention_split() -> Case {
    let op = AttentionSplit {
        scale: 128.0_f32.sqrt().recip(),
        rule: ScoreRule::default(),
        operands: Operands::default(),
        splits: 8,
    };
    let cache = || CaseInput::normal(Dtype::F32, &[2, 8, 4096, 128], 1.0);
    let inputs = vec![CaseInput::normal(Dtype::F32, &[2, 32, 1, 128], 1.0), cache(), cache()];
    // A score, which reaches 5, has about √128 roundings, and each weight relatively as many.
    let tolerance = Tolerance::of_scale((2.0 * 5.0 * (2.0 + 128.0_f64.sqrt()) + 32.0) * EPSILON_F32);
    Case::new("attention_split b=2,h=32/8,keys=4096,d=128,splits=8", op, inputs, tolerance)
}

/// Partial results of 64 MiB.
fn attention_combine() -> Case {
    let op = AttentionCombine {
        dtype: Dtype::F32,
        layout: Layout::HeadsFirst,
        has_sinks: false,
        has_q_lengths: false,
        has_q_starts: false,
        returns_lse: false,
    };
    let inputs = [&[16, 256, 32, 1, 128][..], &[16, 256, 32, 1]].map(|shape| CaseInput::normal(Dtype::F32, shape, 1.0));
    // Differences of sums, which reach 10, and a few roundings of weights, sum and quotient.
    let tolerance = Tolerance::of_scale(40.0 * EPSILON_F32);
    Case::new("attention_combine splits=16,b=256,h=32,d=128", op, inputs.to_vec(), tolerance)
}

/// Windows side by side over 64 MiB of images.
fn pool2d(words: &str, kind: PoolKind, kernel: [usize; 2]) -> Case {
    let window = Window2d { kernel, stride: kernel, dilation: [1, 1] };
    let (layout, padding, rounding) = (ImageLayout::Nchw, Padding::default(), Rounding::Floor);
    let op = Pool2d { kind, layout, window, padding, rounding };
    let input = CaseInput::normal(Dtype::F32, &[32, 167, 56, 56], 1.0);
    // A maximum is exact; an average, of about a tenth, loses a few roundings of elements that reach 5.
    let tolerance = if kind == PoolKind::Max { 0.0 } else { 100.0 * EPSILON_F32 };
    Case::new(format!("pool2d {words} b=32,c=167,56x56"), op, vec![input], Tolerance::of_scale(tolerance))
}

/// As the maximum of `pool2d`, but its place.
fn max_pool_indices() -> Case {
    let window = Window2d { kernel: [2, 2], stride: [2, 2], dilation: [1, 1] };
    let (layout, padding, rounding) = (ImageLayout::Nchw, Padding::default(), Rounding::Floor);
    let input = CaseInput::normal(Dtype::F32, &[32, 167, 56, 56], 1.0);
    let op = MaxPoolIndices { layout, window, padding, rounding };
    Case::new("max_pool_indices b=32,c=167,56x56", op, vec![input], Tolerance::of_scale(0.0))
}

/// A sum of k products of normals reaches 5 √k. Its partial sums, of about √k and in the worst of a million elements
/// five times that, are rounded k times, of which about √k add up: `5 ε k`, which is √k of the scale, twice that for
/// safety.
fn matmul_tolerance(k: usize) -> Tolerance {
    Tolerance::of_scale(2.0 * (1.0 + (k as f64).sqrt()) * EPSILON_F32)
}

/// A sum of n normals, and its partial sums, reach 5 √n; n roundings of that, of which √n add up, are `5 ε n`. The
/// largest mean of many rows is about 4 / √n, so that this is 2 √n of the scale, and the division rounds a few times
/// more.
fn reduce_tolerance(n: usize) -> Tolerance {
    Tolerance::of_scale((2.0 * (n as f64).sqrt() + 6.0) * EPSILON_F32)
}

/// The score, which reaches 5, and its difference to the maximum are rounded; exp and the sum take √length roundings
/// and a few.
fn softmax_tolerance(length: usize) -> Tolerance {
    Tolerance::of_scale((18.0 + (length as f64).sqrt()) * EPSILON_F32)
}

/// The sums take √length roundings that add up, and a few more follow.
fn layer_norm_tolerance(length: usize) -> Tolerance {
    Tolerance::of_scale((16.0 + (length as f64).sqrt()) * EPSILON_F32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::REGISTRY;

    #[test]
    fn every_op_of_the_registry_is_there() {
        let tasks = tasks(&Capabilities::baseline_f16()).unwrap();
        for entry in REGISTRY {
            let of_op = |task: &&Task| matches!(&task.definition, Definition::Op { op, .. } if op.name() == entry.name);
            assert!(tasks.iter().any(|task| of_op(&task)), "{} is in no line", entry.name);
        }
    }

    #[test]
    fn lines_differ_in_problem_or_technique() {
        let tasks = tasks(&Capabilities::baseline_f16()).unwrap();
        let mut seen = std::collections::HashSet::new();
        assert!(tasks.iter().all(|task| seen.insert((task.problem.clone(), task.options.techniques.clone()))));
    }
}
