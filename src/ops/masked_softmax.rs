//! `masked_softmax`: a score rule and softmax in one: what `mask_scores` and `softmax` after it compute, without the scores
//! between them in memory.
//!
//! Techniques: `masked_softmax_row` (one workgroup per row of any length, three walks), `masked_softmax_native`.

use std::sync::Arc;

use crate::capabilities::{Backend, Capabilities};
use crate::case::{Case, CaseInput, Values};
use crate::compare::Tolerance;
use crate::cpu::kernels::args::{Elements, ElementsMut};
use crate::cpu::kernels::mask::MaskScoresArgs;
use crate::cpu::kernels::softmax::{RowSinks, masked_softmax};
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::op::{Bindings, Cost, CpuKernel, Launch, Op, Rows, Technique, Update, fold};
use crate::ops::definition::Definition;
use crate::ops::mask_cases::{MaskCase, mask_cases, serving_cases};
use crate::ops::masked_rows::{MASKED_ROW, params};
use crate::ops::masks::{Checked, ScoreRule, to_rank_4};
use crate::ops::sinks::{check_sinks, rows_of_a_head, sinks};
use crate::ops::{
    EPSILON_F16, EPSILON_F32, REDUCE_WORKGROUP, SINKS_BINDING, SINKS_DENSE, SINKS_NONE, ScoreMasks, row_rounds,
};
use crate::shader::{Constant, Shader, Source, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc, View, ViewMut};

const ROW: Source = wgsl!("masked_softmax_row");

/// `exp(m) / (Σ exp(m) + exp(sink))` along the last axis, where m are scores `[batch, heads, seq_q, seq_kv]` after a [`ScoreRule`].
/// A row of −inf only gives zeros.
///
/// Scores may have rank 2 to 4. The tensors of the rule follow the scores, as [`MaskScores`](super::MaskScores) has them, and
/// the sinks come last.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct MaskedSoftmax {
    /// What happens to a score.
    pub rule: ScoreRule,
    /// There are sinks, f32 `[heads]`: one more score for every row of a head, which has no weight in the output; −inf for none.
    pub has_sinks: bool,
}

impl Graph {
    /// Adds [`MaskedSoftmax`]: scores into weights of the same shape and dtype.
    ///
    /// # Errors
    /// As [`Graph::mask_scores`] and [`Graph::softmax_with_sinks`].
    pub fn masked_softmax(&mut self, scores: Tensor, masks: &ScoreMasks, sinks: Option<Tensor>) -> Result<Tensor> {
        let (rule, tensors) = masks.rule();
        let inputs: Vec<Tensor> = [scores].into_iter().chain(tensors).chain(sinks).collect();
        Ok(self.add(MaskedSoftmax { rule, has_sinks: sinks.is_some() }, &inputs)?[0])
    }
}

impl Op for MaskedSoftmax {
    fn name(&self) -> &'static str {
        "masked_softmax"
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let fail = |message: String| Err(Error::shape("masked_softmax", message));
        let expected = 1 + self.rule.tensors() + usize::from(self.has_sinks);
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
        if let (true, Some(sinks)) = (self.has_sinks, inputs.last()) {
            check_sinks("masked_softmax", sinks, scores)?;
        }
        Ok(vec![scores.clone()])
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        let scores = inputs[0].to_f64();
        let [_, heads, seq_q, _] = to_rank_4(inputs[0].shape());
        let (masks, sinks) = inputs[1..].split_at(self.rule.tensors());
        let sinks = sinks.first().map_or(vec![f64::NEG_INFINITY; heads], |sinks| sinks.to_f64());
        let definition = Definition::new(self.rule, inputs[0].shape(), masks);
        let result = rows.compute(inputs[0].shape(), |row, out| {
            let length = out.len();
            let masked = (0..length).map(|key| definition.apply(row, key, scores[row * length + key]));
            let masked: Vec<f64> = masked.collect();
            let sink = sinks[row / seq_q % heads];
            let maximum = masked.iter().copied().fold(sink, f64::max);
            let weight = |s: f64| if s == f64::NEG_INFINITY { 0.0 } else { (s - maximum).exp() };
            let sum = masked.iter().map(|&score| weight(score)).sum::<f64>() + weight(sink);
            for (out, &score) in out.iter_mut().zip(&masked) {
                *out = if sum == 0.0 { 0.0 } else { weight(score) / sum };
            }
        });
        vec![result]
    }

    /// Four operations for each element (maximum, difference with exponential, sum, division), and those of the rule: an addition
    /// of the bias, two operations for slopes, three for a softcap.
    fn cost(&self, inputs: &[TensorDesc]) -> Cost {
        let softcap = if self.rule.softcap.is_some() { 3 } else { 0 };
        let each = 4 + u64::from(self.rule.has_bias) + 2 * u64::from(self.rule.has_slopes) + softcap;
        Cost::once(each * inputs[0].len() as u64, inputs, &inputs[..1])
    }

    fn updates(&self) -> &'static [Update] {
        &[]
    }

    fn check(&self, inputs: &[TensorDesc], data: &[Option<&HostTensor>]) -> Result<()> {
        let [_, _, seq_q, seq_kv] = to_rank_4(&inputs[0].shape);
        self.rule.check("masked_softmax", [seq_q, seq_kv], &data[1..=self.rule.tensors()])
    }

    fn techniques(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Vec<Technique> {
        let Ok(checked) = self.checked(inputs) else { return Vec::new() };
        match capabilities.backend {
            Backend::Cpu => vec![self.native(&inputs[0], checked)],
            Backend::Gpu => self.row(&inputs[0], &checked, capabilities).map(Technique::Gpu).into_iter().collect(),
        }
    }
}

impl MaskedSoftmax {
    fn checked(&self, inputs: &[TensorDesc]) -> Result<Checked> {
        let [batch, heads, seq_q, seq_kv] = to_rank_4(&inputs[0].shape);
        let queries = if self.rule.reads_batched_keys() { 1 } else { batch };
        let masks = &inputs[1..=self.rule.tensors()];
        Checked::new("masked_softmax", self.rule, [queries, heads, seq_q, seq_kv], masks)
    }

    fn native(&self, scores: &TensorDesc, checked: Checked) -> Technique {
        let (sizes, rows, tensors) = (to_rank_4(&scores.shape), rows_of_a_head(scores)[1], self.rule.tensors());
        let run = move |inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]| {
            let (masks, sinks) = inputs[1..].split_at(tensors);
            let sinks = sinks.first().map(|sinks| RowSinks { data: bytemuck::cast_slice(sinks.bytes), rows });
            let args = MaskScoresArgs { scores: Elements::of(&inputs[0]), sizes, masking: checked.native(masks) };
            masked_softmax(&args, sinks, ElementsMut::of(&mut outputs[0]));
        };
        Technique::Cpu(CpuKernel { name: "masked_softmax_native", run: Arc::new(run) })
    }

    fn row(&self, scores: &TensorDesc, checked: &Checked, capabilities: &Capabilities) -> Option<Launch> {
        let mut bindings = Bindings::in_order(1, 1);
        let (mut libraries, mut constants) = checked.link(&mut bindings);
        let sinks = if self.has_sinks { SINKS_DENSE } else { SINKS_NONE };
        libraries.extend([MASKED_ROW, REDUCE_WORKGROUP, sinks]);
        bindings.inputs.extend(self.has_sinks.then_some(SINKS_BINDING));
        let lanes = if scores.row_length() <= 256 { 64 } else { 256 };
        constants.extend([("LANES", Constant::U32(lanes)), ("Elem", Constant::Scalar(scores.dtype))]);
        let shader = Shader { main: ROW, libraries, constants };
        let completes = capabilities.completes(row_rounds(scores.row_length()));
        if (shader.needs_f16() && !capabilities.f16) || bindings.count() > capabilities.storage_buffers || !completes {
            return None;
        }
        let params = params(to_rank_4(&scores.shape), &self.rule, checked);
        let workgroups = if scores.is_empty() { [0; 3] } else { fold(scores.rows(), capabilities) };
        Some(Launch { shader, params, workgroups, bindings })
    }
}

/// One rule of each kind, as `mask_scores` has all of them; rows of one workgroup's lanes, of fewer and of more; sinks; zero sizes.
pub(super) fn cases() -> Vec<Case> {
    let all = |shape, names: &[&str]| {
        let cases: Vec<MaskCase> = mask_cases(shape).into_iter().filter(|case| names.contains(&case.name)).collect();
        assert_eq!(cases.len(), names.len(), "every name is there: {names:?}");
        cases
    };
    let mut cases = Vec::new();
    let shape = [2, 3, 7, 65];
    for of in all(shape, &["causal bottom-right", "boolean assigned", "slopes softcap lengths", "query lengths"]) {
        cases.push(case(Dtype::F32, &shape, of, false));
    }
    let shape = [1, 2, 13, 300];
    cases.extend(all(shape, &["packed everything"]).into_iter().map(|of| case(Dtype::F32, &shape, of, false)));
    let names = ["causal boolean additive"];
    cases.extend(all(shape, &names).into_iter().map(|of| case(Dtype::F16, &shape, of, true)));
    for (shape, name) in [([1, 1, 1, 1], "no mask"), ([1, 2, 0, 3], "causal top-left"), ([2, 2, 3, 0], "no mask")] {
        cases.extend(all(shape, &[name]).into_iter().map(|of| case(Dtype::F32, &shape, of, false)));
    }
    cases.extend(serving_cases([2, 13, 9]).into_iter().take(1).map(|of| case(Dtype::F32, &[3, 2, 13, 9], of, true)));
    cases
}

fn case(dtype: Dtype, shape: &[usize], MaskCase { name, rule, tensors }: MaskCase, with_sinks: bool) -> Case {
    let own = CaseInput { desc: TensorDesc::new(dtype, shape), values: Values::Normal(1.0) };
    let sinks = with_sinks.then(|| sinks(shape[shape.len() - 3]));
    let inputs = [own].into_iter().chain(tensors).chain(sinks).collect();
    // The masked score is rounded two or three times and so is its difference to the maximum: the exponential is off by as much,
    // relatively. Slopes make scores as large as half the number of keys; exp and the sum take a few roundings more.
    let largest = 10.0 + if rule.has_slopes { 0.5 * shape[3] as f64 } else { 0.0 };
    // A weight is stored before and after the division.
    let storage = if dtype == Dtype::F16 { 2.0 * EPSILON_F16 } else { 0.0 };
    let tolerance =
        Tolerance { of_scale: (4.0 * largest + 16.0) * EPSILON_F32 + storage, relative: 0.0, absolute: 1e-7 };
    let op = MaskedSoftmax { rule, has_sinks: with_sinks };
    let sinks = if with_sinks { " with sinks" } else { "" };
    Case::new(format!("{dtype} {shape:?} {name}{sinks}"), op, inputs, tolerance)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mask::{Causal, Fill, Masking};

    #[test]
    fn reference_by_hand() {
        let masking = Masking { causal: Some(Causal::TopLeft), window: None, fill: Fill::Exclude };
        let rule = ScoreRule { masking, ..ScoreRule::default() };
        let ln3 = 3.0_f32.ln();
        let x = HostTensor::f32(&[1, 2, 2], vec![5.0, f32::NAN, 0.0, ln3]).unwrap();
        let got = MaskedSoftmax { rule, has_sinks: false }.reference(&[&x], Rows::All).remove(0);
        let got = got.as_f64().unwrap();
        // A masked NaN weighs nothing.
        assert_eq!(got[..2], [1.0, 0.0]);
        assert!((got[2] - 0.25).abs() < 1e-7 && (got[3] - 0.75).abs() < 1e-7);
        let sinks = HostTensor::f32(&[1], vec![5.0]).unwrap();
        let got = MaskedSoftmax { rule, has_sinks: true }.reference(&[&x, &sinks], Rows::All).remove(0);
        assert_eq!(got.as_f64().unwrap()[..2], [0.5, 0.0]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let scores = TensorDesc::new(Dtype::F32, [1, 2, 3, 4]);
        let sinks = TensorDesc::new(Dtype::F32, [3]);
        let op = MaskedSoftmax { rule: ScoreRule::default(), has_sinks: true };
        let message = |inputs: &[TensorDesc]| op.outputs(inputs).unwrap_err().to_string();
        let count = "masked_softmax: takes 2 tensors with these options, got 1";
        assert_eq!(message(std::slice::from_ref(&scores)), count);
        assert_eq!(message(&[scores, sinks]), "masked_softmax: sinks are f32 [3], they must be f32 [2]");
    }
}
