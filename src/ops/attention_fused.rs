//! `attention_fused`: softmax(mask(q · kᵀ × scale + bias)) · v in one pass over the keys; scores are never stored.
//!
//! Techniques: `attention_fused` (tiles of 32 query rows × 32 keys in 13 KiB of workgroup memory),
//! `attention_native` (query rows in vector lanes, see `src/cpu/kernels/attention.rs`).
//!
//! Ideas that lost:
//! - Scores and outputs of a lane as arrays indexed by a row loop, so that 1, 2 or 4 rows could be a constant: 185 ms against
//!   103 with the rows as columns of a `mat4x4` (b=8, h=12, s=128, d=64, lavapipe 22.3 on two cores, in turns). It may win
//!   where a driver unrolls such loops and queries are few.

use std::sync::Arc;

use crate::capabilities::{Backend, Capabilities};
use crate::case::{Case, CaseInput, Values};
use crate::compare::Tolerance;
use crate::cpu::kernels::args::{self as native, Elements, ElementsMut};
use crate::cpu::kernels::attention::attention;
use crate::error::{Error, Result};
use crate::mask::{Causal, Fill};
use crate::op::{Bindings, Cost, CpuKernel, Launch, Op, Rows, Technique, Update, fold, index};
use crate::ops::definition::Definition;
use crate::ops::mask_cases::{MaskCase, mask_cases, serving_cases};
use crate::ops::masks::{Checked, ScoreRule, to_rank_4};
use crate::ops::{EPSILON_F16, EPSILON_F32};
use crate::shader::{Constant, Shader, Source, params, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc, View, ViewMut};

const FUSED: Source = wgsl!("attention_fused");

/// Query rows of a workgroup, as in the shader.
const QUERIES: usize = 32;

/// Largest head dimension of q, k and v: the output rows of a tile stay in registers.
pub(crate) const MAX_HEAD_DIM: usize = 256;

/// Attention of `q` `[batch, heads, seq_q, head_dim]` over `k` `[batch, kv_heads, seq_kv, head_dim]` and
/// `v` `[batch, kv_heads, seq_kv, head_dim_v]`, into `[batch, heads, seq_q, head_dim_v]`.
///
/// Ranks 2 to 4, missing leading axes count as 1. [`Graph::attention`](crate::Graph::attention) adds it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionFused {
    /// Multiplies q · kᵀ. Finite.
    pub scale: f32,
    /// What happens to a scaled score; its tensors follow q, k and v.
    pub rule: ScoreRule,
}

/// Sizes of an attention problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub batch: usize,
    pub heads: usize,
    /// Sequences of keys.
    pub kv_batch: usize,
    pub kv_heads: usize,
    pub seq_q: usize,
    pub seq_kv: usize,
    pub head_dim: usize,
    pub head_dim_v: usize,
}

params! {
    struct AttentionParams {
        batch: u32, heads: u32, kv_heads: u32, seq_q: u32, seq_kv: u32, scale: f32, fill: f32, excluded: f32,
        softcap: f32, band_follows: u32, mask_keys: u32, bias_keys: u32,
        band_lower: i32, band_upper: i32, visit_lower: i32, visit_upper: i32,
        mask_batch: u32, mask_head: u32, mask_query: u32, mask_key: u32,
        bias_batch: u32, bias_head: u32, bias_query: u32, bias_key: u32,
        position: i32, slope_sequence: u32, sequences: u32, parts: u32,
    }
}

impl Op for AttentionFused {
    fn name(&self) -> &'static str {
        "attention_fused"
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let expected = 3 + self.rule.tensors();
        if inputs.len() != expected {
            let message = format!("takes {expected} tensors with these options, got {}", inputs.len());
            return Err(Error::shape("attention", message));
        }
        let sizes = Sizes::new(&inputs[0], &inputs[1], &inputs[2])?;
        if sizes.head_dim.max(sizes.head_dim_v) > MAX_HEAD_DIM {
            let (d, dv) = (sizes.head_dim, sizes.head_dim_v);
            let message =
                format!("the fused kernel takes head_dim up to {MAX_HEAD_DIM}, got {d} and {dv} for the value");
            return Err(Error::shape("attention", message));
        }
        if !self.scale.is_finite() {
            return Err(Error::option("attention", format!("scale is {}, it must be finite", self.scale)));
        }
        self.checked(&sizes, inputs)?;
        let mut shape = inputs[0].shape.clone();
        *shape.last_mut().expect("rank 2 or more") = sizes.head_dim_v;
        Ok(vec![TensorDesc::new(inputs[0].dtype, shape)])
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        let axis = |tensor: usize, from_the_end: usize| {
            let shape = inputs[tensor].shape();
            if shape.len() < from_the_end { 1 } else { shape[shape.len() - from_the_end] }
        };
        let (heads, kv_heads, seq_q, seq_kv, head_dim) = (axis(0, 3), axis(1, 3), axis(0, 2), axis(1, 2), axis(0, 1));
        let [q, k, v] = [0, 1, 2].map(|tensor| inputs[tensor].to_f64());
        let rule = Definition::new(self.rule, &[axis(0, 4), heads, seq_q, seq_kv], &inputs[3..]);
        let mut shape = inputs[0].shape().to_vec();
        *shape.last_mut().expect("rank 2 or more") = axis(2, 1);
        let result = rows.compute(&shape, |row, out| {
            let Some(b) = rule.key_batch(row) else { return out.fill(0.0) };
            let head = row / seq_q % heads;
            let first_key = (b * kv_heads + head * kv_heads / heads) * seq_kv;
            let query = &q[row * head_dim..(row + 1) * head_dim];
            let score = |j: usize| {
                let key = &k[(first_key + j) * head_dim..(first_key + j + 1) * head_dim];
                let product: f64 = query.iter().zip(key).map(|(q, k)| q * k).sum();
                rule.apply(row, j, product * f64::from(self.scale))
            };
            let scores: Vec<f64> = (0..seq_kv).map(score).collect();
            let maximum = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> =
                scores.iter().map(|&s| if s == f64::NEG_INFINITY { 0.0 } else { (s - maximum).exp() }).collect();
            let sum: f64 = weights.iter().sum();
            for (d, out) in out.iter_mut().enumerate() {
                let value = |j: usize| v[(first_key + j) * axis(2, 1) + d];
                let taking_part = (0..seq_kv).filter(|&j| scores[j] != f64::NEG_INFINITY);
                *out = taking_part.map(|j| weights[j] / sum * value(j)).sum();
            }
        });
        vec![result]
    }

    /// Two products over the scores that are visited. Softmax is not counted, as in every published formula; lengths
    /// and starts are data, and count as one sequence of all rows and keys.
    fn cost(&self, inputs: &[TensorDesc]) -> Cost {
        let (Ok(outputs), Ok(sizes)) = (self.outputs(inputs), Sizes::new(&inputs[0], &inputs[1], &inputs[2])) else {
            return Cost::default();
        };
        let Ok(checked) = self.checked(&sizes, inputs) else { return Cost::default() };
        let scores = checked.visit().visible(sizes.seq_q, sizes.seq_kv);
        let each = 2 * (sizes.head_dim + sizes.head_dim_v) as u64;
        Cost::once((sizes.batch * sizes.heads) as u64 * scores * each, inputs, &outputs)
    }

    fn updates(&self) -> &'static [Update] {
        &[]
    }

    fn check(&self, inputs: &[TensorDesc], data: &[Option<&HostTensor>]) -> Result<()> {
        let sizes = Sizes::new(&inputs[0], &inputs[1], &inputs[2])?;
        self.rule.check("attention", [sizes.seq_q, sizes.seq_kv], &data[3..])
    }

    fn techniques(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Vec<Technique> {
        match capabilities.backend {
            Backend::Cpu => self.native(inputs),
            Backend::Gpu => self.fused(inputs, capabilities).map(Technique::Gpu).into_iter().collect(),
        }
    }
}

impl Sizes {
    /// Shapes of q, k and v that fit each other.
    pub(crate) fn new(q: &TensorDesc, k: &TensorDesc, v: &TensorDesc) -> Result<Self> {
        let fail = |message: String| Err(Error::shape("attention", message));
        for (role, desc) in [("query", q), ("key", k), ("value", v)] {
            if !desc.dtype.is_device_float() || desc.dtype != q.dtype {
                return fail(format!("query, key and value are all f32 or all f16, {role} is {desc}, query is {q}"));
            }
            if !(2..=4).contains(&desc.rank()) || desc.rank() != q.rank() {
                return fail(format!("query, key and value have one rank from 2 to 4, {role} is {desc}, query is {q}"));
            }
        }
        let [batch, heads, seq_q, head_dim] = to_rank_4(&q.shape);
        let [k_batch, kv_heads, seq_kv, k_dim] = to_rank_4(&k.shape);
        let [v_batch, v_heads, v_seq, head_dim_v] = to_rank_4(&v.shape);
        if k_dim != head_dim {
            return fail(format!("key has head_dim {k_dim}, query has {head_dim}"));
        }
        for (what, value, key) in
            [("batch", v_batch, k_batch), ("kv_heads", v_heads, kv_heads), ("seq_kv", v_seq, seq_kv)]
        {
            if value != key {
                return fail(format!("value has {what} {value}, key has {key}"));
            }
        }
        if heads != 0 && (kv_heads == 0 || heads % kv_heads != 0) {
            return fail(format!("query has {heads} heads, which {kv_heads} key heads do not divide"));
        }
        Ok(Self { batch, heads, kv_batch: k_batch, kv_heads, seq_q, seq_kv, head_dim, head_dim_v })
    }
}

impl AttentionFused {
    fn checked(&self, sizes: &Sizes, inputs: &[TensorDesc]) -> Result<Checked> {
        let scores = [sizes.batch, sizes.heads, sizes.seq_q, sizes.seq_kv];
        let checked = Checked::new("attention", self.rule, scores, &inputs[3..])?;
        checked.check_key_batch("attention", sizes.kv_batch)?;
        Ok(checked)
    }

    fn native(&self, inputs: &[TensorDesc]) -> Vec<Technique> {
        let Ok(sizes) = Sizes::new(&inputs[0], &inputs[1], &inputs[2]) else { return Vec::new() };
        let Ok(checked) = self.checked(&sizes, inputs) else { return Vec::new() };
        let Sizes { heads, kv_heads, seq_q, seq_kv, head_dim, head_dim_v, .. } = sizes;
        let batch = checked.sequences();
        let shape = native::AttentionShape { batch, heads, kv_heads, seq_q, seq_kv, head_dim, head_dim_v };
        let scale = self.scale;
        let run = move |inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]| {
            let operand = |tensor: usize, rows: usize, width: usize| native::Operand {
                data: Elements::of(&inputs[tensor]),
                strides: contiguous(if tensor == 0 { heads } else { kv_heads }, rows, width),
                pages: None,
            };
            let args = native::AttentionArgs {
                shape,
                scale,
                q: operand(0, seq_q, head_dim),
                k: operand(1, seq_kv, head_dim),
                v: operand(2, seq_kv, head_dim_v),
                masking: checked.native(&inputs[3..]),
                sinks: None,
            };
            attention(&args, ElementsMut::of(&mut outputs[0]), contiguous(heads, seq_q, head_dim_v), None);
        };
        vec![Technique::Cpu(CpuKernel { name: "attention_native", run: Arc::new(run) })]
    }

    fn fused(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Option<Launch> {
        let sizes = Sizes::new(&inputs[0], &inputs[1], &inputs[2]).ok()?;
        let checked = self.checked(&sizes, inputs).ok()?;
        let mut bindings = Bindings::in_order(3, 1);
        let (mut libraries, mut constants) = checked.link(&mut bindings);
        let (partition, parts) = checked.parts(QUERIES);
        libraries.push(partition);
        constants.extend([
            ("HEAD_DIM", Constant::U32(index(sizes.head_dim))),
            // WGSL has no arrays of length zero; without value dimensions nothing is dispatched.
            ("VALUE_DIM", Constant::U32(index(sizes.head_dim_v.max(1)))),
            ("GUARDED", Constant::Bool(!checked.sees_all())),
            ("Elem", Constant::Scalar(inputs[0].dtype)),
        ]);
        let shader = Shader { main: FUSED, libraries, constants };
        if shader.needs_f16() && !capabilities.f16 {
            return None;
        }
        let workgroups = match self.outputs(inputs).is_ok_and(|outputs| outputs[0].is_empty()) {
            true => [0; 3],
            false => fold(sizes.batch * sizes.heads * parts, capabilities),
        };
        Some(Launch { shader, params: self.params(&sizes, &checked).into(), workgroups, bindings })
    }

    fn params(&self, sizes: &Sizes, checked: &Checked) -> AttentionParams {
        let rule = checked.params();
        let visit = checked.own_visit();
        let [mask_batch, mask_head, mask_query, mask_key] = rule.mask;
        let [bias_batch, bias_head, bias_query, bias_key] = rule.bias;
        AttentionParams {
            batch: index(sizes.batch),
            heads: index(sizes.heads),
            kv_heads: index(sizes.kv_heads),
            seq_q: index(sizes.seq_q),
            seq_kv: index(sizes.seq_kv),
            scale: self.scale,
            fill: rule.fill,
            excluded: rule.excluded,
            softcap: rule.softcap,
            band_follows: rule.band_follows,
            mask_keys: rule.mask_keys,
            bias_keys: rule.bias_keys,
            band_lower: rule.band.lower as i32,
            band_upper: rule.band.upper as i32,
            visit_lower: visit.lower as i32,
            visit_upper: visit.upper as i32,
            mask_batch,
            mask_head,
            mask_query,
            mask_key,
            bias_batch,
            bias_head,
            bias_query,
            bias_key,
            position: rule.position,
            slope_sequence: rule.slope_sequence,
            sequences: rule.sequences,
            parts: index(checked.parts(QUERIES).1),
        }
    }
}

/// Elements from one batch, head and row to the next of a dense tensor.
fn contiguous(heads: usize, rows: usize, width: usize) -> [usize; 3] {
    [heads * rows * width, rows * width, width]
}

/// Sizes around the tiles, head dimensions from 1 to 256, grouped heads, every mask kind, large scores, poison, zero sizes.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [Dtype::F32, Dtype::F16] {
        let plain = |sizes: [usize; 7], deviation| case(dtype, sizes, MaskCase::none(), deviation);
        for (seq_q, seq_kv) in [(1, 1), (7, 31), (8, 32), (9, 33), (31, 129), (32, 64), (33, 7), (65, 101)] {
            cases.push(plain([1, 2, 2, seq_q, seq_kv, 16, 16], 1.0));
        }
        for (head_dim, head_dim_v) in [(1, 1), (3, 5), (31, 33), (40, 40), (80, 12), (64, 128), (128, 129), (256, 256)]
        {
            cases.push(plain([1, 1, 1, 35, 37, head_dim, head_dim_v], 1.0));
        }
        cases.push(plain([2, 6, 2, 33, 40, 24, 24], 1.0));
        cases.push(plain([2, 4, 1, 1, 70, 16, 20], 30.0));
        cases.push(plain([1, 2, 2, 33, 33, 64, 64], 1e-3));
        for sizes in [[1, 2, 2, 0, 5, 8, 8], [2, 2, 2, 3, 0, 8, 8], [1, 1, 1, 3, 4, 0, 8], [1, 1, 1, 3, 4, 8, 0]] {
            cases.push(plain(sizes, 1.0));
        }
        // Each mask and each pair of head dimensions is a pipeline to compile: masks do not depend on the storage.
        let masked: &[[usize; 7]] = match dtype {
            Dtype::F32 => &[[2, 4, 2, 35, 70, 20, 24], [1, 2, 1, 70, 35, 16, 16], [1, 2, 2, 5, 41, 16, 16]],
            _ => &[[1, 2, 1, 70, 35, 16, 16]],
        };
        for &sizes in masked {
            let scores = [sizes[0], sizes[1], sizes[3], sizes[4]];
            cases.extend(mask_cases(scores).into_iter().skip(1).map(|mask| case(dtype, sizes, mask, 1.0)));
        }
    }
    for sizes in [[1, 4, 2, 70, 41, 12, 16], [1, 1, 1, 2, 5, 8, 8]] {
        for mask in serving_cases([sizes[1], sizes[3], sizes[4]]) {
            let mut case = case(Dtype::F32, sizes, mask, 1.0);
            case.inputs[1..3].iter_mut().for_each(|kv| kv.desc.shape[0] = 3);
            cases.push(case);
        }
    }
    let f32_case = |sizes, mask: MaskCase, deviation| case(Dtype::F32, sizes, mask, deviation);
    cases.push(f32_case(
        [1, 1, 1, 33, 33, 64, 64],
        MaskCase::causal("causal top-left", Causal::TopLeft, Fill::Exclude),
        100.0,
    ));
    cases.push(f32_case([66_000, 1, 1, 1, 2, 1, 1], MaskCase::none(), 1.0));
    cases.extend(poisoned());
    cases
}

fn case(dtype: Dtype, sizes: [usize; 7], mask: MaskCase, deviation: f32) -> Case {
    let [batch, heads, kv_heads, seq_q, seq_kv, head_dim, head_dim_v] = sizes;
    let MaskCase { name, rule, tensors } = mask;
    let scale = 1.0 / (head_dim.max(1) as f32).sqrt();
    let op = AttentionFused { scale, rule };
    let inputs = [
        CaseInput::normal(dtype, &[batch, heads, seq_q, head_dim], deviation),
        CaseInput::normal(dtype, &[batch, kv_heads, seq_kv, head_dim], deviation),
        CaseInput::normal(dtype, &[batch, kv_heads, seq_kv, head_dim_v], 1.0),
    ];
    let inputs = inputs.into_iter().chain(tensors).collect();
    let name =
        format!("{dtype} b{batch} h{heads}/{kv_heads} {seq_q}x{seq_kv} d{head_dim}/{head_dim_v} of {deviation} {name}");
    // A score has deviation² as its own; it is off by about √head_dim roundings of a term of that size, and each weight
    // relatively by as much. The sums over the keys and exp add a few roundings, storage one.
    let storage = if dtype == Dtype::F16 { EPSILON_F16 } else { 0.0 };
    let score = f64::from(deviation).powi(2) * 5.0 * (2.0 + (head_dim as f64).sqrt());
    Case::new(name, op, inputs, Tolerance::of_scale((2.0 * score + 32.0) * EPSILON_F32 + storage))
}

/// NaN and infinity in keys and values that only some rows may look at, by causality or by an additive mask.
fn poisoned() -> [Case; 2] {
    let above_the_diagonal = |at: usize| if at % 40 > at / 40 { f32::NEG_INFINITY } else { 0.25 };
    let data = (0..1600).map(above_the_diagonal).collect();
    let values = Values::Given(HostTensor::f32(&[40, 40], data).expect("40 x 40"));
    let name = "NaN and infinity in key and value";
    [
        MaskCase::causal(name, Causal::TopLeft, Fill::Exclude),
        MaskCase { name, ..MaskCase::none() }.bias(Dtype::F32, &[40, 40], values),
    ]
    .map(|mask| {
        let mut case = case(Dtype::F32, [1, 1, 1, 40, 40, 8, 8], mask, 1.0);
        case.name += if case.inputs.len() > 3 { ", additive" } else { ", causal" };
        for (input, row, value) in [(1, 38, f32::NAN), (2, 35, f32::NAN), (2, 37, f32::INFINITY)] {
            let mut data = case.inputs[input].draw(input as u64).as_f32().expect("f32 was asked for").to_vec();
            data[row * 8 + 3] = value;
            let tensor = HostTensor::f32(&[1, 1, 40, 8], data).expect("the shape is the input's");
            case.inputs[input].values = Values::Given(tensor);
        }
        case
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(causal: Causal, fill: Fill) -> AttentionFused {
        AttentionFused { scale: 1.0, rule: MaskCase::causal("", causal, fill).rule }
    }

    fn attention(op: AttentionFused, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f64> {
        let tensor = |x: &[f32]| HostTensor::f32(&[x.len(), 1], x.to_vec()).unwrap();
        op.reference(&[&tensor(q), &tensor(k), &tensor(v)], Rows::All)[0].as_f64().unwrap().to_vec()
    }

    #[test]
    fn reference_by_hand() {
        let plain = AttentionFused { scale: 1.0, rule: ScoreRule::default() };
        assert_eq!(attention(plain, &[0.0], &[5.0, 6.0], &[1.0, 3.0]), [2.0]);
        let quarter = attention(plain, &[1.0], &[0.0, 3.0_f32.ln()], &[4.0, 0.0]);
        assert!((quarter[0] - 1.0).abs() < 1e-6);
        let causal = masked(Causal::TopLeft, Fill::Exclude);
        assert_eq!(attention(causal, &[0.0; 2], &[1.0; 2], &[2.0, 4.0]), [2.0, 3.0]);
        let capped = AttentionFused { rule: ScoreRule { softcap: Some(1.0), ..plain.rule }, ..plain };
        let weight = 1.0_f64.tanh().exp();
        let got = attention(capped, &[1.0], &[0.0, 1.0], &[0.0, 1.0])[0];
        assert!((got - weight / (1.0 + weight)).abs() < 1e-12);
    }

    #[test]
    fn bottom_right_causality_counts_from_the_length() {
        let op = masked(Causal::BottomRight, Fill::Exclude);
        let op = AttentionFused { rule: ScoreRule { has_lengths: true, ..op.rule }, ..op };
        let tensor = |x: &[f32]| HostTensor::f32(&[x.len(), 1], x.to_vec()).unwrap();
        let (q, k, v) = (tensor(&[0.0; 2]), tensor(&[0.0; 5]), tensor(&[1.0, 3.0, 8.0, 100.0, f32::NAN]));
        let lengths = HostTensor::u32(&[1], vec![3]).unwrap();
        let out = op.reference(&[&q, &k, &v, &lengths], Rows::All).remove(0);
        assert_eq!(out.as_f64().unwrap(), [2.0, 4.0]);
    }

    #[test]
    fn fully_masked_rows_are_zero_or_uniform() {
        let op = masked(Causal::BottomRight, Fill::Exclude);
        assert_eq!(attention(op, &[1.0, 1.0], &[9.0], &[7.0]), [0.0, 7.0]);
        let op = masked(Causal::BottomRight, Fill::Assign(-1e9));
        assert_eq!(attention(op, &[1.0, 1.0], &[9.0], &[7.0]), [7.0, 7.0]);
    }

    #[test]
    fn causal_cost_counts_visited_scores() {
        let desc = TensorDesc::new(Dtype::F32, [1, 1, 4, 8]);
        let op = masked(Causal::TopLeft, Fill::Exclude);
        assert_eq!(op.cost(&[desc.clone(), desc.clone(), desc]).flops, 10 * 2 * 16);
    }
}
