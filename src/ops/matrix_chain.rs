//! `matrix_chain`: small products that are added up many times. What a device's cooperative matrices can do at most is measured with
//! it: all its data are in registers.
//!
//! Techniques: `matrix_chain_coop` (a group per subgroup), `matrix_chain_each` (an element per lane), `matrix_chain_native`.

use std::sync::Arc;

use half::f16;
use rayon::prelude::*;

use super::{MATRICES_8, MATRICES_16};
use crate::capabilities::{Backend, Capabilities};
use crate::case::{Case, CaseInput, Values};
use crate::compare::Tolerance;
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::op::{Bindings, Cost, CpuKernel, Launch, Op, Rows, Technique, Update, fold, index};
use crate::shader::{Constant, Params, Shader, Source, params, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc, View, ViewMut};

const COOP: Source = wgsl!("matrix_chain_coop");
const EACH: Source = wgsl!("matrix_chain_each");

/// Left factors, as in the shaders.
const CHAINS: usize = 8;
/// Subgroups of a workgroup, as in the shader.
const SUBGROUPS: u32 = 4;

/// `groups` times the same: `steps` times the sum of eight products `a[c] · b` of square matrices, f16 factors and f32 sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatrixChain {
    /// Results.
    pub groups: usize,
    /// How often each product is added.
    pub steps: u32,
}

impl Graph {
    /// Adds a [`MatrixChain`]: `a` is `[8, edge, edge]`, `b` `[edge, edge]`, both f16; the result is `[groups, edge, edge]`, f32.
    ///
    /// # Errors
    /// Other shapes or dtypes.
    pub fn matrix_chain(&mut self, a: Tensor, b: Tensor, chain: MatrixChain) -> Result<Tensor> {
        Ok(self.add(chain, &[a, b])?[0])
    }
}

params! {
    struct CoopParams { groups: u32, steps: u32 }
}

params! {
    struct EachParams { groups: u32, steps: u32, edge: u32 }
}

impl Op for MatrixChain {
    fn name(&self) -> &'static str {
        "matrix_chain"
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let fail = |message: String| Err(Error::shape("matrix_chain", message));
        let [a, b] = inputs else { return fail(format!("takes two tensors, got {}", inputs.len())) };
        match (&a.shape[..], &b.shape[..]) {
            ([CHAINS, rows, columns], [edge, width])
                if [rows, columns, width] == [edge; 3] && [a.dtype, b.dtype] == [Dtype::F16; 2] =>
            {
                Ok(vec![TensorDesc::new(Dtype::F32, [self.groups, *edge, *edge])])
            }
            _ => fail(format!("takes f16 [{CHAINS}, edge, edge] and f16 [edge, edge], got {a} and {b}")),
        }
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        let (a, b) = (inputs[0].to_f64(), inputs[1].to_f64());
        let edge = inputs[1].shape()[0];
        vec![rows.compute(&[self.groups, edge, edge], |row, out| {
            for (column, y) in out.iter_mut().enumerate() {
                let product = |chain: usize| -> f64 {
                    (0..edge).map(|k| a[(chain * edge + row % edge) * edge + k] * b[k * edge + column]).sum()
                };
                *y = f64::from(self.steps) * (0..8).map(product).sum::<f64>();
            }
        })]
    }

    /// Two operations for each multiplication of each product.
    fn cost(&self, inputs: &[TensorDesc]) -> Cost {
        let edge = inputs[1].shape[0];
        let each = 2 * CHAINS * edge * edge * edge;
        let output = [TensorDesc::new(Dtype::F32, [self.groups, edge, edge])];
        Cost::once(u64::from(self.steps) * (self.groups * each) as u64, inputs, &output)
    }

    fn updates(&self) -> &'static [Update] {
        &[]
    }

    fn check(&self, _: &[TensorDesc], _: &[Option<&HostTensor>]) -> Result<()> {
        Ok(())
    }

    fn techniques(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Vec<Technique> {
        let edge = inputs[1].shape[0];
        match capabilities.backend {
            Backend::Cpu => self.native(edge),
            Backend::Gpu if !capabilities.f16 => Vec::new(),
            Backend::Gpu => {
                let each = Some(self.each(edge, capabilities));
                self.coop(edge, capabilities).into_iter().chain(each).map(Technique::Gpu).collect()
            }
        }
    }
}

impl MatrixChain {
    fn native(&self, edge: usize) -> Vec<Technique> {
        let steps = self.steps;
        let run = move |inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]| {
            let wide = |view: &View<'_>| -> Vec<f32> {
                bytemuck::pod_collect_to_vec::<u8, f16>(view.bytes).iter().map(|x| x.to_f32()).collect()
            };
            let (a, b) = (wide(&inputs[0]), wide(&inputs[1]));
            let y: &mut [f32] = bytemuck::cast_slice_mut(outputs[0].bytes);
            y.par_chunks_mut((edge * edge).max(1)).for_each(|y| {
                y.fill(0.0);
                for left in (0..steps).flat_map(|_| a.chunks_exact(edge * edge)) {
                    for (row, y) in left.chunks_exact(edge).zip(y.chunks_exact_mut(edge)) {
                        for (&x, b) in row.iter().zip(b.chunks_exact(edge)) {
                            y.iter_mut().zip(b).for_each(|(y, &b)| *y += x * b);
                        }
                    }
                }
            });
        };
        vec![Technique::Cpu(CpuKernel { name: "matrix_chain_native", run: Arc::new(run) })]
    }

    fn coop(&self, edge: usize, capabilities: &Capabilities) -> Option<Launch> {
        let (_, largest) = capabilities.subgroups?;
        let lanes = SUBGROUPS * largest;
        if capabilities.matrix_edge()? as usize != edge || lanes > capabilities.invocations {
            return None;
        }
        let matrices = if edge == 16 { MATRICES_16 } else { MATRICES_8 };
        let constants = vec![("LANES", Constant::U32(lanes))];
        let shader = Shader { main: COOP, libraries: vec![matrices], constants };
        let params = CoopParams { groups: index(self.groups), steps: self.steps };
        Some(self.launch(shader, params.into(), self.groups.div_ceil(SUBGROUPS as usize), capabilities))
    }

    fn each(&self, edge: usize, capabilities: &Capabilities) -> Launch {
        let constants = vec![("Elem", Constant::Scalar(Dtype::F16))];
        let shader = Shader { main: EACH, libraries: Vec::new(), constants };
        let params = EachParams { groups: index(self.groups), steps: self.steps, edge: index(edge) };
        self.launch(shader, params.into(), (self.groups * edge * edge).div_ceil(64), capabilities)
    }

    fn launch(&self, shader: Shader, params: Params, workgroups: usize, capabilities: &Capabilities) -> Launch {
        Launch { shader, params, workgroups: fold(workgroups, capabilities), bindings: Bindings::in_order(2, 1) }
    }
}

/// Small whole numbers, whose products and sums are exact.
pub(crate) fn factor(shape: &[usize], seed: usize) -> CaseInput {
    let data = (0..shape.iter().product()).map(|at: usize| f16::from_f32((at * 7919 + seed) as f32 % 5.0 - 2.0));
    let tensor = HostTensor::f16(shape, data.collect()).expect("one for each");
    CaseInput { desc: tensor.desc().clone(), values: Values::Given(tensor) }
}

/// Both sizes of cooperative matrices, one that no device has, groups that do not fill a workgroup, none at all.
pub(super) fn cases() -> Vec<Case> {
    let case = |edge: usize, groups: usize, steps: u32| {
        let inputs = vec![factor(&[CHAINS, edge, edge], 3), factor(&[edge, edge], 1)];
        let name = format!("edge {edge}, {groups} groups, {steps} steps");
        Case::new(name, MatrixChain { groups, steps }, inputs, Tolerance::of_scale(0.0))
    };
    vec![case(8, 1, 1), case(8, 9, 5), case(16, 1, 1), case(16, 6, 17), case(3, 2, 2), case(16, 2, 0), case(16, 0, 1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_by_hand() {
        let a = HostTensor::f16(&[8, 1, 1], (1..=8).map(|x| f16::from_f32(x as f32)).collect()).unwrap();
        let b = HostTensor::f16(&[1, 1], vec![f16::from_f32(2.0)]).unwrap();
        let op = MatrixChain { groups: 2, steps: 3 };
        assert_eq!(op.reference(&[&a, &b], Rows::All)[0].as_f64().unwrap(), [216.0, 216.0]);
        assert_eq!(op.cost(&[a.desc().clone(), b.desc().clone()]).flops, 2 * 3 * 16);
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let desc = |dtype, shape: &[usize]| TensorDesc::new(dtype, shape);
        let error = MatrixChain { groups: 1, steps: 1 }
            .outputs(&[desc(Dtype::F16, &[8, 4, 3]), desc(Dtype::F16, &[4, 4])])
            .unwrap_err();
        assert!(error.to_string().contains("got f16 [8, 4, 3] and f16 [4, 4]"), "{error}");
    }
}
