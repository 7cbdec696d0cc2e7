//! Attention that never stores its scores whole: one pass over the keys with a running maximum.
//!
//! `out = softmax(mask(softcap(q·kᵀ × scale) + bias)) · v`, per batch and head; f32 arithmetic whatever the storage.
//! The query heads that share a key head are rows of one problem, so each key and value is read once for all
//! of them. Two techniques: `tile` puts query rows into vector lanes, `vector` puts elements of a row there
//! and serves the few rows of a decoding step. Both keep the output unnormalised and divide once at the end
//! (Dao, FlashAttention-2, 2023). Where rows and heads do not fill the threads, the keys are split too, and the
//! parts are combined by their maxima and sums.
//!
//! What lost, on two shared cores of a Sapphire Rapids: jobs of 192 rows instead of 384 (265 against 280 GFLOP/s on
//! 8 heads × 1024 × 64, medians, near the noise); key blocks of 64, 192 or 256 instead of 128 (no difference);
//! transposing queries in 8 × 8 blocks by shuffles (367 ns for 32 × 40 against 242 for a plain scatter; 4 × 4, 220).

mod job;
mod pack;
mod tile;
mod tile_mask;
mod vector;

#[cfg(test)]
mod tests;

use super::args::{AttentionArgs, AttentionShape, Elements, ElementsMut, Operand};
use super::scratch::with_scratch;
use job::{Job, OutRows, Sink};
use pulp::Arch;
use rayon::prelude::*;

/// Up to this many rows per key head take the vector technique.
const VECTOR_ROWS: usize = 8;

/// Most rows of a tile job: enough that packing a key block, done once per job, costs about 4 %.
const TILE_JOB_ROWS: usize = 384;

/// Rows of a tile with the widest vectors; jobs are cut in multiples of it.
const TILE_ROWS: usize = 48;

/// Fewest keys in a part when the keys are split.
const SPLIT_KEYS: usize = 512;

/// Attention, written to `out`, `[batch, heads, seq_q, head_dim_v]` with `out_strides` elements per
/// (batch, head, row).
///
/// Under [`Fill::Exclude`] a masked score weighs exactly zero, a row with no visible key gives zeros,
/// and nothing in a masked key or value reaches the row. Under [`Fill::Assign`] the assigned score stays
/// in the softmax. Keys that do not exist are not visited, nor, under `Exclude`, are those before and behind all that
/// the band shows to the rows of a job.
///
/// [`Fill::Exclude`]: crate::mask::Fill::Exclude
/// [`Fill::Assign`]: crate::mask::Fill::Assign
///
/// # Panics
///
/// When a stride reaches outside its slice, or `out_strides` lets rows overlap.
pub fn attention(args: &AttentionArgs, out: ElementsMut, out_strides: [usize; 3]) {
    attention_on(Arch::new(), args, out, out_strides);
}

/// [`attention`] on a given instruction set.
fn attention_on(arch: Arch, args: &AttentionArgs, out: ElementsMut, out_strides: [usize; 3]) {
    let shape = args.shape;
    if shape.batch * shape.heads * shape.seq_q * shape.head_dim_v == 0 {
        return;
    }
    let rows = OutRows::new(out, [shape.batch, shape.heads, shape.seq_q], out_strides, shape.head_dim_v);
    if shape.seq_kv == 0 {
        rows.clear();
        return;
    }
    if shape.head_dim == 0 {
        // No products to add up: every score is zero before the bias, as for queries and keys of a single zero.
        let zero = Operand { data: Elements::F32(&[0.0]), strides: [0; 3], pages: None };
        let shape = AttentionShape { head_dim: 1, ..shape };
        return compute(arch, &AttentionArgs { shape, q: zero, k: zero, ..*args }, rows);
    }
    compute(arch, args, rows);
}

/// Cuts a problem with something to compute into jobs, and runs them.
fn compute(arch: Arch, args: &AttentionArgs, rows: OutRows) {
    let cut = Cut::new(args, rayon::current_num_threads());
    if cut.parts == 1 {
        run(arch, jobs(args, &cut, rows), cut.technique);
    } else {
        split(arch, args, &cut, rows);
    }
}

/// How a problem is cut into jobs.
struct Cut {
    technique: Technique,
    /// Query rows that share a key head.
    group_rows: usize,
    rows_per_job: usize,
    /// Parts that the keys of each job are split into.
    parts: usize,
}

#[derive(Clone, Copy)]
enum Technique {
    Tile,
    Vector,
}

impl Cut {
    fn new(args: &AttentionArgs, threads: usize) -> Self {
        let shape = args.shape;
        let group_rows = shape.heads / shape.kv_heads * shape.seq_q;
        let technique = if group_rows <= VECTOR_ROWS { Technique::Vector } else { Technique::Tile };
        let groups = shape.batch * shape.kv_heads;
        // Four jobs per thread even out causal jobs of unequal cost.
        let wanted = (4 * threads).div_ceil(groups);
        let rows_per_job = match technique {
            Technique::Vector => group_rows,
            Technique::Tile => group_rows.div_ceil(wanted).next_multiple_of(TILE_ROWS).min(TILE_JOB_ROWS),
        };
        let mut cut = Self { technique, group_rows, rows_per_job, parts: 1 };
        let jobs = groups * group_rows.div_ceil(rows_per_job);
        if jobs < threads {
            let blocks = cut.blocks(shape).into_iter();
            let longest = blocks.map(|[batch, _, first, rows]| job::span(args, batch, first..first + rows).len()).max();
            cut.parts = threads.div_ceil(jobs).min(longest.unwrap_or(0).div_ceil(SPLIT_KEYS)).max(1);
        }
        cut
    }

    /// Batch, key head, first row and row count of each job, last rows first: causal jobs grow with the row, and
    /// starting the long ones early leaves short ones to fill the end.
    fn blocks(&self, shape: AttentionShape) -> Vec<[usize; 4]> {
        let mut blocks = Vec::new();
        for group in (0..shape.batch * shape.kv_heads).rev() {
            for first in (0..self.group_rows).step_by(self.rows_per_job).rev() {
                let rows = self.rows_per_job.min(self.group_rows - first);
                blocks.push([group / shape.kv_heads, group % shape.kv_heads, first, rows]);
            }
        }
        blocks
    }
}

/// One job per block of rows, writing the output.
fn jobs<'j>(args: &'j AttentionArgs<'j>, cut: &Cut, mut rest: OutRows<'j>) -> Vec<Job<'j>> {
    let mut jobs = Vec::new();
    for [batch, kv_head, first_row, rows] in cut.blocks(args.shape) {
        let (head, tail) = rest.split_last(rows);
        rest = head;
        let (keys, sink) = (job::span(args, batch, first_row..first_row + rows), Sink::Rows(tail));
        jobs.push(Job { args, batch, kv_head, first_row, rows, keys, sink });
    }
    jobs
}

/// One job per block of rows and part of the keys, then the combination of the parts.
fn split(arch: Arch, args: &AttentionArgs, cut: &Cut, mut out: OutRows) {
    let shape = args.shape;
    let width = shape.head_dim_v + 2;
    let total_rows = shape.batch * shape.heads * shape.seq_q;
    let mut partials = vec![0.0; cut.parts * total_rows * width];
    let mut jobs = Vec::new();
    for (part, partial) in partials.chunks_mut(total_rows * width).enumerate() {
        let mut rest = partial;
        for [batch, kv_head, first_row, rows] in cut.blocks(shape) {
            let (head, tail) = rest.split_at_mut(rest.len() - rows * width);
            rest = head;
            let span = job::span(args, batch, first_row..first_row + rows);
            let per_part = span.len().div_ceil(cut.parts);
            let start = span.end.min(span.start + part * per_part);
            let (keys, sink) = (start..span.end.min(start + per_part), Sink::Partial(tail));
            jobs.push(Job { args, batch, kv_head, first_row, rows, keys, sink });
        }
    }
    run(arch, jobs, cut.technique);
    let mut finished = vec![0.0; shape.head_dim_v];
    for row in 0..total_rows {
        let parts = partials.chunks(total_rows * width).map(|part| &part[row * width..][..width]);
        job::combine(parts, &mut finished);
        out.write(row, &finished);
    }
}

/// Runs every job on the current rayon pool; a single job stays on this thread.
fn run(arch: Arch, jobs: Vec<Job>, technique: Technique) {
    let one = |job: Job| {
        with_scratch(|scratch| match technique {
            Technique::Tile => arch.dispatch(tile::Tiles { job, scratch }),
            Technique::Vector => arch.dispatch(vector::Vectors { job, scratch }),
        });
    };
    if jobs.len() == 1 {
        jobs.into_iter().for_each(one);
    } else {
        jobs.into_par_iter().with_max_len(1).for_each(one);
    }
}
