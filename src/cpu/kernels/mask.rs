//! Masks and bias: what attention applies to a block of scores, and a kernel for scores that are stored.

use super::args::{Elements, ElementsMut, Masking};
use super::scratch::{Arena, with_scratch};
use crate::mask::{Band, Fill};
use pulp::Simd;
use rayon::prelude::*;

/// Stored scores to be masked.
#[derive(Debug, Clone, Copy)]
pub struct MaskScoresArgs<'a> {
    /// `[batch, heads, seq_q, seq_kv]`, contiguous.
    pub scores: Elements<'a>,
    /// Batch, heads, queries and keys.
    pub sizes: [usize; 4],
    /// Masks and bias.
    pub masking: Masking<'a>,
}

/// Adds the bias, then gives every score that causality or the boolean mask hides its fill: negative infinity under
/// [`Fill::Exclude`]. A bias of negative infinity excludes whatever the score is, NaN included.
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
    }
}

/// Fewest scores worth a task of their own.
const MIN_SCORES: usize = 1 << 14;

fn mask_row(args: &MaskScoresArgs, row: usize, out: &mut ElementsMut) {
    let [_, heads, seq_q, seq_kv] = args.sizes;
    let (position, query) = ([row / seq_q / heads, row / seq_q % heads, row % seq_q], row % seq_q);
    let fill = fill_value(args.masking.fill);
    with_scratch(|lines| {
        let mut arena = Arena::new(lines, 8 * seq_kv, 2);
        let scores: &mut [f32] = arena.take(seq_kv);
        args.scores.read(row * seq_kv, scores);
        if is_dense(&args.masking) {
            let bias: &mut [f32] = arena.take(seq_kv);
            read_row(&args.masking, position, 0, bias);
            for (score, &bias) in scores.iter_mut().zip(bias.iter()) {
                let sum = if bias == f32::NEG_INFINITY { bias } else { *score + bias };
                *score = if bias.to_bits() == MASKED.to_bits() { fill } else { sum };
            }
        }
        scores[causal_end(&args.masking, query, seq_kv)..].fill(fill);
        out.write(0, scores);
    });
}

/// Keys from this one on are hidden from `query` by the band.
#[inline(always)]
pub(super) fn causal_end(masking: &Masking, query: usize, seq_kv: usize) -> usize {
    masking.band.keys(query, seq_kv).end
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

/// Whether there is a mask, bias or left edge of a window that has to be applied per score.
pub(super) fn is_dense(masking: &Masking) -> bool {
    masking.bool_mask.is_some() || masking.bias.is_some() || masking.band.lower > Band::FULL.lower
}

/// Bias, or [`MASKED`], of one row, given as batch, head and query, for the keys from `first_key` on.
#[inline(always)]
pub(super) fn read_row(masking: &Masking, [batch, head, query]: [usize; 3], first_key: usize, out: &mut [f32]) {
    let offset =
        |strides: [usize; 4]| batch * strides[0] + head * strides[1] + query * strides[2] + first_key * strides[3];
    match masking.bias {
        None => out.fill(0.0),
        Some((data, strides)) => read_bias(data, offset(strides), strides[3], out),
    }
    if let Some((data, strides)) = masking.bool_mask {
        let data = &data[offset(strides)..];
        match strides[3] {
            1 => {
                for (x, &keep) in out.iter_mut().zip(data) {
                    *x = if keep != 0 { *x } else { MASKED };
                }
            }
            stride => {
                for (key, x) in out.iter_mut().enumerate() {
                    *x = if data[key * stride] != 0 { *x } else { MASKED };
                }
            }
        }
    }
    let hidden = query as i64 + masking.band.lower - first_key as i64;
    let hidden = usize::try_from(hidden).unwrap_or(0).min(out.len());
    out[..hidden].fill(MASKED);
}

#[inline(always)]
fn read_bias(data: Elements, offset: usize, stride: usize, out: &mut [f32]) {
    match stride {
        1 => data.read(offset, out),
        stride => {
            for (key, x) in out.iter_mut().enumerate() {
                *x = data.get(offset + key * stride);
            }
        }
    }
    for x in out {
        *x = if x.is_nan() { f32::NAN } else { *x };
    }
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
            bool_mask: Some((&keep, [37, 0, 0, 1])),
            bias: Some((Elements::F32(&bias), [0, 5, 1, 0])),
            fill: Fill::Assign(9.0),
            ..Masking::NONE
        };
        expect(masking, |[b, h, i, j], s| if keep[b * 37 + j] == 0 { 9.0 } else { s + bias[h * 5 + i] });
    }

    #[test]
    fn half_precision_and_nan() {
        let scores = [1.0f32, f32::NAN, f32::NAN, 2.0].map(f16::from_f32);
        let bias = [0.5, f32::NEG_INFINITY, 0.0, f32::NAN].map(f16::from_f32);
        let mut out = [f16::ZERO; 4];
        let masking = Masking { bias: Some((Elements::F16(&bias), [0, 0, 0, 1])), ..Masking::NONE };
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
