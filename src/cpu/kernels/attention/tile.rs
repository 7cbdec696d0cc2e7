//! The tile technique: lanes are query rows.
//!
//! A tile is up to three vectors of query rows of one key head. Its queries are transposed once; per block of
//! keys the kernel computes the transposed scores `Sᵀ[key][row]`, each key element broadcast against the row
//! vectors, so that softmax needs no reduction across lanes, and then, in the same way,
//! `Oᵀ[column][row] += v[key][column] · Pᵀ[key][row]`. The accumulators of both products, `N` × 3 vectors, stay in
//! registers. A job packs each key block once for all its tiles.

use super::job::Job;
use super::pack::{self, DEPTH};
use super::tile_mask::{Bounds, Masks, NonFinites, TileSlopes};
use crate::cpu::kernels::args::ElementsMut;
use crate::cpu::kernels::exp::exp;
use crate::cpu::kernels::mask;
use crate::cpu::kernels::scratch::{Arena, Line};
use pulp::{Simd, WithSimd};
use smallvec::SmallVec;
use std::cell::Cell;
use std::ops::Range;

/// Keys of a block: the scores of a tile, `KEYS` × 48 × 4 bytes, stay in the first-level cache.
const KEYS: usize = 128;

/// Values that a strip has room for. A power of two would put the pieces of one value, which are packed together, into
/// one set of the first-level cache.
const STRIP: usize = KEYS + 2;

/// Most row vectors of a tile.
const VECTORS: usize = 3;

/// Tiles that need no memory from the heap: those of the largest job on vectors of four lanes and more.
const FEW: usize = 32;

thread_local! {
    /// Memory of the last job, so that the next one on this thread allocates nothing.
    static KEPT: Cell<NonFinites> = Cell::default();
}

/// Runs a job by tiles.
pub struct Tiles<'a, 'o, 's> {
    pub job: Job<'a, 'o>,
    pub scratch: &'s mut Vec<Line>,
}

impl WithSimd for Tiles<'_, '_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // 3 × 8 accumulators, 3 row vectors and a broadcast fit 32 registers; with 16, 3 × 4 do.
        if const { S::REGISTER_COUNT >= 32 } {
            run::<S, 8>(simd, self);
        } else {
            run::<S, 4>(simd, self);
        }
    }
}

/// Up to three vectors of query rows, and their running softmax.
struct Tile<'a, S: Simd> {
    /// Of the job.
    first_row: usize,
    rows: usize,
    /// 1 to [`VECTORS`].
    vectors: usize,
    /// `[head_dim][vectors]`, times the scale.
    q: &'a mut [S::f32s],
    /// `[head_dim_v][vectors]`, undivided.
    out: &'a mut [S::f32s],
    max: [S::f32s; VECTORS],
    sum: [S::f32s; VECTORS],
    bounds: Bounds<'a>,
    slopes: Option<TileSlopes<'a>>,
    /// Keys of the block to visit, from its first on.
    visits: usize,
}

/// One block of keys, packed, and buffers for one tile's share of it.
struct Block<'a, S: Simd, const N: usize> {
    first_key: usize,
    keys: &'a mut [[[f32; DEPTH]; N]],
    values: &'a mut [[f32; N]],
    non_finite: NonFinites,
    /// `[KEYS][vectors]`.
    scores: &'a mut [S::f32s],
    /// `[KEYS][vectors]`: bias of each score.
    bias: &'a mut [S::f32s],
    row: &'a mut [f32],
}

#[inline(always)]
fn run<S: Simd, const N: usize>(simd: S, task: Tiles) {
    let Tiles { mut job, scratch } = task;
    let shape = job.args.shape;
    let depth = shape.head_dim.next_multiple_of(DEPTH);
    let width = shape.head_dim_v.next_multiple_of(N);
    let tile_rows = VECTORS * S::F32_LANES;
    let tile_count = job.rows.div_ceil(tile_rows);
    let row_len = depth.max(width).max(KEYS);
    let floats = KEYS * (depth + 2 * tile_rows) + STRIP * width + row_len;
    let per_tile = tile_rows * (depth + width + 4);
    let mut arena = Arena::new(scratch, 4 * (floats + tile_count * per_tile), 5 + 6 * tile_count);
    let mut block = Block::<S, N> {
        first_key: 0,
        keys: arena.take(KEYS / N * depth / DEPTH),
        values: arena.take(STRIP * width / N),
        non_finite: KEPT.take(),
        scores: arena.take(KEYS * VECTORS),
        bias: arena.take(KEYS * VECTORS),
        row: arena.take(row_len),
    };
    let mut tiles: SmallVec<[Tile<S>; FEW]> = SmallVec::new();
    for first_row in (0..job.rows).step_by(tile_rows) {
        let rows = tile_rows.min(job.rows - first_row);
        tiles.push(new_tile::<S, N>(simd, &job, first_row..first_row + rows, &mut arena, block.row));
    }
    let fill = mask::fill_value(job.args.masking.fill);
    let end = job.keys.end;
    for first_key in (job.keys.start..end).step_by(KEYS) {
        block.first_key = first_key;
        let count = KEYS.min(end - first_key);
        for tile in &mut tiles {
            tile.visits = visits(&job, tile, first_key, count, fill);
        }
        if tiles.iter().all(|tile| tile.visits == 0) {
            continue;
        }
        load_block(&job, &mut block, &tiles, count, fill);
        for tile in &mut tiles {
            match (tile.visits, tile.vectors) {
                (0, _) => {}
                (_, 1) => step::<S, 1, N>(simd, &job, tile, &mut block, fill),
                (_, 2) => step::<S, 2, N>(simd, &job, tile, &mut block, fill),
                _ => step::<S, 3, N>(simd, &job, tile, &mut block, fill),
            }
        }
    }
    for tile in &mut tiles {
        finish(simd, &mut job, tile, block.row);
    }
    KEPT.set(block.non_finite);
}

/// How many of the first `count` keys of a block, from the first on, the tile has to visit: under `Assign` masked keys
/// count too.
#[inline(always)]
fn visits<S: Simd>(job: &Job, tile: &Tile<S>, first_key: usize, count: usize, fill: f32) -> usize {
    if fill != f32::NEG_INFINITY {
        return count;
    }
    let count = count.min(tile.bounds.end[1].saturating_sub(first_key));
    let keys = first_key..first_key + count;
    let rows = tile.first_row..tile.first_row + tile.rows;
    if tile.bounds.start[0] >= keys.end || job.masks_all(rows, keys) { 0 } else { count }
}

#[inline(always)]
fn new_tile<'a, S: Simd, const N: usize>(
    simd: S,
    job: &Job,
    rows: Range<usize>,
    arena: &mut Arena<'a>,
    row_f32: &mut [f32],
) -> Tile<'a, S> {
    let shape = job.args.shape;
    let vectors = rows.len().div_ceil(S::F32_LANES);
    let lanes = vectors * S::F32_LANES;
    let zero = simd.splat_f32s(0.0);
    let q: &mut [S::f32s] = arena.take(shape.head_dim.next_multiple_of(DEPTH) * vectors);
    let out: &mut [S::f32s] = arena.take(shape.head_dim_v.next_multiple_of(N) * vectors);
    let mut bounds = Bounds::new(arena.take(lanes), arena.take(lanes));
    let mut slopes = job.args.masking.slopes.map(|_| TileSlopes::new(arena.take(lanes), arena.take(lanes)));
    q.fill(zero);
    out.fill(zero);
    let flat: &mut [f32] = bytemuck::cast_slice_mut(q);
    let (mut head, mut query) = job.head_and_query(rows.start);
    for lane in 0..rows.len() {
        let values = job.query(head, query, row_f32);
        for (x, column) in values.iter().zip(flat.chunks_exact_mut(lanes)) {
            column[lane] = *x * job.args.scale;
        }
        bounds.set(lane, job.visible(query));
        if let (Some(slopes), Some(of_row)) = (&mut slopes, job.slope(head, query)) {
            slopes.set(lane, of_row);
        }
        query += 1;
        if query == job.sequence.queries.end {
            (head, query) = (head + 1, job.sequence.queries.start);
        }
    }
    let max = [simd.splat_f32s(f32::NEG_INFINITY); VECTORS];
    let sum = [zero; VECTORS];
    Tile { first_row: rows.start, rows: rows.len(), vectors, q, out, max, sum, bounds, slopes, visits: 0 }
}

/// Packs a block, and takes non-finite values out of it when some row may not be allowed to see them.
#[inline(always)]
fn load_block<S: Simd, const N: usize>(job: &Job, block: &mut Block<S, N>, tiles: &[Tile<S>], count: usize, fill: f32) {
    let shape = job.args.shape;
    let keys = job.rows_of(&job.args.k, shape.head_dim, block.first_key);
    let values = job.rows_of(&job.args.v, shape.head_dim_v, block.first_key);
    pack::pack_keys(&keys, count, block.row, block.keys);
    pack::pack_values(&values, count, block.row, block.values, STRIP);
    let keys = block.first_key..block.first_key + count;
    let masked = mask::is_dense(&job.args.masking) || tiles.iter().any(|tile| tile.bounds.cut(&keys));
    // Values keep their NaNs under `Assign`, where a masked score stays in the softmax; a bias of negative infinity
    // still excludes there.
    let excludes = fill == f32::NEG_INFINITY || job.args.masking.bias.is_some();
    block.non_finite.found.clear();
    if masked && excludes {
        pack::take_non_finite(block.values, count, STRIP, &mut block.non_finite.found);
    }
}

/// One tile against the keys of a block that it visits.
#[inline(always)]
fn step<S: Simd, const R: usize, const N: usize>(
    simd: S,
    job: &Job,
    tile: &mut Tile<S>,
    block: &mut Block<S, N>,
    fill: f32,
) {
    let count = tile.visits;
    let chunks = job.args.shape.head_dim.div_ceil(DEPTH);
    let q: &[[[S::f32s; R]; DEPTH]] = bytemuck::cast_slice(tile.q);
    let panels = block.keys.chunks_exact(chunks);
    let scores: &mut [[S::f32s; R]] = bytemuck::cast_slice_mut(&mut block.scores[..KEYS * R]);
    let (score_panels, _) = scores.as_chunks_mut::<N>();
    for (panel, out) in panels.zip(score_panels).take(count.div_ceil(N)) {
        *out = score_panel(simd, q, panel);
    }
    let scores = &mut scores[..count];
    let rows = tile.first_row..tile.first_row + tile.rows;
    let (bounds, slopes) = (&tile.bounds, tile.slopes.as_ref());
    let masks = Masks { job, rows, bounds, slopes, first_key: block.first_key, fill };
    masks.apply(simd, &mut block.row[..count], bytemuck::cast_slice_mut(&mut block.bias[..KEYS * R]), scores);
    block.non_finite.see::<S, R>(scores);
    let rescale = softmax::<S, R>(simd, &mut tile.max, &mut tile.sum, scores);
    let strips = block.values.chunks_exact(STRIP);
    let out: &mut [[S::f32s; R]] = bytemuck::cast_slice_mut(tile.out);
    let (out_strips, _) = out.as_chunks_mut::<N>();
    for (strip, out) in strips.zip(out_strips) {
        *out = accumulate(simd, scores, &strip[..count], &rescale, out);
    }
    if !block.non_finite.found.is_empty() {
        let lanes = R * S::F32_LANES;
        let weights: &[f32] = bytemuck::cast_slice(scores);
        let out: &mut [f32] = bytemuck::cast_slice_mut(tile.out);
        block.non_finite.add_visible(weights, lanes, out);
    }
}

/// Scores of `N` keys: `out[key][row] = Σ q[d][row] · panel[d][key]`.
#[inline(always)]
fn score_panel<S: Simd, const R: usize, const N: usize>(
    simd: S,
    q: &[[[S::f32s; R]; DEPTH]],
    panel: &[[[f32; DEPTH]; N]],
) -> [[S::f32s; R]; N] {
    let mut acc = [[simd.splat_f32s(0.0); R]; N];
    for (q, keys) in q.iter().zip(panel) {
        for d in 0..DEPTH {
            for key in 0..N {
                let k = simd.splat_f32s(keys[key][d]);
                for r in 0..R {
                    acc[key][r] = simd.mul_add_e_f32s(q[d][r], k, acc[key][r]);
                }
            }
        }
    }
    acc
}

/// `N` columns of output: `out[column][row] · rescale[row] + Σ values[key][column] · weights[key][row]`.
#[inline(always)]
fn accumulate<S: Simd, const R: usize, const N: usize>(
    simd: S,
    weights: &[[S::f32s; R]],
    values: &[[f32; N]],
    rescale: &[S::f32s; R],
    out: &[[S::f32s; R]; N],
) -> [[S::f32s; R]; N] {
    let mut acc = *out;
    for column in &mut acc {
        for r in 0..R {
            column[r] = simd.mul_f32s(column[r], rescale[r]);
        }
    }
    for (weights, values) in weights.iter().zip(values) {
        for column in 0..N {
            let v = simd.splat_f32s(values[column]);
            for r in 0..R {
                acc[column][r] = simd.mul_add_e_f32s(weights[r], v, acc[column][r]);
            }
        }
    }
    acc
}

/// Turns scores into weights relative to the running maximum; returns the factor for what was summed before.
#[inline(always)]
fn softmax<S: Simd, const R: usize>(
    simd: S,
    max: &mut [S::f32s; VECTORS],
    sum: &mut [S::f32s; VECTORS],
    scores: &mut [[S::f32s; R]],
) -> [S::f32s; R] {
    let lowest = simd.splat_f32s(f32::NEG_INFINITY);
    let mut rescale = [lowest; R];
    let mut base = [lowest; R];
    base.copy_from_slice(&max[..R]);
    for score in scores.iter() {
        for r in 0..R {
            base[r] = simd.max_f32s(score[r], base[r]);
        }
    }
    for r in 0..R {
        let previous = std::mem::replace(&mut max[r], base[r]);
        // A row that has seen nothing has no finite maximum; any finite base gives it zero weights.
        base[r] = simd.select_f32s(simd.equal_f32s(base[r], lowest), simd.splat_f32s(0.0), base[r]);
        rescale[r] = exp(simd, simd.sub_f32s(previous, base[r]));
        sum[r] = simd.mul_f32s(sum[r], rescale[r]);
    }
    let mut total = [simd.splat_f32s(0.0); R];
    for score in scores {
        for r in 0..R {
            score[r] = exp(simd, simd.sub_f32s(score[r], base[r]));
            total[r] = simd.add_f32s(total[r], score[r]);
        }
    }
    for r in 0..R {
        sum[r] = simd.add_f32s(sum[r], total[r]);
    }
    rescale
}

/// Hands the rows of a finished tile to their destination.
#[inline(always)]
fn finish<S: Simd>(simd: S, job: &mut Job, tile: &mut Tile<S>, row_f32: &mut [f32]) {
    let lanes = tile.vectors * S::F32_LANES;
    let width = job.args.shape.head_dim_v;
    let max: &[f32] = bytemuck::cast_slice(&tile.max);
    let sum: &[f32] = bytemuck::cast_slice(&tile.sum);
    let mut factor = [simd.splat_f32s(0.0); VECTORS];
    for (lane, factor) in bytemuck::cast_slice_mut(&mut factor)[..tile.rows].iter_mut().enumerate() {
        *factor = job.finish(tile.first_row + lane, max[lane], sum[lane]);
    }
    for column in tile.out.chunks_exact_mut(tile.vectors) {
        for (x, &factor) in column.iter_mut().zip(&factor) {
            *x = simd.mul_f32s(*x, factor);
        }
    }
    let out: &[f32] = bytemuck::cast_slice(tile.out);
    for lane in 0..tile.rows {
        match job.output(tile.first_row + lane) {
            ElementsMut::F32(row) => gather(out, lanes, lane, row),
            mut row => {
                gather(out, lanes, lane, &mut row_f32[..width]);
                row.write(0, &row_f32[..width]);
            }
        }
    }
}

/// Copies one lane of each column.
#[inline(always)]
fn gather(columns: &[f32], lanes: usize, lane: usize, row: &mut [f32]) {
    for (x, column) in row.iter_mut().zip(columns.chunks_exact(lanes)) {
        *x = column[lane];
    }
}
