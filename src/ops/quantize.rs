//! `quantize`: rows of floats as signed 8-bit levels with a scale each.
//!
//! Techniques: `quantize_rows` (a workgroup per four rows), `quantize_native`.

use std::sync::Arc;

use crate::capabilities::{Backend, Capabilities};
use crate::case::{Case, CaseInput, Values};
use crate::compare::Tolerance;
use crate::cpu::kernels::args::Elements;
use crate::cpu::kernels::quantise::quantise;
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::op::{Bindings, Cost, CpuKernel, Launch, Op, Rows, Technique, Update, fold, index};
use crate::ops::{EPSILON_F32, EXCLUDED, REDUCE_WORKGROUP};
use crate::shader::{Constant, Shader, Source, params, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc, View, ViewMut};

const ROWS: Source = wgsl!("quantize_rows");

/// Rows of a workgroup, as in the shader.
const ROWS_EACH: usize = 4;

/// Levels i8 of the same shape, and scales f32 of the shape without the last axis: `x ≈ level × scale` of its row.
///
/// The scale is `max |x| / 127`, and levels are rounded to nearest even. A row of zeros has scale 0 and levels 0; one that
/// holds an infinity or NaN has scale infinity and levels 0, which read as NaN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantize;

impl Graph {
    /// Adds [`Quantize`] of f32 or f16: levels and scales, as a cache of keys or values keeps them.
    ///
    /// # Errors
    /// Another dtype, or rank 0.
    pub fn quantize(&mut self, x: Tensor) -> Result<[Tensor; 2]> {
        let outputs = self.add(Quantize, &[x])?;
        Ok([outputs[0], outputs[1]])
    }
}

params! {
    struct QuantizeParams { rows: u32, width: u32, infinity: f32 }
}

impl Op for Quantize {
    fn name(&self) -> &'static str {
        "quantize"
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let fail = |message: String| Err(Error::shape("quantize", message));
        let [x] = inputs else { return fail(format!("takes one tensor, got {}", inputs.len())) };
        if !x.dtype.is_device_float() || x.rank() == 0 {
            return fail(format!("takes f32 or f16 with rows, got {x}"));
        }
        let rows = &x.shape[..x.rank() - 1];
        Ok(vec![TensorDesc::new(Dtype::I8, x.shape.clone()), TensorDesc::new(Dtype::F32, rows)])
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        let x = inputs[0].to_f64();
        let shape = inputs[0].shape();
        let width = shape[shape.len() - 1];
        let scale = |row: usize| {
            let row = &x[row * width..(row + 1) * width];
            match row.iter().all(|x| x.is_finite()) {
                true => row.iter().fold(0.0_f64, |largest, x| largest.max(x.abs())) / 127.0,
                false => f64::INFINITY,
            }
        };
        let levels = rows.compute(shape, |row, out| {
            let scale = scale(row);
            for (d, out) in out.iter_mut().enumerate() {
                let level = (x[row * width + d] / scale).round_ties_even().clamp(-127.0, 127.0);
                *out = if scale == 0.0 || scale.is_infinite() { 0.0 } else { level };
            }
        });
        let scales = rows.compute(&shape[..shape.len() - 1], |row, out| {
            let length = out.len();
            out.iter_mut().enumerate().for_each(|(at, out)| *out = scale(row * length + at));
        });
        vec![levels, scales]
    }

    /// A comparison and a division for each element.
    fn cost(&self, inputs: &[TensorDesc]) -> Cost {
        Cost::once(2 * inputs[0].len() as u64, inputs, &self.outputs(inputs).unwrap_or_default())
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
            Backend::Gpu => rows(&inputs[0], capabilities).map(Technique::Gpu).into_iter().collect(),
        }
    }
}

fn native() -> Vec<Technique> {
    let run = |inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]| {
        let [levels, scales] = outputs else { unreachable!("the op has two outputs") };
        let (levels, scales) = (bytemuck::cast_slice_mut(levels.bytes), bytemuck::cast_slice_mut(scales.bytes));
        quantise(Elements::of(&inputs[0]), levels, scales);
    };
    vec![Technique::Cpu(CpuKernel { name: "quantize_native", run: Arc::new(run) })]
}

fn rows(x: &TensorDesc, capabilities: &Capabilities) -> Option<Launch> {
    let constants = vec![("Elem", Constant::Scalar(x.dtype))];
    let shader = Shader { main: ROWS, libraries: vec![EXCLUDED, REDUCE_WORKGROUP], constants };
    if shader.needs_f16() && !capabilities.f16 {
        return None;
    }
    let params = QuantizeParams { rows: index(x.rows()), width: index(x.row_length()), infinity: f32::INFINITY };
    let workgroups = fold(x.rows().div_ceil(ROWS_EACH), capabilities);
    Some(Launch { shader, params: params.into(), workgroups, bindings: Bindings::in_order(1, 2) })
}

/// Widths that fill words and widths that do not, numbers of rows that four does not divide, rows of zeros and of NaN.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [Dtype::F32, Dtype::F16] {
        for shape in [&[1, 1][..], &[7], &[3, 5], &[2, 3, 7, 64], &[13, 129], &[5, 0], &[0, 8], &[70_000, 3]] {
            let tensor = unambiguous(shape).cast(dtype);
            let input = CaseInput { desc: tensor.desc().clone(), values: Values::Given(tensor) };
            // The largest magnitude is exact, and a quotient is off by 2.5 roundings in WGSL; levels are far from a tie.
            let tolerance = Tolerance { of_scale: 0.0, relative: 6.0 * EPSILON_F32, absolute: 0.0 };
            cases.push(Case::new(format!("{dtype} {shape:?}"), Quantize, vec![input], tolerance));
        }
    }
    cases
}

/// Rows whose largest magnitude is 127 steps, and whose other elements are within a third of a whole number of them.
fn unambiguous(shape: &[usize]) -> HostTensor {
    let (count, width) = (shape.iter().product::<usize>(), shape[shape.len() - 1].max(1));
    let element = |at: usize| {
        let (row, d) = (at / width, at % width);
        let steps = match d {
            _ if row % 6 == 4 => 0.0,
            0 if row % 9 == 8 => return f32::NAN,
            0 if row % 2 == 0 => -127.0,
            0 => 127.0,
            _ => ((at * 89) % 253) as f32 - 126.0 + [0.0, 0.25, -0.3][at % 3],
        };
        steps * [1.0 / 64.0, 1.0 / 3.0, 0.01][row % 3]
    };
    HostTensor::f32(shape, (0..count).map(element).collect()).expect("as many as the shape says")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_by_hand() {
        let x = HostTensor::f32(&[2, 3], vec![-254.0, 5.0, 7.0, 0.0, 0.0, 0.0]).unwrap();
        let [levels, scales] = &Quantize.reference(&[&x], Rows::All)[..] else { panic!("two outputs") };
        assert_eq!(levels.as_f64().unwrap(), [-127.0, 2.0, 4.0, 0.0, 0.0, 0.0]);
        assert_eq!(scales.as_f64().unwrap(), [2.0, 0.0]);
    }
}
