//! `dequantize`: signed 8-bit levels with a scale for each row into floats.
//!
//! Techniques: `dequantize_each` (one lane per word of levels), `dequantize_native`.

use std::sync::Arc;

use crate::capabilities::{Backend, Capabilities};
use crate::case::{Case, CaseInput, Values};
use crate::compare::Tolerance;
use crate::cpu::kernels::args::ElementsMut;
use crate::cpu::kernels::quantise::dequantise;
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::op::{Bindings, Cost, CpuKernel, Launch, Op, Rows, Technique, Update, fold, index};
use crate::ops::{EPSILON_F16, EPSILON_F32, INT8};
use crate::shader::{Constant, Shader, Source, params, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc, View, ViewMut};

const EACH: Source = wgsl!("dequantize_each");

/// Levels `[.., width]` times scales `[..]`: what [`Quantize`](crate::ops::Quantize) made of a tensor, but for rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dequantize {
    /// Dtype of the result, f32 or f16.
    pub dtype: Dtype,
}

impl Graph {
    /// Adds [`Dequantize`]: i8 levels and the f32 scales of their rows into f32 or f16.
    ///
    /// # Errors
    /// Other dtypes, or scales that are not of the levels' shape without its last axis.
    pub fn dequantize(&mut self, levels: Tensor, scales: Tensor, dtype: Dtype) -> Result<Tensor> {
        Ok(self.add(Dequantize { dtype }, &[levels, scales])?[0])
    }
}

params! {
    struct DequantizeParams { count: u32, width: u32 }
}

impl Op for Dequantize {
    fn name(&self) -> &'static str {
        "dequantize"
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let fail = |message: String| Err(Error::shape("dequantize", message));
        let [levels, scales] = inputs else { return fail(format!("takes two tensors, got {}", inputs.len())) };
        if levels.dtype != Dtype::I8 || levels.rank() == 0 || !self.dtype.is_device_float() {
            return fail(format!("takes i8 with rows into f32 or f16, got {levels} into {}", self.dtype));
        }
        if scales.dtype != Dtype::F32 || scales.shape != levels.shape[..levels.rank() - 1] {
            return fail(format!("the scales are {scales}, the levels {levels}; a row has one scale, f32"));
        }
        Ok(vec![TensorDesc::new(self.dtype, levels.shape.clone())])
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        let [levels, scales] = [0, 1].map(|tensor| inputs[tensor].to_f64());
        vec![rows.compute(inputs[0].shape(), |row, out| {
            let width = out.len();
            out.iter_mut().enumerate().for_each(|(d, out)| *out = levels[row * width + d] * scales[row]);
        })]
    }

    fn cost(&self, inputs: &[TensorDesc]) -> Cost {
        let output = TensorDesc::new(self.dtype, inputs[0].shape.clone());
        Cost::once(output.len() as u64, inputs, &[output])
    }

    fn updates(&self) -> &'static [Update] {
        &[]
    }

    fn check(&self, _: &[TensorDesc], _: &[Option<&HostTensor>]) -> Result<()> {
        Ok(())
    }

    fn techniques(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Vec<Technique> {
        match capabilities.backend {
            Backend::Cpu => native(),
            Backend::Gpu => self.each(&inputs[0], capabilities).map(Technique::Gpu).into_iter().collect(),
        }
    }
}

fn native() -> Vec<Technique> {
    let run = |inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]| {
        let (levels, scales) = (bytemuck::cast_slice(inputs[0].bytes), bytemuck::cast_slice(inputs[1].bytes));
        dequantise(levels, scales, ElementsMut::of(&mut outputs[0]));
    };
    vec![Technique::Cpu(CpuKernel { name: "dequantize_native", run: Arc::new(run) })]
}

impl Dequantize {
    fn each(&self, levels: &TensorDesc, capabilities: &Capabilities) -> Option<Launch> {
        let constants = vec![("Elem", Constant::Scalar(self.dtype))];
        let shader = Shader { main: EACH, libraries: vec![INT8], constants };
        if shader.needs_f16() && !capabilities.f16 {
            return None;
        }
        let params = DequantizeParams { count: index(levels.len()), width: index(levels.row_length()) };
        let workgroups = fold(levels.len().div_ceil(4 * 256), capabilities);
        Some(Launch { shader, params: params.into(), workgroups, bindings: Bindings::in_order(2, 1) })
    }
}

/// Widths that fill words and widths that do not, every level, both dtypes, zero sizes.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [Dtype::F32, Dtype::F16] {
        for shape in [&[1, 1][..], &[7], &[3, 5], &[2, 3, 7, 64], &[13, 129], &[5, 0], &[0, 8]] {
            let count = shape.iter().product::<usize>();
            let levels = HostTensor::i8(shape, (0..count).map(|at| (at * 89 % 256) as u8 as i8).collect());
            let levels = levels.expect("as many as the shape says");
            let levels = CaseInput { desc: levels.desc().clone(), values: Values::Given(levels) };
            let inputs = vec![levels, CaseInput::normal(Dtype::F32, &shape[..shape.len() - 1], 1.0)];
            // One product, rounded once, and in f16 once more, where the reference may round the other way.
            let rounded = if dtype == Dtype::F16 { 2.0 * EPSILON_F16 } else { 2.0 * EPSILON_F32 };
            let tolerance = Tolerance { of_scale: 0.0, relative: rounded, absolute: 0.0 };
            cases.push(Case::new(format!("{shape:?} into {dtype}"), Dequantize { dtype }, inputs, tolerance));
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_one_for_each_row() {
        let levels = TensorDesc::new(Dtype::I8, [2, 3]);
        let refused = Dequantize { dtype: Dtype::F32 }.outputs(&[levels, TensorDesc::new(Dtype::F32, [3])]);
        let message = "dequantize: the scales are f32 [3], the levels i8 [2, 3]; a row has one scale, f32";
        assert_eq!(refused.unwrap_err().to_string(), message);
    }
}
