//! Soft cap, masks and bias: what attention applies to a block of scores, and a kernel for scores that are stored.

use super::args::{Dense, Elements, ElementsMut, Masking};
use super::scratch::{Arena, with_scratch};
use super::tanh::SoftCap;
use crate::mask::Fill;
use pulp::Simd;
use rayon::prelude::*;
use std::ops::Range;

/// Stored scores to be masked.
#[derive(Debug, Clone, Copy)]
pub struct MaskScoresArgs<'a> {
    /// `[batch, heads, seq_q, seq_kv]`, contiguous.
    pub scores: Elements<'a>,
    /// Batch, heads, queries and keys.
    pub sizes: [usize; 4],
    /// Soft cap, masks and bias.
    pub masking: Masking<'a>,
}

/// Caps, adds the bias, then gives every score that the band or the boolean mask hides its fill: negative infinity
/// under [`Fill::Exclude`]. A bias of negative infinity excludes whatever the score is, NaN included, and so does a key
/// at or beyond its length.
///
/// `out` is laid out as the scores are.
pub fn mask_scores(args: &MaskScoresArgs, out: ElementsMut) {
    let [batch, heads, seq_q, seq_kv] = args.sizes;
    if batch * heads * seq_q * seq_kv == 0 {
        return;
    }
    match out {
        ElementsMut::F32(data) => {
            let rows = data.par_chunks_exact_mut(seq_kv).enumerate().with_min_len(MIN_SCORES.div_ceil(seq_kv));
            rows.for_each(|(row, out)| mask_row(args, row, &mut ElementsMut::F32(out)));
        }
        ElementsMut::F16(data) => {
            let rows = data.par_chunks_exact_mut(seq_kv).enumerate().with_min_len(MIN_SCORES.div_ceil(seq_kv));
            rows.for_each(|(row, out)| mask_row(args, row, &mut ElementsMut::F16(out)));
        }
        ElementsMut::BF16(data) => {
            let rows = data.par_chunks_exact_mut(seq_kv).enumerate().with_min_len(MIN_SCORES.div_ceil(seq_kv));
            rows.for_each(|(row, out)| mask_row(args, row, &mut ElementsMut::BF16(out)));
        }
    }
}

/// Fewest scores worth a task of their own.
const MIN_SCORES: usize = 1 << 14;

fn mask_row(args: &MaskScoresArgs, row: usize, out: &mut ElementsMut) {
    let [_, heads, seq_q, seq_kv] = args.sizes;
    let [batch, head, query] = [row / seq_q / heads, row / seq_q % heads, row % seq_q];
    let fill = fill_value(args.masking.fill);
    let exists = existing(&args.masking, batch, seq_kv);
    let visible = visible(&args.masking, batch, query, [seq_q, seq_kv]);
    with_scratch(|lines| {
        let mut arena = Arena::new(lines, 8 * seq_kv, 2);
        let scores: &mut [f32] = arena.take(seq_kv);
        args.scores.read(row * seq_kv, scores);
        if let Some(cap) = args.masking.softcap {
            SoftCap { scores: &mut scores[visible.clone()], cap }.run();
        }
        if is_dense(&args.masking) {
            let bias: &mut [f32] = arena.take(seq_kv);
            read_row(&args.masking, [batch, head, query], 0, bias);
            for (score, &bias) in scores.iter_mut().zip(bias.iter()) {
                let sum = if bias == f32::NEG_INFINITY { bias } else { *score + bias };
                *score = if bias.to_bits() == MASKED.to_bits() { fill } else { sum };
            }
        }
        scores[..visible.start].fill(fill);
        scores[visible.end..exists].fill(fill);
        scores[exists..].fill(f32::NEG_INFINITY);
        out.write(0, scores);
    });
}

/// How many keys a batch element has.
#[inline(always)]
pub(super) fn existing(masking: &Masking, batch: usize, seq_kv: usize) -> usize {
    masking.lengths.map_or(seq_kv, |lengths| seq_kv.min(lengths[batch] as usize))
}

/// Keys that exist and that the band does not hide from `query`. Neither end decreases with the query.
#[inline(always)]
pub(super) fn visible(masking: &Masking, batch: usize, query: usize, [seq_q, seq_kv]: [usize; 2]) -> Range<usize> {
    let exists = existing(masking, batch, seq_kv);
    masking.bounds.band(seq_q, exists).keys(query, exists)
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

/// Bias, or [`MASKED`], of one row, given as batch, head and query, for the keys from `first_key` on.
#[inline(always)]
pub(super) fn read_row(masking: &Masking, row: [usize; 3], first_key: usize, out: &mut [f32]) {
    match &masking.bias {
        None => out.fill(0.0),
        Some(bias) => read_bias(bias, row, first_key, out),
    }
    if let Some(mask) = &masking.bool_mask {
        let (offset, covered) = place(mask, row, first_key, out.len());
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

#[inline(always)]
fn read_bias(bias: &Dense<Elements>, row: [usize; 3], first_key: usize, out: &mut [f32]) {
    let (offset, covered) = place(bias, row, first_key, out.len());
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

/// Where `first_key` of a row lies, and how many of the `count` keys from there on are covered. Where none is, the
/// offset is zero, for the true one may lie outside.
#[inline(always)]
fn place<T>(dense: &Dense<T>, [batch, head, query]: [usize; 3], first_key: usize, count: usize) -> (usize, usize) {
    let covered = dense.keys.saturating_sub(first_key).min(count);
    let [per_batch, per_head, per_query, per_key] = dense.strides;
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
mod tests {
    use super::*;
    use half::f16;

    const SIZES: [usize; 4] = [2, 3, 5, 37];

    fn scores() -> Vec<f32> {
        (0..SIZES.iter().product()).map(|i: usize| (i * 7 % 101) as f32 * 0.125 - 6.0).collect()
    }

    fn run(masking: Masking) -> Vec<f32> {
        let scores = scores();
        let mut out = vec![f32::NAN; scores.len()];
        let args = MaskScoresArgs { scores: Elements::F32(&scores), sizes: SIZES, masking };
        mask_scores(&args, ElementsMut::F32(&mut out));
        out
    }

    fn expect(masking: Masking, want: impl Fn([usize; 4], f32) -> f32) {
        let scores = scores();
        for (index, &got) in run(masking).iter().enumerate() {
            let [b, h, i, j] = [index / (37 * 5 * 3), index / (37 * 5) % 3, index / 37 % 5, index % 37];
            assert_eq!(got, want([b, h, i, j], scores[index]), "{:?}", [b, h, i, j]);
        }
    }

    #[test]
    fn causal() {
        for offset in [-2, 0, 11, 100] {
            for (fill, value) in [(Fill::Exclude, f32::NEG_INFINITY), (Fill::Assign(-7.5), -7.5)] {
                let masking = Masking { band: Band { upper: offset as i64, ..Band::FULL }, fill, ..Masking::NONE };
                expect(masking, |[_, _, i, j], s| if j as isize <= i as isize + offset { s } else { value });
            }
        }
    }

    #[test]
    fn bias_then_mask() {
        let keep: Vec<u8> = (0..2 * 37).map(|i| u8::from(i % 3 != 0)).collect();
        let bias: Vec<f32> = (0..3 * 5).map(|i| if i == 4 { f32::NEG_INFINITY } else { i as f32 }).collect();
        let masking = Masking {
            bool_mask: Some(Dense { data: &keep, strides: [37, 0, 0, 1], keys: 37 }),
            bias: Some(Dense { data: Elements::F32(&bias), strides: [0, 5, 1, 0], keys: 37 }),
            fill: Fill::Assign(9.0),
            ..Masking::NONE
        };
        expect(masking, |[b, h, i, j], s| if keep[b * 37 + j] == 0 { 9.0 } else { s + bias[h * 5 + i] });
    }

    #[test]
    fn masks_of_some_keys() {
        let keep: Vec<u8> = (0..2 * 30).map(|i| u8::from(i % 3 != 0)).collect();
        let bias: Vec<f32> = (0..3 * 20).map(|i| i as f32).collect();
        for (fill, value) in [(Fill::Exclude, f32::NEG_INFINITY), (Fill::Assign(9.0), 9.0)] {
            let masking = Masking {
                bool_mask: Some(Dense { data: &keep, strides: [30, 0, 0, 1], keys: 30 }),
                bias: Some(Dense { data: Elements::F32(&bias), strides: [0, 20, 0, 1], keys: 20 }),
                fill,
                ..Masking::NONE
            };
            expect(masking, |[b, h, _, j], s| match j {
                30.. => value,
                _ if keep[b * 30 + j] == 0 => value,
                20.. => f32::NEG_INFINITY,
                _ => s + bias[h * 20 + j],
            });
            // One number for all of the keys that it covers.
            let masking = Masking {
                bias: Some(Dense { data: Elements::F32(&[0.5]), strides: [0; 4], keys: 3 }),
                ..Masking::NONE
            };
            expect(masking, |[_, _, _, j], s| if j < 3 { s + 0.5 } else { f32::NEG_INFINITY });
        }
    }

    #[test]
    fn lengths_and_the_band_that_follows_them() {
        let lengths = [20u32, 99];
        for (fill, value) in [(Fill::Exclude, f32::NEG_INFINITY), (Fill::Assign(-7.5), -7.5)] {
            for (band_anchor, lower, upper) in
                [(BandAnchor::Fixed, 3, 18), (BandAnchor::Length, 20, 32), (BandAnchor::Length, -50, -3)]
            {
                let band = Band { lower, upper };
                let masking = Masking { lengths: Some(&lengths), band, band_anchor, fill, ..Masking::NONE };
                expect(masking, |[b, _, i, j], s| {
                    let length = [20, 37][b];
                    let moved = if band_anchor == BandAnchor::Length { length - 37 } else { 0 };
                    let distance = j as i64 - i as i64 - moved;
                    match j as i64 >= length {
                        true => f32::NEG_INFINITY,
                        false if (lower..=upper).contains(&distance) => s,
                        false => value,
                    }
                });
            }
        }
    }

    #[test]
    fn capped_then_biased_then_masked() {
        let bias: Vec<f32> = (0..37).map(|i| if i == 5 { f32::NEG_INFINITY } else { i as f32 }).collect();
        let scores = scores();
        let masking = Masking {
            softcap: Some(3.0),
            bias: Some(Dense { data: Elements::F32(&bias), strides: [0, 0, 0, 1], keys: 37 }),
            band: Band { upper: 30, ..Band::FULL },
            fill: Fill::Assign(100.0),
            ..Masking::NONE
        };
        for (index, &got) in run(masking).iter().enumerate() {
            let (i, j) = (index / 37 % 5, index % 37);
            let capped = 3.0 * (f64::from(scores[index]) / 3.0).tanh() + f64::from(bias[j]);
            let want = if j > i + 30 { 100.0 } else { capped };
            assert!(f64::from(got) == want || (f64::from(got) - want).abs() < 5e-6, "{index}: {got}, not {want}");
        }
    }

    #[test]
    fn half_precision_and_nan() {
        let scores = [1.0f32, f32::NAN, f32::NAN, 2.0].map(f16::from_f32);
        let bias = [0.5, f32::NEG_INFINITY, 0.0, f32::NAN].map(f16::from_f32);
        let mut out = [f16::ZERO; 4];
        let bias = Dense { data: Elements::F16(&bias), strides: [0, 0, 0, 1], keys: 4 };
        let masking = Masking { bias: Some(bias), ..Masking::NONE };
        let args = MaskScoresArgs { scores: Elements::F16(&scores), sizes: [1, 1, 1, 4], masking };
        mask_scores(&args, ElementsMut::F16(&mut out));
        assert_eq!(out[..2], [f16::from_f32(1.5), f16::NEG_INFINITY]);
        assert!(out[2].is_nan() && out[3].is_nan());
    }

    #[test]
    fn empty() {
        let args = MaskScoresArgs { scores: Elements::F32(&[]), sizes: [1, 2, 0, 4], masking: Masking::NONE };
        mask_scores(&args, ElementsMut::F32(&mut []));
    }
}
