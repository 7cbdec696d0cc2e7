//! How a problem is cut into jobs.

use crate::cpu::kernels::args::{AttentionArgs, AttentionShape};
use crate::cpu::kernels::sequence::Sequence;
use crate::mask::Fill;
use std::ops::Range;

/// Up to this many rows per key head take the vector technique.
pub const VECTOR_ROWS: usize = 8;

/// Most rows of a tile job: enough that packing a key block, done once per job, costs about 4 %.
const TILE_JOB_ROWS: usize = 384;

/// Rows of a tile with the widest vectors; jobs are cut in multiples of it.
const TILE_ROWS: usize = 48;

/// Fewest keys in a part when the keys are split.
const SPLIT_KEYS: usize = 512;

/// Rows of one key head of a sequence that one job, or one job for each part of their keys, has.
pub struct Block {
    /// Among all.
    pub sequence: usize,
    pub kv_head: usize,
    /// Among the rows of the query heads that share the key head.
    pub first_row: usize,
    pub rows: usize,
    /// Those to visit.
    pub keys: Range<usize>,
    /// Parts that the keys are split into.
    pub parts: usize,
}

impl Block {
    /// Keys of one part.
    pub fn part(&self, part: usize) -> Range<usize> {
        let each = self.keys.len().div_ceil(self.parts);
        let start = self.keys.end.min(self.keys.start + part * each);
        start..self.keys.end.min(start + each)
    }

    /// Scores to visit.
    fn scores(&self) -> usize {
        self.rows * self.keys.len()
    }
}

/// All rows of a problem, last ones first, in the place of what `blocks` held: causal jobs grow with the row, and starting
/// the long ones early leaves short ones to fill the end.
pub fn into_blocks(args: &AttentionArgs, sequences: &[Sequence], threads: usize, blocks: &mut Vec<Block>) {
    let AttentionShape { heads, kv_heads, .. } = args.shape;
    let group_rows = |sequence: &Sequence| heads / kv_heads * sequence.queries.len();
    let all_rows = sequences.iter().map(|sequence| kv_heads * group_rows(sequence)).sum::<usize>();
    blocks.clear();
    for (index, sequence) in sequences.iter().enumerate().rev() {
        let group_rows = group_rows(sequence);
        if group_rows == 0 {
            continue;
        }
        // Four jobs per thread even out causal jobs of unequal cost.
        let wanted = (4 * threads * group_rows).div_ceil(all_rows);
        let rows_per_job = match group_rows {
            ..=VECTOR_ROWS => group_rows,
            _ => group_rows.div_ceil(wanted).next_multiple_of(TILE_ROWS).min(TILE_JOB_ROWS),
        };
        for kv_head in (0..kv_heads).rev() {
            for first_row in (0..group_rows).step_by(rows_per_job).rev() {
                let rows = rows_per_job.min(group_rows - first_row);
                let seen = span(args.masking.fill, sequence, first_row..first_row + rows);
                let share = args.share.keys(sequence.keys);
                let start = seen.start.max(share.start);
                let keys = start..seen.end.min(share.end).max(start);
                blocks.push(Block { sequence: index, kv_head, first_row, rows, keys, parts: 1 });
            }
        }
    }
    split_keys(blocks, threads);
}

/// Splits the keys of blocks that would keep one thread busy while others have nothing to do: where there are fewer
/// than threads, and where one is much larger than all that a thread should have.
fn split_keys(blocks: &mut [Block], threads: usize) {
    let few = blocks.len() < threads;
    let all: usize = blocks.iter().map(Block::scores).sum();
    for block in blocks {
        let (share, whole) = (block.scores() * threads, all.max(1));
        let wanted = if few { share.div_ceil(whole) } else { (share + whole / 2) / whole };
        block.parts = wanted.min(block.keys.len().div_ceil(SPLIT_KEYS)).max(1);
    }
}

/// Keys that rows of a group have to visit: from the first to the last that some row sees, or under `Assign`, where
/// masked keys count too, all that exist.
pub fn span(fill: Fill, sequence: &Sequence, rows: Range<usize>) -> Range<usize> {
    if let Fill::Assign(_) = fill {
        return 0..sequence.keys;
    }
    let queries = &sequence.queries;
    let (first, last) = (rows.start, rows.end - 1);
    let one_head = first / queries.len() == last / queries.len();
    let [first, last] = if one_head { [first, last].map(|row| row % queries.len()) } else { [0, queries.len() - 1] };
    sequence.visible(queries.start + first).start..sequence.visible(queries.start + last).end
}
