//! Batched matrix products, `C = f(alpha · A·B + bias)`.
//!
//! Blocked products go to the `gemm` crate. Products of few rows are bound by reading B, which `gemm` packs first,
//! and so reaches a seventh to a half of the speed of memory; `few_rows` reads B once, in place.
//! Half precision is converted before and after.

mod few_rows;

#[cfg(test)]
mod tests;

use super::args::{Elements, ElementsMut};
use super::elementwise::{Step, in_place};
use few_rows::FewRows;
use rayon::prelude::*;
use smallvec::SmallVec;

/// How the right factor is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RightLayout {
    /// `[k, n]`.
    RowMajor,
    /// `[n, k]`.
    Transposed,
}

/// What a zero in the left factor does to a NaN or infinity in the right one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Zeros {
    /// As in IEEE arithmetic: their product is NaN.
    #[default]
    Multiply,
    /// Their product is zero: a masked key's weight takes nothing from its value.
    Annihilate,
}

/// Where the factors and the product of one batch start, in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchOffsets {
    /// In A; equal offsets broadcast.
    pub a: usize,
    /// In B; equal offsets broadcast.
    pub b: usize,
    /// In C; the products do not overlap.
    pub c: usize,
}

/// A batched product of contiguous matrices.
#[derive(Debug, Clone, Copy)]
pub struct MatmulArgs<'a> {
    /// Rows of A and C.
    pub m: usize,
    /// Columns of C.
    pub n: usize,
    /// Columns of A, rows of B.
    pub k: usize,
    /// Multiplies every product.
    pub alpha: f32,
    /// Left factors, `[m, k]` each.
    pub a: Elements<'a>,
    /// Right factors.
    pub b: Elements<'a>,
    /// How each of the right factors is stored.
    pub layout: RightLayout,
    /// `[n]`, added to every row of every product.
    pub bias: Option<Elements<'a>>,
    /// One entry per product.
    pub batches: &'a [BatchOffsets],
    /// What masked weights do.
    pub zeros: Zeros,
    /// What becomes of each element, the product being input 0 and the residual input 1.
    pub steps: &'a [Step],
    /// As long as `out`.
    pub residual: Option<Elements<'a>>,
}

/// Products of at most this many rows read B in place.
const fn few_rows(layout: RightLayout) -> usize {
    match layout {
        RightLayout::RowMajor => 8,
        RightLayout::Transposed => 32,
    }
}

/// Below this many multiplications a product is not worth two threads.
const MIN_PARALLEL: usize = 1 << 18;

/// Computes every product of `args` into `out`, `[m, n]` at each `c` offset.
///
/// # Panics
///
/// When an offset reaches outside its slice, or products overlap.
pub fn matmul(args: &MatmulArgs, out: ElementsMut) {
    if args.m * args.n * args.batches.len() == 0 {
        return;
    }
    let (a, b) = (Single::of(args.a).scaled(args.alpha), Single::of(args.b));
    let bias = args.bias.map(Single::of);
    let args = &merge(args);
    let size = args.m * args.n;
    let product = Product { args, a: a.get(), b: b.get(), bias: bias.as_ref().map(Single::get) };
    match out {
        ElementsMut::F32(out) => product.all(pieces(args, out)),
        mut out => {
            let mut single = vec![0.0; size * args.batches.len()];
            let in_order: Pieces<'_, '_> = args.batches.iter().zip(single.chunks_exact_mut(size)).collect();
            product.all(in_order);
            for (batch, single) in args.batches.iter().zip(single.chunks_exact(size)) {
                out.write(batch.c, single);
            }
        }
    }
}

/// Elements as f32: borrowed where they are stored so, converted otherwise.
enum Single<'a> {
    Borrowed(&'a [f32]),
    Converted(Vec<f32>),
}

impl<'a> Single<'a> {
    fn of(elements: Elements<'a>) -> Self {
        match elements {
            Elements::F32(data) => Self::Borrowed(data),
            _ => {
                const CHUNK: usize = 1 << 15;
                let mut data = vec![0.0; elements.len()];
                let chunks = data.par_chunks_mut(CHUNK).enumerate();
                chunks.for_each(|(index, out)| elements.read(index * CHUNK, out));
                Self::Converted(data)
            }
        }
    }

    /// Times a factor; a product's factor is cheapest on A.
    fn scaled(self, factor: f32) -> Self {
        if factor == 1.0 {
            return self;
        }
        let mut data = match self {
            Self::Borrowed(data) => data.to_vec(),
            Self::Converted(data) => data,
        };
        data.iter_mut().for_each(|x| *x *= factor);
        Self::Converted(data)
    }

    fn get(&self) -> &[f32] {
        match self {
            Self::Borrowed(data) => data,
            Self::Converted(data) => data,
        }
    }
}

/// Turns batches that share B and lie one after another into a single product with more rows.
fn merge<'a>(args: &MatmulArgs<'a>) -> MatmulArgs<'a> {
    let first = args.batches[0];
    let consecutive = args.batches.iter().enumerate().all(|(i, batch)| {
        let (a, c) = (first.a + i * args.m * args.k, first.c + i * args.m * args.n);
        *batch == BatchOffsets { a, b: first.b, c }
    });
    match consecutive {
        true => MatmulArgs { m: args.m * args.batches.len(), batches: &args.batches[..1], ..*args },
        false => *args,
    }
}

/// Batches with their pieces of the output; most products are one batch, which takes no memory.
type Pieces<'o, 'b> = SmallVec<[(&'b BatchOffsets, &'o mut [f32]); 1]>;

/// Each batch with its piece of `out`.
fn pieces<'o, 'b>(args: &MatmulArgs<'b>, out: &'o mut [f32]) -> Pieces<'o, 'b> {
    let mut batches: SmallVec<[&BatchOffsets; 1]> = args.batches.iter().collect();
    batches.sort_by_key(|batch| batch.c);
    let (mut rest, mut start) = (out, 0);
    let mut pieces = Pieces::with_capacity(batches.len());
    for batch in batches {
        let (_, tail) = rest.split_at_mut(batch.c - start);
        let (piece, tail) = tail.split_at_mut(args.m * args.n);
        pieces.push((batch, piece));
        (rest, start) = (tail, batch.c + args.m * args.n);
    }
    pieces
}

/// The products of a call, in f32.
struct Product<'a> {
    args: &'a MatmulArgs<'a>,
    a: &'a [f32],
    b: &'a [f32],
    bias: Option<&'a [f32]>,
}

impl Product<'_> {
    /// Spreads many products over threads, and lets few use all threads each.
    fn all(&self, pieces: Pieces<'_, '_>) {
        let work = self.args.m * self.args.n * self.args.k.max(1);
        let threads = if work < MIN_PARALLEL { 1 } else { rayon::current_num_threads() };
        if pieces.len() >= rayon::current_num_threads() && pieces.len() > 1 {
            let pieces = pieces.into_vec().into_par_iter().with_min_len(MIN_PARALLEL.div_ceil(work));
            pieces.for_each(|(batch, out)| self.one(*batch, out, 1));
        } else {
            pieces.into_iter().for_each(|(batch, out)| self.one(*batch, out, threads));
        }
    }

    fn one(&self, batch: BatchOffsets, out: &mut [f32], threads: usize) {
        let MatmulArgs { n, k, .. } = *self.args;
        for row in out.chunks_exact_mut(n) {
            match self.bias {
                Some(bias) => row.copy_from_slice(bias),
                None => row.fill(0.0),
            }
        }
        if k > 0 {
            self.add(batch, out, threads);
        }
        in_place(self.args.steps, out, self.args.residual, batch.c, threads > 1);
    }

    /// Adds the factors' product to `out`.
    fn add(&self, batch: BatchOffsets, out: &mut [f32], threads: usize) {
        let MatmulArgs { m, n, k, layout, .. } = *self.args;
        let (a, b) = (&self.a[batch.a..][..m * k], &self.b[batch.b..][..k * n]);
        if self.args.zeros == Zeros::Annihilate && any_non_finite(b, threads) {
            annihilate(a, b, k, layout, out);
        } else if m <= few_rows(layout) {
            few_rows::spread(FewRows { a, b, k, n, layout }, out, threads);
        } else if m <= SHORT && threads > 1 {
            by_columns(a, b, [m, n, k], layout, out, threads);
        } else {
            blocked(a, b, [m, n, k], n, layout, out, threads);
        }
    }
}

/// Products of at most this many rows are cut by columns here: spread over two threads by `gemm`, 64 × 4096 × 4096 ran at
/// 129 GFLOP/s, cut at 223 (Sapphire Rapids).
const SHORT: usize = 96;

/// Adds the product to `out`, each thread computing some columns aside.
fn by_columns(a: &[f32], b: &[f32], [m, n, k]: [usize; 3], layout: RightLayout, out: &mut [f32], threads: usize) {
    let columns = n.div_ceil(threads).next_multiple_of(64).min(n);
    let firsts: Vec<usize> = (0..n).step_by(columns).collect();
    let parts = firsts.into_par_iter().with_max_len(1).map(|first| {
        let count = columns.min(n - first);
        let mut part = vec![0.0; m * count];
        let b = match layout {
            RightLayout::RowMajor => &b[first..],
            RightLayout::Transposed => &b[first * k..],
        };
        blocked(a, b, [m, count, k], n, layout, &mut part, 1);
        (first, count, part)
    });
    for (first, count, part) in parts.collect::<Vec<_>>() {
        for (row, part) in out.chunks_exact_mut(n).zip(part.chunks_exact(count)) {
            for (x, y) in row[first..].iter_mut().zip(part) {
                *x += y;
            }
        }
    }
}

fn any_non_finite(values: &[f32], threads: usize) -> bool {
    const CHUNK: usize = 1 << 14;
    let chunk = |chunk: &[f32]| chunk.iter().fold(false, |any, x| any | !x.is_finite());
    match threads {
        1 => values.chunks(CHUNK).any(chunk),
        _ => values.par_chunks(CHUNK).any(chunk),
    }
}

/// Adds the product to `out`, skipping zeros of A.
fn annihilate(a: &[f32], b: &[f32], k: usize, layout: RightLayout, out: &mut [f32]) {
    let n = b.len() / k;
    let rows = out.par_chunks_exact_mut(n).zip(a.par_chunks_exact(k));
    rows.for_each(|(out, a)| {
        for (depth, &factor) in a.iter().enumerate().filter(|(_, factor)| **factor != 0.0) {
            match layout {
                RightLayout::RowMajor => {
                    for (x, &b) in out.iter_mut().zip(&b[depth * n..]) {
                        *x += factor * b;
                    }
                }
                RightLayout::Transposed => {
                    for (x, b) in out.iter_mut().zip(b.chunks_exact(k)) {
                        *x += factor * b[depth];
                    }
                }
            }
        }
    });
}

/// Adds the product of `[m, k]` and `[k, n]` to `out` by `gemm`. Rows of B in row-major order are `b_stride` apart.
fn blocked(
    a: &[f32],
    b: &[f32],
    [m, n, k]: [usize; 3],
    b_stride: usize,
    layout: RightLayout,
    out: &mut [f32],
    threads: usize,
) {
    let (b_column, b_row) = match layout {
        RightLayout::RowMajor => (1, b_stride),
        RightLayout::Transposed => (k, 1),
    };
    assert!(m * n * k > 0 && a.len() == m * k && out.len() == m * n);
    assert!((n - 1) * b_column + (k - 1) * b_row < b.len());
    let parallelism = match threads {
        1 => gemm::Parallelism::None,
        _ => gemm::Parallelism::Rayon(threads),
    };
    #[expect(unsafe_code, reason = "gemm takes pointers")]
    // SAFETY: the three matrices lie within their slices, as the assertions above have checked for these strides, and
    // `out`, being borrowed mutably, overlaps neither factor.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            true,
            a.as_ptr(),
            1,
            k as isize,
            b.as_ptr(),
            b_column as isize,
            b_row as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}
