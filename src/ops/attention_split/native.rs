//! The native technique: each share in turn, by the kernels of attention.

use std::sync::Arc;

use super::AttentionSplit;
use crate::cpu::kernels::args::{AttentionArgs, ElementsMut, Share};
use crate::cpu::kernels::attention::attention;
use crate::op::{CpuKernel, Technique};
use crate::tensor::{TensorDesc, View, ViewMut};

impl AttentionSplit {
    pub(super) fn native(&self, inputs: &[TensorDesc]) -> Option<Technique> {
        let op = self.attention();
        let sizes = op.sizes(inputs).ok()?;
        let checked = op.checked(&sizes, inputs).ok()?;
        let splits = self.splits;
        let run = move |inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]| {
            let args = op.native_args(&sizes, &checked, inputs);
            let [partials, sums] = outputs else { return };
            let partials: &mut [f32] = bytemuck::cast_slice_mut(partials.bytes);
            let sums: &mut [f32] = bytemuck::cast_slice_mut(sums.bytes);
            let [values, rows] = [partials.len() / splits, sums.len() / splits];
            let width = sizes.head_dim_v;
            let strides = [sizes.heads * sizes.seq_q * width, sizes.seq_q * width, width];
            for part in 0..splits {
                let args = AttentionArgs { share: Share { part, of: splits }, ..args };
                let out = ElementsMut::F32(&mut partials[part * values..(part + 1) * values]);
                attention(&args, out, strides, Some(&mut sums[part * rows..(part + 1) * rows]));
            }
        };
        Some(Technique::Cpu(CpuKernel { name: "attention_split_native", run: Arc::new(run) }))
    }
}
