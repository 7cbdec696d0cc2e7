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
//! - 256 rows to a tile, beside 128 in turns, by processor time: 36 and 40 ms. 512 rows: 40. Causal 25 and 24, and 18 and 20 since
//!   vectors jump over keys that none of their rows sees.
//! - Eight rows to a lane: 35 to 47 ms beside 41 to 51, and 7 s to compile.
//! - Keys staged by uniform loads, of each of four vectors a quarter: 99 ms beside 49, all of them by each vector 270: a store to
//!   workgroup memory costs as much for one number as for eight.
//! - Keys from their buffers, barriers where tiles begin, four and eight rows to a lane: 60 and 48 to 55 ms beside 46 to 53. The
//!   same without barriers: 73, as products with `shrink` are then made for all of `o` first and put aside.
//! - Keys in the lanes of a vector, handed on by `subgroupBroadcast`: 50 ms beside 49, with eight rows 45.
//! - `fma` in place of products and sums: no difference (45 to 47 ms).
//! - What a vector runs from one barrier to the next, if it is longer than some 2,400 instructions, is decoded anew for each vector of
//!   the workgroup, and a core that could do four or five instructions a cycle does 2.3 (straight-line code of the same kind, by its
//!   length). A barrier between scores and values: 48 ms beside 53. Values in two halves as well: 34 beside 39. The next keys and
//!   values staged while the last ones are used, a barrier less and stores with time to drain: 46 beside 53. Sums that shrink only
//!   where a maximum has risen by `RISE`: 42 beside 50. The softmax behind the first barrier: 32 beside 42. The path for NaN apart from
//!   the other, not within its loops: causal 28 beside 32. Lanes that own neighbouring rows, so that a vector jumps over keys that none
//!   of its rows sees: a window of 256 25 beside 31, causal 22 beside 24.
//! - Beside these (30 to 36 ms): scores in two halves as well 34, eight keys to a tile 34 to 37, eight rows to a lane 35 to 39 and 5 s to
//!   compile, keys from their buffers 44, 512 rows to a tile no difference. A barrier between a row's scores and what makes them whole:
//!   109, as LLVM repeats behind a barrier all arithmetic that ends in what is used there, up to a branch or call. Rows that are
//!   whole told apart lane by lane: 39 beside 35. Values of a poisoned tile unrolled for all four keys: twice the time to compile.
//! - A loop over the keys of a tile whose end is not a constant: 20 in place of 28.
//!
//! At head_dim 128 four rows take 7 s to compile and are 9 % faster than two.
//!
//! One form of it cannot be compiled by LLVM 19 for vectors of 16 lanes on a processor with AVX-512, which nothing but
//! `LP_NATIVE_VECTOR_WIDTH=512` asks for: bf16, head_dim 21, values of 23, unchecked (`Cannot emit physreg copy instruction`; LLVM's
//! issue 63735 is of the same message and kind of processor). Where queries are loaded as whole words it compiles. Telling halves of
//! words apart by shifts, masks or an index in place of `select` changes nothing, nor does leaving out the masks, the halves of keys or
//! of values, atomic stores, or what a rise of the maximum does.

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

/// Rows of a tile that share what its keys cost, where there are many.
const TALL: usize = 256;

/// Such tiles for each of the host's threads, so that none is idle for long at the end.
const TILES_OF_A_PROCESSOR: usize = 4;

impl AttentionFused {
    pub(super) fn lanes(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Option<Launch> {
        let sizes = self.sizes(inputs).ok()?;
        let width = sizes.head_dim.max(sizes.head_dim_v);
        if width > MAX_WIDTH {
            return None;
        }
        let rows = self.rows_of_a_tile(&sizes);
        let four = width <= MAX_WIDTH_OF_FOUR;
        // Lower tiles more often have a mask that hides all of a tile's keys. Keys that a band hides cost a row little.
        let tall = four && !self.skips() && {
            let tiles = sizes.batch * sizes.heads * (sizes.seq_q / TALL);
            tiles >= TILES_OF_A_PROCESSOR * capabilities.processors as usize
        };
        let largest = if tall { TALL } else { 128 };
        let queries = [16, 32, 64].into_iter().find(|&queries| rows <= queries).unwrap_or(largest);
        let rows_of_a_lane = if queries >= 128 && four { 4 } else { 2 };
        let constants = vec![("ROWS", Constant::U32(rows_of_a_lane))];
        let staging = Staging::new(inputs, &sizes, queries / rows_of_a_lane as usize);
        let parts = [sizes.head_dim, sizes.head_dim_v].map(|width| width.div_ceil(4).max(1));
        let staged: usize = parts.map(|parts| staging.rounds(KEYS * parts, 1)).iter().sum();
        let halves = parts[1] + 2;
        let sees_all = self.checked(&sizes, inputs).ok()?.sees_all();
        let poisoned = if sees_all { 0 } else { KEYS * (halves + 2) };
        // Scores, o where a maximum rises, the values in halves, also key by key where one is poisoned, and the way to the next tile.
        let rounds = staged + parts[0] + 1 + parts[1] + 1 + halves + poisoned + 2;
        let kernel = Kernel { main: LANES, libraries: Vec::new(), queries, keys: KEYS, constants, rounds, shares: 1 };
        self.fused(inputs, capabilities, kernel)
    }
}
