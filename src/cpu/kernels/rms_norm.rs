//! Root mean square normalisation of rows.

use rayon::prelude::*;

use super::args::{Elements, ElementsMut};
use super::scratch::{Arena, with_scratch};

/// Fewest elements worth a task of their own.
const MIN_ELEMENTS: usize = 1 << 13;

/// `x / √(mean(x²) + epsilon) × weight`.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// One for each element of a row.
    pub weight: Option<Elements<'a>>,
    /// Keeps a row of zeros finite.
    pub epsilon: f32,
}

impl Norm<'_> {
    /// Normalises a row.
    pub fn apply(&self, row: &mut [f32]) {
        const LANES: usize = 16;
        let (chunks, rest) = row.as_chunks::<LANES>();
        let mut squares = [0.0_f32; LANES];
        for chunk in chunks {
            squares.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += x * x);
        }
        let squares = squares.iter().sum::<f32>() + rest.iter().map(|x| x * x).sum::<f32>();
        let factor = 1.0 / (squares / row.len() as f32 + self.epsilon).sqrt();
        row.iter_mut().for_each(|x| *x *= factor);
        if let Some(weight) = self.weight {
            row.iter_mut().enumerate().for_each(|(d, x)| *x *= weight.get(d));
        }
    }
}

/// Normalises rows of `length` elements; `x` and `y` are equally long.
pub fn rms_norm(x: Elements, length: usize, norm: Norm, y: ElementsMut) {
    each_row(length, y, |row, out| {
        x.read(row * length, out);
        norm.apply(out);
    });
}

/// Computes rows of `length` elements in f32 and stores them: `body` is given a row's number and its elements to write.
pub(super) fn each_row(length: usize, y: ElementsMut, body: impl Fn(usize, &mut [f32]) + Sync) {
    if y.len() == 0 {
        return;
    }
    let least = MIN_ELEMENTS.div_ceil(length);
    let converted = |row: usize, mut out: ElementsMut| {
        with_scratch(|lines| {
            let values: &mut [f32] = Arena::new(lines, 4 * length, 1).take(length);
            body(row, values);
            out.write(0, values);
        });
    };
    match y {
        ElementsMut::F32(y) => {
            let rows = y.par_chunks_exact_mut(length).with_min_len(least).enumerate();
            rows.for_each(|(row, out)| body(row, out));
        }
        ElementsMut::F16(y) => {
            let rows = y.par_chunks_exact_mut(length).with_min_len(least).enumerate();
            rows.for_each(|(row, out)| converted(row, ElementsMut::F16(out)));
        }
        ElementsMut::BF16(y) => {
            let rows = y.par_chunks_exact_mut(length).with_min_len(least).enumerate();
            rows.for_each(|(row, out)| converted(row, ElementsMut::BF16(out)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        // Mean of squares: 25 / 2.
        let mut row = [3.0, 4.0];
        Norm { weight: Some(Elements::F32(&[1.0, 2.0])), epsilon: 0.0 }.apply(&mut row);
        let root = 12.5_f32.sqrt();
        assert!((row[0] - 3.0 / root).abs() < 1e-6 && (row[1] - 8.0 / root).abs() < 1e-6);
        let mut zeros = [0.0; 33];
        Norm { weight: None, epsilon: 1e-6 }.apply(&mut zeros);
        assert_eq!(zeros, [0.0; 33]);
    }
}
