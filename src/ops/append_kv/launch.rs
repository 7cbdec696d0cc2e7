//! `append_kv` on a GPU.

use super::{
    AppendKv, CACHE_DENSE, CACHE_PAGED, Checked, NEW_ROWS_ALL, NEW_ROWS_COUNTED, PageSizes, ROW, STORE_FLOATS,
    STORE_LEVELS, Tensors,
};
use crate::capabilities::Capabilities;
use crate::op::{Bindings, Launch, fold, index};
use crate::ops::REDUCE_WORKGROUP;
use crate::ops::rotation::{COSINES_BINDING, Pairs, SINES_BINDING, WEIGHT_BINDING, norm_parts, rotation_parts};
use crate::shader::{Constant, Shader, params};
use crate::tensor::{Dtype, TensorDesc};

// Binding numbers in the shader and its library files.
const SCALES_BINDINGS: [u32; 2] = [7, 8];
const TABLE_BINDING: u32 = 9;
const NEW_LENGTHS_BINDING: u32 = 10;

params! {
    struct AppendParams {
        batch: u32, kv_heads: u32, seq_new: u32, capacity: u32, head_dim: u32, head_dim_v: u32,
        k_head: u32, k_row: u32, v_head: u32, v_row: u32, pages: u32, page_size: u32, per_sequence: u32,
        rotary_dim: u32, interleaved: u32, per_token: u32, positions: u32, epsilon: f32,
    }
}

impl AppendKv {
    /// A workgroup for each row of k and of v.
    pub(super) fn row(&self, inputs: &[TensorDesc], checked: &Checked, capabilities: &Capabilities) -> Option<Launch> {
        let bindings = self.bindings();
        let lacks_f16 = inputs.iter().any(|input| input.dtype == Dtype::F16) && !capabilities.f16;
        if lacks_f16 || bindings.count() > capabilities.storage_buffers {
            return None;
        }
        let Checked { k, .. } = checked;
        let rows = k.heads.saturating_mul(k.seq).saturating_mul(2).max(1);
        let workgroups = fold(k.batch.saturating_mul(rows), capabilities);
        let shader = self.shader(&self.split(inputs));
        Some(Launch { shader, params: self.params(checked).into(), workgroups, bindings })
    }

    fn shader(&self, tensors: &Tensors<'_, TensorDesc>) -> Shader {
        let (mut libraries, mut constants) = norm_parts(self.key_norm.map(|_| tensors.weight.map(|desc| desc.dtype)));
        let (rotation, angle) = rotation_parts(tensors.angles.map(|[cos, _]| cos.dtype));
        libraries.extend(rotation);
        constants.extend(angle);
        constants.push(("Elem", Constant::Scalar(tensors.k.dtype)));
        libraries.push(if self.counted { NEW_ROWS_COUNTED } else { NEW_ROWS_ALL });
        libraries.push(if self.paged { CACHE_PAGED } else { CACHE_DENSE });
        if self.quantised {
            libraries.push(STORE_LEVELS);
            if !libraries.contains(&REDUCE_WORKGROUP) {
                libraries.push(REDUCE_WORKGROUP);
            }
        } else {
            libraries.push(STORE_FLOATS);
            constants.push(("Cache", Constant::Scalar(tensors.keys.dtype)));
        }
        Shader { main: ROW, libraries, constants }
    }

    fn params(&self, Checked { k, v, capacity, pages, table }: &Checked) -> AppendParams {
        let pages = pages.unwrap_or(PageSizes { count: 0, size: 0, per_sequence: 0 });
        let ([k_head, k_row], [v_head, v_row]) = (k.steps(self.layout), v.steps(self.layout));
        AppendParams {
            batch: index(k.batch),
            kv_heads: index(k.heads),
            seq_new: index(k.seq),
            capacity: index(*capacity),
            head_dim: index(k.head_dim),
            head_dim_v: index(v.head_dim),
            k_head: index(k_head * k.head_dim),
            k_row: index(k_row * k.head_dim),
            v_head: index(v_head * v.head_dim),
            v_row: index(v_row * v.head_dim),
            pages: index(pages.count),
            page_size: index(pages.size),
            per_sequence: index(pages.per_sequence),
            rotary_dim: index(table.map_or(0, |table| 2 * table.pairs)),
            interleaved: u32::from(self.rotary == Some(Pairs::Interleaved)),
            per_token: u32::from(table.is_some_and(|table| table.positions.is_none())),
            positions: index(table.and_then(|table| table.positions).unwrap_or(0)),
            epsilon: self.key_norm.map_or(0.0, |norm| norm.epsilon),
        }
    }

    fn bindings(&self) -> Bindings {
        let scales = SCALES_BINDINGS.into_iter().filter(|_| self.quantised);
        let mut inputs = vec![1, 2, 4, 5, 3];
        inputs.extend(scales.clone());
        inputs.extend(self.paged.then_some(TABLE_BINDING));
        inputs.extend(self.counted.then_some(NEW_LENGTHS_BINDING));
        inputs.extend([COSINES_BINDING, SINES_BINDING].into_iter().filter(|_| self.rotary.is_some()));
        inputs.extend(self.has_weight().then_some(WEIGHT_BINDING));
        Bindings { inputs, outputs: [4, 5, 6].into_iter().chain(scales).collect() }
    }
}
