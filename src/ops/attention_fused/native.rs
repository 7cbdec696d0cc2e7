//! The native technique: query rows in vector lanes, see `src/cpu/kernels/attention.rs`.

use std::sync::Arc;

use super::AttentionFused;
use crate::cpu::kernels::args::{self as native, Elements, ElementsMut, Quantised};
use crate::cpu::kernels::attention::attention;
use crate::op::{CpuKernel, Technique};
use crate::ops::masks::Checked;
use crate::ops::operands::Sizes;
use crate::tensor::{TensorDesc, View, ViewMut};

impl AttentionFused {
    pub(super) fn native(&self, inputs: &[TensorDesc]) -> Vec<Technique> {
        let Ok(sizes) = self.sizes(inputs) else { return Vec::new() };
        let Ok(checked) = self.checked(&sizes, inputs) else { return Vec::new() };
        let op = *self;
        let run = move |inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]| {
            let (output, lse) = outputs.split_at_mut(1);
            let args = op.native_args(&sizes, &checked, inputs);
            let strides = sizes.output_strides(&op.operands).map(|rows| rows * sizes.head_dim_v);
            let lse = lse.first_mut().map(|lse| bytemuck::cast_slice_mut(lse.bytes));
            attention(&args, ElementsMut::of(&mut output[0]), strides, lse);
        };
        vec![Technique::Cpu(CpuKernel { name: "attention_native", run: Arc::new(run) })]
    }

    /// What native kernels are told.
    pub(in crate::ops) fn native_args<'a>(
        &self,
        sizes: &Sizes,
        checked: &Checked,
        inputs: &[View<'a>],
    ) -> native::AttentionArgs<'a> {
        let &Sizes { heads, kv_heads, seq_q, seq_kv, head_dim, head_dim_v, .. } = sizes;
        let batch = checked.sequences();
        native::AttentionArgs {
            shape: native::AttentionShape { batch, heads, kv_heads, seq_q, seq_kv, head_dim, head_dim_v },
            scale: self.scale,
            q: native::Operand {
                data: Elements::of(&inputs[0]),
                strides: sizes.q_strides(&self.operands).map(|rows| rows * head_dim),
                pages: None,
            },
            k: self.native_operand(sizes, inputs, Side { tensor: 1, width: head_dim }),
            v: self.native_operand(sizes, inputs, Side { tensor: 2, width: head_dim_v }),
            masking: checked.native(&inputs[self.own()..]),
            sinks: self.sinks(inputs).map(|sinks| bytemuck::cast_slice(sinks.bytes)),
            share: native::Share::WHOLE,
        }
    }

    /// k or v with its scales and pages.
    fn native_operand<'a>(&self, sizes: &Sizes, inputs: &[View<'a>], side: Side) -> native::Operand<'a> {
        let Side { tensor, width } = side;
        let data = match self.operands.has_scales {
            false => Elements::of(&inputs[tensor]),
            true => Elements::I8(Quantised {
                data: bytemuck::cast_slice(inputs[tensor].bytes),
                scales: bytemuck::cast_slice(inputs[tensor + 2].bytes),
                row: width.max(1),
            }),
        };
        let pages = self.operands.table(inputs).zip(sizes.pages).map(|(table, pages)| native::Pages {
            table: bytemuck::cast_slice(table.bytes),
            per_sequence: pages.per_sequence,
            size: pages.size,
            count: pages.count,
        });
        let data = data.after(self.operands.first_rows()[tensor] * width);
        native::Operand { data, strides: sizes.kv_strides(&self.operands).map(|rows| rows * width), pages }
    }
}

/// k or v: its index among the tensors, and elements of a row.
struct Side {
    tensor: usize,
    width: usize,
}
