//! Masks of a tile, whose scores lie as `[key][row]`.

use super::job::Job;
use super::pack::NonFinite;
use crate::cpu::kernels::{mask, tanh};
use pulp::Simd;
use std::ops::Range;

/// What happens to the scores of a tile against keys from `first_key` on.
pub struct Masks<'a, 'j, 'o> {
    pub job: &'a Job<'j, 'o>,
    /// Of the job.
    pub rows: Range<usize>,
    pub bounds: &'a Bounds<'a>,
    pub slopes: Option<&'a TileSlopes<'a>>,
    pub first_key: usize,
    pub fill: f32,
}

impl Masks<'_, '_, '_> {
    /// Caps the scores, subtracts slopes, adds the bias and masks. `row_f32` has room for a row of scores, `bias` for
    /// all of them.
    #[inline(always)]
    pub fn apply<S: Simd, const R: usize>(
        &self,
        simd: S,
        row_f32: &mut [f32],
        bias: &mut [[S::f32s; R]],
        scores: &mut [[S::f32s; R]],
    ) {
        let masking = &self.job.args.masking;
        if let Some(cap) = masking.softcap {
            soft_cap(simd, cap, scores);
        }
        if let Some(slopes) = self.slopes {
            slopes.subtract(simd, self.first_key, scores);
        }
        if mask::is_dense(masking) {
            let bias = &mut bias[..scores.len()];
            read_bias::<S, R>(self.job, self.rows.clone(), self.first_key, row_f32, bias);
            add_bias(simd, bias, self.fill, scores);
        }
        if self.bounds.start[1] > self.first_key {
            let (starts, _) = S::as_simd_i32s(self.bounds.starts);
            mask_before(simd, starts, self.first_key, self.fill, scores);
        }
        if self.bounds.end[0] < self.first_key + scores.len() {
            let (ends, _) = S::as_simd_i32s(self.bounds.ends);
            mask_from(simd, ends, self.first_key, self.fill, scores);
        }
    }
}

/// Gathers bias and boolean mask of rows of the job, `[key][row]`, for as many keys as `row_f32` has room for.
#[inline(always)]
fn read_bias<S: Simd, const R: usize>(
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
fn add_bias<S: Simd, const R: usize>(simd: S, bias: &[[S::f32s; R]], fill: f32, scores: &mut [[S::f32s; R]]) {
    let fill = simd.splat_f32s(fill);
    for (score, bias) in scores.iter_mut().zip(bias) {
        for r in 0..R {
            score[r] = mask::apply_dense(simd, bias[r], score[r], fill);
        }
    }
}

/// Caps every score.
#[inline(always)]
fn soft_cap<S: Simd, const R: usize>(simd: S, cap: f32, scores: &mut [[S::f32s; R]]) {
    for score in scores.as_flattened_mut() {
        *score = tanh::soft_cap(simd, *score, cap);
    }
}

/// Slope and position of each row of a tile. Those of rows of padding are zero.
pub struct TileSlopes<'a> {
    /// Times −1.
    slopes: &'a mut [f32],
    positions: &'a mut [i32],
}

impl<'a> TileSlopes<'a> {
    /// No row yet.
    #[inline(always)]
    pub fn new(slopes: &'a mut [f32], positions: &'a mut [i32]) -> Self {
        slopes.fill(0.0);
        positions.fill(0);
        Self { slopes, positions }
    }

    /// Sets those of one row.
    #[inline(always)]
    pub fn set(&mut self, lane: usize, (slope, position): (f32, i64)) {
        self.slopes[lane] = -slope;
        self.positions[lane] = position.clamp(i32::MIN.into(), i32::MAX.into()) as i32;
    }

    /// Subtracts slope times distance from the scores of keys from `first_key` on.
    #[inline(always)]
    fn subtract<S: Simd, const R: usize>(&self, simd: S, first_key: usize, scores: &mut [[S::f32s; R]]) {
        let (slopes, _) = S::as_simd_f32s(self.slopes);
        // From the first key on, so that distances nearby are exact however far the keys go.
        let mut positions = [simd.splat_f32s(0.0); R];
        for (from, &position) in bytemuck::cast_slice_mut(&mut positions).iter_mut().zip(self.positions.iter()) {
            *from = (i64::from(position) - first_key as i64) as f32;
        }
        for (key, score) in scores.iter_mut().enumerate() {
            let key = simd.splat_f32s(key as f32);
            for r in 0..R {
                let distance = simd.abs_f32s(simd.sub_f32s(key, positions[r]));
                score[r] = simd.mul_add_e_f32s(slopes[r], distance, score[r]);
            }
        }
    }
}

/// The keys that the band shows to each row of a tile. Rows of padding see every key.
pub struct Bounds<'a> {
    /// Per row, the first key.
    pub starts: &'a mut [i32],
    /// Per row, the key behind the last.
    pub ends: &'a mut [i32],
    /// Smallest and largest start.
    pub start: [usize; 2],
    /// Smallest and largest end.
    pub end: [usize; 2],
}

impl<'a> Bounds<'a> {
    /// No row yet.
    #[inline(always)]
    pub fn new(starts: &'a mut [i32], ends: &'a mut [i32]) -> Self {
        starts.fill(0);
        ends.fill(i32::MAX);
        Self { starts, ends, start: [usize::MAX, 0], end: [usize::MAX, 0] }
    }

    /// Sets the keys of one row.
    #[inline(always)]
    pub fn set(&mut self, lane: usize, keys: Range<usize>) {
        self.starts[lane] = to_i32(keys.start);
        self.ends[lane] = to_i32(keys.end);
        self.start = [self.start[0].min(keys.start), self.start[1].max(keys.start)];
        self.end = [self.end[0].min(keys.end), self.end[1].max(keys.end)];
    }

    /// Whether some row does not see all of `keys`.
    #[inline(always)]
    pub fn cut(&self, keys: &Range<usize>) -> bool {
        self.start[1] > keys.start || self.end[0] < keys.end
    }
}

/// Positions are below `2^31`; a larger end means that every key is visible.
fn to_i32(key: usize) -> i32 {
    i32::try_from(key).unwrap_or(i32::MAX)
}

/// Masks each row before its key in `starts`.
#[inline(always)]
fn mask_before<S: Simd, const R: usize>(
    simd: S,
    starts: &[S::i32s],
    first_key: usize,
    fill: f32,
    scores: &mut [[S::f32s; R]],
) {
    let fill = simd.splat_f32s(fill);
    for (key, score) in scores.iter_mut().enumerate() {
        let key = simd.splat_i32s(to_i32(first_key + key));
        for r in 0..R {
            score[r] = simd.select_f32s(simd.less_than_i32s(key, starts[r]), fill, score[r]);
        }
    }
}

/// Masks each row from its key in `ends` on.
#[inline(always)]
fn mask_from<S: Simd, const R: usize>(
    simd: S,
    ends: &[S::i32s],
    first_key: usize,
    fill: f32,
    scores: &mut [[S::f32s; R]],
) {
    let fill = simd.splat_f32s(fill);
    for (key, score) in scores.iter_mut().enumerate() {
        let key = simd.splat_i32s(to_i32(first_key + key));
        for r in 0..R {
            score[r] = simd.select_f32s(simd.less_than_i32s(key, ends[r]), score[r], fill);
        }
    }
}

/// Values of a block that are not finite, and which rows of a tile see their keys.
#[derive(Default)]
pub struct NonFinites {
    pub found: Vec<NonFinite>,
    /// `[found][lanes]`.
    visible: Vec<bool>,
}

impl NonFinites {
    /// Notes whether each row sees the key of each value.
    #[inline(always)]
    pub fn see<S: Simd, const R: usize>(&mut self, scores: &[[S::f32s; R]]) {
        let lanes = R * S::F32_LANES;
        let flat: &[f32] = bytemuck::cast_slice(scores);
        self.visible.clear();
        for entry in &self.found {
            match flat.chunks_exact(lanes).nth(entry.key) {
                Some(row) => self.visible.extend(row.iter().map(|&score| score != f32::NEG_INFINITY)),
                // Behind the last key that this tile can see.
                None => self.visible.resize(self.visible.len() + lanes, false),
            }
        }
    }

    /// Adds the products of the values and the weights of the rows that see them.
    pub fn add_visible(&self, weights: &[f32], lanes: usize, out: &mut [f32]) {
        for (entry, visible) in self.found.iter().zip(self.visible.chunks_exact(lanes)) {
            for lane in (0..lanes).filter(|&lane| visible[lane]) {
                out[entry.column * lanes + lane] += weights[entry.key * lanes + lane] * entry.value;
            }
        }
    }
}
