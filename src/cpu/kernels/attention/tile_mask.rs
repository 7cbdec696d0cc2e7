//! Masks of a tile, whose scores lie as `[key][row]`.

use super::job::Job;
use super::pack::NonFinite;
use crate::cpu::kernels::mask;
use pulp::Simd;
use std::ops::Range;

/// Gathers bias and boolean mask of rows of the job, `[key][row]`, for as many keys as `row_f32` has room for.
#[inline(always)]
pub fn read_bias<S: Simd, const R: usize>(
    job: &Job,
    rows: Range<usize>,
    first_key: usize,
    row_f32: &mut [f32],
    bias: &mut [[S::f32s; R]],
) {
    let lanes = R * S::F32_LANES;
    let flat: &mut [f32] = bytemuck::cast_slice_mut(bias);
    if rows.len() < lanes {
        flat.fill(0.0);
    }
    for (lane, row) in rows.enumerate() {
        job.read_bias(row, first_key, row_f32);
        for (x, column) in row_f32.iter().zip(flat.chunks_exact_mut(lanes)) {
            column[lane] = *x;
        }
    }
}

/// Adds what [`read_bias`] gathered, or masks.
#[inline(always)]
pub fn add_bias<S: Simd, const R: usize>(simd: S, bias: &[[S::f32s; R]], fill: f32, scores: &mut [[S::f32s; R]]) {
    let fill = simd.splat_f32s(fill);
    for (score, bias) in scores.iter_mut().zip(bias) {
        for r in 0..R {
            score[r] = mask::apply_dense(simd, bias[r], score[r], fill);
        }
    }
}

/// Masks each row from its key in `ends` on.
#[inline(always)]
pub fn mask_causal<S: Simd, const R: usize>(
    simd: S,
    ends: &[S::i32s],
    first_key: usize,
    fill: f32,
    scores: &mut [[S::f32s; R]],
) {
    let fill = simd.splat_f32s(fill);
    for (key, score) in scores.iter_mut().enumerate() {
        let key = simd.splat_i32s(i32::try_from(first_key + key).unwrap_or(i32::MAX));
        for r in 0..R {
            score[r] = simd.select_f32s(simd.less_than_i32s(key, ends[r]), score[r], fill);
        }
    }
}

/// For each non-finite value, whether each row sees its key.
pub fn visible_scores<S: Simd, const R: usize>(non_finite: &[NonFinite], scores: &[[S::f32s; R]]) -> Vec<bool> {
    let lanes = R * S::F32_LANES;
    let flat: &[f32] = bytemuck::cast_slice(scores);
    let mut visible = Vec::with_capacity(non_finite.len() * lanes);
    for entry in non_finite {
        match flat.chunks_exact(lanes).nth(entry.key) {
            Some(row) => visible.extend(row.iter().map(|&score| score != f32::NEG_INFINITY)),
            // Behind the last key that this tile can see.
            None => visible.resize(visible.len() + lanes, false),
        }
    }
    visible
}

/// Adds the products of non-finite values and the weights of the rows that see them.
pub fn add_visible(non_finite: &[NonFinite], visible: &[bool], weights: &[f32], lanes: usize, out: &mut [f32]) {
    for (entry, visible) in non_finite.iter().zip(visible.chunks_exact(lanes)) {
        for lane in (0..lanes).filter(|&lane| visible[lane]) {
            out[entry.column * lanes + lane] += weights[entry.key * lanes + lane] * entry.value;
        }
    }
}
