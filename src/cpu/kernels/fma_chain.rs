//! Multiply-adds in chains: as many as the host's cores can do.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::args::{Elements, ElementsMut};

/// Vectors whose chains go on at once: two units with a latency of four or five steps each, and two registers of sixteen left
/// for factor and addend.
const CHAINS: usize = 12;

/// Elements of one task: whole blocks of chains, whatever the width of a vector up to 16.
const CHUNK: usize = 10 * 16 * CHAINS;

/// Each element after so many times `x = x · factor + addend`.
#[derive(Debug, Clone, Copy)]
pub struct Chain {
    /// How many times.
    pub steps: u32,
    /// Multiplies.
    pub factor: f32,
    /// Is added.
    pub addend: f32,
}

/// Computes every element's chain, in f32 whatever the storage.
///
/// # Panics
///
/// When the lengths differ.
pub fn fma_chain(x: Elements<'_>, chain: Chain, y: ElementsMut<'_>) {
    assert_eq!(x.len(), y.len(), "one result for each element");
    let arch = Arch::new();
    match y {
        ElementsMut::F32(y) => y.par_chunks_mut(CHUNK).enumerate().for_each(|(at, y)| {
            x.read(at * CHUNK, y);
            arch.dispatch(Run { chain, y });
        }),
        ElementsMut::F16(y) => y.par_chunks_mut(CHUNK).enumerate().for_each(|(at, y)| {
            converted(&x, at, chain, ElementsMut::F16(y));
        }),
        ElementsMut::BF16(y) => y.par_chunks_mut(CHUNK).enumerate().for_each(|(at, y)| {
            converted(&x, at, chain, ElementsMut::BF16(y));
        }),
    }
}

fn converted(x: &Elements<'_>, at: usize, chain: Chain, mut y: ElementsMut<'_>) {
    let mut wide = [0.0; CHUNK];
    let wide = &mut wide[..y.len()];
    x.read(at * CHUNK, wide);
    Arch::new().dispatch(Run { chain, y: &mut *wide });
    y.write(0, wide);
}

struct Run<'a> {
    chain: Chain,
    y: &'a mut [f32],
}

impl WithSimd for Run<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Chain { steps, factor, addend } = self.chain;
        let (factors, addends) = (simd.splat_f32s(factor), simd.splat_f32s(addend));
        let (vectors, rest) = S::as_mut_simd_f32s(self.y);
        let mut blocks = vectors.chunks_exact_mut(CHAINS);
        for block in &mut blocks {
            let block: &mut [S::f32s; CHAINS] = block.try_into().expect("chunks are exact");
            let mut chains = *block;
            for _ in 0..steps {
                for x in &mut chains {
                    *x = simd.mul_add_e_f32s(*x, factors, addends);
                }
            }
            *block = chains;
        }
        for x in blocks.into_remainder() {
            (0..steps).for_each(|_| *x = simd.mul_add_e_f32s(*x, factors, addends));
        }
        for x in rest {
            (0..steps).for_each(|_| *x = *x * factor + addend);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_goes_through_every_step() {
        // Exact: multiples of 1/4 below 2^20.
        for count in [0, 1, 5, 16 * CHAINS + 17, 2 * CHUNK + 3] {
            let x: Vec<f32> = (0..count).map(|at| at as f32).collect();
            let mut y = vec![f32::NAN; count];
            fma_chain(Elements::F32(&x), Chain { steps: 9, factor: 1.0, addend: 0.25 }, ElementsMut::F32(&mut y));
            assert!(x.iter().zip(&y).all(|(&x, &y)| y == x + 2.25), "{count}");
        }
    }
}
