//! The technique `attention_fused`: tiles of query rows × keys in workgroup memory, a block of 8 × 8 to a lane.

use super::AttentionFused;
use super::launch::{Kernel, Staging};
use crate::capabilities::Capabilities;
use crate::op::{Launch, index};
use crate::ops::BLOCKS;
use crate::ops::operands::Sizes;
use crate::shader::{Constant, Source, wgsl};
use crate::tensor::TensorDesc;

const TILED: Source = wgsl!("attention_fused");
const TILES: Source = wgsl!("lib/attention_tiles");

/// Query rows of a tile, keys whose values are staged together, bytes of workgroup memory (with the rows of a paged tile's keys,
/// and what skips tiles) and lanes, the least first.
const TILES_BY_SIZE: [Tile; 3] = [
    Tile { queries: 32, slice: 16, bytes: 13_632, lanes: 32 },
    Tile { queries: 64, slice: 32, bytes: 25_920, lanes: 64 },
    Tile { queries: 128, slice: 32, bytes: 42_304, lanes: 128 },
];

/// Keys of a tile.
const KEYS: usize = 64;

/// Dimensions of queries and keys that are staged together, and of values.
const CHUNK: usize = 32;
const WIDTH: usize = 64;

struct Tile {
    queries: usize,
    slice: usize,
    bytes: u32,
    lanes: u32,
}

impl AttentionFused {
    /// The largest tile that the device takes and that the rows fill, or the least one.
    pub(super) fn tiled(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Option<Launch> {
        let sizes = self.sizes(inputs).ok()?;
        let rows = self.rows_of_a_tile(&sizes);
        let takes =
            |tile: &&Tile| tile.bytes <= capabilities.workgroup_memory && tile.lanes <= capabilities.invocations;
        let mut taken = TILES_BY_SIZE.iter().filter(takes);
        let least = taken.next()?;
        let tile = taken.rfind(|tile| rows >= tile.queries).unwrap_or(least);
        self.fused(
            inputs,
            capabilities,
            Kernel {
                main: TILED,
                libraries: vec![TILES, BLOCKS],
                queries: tile.queries,
                keys: KEYS,
                constants: vec![("KEY_SLICE", Constant::U32(index(tile.slice)))],
                rounds: tile.rounds(Staging::new(inputs, &sizes, tile.lanes as usize), &sizes),
                shares: 1,
            },
        )
    }
}

impl Tile {
    fn rounds(&self, staging: Staging, sizes: &Sizes) -> usize {
        let blocks = |rows: usize| staging.rounds(rows / 4 * (CHUNK / 4), 4);
        let scores = sizes.head_dim.div_ceil(CHUNK) * (1 + blocks(self.queries) + blocks(KEYS) + CHUNK + 1) + 1;
        let slice = 1 + staging.rounds(self.slice * WIDTH / 4, 1) + self.slice + 1;
        let values = sizes.head_dim_v.div_ceil(WIDTH) * (KEYS / self.slice * slice + 2) + 1;
        // Between them the rule, for 16 vectors of scores, and the maxima of eight lanes.
        scores + 17 + 9 + values
    }
}
