//! `split_heads`: `[batch, seq, heads × head_dim]` into `[batch, heads, seq, head_dim]`.
//!
//! Techniques: `split_heads_each` (one lane per element), `split_heads_native`.

use std::sync::Arc;

use crate::capabilities::{Backend, Capabilities};
use crate::case::{Case, CaseInput};
use crate::compare::Tolerance;
use crate::cpu::kernels::heads::{HeadsShape, split_heads};
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::op::{Bindings, Cost, CpuKernel, Launch, Op, Rows, Technique, Update, fold, index};
use crate::shader::{Constant, Shader, Source, params, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc, View, ViewMut};

const EACH: Source = wgsl!("split_heads_each");

/// Gives each head its own contiguous rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SplitHeads {
    /// Number of heads; divides the last axis.
    pub heads: usize,
}

impl Graph {
    /// Adds [`SplitHeads`]: `[batch, seq, heads × head_dim]` into `[batch, heads, seq, head_dim]`.
    ///
    /// # Errors
    /// Another rank, or a last axis that `heads` does not divide.
    pub fn split_heads(&mut self, x: Tensor, heads: usize) -> Result<Tensor> {
        Ok(self.add(SplitHeads { heads }, &[x])?[0])
    }
}

params! {
    struct SplitHeadsParams { count: u32, heads: u32, seq: u32, head_dim: u32 }
}

impl Op for SplitHeads {
    fn name(&self) -> &'static str {
        "split_heads"
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let fail = |message: String| Err(Error::shape("split_heads", message));
        let [x] = inputs else { return fail(format!("takes one tensor, got {}", inputs.len())) };
        let [batch, seq, width] = x.shape[..] else { return fail(format!("takes [batch, seq, width], got {x}")) };
        if !x.dtype.is_device_float() {
            return fail(format!("takes f32 or f16, got {x}"));
        }
        if self.heads == 0 || width % self.heads != 0 {
            return fail(format!("width {width} is not divisible by {} heads", self.heads));
        }
        Ok(vec![TensorDesc::new(x.dtype, [batch, self.heads, seq, width / self.heads])])
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        let x = inputs[0].to_f64();
        let &[batch, seq, width] = inputs[0].shape() else { unreachable!("the graph accepted rank 3") };
        let shape = [batch, self.heads, seq, width / self.heads];
        let result = rows.compute(&shape, |row, out| {
            let (b, head, s) = (row / seq / self.heads, row / seq % self.heads, row % seq);
            let start = (b * seq + s) * width + head * out.len();
            out.copy_from_slice(&x[start..start + out.len()]);
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

impl SplitHeads {
    fn native(&self, x: &TensorDesc) -> Vec<Technique> {
        let [batch, seq, heads, head_dim] = [x.shape[0], x.shape[1], self.heads, x.shape[2] / self.heads];
        let shape = HeadsShape { batch, seq, heads, row_bytes: head_dim * x.dtype.size() };
        let run = move |inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]| {
            split_heads(shape, inputs[0].bytes, outputs[0].bytes);
        };
        vec![Technique::Cpu(CpuKernel { name: "split_heads_native", run: Arc::new(run) })]
    }

    fn each(&self, x: &TensorDesc, capabilities: &Capabilities) -> Option<Launch> {
        if x.dtype == Dtype::F16 && !capabilities.f16 {
            return None;
        }
        let constants = vec![("Elem", Constant::Scalar(x.dtype))];
        let shader = Shader { main: EACH, libraries: Vec::new(), constants };
        let params = SplitHeadsParams {
            count: index(x.len()),
            heads: index(self.heads),
            seq: index(x.shape[1]),
            head_dim: index(x.shape[2] / self.heads),
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
            let input = CaseInput::normal(dtype, &[batch, seq, heads * head_dim], 1.0);
            let name = format!("{dtype} [{batch}, {seq}, {heads} x {head_dim}]");
            Case::new(name, SplitHeads { heads }, vec![input], Tolerance::of_scale(0.0))
        })
    };
    [Dtype::F32, Dtype::F16].into_iter().flat_map(each).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_by_hand() {
        let x = HostTensor::f32(&[1, 2, 4], (0..8).map(|x| x as f32).collect()).unwrap();
        let out = SplitHeads { heads: 2 }.reference(&[&x], Rows::All).remove(0);
        assert_eq!(out.as_f64().unwrap(), [0.0, 1.0, 4.0, 5.0, 2.0, 3.0, 6.0, 7.0]);
    }
}
