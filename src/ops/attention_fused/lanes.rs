//! The technique `attention_lanes`: two whole query rows to a lane, keys and values in workgroup memory.
//!
//! Such drivers load what is the same for all lanes once, and what differs element by element, so that blocks of registers
//! filled from workgroup memory, which a GPU wants, cost them eight loads each. GFLOP/s on two cores, from the processor time of
//! runs on a busy machine, (1, 4, 1024, 64) f32 without a mask, Mesa 26's lavapipe, kernels without any rule: one row to a lane
//! without workgroup memory 21 to 24, with 16 keys in it 27; two rows 34; four rows 40, four rows and 16 keys at a time 54.
//! With four rows a kernel takes 1.8 s to compile in place of 0.6. A loop over the keys of a tile whose end is not a
//! constant: 20 in place of 28.

use super::AttentionFused;
use super::launch::Kernel;
use crate::capabilities::Capabilities;
use crate::op::Launch;
use crate::shader::{Source, wgsl};
use crate::tensor::TensorDesc;

const LANES: Source = wgsl!("attention_lanes");

/// Largest head dimension, as a lane holds two rows of q and of o.
const MAX_WIDTH: usize = 128;

/// Most bytes of a tile's keys and values.
const TILE_BYTES: usize = 8 << 10;

impl AttentionFused {
    pub(super) fn lanes(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Option<Launch> {
        let sizes = self.sizes(inputs).ok()?;
        let widths = [sizes.head_dim, sizes.head_dim_v].map(|width| width.next_multiple_of(4).max(4));
        if widths.into_iter().max() > Some(MAX_WIDTH) {
            return None;
        }
        // Powers of two, so that tiles of keys and pages meet.
        let fits = |keys: &usize| keys * (widths[0] + widths[1]) * size_of::<f32>() <= TILE_BYTES;
        let keys = [16, 8].into_iter().find(fits)?;
        let rows = self.rows_of_a_tile(&sizes);
        let queries = [16, 32].into_iter().find(|&queries| rows <= queries).unwrap_or(64);
        self.fused(
            inputs,
            capabilities,
            Kernel { main: LANES, libraries: Vec::new(), queries, keys, constants: Vec::new() },
        )
    }
}
