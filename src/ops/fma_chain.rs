//! `fma_chain`: each element after many multiply-adds, `x = x · factor + addend`. What a device can compute at most is measured
//! with it: all its data are in registers.
//!
//! Techniques: `fma_chain_lanes` (twelve elements per lane), `fma_chain_native`.
//!
//! How many chains a lane needs depends on how long a multiply-add takes, and how many it can have on its registers: on Mesa 26's
//! software device (two cores that reach 232 GFLOP/s by vectors of the host's) 8 chains reached 136 to 140 GFLOP/s, 10 reached 163, 12
//! 172 to 192, 13 173 to 185, and 14, 16 and 24 were spilled, 47 to 52. With 8 steps in the loop's body 12 chains reached 155, with 16
//! 171, with 64 as much as with 32, with 128 some 165. `x * factor + addend` in place of `fma` is the same.

use std::sync::Arc;

use super::{EPSILON_F16, EPSILON_F32};
use crate::capabilities::{Backend, Capabilities};
use crate::case::{Case, CaseInput};
use crate::compare::Tolerance;
use crate::cpu::kernels::args::{Elements, ElementsMut};
use crate::cpu::kernels::fma_chain::{Chain, fma_chain};
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::op::{Bindings, Cost, CpuKernel, Launch, Op, Rows, Technique, Update, fold, index};
use crate::shader::{Constant, Shader, Source, params, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc, View, ViewMut};

const LANES: Source = wgsl!("fma_chain_lanes");
/// Elements of a workgroup: 64 lanes, twelve each.
const PER_WORKGROUP: usize = 768;

/// Every element after `steps` multiply-adds, in the storage type on a GPU, in f32 on the host.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FmaChain {
    /// How many.
    pub steps: u32,
    /// Multiplies.
    pub factor: f32,
    /// Is added.
    pub addend: f32,
}

impl Graph {
    /// Adds an [`FmaChain`], in the shape and dtype of `x`.
    ///
    /// # Errors
    /// A dtype other than f32 and f16; a factor or addend that is not finite.
    pub fn fma_chain(&mut self, x: Tensor, chain: FmaChain) -> Result<Tensor> {
        Ok(self.add(chain, &[x])?[0])
    }
}

params! {
    struct FmaChainParams { count: u32, steps: u32, factor: f32, addend: f32 }
}

impl Op for FmaChain {
    fn name(&self) -> &'static str {
        "fma_chain"
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        for (name, value) in [("factor", self.factor), ("addend", self.addend)] {
            if !value.is_finite() {
                return Err(Error::option("fma_chain", format!("the {name} is {value}, it must be finite")));
            }
        }
        match inputs {
            [x] if matches!(x.dtype, Dtype::F32 | Dtype::F16) => Ok(vec![x.clone()]),
            [x] => Err(Error::shape("fma_chain", format!("takes f32 or f16, got {x}"))),
            _ => Err(Error::shape("fma_chain", format!("takes one tensor, got {}", inputs.len()))),
        }
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        let x = inputs[0].to_f64();
        vec![rows.compute(inputs[0].shape(), |row, out| {
            let start = row * out.len();
            for (column, y) in out.iter_mut().enumerate() {
                *y = x[start + column];
                for _ in 0..self.steps {
                    *y = *y * f64::from(self.factor) + f64::from(self.addend);
                }
            }
        })]
    }

    /// Two operations for each step and element.
    fn cost(&self, inputs: &[TensorDesc]) -> Cost {
        Cost::once(2 * u64::from(self.steps) * inputs[0].len() as u64, inputs, inputs)
    }

    fn updates(&self) -> &'static [Update] {
        &[]
    }

    fn check(&self, _: &[TensorDesc], _: &[Option<&HostTensor>]) -> Result<()> {
        Ok(())
    }

    fn techniques(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Vec<Technique> {
        match capabilities.backend {
            Backend::Cpu => self.native(),
            Backend::Gpu if !capabilities.has_types(inputs) => Vec::new(),
            Backend::Gpu => vec![Technique::Gpu(self.lanes(&inputs[0], capabilities))],
        }
    }
}

impl FmaChain {
    fn native(&self) -> Vec<Technique> {
        let chain = Chain { steps: self.steps, factor: self.factor, addend: self.addend };
        let run = move |inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]| {
            fma_chain(Elements::of(&inputs[0]), chain, ElementsMut::of(&mut outputs[0]));
        };
        vec![Technique::Cpu(CpuKernel { name: "fma_chain_native", run: Arc::new(run) })]
    }

    fn lanes(&self, x: &TensorDesc, capabilities: &Capabilities) -> Launch {
        let Self { steps, factor, addend } = *self;
        let constants = vec![("Elem", Constant::Scalar(x.dtype))];
        Launch {
            shader: Shader { main: LANES, libraries: Vec::new(), constants },
            params: FmaChainParams { count: index(x.len()), steps, factor, addend }.into(),
            workgroups: fold(x.len().div_ceil(PER_WORKGROUP), capabilities),
            bindings: Bindings::in_order(1, 1),
        }
    }
}

/// No step, a loop's body and its rest; ends within a lane's elements; nothing.
pub(super) fn cases() -> Vec<Case> {
    let case = |dtype: Dtype, shape: &[usize], steps: u32| {
        let op = FmaChain { steps, factor: 0.75, addend: 0.5 };
        let name = format!("{dtype} {shape:?}, {steps} steps");
        Case::new(name, op, vec![CaseInput::normal(dtype, shape, 3.0)], tolerance(dtype))
    };
    let mut cases = Vec::new();
    for dtype in [Dtype::F32, Dtype::F16] {
        cases.extend([0, 1, 31, 32, 65, 100].map(|steps| case(dtype, &[3, 171], steps)));
        cases.extend([&[1][..], &[767], &[769], &[2, 0], &[5, 1031]].map(|shape| case(dtype, shape, 35)));
    }
    cases
}

/// Each step rounds by one ε of the largest, twice where multiplication and addition round apart, and a factor of 3/4 leaves four
/// times that.
fn tolerance(dtype: Dtype) -> Tolerance {
    Tolerance::of_scale(8.0 * if dtype == Dtype::F16 { EPSILON_F16 } else { EPSILON_F32 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_by_hand() {
        let x = HostTensor::f32(&[2], vec![4.0, -2.0]).unwrap();
        let op = FmaChain { steps: 2, factor: 0.5, addend: 1.0 };
        assert_eq!(op.reference(&[&x], Rows::All)[0].as_f64().unwrap(), [2.5, 1.0]);
        assert_eq!(op.cost(&[x.desc().clone()]), Cost { flops: 8, read: 8, written: 8 });
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let op = FmaChain { steps: 1, factor: 1.0, addend: 0.0 };
        let error = op.outputs(&[TensorDesc::new(Dtype::U32, [2])]).unwrap_err();
        assert_eq!(error.to_string(), "fma_chain: takes f32 or f16, got u32 [2]");
        let error = FmaChain { factor: f32::NAN, ..op }.outputs(&[TensorDesc::new(Dtype::F32, [2])]).unwrap_err();
        assert!(error.to_string().contains("the factor is NaN"), "{error}");
    }
}
