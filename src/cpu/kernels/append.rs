//! Appending rows to a cache, in place.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::args::Operand;
use super::rms_norm::Norm;
use super::rotary::Turn;
use super::scratch::{Arena, with_scratch};
use std::ops::Range;

/// A cache's memory.
#[derive(Debug)]
pub enum CacheMut<'a> {
    /// Single precision.
    F32(&'a mut [f32]),
    /// Half precision, rounded to nearest.
    F16(&'a mut [f16]),
    /// Levels from −127 to 127 and a scale for each row.
    I8(&'a mut [i8], &'a mut [f32]),
}

/// New rows for one cache, of keys or of values.
#[derive(Debug, Clone, Copy)]
pub struct AppendArgs<'a> {
    /// The new rows. Their pages are those of the cache, if it has any.
    pub rows: Operand<'a>,
    /// Independent sequences.
    pub batch: usize,
    /// Heads.
    pub kv_heads: usize,
    /// New rows of a sequence, at most.
    pub seq_new: usize,
    /// Rows that the cache has for a sequence.
    pub capacity: usize,
    /// Elements of a row.
    pub dim: usize,
    /// Rows that each sequence has already.
    pub lengths: &'a [u32],
    /// Rows that each sequence gets, if not all.
    pub new_lengths: Option<&'a [u32]>,
    /// Comes first.
    pub norm: Option<Norm<'a>>,
    /// Comes next.
    pub turn: Option<Turning<'a>>,
}

/// The angles of a cache's rows.
#[derive(Debug, Clone, Copy)]
pub struct Turning<'a> {
    /// The angles.
    pub turn: Turn<'a>,
    /// Positions that they are of; `None` where they are of the new rows themselves, `[batch, seq_new]`.
    pub positions: Option<usize>,
}

impl AppendArgs<'_> {
    /// Rows that a sequence has already and rows that it gets, so that both fit.
    fn spans(&self, batch: usize) -> (usize, usize) {
        let there = (self.lengths[batch] as usize).min(self.capacity);
        let new = self.new_lengths.map_or(self.seq_new, |new| (new[batch] as usize).min(self.seq_new));
        (there, new.min(self.capacity - there))
    }

    fn compute(&self, [batch, head, i]: [usize; 3], position: usize, row: &mut [f32]) {
        let [batch_step, head_step, row_step] = self.rows.strides;
        self.rows.data.read(batch * batch_step + head * head_step + i * row_step, row);
        if let Some(norm) = &self.norm {
            norm.apply(row);
        }
        if let Some(Turning { turn, positions }) = &self.turn {
            turn.apply(positions.map_or(batch * self.seq_new + i, |positions| position.min(positions - 1)), row);
        }
    }
}

/// Writes row i of each sequence and head to position `lengths + i`.
pub fn append(args: &AppendArgs, cache: CacheMut) {
    let AppendArgs { batch, kv_heads, dim, .. } = *args;
    let Some(pages) = args.rows.pages else { return append_to(args, 0..batch * kv_heads, cache) };
    with_scratch(|lines| {
        // A page may be any sequence's, so these are written one after the other.
        let mut cache = cache;
        let row = Arena::new(lines, 4 * dim, 1).take(dim);
        for (b, head) in (0..batch).flat_map(|b| (0..kv_heads).map(move |head| (b, head))) {
            let (there, new) = args.spans(b);
            for i in 0..new {
                let position = there + i;
                let page = pages.table[b * pages.per_sequence + position / pages.size] as usize;
                let page = page.min(pages.count - 1);
                args.compute([b, head, i], position, row);
                cache.write((page * pages.size + position % pages.size) * kv_heads + head, row);
            }
        }
    });
}

/// As [`append`], to the caches of these (sequence, head), which lie one after another; halves of them side by side.
fn append_to(args: &AppendArgs, heads: Range<usize>, mut cache: CacheMut) {
    let AppendArgs { kv_heads, capacity, dim, .. } = *args;
    if heads.len() > 1 {
        let mid = heads.start + heads.len() / 2;
        let (first, second) = cache.split_at(heads.len() / 2 * capacity, dim);
        rayon::join(|| append_to(args, heads.start..mid, first), || append_to(args, mid..heads.end, second));
        return;
    }
    for index in heads {
        let (b, head) = (index / kv_heads, index % kv_heads);
        let (there, new) = args.spans(b);
        with_scratch(|lines| {
            let row = Arena::new(lines, 4 * dim, 1).take(dim);
            for i in 0..new {
                args.compute([b, head, i], there + i, row);
                cache.write(there + i, row);
            }
        });
    }
}

/// Each sequence's rows after an append.
pub fn advance(args: &AppendArgs, lengths: &mut [u32]) {
    for (batch, length) in lengths.iter_mut().enumerate() {
        let (there, new) = args.spans(batch);
        *length = (there + new) as u32;
    }
}

impl CacheMut<'_> {
    /// The first so many rows, and the others.
    fn split_at(self, rows: usize, dim: usize) -> (Self, Self) {
        match self {
            Self::F32(data) => {
                let (head, tail) = data.split_at_mut(rows * dim);
                (Self::F32(head), Self::F32(tail))
            }
            Self::F16(data) => {
                let (head, tail) = data.split_at_mut(rows * dim);
                (Self::F16(head), Self::F16(tail))
            }
            Self::I8(levels, scales) => {
                let (head, tail) = levels.split_at_mut(rows * dim);
                let (head_scales, tail_scales) = scales.split_at_mut(rows);
                (Self::I8(head, head_scales), Self::I8(tail, tail_scales))
            }
        }
    }

    fn write(&mut self, row: usize, values: &[f32]) {
        let place = row * values.len()..(row + 1) * values.len();
        match self {
            Self::F32(data) => data[place].copy_from_slice(values),
            Self::F16(data) => data[place].convert_from_f32_slice(values),
            Self::I8(levels, scales) => scales[row] = quantise(values, &mut levels[place]),
        }
    }
}

/// Stores a row as levels of its largest magnitude / 127, which it returns.
fn quantise(values: &[f32], levels: &mut [i8]) -> f32 {
    let scale = values.iter().fold(0.0_f32, |largest, x| largest.max(x.abs())) / 127.0;
    for (level, x) in levels.iter_mut().zip(values) {
        *level = if scale == 0.0 { 0 } else { (x / scale).round_ties_even().clamp(-127.0, 127.0) as i8 };
    }
    scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantised_by_hand() {
        let mut levels = [0; 6];
        // In levels of 2: halves go to the even one.
        assert_eq!(quantise(&[254.0, -254.0, 1.0, 3.0, -5.0, 2.2], &mut levels), 2.0);
        assert_eq!(levels, [127, -127, 0, 2, -2, 1]);
        assert_eq!(quantise(&[0.0; 6], &mut levels), 0.0);
        assert_eq!(levels, [0; 6]);
    }
}
