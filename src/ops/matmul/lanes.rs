//! The technique `matmul_lanes`: whole rows to a lane, for drivers that run shaders on the host; why it suits them is said in
//! `attention_fused/lanes.rs`.
//!
//! The layer of the suite `layer`, two products and attention, takes 49 ms on Mesa 26's software device in place of 145 with
//! `matmul_tiled`; Mesa 22.3 loads for each lane, and takes more than 1.5 s in place of 0.3 (two cores of an AMD EPYC).

use super::{Kernel, MatMul, Problem};
use crate::capabilities::Capabilities;
use crate::op::{Launch, index};
use crate::shader::{Constant, Source, wgsl};
use crate::tensor::TensorDesc;

const LANES: Source = wgsl!("matmul_lanes");

/// Rows of a tile.
const ROWS: usize = 128;

/// Fewer rows would leave most lanes without one.
const LEAST_ROWS: usize = 32;

impl MatMul {
    pub(super) fn lanes(
        &self,
        problem: &Problem,
        inputs: &[TensorDesc],
        capabilities: &Capabilities,
    ) -> Option<Launch> {
        let parts = if problem.n <= 32 { 8 } else { 16 };
        // Each four of k are staged by 32 lanes and multiplied part by part.
        let rounds = problem.k.div_ceil(4) * (4 * parts / 32 + parts + 3);
        if problem.m < LEAST_ROWS || !capabilities.completes(rounds) {
            return None;
        }
        let tiles = problem.m.div_ceil(ROWS) * problem.n.div_ceil(4 * parts);
        let constants = vec![("PARTS", Constant::U32(index(parts)))];
        let kernel = Kernel { main: LANES, libraries: self.factor_files(problem, inputs), constants };
        self.launch(kernel, tiles, problem, inputs, capabilities)
    }
}
