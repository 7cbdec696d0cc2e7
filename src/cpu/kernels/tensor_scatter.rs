//! Rows of an update written over rows of a cache. Bytes are moved, so it serves every element type.

use rayon::prelude::*;

/// Fewest bytes worth a task of their own.
const MIN_BYTES: usize = 1 << 16;

/// What goes where.
#[derive(Debug, Clone, Copy)]
pub struct TensorScatterArgs<'a> {
    /// Runs of `capacity` rows, one after another.
    pub cache: &'a [u8],
    /// Runs of `seq` rows, one for each of the cache's.
    pub update: &'a [u8],
    /// The first row to be written, for each of as many equal shares of the runs.
    pub starts: &'a [u32],
    /// Rows of a run of the cache.
    pub capacity: usize,
    /// Rows of a run of the update, at most `capacity`.
    pub seq: usize,
    /// Bytes of a row.
    pub row_bytes: usize,
    /// What becomes of rows past the last.
    pub wrap: Wrap,
}

/// What becomes of rows that would be written past the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Wrap {
    /// They are not written.
    #[default]
    Linear,
    /// They go on at the first.
    Circular,
}

/// Writes the cache with its updates into `y`.
pub fn tensor_scatter(args: &TensorScatterArgs, y: &mut [u8]) {
    let TensorScatterArgs { capacity, seq, row_bytes, .. } = *args;
    let run_bytes = capacity * row_bytes;
    if y.is_empty() {
        return;
    }
    let runs_each = y.len() / run_bytes / args.starts.len();
    let runs = y.par_chunks_exact_mut(run_bytes).enumerate().with_min_len(MIN_BYTES.div_ceil(run_bytes));
    runs.for_each(|(run, y)| {
        y.copy_from_slice(&args.cache[run * run_bytes..][..run_bytes]);
        let update = &args.update[run * seq * row_bytes..][..seq * row_bytes];
        let start = args.starts[run / runs_each] as usize;
        let start = if args.wrap == Wrap::Circular { start % capacity } else { start.min(capacity) };
        let straight = seq.min(capacity - start) * row_bytes;
        y[start * row_bytes..][..straight].copy_from_slice(&update[..straight]);
        if args.wrap == Wrap::Circular {
            y[..update.len() - straight].copy_from_slice(&update[straight..]);
        }
    });
}
