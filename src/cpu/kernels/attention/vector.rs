//! The vector technique: lanes are elements of a row.
//!
//! For the few query rows of a decoding step, which would leave most lanes of a tile empty. Keys and values are
//! read where they lie, once for all rows that share them, so a step is bound by memory; a score is a product
//! summed across lanes.

use super::job::Job;
use super::pack::{Place, Rows, any_non_finite};
use crate::cpu::kernels::args::Elements;
use crate::cpu::kernels::exp::exp;
use crate::cpu::kernels::scratch::{Arena, Line};
use crate::cpu::kernels::{mask, tanh};
use pulp::{Simd, WithSimd};
use smallvec::SmallVec;
use std::ops::Range;

/// Keys of a block: a key block and a value block stay in the second-level cache while they are used.
const KEYS: usize = 128;

/// Output vectors per row that the second product keeps in registers.
const COLUMNS: usize = 4;

/// Runs a job by vectors.
pub struct Vectors<'a, 'o, 's> {
    pub job: Job<'a, 'o>,
    pub scratch: &'s mut Vec<Line>,
}

impl WithSimd for Vectors<'_, '_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.job.rows {
            1 => run::<S, 1>(simd, self),
            2 => run::<S, 2>(simd, self),
            _ => run::<S, 4>(simd, self),
        }
    }
}

/// `R` query rows, the last of which may be padding, and their running softmax.
struct RowGroup<'a, S: Simd, const R: usize> {
    /// Of the job.
    first_row: usize,
    rows: usize,
    /// `[head_dim]` in vectors, times the scale.
    q: &'a mut [[S::f32s; R]],
    /// `[head_dim_v]` in vectors, undivided.
    out: &'a mut [[S::f32s; R]],
    max: [f32; R],
    sum: [f32; R],
}

/// Buffers for the scores of one group against one block of keys.
struct Buffers<'a, const R: usize> {
    /// `[R][KEYS]`.
    scores: &'a mut [f32],
    /// `[KEYS][R]`.
    weights: &'a mut [[f32; R]],
    /// Bias of one row.
    bias: &'a mut [f32],
    /// 0, 1, 2, …
    keys: &'a mut [f32],
    /// `[R][KEYS]`: one where a row sees a key.
    visible: &'a mut [u8],
}

#[inline(always)]
fn run<S: Simd, const R: usize>(simd: S, task: Vectors) {
    let Vectors { mut job, scratch } = task;
    let shape = job.args.shape;
    let depth = shape.head_dim.next_multiple_of(S::F32_LANES);
    let width = shape.head_dim_v.next_multiple_of(S::F32_LANES);
    let groups = job.rows.div_ceil(R);
    let floats = KEYS * (depth + width + 3 * R + 2) + groups * R * (depth + width);
    let mut arena = Arena::new(scratch, 4 * floats, 7 + 2 * groups);
    let key_copy: &mut [f32] = arena.take(KEYS * depth);
    let value_copy: &mut [f32] = arena.take(KEYS * width);
    let mut buffers = Buffers::<R> {
        scores: arena.take(KEYS * R),
        weights: arena.take(KEYS),
        bias: arena.take(KEYS),
        keys: arena.take(KEYS),
        visible: arena.take(KEYS * R),
    };
    for (key, x) in buffers.keys.iter_mut().enumerate() {
        *x = key as f32;
    }
    let mut row_groups: SmallVec<[RowGroup<S, R>; 2]> = SmallVec::new();
    for first_row in (0..job.rows).step_by(R) {
        let q = arena.take(depth / S::F32_LANES);
        let out = arena.take(width / S::F32_LANES);
        row_groups.push(new_group(simd, &job, first_row, [q, out], key_copy));
    }
    let fill = mask::fill_value(job.args.masking.fill);
    let open = open_keys(&job, fill);
    let end = job.keys.end;
    for first_key in (job.keys.start..end).step_by(KEYS) {
        let count = KEYS.min(end - first_key);
        if job.masks_all(0..job.rows, first_key..first_key + count) {
            continue;
        }
        let keys = whole_rows::<S>(job.rows_of(&job.args.k, shape.head_dim, first_key), count, key_copy);
        let values = whole_rows::<S>(job.rows_of(&job.args.v, shape.head_dim_v, first_key), count, value_copy);
        let protected = first_key < open.start || first_key + count > open.end;
        let non_finite = protected && (0..count).any(|key| any_non_finite(values.row(key)));
        for group in &mut row_groups {
            score(simd, group, &keys, count, buffers.scores);
            mask_scores(simd, &job, group, first_key, count, fill, &mut buffers);
            if non_finite {
                accumulate_visible(simd, group, &values, count, &mut buffers);
            } else {
                let rescale = softmax(simd, group, count, &mut buffers);
                accumulate(simd, group, &values, &buffers.weights[..count], &rescale);
            }
        }
    }
    for group in row_groups {
        finish(&mut job, group, value_copy);
    }
}

/// Keys outside these may be hidden from a row, and must not reach it then, where they are NaN.
#[inline(always)]
fn open_keys(job: &Job, fill: f32) -> Range<usize> {
    let masking = &job.args.masking;
    // Values keep their NaNs under `Assign`, where a masked score stays in the softmax; a bias of negative infinity
    // still excludes there.
    match (fill == f32::NEG_INFINITY, mask::is_dense(masking)) {
        (true, true) => 0..0,
        (false, _) if masking.bias.is_some() => 0..0,
        (false, _) => 0..usize::MAX,
        (true, false) => {
            let rows = (0..job.rows).map(|row| job.visible(job.head_and_query(row).1));
            rows.fold(0..usize::MAX, |all, keys| all.start.max(keys.start)..all.end.min(keys.end))
        }
    }
}

#[inline(always)]
fn new_group<'a, S: Simd, const R: usize>(
    simd: S,
    job: &Job,
    first_row: usize,
    [q, out]: [&'a mut [[S::f32s; R]]; 2],
    row_f32: &mut [f32],
) -> RowGroup<'a, S, R> {
    let rows = R.min(job.rows - first_row);
    let zero = [simd.splat_f32s(0.0); R];
    q.fill(zero);
    out.fill(zero);
    let flat: &mut [f32] = bytemuck::cast_slice_mut(q);
    for row in 0..rows {
        let (head, query) = job.head_and_query(first_row + row);
        let query = job.query(head, query, row_f32);
        for (vector, chunk) in query.chunks(S::F32_LANES).enumerate() {
            for (to, x) in flat[(vector * R + row) * S::F32_LANES..].iter_mut().zip(chunk) {
                *to = x * job.args.scale;
            }
        }
    }
    RowGroup { first_row, rows, q, out, max: [f32::NEG_INFINITY; R], sum: [0.0; R] }
}

/// Rows of whole vectors: in place, or copied and padded.
struct WholeRows<'a> {
    data: &'a [f32],
    stride: usize,
    width: usize,
}

impl WholeRows<'_> {
    #[inline(always)]
    fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.stride..][..self.width]
    }
}

/// The first `count` rows; `copy` takes them where they cannot be read in place.
#[inline(always)]
fn whole_rows<'a, S: Simd>(rows: Rows<'a>, count: usize, copy: &'a mut [f32]) -> WholeRows<'a> {
    let width = rows.width;
    let padded = width.next_multiple_of(S::F32_LANES);
    match (rows.data, &rows.place) {
        (Elements::F32(data), &Place::Strided { offset, stride }) if padded == width => {
            WholeRows { data: &data[offset..], stride, width }
        }
        (data, _) => {
            for (key, row) in copy.chunks_exact_mut(padded.max(1)).take(count).enumerate() {
                let (row, padding) = row.split_at_mut(width);
                data.read(rows.offset(key), row);
                padding.fill(0.0);
            }
            WholeRows { data: copy, stride: padded, width: padded }
        }
    }
}

/// `scores[row][key] = q[row] · keys[key]`.
#[inline(always)]
fn score<S: Simd, const R: usize>(simd: S, group: &RowGroup<S, R>, keys: &WholeRows, count: usize, scores: &mut [f32]) {
    for key in 0..count {
        let (row, _) = S::as_simd_f32s(keys.row(key));
        let mut acc = [simd.splat_f32s(0.0); R];
        for (q, &k) in group.q.iter().zip(row) {
            for r in 0..R {
                acc[r] = simd.mul_add_e_f32s(q[r], k, acc[r]);
            }
        }
        for r in 0..R {
            scores[r * KEYS + key] = simd.reduce_sum_f32s(acc[r]);
        }
    }
}

/// Caps, subtracts slopes, adds the bias, masks, and pads each row of scores by negative infinity to whole vectors.
#[inline(always)]
fn mask_scores<S: Simd, const R: usize>(
    simd: S,
    job: &Job,
    group: &RowGroup<S, R>,
    first_key: usize,
    count: usize,
    fill: f32,
    buffers: &mut Buffers<R>,
) {
    let dense = mask::is_dense(&job.args.masking);
    for (row, scores) in buffers.scores.chunks_exact_mut(KEYS).enumerate() {
        if let Some(cap) = job.args.masking.softcap {
            let (vectors, _) = S::as_mut_simd_f32s(scores);
            for score in vectors.iter_mut().take(count.div_ceil(S::F32_LANES)) {
                *score = tanh::soft_cap(simd, *score, cap);
            }
        }
        if row < group.rows {
            subtract_slope(simd, job, group.first_row + row, first_key, buffers.keys, &mut scores[..]);
        }
        if dense && row < group.rows {
            job.read_bias(group.first_row + row, first_key, &mut buffers.bias[..count]);
            let (bias, _) = S::as_simd_f32s(buffers.bias);
            let (vectors, _) = S::as_mut_simd_f32s(scores);
            let fill = simd.splat_f32s(fill);
            for (score, &bias) in vectors.iter_mut().zip(bias).take(count.div_ceil(S::F32_LANES)) {
                *score = mask::apply_dense(simd, bias, *score, fill);
            }
        }
        if row < group.rows {
            let (_, query) = job.head_and_query(group.first_row + row);
            let visible = job.visible(query);
            let clamp = |key: usize| key.clamp(first_key, first_key + count) - first_key;
            scores[..clamp(visible.start)].fill(fill);
            scores[clamp(visible.end)..count].fill(fill);
        }
        scores[count..].fill(f32::NEG_INFINITY);
    }
}

/// Subtracts the slope of a row times the distance of the `keys` from `first_key` on.
#[inline(always)]
fn subtract_slope<S: Simd>(simd: S, job: &Job, row: usize, first_key: usize, keys: &[f32], scores: &mut [f32]) {
    let (head, query) = job.head_and_query(row);
    let Some((slope, position)) = job.slope(head, query) else { return };
    let (keys, _) = S::as_simd_f32s(keys);
    let (scores, _) = S::as_mut_simd_f32s(scores);
    let slope = simd.splat_f32s(-slope);
    // From the first key on, so that distances nearby are exact however far the keys go.
    let position = simd.splat_f32s((position - first_key as i64) as f32);
    for (score, &key) in scores.iter_mut().zip(keys) {
        *score = simd.mul_add_e_f32s(slope, simd.abs_f32s(simd.sub_f32s(key, position)), *score);
    }
}

/// Turns scores into weights relative to the running maximum; returns the factor for what was summed before.
#[inline(always)]
fn softmax<S: Simd, const R: usize>(
    simd: S,
    group: &mut RowGroup<S, R>,
    count: usize,
    buffers: &mut Buffers<R>,
) -> [f32; R] {
    let mut rescale = [0.0; R];
    for (row, scores) in buffers.scores.chunks_exact_mut(KEYS).enumerate() {
        let (vectors, _) = S::as_mut_simd_f32s(scores);
        let vectors = &mut vectors[..count.div_ceil(S::F32_LANES)];
        let mut max = simd.splat_f32s(group.max[row]);
        for score in vectors.iter() {
            max = simd.max_f32s(*score, max);
        }
        let max = simd.reduce_max_f32s(max);
        // A row that has seen nothing has no finite maximum; any finite base gives it zero weights.
        let base = if max == f32::NEG_INFINITY { 0.0 } else { max };
        let mut sum = simd.splat_f32s(0.0);
        for score in vectors {
            *score = exp(simd, simd.sub_f32s(*score, simd.splat_f32s(base)));
            sum = simd.add_f32s(sum, *score);
        }
        rescale[row] = (group.max[row] - base).exp();
        group.sum[row] = group.sum[row] * rescale[row] + simd.reduce_sum_f32s(sum);
        group.max[row] = max;
        for (weight, &score) in buffers.weights[..count].iter_mut().zip(scores.iter()) {
            weight[row] = score;
        }
    }
    rescale
}

/// `out[row] = out[row] · rescale[row] + Σ weights[key][row] · values[key]`.
#[inline(always)]
fn accumulate<S: Simd, const R: usize>(
    simd: S,
    group: &mut RowGroup<S, R>,
    values: &WholeRows,
    weights: &[[f32; R]],
    rescale: &[f32; R],
) {
    let (strips, columns) = group.out.as_chunks_mut::<COLUMNS>();
    let single = strips.len() * COLUMNS * S::F32_LANES;
    for (strip, out) in strips.iter_mut().enumerate() {
        let first = strip * COLUMNS * S::F32_LANES;
        accumulate_columns(simd, values, first, weights, rescale, out);
    }
    for (column, out) in columns.as_chunks_mut::<1>().0.iter_mut().enumerate() {
        let first = single + column * S::F32_LANES;
        accumulate_columns(simd, values, first, weights, rescale, out);
    }
}

#[inline(always)]
fn accumulate_columns<S: Simd, const R: usize, const C: usize>(
    simd: S,
    values: &WholeRows,
    first_column: usize,
    weights: &[[f32; R]],
    rescale: &[f32; R],
    out: &mut [[S::f32s; R]; C],
) {
    let mut acc = *out;
    for column in &mut acc {
        for r in 0..R {
            column[r] = simd.mul_f32s(column[r], simd.splat_f32s(rescale[r]));
        }
    }
    for (key, weights) in weights.iter().enumerate() {
        let (row, _) = S::as_simd_f32s(&values.row(key)[first_column..][..C * S::F32_LANES]);
        for (column, &v) in acc.iter_mut().zip(row) {
            for r in 0..R {
                column[r] = simd.mul_add_e_f32s(simd.splat_f32s(weights[r]), v, column[r]);
            }
        }
    }
    *out = acc;
}

/// Softmax and second product for a block with NaNs or infinities among its values, which rows that do not see
/// them must not multiply by their zero weights.
#[inline(always)]
fn accumulate_visible<S: Simd, const R: usize>(
    simd: S,
    group: &mut RowGroup<S, R>,
    values: &WholeRows,
    count: usize,
    buffers: &mut Buffers<R>,
) {
    for (visible, &score) in buffers.visible.iter_mut().zip(buffers.scores.iter()) {
        *visible = u8::from(score != f32::NEG_INFINITY);
    }
    let rescale = softmax(simd, group, count, buffers);
    let out: &mut [f32] = bytemuck::cast_slice_mut(group.out);
    for (i, x) in out.iter_mut().enumerate() {
        let (vector, lane) = (i / S::F32_LANES, i % S::F32_LANES);
        let (row, column) = (vector % R, vector / R * S::F32_LANES + lane);
        *x *= rescale[row];
        for key in (0..count).filter(|key| buffers.visible[row * KEYS + key] == 1) {
            *x += buffers.weights[key][row] * values.row(key)[column];
        }
    }
}

/// Hands the rows of a finished group to their destination.
#[inline(always)]
fn finish<S: Simd, const R: usize>(job: &mut Job, group: RowGroup<S, R>, row_f32: &mut [f32]) {
    let out: &[f32] = bytemuck::cast_slice(group.out);
    let row_f32 = &mut row_f32[..job.args.shape.head_dim_v];
    for row in 0..group.rows {
        let factor = job.finish(group.first_row + row, group.max[row], group.sum[row]);
        for (vector, chunk) in row_f32.chunks_mut(S::F32_LANES).enumerate() {
            for (to, x) in chunk.iter_mut().zip(&out[(vector * R + row) * S::F32_LANES..]) {
                *to = x * factor;
            }
        }
        job.output(group.first_row + row).write(0, row_f32);
    }
}
