//! `attention_fused`: softmax(mask(q · kᵀ × scale + bias)) · v in one pass over the keys; scores are never stored.
//!
//! Techniques, each in a file of its own; what the WGSL ones share is in `launch`:
//! - `attention_fused`, tiles in workgroup memory with blocks of 8 × 8 in registers: on every device, first on a GPU.
//! - `attention_subgroup`, teams of four lanes that exchange maxima, sums and weights by subgroup operations: where there are
//!   subgroups of at least four.
//! - `attention_lanes`, whole rows to a lane, for head dimensions up to 128: first on drivers that run shaders on the host.
//! - `attention_coop`, both products on cooperative matrices, see `coop`: where the device has them and operands are f16 or may be
//!   rounded to it; first where query rows fill them.
//! - `attention_native`, query rows in vector lanes, see `src/cpu/kernels/attention.rs`.
//!
//! A plan may have `attention_split` and `attention_combine` in its place, for few query rows over many keys.
//!
//! What to expect of f32 at head_dim 64 on a GPU like an H200 (67 TFLOP/s, copies of 4.3 TB/s, 228 KiB and 65,536 registers to
//! a processor). **Estimates from the tiles' sizes; none is measured**:
//!
//! | | `attention_fused` | | | `attention_subgroup` | `attention_lanes` |
//! |---|---|---|---|---|---|
//! | rows × keys of a tile | 32 × 64 | 64 × 64 | 128 × 64 | 64 × 32 | 128 × 4 |
//! | chosen where | 16 KiB | 32 KiB, 64 rows | 48 KiB, 128 rows | more than 32 rows | more than 64 rows |
//! | lanes | 32 | 64 | 128 | 64 | 32 |
//! | operations per byte that a tile loads | 13 | 21 | 32 | 16 | 64 |
//! | workgroup memory, bytes | 13,312 | 25,600 | 41,984 | 13,824 | 2,052 |
//! | registers of a lane | 175 | 175 | 175 | 160 | 550, so it spills |
//! | workgroups resident on a processor | 11 | 5 | 2 | 6 | 8 |
//! | vector loads from workgroup memory per 64 multiply-adds | 4 | 4 | 4 | 6 in scores, 4 in values | 4 |
//! | bound, if all tile loads went at copy speed | 57 TFLOP/s | 67 | 67 | 67 | spills |
//!
//! On Mesa 26's lavapipe, (1, 8, 1024, 64) f32, two cores of an AMD EPYC, medians of seven runs: `attention_lanes` 32.7 GFLOP/s
//! (causal, by the halved count, 33.8), `attention_subgroup` 10.4 (9.3), `attention_fused` 9.0 (8.9). `attention_lanes` as it is now,
//! by `scripts/peers`: 50 (44).
//!
//! Ideas that lost:
//! - Scores and outputs of a lane as arrays indexed by a row loop, so that 1, 2 or 4 rows could be a constant: 185 ms against
//!   103 with the rows as columns of a `mat4x4` (b=8, h=12, s=128, d=64, lavapipe 22.3 on two cores, in turns). It may win
//!   where a driver unrolls such loops and queries are few.
//! - The rule applied to the 8 × 8 scores of a lane in a loop over a private array: a causal kernel of head_dim 16 took 1.7 to
//!   2.2 s of processor time to compile on lavapipe 22.3, 1.0 s with the loop over workgroup memory and without a second
//!   loop over the values of poisoned tiles.

pub(super) mod cases;
mod coop;
mod definition;
mod lanes;
mod launch;
mod native;
mod subgroup;
#[cfg(test)]
mod tests;
mod tiled;

pub(super) use cases::cases;
pub(super) use definition::shares;
pub(super) use launch::{Kernel, LSE_BINDING, LSE_DENSE, LSE_NONE, Staging, output_files};

use crate::capabilities::{Backend, Capabilities};
use crate::error::{Error, Result};
use crate::op::{Cost, Op, Rows, Technique, Update};
use crate::ops::masks::{Checked, ScoreRule};
use crate::ops::operands::{Operands, Paging, Sizes};
use crate::ops::sinks::check_sinks;
use crate::precision::Precision;
use crate::tensor::{Dtype, HostTensor, TensorDesc};

/// Largest head dimension of q, k and v on a GPU: the output rows of a tile belong to its lanes until the end.
const MAX_HEAD_DIM: usize = 512;

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
    /// Whether operands that are not f16 may be rounded to it for the products.
    pub precision: Precision,
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
            Backend::Gpu => {
                let tiled = self.tiled(inputs, capabilities);
                let subgroup = self.subgroup(inputs, capabilities);
                let lanes = self.lanes(inputs, capabilities);
                let order = if capabilities.software { [lanes, tiled, subgroup] } else { [tiled, subgroup, lanes] };
                let others = order.into_iter().flatten().map(Technique::Gpu).collect();
                self.with_coop(others, inputs, capabilities)
            }
        }
    }
}

impl AttentionFused {
    /// Number of tensors before the rule's.
    fn own(&self) -> usize {
        self.operands.tensors() + usize::from(self.has_sinks)
    }

    pub(super) fn sinks<'a, T>(&self, inputs: &'a [T]) -> Option<&'a T> {
        self.has_sinks.then(|| &inputs[self.operands.tensors()])
    }

    pub(super) fn sizes(&self, inputs: &[TensorDesc]) -> Result<Sizes> {
        self.operands.sizes(inputs)
    }

    /// Query lengths and query starts.
    pub(super) fn queries<T: Copy>(&self, inputs: &[T]) -> [Option<T>; 2] {
        self.rule.queries(&inputs[self.own()..]).map(|tensor| tensor.copied())
    }

    /// Keys from the first to the last that some query may look at, as far as shapes say.
    pub(super) fn keys_seen(&self, sizes: &Sizes, inputs: &[TensorDesc]) -> Result<usize> {
        Ok(self.checked(sizes, inputs)?.visit().span(sizes.seq_q, sizes.seq_kv))
    }

    pub(super) fn checked(&self, sizes: &Sizes, inputs: &[TensorDesc]) -> Result<Checked> {
        let checked = Checked::new("attention", self.rule, sizes.scores(), &inputs[self.own()..])?;
        checked.check_key_batch("attention", sizes.kv_batch)?;
        Ok(checked)
    }
}
