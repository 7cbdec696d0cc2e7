//! The technique `attention_subgroup`: teams of four lanes that know of each other by subgroup operations.

use super::AttentionFused;
use super::launch::{Kernel, Staging};
use crate::capabilities::Capabilities;
use crate::op::Launch;
use crate::ops::BLOCKS;
use crate::ops::operands::Sizes;
use crate::shader::{Source, wgsl};
use crate::tensor::TensorDesc;

const SUBGROUP: Source = wgsl!("attention_subgroup");

/// Keys of a tile.
const KEYS: usize = 32;

/// Vectors of queries' and keys' dimensions that are staged together, and of values'.
const PARTS: usize = 8;
const WIDTH: usize = 16;

/// Lanes of a team, the least size of a subgroup that will do.
const TEAM: u32 = 4;

impl AttentionFused {
    /// None where the device has no subgroups, or some that are smaller than a team.
    pub(super) fn subgroup(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Option<Launch> {
        capabilities.subgroups.filter(|&(least, _)| least >= TEAM)?;
        let sizes = self.sizes(inputs).ok()?;
        let rows = self.rows_of_a_tile(&sizes);
        let queries = [16, 32].into_iter().find(|&queries| rows <= queries).unwrap_or(64);
        self.fused(
            inputs,
            capabilities,
            Kernel {
                main: SUBGROUP,
                libraries: vec![BLOCKS],
                queries,
                keys: KEYS,
                constants: Vec::new(),
                rounds: rounds(Staging::new(inputs, &sizes, queries), &sizes, queries),
                shares: 1,
            },
        )
    }
}

/// Of a tile of keys, with as many lanes as query rows.
fn rounds(staging: Staging, sizes: &Sizes, queries: usize) -> usize {
    let [queries, keys] = [queries, KEYS].map(|rows| staging.rounds(rows * PARTS, 1));
    let scores = sizes.head_dim.div_ceil(4 * PARTS).max(1) * (1 + queries + keys + PARTS + 1) + 1;
    let values = sizes.head_dim_v.div_ceil(4 * WIDTH).max(1) * (2 + staging.rounds(KEYS * WIDTH, 1)) + 1;
    // Between them the rule, for eight vectors of scores.
    scores + 9 + values
}
