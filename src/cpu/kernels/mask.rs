//! Soft cap, slopes, masks and bias: what attention applies to a block of scores, and a kernel for scores that are
//! stored.

use super::args::{Dense, Elements, ElementsMut, Masking, Packed, Slopes};
use super::scratch::{Arena, with_scratch};
use super::sequence::{Sequence, with_sequences};
use super::tanh::SoftCap;
use crate::mask::Fill;
use pulp::Simd;
use rayon::prelude::*;
use std::ops::Range;

/// Stored scores to be masked.
#[derive(Debug, Clone, Copy)]
pub struct MaskScoresArgs<'a> {
    /// `[batch, heads, seq_q, seq_kv]`, contiguous; of packed sequences, `[1, heads, seq_q, seq_kv]`, or of packed queries
    /// only, `[sequences, heads, seq_q, seq_kv]`.
    pub scores: Elements<'a>,
    /// Those of the scores.
    pub sizes: [usize; 4],
    /// Soft cap, slopes, masks and bias.
    pub masking: Masking<'a>,
}

/// Caps, subtracts slopes, adds the bias, then gives every score that the band or the boolean mask hides its fill:
/// negative infinity under [`Fill::Exclude`]. A bias of negative infinity excludes whatever the score is, NaN included,
/// and so does a key that does not exist in the query's sequence. The row of a query that does not exist is negative
/// infinity.
///
/// `out` is laid out as the scores are.
pub fn mask_scores(args: &MaskScoresArgs, out: ElementsMut) {
    let [batch, heads, seq_q, seq_kv] = args.sizes;
    if batch * heads * seq_q * seq_kv == 0 {
        return;
    }
    with_sequences(&args.masking, batch, [seq_q, seq_kv], |sequences| mask_rows(args, sequences, out));
}

fn mask_rows(args: &MaskScoresArgs, sequences: &[Sequence], out: ElementsMut) {
    let seq_kv = args.sizes[3];
    let row = |row, out: &mut ElementsMut| mask_row(args, sequences, row, out);
    let min_rows = MIN_SCORES.div_ceil(seq_kv);
    match out {
        ElementsMut::F32(data) => {
            let rows = data.par_chunks_exact_mut(seq_kv).enumerate().with_min_len(min_rows);
            rows.for_each(|(index, out)| row(index, &mut ElementsMut::F32(out)));
        }
        ElementsMut::F16(data) => {
            let rows = data.par_chunks_exact_mut(seq_kv).enumerate().with_min_len(min_rows);
            rows.for_each(|(index, out)| row(index, &mut ElementsMut::F16(out)));
        }
        ElementsMut::BF16(data) => {
            let rows = data.par_chunks_exact_mut(seq_kv).enumerate().with_min_len(min_rows);
            rows.for_each(|(index, out)| row(index, &mut ElementsMut::BF16(out)));
        }
    }
}

/// Fewest scores worth a task of their own.
pub(super) const MIN_SCORES: usize = 1 << 14;

/// One row of all; see [`mask_scores`].
pub(super) fn mask_row(args: &MaskScoresArgs, sequences: &[Sequence], row: usize, out: &mut ElementsMut) {
    let [_, heads, seq_q, seq_kv] = args.sizes;
    let [batch, head, position] = [row / seq_q / heads, row / seq_q % heads, row % seq_q];
    with_scratch(|lines| {
        let mut arena = Arena::new(lines, 8 * seq_kv, 2);
        let scores: &mut [f32] = arena.take(seq_kv);
        match sequence_of(sequences, &args.masking, batch, position) {
            None => scores.fill(f32::NEG_INFINITY),
            Some(sequence) => {
                args.scores.read(row * seq_kv, scores);
                let (before, rest) = scores.split_at_mut(sequence.kv_row);
                let (scores, after) = rest.split_at_mut(sequence.keys);
                before.fill(f32::NEG_INFINITY);
                after.fill(f32::NEG_INFINITY);
                mask_sequence(&args.masking, sequence, [head, position - sequence.q_row], scores, arena.take(seq_kv));
            }
        }
        out.write(0, scores);
    });
}

/// The sequence that the query in a row of a batch element is of.
fn sequence_of<'a>(
    sequences: &'a [Sequence],
    masking: &Masking,
    batch: usize,
    position: usize,
) -> Option<&'a Sequence> {
    let has = |sequence: &&Sequence| sequence.rows().contains(&position);
    match masking.packed {
        Some(Packed { kv_starts: Some(_), .. }) => sequences.iter().find(has),
        Some(Packed { kv_starts: None, .. }) | None => sequences.get(batch).filter(has),
    }
}

/// Masks the scores of one query, given as head and query, with the keys of its sequence.
fn mask_sequence(
    masking: &Masking,
    sequence: &Sequence,
    [head, query]: [usize; 2],
    scores: &mut [f32],
    bias: &mut [f32],
) {
    let fill = fill_value(masking.fill);
    let visible = sequence.visible(query);
    if let Some(cap) = masking.softcap {
        SoftCap { scores: &mut scores[visible.clone()], cap }.run();
    }
    if let Some(slopes) = &masking.slopes {
        let (slope, place) = (slope(slopes, sequence, head), (query as i64 + sequence.position) as f32);
        for (key, score) in scores.iter_mut().enumerate() {
            *score -= slope * (key as f32 - place).abs();
        }
    }
    if is_dense(masking) {
        let bias = &mut bias[..scores.len()];
        read_row(masking, sequence, [head, query], 0, bias);
        for (score, &bias) in scores.iter_mut().zip(bias.iter()) {
            let sum = if bias == f32::NEG_INFINITY { bias } else { *score + bias };
            *score = if bias.to_bits() == MASKED.to_bits() { fill } else { sum };
        }
    }
    scores[..visible.start].fill(fill);
    scores[visible.end..].fill(fill);
}

/// The slope of a head.
#[inline(always)]
pub(super) fn slope(slopes: &Slopes, sequence: &Sequence, head: usize) -> f32 {
    slopes.data[sequence.index * slopes.strides[0] + head * slopes.strides[1]]
}

/// Stands for "masked" among bias values. Bias that is NaN is stored as another NaN, so it never means this.
const MASKED: f32 = f32::from_bits(0x7fc0_0001);

/// What a masked score becomes: negative infinity under [`Fill::Exclude`].
pub(super) fn fill_value(fill: Fill) -> f32 {
    match fill {
        Fill::Exclude => f32::NEG_INFINITY,
        Fill::Assign(value) => value,
    }
}

/// Whether there is a mask or bias that has to be read per score.
pub(super) fn is_dense(masking: &Masking) -> bool {
    masking.bool_mask.is_some() || masking.bias.is_some()
}

/// Bias, or [`MASKED`], of one query, given as head and query, for the keys from `first_key` on.
#[inline(always)]
pub(super) fn read_row(masking: &Masking, sequence: &Sequence, query: [usize; 2], first_key: usize, out: &mut [f32]) {
    match &masking.bias {
        None => out.fill(0.0),
        Some(bias) => read_bias(bias, place(bias, sequence, query, first_key, out.len()), out),
    }
    if let Some(mask) = &masking.bool_mask {
        let (offset, covered) = place(mask, sequence, query, first_key, out.len());
        let (out, beyond) = out.split_at_mut(covered);
        beyond.fill(MASKED);
        match mask.strides[3] {
            1 => {
                for (x, &keep) in out.iter_mut().zip(&mask.data[offset..][..covered]) {
                    *x = if keep != 0 { *x } else { MASKED };
                }
            }
            stride => {
                for (key, x) in out.iter_mut().enumerate() {
                    *x = if mask.data[offset + key * stride] != 0 { *x } else { MASKED };
                }
            }
        }
    }
}

/// Whether the boolean mask hides `keys` from every one of the queries, which are given as head and query.
pub(super) fn hides_all(
    mask: &Dense<&[u8]>,
    sequence: &Sequence,
    queries: impl Iterator<Item = [usize; 2]>,
    keys: Range<usize>,
) -> bool {
    let mut seen = None;
    for query in queries {
        let (offset, covered) = place(mask, sequence, query, keys.start, keys.len());
        // Where the mask broadcasts, many queries have the same row.
        if seen.replace(offset) == Some(offset) {
            continue;
        }
        let hidden = match mask.strides[3] {
            1 => mask.data[offset..][..covered].iter().all(|&keep| keep == 0),
            stride => (0..covered).all(|key| mask.data[offset + key * stride] == 0),
        };
        if !hidden {
            return false;
        }
    }
    true
}

#[inline(always)]
fn read_bias(bias: &Dense<Elements>, (offset, covered): (usize, usize), out: &mut [f32]) {
    let (out, beyond) = out.split_at_mut(covered);
    beyond.fill(f32::NEG_INFINITY);
    match bias.strides[3] {
        1 => bias.data.read(offset, out),
        stride => {
            for (key, x) in out.iter_mut().enumerate() {
                *x = bias.data.get(offset + key * stride);
            }
        }
    }
    for x in out {
        *x = if x.is_nan() { f32::NAN } else { *x };
    }
}

/// Where `first_key` of a query lies, and how many of the `count` keys from there on are covered. Where none is, the
/// offset is zero, for the true one may lie outside.
#[inline(always)]
fn place<T>(
    dense: &Dense<T>,
    sequence: &Sequence,
    [head, query]: [usize; 2],
    first_key: usize,
    count: usize,
) -> (usize, usize) {
    let first_key = sequence.kv_row + first_key;
    let covered = dense.keys.saturating_sub(first_key).min(count);
    let [per_batch, per_head, per_query, per_key] = dense.strides;
    let (batch, query) = (sequence.q_batch, sequence.q_row + query);
    let offset = batch * per_batch + head * per_head + query * per_query + first_key * per_key;
    (if covered == 0 { 0 } else { offset }, covered)
}

/// Adds the bias that [`read_row`] gave to one vector of scores, or masks it.
#[inline(always)]
pub(super) fn apply_dense<S: Simd>(simd: S, bias: S::f32s, score: S::f32s, fill: S::f32s) -> S::f32s {
    let lowest = simd.splat_f32s(f32::NEG_INFINITY);
    let sum = simd.add_f32s(score, bias);
    // A score may be NaN where the bias excludes it.
    let sum = simd.select_f32s(simd.equal_f32s(bias, lowest), lowest, sum);
    let masked = simd.splat_u32s(MASKED.to_bits());
    simd.select_f32s(simd.equal_u32s(simd.transmute_u32s_f32s(bias), masked), fill, sum)
}

#[cfg(test)]
mod tests;
