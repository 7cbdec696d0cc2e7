//! A product's sizes as kernels see them.

use super::{BATCH_AXES, Epilogue, MatMulParams};
use crate::cpu::kernels::matmul as kernel;
use crate::op::index;

/// Sizes of one product and where each product of the batch starts.
pub(super) struct Problem {
    /// Rows of one product as the kernels see it: the batch's too, when all products share one right factor.
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// Shape of the output's batch axes, as declared.
    pub batch: Vec<usize>,
    /// Size, stride in a and stride in b of each batch axis that is left after folding, outermost first.
    pub axes: Vec<[usize; 3]>,
}

impl Problem {
    pub fn batch_count(&self) -> usize {
        self.axes.iter().map(|[size, ..]| size).product()
    }

    /// A right factor that all products share makes the batch more rows of one product.
    pub fn fold_rows(&mut self) {
        if self.axes.iter().all(|[_, _, b_stride]| *b_stride == 0) && self.contiguous_a() {
            self.m *= self.batch_count();
            self.axes.clear();
        }
    }

    /// Where each product of the batch starts, in elements.
    pub fn batches(&self) -> Vec<kernel::BatchOffsets> {
        (0..self.batch_count())
            .map(|product| {
                let (mut a, mut b, mut rest) = (0, 0, product);
                for [size, a_stride, b_stride] in self.axes.iter().rev() {
                    a += rest % size * a_stride;
                    b += rest % size * b_stride;
                    rest /= size;
                }
                kernel::BatchOffsets { a, b }
            })
            .collect()
    }

    fn contiguous_a(&self) -> bool {
        let mut expected = self.m * self.k;
        self.axes.iter().rev().all(|[size, a_stride, _]| {
            let contiguous = *a_stride == expected;
            expected *= size;
            contiguous
        })
    }

    pub fn params(&self, alpha: f32) -> MatMulParams {
        let mut axes = [[1, 0, 0]; BATCH_AXES];
        axes[BATCH_AXES - self.axes.len()..].copy_from_slice(&self.axes);
        let [outer, middle, inner] = axes.map(|axis| axis.map(index));
        MatMulParams {
            m: index(self.m),
            n: index(self.n),
            k: index(self.k),
            batch_count: index(self.batch_count()),
            batch_middle: middle[0],
            batch_inner: inner[0],
            a_outer: outer[1],
            a_middle: middle[1],
            a_inner: inner[1],
            b_outer: outer[2],
            b_middle: middle[2],
            b_inner: inner[2],
            alpha,
            epilogue: [[0; 4]; Epilogue::MOST],
        }
    }
}
