//! Softmax along the last axis.
//!
//! Three passes over a row (maximum, exponentials and their sum, division), each vectorised; a row is read again while
//! it is in cache. Rows go to tasks whole, unless there are fewer rows than threads and they are long.

use super::args::{Elements, ElementsMut};
use super::exp::exp;
use super::mask::{MIN_SCORES, MaskScoresArgs, mask_row};
use super::scratch::{Arena, with_scratch};
use super::sequence::with_sequences;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Fewest elements worth a task of their own.
const MIN_ELEMENTS: usize = 1 << 13;

/// Elements of a piece of a long row.
const PIECE: usize = 1 << 15;

/// A softmax along rows.
#[derive(Debug, Clone, Copy)]
pub struct SoftmaxArgs<'a> {
    /// Rows, one after another.
    pub input: Elements<'a>,
    /// Elements of a row.
    pub row_length: usize,
    /// Multiplies every element first.
    pub scale: f32,
    /// Of the rows of attention scores.
    pub sinks: Option<RowSinks<'a>>,
}

/// For each row a score that takes part in its softmax, unscaled, and has no weight in the output; negative infinity
/// for none.
#[derive(Debug, Clone, Copy)]
pub struct RowSinks<'a> {
    /// One for each head.
    pub data: &'a [f32],
    /// Rows of one head; after the last head comes the first of the next batch element.
    pub rows: usize,
}

impl RowSinks<'_> {
    /// That of one row.
    pub(super) fn of(&self, row: usize) -> f32 {
        self.data[row / self.rows % self.data.len()]
    }
}

/// Computes `softmax(input × scale)` along rows; the input and `out` are equally long.
///
/// An element of negative infinity gives zero, and a row of nothing else gives zeros. NaN makes its row NaN. Whether a
/// row exists is not known here: one that does not is like one that sees nothing.
///
/// # Panics
///
/// When the input and `out` differ in length.
pub fn softmax(args: &SoftmaxArgs, out: ElementsMut) {
    let SoftmaxArgs { input, row_length, scale, sinks } = *args;
    assert_eq!(input.len(), out.len(), "softmax: input and output differ in length");
    if input.is_empty() || row_length == 0 {
        return;
    }
    let rows = input.len() / row_length;
    let rule = |row: usize| RowRule { scale, sink: sinks.map_or(f32::NEG_INFINITY, |sinks| sinks.of(row)) };
    let min_rows = MIN_ELEMENTS.div_ceil(row_length);
    match (input, out) {
        (Elements::F32(input), ElementsMut::F32(out))
            if row_length >= 2 * PIECE && rows < rayon::current_num_threads() =>
        {
            for (index, out) in out.chunks_exact_mut(row_length).enumerate() {
                long_row(&input[index * row_length..][..row_length], rule(index), out);
            }
        }
        (Elements::F32(input), ElementsMut::F32(out)) => {
            let pairs = input.par_chunks_exact(row_length).zip(out.par_chunks_exact_mut(row_length)).enumerate();
            pairs.with_min_len(min_rows).for_each(|(index, (input, out))| row(input, rule(index), out));
        }
        (input, ElementsMut::F32(out)) => {
            let rows = out.par_chunks_exact_mut(row_length).enumerate().with_min_len(min_rows);
            rows.for_each(|(index, out)| converted_row(input, index, rule(index), ElementsMut::F32(out)));
        }
        (input, ElementsMut::F16(out)) => {
            let rows = out.par_chunks_exact_mut(row_length).enumerate().with_min_len(min_rows);
            rows.for_each(|(index, out)| converted_row(input, index, rule(index), ElementsMut::F16(out)));
        }
        (input, ElementsMut::BF16(out)) => {
            let rows = out.par_chunks_exact_mut(row_length).enumerate().with_min_len(min_rows);
            rows.for_each(|(index, out)| converted_row(input, index, rule(index), ElementsMut::BF16(out)));
        }
    }
}

/// Computes what [`softmax`] makes of [`mask_scores`](super::mask::mask_scores), row by row.
pub fn masked_softmax(args: &MaskScoresArgs, sinks: Option<RowSinks>, out: ElementsMut) {
    let [batch, _, seq_q, seq_kv] = args.sizes;
    if args.sizes.contains(&0) {
        return;
    }
    let min_rows = MIN_SCORES.div_ceil(seq_kv);
    with_sequences(&args.masking, batch, [seq_q, seq_kv], |sequences| {
        let of_row = |index: usize, mut out: ElementsMut| {
            with_scratch(|lines| {
                let mut arena = Arena::new(lines, 8 * seq_kv, 2);
                let (scores, weights): (&mut [f32], &mut [f32]) = (arena.take(seq_kv), arena.take(seq_kv));
                mask_row(args, sequences, index, &mut ElementsMut::F32(&mut *scores));
                let sink = sinks.map_or(f32::NEG_INFINITY, |sinks| sinks.of(index));
                row(scores, RowRule { scale: 1.0, sink }, weights);
                out.write(0, weights);
            });
        };
        match out {
            ElementsMut::F32(out) => {
                let rows = out.par_chunks_exact_mut(seq_kv).enumerate().with_min_len(min_rows);
                rows.for_each(|(index, out)| of_row(index, ElementsMut::F32(out)));
            }
            ElementsMut::F16(out) => {
                let rows = out.par_chunks_exact_mut(seq_kv).enumerate().with_min_len(min_rows);
                rows.for_each(|(index, out)| of_row(index, ElementsMut::F16(out)));
            }
            ElementsMut::BF16(out) => {
                let rows = out.par_chunks_exact_mut(seq_kv).enumerate().with_min_len(min_rows);
                rows.for_each(|(index, out)| of_row(index, ElementsMut::BF16(out)));
            }
        }
    });
}

/// What is done to the elements of one row, and what comes to their sum.
#[derive(Clone, Copy)]
struct RowRule {
    scale: f32,
    sink: f32,
}

/// A row whose input or output is not stored in single precision.
fn converted_row(input: Elements, index: usize, rule: RowRule, mut out: ElementsMut) {
    with_scratch(|lines| {
        let length = out.len();
        let mut arena = Arena::new(lines, 8 * length, 2);
        let (from, to): (&mut [f32], &mut [f32]) = (arena.take(length), arena.take(length));
        input.read(index * length, from);
        row(from, rule, to);
        out.write(0, to);
    });
}

fn row(input: &[f32], RowRule { scale, sink }: RowRule, out: &mut [f32]) {
    let arch = Arch::new();
    let base = finite_base(arch.dispatch(Max { input, scale }).max(sink));
    let sum = arch.dispatch(Exponentials { input, scale, base, out: &mut *out });
    divide(out, sum + (sink - base).exp());
}

/// A row whose pieces are tasks.
fn long_row(input: &[f32], RowRule { scale, sink }: RowRule, out: &mut [f32]) {
    let arch = Arch::new();
    let maxima = input.par_chunks(PIECE).map(|input| arch.dispatch(Max { input, scale }));
    let base = finite_base(maxima.reduce(|| sink, f32::max));
    let pieces = input.par_chunks(PIECE).zip(out.par_chunks_mut(PIECE));
    let sum: f32 = pieces.map(|(input, out)| arch.dispatch(Exponentials { input, scale, base, out })).sum();
    let sum = sum + (sink - base).exp();
    out.par_chunks_mut(PIECE).for_each(|out| divide(out, sum));
}

/// The maximum, or zero for a row of negative infinities, whose weights must not be NaN.
pub(super) fn finite_base(max: f32) -> f32 {
    if max == f32::NEG_INFINITY { 0.0 } else { max }
}

fn divide(out: &mut [f32], sum: f32) {
    let inverse = if sum == 0.0 { 0.0 } else { 1.0 / sum };
    for x in out {
        *x *= inverse;
    }
}

/// `x × scale`, except that negative infinity stays what it is under any scale.
#[inline(always)]
fn scaled<S: Simd>(simd: S, x: S::f32s, scale: S::f32s) -> S::f32s {
    let lowest = simd.splat_f32s(f32::NEG_INFINITY);
    simd.select_f32s(simd.equal_f32s(x, lowest), lowest, simd.mul_f32s(x, scale))
}

/// The vector that holds `tail` and then negative infinities.
#[inline(always)]
fn padded<S: Simd>(simd: S, tail: &[f32]) -> S::f32s {
    let mut vector = simd.splat_f32s(f32::NEG_INFINITY);
    bytemuck::cast_slice_mut(std::slice::from_mut(&mut vector))[..tail.len()].copy_from_slice(tail);
    vector
}

/// The largest scaled element. NaN may be passed over: it comes back through the exponentials.
pub(super) struct Max<'a> {
    pub input: &'a [f32],
    pub scale: f32,
}

impl WithSimd for Max<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let (body, tail) = S::as_simd_f32s(self.input);
        let scale = simd.splat_f32s(self.scale);
        let (quads, rest) = body.as_chunks::<4>();
        let mut max = [scaled(simd, padded(simd, tail), scale); 4];
        for quad in quads {
            for lane in 0..4 {
                max[lane] = simd.max_f32s(scaled(simd, quad[lane], scale), max[lane]);
            }
        }
        for &x in rest {
            max[0] = simd.max_f32s(scaled(simd, x, scale), max[0]);
        }
        let [a, b, c, d] = max;
        simd.reduce_max_f32s(simd.max_f32s(simd.max_f32s(a, b), simd.max_f32s(c, d)))
    }
}

/// Stores `exp(input × scale - base)` and returns the sum.
pub(super) struct Exponentials<'a> {
    pub input: &'a [f32],
    pub scale: f32,
    pub base: f32,
    pub out: &'a mut [f32],
}

impl WithSimd for Exponentials<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let (body, tail) = S::as_simd_f32s(self.input);
        let (out_body, out_tail) = S::as_mut_simd_f32s(self.out);
        let (scale, base) = (simd.splat_f32s(self.scale), simd.splat_f32s(self.base));
        let (quads, rest) = body.as_chunks::<4>();
        let (out_quads, out_rest) = out_body.as_chunks_mut::<4>();
        // Four sums are faster than one, and lose less to rounding in a long row.
        let mut sum = [simd.splat_f32s(0.0); 4];
        for (quad, out) in quads.iter().zip(out_quads) {
            for lane in 0..4 {
                let x = simd.sub_f32s(scaled(simd, quad[lane], scale), base);
                out[lane] = exp(simd, x);
                sum[lane] = simd.add_f32s(sum[lane], out[lane]);
            }
        }
        for (&x, out) in rest.iter().zip(out_rest) {
            *out = exp(simd, simd.sub_f32s(scaled(simd, x, scale), base));
            sum[0] = simd.add_f32s(sum[0], *out);
        }
        let last = exp(simd, simd.sub_f32s(scaled(simd, padded(simd, tail), scale), base));
        out_tail.copy_from_slice(&bytemuck::cast_slice(std::slice::from_ref(&last))[..tail.len()]);
        let [a, b, c, d] = sum;
        let total = simd.add_f32s(simd.add_f32s(a, b), simd.add_f32s(c, d));
        simd.reduce_sum_f32s(simd.add_f32s(total, last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    fn input(length: usize, magnitude: f32) -> Vec<f32> {
        (0..length).map(|i| ((i * 7919 % 1009) as f32 / 504.5 - 1.0) * magnitude).collect()
    }

    fn plain(input: Elements, row_length: usize, scale: f32) -> SoftmaxArgs {
        SoftmaxArgs { input, row_length, scale, sinks: None }
    }

    fn check(input: &[f32], row_length: usize, scale: f32, got: &[f32], tolerance: f64) {
        for (input, got) in input.chunks(row_length).zip(got.chunks(row_length)) {
            let scores: Vec<f64> = input.iter().map(|&x| f64::from(x * scale)).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            for (s, &got) in scores.iter().zip(got) {
                let want = (s - max).exp() / sum;
                let error = (f64::from(got) - want).abs();
                assert!(error <= tolerance * want + tolerance * 1e-3 / sum, "{got} is not {want}");
            }
        }
    }

    #[test]
    fn lengths_and_magnitudes() {
        for row_length in [1, 2, 7, 15, 16, 17, 33, 64, 65, 129, 1000, 70_001, 150_000] {
            for magnitude in [0.0, 1.0, 30.0, 1e4] {
                let rows = if row_length > 1000 { 1 } else { 5 };
                let input = input(rows * row_length, magnitude);
                let mut out = vec![f32::NAN; input.len()];
                softmax(&plain(Elements::F32(&input), row_length, 0.5), ElementsMut::F32(&mut out));
                // exp within 1e-6 at these arguments, and the sum of the row in f32.
                check(&input, row_length, 0.5, &out, 5e-6);
            }
        }
    }

    #[test]
    fn half_precision() {
        let input: Vec<f16> = input(3 * 77, 4.0).into_iter().map(f16::from_f32).collect();
        let exact: Vec<f32> = input.iter().map(|x| x.to_f32()).collect();
        let mut half = vec![f16::NAN; input.len()];
        softmax(&plain(Elements::F16(&input), 77, 1.0), ElementsMut::F16(&mut half));
        let half: Vec<f32> = half.iter().map(|x| x.to_f32()).collect();
        // Half a unit in the last place of f16; the smallest weights are subnormal there.
        check(&exact, 77, 1.0, &half, 2e-3);
        let mut single = vec![f32::NAN; input.len()];
        softmax(&plain(Elements::F16(&input), 77, 1.0), ElementsMut::F32(&mut single));
        check(&exact, 77, 1.0, &single, 1e-6);
    }

    #[test]
    fn negative_infinity_and_nan() {
        for length in [3, 40, 100_000] {
            for scale in [1.0, 0.0, -2.0] {
                let mut row = vec![f32::NEG_INFINITY; length];
                let mut out = vec![f32::NAN; length];
                softmax(&plain(Elements::F32(&row), length, scale), ElementsMut::F32(&mut out));
                assert!(out.iter().all(|&x| x == 0.0));
                row[length - 1] = 3.0;
                softmax(&plain(Elements::F32(&row), length, scale), ElementsMut::F32(&mut out));
                assert_eq!((out[0], out[length - 1]), (0.0, 1.0));
                row[1] = f32::NAN;
                softmax(&plain(Elements::F32(&row), length, scale), ElementsMut::F32(&mut out));
                assert!(out.iter().all(|x| x.is_nan()));
            }
        }
    }

    #[test]
    fn empty() {
        softmax(&plain(Elements::F32(&[]), 0, 1.0), ElementsMut::F32(&mut []));
        softmax(&plain(Elements::F32(&[]), 5, 1.0), ElementsMut::F32(&mut []));
    }

    #[test]
    fn sinks_count_and_weigh_nothing() {
        let data = [0.5, f32::NEG_INFINITY, 40.0];
        for length in [1, 50, 70_001] {
            // Two batch elements of three heads of two rows.
            let rows = if length > 1000 { 1 } else { 12 };
            let mut input = input(rows * length, 3.0);
            input[..length.min(20)].fill(f32::NEG_INFINITY);
            let mut out = vec![f32::NAN; input.len()];
            let sinks = Some(RowSinks { data: &data, rows: 2 });
            softmax(&SoftmaxArgs { sinks, ..plain(Elements::F32(&input), length, 2.0) }, ElementsMut::F32(&mut out));
            for (index, (input, out)) in input.chunks(length).zip(out.chunks(length)).enumerate() {
                let sink = f64::from(data[index / 2 % 3]);
                let weights: Vec<f64> = input.iter().map(|&x| f64::from(2.0 * x).exp()).collect();
                let sum = weights.iter().sum::<f64>() + sink.exp();
                for (weight, &got) in weights.iter().zip(out) {
                    assert!((f64::from(got) - weight / sum).abs() <= 1e-6, "{got} is not {}", weight / sum);
                }
            }
        }
    }
}
