//! `mask_scores`: softcap, ALiBi, additive mask, causality, window, boolean mask, lengths and packed sequences over stored scores.
//!
//! Techniques: `mask_scores_each` (one lane per element), `mask_scores_native`.

use std::sync::Arc;

use crate::capabilities::{Backend, Capabilities};
use crate::case::{Case, CaseInput};
use crate::compare::Tolerance;
use crate::cpu::kernels::args::{Elements, ElementsMut};
use crate::cpu::kernels::mask as kernel;
use crate::error::{Error, Result};
use crate::graph::{Graph, Lowering, Tensor, renamed};
use crate::mask::Masking;
use crate::op::{Bindings, Cost, CpuKernel, Launch, Op, Rows, Technique, Update, fold};
use crate::ops::definition::Definition;
use crate::ops::mask_cases::{MaskCase, mask_cases, serving_cases};
use crate::ops::masked_rows::{MASKED_ROW, params};
use crate::ops::masks::{Checked, ScoreRule, to_rank_4};
use crate::ops::{EPSILON_F16, EPSILON_F32};
use crate::shader::{Constant, Shader, Source, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc, View, ViewMut};

const EACH: Source = wgsl!("mask_scores_each");

/// Applies a [`ScoreRule`] to scaled scores `[batch, heads, seq_q, seq_kv]`.
///
/// Scores may have rank 2 to 4; missing leading axes count as 1. Mask (bool) and bias (f32 or f16) broadcast to them and may
/// end before the keys, of which the rest is then masked out. Lengths are u32 `[batch]`. Packed sequences share a batch of 1, and
/// no query sees a key of another sequence. Where queries are packed and keys are not, the batch is the keys': element s has the
/// scores of all queries over the keys of sequence s, which only the queries of that sequence keep.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct MaskScores {
    /// What happens to a score.
    pub rule: ScoreRule,
}

/// Options and tensors of [`Graph::mask_scores`].
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ScoreMasks {
    /// A score s becomes `c · tanh(s / c)`.
    pub softcap: Option<f32>,
    /// Causality, window and fill.
    pub masking: Masking,
    /// Boolean mask, true where a key takes part.
    pub mask: Option<Tensor>,
    /// Additive mask.
    pub bias: Option<Tensor>,
    /// Keys at or past these, u32 `[batch]`, do not exist.
    pub kv_lengths: Option<Tensor>,
    /// ALiBi, f32 `[heads]` or `[sequences, heads]`.
    pub slopes: Option<Tensor>,
    /// Queries at or past these, u32 `[batch]`, do not exist: their rows are −inf.
    pub q_lengths: Option<Tensor>,
    /// Where packed sequences start among the queries, and where the last ends, u32 `[sequences + 1]`.
    pub q_starts: Option<Tensor>,
    /// The same among the keys.
    pub kv_starts: Option<Tensor>,
}

impl ScoreMasks {
    /// The same with other tensors.
    pub(crate) fn map(&self, place: impl Fn(Tensor) -> Tensor) -> Self {
        let Self { softcap, masking, mask, bias, kv_lengths, slopes, q_lengths, q_starts, kv_starts } = *self;
        let [mask, bias, kv_lengths, slopes] = [mask, bias, kv_lengths, slopes].map(|tensor| tensor.map(&place));
        let [q_lengths, q_starts, kv_starts] = [q_lengths, q_starts, kv_starts].map(|tensor| tensor.map(&place));
        Self { softcap, masking, mask, bias, kv_lengths, slopes, q_lengths, q_starts, kv_starts }
    }

    /// The rule that an op takes, and the tensors that follow its own.
    pub(crate) fn rule(&self) -> (ScoreRule, impl Iterator<Item = Tensor> + use<>) {
        let rule = ScoreRule {
            softcap: self.softcap,
            masking: self.masking,
            has_mask: self.mask.is_some(),
            has_bias: self.bias.is_some(),
            has_lengths: self.kv_lengths.is_some(),
            has_slopes: self.slopes.is_some(),
            has_q_lengths: self.q_lengths.is_some(),
            has_q_starts: self.q_starts.is_some(),
            has_kv_starts: self.kv_starts.is_some(),
        };
        let Self { mask, bias, kv_lengths, slopes, q_lengths, q_starts, kv_starts, .. } = *self;
        (rule, [mask, bias, kv_lengths, slopes, q_lengths, q_starts, kv_starts].into_iter().flatten())
    }
}

impl Graph {
    /// Adds [`MaskScores`]: scores into the same shape and dtype.
    ///
    /// # Errors
    /// Masks that do not broadcast to the scores, wrong dtypes, contradictory options.
    pub fn mask_scores(&mut self, scores: Tensor, masks: &ScoreMasks) -> Result<Tensor> {
        let (rule, tensors) = masks.rule();
        let inputs: Vec<Tensor> = [scores].into_iter().chain(tensors).collect();
        let split: Arc<dyn Lowering> = Arc::new(MasksAfterSums { masks: *masks, inputs: inputs.clone() });
        let splits = rule.has_mask && (rule.has_bias || rule.has_slopes);
        Ok(self.add_lowerable(MaskScores { rule }, &inputs, splits.then_some(split).into_iter().collect())?[0])
    }
}

/// What is added to the scores in one step and the mask in a second, for a device that cannot bind the tensors of both.
#[derive(Debug)]
struct MasksAfterSums {
    masks: ScoreMasks,
    /// Of the node: the scores, then the tensors of the masks.
    inputs: Vec<Tensor>,
}

impl Lowering for MasksAfterSums {
    fn name(&self) -> &'static str {
        "masks_after_sums"
    }

    fn wins(&self, inputs: &[TensorDesc], offered: &[Technique], capabilities: &Capabilities) -> bool {
        offered.is_empty() && inputs.len() + 1 > capabilities.storage_buffers as usize
    }

    fn build(&self, graph: &mut Graph, inputs: &[Tensor], _capabilities: &Capabilities) -> Result<Vec<Tensor>> {
        let masks = self.masks.map(|tensor| renamed(tensor, &self.inputs, inputs));
        // What the first step masks out has no sum left that could bring it back, so the second may mask it again.
        let scores = graph.mask_scores(inputs[0], &ScoreMasks { mask: None, ..masks })?;
        let only_masks = ScoreMasks { softcap: None, bias: None, slopes: None, ..masks };
        Ok(vec![graph.mask_scores(scores, &only_masks)?])
    }
}

impl Op for MaskScores {
    fn name(&self) -> &'static str {
        "mask_scores"
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let fail = |message: String| Err(Error::shape("mask_scores", message));
        let expected = 1 + self.rule.tensors();
        if inputs.len() != expected {
            return fail(format!("takes {expected} tensors with these options, got {}", inputs.len()));
        }
        let scores = &inputs[0];
        if !(2..=4).contains(&scores.rank()) || !scores.dtype.is_device_float() {
            return fail(format!("scores are f32 or f16 of rank 2 to 4, got {scores}"));
        }
        let sequences = self.checked(inputs)?.sequences();
        let [batch, ..] = to_rank_4(&scores.shape);
        if self.rule.reads_batched_keys() && batch != sequences {
            return fail(format!(
                "q_starts has {sequences} sequences, and scores over keys of their own have batch {batch}"
            ));
        }
        Ok(vec![scores.clone()])
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        let scores = inputs[0].to_f64();
        let definition = Definition::new(self.rule, inputs[0].shape(), &inputs[1..]);
        let result = rows.compute(inputs[0].shape(), |row, out| {
            let length = out.len();
            for (key, out) in out.iter_mut().enumerate() {
                *out = definition.apply(row, key, scores[row * length + key]);
            }
        });
        vec![result]
    }

    /// One addition for each element when there is a bias, two operations for slopes, three for a softcap; the rest moves bytes.
    fn cost(&self, inputs: &[TensorDesc]) -> Cost {
        let softcap = if self.rule.softcap.is_some() { 3 } else { 0 };
        let each = u64::from(self.rule.has_bias) + 2 * u64::from(self.rule.has_slopes) + softcap;
        Cost::once(each * inputs[0].len() as u64, inputs, &inputs[..1])
    }

    fn updates(&self) -> &'static [Update] {
        &[]
    }

    fn check(&self, inputs: &[TensorDesc], data: &[Option<&HostTensor>]) -> Result<()> {
        let [_, _, seq_q, seq_kv] = to_rank_4(&inputs[0].shape);
        self.rule.check("mask_scores", [seq_q, seq_kv], &data[1..])
    }

    fn techniques(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Vec<Technique> {
        let Ok(checked) = self.checked(inputs) else { return Vec::new() };
        match capabilities.backend {
            Backend::Cpu => vec![self.native(&inputs[0], checked)],
            Backend::Gpu => self.each(&inputs[0], &checked, capabilities).map(Technique::Gpu).into_iter().collect(),
        }
    }
}

impl MaskScores {
    fn checked(&self, inputs: &[TensorDesc]) -> Result<Checked> {
        let [batch, heads, seq_q, seq_kv] = to_rank_4(&inputs[0].shape);
        let queries = if self.rule.reads_batched_keys() { 1 } else { batch };
        Checked::new("mask_scores", self.rule, [queries, heads, seq_q, seq_kv], &inputs[1..])
    }

    fn native(&self, scores: &TensorDesc, checked: Checked) -> Technique {
        let sizes = to_rank_4(&scores.shape);
        let run = move |inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]| {
            let masking = checked.native(&inputs[1..]);
            let args = kernel::MaskScoresArgs { scores: Elements::of(&inputs[0]), sizes, masking };
            kernel::mask_scores(&args, ElementsMut::of(&mut outputs[0]));
        };
        Technique::Cpu(CpuKernel { name: "mask_scores_native", run: Arc::new(run) })
    }

    fn each(&self, scores: &TensorDesc, checked: &Checked, capabilities: &Capabilities) -> Option<Launch> {
        let mut bindings = Bindings::in_order(1, 1);
        let (mut libraries, mut constants) = checked.link(&mut bindings);
        libraries.push(MASKED_ROW);
        constants.push(("Elem", Constant::Scalar(scores.dtype)));
        let shader = Shader { main: EACH, libraries, constants };
        if shader.needs_f16() && !capabilities.f16 {
            return None;
        }
        let params = params(to_rank_4(&scores.shape), &self.rule, checked);
        let workgroups = fold(scores.len().div_ceil(256), capabilities);
        Some(Launch { shader, params, workgroups, bindings })
    }
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
        for mask_case in serving_cases([2, 13, 9]) {
            cases.push(case(dtype, &[3, 2, 13, 9], mask_case));
        }
        cases.push(case(dtype, &[1, 2, 0, 3], mask_cases([1, 2, 0, 3]).remove(1)));
        cases.push(case(dtype, &[31, 17], mask_cases([1, 1, 31, 17]).remove(1)));
    }
    cases.push(case(Dtype::F32, &[1, 1, 4100, 4200], mask_cases([1, 1, 4100, 4200]).remove(2)));
    cases
}

fn case(dtype: Dtype, shape: &[usize], MaskCase { name, rule, tensors }: MaskCase) -> Case {
    let inputs = [CaseInput::normal(dtype, shape, 1.0)].into_iter().chain(tensors).collect();
    // A division, a tanh good to a few roundings, a product and an addition, rounded to storage. −1e9 is f32; in f16 it is
    // −inf, the same on both sides after rounding.
    let relative = if dtype == Dtype::F16 { EPSILON_F16 } else { EPSILON_F32 };
    let tanh = if rule.softcap.is_some() { 16.0 * EPSILON_F32 } else { 0.0 };
    let tolerance = Tolerance { of_scale: 0.0, relative: 2.0 * relative, absolute: 2.0 * relative + tanh };
    Case::new(format!("{dtype} {shape:?} {name}"), MaskScores { rule }, inputs, tolerance)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a checked run says of these lengths and starts, for scores `[2, 1, 5, 7]`, packed `[1, 1, 5, 7]`.
    fn checked(rule: ScoreRule, data: &[&[u32]]) -> String {
        let batch = if rule.has_q_starts { 1 } else { 2 };
        let tensors: Vec<_> = data.iter().map(|data| HostTensor::u32(&[data.len()], data.to_vec()).unwrap()).collect();
        let scores = TensorDesc::new(Dtype::F32, [batch, 1, 5, 7]);
        let descs: Vec<_> = [scores].into_iter().chain(tensors.iter().map(|tensor| tensor.desc().clone())).collect();
        let op = MaskScores { rule };
        op.outputs(&descs).unwrap();
        let data: Vec<_> = [None].into_iter().chain(tensors.iter().map(Some)).collect();
        op.check(&descs, &data).map_or_else(|error| error.to_string(), |()| "fine".into())
    }

    #[test]
    fn data_that_does_not_fit_is_named() {
        let none = ScoreRule::default();
        let lengths = ScoreRule { has_lengths: true, has_q_lengths: true, ..none };
        assert_eq!(checked(lengths, &[&[7, 0], &[5, 5]]), "fine");
        assert_eq!(checked(lengths, &[&[7, 8], &[5, 5]]), "mask_scores: kv_lengths[1] is 8, seq_kv is 7");
        assert_eq!(checked(lengths, &[&[7, 7], &[6, 5]]), "mask_scores: q_lengths[0] is 6, seq_q is 5");
        let packed = ScoreRule { has_q_starts: true, has_kv_starts: true, ..none };
        assert_eq!(checked(packed, &[&[1, 3, 3], &[0, 7, 7]]), "fine");
        let decreasing = "mask_scores: q_starts[2] is 2, q_starts[1] is 3; starts do not decrease";
        assert_eq!(checked(packed, &[&[1, 3, 2], &[0, 7, 7]]), decreasing);
        assert_eq!(checked(packed, &[&[0, 5], &[0, 8]]), "mask_scores: kv_starts[1] is 8, seq_kv is 7");
    }
}
