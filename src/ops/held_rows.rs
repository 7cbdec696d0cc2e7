//! Rows that a team of lanes holds in registers: what `softmax_held`, `layer_norm_held` and `rms_norm_held` share.
//!
//! A lane holds up to eight fours of a row, so each element is read once and written once. Teams are as small as that
//! allows, since lanes that wait for each other are what costs, and several share a workgroup where rows are short.
//! Rows up to 32 × the lanes of a workgroup fit: 8,192 elements at the least that WebGPU guarantees, 16,384 at the
//! most.
//!
//! What bounds them on a GPU (estimates, for one that copies 4.3 TB/s; nothing here was measured on one): an element is
//! 8 bytes of traffic in f32 and 4 in f16, against 5 (softmax), 8 (layer_norm) and 4 (rms_norm) operations, so memory
//! bounds them, at 0.54 and 1.1 · 10¹² elements a second. The 32 registers that hold the row, and about 24 more, leave
//! room for about 1,000 lanes on a processor of 65,536 registers, which have up to 128 KiB under way; about 23 KiB are
//! needed at a latency of 700 ns. Workgroup memory is at most 16 bytes a lane. Kernels that walk a row in memory read it
//! twice (softmax, rms_norm) or three times (layer_norm): out of a cache where it is still there, else at 2/3 and 1/2
//! of the rate. Weights, scales and biases are loaded one by one; they come out of a cache, by four times the
//! instructions.
//!
//! Ideas that lost, all on lavapipe with two busy cores, in turns, best of seven, f32 [4096, 4096] unless said:
//! - The row in workgroup memory in place of registers: softmax 0.47 GB/s against 0.73 by fours and 0.68 against 1.03
//!   by single elements (Mesa 26), 0.47 against 0.85 by fours (Mesa 22); rms_norm 0.78 against 1.07 (Mesa 26). It may
//!   win where a compiler spills.
//! - More lanes with less each: softmax of [8192, 512] by single elements 1.42 GB/s with 16 lanes of 8 fours, 0.77
//!   with 32 of 4, 0.47 with 64 of 2 (Mesa 26).
//! - Single elements, neighbours in neighbouring lanes, where the length is a multiple of 4: they win on Mesa 26 with
//!   f32 (softmax 1.03 against 0.73 GB/s, rms_norm 1.81 against 1.07); fours win on Mesa 22 (softmax 0.85 against
//!   0.57), and with f16 on both (softmax 0.39 against 0.29, 0.32 against 0.18). On a GPU fours take a quarter of the
//!   load instructions.
//! - Remainders for a scale and bias of layer_norm that have a row's length: 0.23 GB/s against 0.30 without (Mesa
//!   26), 0.16 against 0.25 (Mesa 22).

use crate::capabilities::Capabilities;
use crate::op::{fold, index};
use crate::shader::{Constant, Shader, Source, wgsl};

const ROW: Source = wgsl!("lib/held_row");
const CHANGED: Source = wgsl!("lib/held_changed");
const FOURS: Source = wgsl!("lib/held_fours");
const ONES: Source = wgsl!("lib/held_ones");
const REDUCE_TEAM: Source = wgsl!("lib/reduce_team");

/// Fours of a lane, as in `held_row`.
const MOST_FOURS: usize = 8;

/// Most lanes of a team: with more, 64 registers each are all that a processor has.
const MOST_LANES: usize = 512;

/// Lanes of a workgroup of small teams: the largest subgroup that is common.
const LEAST_LANES: usize = 64;

/// Least lanes of a team whose row is longer than that many fours: together they read 128 bytes of f32.
const LEAST_TEAM: usize = 8;

/// Row lengths for cases: around what one four, one lane and one team of each size hold, around the limits at 256 lanes
/// and at 512, each once above; multiples of four and others.
pub(super) const EDGES: [usize; 30] = [
    1, 2, 3, 4, 5, 8, 31, 32, 33, 36, 63, 64, 65, 255, 256, 257, 260, 512, 516, 1021, 1023, 1024, 1025, 2052, 4100,
    8191, 8192, 8193, 16_384, 16_385,
];

/// Rows of one length, and how they are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HeldRows {
    rows: usize,
    length: usize,
    team: usize,
    fours: usize,
}

/// Whether a kernel changes held elements before it writes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    AsRead,
    Changed,
}

impl HeldRows {
    /// `None` where there is nothing to hold or a row is too long.
    pub fn new(rows: usize, length: usize, capabilities: &Capabilities) -> Option<Self> {
        if rows == 0 || length == 0 {
            return None;
        }
        let fours = length.div_ceil(4);
        let least = fours.next_power_of_two().min(LEAST_TEAM);
        let team = fours.div_ceil(MOST_FOURS).next_power_of_two().max(least);
        let fits = team <= MOST_LANES.min(capabilities.invocations as usize);
        fits.then_some(Self { rows, length, team, fours: fours.div_ceil(team) })
    }

    fn lanes(&self) -> usize {
        self.team.max(LEAST_LANES)
    }

    pub fn workgroups(&self, capabilities: &Capabilities) -> [u32; 3] {
        fold(self.rows.div_ceil(self.lanes() / self.team), capabilities)
    }

    /// The kernel with its own libraries and constants, and what every kernel of held rows has.
    pub fn shader(
        &self,
        main: Source,
        held: Held,
        mut libraries: Vec<Source>,
        mut constants: Vec<(&'static str, Constant)>,
    ) -> Shader {
        let cells = if self.length.is_multiple_of(4) { FOURS } else { ONES };
        libraries.extend([cells, ROW, REDUCE_TEAM]);
        libraries.extend((held == Held::Changed).then_some(CHANGED));
        let sizes = [("LANES", self.lanes()), ("TEAM", self.team), ("FOURS", self.fours)];
        constants.extend(sizes.map(|(name, size)| (name, Constant::U32(index(size)))));
        Shader { main, libraries, constants }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn teams_hold_their_rows_and_no_more_lanes_than_there_are() {
        let baseline = Capabilities::baseline();
        let roomy = Capabilities { invocations: 1024, ..Capabilities::baseline() };
        for (capabilities, longest) in [(&baseline, 8192), (&roomy, 16_384)] {
            for length in 1..=longest {
                let held = HeldRows::new(7, length, capabilities).unwrap();
                let HeldRows { team, fours, .. } = held;
                assert!(team.is_power_of_two() && held.lanes() <= capabilities.invocations as usize, "{length}");
                assert!(fours <= MOST_FOURS && 4 * fours * team >= length, "{length}: {held:?}");
                assert!(4 * (fours - 1) * team < length, "{length}: a four without elements in {held:?}");
            }
            assert_eq!(HeldRows::new(7, longest + 1, capabilities), None);
        }
        assert_eq!(HeldRows::new(7, 0, &baseline), None);
        assert_eq!(HeldRows::new(0, 7, &baseline), None);
    }

    #[test]
    fn short_rows_share_a_workgroup() {
        let capabilities = Capabilities::baseline();
        let workgroups = |rows, length| HeldRows::new(rows, length, &capabilities).unwrap().workgroups(&capabilities);
        assert_eq!(workgroups(65, 3), [2, 1, 1]);
        assert_eq!(workgroups(17, 256), [3, 1, 1]);
        assert_eq!(workgroups(3, 8192), [3, 1, 1]);
    }
}
