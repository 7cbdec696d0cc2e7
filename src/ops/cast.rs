//! `cast`: floats in another type, rounded to nearest even.
//!
//! Techniques: `cast_each` (one lane per two elements, a word of bf16), `cast_native`.

use std::sync::Arc;

use half::{bf16, f16};

use crate::capabilities::{Backend, Capabilities};
use crate::case::{Case, CaseInput, Values};
use crate::compare::Tolerance;
use crate::cpu::kernels::args::{Elements, ElementsMut};
use crate::cpu::kernels::convert::cast;
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::op::{Bindings, Cost, CpuKernel, Launch, Op, Rows, Technique, Update, fold, index};
use crate::ops::{BF16, EPSILON_F16, EXCLUDED};
use crate::shader::{Constant, Shader, Source, params, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc, View, ViewMut};

const EACH: Source = wgsl!("cast_each");
const X_PLAIN: Source = wgsl!("lib/x_plain");
const X_BF16: Source = wgsl!("lib/x_bf16");
const Y_PLAIN: Source = wgsl!("lib/y_plain");
const Y_BF16: Source = wgsl!("lib/y_bf16");

/// The same values as f32, f16 or bf16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cast {
    /// Dtype of the result.
    pub dtype: Dtype,
}

impl Graph {
    /// Adds [`Cast`]: any of f32, f16 and bf16 into any of them, rounded to nearest even.
    ///
    /// # Errors
    /// Another dtype on either side.
    pub fn cast(&mut self, x: Tensor, dtype: Dtype) -> Result<Tensor> {
        Ok(self.add(Cast { dtype }, &[x])?[0])
    }
}

params! {
    struct CastParams { count: u32 }
}

impl Op for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let fail = |message: String| Err(Error::shape("cast", message));
        let [x] = inputs else { return fail(format!("takes one tensor, got {}", inputs.len())) };
        if [x.dtype, self.dtype].iter().any(|dtype| !matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)) {
            return fail(format!("takes f32, f16 or bf16 into one of them, got {x} into {}", self.dtype));
        }
        Ok(vec![TensorDesc::new(self.dtype, x.shape.clone())])
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        let x = inputs[0].to_f64();
        vec![rows.compute(inputs[0].shape(), |row, out| {
            let start = row * out.len();
            out.copy_from_slice(&x[start..start + out.len()]);
        })]
    }

    fn cost(&self, inputs: &[TensorDesc]) -> Cost {
        Cost::once(0, inputs, &[TensorDesc::new(self.dtype, inputs[0].shape.clone())])
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
        cast(Elements::of(&inputs[0]), ElementsMut::of(&mut outputs[0]));
    };
    vec![Technique::Cpu(CpuKernel { name: "cast_native", run: Arc::new(run) })]
}

impl Cast {
    fn each(&self, x: &TensorDesc, capabilities: &Capabilities) -> Option<Launch> {
        let mut constants = Vec::new();
        let mut libraries = vec![EXCLUDED, BF16];
        match x.dtype {
            Dtype::BF16 => libraries.push(X_BF16),
            dtype => {
                libraries.push(X_PLAIN);
                constants.push(("XElem", Constant::Scalar(dtype)));
            }
        }
        match self.dtype {
            Dtype::BF16 => libraries.push(Y_BF16),
            dtype => {
                libraries.push(Y_PLAIN);
                constants.push(("YElem", Constant::Scalar(dtype)));
            }
        }
        let shader = Shader { main: EACH, libraries, constants };
        if shader.needs_f16() && !capabilities.f16 {
            return None;
        }
        let params = CastParams { count: index(x.len()) };
        let workgroups = fold(x.len().div_ceil(512), capabilities);
        Some(Launch { shader, params: params.into(), workgroups, bindings: Bindings::in_order(1, 1) })
    }
}

/// Every pair, odd counts, and every value of 16 bits that is a number: they must come out to the bit.
pub(super) fn cases() -> Vec<Case> {
    let floats = [Dtype::F32, Dtype::F16, Dtype::BF16];
    let mut cases = Vec::new();
    for from in floats {
        for to in floats {
            for shape in [&[1][..], &[3, 5, 7], &[2, 1024], &[0, 4]] {
                let input = CaseInput::normal(from, shape, 30.0);
                let name = format!("{from} {shape:?} into {to}");
                cases.push(Case::new(name, Cast { dtype: to }, vec![input], tolerance(to)));
            }
        }
        for to in [Dtype::F32, Dtype::BF16] {
            let tensor = numbers(from);
            let input = CaseInput { desc: tensor.desc().clone(), values: Values::Given(tensor) };
            let name = format!("{from} of every exponent into {to}");
            cases.push(Case::new(name, Cast { dtype: to }, vec![input], Tolerance::of_scale(0.0)));
        }
    }
    cases
}

/// Exact to the bit, but for f16, which a driver may round either way.
fn tolerance(to: Dtype) -> Tolerance {
    let relative = if to == Dtype::F16 { 2.0 * EPSILON_F16 } else { 0.0 };
    Tolerance { of_scale: 0.0, relative, absolute: 0.0 }
}

/// Numbers of every exponent, halves between two bf16 among them, without those that are subnormal in f16 or f32;
/// infinities and NaN.
fn numbers(dtype: Dtype) -> HostTensor {
    let bits = 0..=u16::MAX;
    match dtype {
        Dtype::F16 => {
            let halves: Vec<f16> = bits.map(f16::from_bits).filter(|x| x.is_normal() || !x.is_finite()).collect();
            HostTensor::f16(&[halves.len()], halves)
        }
        Dtype::BF16 => {
            let halves: Vec<bf16> = bits.map(bf16::from_bits).filter(|x| x.is_normal() || !x.is_finite()).collect();
            HostTensor::bf16(&[halves.len()], halves)
        }
        _ => {
            let lower = |x: u16| [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff][x as usize % 6];
            let floats = bits.map(|x| f32::from_bits(u32::from(x) << 16 | lower(x)));
            let floats: Vec<f32> = floats.filter(|x| x.is_normal() || !x.is_finite()).collect();
            HostTensor::f32(&[floats.len()], floats)
        }
    }
    .expect("the shape counts them")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_integers_on_either_side() {
        let desc = |dtype| TensorDesc::new(dtype, [2]);
        assert!(Cast { dtype: Dtype::F32 }.outputs(&[desc(Dtype::I8)]).is_err());
        assert!(Cast { dtype: Dtype::U32 }.outputs(&[desc(Dtype::F32)]).is_err());
    }
}
