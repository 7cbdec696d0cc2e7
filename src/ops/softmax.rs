//! `softmax`: scaled softmax along the last axis, with sinks.
//!
//! Techniques: `softmax_held` (rows up to 8,192 elements or more in registers, see `held_rows.rs`), `softmax_row`
//! (one workgroup per row of any length, two walks), `softmax_native`.

use std::sync::Arc;

use crate::capabilities::{Backend, Capabilities};
use crate::case::{Case, CaseInput, Values};
use crate::compare::Tolerance;
use crate::cpu::kernels::args::{Elements, ElementsMut};
use crate::cpu::kernels::softmax::{RowSinks, SoftmaxArgs, softmax};
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::op::{Bindings, Cost, CpuKernel, Launch, Op, Rows, Technique, Update, fold, index};
use crate::ops::held_rows::{EDGES, Held, HeldRows};
use crate::ops::sinks::{check_sinks, rows_of_a_head, sinks};
use crate::ops::{
    EPSILON_F16, EPSILON_F32, EXCLUDED, REDUCE_WORKGROUP, ROW_SUM, SINKS_BINDING, SINKS_DENSE, SINKS_NONE, row_rounds,
};
use crate::shader::{Constant, Shader, Source, params, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc, View, ViewMut};

const HELD: Source = wgsl!("softmax_held");
const ROW: Source = wgsl!("softmax_row");

/// `exp(scale · x) / (Σ exp(scale · x) + exp(sink))` along the last axis. A row of −inf only gives zeros.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Softmax {
    /// Multiplies every element first. Finite.
    pub scale: f32,
    /// There is a tensor of sinks, f32 `[heads]` for x `[.., heads, seq_q, seq_kv]`: one more score for every row of a head, which
    /// is not scaled and has no weight in the output; −inf for none.
    pub has_sinks: bool,
}

impl Graph {
    /// Adds [`Softmax`]: `[.., length]` into the same shape and dtype.
    ///
    /// # Errors
    /// A scale that is not finite, rank 0, a dtype other than f32 or f16.
    pub fn softmax(&mut self, x: Tensor, scale: f32) -> Result<Tensor> {
        Ok(self.add(Softmax { scale, has_sinks: false }, &[x])?[0])
    }

    /// Adds [`Softmax`] with sinks, f32 `[heads]`: `[.., heads, seq_q, seq_kv]` into the same shape and dtype.
    ///
    /// # Errors
    /// As [`Graph::softmax`]; rank below 3, sinks of another shape or dtype.
    pub fn softmax_with_sinks(&mut self, x: Tensor, scale: f32, sinks: Tensor) -> Result<Tensor> {
        Ok(self.add(Softmax { scale, has_sinks: true }, &[x, sinks])?[0])
    }
}

params! {
    struct SoftmaxParams { rows: u32, length: u32, scale: f32, heads: u32, seq_q: u32, excluded: f32 }
}

impl Op for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let (x, sinks) = match (inputs, self.has_sinks) {
            ([x], false) => (x, None),
            ([x, sinks], true) => (x, Some(sinks)),
            _ => {
                let expected = if self.has_sinks { "two tensors" } else { "one tensor" };
                return Err(Error::shape("softmax", format!("takes {expected}, got {}", inputs.len())));
            }
        };
        if x.rank() == 0 || !x.dtype.is_device_float() {
            return Err(Error::shape("softmax", format!("takes f32 or f16 of rank 1 or more, got {x}")));
        }
        if !self.scale.is_finite() {
            return Err(Error::option("softmax", format!("scale is {}, it must be finite", self.scale)));
        }
        if let Some(sinks) = sinks {
            check_sinks("softmax", sinks, x)?;
        }
        Ok(vec![x.clone()])
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        let x = inputs[0].to_f64();
        let sinks = inputs.get(1).map(|sinks| sinks.to_f64());
        let seq_q = if sinks.is_some() { inputs[0].shape()[inputs[0].shape().len() - 2] } else { 1 };
        let result = rows.compute(inputs[0].shape(), |row, out| {
            let sink = sinks.as_ref().map_or(f64::NEG_INFINITY, |sinks| sinks[row / seq_q % sinks.len()]);
            let scores: Vec<f64> =
                x[row * out.len()..(row + 1) * out.len()].iter().map(|x| x * f64::from(self.scale)).collect();
            let maximum = scores.iter().copied().fold(sink, f64::max);
            let weight = |s: f64| if s == f64::NEG_INFINITY { 0.0 } else { (s - maximum).exp() };
            out.iter_mut().zip(&scores).for_each(|(out, &score)| *out = weight(score));
            let sum = out.iter().sum::<f64>() + weight(sink);
            if sum != 0.0 {
                out.iter_mut().for_each(|out| *out /= sum);
            }
        });
        vec![result]
    }

    /// Five operations for each element: scale, maximum, difference with exponential, sum, division.
    fn cost(&self, inputs: &[TensorDesc]) -> Cost {
        Cost::once(5 * inputs[0].len() as u64, inputs, &inputs[..1])
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
                let launches = [self.held(&inputs[0], capabilities), self.row(&inputs[0], capabilities)];
                launches.into_iter().flatten().map(Technique::Gpu).collect()
            }
        }
    }
}

impl Softmax {
    fn native(&self, x: &TensorDesc) -> Vec<Technique> {
        let (row_length, scale, rows) = (x.row_length(), self.scale, rows_of_a_head(x)[1]);
        let run = move |inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]| {
            let sinks = inputs.get(1).map(|sinks| RowSinks { data: bytemuck::cast_slice(sinks.bytes), rows });
            let args = SoftmaxArgs { input: Elements::of(&inputs[0]), row_length, scale, sinks };
            softmax(&args, ElementsMut::of(&mut outputs[0]));
        };
        vec![Technique::Cpu(CpuKernel { name: "softmax_native", run: Arc::new(run) })]
    }

    fn held(&self, x: &TensorDesc, capabilities: &Capabilities) -> Option<Launch> {
        let row = self.row(x, capabilities)?;
        let held = HeldRows::new(x.rows(), x.row_length(), capabilities)?;
        let libraries = vec![EXCLUDED, self.sinks()];
        let shader = held.shader(HELD, Held::Changed, libraries, vec![("Elem", Constant::Scalar(x.dtype))]);
        Some(Launch { shader, workgroups: held.workgroups(capabilities), ..row })
    }

    fn sinks(&self) -> Source {
        if self.has_sinks { SINKS_DENSE } else { SINKS_NONE }
    }

    fn row(&self, x: &TensorDesc, capabilities: &Capabilities) -> Option<Launch> {
        if (x.dtype == Dtype::F16 && !capabilities.f16) || !capabilities.completes(row_rounds(x.row_length())) {
            return None;
        }
        let lanes = if x.row_length() <= 256 { 64 } else { 256 };
        let shader = Shader {
            main: ROW,
            libraries: vec![EXCLUDED, REDUCE_WORKGROUP, self.sinks(), ROW_SUM],
            constants: vec![("LANES", Constant::U32(lanes)), ("Elem", Constant::Scalar(x.dtype))],
        };
        let [heads, seq_q] = rows_of_a_head(x).map(index);
        let params = SoftmaxParams {
            rows: index(x.rows()),
            length: index(x.row_length()),
            scale: self.scale,
            heads,
            seq_q,
            excluded: f32::NEG_INFINITY,
        };
        let mut bindings = Bindings::in_order(1, 1);
        bindings.inputs.extend(self.has_sinks.then_some(SINKS_BINDING));
        let workgroups = if x.is_empty() { [0; 3] } else { fold(x.rows(), capabilities) };
        Some(Launch { shader, params: params.into(), workgroups, bindings })
    }
}

/// Row lengths around what teams of 1 to 512 lanes hold and what they load, up to over 100,000, large scores, rows of
/// −inf, more than 65,535 rows.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [Dtype::F32, Dtype::F16] {
        for length in EDGES {
            cases.push(case(dtype, &[3, length], 1.0, Values::Normal(1.0)));
        }
        // Rows of several teams, the last workgroup not full.
        for (rows, length) in [(67, 3), (67, 4), (19, 33), (19, 64), (9, 250), (5, 500)] {
            cases.push(case(dtype, &[rows, length], 1.0, Values::Normal(3.0)));
        }
        for deviation in [1e-3, 30.0, 1e4] {
            for length in [40, 64, 1100, 9000] {
                cases.push(case(dtype, &[5, length], 1.0, Values::Normal(deviation)));
            }
        }
        cases.push(case(dtype, &[6, 44], 1.0, Values::Bias { excluded: 0.9 }));
        cases.push(case(dtype, &[2, 3, 100], 0.125, Values::Normal(30.0)));
        cases.push(case(dtype, &[2, 33], -2.0, Values::Normal(1.0)));
        cases.push(case(dtype, &[4, 300], 1.0, Values::Bias { excluded: 0.5 }));
        cases.push(case(dtype, &[2, 70], 1.0, Values::Bias { excluded: 1.0 }));
        cases.push(case(dtype, &[2, 100_003], 1.0, Values::Normal(3.0)));
        cases.push(case(dtype, &[0, 5], 1.0, Values::Normal(1.0)));
        cases.push(case(dtype, &[5, 0], 1.0, Values::Normal(1.0)));
    }
    cases.push(case(Dtype::F32, &[66_000, 3], 1.0, Values::Normal(1.0)));
    for dtype in [Dtype::F32, Dtype::F16] {
        for (shape, values) in [([2, 3, 5, 70], Values::Normal(2.0)), ([1, 2, 4, 300], Values::Bias { excluded: 0.9 })]
        {
            cases.push(with_sinks(dtype, &shape, 0.5, values));
        }
        cases.push(with_sinks(dtype, &[4, 3, 41], 1.0, Values::Bias { excluded: 0.5 }));
        cases.push(with_sinks(dtype, &[3, 2, 40], 1.0, Values::Bias { excluded: 1.0 }));
        cases.push(with_sinks(dtype, &[2, 3, 0], 1.0, Values::Normal(1.0)));
    }
    cases
}

/// With a sink for each head: one of the scores' size, none, one that outweighs them.
fn with_sinks(dtype: Dtype, shape: &[usize], scale: f32, values: Values) -> Case {
    let Case { name, mut inputs, tolerance, .. } = case(dtype, shape, scale, values);
    inputs.push(sinks(shape[shape.len() - 3]));
    Case::new(name + " with sinks", Softmax { scale, has_sinks: true }, inputs, tolerance)
}

fn case(dtype: Dtype, shape: &[usize], scale: f32, values: Values) -> Case {
    let largest = match values {
        Values::Normal(deviation) => 5.0 * f64::from(deviation * scale).abs(),
        _ => 5.0,
    };
    // The scaled score is rounded, and so is its difference to the maximum: the exponential is off by as much, relatively.
    // exp itself and the sum take a few roundings more; lavapipe's exp is good to about 2 in the last place.
    let storage = if dtype == Dtype::F16 { EPSILON_F16 } else { 0.0 };
    let tolerance =
        Tolerance { of_scale: (2.0 * largest + 8.0) * EPSILON_F32 + storage, relative: 0.0, absolute: 1e-7 };
    let input = CaseInput { desc: TensorDesc::new(dtype, shape), values };
    Case::new(
        format!("{dtype} {shape:?} scale {scale} {:?}", input.values),
        Softmax { scale, has_sinks: false },
        vec![input],
        tolerance,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn softmax(scale: f32, x: &[f32]) -> Vec<f64> {
        let x = HostTensor::f32(&[x.len()], x.to_vec()).unwrap();
        Softmax { scale, has_sinks: false }.reference(&[&x], Rows::All)[0].as_f64().unwrap().to_vec()
    }

    #[test]
    fn reference_by_hand() {
        let weights = softmax(2.0, &[0.0, 0.5 * 3.0_f32.ln()]);
        assert!((weights[0] - 0.25).abs() < 1e-7 && (weights[1] - 0.75).abs() < 1e-7);
        assert_eq!(softmax(1.0, &[7.0]), [1.0]);
        assert_eq!(softmax(1.0, &[1e4, -1e4]), [1.0, 0.0]);
        assert_eq!(softmax(1.0, &[f32::NEG_INFINITY; 2]), [0.0, 0.0]);
        assert!(softmax(1.0, &[f32::NAN, 0.0])[1].is_nan());
    }

    #[test]
    fn a_sink_takes_its_share() {
        let x = HostTensor::f32(&[2, 2, 1], vec![0.0, f32::NEG_INFINITY, 0.0, 1.0]).unwrap();
        let sinks = HostTensor::f32(&[2], vec![3.0_f32.ln(), f32::NEG_INFINITY]).unwrap();
        let got = Softmax { scale: 1.0, has_sinks: true }.reference(&[&x, &sinks], Rows::All).remove(0);
        let got = got.as_f64().unwrap();
        assert!((got[0] - 0.25).abs() < 1e-7);
        assert_eq!(got[1..], [0.0, 1.0, 1.0]);
    }
}
