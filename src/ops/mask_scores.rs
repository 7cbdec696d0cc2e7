//! `mask_scores`: additive mask, causality, window and boolean mask over stored scores.
//!
//! Techniques: `mask_scores_each` (one lane per element), `mask_scores_native`.

use std::sync::Arc;

use crate::capabilities::{Backend, Capabilities};
use crate::case::{Case, CaseInput, Values};
use crate::compare::Tolerance;
use crate::cpu::kernels::args::{self as native, Elements, ElementsMut};
use crate::cpu::kernels::mask as kernel;
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::mask::{Band, Causal, Fill, Masking, Window};
use crate::op::{Bindings, Cost, CpuKernel, Launch, Op, Rows, Technique, fold, index};
use crate::ops::{
    ALLOW_ALL, ALLOW_BAND, ALLOW_DENSE, BIAS_BINDING, BIAS_DENSE, BIAS_NONE, EPSILON_F16, EPSILON_F32, EXCLUDED,
    MASK_BINDING,
};
use crate::shader::{Constant, Shader, Source, params, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc, View, ViewMut};

const EACH: Source = wgsl!("mask_scores_each");

/// Adds a bias to scores `[batch, heads, seq_q, seq_kv]` and fills what a query may not look at.
///
/// Scores may have rank 2 to 4; missing leading axes count as 1. Mask (bool) and bias (f32 or f16) broadcast to them.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct MaskScores {
    /// Causality, window and fill.
    pub masking: Masking,
    /// The second input is a boolean mask, true where a key takes part.
    pub has_mask: bool,
    /// The last input is an additive mask.
    pub has_bias: bool,
}

/// Masks of scores as tensors and options, for [`Graph::mask_scores`].
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ScoreMasks {
    /// Causality, window and fill.
    pub masking: Masking,
    /// Boolean mask, true where a key takes part.
    pub mask: Option<Tensor>,
    /// Additive mask.
    pub bias: Option<Tensor>,
}

impl Graph {
    /// Adds [`MaskScores`]: scores into the same shape and dtype.
    ///
    /// # Errors
    /// Masks that do not broadcast to the scores, wrong dtypes, contradictory options.
    pub fn mask_scores(&mut self, scores: Tensor, masks: &ScoreMasks) -> Result<Tensor> {
        let op = MaskScores { masking: masks.masking, has_mask: masks.mask.is_some(), has_bias: masks.bias.is_some() };
        let inputs: Vec<Tensor> = [scores].into_iter().chain(masks.mask).chain(masks.bias).collect();
        Ok(self.add(op, &inputs)?[0])
    }
}

params! {
    struct MaskScoresParams {
        count: u32, heads: u32, seq_q: u32, seq_kv: u32, band_lower: i32, band_upper: i32, fill: f32,
        mask_batch: u32, mask_head: u32, mask_query: u32, mask_key: u32,
        bias_batch: u32, bias_head: u32, bias_query: u32, bias_key: u32,
    }
}

impl Op for MaskScores {
    fn name(&self) -> &'static str {
        "mask_scores"
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let fail = |message: String| Err(Error::shape("mask_scores", message));
        let expected = 1 + usize::from(self.has_mask) + usize::from(self.has_bias);
        if inputs.len() != expected {
            return fail(format!("takes {expected} tensors with these options, got {}", inputs.len()));
        }
        let scores = &inputs[0];
        if !(2..=4).contains(&scores.rank()) || !scores.dtype.is_device_float() {
            return fail(format!("scores are f32 or f16 of rank 2 to 4, got {scores}"));
        }
        self.masking.validate("mask_scores")?;
        MaskInputs::new("mask_scores", to_rank_4(&scores.shape), self.mask(inputs), self.bias(inputs))?;
        Ok(vec![scores.clone()])
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        let scores = inputs[0].to_f64();
        let mask = self.has_mask.then(|| inputs[1]);
        let bias = self.has_bias.then(|| inputs[inputs.len() - 1]);
        let rule = ReferenceMask::new(inputs[0].shape(), self.masking, mask, bias);
        let result = rows.compute(inputs[0].shape(), |row, out| {
            let length = out.len();
            for (key, out) in out.iter_mut().enumerate() {
                *out = rule.apply(row, key, scores[row * length + key]);
            }
        });
        vec![result]
    }

    /// One addition for each element when there is a bias; the rest moves bytes.
    fn cost(&self, inputs: &[TensorDesc]) -> Cost {
        Cost::once(if self.has_bias { inputs[0].len() as u64 } else { 0 }, inputs, &inputs[..1])
    }

    fn techniques(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Vec<Technique> {
        match capabilities.backend {
            Backend::Cpu => self.native(inputs),
            Backend::Gpu => self.each(inputs, capabilities).map(Technique::Gpu).into_iter().collect(),
        }
    }
}

impl MaskScores {
    fn mask<'a>(&self, inputs: &'a [TensorDesc]) -> Option<&'a TensorDesc> {
        self.has_mask.then(|| &inputs[1])
    }

    fn bias<'a>(&self, inputs: &'a [TensorDesc]) -> Option<&'a TensorDesc> {
        self.has_bias.then(|| &inputs[inputs.len() - 1])
    }

    fn native(&self, inputs: &[TensorDesc]) -> Vec<Technique> {
        let sizes = to_rank_4(&inputs[0].shape);
        let Ok(masks) = MaskInputs::new("mask_scores", sizes, self.mask(inputs), self.bias(inputs)) else {
            return Vec::new();
        };
        let band = self.masking.band(sizes[2], sizes[3]);
        let fill = self.masking.fill;
        let run = move |inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]| {
            let masking = masks.native(band, fill, &inputs[1..]);
            let args = kernel::MaskScoresArgs { scores: Elements::of(&inputs[0]), sizes, masking };
            kernel::mask_scores(&args, ElementsMut::of(&mut outputs[0]));
        };
        vec![Technique::Cpu(CpuKernel { name: "mask_scores_native", run: Arc::new(run) })]
    }

    fn each(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Option<Launch> {
        let [_, heads, seq_q, seq_kv] = to_rank_4(&inputs[0].shape);
        let masks =
            MaskInputs::new("mask_scores", to_rank_4(&inputs[0].shape), self.mask(inputs), self.bias(inputs)).ok()?;
        let band = self.masking.band(seq_q, seq_kv);
        let mut bindings = Bindings::in_order(1, 1);
        let (libraries, mut constants) = masks.link(band.is_full(seq_q, seq_kv), &mut bindings);
        constants.push(("Elem", Constant::Scalar(inputs[0].dtype)));
        let shader = Shader { main: EACH, libraries, constants };
        if shader.needs_f16() && !capabilities.f16 {
            return None;
        }
        let [mask_batch, mask_head, mask_query, mask_key] = masks.mask_strides.map(index);
        let [bias_batch, bias_head, bias_query, bias_key] = masks.bias_strides.map(index);
        let params = MaskScoresParams {
            count: index(inputs[0].len()),
            heads: index(heads),
            seq_q: index(seq_q),
            seq_kv: index(seq_kv),
            band_lower: band.lower as i32,
            band_upper: band.upper as i32,
            fill: fill_value(self.masking.fill),
            mask_batch,
            mask_head,
            mask_query,
            mask_key,
            bias_batch,
            bias_head,
            bias_query,
            bias_key,
        };
        let workgroups = fold(inputs[0].len().div_ceil(256), capabilities);
        Some(Launch { shader, params: params.into(), workgroups, bindings })
    }
}

/// What a masked score becomes, as a number.
pub(super) fn fill_value(fill: Fill) -> f32 {
    match fill {
        Fill::Exclude => f32::NEG_INFINITY,
        Fill::Assign(value) => value,
    }
}

/// A shape with ones in front, up to rank 4.
pub(super) fn to_rank_4(shape: &[usize]) -> [usize; 4] {
    let mut padded = [1; 4];
    padded[4 - shape.len()..].copy_from_slice(shape);
    padded
}

/// Boolean and additive mask of an op on scores `[batch, heads, seq_q, seq_kv]`, checked and as strides.
pub(super) struct MaskInputs {
    pub mask: bool,
    pub bias: Option<Dtype>,
    pub mask_strides: [usize; 4],
    pub bias_strides: [usize; 4],
}

impl MaskInputs {
    pub fn new(
        op: &'static str,
        scores: [usize; 4],
        mask: Option<&TensorDesc>,
        bias: Option<&TensorDesc>,
    ) -> Result<Self> {
        if let Some(mask) = mask.filter(|mask| mask.dtype != Dtype::Bool) {
            return Err(Error::shape(op, format!("the boolean mask is {mask}; a float mask is a bias")));
        }
        if let Some(bias) = bias.filter(|bias| !bias.dtype.is_device_float()) {
            return Err(Error::shape(op, format!("the bias is {bias}, it must be f32 or f16")));
        }
        let strides = |role: &str, desc: Option<&TensorDesc>| match desc {
            None => Ok([0; 4]),
            Some(desc) => broadcast_strides(&desc.shape, scores).ok_or_else(|| {
                Error::shape(op, format!("{role} {:?} does not broadcast to scores {scores:?}", desc.shape))
            }),
        };
        Ok(Self {
            mask: mask.is_some(),
            bias: bias.map(|bias| bias.dtype),
            mask_strides: strides("mask", mask)?,
            bias_strides: strides("bias", bias)?,
        })
    }

    /// The same for native kernels; `tensors` are those that follow the op's other inputs.
    pub fn native<'a>(&self, band: Band, fill: Fill, tensors: &[View<'a>]) -> native::Masking<'a> {
        let bool_mask = self.mask.then(|| (tensors[0].bytes, self.mask_strides));
        let bias = self.bias.map(|_| (Elements::of(&tensors[tensors.len() - 1]), self.bias_strides));
        native::Masking { band, bool_mask, bias, fill }
    }

    /// Library files and constants for these masks; their bindings are added to the inputs.
    pub fn link(&self, full_band: bool, bindings: &mut Bindings) -> (Vec<Source>, Vec<(&'static str, Constant)>) {
        let allow = match (self.mask, full_band) {
            (true, _) => ALLOW_DENSE,
            (false, false) => ALLOW_BAND,
            (false, true) => ALLOW_ALL,
        };
        bindings.inputs.extend(self.mask.then_some(MASK_BINDING));
        let Some(dtype) = self.bias else { return (vec![EXCLUDED, allow, BIAS_NONE], Vec::new()) };
        bindings.inputs.push(BIAS_BINDING);
        (vec![EXCLUDED, allow, BIAS_DENSE], vec![("BiasElem", Constant::Scalar(dtype))])
    }
}

/// Elements from one position to the next along each axis of `scores`, zero where the mask has size 1.
fn broadcast_strides(shape: &[usize], scores: [usize; 4]) -> Option<[usize; 4]> {
    if shape.len() > 4 {
        return None;
    }
    let shape = to_rank_4(shape);
    let mut strides = [0; 4];
    let mut step = 1;
    for axis in (0..4).rev() {
        if shape[axis] != 1 {
            if shape[axis] != scores[axis] {
                return None;
            }
            strides[axis] = step;
        }
        step *= shape[axis];
    }
    Some(strides)
}

/// The rule of masking as its definition says it, for references. `row` counts (batch, head, query) together.
pub(super) struct ReferenceMask {
    seq_q: usize,
    seq_kv: usize,
    heads: usize,
    masking: Masking,
    mask: Option<(Vec<f64>, Vec<usize>)>,
    bias: Option<(Vec<f64>, Vec<usize>)>,
}

impl ReferenceMask {
    pub fn new(shape: &[usize], masking: Masking, mask: Option<&HostTensor>, bias: Option<&HostTensor>) -> Self {
        let dense = |tensor: &HostTensor| {
            let ones = std::iter::repeat_n(1, 4 - tensor.shape().len());
            (tensor.to_f64(), ones.chain(tensor.shape().iter().copied()).collect())
        };
        let axis = |from_the_end: usize| if shape.len() < from_the_end { 1 } else { shape[shape.len() - from_the_end] };
        Self { seq_q: axis(2), seq_kv: axis(1), heads: axis(3), masking, mask: mask.map(dense), bias: bias.map(dense) }
    }

    /// The score after bias and mask.
    pub fn apply(&self, row: usize, key: usize, score: f64) -> f64 {
        let query = row % self.seq_q;
        let head = row / self.seq_q % self.heads;
        let batch = row / self.seq_q / self.heads;
        let element = |(data, shape): &(Vec<f64>, Vec<usize>)| {
            let at = [batch, head, query, key];
            data[(0..4).fold(0, |index, axis| index * shape[axis] + if shape[axis] == 1 { 0 } else { at[axis] })]
        };
        let masked_out = self.mask.as_ref().is_some_and(|mask| element(mask) == 0.0);
        if masked_out || !self.sees(query as i64, key as i64) {
            return match self.masking.fill {
                Fill::Exclude => f64::NEG_INFINITY,
                Fill::Assign(value) => f64::from(value),
            };
        }
        match self.bias.as_ref().map_or(0.0, element) {
            // Masked out, whatever the score: it may be NaN.
            f64::NEG_INFINITY => f64::NEG_INFINITY,
            bias => score + bias,
        }
    }

    fn sees(&self, query: i64, key: i64) -> bool {
        let past = self.seq_kv as i64 - self.seq_q as i64;
        let position = query + if self.masking.causal == Some(Causal::TopLeft) { 0 } else { past };
        let window = self.masking.window.unwrap_or_default();
        let causal = self.masking.causal.is_none() || key <= position;
        let left = window.left.is_none_or(|left| key >= position - left);
        let right = window.right.is_none_or(|right| key <= position + right);
        causal && left && right
    }
}

/// One set of masking options with its masks' shapes, for the cases of every op that masks.
pub(super) struct MaskCase {
    pub name: &'static str,
    pub masking: Masking,
    pub mask: Option<CaseInput>,
    pub bias: Option<CaseInput>,
}

/// Every mask kind, alone and combined, for scores of this shape.
pub(super) fn mask_cases([batch, heads, seq_q, seq_kv]: [usize; 4]) -> Vec<MaskCase> {
    let mask = |shape: &[usize], empty_rows| {
        let values = Values::Mask { keep: 0.7, empty_rows };
        Some(CaseInput { desc: TensorDesc::new(Dtype::Bool, shape), values })
    };
    let bias = |dtype, shape: &[usize]| {
        Some(CaseInput { desc: TensorDesc::new(dtype, shape), values: Values::Bias { excluded: 0.2 } })
    };
    let masking = |causal, fill| Masking { causal, window: None, fill };
    let window = |left, right, causal| Masking { causal, window: Some(Window { left, right }), fill: Fill::Exclude };
    let none = Masking::default();
    let assign = Fill::Assign(-1e9);
    let case = |name, masking, mask, bias| MaskCase { name, masking, mask, bias };
    vec![
        case("no mask", none, None, None),
        case("causal top-left", masking(Some(Causal::TopLeft), Fill::Exclude), None, None),
        case("causal bottom-right", masking(Some(Causal::BottomRight), Fill::Exclude), None, None),
        case("causal assigned", masking(Some(Causal::BottomRight), assign), None, None),
        case("window 3, 2", window(Some(3), Some(2), None), None, None),
        case("causal window 4", window(Some(4), None, Some(Causal::TopLeft)), None, None),
        case("boolean", none, mask(&[batch, heads, seq_q, seq_kv], true), None),
        case("boolean per key", none, mask(&[batch, 1, 1, seq_kv], false), None),
        case("boolean assigned", masking(None, assign), mask(&[batch, 1, seq_q, seq_kv], true), None),
        case("additive", none, None, bias(Dtype::F32, &[seq_q, seq_kv])),
        case("additive f16 per head", none, None, bias(Dtype::F16, &[heads, 1, seq_kv])),
        case(
            "causal boolean additive",
            masking(Some(Causal::TopLeft), Fill::Exclude),
            mask(&[seq_q, seq_kv], false),
            bias(Dtype::F32, &[batch, 1, 1, seq_kv]),
        ),
    ]
}

/// Every mask kind on ragged scores of both dtypes, rank 2, zero sizes, more than 65,535 workgroups.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [Dtype::F32, Dtype::F16] {
        for shape in [[2, 3, 7, 11], [1, 2, 13, 5], [1, 1, 1, 1]] {
            for mask_case in mask_cases(shape) {
                cases.push(case(dtype, &shape, mask_case));
            }
        }
        cases.push(case(dtype, &[1, 2, 0, 3], mask_cases([1, 2, 0, 3]).remove(1)));
        cases.push(case(dtype, &[31, 17], mask_cases([1, 1, 31, 17]).remove(1)));
    }
    cases.push(case(Dtype::F32, &[1, 1, 4100, 4200], mask_cases([1, 1, 4100, 4200]).remove(2)));
    cases
}

fn case(dtype: Dtype, shape: &[usize], MaskCase { name, masking, mask, bias }: MaskCase) -> Case {
    let op = MaskScores { masking, has_mask: mask.is_some(), has_bias: bias.is_some() };
    let inputs = [CaseInput::normal(dtype, shape, 1.0)].into_iter().chain(mask).chain(bias).collect();
    // One addition, rounded to storage. −1e9 is f32; in f16 it is −inf, the same on both sides after rounding.
    let relative = if dtype == Dtype::F16 { EPSILON_F16 } else { EPSILON_F32 };
    let tolerance = Tolerance { of_scale: 0.0, relative: 2.0 * relative, absolute: 2.0 * relative };
    Case::new(format!("{dtype} {shape:?} {name}"), op, inputs, tolerance)
}

/// A band that never hides a key, for kernels that stay inside what may be visited.
pub(super) fn visited(masking: Masking, seq_q: usize, seq_kv: usize) -> Band {
    match masking.fill {
        Fill::Exclude => masking.band(seq_q, seq_kv),
        Fill::Assign(_) => Band::FULL,
    }
}
