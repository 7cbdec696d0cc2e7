//! Operands of any layout, storage and paging as the unfused path takes them, and its output as they were.

use super::Attention;
use crate::error::Result;
use crate::graph::{Graph, Tensor};
use crate::ops::{AxisSlice, Layout, Sizes};
use crate::tensor::Dtype;

/// Where an operand's heads lie in its tensor.
struct Stored {
    layout: Layout,
    /// The first of them, among those of a row.
    first: usize,
}

impl Graph {
    /// q, k and v as `[batch, heads, seq, head_dim]`, all f32 or all f16.
    pub(super) fn plain_operands(
        &mut self,
        [q, k, v]: [Tensor; 3],
        options: &Attention,
        sizes: &Sizes,
    ) -> Result<[Tensor; 3]> {
        let (stored, kv) = (self.desc(q)?.dtype, self.desc(k)?.dtype);
        let dtype = if stored == kv && stored.is_device_float() { stored } else { Dtype::F32 };
        let [k_scales, v_scales] = options.kv_scales.map_or([None; 2], |scales| scales.map(Some));
        let q = self.cast_to(q, dtype)?;
        let k = self.unpaged(k, k_scales, options, sizes.head_dim)?;
        let v = self.unpaged(v, v_scales, options, sizes.head_dim_v)?;
        let [k, v] = [self.cast_to(k, dtype)?, self.cast_to(v, dtype)?];
        let kv_layout = if options.block_table.is_some() { Layout::HeadsFirst } else { options.kv_layout };
        let Sizes { batch, heads, kv_batch, kv_heads, seq_q, seq_kv, head_dim, head_dim_v, .. } = *sizes;
        let [q_first, k_first, v_first] = options.operands().first_rows();
        Ok([
            self.heads_first(q, Stored { layout: options.q_layout, first: q_first }, [batch, heads, seq_q, head_dim])?,
            self.heads_first(k, Stored { layout: kv_layout, first: k_first }, [kv_batch, kv_heads, seq_kv, head_dim])?,
            self.heads_first(
                v,
                Stored { layout: kv_layout, first: v_first },
                [kv_batch, kv_heads, seq_kv, head_dim_v],
            )?,
        ])
    }

    /// What the unfused path computed, `[batch, heads, seq_q, head_dim_v]` in any order that reshapes to it, in q's layout and
    /// dtype.
    pub(super) fn stored_output(
        &mut self,
        output: Tensor,
        q: Tensor,
        options: &Attention,
        sizes: &Sizes,
    ) -> Result<Tensor> {
        let desc = self.desc(q)?.clone();
        let shape = sizes.output_shape(&options.operands(), &desc);
        let output = match options.q_layout {
            Layout::HeadsFirst => output,
            Layout::SeqFirst | Layout::Merged { .. } | Layout::Joined { .. } => {
                let split = self.reshape(output, &[sizes.batch, sizes.heads, sizes.seq_q, sizes.head_dim_v])?;
                self.merge_heads(split)?
            }
        };
        let output = self.cast_to(output, desc.dtype)?;
        self.reshape(output, &shape)
    }

    fn heads_first(&mut self, x: Tensor, stored: Stored, shape: [usize; 4]) -> Result<Tensor> {
        let [batch, heads, seq, width] = shape;
        let row = stored.layout.heads_of_row().unwrap_or(heads);
        match stored.layout {
            Layout::HeadsFirst => self.reshape(x, &shape),
            Layout::SeqFirst | Layout::Merged { .. } => {
                let merged = self.reshape(x, &[batch, seq, row * width])?;
                self.split_heads(merged, heads)
            }
            Layout::Joined { .. } => {
                let joined = self.reshape(x, &[batch, seq, row * width])?;
                let [start, end] = [stored.first, stored.first + heads].map(|head| (head * width) as i64);
                let merged = self.slice(joined, &[AxisSlice { axis: 2, start, end, step: 1 }])?;
                self.split_heads(merged, heads)
            }
        }
    }

    /// k or v, whose heads have this width, out of its pages and without scales.
    fn unpaged(&mut self, x: Tensor, scales: Option<Tensor>, options: &Attention, width: usize) -> Result<Tensor> {
        let (x, scales) = match options.block_table {
            None => (x, scales),
            Some(table) => {
                let scales = scales.map(|scales| self.unpaged_scales(scales, table, options)).transpose()?;
                (self.gather_pages(x, table, options.kv_lengths)?, scales)
            }
        };
        let Some(scales) = scales else { return Ok(x) };
        let shape = [&self.desc(scales)?.shape[..], &[width]].concat();
        let levels = self.reshape(x, &shape)?;
        self.dequantize(levels, scales, Dtype::F32)
    }

    /// A scale is a row of one element.
    fn unpaged_scales(&mut self, scales: Tensor, table: Tensor, options: &Attention) -> Result<Tensor> {
        let shape = [&self.desc(scales)?.shape[..], &[1]].concat();
        let rows = self.reshape(scales, &shape)?;
        let rows = self.gather_pages(rows, table, options.kv_lengths)?;
        let shape = self.desc(rows)?.shape[..3].to_vec();
        self.reshape(rows, &shape)
    }

    fn cast_to(&mut self, x: Tensor, dtype: Dtype) -> Result<Tensor> {
        if self.desc(x)?.dtype == dtype { Ok(x) } else { self.cast(x, dtype) }
    }
}
