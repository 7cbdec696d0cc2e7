//! Layer normalisation: rows with mean zero and variance one, scaled and shifted.

use super::args::{Elements, ElementsMut};
use super::scratch::{Arena, with_scratch};
use rayon::prelude::*;

/// Fewest elements worth a task of their own.
const MIN_ELEMENTS: usize = 1 << 13;

/// Partial sums of a row: enough to fill vectors, and fewer roundings in each.
const LANES: usize = 16;

/// What is normalised.
#[derive(Debug, Clone, Copy)]
pub struct LayerNormArgs<'a> {
    /// Rows, one after another.
    pub x: Elements<'a>,
    /// Elements of a row.
    pub length: usize,
    /// Multiplies; repeats along all of `x`.
    pub scale: Elements<'a>,
    /// Is added after that; repeats alike.
    pub bias: Option<Elements<'a>>,
    /// Is added to the variance.
    pub epsilon: f32,
}

/// Normalises into `y`, laid out as `x`. Mean and inverse deviation of each row go to `statistics`.
pub fn layer_norm(args: &LayerNormArgs, y: ElementsMut, statistics: &mut [[f32; 2]]) {
    if args.x.is_empty() {
        return;
    }
    let least = MIN_ELEMENTS.div_ceil(args.length);
    match y {
        ElementsMut::F32(y) => {
            let rows = y.par_chunks_exact_mut(args.length).zip(statistics).enumerate().with_min_len(least);
            rows.for_each(|(index, (y, of_row))| *of_row = row(args, index, ElementsMut::F32(y)));
        }
        ElementsMut::F16(y) => {
            let rows = y.par_chunks_exact_mut(args.length).zip(statistics).enumerate().with_min_len(least);
            rows.for_each(|(index, (y, of_row))| *of_row = row(args, index, ElementsMut::F16(y)));
        }
        ElementsMut::BF16(y) => {
            let rows = y.par_chunks_exact_mut(args.length).zip(statistics).enumerate().with_min_len(least);
            rows.for_each(|(index, (y, of_row))| *of_row = row(args, index, ElementsMut::BF16(y)));
        }
    }
}

fn row(args: &LayerNormArgs, index: usize, mut y: ElementsMut) -> [f32; 2] {
    let (length, start) = (args.length, index * args.length);
    with_scratch(|lines| {
        let mut arena = Arena::new(lines, 8 * length, 2);
        let (x, factor): (&mut [f32], &mut [f32]) = (arena.take(length), arena.take(length));
        args.x.read(start, x);
        let rough = sum(x, |x| x) / length as f32;
        x.iter_mut().for_each(|x| *x -= rough);
        // What the mean lost to rounding; it matters where a row's elements are close to each other.
        let lost = sum(x, |x| x) / length as f32;
        x.iter_mut().for_each(|x| *x -= lost);
        let inverse = 1.0 / (sum(x, |x| x * x) / length as f32 + args.epsilon).sqrt();
        repeat(&args.scale, start, factor);
        x.iter_mut().zip(&*factor).for_each(|(x, scale)| *x = *x * inverse * scale);
        if let Some(bias) = &args.bias {
            repeat(bias, start, factor);
            x.iter_mut().zip(&*factor).for_each(|(x, bias)| *x += bias);
        }
        y.write(0, x);
        [rough + lost, inverse]
    })
}

fn sum(values: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, &x)| *lane += term(x));
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, &x)| *lane += term(x));
    lanes.iter().sum()
}

/// Elements from `start` on of a tensor that repeats.
fn repeat(elements: &Elements, start: usize, out: &mut [f32]) {
    let period = elements.len();
    let mut done = 0;
    while done < out.len() {
        let from = (start + done) % period;
        let count = (period - from).min(out.len() - done);
        elements.read(from, &mut out[done..done + count]);
        done += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_mean_does_not_cancel() {
        let x: Vec<f32> = (0..1000).map(|i| 4096.0 + (i % 2) as f32).collect();
        let mut y = vec![f32::NAN; 1000];
        let args = LayerNormArgs {
            x: Elements::F32(&x),
            length: 1000,
            scale: Elements::F32(&[1.0]),
            bias: None,
            epsilon: 0.0,
        };
        let mut statistics = [[f32::NAN; 2]];
        layer_norm(&args, ElementsMut::F32(&mut y), &mut statistics);
        assert_eq!(statistics, [[4096.5, 2.0]]);
        assert!(y.chunks(2).all(|pair| pair == [-1.0, 1.0]));
    }

    #[test]
    fn factors_repeat_within_and_across_rows() {
        let x = [-1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0];
        let run = |scale: &[f32], bias: &[f32]| {
            let mut y = [f32::NAN; 8];
            let args = LayerNormArgs {
                x: Elements::F32(&x),
                length: 4,
                scale: Elements::F32(scale),
                bias: Some(Elements::F32(bias)),
                epsilon: 0.0,
            };
            layer_norm(&args, ElementsMut::F32(&mut y), &mut [[f32::NAN; 2]; 2]);
            y
        };
        let long = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        assert_eq!(run(&[1.0, 2.0], &[0.0]), [-1.0, 2.0, -1.0, 2.0, -1.0, 2.0, -1.0, 2.0]);
        assert_eq!(run(&long, &[0.0, 1.0, 0.0, 1.0]), [-1.0, 3.0, -3.0, 5.0, -5.0, 7.0, -7.0, 9.0]);
    }
}
