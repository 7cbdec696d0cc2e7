//! The technique `attention_lanes`: whole query rows to a lane, four keys and their values in workgroup memory.
//!
//! Drivers that run shaders on the host load what is the same for all lanes once, and what differs element by element, so that
//! blocks of registers filled from workgroup memory, which a GPU wants, cost them eight loads each.
//!
//! What counts there, in GFLOP/s on two cores of an AMD EPYC by the processor time of runs, (1, 8, 1024, 64) f32 without a mask,
//! Mesa 26's lavapipe:
//! - Tiles of 64 rows and 16 keys walked four at a time, two rows to a lane: 26. Four keys to a tile, so that their addresses are
//!   constants: 42. Four rows to a lane: 44. 128 rows share what a tile's loads cost: 49. Without divisions for a lane's number
//!   behind each barrier: 54. 256 rows: 57, but under a causal mask more keys are visited for nothing.
//! - Keys in registers of a loop with constant bounds: 8 to a tile 57, 16 to a tile 50, 32 to a tile 50 (256 rows), and 2.3, 4.6
//!   and 10 s to compile in place of 1.5.
//! - Keys and values from their buffers, without workgroup memory: 20 to 25, or 45 where the address was a shift of one number.
//! - The same with addresses that nothing is divided for, four rows to a lane: 24, eight rows: 17, beside 40 to 46.
//! - `fma` in place of products and sums: no difference (45 to 47 ms).
//! - A loop over the keys of a tile whose end is not a constant: 20 in place of 28.
//!
//! At head_dim 128 four rows take 7 s to compile and are 9 % faster than two.

use super::AttentionFused;
use super::launch::{Kernel, Staging};
use crate::capabilities::Capabilities;
use crate::op::Launch;
use crate::shader::{Constant, Source, wgsl};
use crate::tensor::TensorDesc;

const LANES: Source = wgsl!("attention_lanes");

/// Largest head dimension, as a lane holds two rows of q and of o.
const MAX_WIDTH: usize = 128;

/// Largest head dimension at which it holds four.
const MAX_WIDTH_OF_FOUR: usize = 64;

/// Keys of a tile.
const KEYS: usize = 4;

impl AttentionFused {
    pub(super) fn lanes(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Option<Launch> {
        let sizes = self.sizes(inputs).ok()?;
        let width = sizes.head_dim.max(sizes.head_dim_v);
        if width > MAX_WIDTH {
            return None;
        }
        let rows = self.rows_of_a_tile(&sizes);
        let queries = [16, 32, 64].into_iter().find(|&queries| rows <= queries).unwrap_or(128);
        let rows_of_a_lane = if queries == 128 && width <= MAX_WIDTH_OF_FOUR { 4 } else { 2 };
        let constants = vec![("ROWS", Constant::U32(rows_of_a_lane))];
        let staging = Staging::new(inputs, &sizes, queries / rows_of_a_lane as usize);
        let parts = [sizes.head_dim, sizes.head_dim_v].map(|width| width.div_ceil(4).max(1));
        let rounds = parts.map(|parts| staging.rounds(KEYS * parts, 1) + parts + 1).iter().sum();
        let kernel = Kernel { main: LANES, libraries: Vec::new(), queries, keys: KEYS, constants, rounds, shares: 1 };
        self.fused(inputs, capabilities, kernel)
    }
}
