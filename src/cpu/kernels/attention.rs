//! Attention that never stores its scores whole: one pass over the keys with a running maximum.
//!
//! `out = softmax(mask(softcap(q·kᵀ × scale) − slopes + bias)) · v`, per sequence and head; f32 arithmetic whatever the
//! storage. The query heads that share a key head are rows of one problem, so each key and value is read once for all
//! of them. Two techniques: `tile` puts query rows into vector lanes, `vector` puts elements of a row there and serves
//! the few rows of a decoding step. Both keep the output unnormalised and divide once at the end (Dao,
//! FlashAttention-2, 2023). Where rows and heads do not fill the threads, the keys are split too, and the parts are
//! combined by their maxima and sums.
//!
//! What lost, on two shared cores of a Sapphire Rapids: jobs of 192 rows instead of 384 (265 against 280 GFLOP/s on
//! 8 heads × 1024 × 64, medians, near the noise); key blocks of 64, 192 or 256 instead of 128 (no difference);
//! transposing queries in 8 × 8 blocks by shuffles (367 ns for 32 × 40 against 242 for a plain scatter; 4 × 4, 220).

mod cut;
mod job;
mod pack;
mod results;
mod tile;
mod tile_mask;
mod vector;

#[cfg(test)]
mod tests;

use super::args::{AttentionArgs, AttentionShape, Elements, ElementsMut, Operand};
use super::scratch::with_scratch;
use super::sequence::{Sequence, sequences};
use cut::{Block, VECTOR_ROWS};
use job::{Destination, Job};
use pulp::Arch;
use rayon::prelude::*;
use results::{NO_JOB, OutRows, Results};

/// Attention, written to `out`, `[batch, heads, seq_q, head_dim_v]` with `out_strides` elements per
/// (batch, head, row), and the logarithm of each row's denominator to `log_sums`, `[batch, heads, seq_q]`, contiguous.
/// Where queries are packed, so are these, and have one batch element.
///
/// Under [`Fill::Exclude`] a masked score weighs exactly zero, a row with no visible key gives zeros and negative
/// infinity, or its sink, and nothing in a masked key or value reaches the row. Under [`Fill::Assign`] the assigned
/// score stays in the softmax. Keys that do not exist are not visited, nor, under `Exclude`, are those before and
/// behind all that the band shows to the rows of a job, or blocks of them that the boolean mask hides from all. Queries
/// that do not exist give zeros and negative infinity, and cost nothing.
///
/// Lengths, starts and pages may hold anything: what lies outside counts as the nearest that exists.
///
/// [`Fill::Exclude`]: crate::mask::Fill::Exclude
/// [`Fill::Assign`]: crate::mask::Fill::Assign
///
/// # Panics
///
/// When a stride reaches outside its slice, or `out_strides` lets rows overlap.
pub fn attention(args: &AttentionArgs, out: ElementsMut, out_strides: [usize; 3], log_sums: Option<&mut [f32]>) {
    attention_on(Arch::new(), args, out, out_strides, log_sums);
}

/// [`attention`] on a given instruction set.
fn attention_on(
    arch: Arch,
    args: &AttentionArgs,
    out: ElementsMut,
    out_strides: [usize; 3],
    log_sums: Option<&mut [f32]>,
) {
    let mut args = *args;
    let AttentionShape { batch, heads, seq_q, head_dim, head_dim_v, .. } = args.shape;
    let sizes = [if args.masking.packed.is_some() { 1 } else { batch }, heads, seq_q];
    let nothing_asked = head_dim_v == 0 && log_sums.is_none();
    if sizes.contains(&0) || nothing_asked {
        return;
    }
    if head_dim == 0 {
        // No products to add up: every score is zero before the bias, as for queries and keys of a single zero.
        let zero = Operand { data: Elements::F32(&[0.0]), strides: [0; 3], pages: None };
        let shape = AttentionShape { head_dim: 1, ..args.shape };
        args = AttentionArgs { shape, q: zero, k: zero, ..args };
    }
    let sequences = sequences(&args.masking, batch, [seq_q, keys_in_pages(&args)]);
    let places = places(&args, &sequences, sizes);
    let rows = OutRows::new(out, sizes, out_strides, head_dim_v, places.as_deref());
    match (places, log_sums) {
        (Some(places), Some(log_sums)) => {
            let mut by_place = vec![f32::NEG_INFINITY; places.len()];
            let rows_of_jobs = places.iter().filter(|&&place| place != NO_JOB).count();
            let of_jobs = Some(&mut by_place[..rows_of_jobs]);
            compute(arch, &args, &sequences, Results { rows, log_sums: of_jobs });
            for (log_sum, &place) in log_sums.iter_mut().zip(&places) {
                *log_sum = if place == NO_JOB { f32::NEG_INFINITY } else { by_place[place] };
            }
        }
        (_, log_sums) => compute(arch, &args, &sequences, Results { rows, log_sums }),
    }
}

/// Keys that a sequence may have, no more than pages can hold.
fn keys_in_pages(args: &AttentionArgs) -> usize {
    let pages = [args.k.pages, args.v.pages].into_iter().flatten();
    let held = pages.map(|pages| if pages.count == 0 { 0 } else { pages.per_sequence * pages.size });
    held.fold(args.shape.seq_kv, usize::min)
}

/// The place of each row `[batch, heads, seq_q]` in the order of jobs, which is (sequence, head, query), where that is
/// another.
fn places(args: &AttentionArgs, sequences: &[Sequence], sizes: [usize; 3]) -> Option<Vec<usize>> {
    if args.masking.packed.is_none() && args.masking.q_lengths.is_none() {
        return None;
    }
    let [batch, heads, seq_q] = sizes;
    let mut places = vec![NO_JOB; batch * heads * seq_q];
    let mut next = 0;
    for sequence in sequences {
        for head in 0..heads {
            let first = (sequence.q_batch * heads + head) * seq_q;
            for place in &mut places[first..][sequence.rows()] {
                *place = next;
                next += 1;
            }
        }
    }
    Some(places)
}

/// Cuts a problem into jobs, runs them, and combines those that share rows.
fn compute(arch: Arch, args: &AttentionArgs, sequences: &[Sequence], mut rest: Results) {
    let blocks = cut::blocks(args, sequences, rayon::current_num_threads());
    let width = 2 + args.shape.head_dim_v;
    let split = blocks.iter().filter(|block| block.parts > 1);
    let mut partials = vec![0.0; split.map(|block| block.parts * block.rows * width).sum()];
    let (mut jobs, mut unfinished) = (Vec::new(), Vec::new());
    let mut free = partials.as_mut_slice();
    for block in &blocks {
        let (head, results) = rest.split_last(block.rows);
        rest = head;
        let job = |part, destination| {
            let &Block { sequence, kv_head, first_row, rows, .. } = block;
            Job { args, sequence, kv_head, first_row, rows, keys: block.part(part), destination }
        };
        if block.parts == 1 {
            jobs.push(job(0, Destination::Results(results)));
            continue;
        }
        let (own, others) = free.split_at_mut(block.parts * block.rows * width);
        free = others;
        let parts = own.chunks_exact_mut(block.rows * width).enumerate();
        jobs.extend(parts.map(|(part, partial)| job(part, Destination::Partial(partial))));
        unfinished.push((block, results));
    }
    run(arch, jobs);
    let mut partials = partials.as_slice();
    for (block, results) in unfinished {
        let (own, others) = partials.split_at(block.parts * block.rows * width);
        partials = others;
        combine(args, block, own, results);
    }
}

/// Combines the parts of the rows of a block, `[parts, rows, 2 + head_dim_v]`.
fn combine(args: &AttentionArgs, block: &Block, partials: &[f32], mut results: Results) {
    let shape = args.shape;
    let width = 2 + shape.head_dim_v;
    let mut values = vec![0.0; shape.head_dim_v];
    for row in 0..block.rows {
        let head =
            block.kv_head * (shape.heads / shape.kv_heads) + (block.first_row + row) / block.sequence.queries.len();
        let sink = args.sinks.map_or(f32::NEG_INFINITY, |sinks| sinks[head]);
        let parts = partials.chunks_exact(block.rows * width).map(|part| &part[row * width..][..width]);
        let normal = job::combine(parts, sink, &mut values);
        results.finish(row, normal);
        results.rows.row(row).write(0, &values);
    }
}

/// Runs every job on the current rayon pool; a single job stays on this thread.
fn run(arch: Arch, jobs: Vec<Job>) {
    let one = |job: Job| {
        let group_rows = job.args.shape.heads / job.args.shape.kv_heads * job.sequence.queries.len();
        with_scratch(|scratch| {
            if group_rows <= VECTOR_ROWS {
                arch.dispatch(vector::Vectors { job, scratch });
            } else {
                arch.dispatch(tile::Tiles { job, scratch });
            }
        });
    };
    if jobs.len() == 1 {
        jobs.into_iter().for_each(one);
    } else {
        jobs.into_par_iter().with_max_len(1).for_each(one);
    }
}
