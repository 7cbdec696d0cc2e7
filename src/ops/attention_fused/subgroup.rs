//! The technique `attention_subgroup`: teams of four lanes that know of each other by subgroup operations.

use super::AttentionFused;
use super::launch::Kernel;
use crate::capabilities::Capabilities;
use crate::op::Launch;
use crate::ops::BLOCKS;
use crate::shader::{Source, wgsl};
use crate::tensor::TensorDesc;

const SUBGROUP: Source = wgsl!("attention_subgroup");

/// Lanes of a team, the least size of a subgroup that will do.
const TEAM: u32 = 4;

impl AttentionFused {
    /// None where the device has no subgroups, or some that are smaller than a team.
    pub(super) fn subgroup(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Option<Launch> {
        capabilities.subgroups.filter(|&(least, _)| least >= TEAM)?;
        let rows = self.rows_of_a_tile(&self.sizes(inputs).ok()?);
        let queries = [16, 32].into_iter().find(|&queries| rows <= queries).unwrap_or(64);
        self.fused(
            inputs,
            capabilities,
            Kernel { main: SUBGROUP, libraries: vec![BLOCKS], queries, keys: 32, constants: Vec::new() },
        )
    }
}
