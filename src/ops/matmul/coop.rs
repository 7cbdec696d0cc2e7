//! `matmul_coop`: cooperative matrices, f16 factors and f32 sums.
//!
//! A workgroup is four subgroups, two by two, each with a block of 4 × 4 or 2 × 2 matrices of sums; the tile is twice as large.
//! Not offered where zeros annihilate: a matrix product cannot leave a term out.
//!
//! Estimates, not measured, for an H200-class GPU (subgroups of 32, matrices of 16, f16 products at 790 TFLOP/s, copies at
//! 4.3 TB/s), f16 in and out, and k large:
//!
//! | block, tile | flops per byte of global memory | workgroup memory | registers per lane | workgroups per processor | bound |
//! |---|---|---|---|---|---|
//! | 4 × 4, 128 × 128 | 64 | 25 KB | 128 sums + 32 factors + 50 | 2 | loads from workgroup memory, about as long as the products: 400 TFLOP/s |
//! | 2 × 2, 64 × 64 | 32 | 15 KB | 32 sums + 16 factors + 50 | 5 | twice the loads for each product: 200 TFLOP/s |
//!
//! A step of k is staged and then multiplied, so that the other workgroups of a processor must hide its loads.
//! On lavapipe (Mesa 26) a pipeline of 4 × 4 takes 6 s to compile, which is one more reason for small blocks in small products.

use super::{BATCH, LEFT_EACH, LEFT_FOURS, MatMul, Problem, RIGHT_EACH, RIGHT_FOURS, Zeros};
use crate::capabilities::Capabilities;
use crate::op::{Bindings, Launch, fold};
use crate::ops::{MATRICES_8, MATRICES_16};
use crate::precision::Precision;
use crate::shader::{Constant, ROUNDS, Shader, Source, wgsl};
use crate::tensor::{Dtype, TensorDesc};

const COOP: Source = wgsl!("matmul_coop");

/// Subgroups of a workgroup, and those along each side of its tile, as in the shader.
const SUBGROUPS: u32 = 4;
const SIDE: usize = 2;
/// Steps of k, and elements between two rows that are staged, as in the shader.
const DEPTH: usize = 32;
const PAD: usize = 8;

/// Whether matrices of the device's size are mostly full, so that they are the first choice.
pub(super) fn fits(problem: &Problem, capabilities: &Capabilities) -> bool {
    let edge = capabilities.matrix_edge().map_or(usize::MAX, |edge| edge as usize);
    problem.m >= edge && problem.n >= edge && problem.k >= edge
}

impl MatMul {
    pub(super) fn coop(&self, problem: &Problem, inputs: &[TensorDesc], capabilities: &Capabilities) -> Option<Launch> {
        let edge = capabilities.matrix_edge()?;
        let rounds = inputs[..2].iter().any(|factor| factor.dtype != Dtype::F16);
        let empty = problem.batch_count() * problem.m * problem.n * problem.k == 0;
        if self.zeros == Zeros::Annihilate || (rounds && self.precision == Precision::Full) || empty {
            return None;
        }
        let block = Self::block(problem, edge as usize);
        let tile = SIDE * block * edge as usize;
        let (_, largest) = capabilities.subgroups?;
        let lanes = SUBGROUPS * largest;
        if lanes > capabilities.invocations || memory(tile, edge as usize) > capabilities.workgroup_memory as usize {
            return None;
        }
        let mut constants = vec![
            ("TRANSPOSED_B", Constant::Bool(self.transpose_b)),
            (ROUNDS, Constant::Bool(rounds)),
            ("BLOCK", Constant::U32(block as u32)),
            ("LANES", Constant::U32(lanes)),
            ("ElemA", Constant::Scalar(inputs[0].dtype)),
            ("ElemB", Constant::Scalar(inputs[1].dtype)),
            ("Elem", Constant::Scalar(self.output.unwrap_or(inputs[0].dtype))),
        ];
        let mut bindings = Bindings::in_order(2, 1);
        let b_width = if self.transpose_b { problem.k } else { problem.n };
        let mut libraries = vec![
            BATCH,
            if edge == 16 { MATRICES_16 } else { MATRICES_8 },
            if problem.k.is_multiple_of(4) { LEFT_FOURS } else { LEFT_EACH },
            if b_width.is_multiple_of(4) { RIGHT_FOURS } else { RIGHT_EACH },
        ];
        libraries.extend(self.after(inputs, &mut constants, &mut bindings));
        let tiles = problem.m.div_ceil(tile) * problem.n.div_ceil(tile);
        Some(Launch {
            shader: Shader { main: COOP, libraries, constants },
            params: self.params(problem).into(),
            workgroups: fold(problem.batch_count() * tiles, capabilities),
            bindings,
        })
    }

    /// Matrices along each side of a subgroup's block: large blocks load less for each product, small ones leave less of a tile
    /// empty and more workgroups to share among processors.
    fn block(problem: &Problem, edge: usize) -> usize {
        let large = SIDE * 4 * edge;
        let tiles = problem.batch_count() * problem.m.div_ceil(large) * problem.n.div_ceil(large);
        if tiles < ENOUGH || problem.m.min(problem.n) <= large / 2 { 2 } else { 4 }
    }
}

/// Tiles that keep the processors of a large GPU busy.
const ENOUGH: usize = 128;

/// Bytes of workgroup memory.
fn memory(tile: usize, edge: usize) -> usize {
    let b = (tile * (DEPTH + PAD)).max(DEPTH * (tile + PAD));
    2 * (tile * (DEPTH + PAD) + b) + 4 * SUBGROUPS as usize * edge * edge
}
