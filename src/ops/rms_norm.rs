//! `rms_norm`: x / √(mean(x²) + epsilon) × weight along the last axis.
//!
//! Techniques: `rms_norm_held` (rows up to 8,192 elements or more in registers, see `held_rows.rs`), `rms_norm_row`
//! (one workgroup per row of any length, two walks), `rms_norm_native`.

use std::sync::Arc;

use crate::capabilities::{Backend, Capabilities};
use crate::case::{Case, CaseInput};
use crate::compare::Tolerance;
use crate::cpu::kernels::args::{Elements, ElementsMut};
use crate::cpu::kernels::rms_norm::rms_norm;
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::op::{Bindings, Cost, CpuKernel, Launch, Op, Rows, Technique, Update, fold, index};
use crate::ops::held_rows::{EDGES, Held, HeldRows};
use crate::ops::rotation::{NormRule, RowDefinition, WEIGHT_BINDING, norm_parts};
use crate::ops::{EPSILON_F16, EPSILON_F32, row_rounds};
use crate::shader::{Constant, Shader, Source, params, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc, View, ViewMut};

const HELD: Source = wgsl!("rms_norm_held");
const ROW: Source = wgsl!("rms_norm_row");
const WEIGHT_NONE: Source = wgsl!("lib/norm_weight_none");
const WEIGHT_DENSE: Source = wgsl!("lib/norm_weight_dense");

/// RMSNorm of `x` `[.., length]`; its weight `[length]` follows, if it has one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RmsNorm {
    /// Epsilon, and whether there is a weight.
    pub rule: NormRule,
}

impl Graph {
    /// Adds [`RmsNorm`]: `[.., length]` into the same shape and dtype, times a weight `[length]`; all f32 or f16.
    ///
    /// # Errors
    /// An epsilon below zero or not finite, rank 0, a weight of another length, a dtype other than f32 or f16.
    pub fn rms_norm(&mut self, x: Tensor, weight: Option<Tensor>, epsilon: f32) -> Result<Tensor> {
        let rule = NormRule { epsilon, has_weight: weight.is_some() };
        let inputs: Vec<Tensor> = [x].into_iter().chain(weight).collect();
        Ok(self.add(RmsNorm { rule }, &inputs)?[0])
    }
}

params! {
    struct RmsNormParams { rows: u32, length: u32, epsilon: f32 }
}

impl Op for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let expected = 1 + usize::from(self.rule.has_weight);
        if inputs.len() != expected {
            let message = format!("takes {expected} tensors with these options, got {}", inputs.len());
            return Err(Error::shape("rms_norm", message));
        }
        let x = &inputs[0];
        if x.rank() == 0 || !x.dtype.is_device_float() {
            return Err(Error::shape("rms_norm", format!("takes f32 or f16 of rank 1 or more, got {x}")));
        }
        self.rule.check("rms_norm", inputs.get(1), x.row_length())?;
        Ok(vec![x.clone()])
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        let x = inputs[0].to_f64();
        let norm = Some((self.rule.epsilon, inputs.get(1).map(|weight| weight.to_f64())));
        let definition = RowDefinition { norm, ..RowDefinition::default() };
        let result = rows.compute(inputs[0].shape(), |row, out| {
            out.copy_from_slice(&definition.apply(&x[row * out.len()..(row + 1) * out.len()], 0));
        });
        vec![result]
    }

    /// Four operations for each element: square, sum, factor, weight.
    fn cost(&self, inputs: &[TensorDesc]) -> Cost {
        Cost::once(4 * inputs[0].len() as u64, inputs, &inputs[..1])
    }

    fn updates(&self) -> &'static [Update] {
        &[]
    }

    fn check(&self, _: &[TensorDesc], _: &[Option<&HostTensor>]) -> Result<()> {
        Ok(())
    }

    fn techniques(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Vec<Technique> {
        match capabilities.backend {
            Backend::Cpu => self.native(&inputs[0]),
            Backend::Gpu => {
                let launches = [self.held(inputs, capabilities), self.row(inputs, capabilities)];
                launches.into_iter().flatten().map(Technique::Gpu).collect()
            }
        }
    }
}

impl RmsNorm {
    fn native(&self, x: &TensorDesc) -> Vec<Technique> {
        let (length, rule) = (x.row_length(), self.rule);
        let run = move |inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]| {
            let norm = rule.native(inputs.get(1));
            rms_norm(Elements::of(&inputs[0]), length, norm, ElementsMut::of(&mut outputs[0]));
        };
        vec![Technique::Cpu(CpuKernel { name: "rms_norm_native", run: Arc::new(run) })]
    }

    fn held(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Option<Launch> {
        let (x, row) = (&inputs[0], self.row(inputs, capabilities)?);
        let held = HeldRows::new(x.rows(), x.row_length(), capabilities)?;
        let mut constants = vec![("Elem", Constant::Scalar(x.dtype))];
        constants.extend(inputs.get(1).map(|weight| ("Weight", Constant::Scalar(weight.dtype))));
        let weight = if self.rule.has_weight { WEIGHT_DENSE } else { WEIGHT_NONE };
        let shader = held.shader(HELD, Held::AsRead, vec![weight], constants);
        Some(Launch { shader, workgroups: held.workgroups(capabilities), ..row })
    }

    fn row(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Option<Launch> {
        let x = &inputs[0];
        let lacks_f16 = inputs.iter().any(|input| input.dtype == Dtype::F16) && !capabilities.f16;
        if lacks_f16 || !capabilities.completes(row_rounds(x.row_length())) {
            return None;
        }
        let (libraries, mut constants) = norm_parts(Some(inputs.get(1).map(|weight| weight.dtype)));
        let lanes = if x.row_length() <= 256 { 64 } else { 256 };
        constants.extend([("LANES", Constant::U32(lanes)), ("Elem", Constant::Scalar(x.dtype))]);
        let shader = Shader { main: ROW, libraries, constants };
        let params = RmsNormParams { rows: index(x.rows()), length: index(x.row_length()), epsilon: self.rule.epsilon };
        let workgroups = if x.is_empty() { [0; 3] } else { fold(x.rows(), capabilities) };
        let mut bindings = Bindings::in_order(1, 1);
        bindings.inputs.extend(self.rule.has_weight.then_some(WEIGHT_BINDING));
        Some(Launch { shader, params: params.into(), workgroups, bindings })
    }
}

/// Row lengths around what teams of 1 to 512 lanes hold and what they load, a long row, large and small magnitudes,
/// zero sizes, more than 65,535 rows.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [Dtype::F32, Dtype::F16] {
        for length in EDGES {
            cases.push(case(&[3, length], dtype, Some(dtype), 1.0));
        }
        // Rows of several teams, the last workgroup not full.
        for (rows, length) in [(67, 3), (67, 4), (19, 33), (19, 64), (9, 250), (5, 500)] {
            cases.push(case(&[rows, length], dtype, Some(Dtype::F32), 1.0));
        }
        cases.push(case(&[2, 3, 80], dtype, None, 1.0));
        cases.push(case(&[2, 3, 80], dtype, None, 100.0));
        cases.push(case(&[2, 3, 80], dtype, Some(dtype), 0.01));
        cases.push(case(&[2, 20_011], dtype, Some(dtype), 1.0));
        cases.push(case(&[0, 5], dtype, Some(dtype), 1.0));
        cases.push(case(&[5, 0], dtype, Some(dtype), 1.0));
    }
    cases.push(case(&[2, 70], Dtype::F16, Some(Dtype::F32), 1.0));
    cases.push(case(&[2, 70], Dtype::F32, Some(Dtype::F16), 1.0));
    cases.push(case(&[66_000, 3], Dtype::F32, Some(Dtype::F32), 1.0));
    cases
}

fn case(shape: &[usize], dtype: Dtype, weight: Option<Dtype>, deviation: f32) -> Case {
    let length = shape[shape.len() - 1];
    let rule = NormRule { epsilon: 1e-5, has_weight: weight.is_some() };
    let mut inputs = vec![CaseInput::normal(dtype, shape, deviation)];
    inputs.extend(weight.map(|weight| CaseInput::normal(weight, &[length], 1.0)));
    let weight = weight.map_or("none".into(), |weight| weight.to_string());
    let name = format!("{dtype} {shape:?} of {deviation}, weight {weight}");
    // Squares of one sign: of √length roundings half remain under the root. The root, the quotient and the products are
    // rounded; lavapipe's inverseSqrt is good to about 2 in the last place.
    let storage = if dtype == Dtype::F16 { EPSILON_F16 } else { 0.0 };
    let tolerance = Tolerance::of_scale((8.0 + (length as f64).sqrt()) * EPSILON_F32 + storage);
    Case::new(name, RmsNorm { rule }, inputs, tolerance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_by_hand() {
        let x = HostTensor::f32(&[2, 2], vec![3.0, 4.0, 0.0, 0.0]).unwrap();
        let weight = HostTensor::f32(&[2], vec![1.0, 2.0]).unwrap();
        let op = RmsNorm { rule: NormRule { epsilon: 0.5, has_weight: true } };
        let out = op.reference(&[&x, &weight], Rows::All).remove(0);
        let root = 13.0_f64.sqrt();
        assert_eq!(out.as_f64().unwrap(), [3.0 / root, 8.0 / root, 0.0, 0.0]);
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let desc = |shape: &[usize]| TensorDesc::new(Dtype::F32, shape);
        let refused = |inputs: &[TensorDesc], epsilon, part: &str| {
            let rule = NormRule { epsilon, has_weight: true };
            let error = RmsNorm { rule }.outputs(inputs).unwrap_err().to_string();
            assert!(error.starts_with("rms_norm: ") && error.contains(part), "{error}");
        };
        refused(&[desc(&[2])], 0.0, "takes 2 tensors with these options, got 1");
        refused(&[desc(&[2, 3]), desc(&[2])], 0.0, "weight is f32 [2], it must be f32 or f16 [3]");
        refused(&[desc(&[]), desc(&[1])], 0.0, "rank 1 or more, got f32 []");
        refused(&[desc(&[2, 3]), desc(&[3])], -1.0, "epsilon is -1");
    }
}
