//! `attention_fused`: softmax(mask(q · kᵀ × scale + bias)) · v in one pass over the keys; scores are never stored.
//!
//! Techniques: `attention_fused` (tiles of 32 query rows × 32 keys in 13 KiB of workgroup memory),
//! `attention_native` (query rows in vector lanes, see `src/cpu/kernels/attention.rs`).
//!
//! Ideas that lost:
//! - Scores and outputs of a lane as arrays indexed by a row loop, so that 1, 2 or 4 rows could be a constant: 185 ms against
//!   103 with the rows as columns of a `mat4x4` (b=8, h=12, s=128, d=64, lavapipe 22.3 on two cores, in turns). It may win
//!   where a driver unrolls such loops and queries are few.

mod cases;
mod definition;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub(super) use cases::cases;

use crate::capabilities::{Backend, Capabilities};
use crate::cpu::kernels::args::{self as native, Elements, ElementsMut, Quantised};
use crate::cpu::kernels::attention::attention;
use crate::error::{Error, Result};
use crate::mask::Fill;
use crate::op::{Bindings, Cost, CpuKernel, Launch, Op, Rows, Technique, Update, fold, index};
use crate::ops::masks::{Checked, ScoreRule};
use crate::ops::operands::{Operands, Paging, Sizes};
use crate::ops::sinks::check_sinks;
use crate::ops::{BF16, INT8, SINKS_BINDING, SINKS_DENSE, SINKS_NONE};
use crate::shader::{Constant, Shader, Source, params, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc, View, ViewMut};

const FUSED: Source = wgsl!("attention_fused");
const ROWS: Source = wgsl!("lib/attention_rows");
const TILES: Source = wgsl!("lib/attention_tiles");
const Q_PLAIN: Source = wgsl!("lib/q_plain");
const Q_BF16: Source = wgsl!("lib/q_bf16");
const KV_PLAIN: Source = wgsl!("lib/kv_plain");
const KV_BF16: Source = wgsl!("lib/kv_bf16");
const KV_INT8: Source = wgsl!("lib/kv_int8");
const O_PLAIN: Source = wgsl!("lib/o_plain");
const O_BF16: Source = wgsl!("lib/o_bf16");
const O_BF16_ODD: Source = wgsl!("lib/o_bf16_odd");
const ROWS_DENSE: Source = wgsl!("lib/rows_dense");
const ROWS_PAGED: Source = wgsl!("lib/rows_paged");
const LSE_NONE: Source = wgsl!("lib/lse_none");
const LSE_DENSE: Source = wgsl!("lib/lse_dense");
const SKIP_NONE: Source = wgsl!("lib/skip_none");
const SKIP_MASKED: Source = wgsl!("lib/skip_masked");

// Bindings of the optional tensors, as in these files.
const TABLE_BINDING: u32 = 18;
const SCALES_BINDINGS: [u32; 2] = [19, 20];
const LSE_BINDING: u32 = 21;

/// Query rows of a workgroup, as in the shader.
const QUERIES: usize = 32;

/// Largest head dimension of q, k and v on a GPU: the output rows of a tile stay in registers.
const MAX_HEAD_DIM: usize = 256;

/// Attention of `q` `[batch, heads, seq_q, head_dim]` over `k` `[batch, kv_heads, seq_kv, head_dim]` and
/// `v` `[batch, kv_heads, seq_kv, head_dim_v]`, into `[batch, heads, seq_q, head_dim_v]` of q's dtype.
///
/// That is the default layout; [`Operands`] says which others there are. The sinks and then the rule's tensors follow the
/// operands. [`Graph::attention`](crate::Graph::attention) adds it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct AttentionFused {
    /// Multiplies q · kᵀ. Finite.
    pub scale: f32,
    /// What happens to a scaled score.
    pub rule: ScoreRule,
    /// How q, k and v are stored.
    pub operands: Operands,
    /// There is an f32 tensor `[heads]`: one more score for each row, which has no value. −inf is none.
    pub has_sinks: bool,
    /// There is a second output: the logarithm of the softmax's denominator, f32 `[batch, heads, seq_q]` whatever the layout.
    pub returns_lse: bool,
}

params! {
    struct AttentionParams {
        batch: u32, heads: u32, kv_heads: u32, seq_q: u32, seq_kv: u32, scale: f32, fill: f32, excluded: f32,
        softcap: f32, q_batch: u32, q_head: u32, q_row: u32, kv_batch: u32, kv_head: u32, kv_row: u32,
        page_size: u32, per_sequence: u32, pages: u32, band_follows: u32, mask_keys: u32, bias_keys: u32,
        band_lower: i32, band_upper: i32, visit_lower: i32, visit_upper: i32,
        mask_batch: u32, mask_head: u32, mask_query: u32, mask_key: u32,
        bias_batch: u32, bias_head: u32, bias_query: u32, bias_key: u32,
        position: i32, slope_sequence: u32, sequences: u32, parts: u32, rows_per_head: u32,
        o_batch: u32, o_row: u32, k_first: u32, v_first: u32,
    }
}

impl Op for AttentionFused {
    fn name(&self) -> &'static str {
        "attention_fused"
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let expected = self.own() + self.rule.tensors();
        if inputs.len() != expected {
            let message = format!("takes {expected} tensors with these options, got {}", inputs.len());
            return Err(Error::shape("attention", message));
        }
        let sizes = self.sizes(inputs)?;
        if !self.scale.is_finite() {
            return Err(Error::option("attention", format!("scale is {}, it must be finite", self.scale)));
        }
        if let Some(sinks) = self.sinks(inputs) {
            check_sinks("attention", sinks, &TensorDesc::new(Dtype::F32, sizes.scores()))?;
        }
        self.checked(&sizes, inputs)?;
        let q = &inputs[0];
        let output = TensorDesc::new(q.dtype, sizes.output_shape(&self.operands, q));
        let lse = self.returns_lse.then(|| TensorDesc::new(Dtype::F32, sizes.rows_shape(&self.operands, q)));
        Ok([output].into_iter().chain(lse).collect())
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        definition::compute(self, inputs, rows)
    }

    /// Two products over the scores that are visited, and the keys and values that some query may look at. Softmax is not counted,
    /// as in every published formula; lengths, starts and masks are data, and count as one sequence of all rows and keys. Of a
    /// pool of pages only those count that the sequences have.
    fn cost(&self, inputs: &[TensorDesc]) -> Cost {
        let (Ok(outputs), Ok(sizes)) = (self.outputs(inputs), self.sizes(inputs)) else {
            return Cost::default();
        };
        let Ok(checked) = self.checked(&sizes, inputs) else { return Cost::default() };
        let visit = checked.visit();
        let each = 2 * (sizes.head_dim + sizes.head_dim_v) as u64;
        let flops = (sizes.batch * sizes.heads) as u64 * visit.visible(sizes.seq_q, sizes.seq_kv) * each;
        let mut read = inputs.to_vec();
        self.operands.narrow(&sizes, &mut read);
        let stored = 1..self.operands.tensors() - usize::from(self.operands.has_pages);
        if let Some(Paging { size, per_sequence, .. }) = sizes.pages {
            for desc in &mut read[stored.clone()] {
                desc.shape[..2].copy_from_slice(&[sizes.kv_batch * per_sequence, size]);
            }
        }
        let mut cost = Cost::once(flops, &read, &outputs);
        let kv: u64 = read[stored].iter().map(TensorDesc::bytes).sum();
        let (seen, keys) = (visit.span(sizes.seq_q, sizes.seq_kv) as u64, sizes.seq_kv.max(1) as u64);
        cost.read -= kv - (u128::from(kv) * u128::from(seen) / u128::from(keys)) as u64;
        cost
    }

    fn updates(&self) -> &'static [Update] {
        &[]
    }

    fn check(&self, inputs: &[TensorDesc], data: &[Option<&HostTensor>]) -> Result<()> {
        let sizes = self.sizes(inputs)?;
        self.rule.check("attention", [sizes.seq_q, sizes.seq_kv], &data[self.own()..])?;
        let table = self.operands.table(data).and_then(|table| table.and_then(HostTensor::as_u32));
        let (Some(Paging { count, size, per_sequence }), Some(table)) = (sizes.pages, table) else { return Ok(()) };
        let lengths = self.rule.lengths(&data[self.own()..]).and_then(HostTensor::as_u32);
        for (at, &page) in table.iter().enumerate() {
            let (sequence, entry) = (at / per_sequence, at % per_sequence);
            // What lies past the keys that exist may be anything.
            let exists = lengths.is_none_or(|lengths| entry * size < lengths[sequence] as usize);
            if exists && page as usize >= count {
                let message = format!("block_table[{sequence}, {entry}] is page {page}, the cache has {count}");
                return Err(Error::shape("attention", message));
            }
        }
        Ok(())
    }

    fn techniques(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Vec<Technique> {
        match capabilities.backend {
            Backend::Cpu => self.native(inputs),
            Backend::Gpu => self.fused(inputs, capabilities).map(Technique::Gpu).into_iter().collect(),
        }
    }
}

impl AttentionFused {
    /// Number of tensors before the rule's.
    fn own(&self) -> usize {
        self.operands.tensors() + usize::from(self.has_sinks)
    }

    fn sinks<'a, T>(&self, inputs: &'a [T]) -> Option<&'a T> {
        self.has_sinks.then(|| &inputs[self.operands.tensors()])
    }

    fn sizes(&self, inputs: &[TensorDesc]) -> Result<Sizes> {
        self.operands.sizes(inputs)
    }

    fn checked(&self, sizes: &Sizes, inputs: &[TensorDesc]) -> Result<Checked> {
        let checked = Checked::new("attention", self.rule, sizes.scores(), &inputs[self.own()..])?;
        checked.check_key_batch("attention", sizes.kv_batch)?;
        Ok(checked)
    }

    fn native(&self, inputs: &[TensorDesc]) -> Vec<Technique> {
        let Ok(sizes) = self.sizes(inputs) else { return Vec::new() };
        let Ok(checked) = self.checked(&sizes, inputs) else { return Vec::new() };
        let Sizes { heads, kv_heads, seq_q, seq_kv, head_dim, head_dim_v, .. } = sizes;
        let batch = checked.sequences();
        let shape = native::AttentionShape { batch, heads, kv_heads, seq_q, seq_kv, head_dim, head_dim_v };
        let op = *self;
        let run = move |inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]| {
            let (output, lse) = outputs.split_at_mut(1);
            let args = native::AttentionArgs {
                shape,
                scale: op.scale,
                q: native::Operand {
                    data: Elements::of(&inputs[0]),
                    strides: sizes.q_strides(&op.operands).map(|rows| rows * head_dim),
                    pages: None,
                },
                k: op.native_operand(&sizes, inputs, Side { tensor: 1, width: head_dim }),
                v: op.native_operand(&sizes, inputs, Side { tensor: 2, width: head_dim_v }),
                masking: checked.native(&inputs[op.own()..]),
                sinks: op.sinks(inputs).map(|sinks| bytemuck::cast_slice(sinks.bytes)),
            };
            let strides = sizes.output_strides(&op.operands).map(|rows| rows * head_dim_v);
            let lse = lse.first_mut().map(|lse| bytemuck::cast_slice_mut(lse.bytes));
            attention(&args, ElementsMut::of(&mut output[0]), strides, lse);
        };
        vec![Technique::Cpu(CpuKernel { name: "attention_native", run: Arc::new(run) })]
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

    fn fused(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Option<Launch> {
        let sizes = self.sizes(inputs).ok()?;
        let checked = self.checked(&sizes, inputs).ok()?;
        if sizes.head_dim.max(sizes.head_dim_v) > MAX_HEAD_DIM {
            return None;
        }
        let mut bindings = Bindings::in_order(3, 1);
        let (mut libraries, mut constants) = self.storage(inputs, &sizes, &mut bindings);
        let (rules, rule_constants) = checked.link(&mut bindings);
        let skips = self.rule.has_mask && self.rule.masking.fill == Fill::Exclude;
        libraries.extend([ROWS, TILES, if skips { SKIP_MASKED } else { SKIP_NONE }]);
        libraries.extend(rules);
        let (partition, parts) = checked.parts(QUERIES);
        libraries.push(partition);
        let heads_per_tile = self.heads_per_tile(&sizes);
        constants.extend(rule_constants);
        constants.extend([
            ("HEAD_DIM", Constant::U32(index(sizes.head_dim))),
            ("VALUE_DIM", Constant::U32(index(sizes.head_dim_v))),
            ("GUARDED", Constant::Bool(!checked.sees_all())),
            ("HEADS_PER_TILE", Constant::U32(index(heads_per_tile))),
        ]);
        let shader = Shader { main: FUSED, libraries, constants };
        if (shader.needs_f16() && !capabilities.f16) || bindings.count() > capabilities.storage_buffers {
            return None;
        }
        let nothing = self.outputs(inputs).is_ok_and(|outputs| outputs.iter().all(TensorDesc::is_empty));
        let workgroups =
            if nothing { [0; 3] } else { fold(sizes.batch * sizes.heads / heads_per_tile * parts, capabilities) };
        Some(Launch { shader, params: self.params(&sizes, &checked).into(), workgroups, bindings })
    }

    /// How many heads that read one key head are rows of one tile: as many as fit, where queries are few, so that a decoding step
    /// reads its keys once. Packed sequences have their own numbers of queries, which only the device knows.
    fn heads_per_tile(&self, sizes: &Sizes) -> usize {
        if self.rule.has_q_starts || sizes.seq_q == 0 || sizes.kv_heads == 0 {
            return 1;
        }
        let group = sizes.heads / sizes.kv_heads;
        (1..=group).rev().find(|&heads| group.is_multiple_of(heads) && heads * sizes.seq_q <= QUERIES).unwrap_or(1)
    }

    /// Library files and constants for how tensors are stored; bindings of the optional ones are added.
    fn storage(
        &self,
        inputs: &[TensorDesc],
        sizes: &Sizes,
        bindings: &mut Bindings,
    ) -> (Vec<Source>, Vec<(&'static str, Constant)>) {
        let mut constants = Vec::new();
        let mut libraries = vec![
            if self.operands.has_pages { ROWS_PAGED } else { ROWS_DENSE },
            if self.has_sinks { SINKS_DENSE } else { SINKS_NONE },
            if self.returns_lse { LSE_DENSE } else { LSE_NONE },
        ];
        let (q, k) = (inputs[0].dtype, inputs[1].dtype);
        match q {
            Dtype::BF16 => {
                libraries.extend([Q_BF16, if sizes.head_dim_v.is_multiple_of(2) { O_BF16 } else { O_BF16_ODD }])
            }
            _ => {
                libraries.extend([Q_PLAIN, O_PLAIN]);
                constants.extend([("QElem", Constant::Scalar(q)), ("OElem", Constant::Scalar(q))]);
            }
        }
        match k {
            Dtype::BF16 => libraries.push(KV_BF16),
            Dtype::I8 => libraries.extend([KV_INT8, INT8]),
            _ => {
                libraries.push(KV_PLAIN);
                constants.push(("KvElem", Constant::Scalar(k)));
            }
        }
        libraries.extend([q, k].contains(&Dtype::BF16).then_some(BF16));
        bindings.inputs.extend(self.operands.has_scales.then_some(SCALES_BINDINGS).into_iter().flatten());
        bindings.inputs.extend(self.operands.has_pages.then_some(TABLE_BINDING));
        bindings.inputs.extend(self.has_sinks.then_some(SINKS_BINDING));
        bindings.outputs.extend(self.returns_lse.then_some(LSE_BINDING));
        (libraries, constants)
    }

    fn params(&self, sizes: &Sizes, checked: &Checked) -> AttentionParams {
        let rule = checked.params();
        let visit = checked.own_visit();
        let [q_batch, q_head, q_row] = sizes.q_strides(&self.operands).map(index);
        let [o_batch, _, o_row] = sizes.output_strides(&self.operands).map(index);
        let [_, k_first, v_first] = self.operands.first_rows().map(index);
        let [kv_batch, kv_head, kv_row] = sizes.kv_strides(&self.operands).map(index);
        // Shaders divide by the size of a page.
        let pages = sizes.pages.unwrap_or(Paging { count: 1, size: 1, per_sequence: 0 });
        let [mask_batch, mask_head, mask_query, mask_key] = rule.mask;
        let [bias_batch, bias_head, bias_query, bias_key] = rule.bias;
        AttentionParams {
            batch: index(sizes.batch),
            heads: index(sizes.heads),
            kv_heads: index(sizes.kv_heads),
            seq_q: index(sizes.seq_q),
            seq_kv: index(sizes.seq_kv),
            scale: self.scale,
            fill: rule.fill,
            excluded: rule.excluded,
            softcap: rule.softcap,
            q_batch,
            q_head,
            q_row,
            kv_batch,
            kv_head,
            kv_row,
            page_size: index(pages.size),
            per_sequence: index(pages.per_sequence),
            pages: index(pages.count),
            band_follows: rule.band_follows,
            mask_keys: rule.mask_keys,
            bias_keys: rule.bias_keys,
            band_lower: rule.band.lower as i32,
            band_upper: rule.band.upper as i32,
            visit_lower: visit.lower as i32,
            visit_upper: visit.upper as i32,
            mask_batch,
            mask_head,
            mask_query,
            mask_key,
            bias_batch,
            bias_head,
            bias_query,
            bias_key,
            position: rule.position,
            slope_sequence: rule.slope_sequence,
            sequences: rule.sequences,
            parts: index(checked.parts(QUERIES).1),
            rows_per_head: index(sizes.seq_q),
            o_batch,
            o_row,
            k_first,
            v_first,
        }
    }
}

/// k or v: its index among the tensors, and elements of a row.
struct Side {
    tensor: usize,
    width: usize,
}
