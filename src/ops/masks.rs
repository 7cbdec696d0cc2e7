//! What happens to a score between the product and the softmax, for every op that does it: the options and tensors, checked;
//! as kernels see them; as the definition says; and as cases.

use crate::cpu::kernels::args::{self as native, Elements};
use crate::error::{Error, Result};
use crate::mask::{Band, Causal, Fill, Masking};
use crate::op::{Bindings, index};
use crate::ops::EXCLUDED;
use crate::shader::{Constant, Source, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc, View};

const ALLOW_ALL: Source = wgsl!("lib/allow_all");
const ALLOW_BAND: Source = wgsl!("lib/allow_band");
const ALLOW_DENSE: Source = wgsl!("lib/allow_dense");
const BIAS_NONE: Source = wgsl!("lib/bias_none");
const BIAS_DENSE: Source = wgsl!("lib/bias_dense");
const LENGTHS_NONE: Source = wgsl!("lib/lengths_none");
const LENGTHS_DENSE: Source = wgsl!("lib/lengths_dense");
const SOFTCAP_NONE: Source = wgsl!("lib/softcap_none");
const SOFTCAP_TANH: Source = wgsl!("lib/softcap_tanh");

// Bindings of the optional tensors, as in these files.
const MASK_BINDING: u32 = 10;
const BIAS_BINDING: u32 = 11;
const LENGTHS_BINDING: u32 = 12;

/// What happens to a scaled score: softcap, then bias, then mask.
///
/// Its tensors follow an op's own inputs, in the order of the fields.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ScoreRule {
    /// A score s becomes `c · tanh(s / c)`. Finite and larger than zero.
    pub softcap: Option<f32>,
    /// Causality, window and fill.
    pub masking: Masking,
    /// There is a boolean mask, true where a key takes part.
    pub has_mask: bool,
    /// There is an additive mask, f32 or f16.
    pub has_bias: bool,
    /// There is a u32 tensor `[batch]`: keys at or past it do not exist. Bottom-right causality and windows count from it.
    pub has_lengths: bool,
}

impl ScoreRule {
    /// Number of tensors that follow the op's own.
    pub(super) fn tensors(&self) -> usize {
        [self.has_mask, self.has_bias, self.has_lengths].into_iter().filter(|&has| has).count()
    }

    /// Mask, bias and lengths among those that follow the op's own.
    fn split<'a, T>(&self, tensors: &'a [T]) -> [Option<&'a T>; 3] {
        let mut rest = tensors.iter();
        [self.has_mask, self.has_bias, self.has_lengths].map(|has| if has { rest.next() } else { None })
    }

    /// Whether a score may come out as another, or not at all.
    pub(crate) fn changes(&self, seq_q: usize, seq_kv: usize) -> bool {
        self.tensors() > 0 || self.softcap.is_some() || !self.masking.band(seq_q, seq_kv).is_full(seq_q, seq_kv)
    }
}

/// A shape with ones in front, up to rank 4.
pub(super) fn to_rank_4(shape: &[usize]) -> [usize; 4] {
    let mut padded = [1; 4];
    padded[4 - shape.len()..].copy_from_slice(shape);
    padded
}

/// A rule whose tensors fit scores of these sizes.
pub(super) struct Checked {
    rule: ScoreRule,
    seq_q: usize,
    seq_kv: usize,
    bias: Option<Dtype>,
    mask_strides: [usize; 4],
    bias_strides: [usize; 4],
    mask_keys: usize,
    bias_keys: usize,
}

/// The fields that every kernel with a rule has in its params.
pub(super) struct RuleParams {
    pub band: Band,
    pub fill: f32,
    pub excluded: f32,
    pub softcap: f32,
    pub band_follows: u32,
    pub mask_keys: u32,
    pub bias_keys: u32,
    pub mask: [u32; 4],
    pub bias: [u32; 4],
}

impl Checked {
    /// Checks options and tensors in the name of `op`.
    pub fn new(op: &'static str, rule: ScoreRule, scores: [usize; 4], tensors: &[TensorDesc]) -> Result<Self> {
        rule.masking.validate(op)?;
        if let Some(softcap) = rule.softcap.filter(|softcap| !(softcap.is_finite() && *softcap > 0.0)) {
            return Err(Error::option(op, format!("softcap is {softcap}, it must be finite and larger than zero")));
        }
        let [mask, bias, lengths] = rule.split(tensors);
        if let Some(mask) = mask.filter(|mask| mask.dtype != Dtype::Bool) {
            return Err(Error::shape(op, format!("the boolean mask is {mask}; a float mask is a bias")));
        }
        if let Some(bias) = bias.filter(|bias| !bias.dtype.is_device_float()) {
            return Err(Error::shape(op, format!("the bias is {bias}, it must be f32 or f16")));
        }
        if let Some(lengths) = lengths.filter(|desc| desc.dtype != Dtype::U32 || desc.shape != scores[..1]) {
            return Err(Error::shape(op, format!("kv_lengths is {lengths}, it must be u32 [{}]", scores[0])));
        }
        let strides = |role: &str, desc: Option<&TensorDesc>| match desc {
            None => Ok(([0; 4], scores[3])),
            Some(desc) => broadcast_strides(&desc.shape, scores).ok_or_else(|| {
                Error::shape(op, format!("{role} {:?} does not broadcast to scores {scores:?}", desc.shape))
            }),
        };
        let (mask_strides, mask_keys) = strides("mask", mask)?;
        let (bias_strides, bias_keys) = strides("bias", bias)?;
        let (seq_q, seq_kv, bias) = (scores[2], scores[3], bias.map(|bias| bias.dtype));
        Ok(Self { rule, seq_q, seq_kv, bias, mask_strides, bias_strides, mask_keys, bias_keys })
    }

    /// Whether every query looks at every key, so that no weight is zero on purpose.
    pub fn sees_all(&self) -> bool {
        self.full_band() && !self.rule.has_mask && !self.rule.has_bias && !self.rule.has_lengths
    }

    /// The band that a kernel's loop over the keys may keep to.
    pub fn visit(&self) -> Band {
        match self.rule.masking.fill {
            Fill::Exclude => self.band(),
            Fill::Assign(_) => Band::FULL,
        }
    }

    /// The same for native kernels; `tensors` are those that follow the op's own.
    pub fn native<'a>(&self, tensors: &[View<'a>]) -> native::Masking<'a> {
        let [mask, bias, lengths] = self.rule.split(tensors);
        let (strides, keys) = (self.mask_strides, self.mask_keys);
        let bool_mask = mask.map(|mask| native::Dense { data: mask.bytes, strides, keys });
        let (strides, keys) = (self.bias_strides, self.bias_keys);
        native::Masking {
            softcap: self.rule.softcap,
            lengths: lengths.map(|lengths| bytemuck::cast_slice(lengths.bytes)),
            q_lengths: None,
            packed: None,
            bounds: self.rule.masking.bounds(),
            slopes: None,
            bool_mask,
            bias: bias.map(|bias| native::Dense { data: Elements::of(bias), strides, keys }),
            fill: self.rule.masking.fill,
        }
    }

    /// Library files and constants; the tensors' bindings are added to the inputs.
    pub fn link(&self, bindings: &mut Bindings) -> (Vec<Source>, Vec<(&'static str, Constant)>) {
        let allow = match (self.rule.has_mask, self.full_band()) {
            (true, _) => ALLOW_DENSE,
            (false, false) => ALLOW_BAND,
            (false, true) => ALLOW_ALL,
        };
        bindings.inputs.extend(self.rule.has_mask.then_some(MASK_BINDING));
        bindings.inputs.extend(self.rule.has_bias.then_some(BIAS_BINDING));
        bindings.inputs.extend(self.rule.has_lengths.then_some(LENGTHS_BINDING));
        let libraries = vec![
            EXCLUDED,
            allow,
            if self.bias.is_some() { BIAS_DENSE } else { BIAS_NONE },
            if self.rule.has_lengths { LENGTHS_DENSE } else { LENGTHS_NONE },
            if self.rule.softcap.is_some() { SOFTCAP_TANH } else { SOFTCAP_NONE },
        ];
        (libraries, self.bias.map(|dtype| ("BiasElem", Constant::Scalar(dtype))).into_iter().collect())
    }

    pub fn params(&self) -> RuleParams {
        RuleParams {
            band: self.band(),
            fill: match self.rule.masking.fill {
                Fill::Exclude => f32::NEG_INFINITY,
                Fill::Assign(value) => value,
            },
            excluded: f32::NEG_INFINITY,
            softcap: self.rule.softcap.unwrap_or(1.0),
            band_follows: u32::from(self.band_follows()),
            mask_keys: index(self.mask_keys),
            bias_keys: index(self.bias_keys),
            mask: self.mask_strides.map(index),
            bias: self.bias_strides.map(index),
        }
    }

    fn band(&self) -> Band {
        self.rule.masking.band(self.seq_q, self.seq_kv)
    }

    /// Bottom-right is where the keys end that exist.
    fn band_follows(&self) -> bool {
        self.rule.has_lengths && matches!(self.rule.masking.causal, None | Some(Causal::BottomRight))
    }

    fn full_band(&self) -> bool {
        self.band().is_full(self.seq_q, self.seq_kv)
    }
}

/// Elements from one position to the next along each axis of `scores`, zero where the mask has size 1; and the number of keys
/// that the mask covers, which may be fewer than there are.
fn broadcast_strides(shape: &[usize], scores: [usize; 4]) -> Option<([usize; 4], usize)> {
    if shape.len() > 4 {
        return None;
    }
    let shape = to_rank_4(shape);
    let mut strides = [0; 4];
    let mut step = 1;
    for axis in (0..4).rev() {
        if shape[axis] != 1 {
            let covers_some_keys = axis == 3 && shape[axis] < scores[axis];
            if shape[axis] != scores[axis] && !covers_some_keys {
                return None;
            }
            strides[axis] = step;
        }
        step *= shape[axis];
    }
    Some((strides, if shape[3] == 1 { scores[3] } else { shape[3] }))
}

/// The rule as its definition says it, for references. `row` counts (batch, head, query) together.
pub(super) struct Definition {
    rule: ScoreRule,
    heads: usize,
    seq_q: usize,
    seq_kv: usize,
    mask: Option<(Vec<f64>, Vec<usize>)>,
    bias: Option<(Vec<f64>, Vec<usize>)>,
    lengths: Option<Vec<f64>>,
}

impl Definition {
    /// For scores of this shape; `tensors` are those that follow the op's own.
    pub fn new(rule: ScoreRule, shape: &[usize], tensors: &[&HostTensor]) -> Self {
        let [mask, bias, lengths] = rule.split(tensors);
        let dense = |tensor: &&HostTensor| {
            let ones = std::iter::repeat_n(1, 4 - tensor.shape().len());
            (tensor.to_f64(), ones.chain(tensor.shape().iter().copied()).collect())
        };
        let axis = |from_the_end: usize| if shape.len() < from_the_end { 1 } else { shape[shape.len() - from_the_end] };
        Self {
            rule,
            heads: axis(3),
            seq_q: axis(2),
            seq_kv: axis(1),
            mask: mask.map(dense),
            bias: bias.map(dense),
            lengths: lengths.map(|lengths| lengths.to_f64()),
        }
    }

    /// What becomes of a scaled score.
    pub fn apply(&self, row: usize, key: usize, score: f64) -> f64 {
        let query = row % self.seq_q;
        let head = row / self.seq_q % self.heads;
        let batch = row / self.seq_q / self.heads;
        let length = self.lengths.as_ref().map_or(self.seq_kv, |lengths| self.seq_kv.min(lengths[batch] as usize));
        if key >= length {
            return f64::NEG_INFINITY;
        }
        // What a mask that ends before the keys says of the others.
        let element = |(data, shape): &(Vec<f64>, Vec<usize>), beyond: f64| {
            if shape[3] != 1 && key >= shape[3] {
                return beyond;
            }
            let at = [batch, head, query, key];
            data[(0..4).fold(0, |index, axis| index * shape[axis] + if shape[axis] == 1 { 0 } else { at[axis] })]
        };
        let masked_out = self.mask.as_ref().is_some_and(|mask| element(mask, 0.0) == 0.0);
        if masked_out || !self.sees(query as i64, key as i64, length as i64) {
            return match self.rule.masking.fill {
                Fill::Exclude => f64::NEG_INFINITY,
                Fill::Assign(value) => f64::from(value),
            };
        }
        let capped = self.rule.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh());
        match self.bias.as_ref().map_or(0.0, |bias| element(bias, f64::NEG_INFINITY)) {
            // Masked out, whatever the score: it may be NaN.
            f64::NEG_INFINITY => f64::NEG_INFINITY,
            bias => capped + bias,
        }
    }

    fn sees(&self, query: i64, key: i64, length: i64) -> bool {
        let masking = self.rule.masking;
        let position = match masking.causal {
            Some(Causal::TopLeft) => query,
            Some(Causal::Past(past)) => query + i64::from(past),
            Some(Causal::BottomRight) | None => query + length - self.seq_q as i64,
        };
        let window = masking.window.unwrap_or_default();
        let causal = masking.causal.is_none() || key <= position;
        let left = window.left.is_none_or(|left| key >= position - left);
        let right = window.right.is_none_or(|right| key <= position + right);
        causal && left && right
    }
}
