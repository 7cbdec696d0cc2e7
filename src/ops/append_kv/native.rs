//! `append_kv` on the CPU backend.

use std::sync::Arc;

use super::{AppendKv, Checked, Tensors};
use crate::cpu::kernels::append::{AppendArgs, CacheMut, Turning, advance, append};
use crate::cpu::kernels::args::{Elements, Operand, Pages};
use crate::op::CpuKernel;
use crate::ops::rotation::HeadSizes;
use crate::tensor::{Dtype, View, ViewMut};

pub(super) fn kernel(op: AppendKv, checked: Checked) -> CpuKernel {
    let run = move |inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]| {
        let tensors = op.split(inputs);
        let (caches, rest) = outputs.split_at_mut(2);
        let [keys, values] = caches else { unreachable!("the op has two caches") };
        let (lengths, scales) = rest.split_at_mut(1);
        let mut scales = scales.iter_mut().map(|scales| &mut *scales.bytes);
        let of_keys = op.args(&checked, &tensors, tensors.k, &checked.k);
        let turn = op.rotary.zip(checked.table).zip(tensors.angles);
        let of_keys = AppendArgs {
            norm: op.key_norm.map(|norm| norm.native(tensors.weight)),
            turn: turn.map(|((pairs, table), angles)| Turning {
                turn: table.turn(pairs, angles),
                positions: table.positions,
            }),
            ..of_keys
        };
        append(&of_keys, memory(keys, scales.next()));
        append(&op.args(&checked, &tensors, tensors.v, &checked.v), memory(values, scales.next()));
        advance(&of_keys, bytemuck::cast_slice_mut(lengths[0].bytes));
    };
    CpuKernel { name: "append_kv_native", run: Arc::new(run) }
}

/// The rows go in by these sizes.
impl AppendKv {
    fn args<'a>(
        &self,
        checked: &Checked,
        tensors: &Tensors<'_, View<'a>>,
        new: &View<'a>,
        sizes: &HeadSizes,
    ) -> AppendArgs<'a> {
        let HeadSizes { batch, heads, seq, head_dim } = *sizes;
        let strides = sizes.steps(self.layout).map(|step| step * head_dim);
        let table = checked.pages.zip(tensors.block_table).map(|(pages, table)| Pages {
            table: bytemuck::cast_slice(table.bytes),
            per_sequence: pages.per_sequence,
            size: pages.size,
            count: pages.count,
        });
        let strides = [heads * seq * head_dim, strides[0], strides[1]];
        AppendArgs {
            rows: Operand { data: Elements::of(new), strides, pages: table },
            batch,
            kv_heads: heads,
            seq_new: seq,
            capacity: checked.capacity,
            dim: head_dim,
            lengths: bytemuck::cast_slice(tensors.lengths.bytes),
            new_lengths: tensors.new_lengths.map(|new| bytemuck::cast_slice(new.bytes)),
            norm: None,
            turn: None,
        }
    }
}

fn memory<'a>(cache: &'a mut ViewMut<'_>, scales: Option<&'a mut [u8]>) -> CacheMut<'a> {
    match (cache.desc.dtype, scales) {
        (Dtype::F16, _) => CacheMut::F16(bytemuck::cast_slice_mut(cache.bytes)),
        (Dtype::I8, Some(scales)) => {
            CacheMut::I8(bytemuck::cast_slice_mut(cache.bytes), bytemuck::cast_slice_mut(scales))
        }
        _ => CacheMut::F32(bytemuck::cast_slice_mut(cache.bytes)),
    }
}
