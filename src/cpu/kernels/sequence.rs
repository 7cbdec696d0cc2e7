//! The sequences of a problem: how many queries and keys each has, and where they lie.
//!
//! Lengths and starts are data that nobody has checked, so whatever they say ends up inside the tensors here.

use super::args::{Masking, Packed};
use crate::mask::Band;
use std::cell::Cell;
use std::ops::Range;

/// One sequence. Its queries and keys count from zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Among all: what lengths and slopes are indexed by.
    pub index: usize,
    /// Batch element of the queries, of masks and of the bias.
    pub q_batch: usize,
    /// Row of query 0.
    pub q_row: usize,
    /// Those that have a result.
    pub queries: Range<usize>,
    /// Batch element of the keys.
    pub kv_batch: usize,
    /// Row of key 0.
    pub kv_row: usize,
    /// How many exist.
    pub keys: usize,
    /// What causality and window show.
    pub band: Band,
    /// Where query 0 stands for the slopes.
    pub position: i64,
}

impl Sequence {
    /// Keys that exist and that the band does not hide from `query`. Neither end decreases with the query.
    #[inline(always)]
    pub fn visible(&self, query: usize) -> Range<usize> {
        self.band.keys(query, self.keys)
    }

    /// Rows of the queries that have a result.
    pub fn rows(&self) -> Range<usize> {
        self.q_row + self.queries.start..self.q_row + self.queries.end
    }
}

thread_local! {
    /// Memory of the last call, so that the next one on this thread allocates nothing.
    static KEPT: Cell<Vec<Sequence>> = const { Cell::new(Vec::new()) };
}

/// Calls `task` with the [`sequences`] of a problem.
pub fn with_sequences<R>(masking: &Masking, batch: usize, rows: [usize; 2], task: impl FnOnce(&[Sequence]) -> R) -> R {
    let mut kept = KEPT.take();
    kept.clear();
    kept.extend(sequences(masking, batch, rows));
    let result = task(&kept);
    KEPT.set(kept);
    result
}

/// The sequences of a batch, or those that are packed, in order. No two have a row of q in common.
pub fn sequences(masking: &Masking, batch: usize, [seq_q, seq_kv]: [usize; 2]) -> impl Iterator<Item = Sequence> {
    let kv_starts = masking.packed.and_then(|packed| packed.kv_starts);
    let count = match masking.packed {
        None => batch,
        Some(Packed { q_starts, .. }) => {
            kv_starts.map_or(q_starts.len(), |starts| starts.len().min(q_starts.len())).saturating_sub(1)
        }
    };
    let mut passed = 0;
    (0..count).map(move |index| {
        let keys = match kv_starts {
            Some(starts) => Place { batch: 0, rows: between(starts, index, seq_kv) },
            None => Place { batch: index, rows: 0..existing(masking.lengths, index, seq_kv) },
        };
        let Some(Packed { q_starts, .. }) = masking.packed else {
            let queries = Place { batch: index, rows: 0..existing(masking.q_lengths, index, seq_q) };
            return sequence(masking, index, queries, 0, keys);
        };
        let queries = Place { batch: 0, rows: between(q_starts, index, seq_q) };
        let others = passed;
        passed = passed.max(queries.rows.end);
        sequence(masking, index, queries, others, keys)
    })
}

/// Rows of one batch element.
struct Place {
    batch: usize,
    rows: Range<usize>,
}

/// A sequence whose queries before row `others` are those of sequences before it.
fn sequence(masking: &Masking, index: usize, queries: Place, others: usize, keys: Place) -> Sequence {
    let lengths = [queries.rows.len(), keys.rows.len()];
    Sequence {
        index,
        q_batch: queries.batch,
        q_row: queries.rows.start,
        queries: others.clamp(queries.rows.start, queries.rows.end) - queries.rows.start..lengths[0],
        kv_batch: keys.batch,
        kv_row: keys.rows.start,
        keys: lengths[1],
        band: masking.bounds.band(lengths[0], lengths[1]),
        position: masking.slopes.map_or(0, |slopes| slopes.position.resolve(lengths[0], lengths[1])),
    }
}

/// A length, at most all rows.
fn existing(lengths: Option<&[u32]>, index: usize, rows: usize) -> usize {
    lengths.map_or(rows, |lengths| rows.min(lengths[index] as usize))
}

/// The rows from one start to the next, inside `0..rows`.
fn between(starts: &[u32], index: usize, rows: usize) -> Range<usize> {
    let start = rows.min(starts[index] as usize);
    start..rows.min(starts[index + 1] as usize).max(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(q_starts: &[u32], kv_starts: Option<&[u32]>) -> Vec<(Range<usize>, usize, Range<usize>)> {
        let masking = Masking { packed: Some(Packed { q_starts, kv_starts }), ..Masking::NONE };
        sequences(&masking, 0, [10, 20]).map(|s| (s.rows(), s.q_row, s.kv_row..s.kv_row + s.keys)).collect()
    }

    #[test]
    fn starts_by_hand() {
        assert_eq!(packed(&[], None), []);
        assert_eq!(packed(&[3], None), []);
        assert_eq!(packed(&[1, 4, 4, 10], None), [(1..4, 1, 0..20), (4..4, 4, 0..20), (4..10, 4, 0..20)]);
        assert_eq!(packed(&[0, 4, 10], Some(&[0, 9, 20])), [(0..4, 0, 0..9), (4..10, 4, 9..20)]);
    }

    #[test]
    fn wild_starts_stay_inside_and_apart() {
        assert_eq!(packed(&[0, u32::MAX], Some(&[u32::MAX, 3])), [(0..10, 0, 20..20)]);
        // The third sequence is 2..7, of which the first has 2..5 already.
        assert_eq!(packed(&[0, 5, 2, 7], None)[1..], [(5..5, 5, 0..20), (5..7, 2, 0..20)]);
        assert_eq!(packed(&[6, 9, 0, 4], None)[2], (4..4, 0, 0..20));
    }

    #[test]
    fn lengths_stay_inside() {
        let lengths = [7, u32::MAX];
        let masking = Masking { lengths: Some(&lengths), q_lengths: Some(&lengths[1..]), ..Masking::NONE };
        let one = sequences(&masking, 1, [5, 9]).next().unwrap();
        assert_eq!((one.queries, one.keys), (0..5, 7));
    }
}
