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
use super::scratch::{Arena, with_scratch};
use super::sequence::{Sequence, with_sequences};
use cut::{Block, VECTOR_ROWS};
use job::{Destination, Job};
use pulp::Arch;
use rayon::prelude::*;
use results::{NO_JOB, OutRows, Placement, Results, RowLists};
use std::cell::Cell;

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
    let rows = [seq_q, keys_in_pages(&args)];
    with_sequences(&args.masking, batch, rows, |sequences| {
        let mut kept = KEPT.take();
        let call = Call { arch, args: &args, sequences };
        let mut lists = std::mem::take(&mut kept.lists);
        let places = call.places(sizes, &mut kept.places);
        let placement = Placement { sizes, strides: out_strides, width: head_dim_v, places };
        let rows = OutRows::new(out, &placement, &mut lists);
        call.compute(rows, places, log_sums, &mut kept.memory);
        kept.lists = lists.recycled();
        KEPT.set(kept);
    });
}

thread_local! {
    static KEPT: Cell<Kept> = Cell::default();
}

/// What a call leaves for the next one on its thread, so that a run in steady state allocates nothing.
#[derive(Default)]
struct Kept {
    places: Vec<usize>,
    lists: RowLists<'static>,
    memory: Memory,
}

/// Blocks, and memory for what their parts and rows give.
#[derive(Default)]
struct Memory {
    blocks: Vec<Block>,
    partials: Vec<f32>,
    log_sums: Vec<f32>,
}

/// The first `count` elements, whatever they hold.
fn first(memory: &mut Vec<f32>, count: usize) -> &mut [f32] {
    if memory.len() < count {
        memory.resize(count, 0.0);
    }
    &mut memory[..count]
}

/// Keys that a sequence may have, no more than pages can hold.
fn keys_in_pages(args: &AttentionArgs) -> usize {
    let pages = [args.k.pages, args.v.pages].into_iter().flatten();
    let held = pages.map(|pages| if pages.count == 0 { 0 } else { pages.per_sequence * pages.size });
    held.fold(args.shape.seq_kv, usize::min)
}

/// A problem, and what computes it.
struct Call<'a> {
    arch: Arch,
    args: &'a AttentionArgs<'a>,
    sequences: &'a [Sequence],
}

impl Call<'_> {
    /// The place of each row `[batch, heads, seq_q]` in the order of jobs, which is (sequence, head, query), where that is
    /// another.
    fn places<'p>(&self, sizes: [usize; 3], places: &'p mut Vec<usize>) -> Option<&'p [usize]> {
        if self.args.masking.packed.is_none() && self.args.masking.q_lengths.is_none() {
            return None;
        }
        let [batch, heads, seq_q] = sizes;
        places.clear();
        places.resize(batch * heads * seq_q, NO_JOB);
        let mut next = 0;
        for sequence in self.sequences {
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

    /// Cuts the problem into blocks and runs them.
    fn compute(&self, rows: OutRows, places: Option<&[usize]>, log_sums: Option<&mut [f32]>, memory: &mut Memory) {
        let Memory { blocks, partials, log_sums: by_place } = memory;
        cut::into_blocks(self.args, self.sequences, rayon::current_num_threads(), blocks);
        let partials = first(partials, blocks.iter().map(|block| self.partial_floats(block)).sum());
        match (places, log_sums) {
            (Some(places), Some(log_sums)) => {
                let by_place = first(by_place, blocks.iter().map(|block| block.rows).sum());
                self.run(blocks, Results { rows, log_sums: Some(&mut *by_place) }, partials);
                for (log_sum, &place) in log_sums.iter_mut().zip(places) {
                    *log_sum = if place == NO_JOB { f32::NEG_INFINITY } else { by_place[place] };
                }
            }
            (_, log_sums) => self.run(blocks, Results { rows, log_sums }, partials),
        }
    }

    /// Runs blocks on the current rayon pool, halves of them side by side; a single one stays on this thread. The first have
    /// the last results.
    fn run(&self, blocks: &[Block], results: Results, partials: &mut [f32]) {
        match blocks {
            [] => {}
            [block] => self.one(block, results, partials),
            _ => {
                let (first, second) = blocks.split_at(blocks.len() / 2);
                let (others, own) = results.split_last(first.iter().map(|block| block.rows).sum());
                let mid = first.iter().map(|block| self.partial_floats(block)).sum();
                let (own_partials, other_partials) = partials.split_at_mut(mid);
                rayon::join(|| self.run(first, own, own_partials), || self.run(second, others, other_partials));
            }
        }
    }

    /// A block: one job, or one for each part of its keys and what combines them.
    fn one(&self, block: &Block, results: Results, partials: &mut [f32]) {
        if block.parts == 1 {
            return self.part(block, 0, Destination::Results(results));
        }
        let parts = partials.par_chunks_exact_mut(block.rows * self.partial_width()).enumerate();
        parts.with_max_len(1).for_each(|(part, partial)| self.part(block, part, Destination::Partial(partial)));
        self.combine(block, partials, results);
    }

    /// One part of the keys of a block.
    fn part(&self, block: &Block, part: usize, destination: Destination) {
        let &Block { kv_head, first_row, rows, .. } = block;
        let sequence = &self.sequences[block.sequence];
        let job = Job { args: self.args, sequence, kv_head, first_row, rows, keys: block.part(part), destination };
        let shape = self.args.shape;
        with_scratch(|scratch| {
            if shape.heads / shape.kv_heads * sequence.queries.len() <= VECTOR_ROWS {
                self.arch.dispatch(vector::Vectors { job, scratch });
            } else {
                self.arch.dispatch(tile::Tiles { job, scratch });
            }
        });
    }

    /// Combines the parts of the rows of a block, `[parts, rows, 2 + head_dim_v]`.
    fn combine(&self, block: &Block, partials: &[f32], mut results: Results) {
        let (shape, width) = (self.args.shape, self.partial_width());
        let queries = self.sequences[block.sequence].queries.len();
        with_scratch(|scratch| {
            let values = Arena::new(scratch, 4 * shape.head_dim_v, 1).take(shape.head_dim_v);
            for row in 0..block.rows {
                let head = block.kv_head * (shape.heads / shape.kv_heads) + (block.first_row + row) / queries;
                let sink = self.args.sinks.map_or(f32::NEG_INFINITY, |sinks| sinks[head]);
                let parts = partials.chunks_exact(block.rows * width).map(|part| &part[row * width..][..width]);
                let normal = job::combine(parts, sink, values);
                results.finish(row, normal);
                results.rows.row(row).write(0, values);
            }
        });
    }

    /// Floats of a row of a part: maximum, sum and output.
    fn partial_width(&self) -> usize {
        2 + self.args.shape.head_dim_v
    }

    /// Floats of all parts of a block that has several.
    fn partial_floats(&self, block: &Block) -> usize {
        if block.parts == 1 { 0 } else { block.parts * block.rows * self.partial_width() }
    }
}
