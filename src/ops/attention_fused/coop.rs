//! `attention_coop`: both products on cooperative matrices, f16 factors and f32 sums.
//!
//! A workgroup is four subgroups, each with one or two matrices of query rows, over tiles of 16, 32 or 64 keys: as many as fit
//! the device's workgroup memory, and two matrices of rows where their sums leave registers to spare.
//! Operands that are not f16 are rounded to it, where the op's [`Precision`] allows that.
//!
//! Estimates, not measured, for an H200-class GPU (subgroups of 32, matrices of 16, f16 products at 790 TFLOP/s, copies at
//! 4.3 TB/s), f16 and sequences of thousands of keys:
//!
//! | head_dim | query rows, keys | flops per byte of global memory | workgroup memory | registers per lane | workgroups per processor | bound |
//! |---|---|---|---|---|---|---|
//! | 64 | 128, 32 | 128 | 35 KB | 64 sums + 32 queries + 60 | 3 | scores and weights through workgroup memory, three times as long as the products: 250 TFLOP/s |
//! | 128 | 64, 64 | 64 | 46 KB | 64 sums + 32 queries + 60 | 3 | keys and values out of workgroup memory, once for 16 rows: 230 TFLOP/s |
//! | 256 | 64, 32 | 64 | 33 KB | 128 sums + 64 queries + 60 | 2 | as for 128: 230 TFLOP/s |
//!
//! On lavapipe (Mesa 26, matrices of 8, two cores that other work shared), which says little about a GPU: f16 (1, 8, 1024, 64),
//! in turns with `attention_fused`: 2276 and 2018 ms against 2734 and 3584. Drivers repeat the body of a loop over matrices
//! for each, and lavapipe takes about half a second for each product of two: 4 s for a pipeline at head_dim 16, 35 s at 256.
//!
//! Ideas that lost:
//! - Fewer repeats where the count of a tile's key matrices is not a constant: the same 20 s for a pipeline of 64 / 128.

use super::AttentionFused;
use super::launch::{ROWS as ROW_LIBRARY, SKIP_MASKED, SKIP_NONE};
use crate::capabilities::Capabilities;
use crate::op::{Bindings, Launch, Technique, fold, index};
use crate::ops::operands::Sizes;
use crate::ops::{MATRICES_8, MATRICES_16};
use crate::precision::Precision;
use crate::shader::{Constant, ROUNDS, Shader, Source, wgsl};
use crate::tensor::{Dtype, TensorDesc};

const COOP: Source = wgsl!("attention_coop");

/// Subgroups of a workgroup, as in the shader.
const SUBGROUPS: usize = 4;

/// Elements of the output's sums, of one matrix of rows, that leave room for a second one: 32 registers in each of 32 lanes.
const NARROW: usize = 1024;

/// How a workgroup is divided.
#[derive(Debug, Clone, Copy)]
struct Tiling {
    edge: usize,
    lanes: usize,
    /// Matrices of query rows of each subgroup.
    rows: usize,
    /// Keys of a tile.
    keys: usize,
}

impl AttentionFused {
    /// The techniques with `attention_coop` among them, where it is offered: first where its matrices are mostly full, and not
    /// on software devices, which compute matrices element by element.
    pub(super) fn with_coop(
        &self,
        mut others: Vec<Technique>,
        inputs: &[TensorDesc],
        capabilities: &Capabilities,
    ) -> Vec<Technique> {
        if let (Some(launch), Ok(sizes), Some(edge)) =
            (self.coop(inputs, capabilities), self.sizes(inputs), capabilities.matrix_edge())
        {
            let full = self.rows_of_a_tile(&sizes) >= edge as usize && !capabilities.software;
            others.insert(if full { 0 } else { others.len() }, Technique::Gpu(launch));
        }
        others
    }

    fn coop(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Option<Launch> {
        let sizes = self.sizes(inputs).ok()?;
        let checked = self.checked(&sizes, inputs).ok()?;
        let rounds = inputs[..3].iter().any(|operand| operand.dtype != Dtype::F16);
        let empty = inputs[..3].iter().any(TensorDesc::is_empty) || sizes.head_dim == 0 || sizes.head_dim_v == 0;
        if (rounds && self.precision == Precision::Full) || empty {
            return None;
        }
        let tiling = Tiling::new(&sizes, capabilities)?;
        let mut bindings = Bindings::in_order(3, 1);
        let (mut libraries, mut constants) = self.storage(inputs[0].dtype, inputs, &sizes, &mut bindings);
        let (rules, rule_constants) = checked.link(&mut bindings);
        let matrices = if tiling.edge == 16 { MATRICES_16 } else { MATRICES_8 };
        libraries.extend([matrices, ROW_LIBRARY, if self.skips() { SKIP_MASKED } else { SKIP_NONE }]);
        libraries.extend(rules);
        let (partition, parts) = checked.parts(tiling.queries());
        libraries.push(partition);
        let heads_per_tile = self.heads_per_tile(&sizes, tiling.queries());
        constants.extend(rule_constants);
        constants.extend([
            ("HEAD_DIM", Constant::U32(index(sizes.head_dim))),
            ("VALUE_DIM", Constant::U32(index(sizes.head_dim_v))),
            ("HEADS_PER_TILE", Constant::U32(index(heads_per_tile))),
            ("RULED", Constant::Bool(self.rule.has_mask || self.rule.has_bias || self.rule.has_slopes)),
            (ROUNDS, Constant::Bool(rounds)),
            ("ROWS", Constant::U32(index(tiling.rows))),
            ("KEYS", Constant::U32(index(tiling.keys))),
            ("LANES", Constant::U32(index(tiling.lanes))),
        ]);
        let shader = Shader { main: COOP, libraries, constants };
        if bindings.count() > capabilities.storage_buffers {
            return None;
        }
        // Its weights are powers of e.
        let params = self.params(&sizes, &checked, tiling.queries(), self.scale);
        let workgroups = fold(sizes.batch * sizes.heads / heads_per_tile * parts, capabilities);
        Some(Launch { shader, params, workgroups, bindings })
    }
}

impl Tiling {
    /// The first that fits the device's workgroup memory, from the one that loads least for each product.
    fn new(sizes: &Sizes, capabilities: &Capabilities) -> Option<Self> {
        let edge = capabilities.matrix_edge()? as usize;
        let lanes = SUBGROUPS * capabilities.subgroups?.1 as usize;
        if lanes > capabilities.invocations as usize {
            return None;
        }
        let width = sizes.head_dim.max(sizes.head_dim_v).next_multiple_of(edge);
        let fits = |&Self { rows, keys, .. }: &Self| {
            let tiling = Self { edge, lanes, rows, keys };
            let two = rows == 1 || (edge * width <= NARROW && sizes.seq_q > SUBGROUPS * edge);
            // The rows of a tile's keys in pages are looked up by a lane each.
            two && keys >= edge
                && (sizes.pages.is_none() || keys <= lanes)
                && tiling.memory(width) <= capabilities.workgroup_memory as usize
        };
        let candidates = [(2, 64), (2, 32), (1, 64), (1, 32), (1, 16)];
        candidates.into_iter().map(|(rows, keys)| Self { edge, lanes, rows, keys }).find(fits)
    }

    fn queries(&self) -> usize {
        SUBGROUPS * self.rows * self.edge
    }

    /// Bytes of workgroup memory for heads of this width, whole matrices.
    fn memory(&self, width: usize) -> usize {
        let Self { keys, .. } = *self;
        let queries = self.queries();
        let split = (self.lanes / queries).clamp(1, keys / 4);
        let tile = 2 * keys * (width + 8);
        let scores = queries * (4 * (keys + 4) + 2 * (keys + 8));
        // Rows of pages and flags come to less than what is added for them.
        tile + scores + 4 * queries * (3 * split + 1) + 4 * keys + 128
    }
}
