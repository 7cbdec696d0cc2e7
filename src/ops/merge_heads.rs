//! `merge_heads`: `[batch, heads, seq, head_dim]` into `[batch, seq, heads × head_dim]`.
//!
//! Techniques: `merge_heads_each` (one lane per element), `merge_heads_native`.

use std::sync::Arc;

use crate::capabilities::{Backend, Capabilities};
use crate::case::{Case, CaseInput};
use crate::compare::Tolerance;
use crate::cpu::kernels::heads::{HeadsShape, merge_heads};
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::op::{Bindings, Cost, CpuKernel, Launch, Op, Rows, Technique, Update, fold, index};
use crate::shader::{Constant, Shader, Source, params, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc, View, ViewMut};

const EACH: Source = wgsl!("merge_heads_each");

/// Joins the heads' rows of each position; the inverse of [`SplitHeads`](crate::ops::SplitHeads).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MergeHeads;

impl Graph {
    /// Adds [`MergeHeads`]: `[batch, heads, seq, head_dim]` into `[batch, seq, heads × head_dim]`.
    ///
    /// # Errors
    /// Another rank.
    pub fn merge_heads(&mut self, x: Tensor) -> Result<Tensor> {
        Ok(self.add(MergeHeads, &[x])?[0])
    }
}

params! {
    struct MergeHeadsParams { count: u32, heads: u32, seq: u32, head_dim: u32 }
}

impl Op for MergeHeads {
    fn name(&self) -> &'static str {
        "merge_heads"
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let fail = |message: String| Err(Error::shape("merge_heads", message));
        let [x] = inputs else { return fail(format!("takes one tensor, got {}", inputs.len())) };
        let [batch, heads, seq, head_dim] = x.shape[..] else {
            return fail(format!("takes [batch, heads, seq, head_dim], got {x}"));
        };
        if !x.dtype.is_device_float() {
            return fail(format!("takes f32 or f16, got {x}"));
        }
        Ok(vec![TensorDesc::new(x.dtype, [batch, seq, heads * head_dim])])
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        let x = inputs[0].to_f64();
        let &[batch, heads, seq, head_dim] = inputs[0].shape() else { unreachable!("the graph accepted rank 4") };
        let result = rows.compute(&[batch, seq, heads * head_dim], |row, out| {
            for (at, out) in out.iter_mut().enumerate() {
                let (b, head, s, d) = (row / seq, at / head_dim, row % seq, at % head_dim);
                *out = x[((b * heads + head) * seq + s) * head_dim + d];
            }
        });
        vec![result]
    }

    fn cost(&self, inputs: &[TensorDesc]) -> Cost {
        Cost::once(0, inputs, inputs)
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
            Backend::Gpu => self.each(&inputs[0], capabilities).map(Technique::Gpu).into_iter().collect(),
        }
    }
}

impl MergeHeads {
    fn native(&self, x: &TensorDesc) -> Vec<Technique> {
        let [batch, seq, heads, head_dim] = [x.shape[0], x.shape[2], x.shape[1], x.shape[3]];
        let shape = HeadsShape { batch, seq, heads, row_bytes: head_dim * x.dtype.size() };
        let run = move |inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]| {
            merge_heads(shape, inputs[0].bytes, outputs[0].bytes);
        };
        vec![Technique::Cpu(CpuKernel { name: "merge_heads_native", run: Arc::new(run) })]
    }

    fn each(&self, x: &TensorDesc, capabilities: &Capabilities) -> Option<Launch> {
        if x.dtype == Dtype::F16 && !capabilities.f16 {
            return None;
        }
        let constants = vec![("Elem", Constant::Scalar(x.dtype))];
        let shader = Shader { main: EACH, libraries: Vec::new(), constants };
        let params = MergeHeadsParams {
            count: index(x.len()),
            heads: index(x.shape[1]),
            seq: index(x.shape[2]),
            head_dim: index(x.shape[3]),
        };
        let workgroups = fold(x.len().div_ceil(256), capabilities);
        Some(Launch { shader, params: params.into(), workgroups, bindings: Bindings::in_order(1, 1) })
    }
}

/// One element, primes, one head, many heads, an odd number of elements, zero sizes, both dtypes.
pub(super) fn cases() -> Vec<Case> {
    let shapes = [(1, 1, 1, 1), (2, 7, 3, 5), (3, 33, 1, 40), (1, 129, 10, 3), (2, 0, 4, 8), (2, 257, 5, 40)];
    let each = |dtype| {
        shapes.map(|(batch, seq, heads, head_dim)| {
            let input = CaseInput::normal(dtype, &[batch, heads, seq, head_dim], 1.0);
            let name = format!("{dtype} [{batch}, {heads}, {seq}, {head_dim}]");
            Case::new(name, MergeHeads, vec![input], Tolerance::of_scale(0.0))
        })
    };
    [Dtype::F32, Dtype::F16].into_iter().flat_map(each).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_by_hand() {
        let x = HostTensor::f32(&[1, 2, 2, 2], (0..8).map(|x| x as f32).collect()).unwrap();
        let out = MergeHeads.reference(&[&x], Rows::All).remove(0);
        assert_eq!(
            (out.shape(), out.as_f64().unwrap()),
            (&[1, 2, 4][..], &[0.0, 1.0, 4.0, 5.0, 2.0, 3.0, 6.0, 7.0][..])
        );
    }
}
