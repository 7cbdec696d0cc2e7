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
use super::scratch::{Arena, with_scratch};
use bytemuck::{Pod, Zeroable};
use few_rows::FewRows;
use rayon::prelude::*;

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

/// Where the factors of one product start, in elements. Products lie one after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Zeroable, Pod)]
#[repr(C)]
pub struct BatchOffsets {
    /// In A; equal offsets broadcast.
    pub a: usize,
    /// In B; equal offsets broadcast.
    pub b: usize,
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
        RightLayout::Transposed => few_rows::MOST,
    }
}

/// Below this many multiplications a product is not worth two threads.
const MIN_PARALLEL: usize = 1 << 18;

/// Computes every product of `args` into `out`, `[m, n]` one after another.
///
/// # Panics
///
/// When an offset reaches outside its slice.
pub fn matmul(args: &MatmulArgs, out: ElementsMut) {
    let size = args.m * args.n;
    if size * args.batches.len() == 0 {
        return;
    }
    let as_stored = if matches!(out, ElementsMut::F32(_)) { 0 } else { size * args.batches.len() };
    // A product's factor is cheapest on A.
    let operands = [(args.a, args.alpha), (args.b, 1.0), (args.bias.unwrap_or(Elements::F32(&[])), 1.0)];
    let copied: usize = operands.iter().map(|&(elements, factor)| copied(elements, factor)).sum();
    with_scratch(|lines| {
        let mut arena = Arena::new(lines, 4 * (copied + as_stored), operands.len() + 1);
        let [a, b, bias] = operands.map(|(elements, factor)| single(elements, factor, &mut arena));
        let product = Product { args: &merge(args), a, b, bias: args.bias.map(|_| bias) };
        match out {
            ElementsMut::F32(out) => product.all(out),
            mut out => {
                let single: &mut [f32] = arena.take(as_stored);
                product.all(single);
                out.write(0, single);
            }
        }
    });
}

/// How many of the elements are copied: all, unless they are stored as f32 and stay as they are.
fn copied(elements: Elements, factor: f32) -> usize {
    if matches!(elements, Elements::F32(_)) && factor == 1.0 { 0 } else { elements.len() }
}

/// Elements times a factor as f32, borrowed where nothing is [`copied`].
fn single<'a>(elements: Elements<'a>, factor: f32, arena: &mut Arena<'a>) -> &'a [f32] {
    const CHUNK: usize = 1 << 15;
    if let (Elements::F32(data), 0) = (elements, copied(elements, factor)) {
        return data;
    }
    let data: &mut [f32] = arena.take(elements.len());
    data.par_chunks_mut(CHUNK).enumerate().for_each(|(index, out)| {
        elements.read(index * CHUNK, out);
        if factor != 1.0 {
            out.iter_mut().for_each(|x| *x *= factor);
        }
    });
    data
}

/// Turns batches that share B and lie one after another into a single product with more rows.
fn merge<'a>(args: &MatmulArgs<'a>) -> MatmulArgs<'a> {
    let first = args.batches[0];
    let follows =
        |(i, batch): (usize, &BatchOffsets)| *batch == BatchOffsets { a: first.a + i * args.m * args.k, b: first.b };
    let consecutive = args.batches.iter().enumerate().all(follows);
    match consecutive {
        true => MatmulArgs { m: args.m * args.batches.len(), batches: &args.batches[..1], ..*args },
        false => *args,
    }
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
    fn all(&self, out: &mut [f32]) {
        let MatmulArgs { m, n, k, batches, .. } = *self.args;
        let work = m * n * k.max(1);
        let threads = if work < MIN_PARALLEL { 1 } else { rayon::current_num_threads() };
        if batches.len() >= rayon::current_num_threads() && batches.len() > 1 {
            let pieces = out.par_chunks_exact_mut(m * n).zip(batches).enumerate();
            let pieces = pieces.with_min_len(MIN_PARALLEL.div_ceil(work));
            pieces.for_each(|(index, (out, batch))| self.one(index, *batch, out, 1));
        } else {
            let pieces = out.chunks_exact_mut(m * n).zip(batches).enumerate();
            pieces.for_each(|(index, (out, batch))| self.one(index, *batch, out, threads));
        }
    }

    fn one(&self, index: usize, batch: BatchOffsets, out: &mut [f32], threads: usize) {
        let MatmulArgs { n, k, .. } = *self.args;
        let first = index * out.len();
        for row in out.chunks_exact_mut(n) {
            match self.bias {
                Some(bias) => row.copy_from_slice(bias),
                None => row.fill(0.0),
            }
        }
        if k > 0 {
            self.add(batch, out, threads);
        }
        in_place(self.args.steps, out, self.args.residual, first, threads > 1);
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
    with_scratch(|lines| {
        let parts: &mut [f32] = Arena::new(lines, 4 * m * n, 1).take(m * n);
        parts.par_chunks_mut(m * columns).enumerate().with_max_len(1).for_each(|(index, part)| {
            let b = match layout {
                RightLayout::RowMajor => &b[index * columns..],
                RightLayout::Transposed => &b[index * columns * k..],
            };
            part.fill(0.0);
            blocked(a, b, [m, part.len() / m, k], n, layout, part, 1);
        });
        for (index, part) in parts.chunks(m * columns).enumerate() {
            for (row, part) in out.chunks_exact_mut(n).zip(part.chunks_exact(part.len() / m)) {
                for (x, y) in row[index * columns..].iter_mut().zip(part) {
                    *x += y;
                }
            }
        }
    });
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
