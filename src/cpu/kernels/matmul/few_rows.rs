//! Products of few rows, which read B once and in place.

use super::RightLayout;
use pulp::{Arch, Simd, WithSimd};
use smallvec::SmallVec;

/// Rows of B that a step takes together: enough for independent sums, few enough to stay in the first-level cache.
const STEP: usize = 4;

/// Most rows of A that are in registers together; more take turns while the rows of B are in cache.
const ROWS: usize = 4;

/// Fewest columns of a task.
const MIN_COLUMNS: usize = 64;

/// `[m, k]` times `[k, n]`.
#[derive(Clone, Copy)]
pub struct FewRows<'a> {
    pub a: &'a [f32],
    pub b: &'a [f32],
    pub k: usize,
    pub n: usize,
    pub layout: RightLayout,
}

/// Adds the product to `out`, its columns spread over `threads`.
pub fn spread(factors: FewRows, out: &mut [f32], threads: usize) {
    let each = factors.n.div_ceil(threads).next_multiple_of(MIN_COLUMNS).min(factors.n);
    run(Arch::new(), Columns { factors, first: 0, out: out.chunks_exact_mut(factors.n).collect() }, each);
}

/// Columns in tasks of `each`, halves of them side by side.
fn run(arch: Arch, columns: Columns, each: usize) {
    let tasks = columns.out[0].len().div_ceil(each);
    if tasks < 2 {
        return arch.dispatch(columns);
    }
    let (first, second) = columns.split_at(tasks / 2 * each);
    rayon::join(|| run(arch, first, each), || run(arch, second, each));
}

/// Most rows of A: as many pieces of C are listed without memory from the heap.
pub const MOST: usize = 32;

/// Some columns of the product.
struct Columns<'a> {
    factors: FewRows<'a>,
    first: usize,
    /// One piece per row.
    out: SmallVec<[&'a mut [f32]; MOST]>,
}

impl Columns<'_> {
    /// The first `count`, and the others.
    fn split_at(self, count: usize) -> (Self, Self) {
        let (out, others) = self.out.into_iter().map(|row| row.split_at_mut(count)).unzip();
        (Self { out, ..self }, Self { first: self.first + count, out: others, ..self })
    }
}

impl WithSimd for Columns<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let FewRows { b, k, n, layout, .. } = self.factors;
        let columns = self.out[0].len();
        match layout {
            RightLayout::Transposed => {
                let rows = &b[self.first * k..][..columns * k];
                let mut steps = rows.chunks_exact(STEP * k);
                for (step, rows) in steps.by_ref().enumerate() {
                    self.dot_rows(simd, step * STEP, split::<STEP>(rows, k));
                }
                let done = columns / STEP * STEP;
                for (column, row) in steps.remainder().chunks_exact(k).enumerate() {
                    self.dot_rows(simd, done + column, [row]);
                }
            }
            RightLayout::RowMajor => {
                for depth in (0..k).step_by(DEPTH) {
                    let rows = &b[depth * n..][..DEPTH.min(k - depth) * n];
                    self.add_rows(simd, depth, rows);
                }
            }
        }
    }
}

/// Cuts `N` rows of `k` elements apart.
#[inline(always)]
fn split<const N: usize>(rows: &[f32], k: usize) -> [&[f32]; N] {
    let mut parts = [rows; N];
    for (index, part) in parts.iter_mut().enumerate() {
        *part = &rows[index * k..][..k];
    }
    parts
}

impl Columns<'_> {
    /// Adds the products of every row of A with `J` columns of B, from `column` on.
    #[inline(always)]
    fn dot_rows<S: Simd, const J: usize>(&mut self, simd: S, column: usize, b: [&[f32]; J]) {
        let k = self.factors.k;
        let a_groups = self.factors.a.chunks(ROWS * k);
        for (a, out) in a_groups.zip(self.out.chunks_mut(ROWS)) {
            match out.len() {
                1 => dots::<S, 1, J>(simd, split(a, k), b, column, out),
                2 => dots::<S, 2, J>(simd, split(a, k), b, column, out),
                3 => dots::<S, 3, J>(simd, split(a, k), b, column, out),
                _ => dots::<S, 4, J>(simd, split(a, k), b, column, out),
            }
        }
    }
}

/// Adds the products of `R` rows of A and `J` columns of B.
#[inline(always)]
fn dots<S: Simd, const R: usize, const J: usize>(
    simd: S,
    a: [&[f32]; R],
    b: [&[f32]; J],
    column: usize,
    out: &mut [&mut [f32]],
) {
    // Plain loops over constant bounds: a closure here may be compiled apart, without the instruction set.
    let vectors = b[0].len() / S::F32_LANES;
    let mut a_vectors: [&[S::f32s]; R] = [&[]; R];
    let mut b_vectors: [&[S::f32s]; J] = [&[]; J];
    let mut acc = [[simd.splat_f32s(0.0); R]; J];
    for r in 0..R {
        let (body, tail) = S::as_simd_f32s(a[r]);
        a_vectors[r] = &body[..vectors];
        for j in 0..J {
            let b_tail = S::as_simd_f32s(b[j]).1;
            acc[j][r] = simd.mul_f32s(simd.partial_load_f32s(tail), simd.partial_load_f32s(b_tail));
        }
    }
    for j in 0..J {
        b_vectors[j] = &S::as_simd_f32s(b[j]).0[..vectors];
    }
    for i in 0..vectors {
        for j in 0..J {
            for r in 0..R {
                acc[j][r] = simd.mul_add_e_f32s(a_vectors[r][i], b_vectors[j][i], acc[j][r]);
            }
        }
    }
    for j in 0..J {
        for r in 0..R {
            out[r][column + j] += simd.reduce_sum_f32s(acc[j][r]);
        }
    }
}

/// Rows of B in row-major order that are added before the sums go back to memory.
const DEPTH: usize = 8;

/// Vectors of a row of C that are in registers together.
const VECTORS: usize = 4;

impl Columns<'_> {
    /// Adds whole rows of B, which start at `depth`, times their factors.
    #[inline(always)]
    fn add_rows<S: Simd>(&mut self, simd: S, depth: usize, b: &[f32]) {
        let FewRows { k, n, .. } = self.factors;
        let columns = self.out[0].len();
        let strip = VECTORS * S::F32_LANES;
        let whole = columns / strip * strip;
        for (a, out) in self.factors.a.chunks(ROWS * k).zip(self.out.chunks_mut(ROWS)) {
            for first in (0..whole).step_by(strip) {
                let b = Strip { rows: b, n, first: self.first + first, depth };
                match out.len() {
                    1 => add_strip::<S, 1>(simd, split(a, k), b, first, out),
                    2 => add_strip::<S, 2>(simd, split(a, k), b, first, out),
                    3 => add_strip::<S, 3>(simd, split(a, k), b, first, out),
                    _ => add_strip::<S, 4>(simd, split(a, k), b, first, out),
                }
            }
            for (a, out) in a.chunks_exact(k).zip(out) {
                for (&a, b) in a[depth..].iter().zip(b.chunks_exact(n)) {
                    for (x, &b) in out[whole..].iter_mut().zip(&b[self.first + whole..]) {
                        *x += a * b;
                    }
                }
            }
        }
    }
}

/// [`VECTORS`] vectors of columns of some rows of B.
struct Strip<'a> {
    /// Whole rows.
    rows: &'a [f32],
    n: usize,
    /// First column.
    first: usize,
    /// First row.
    depth: usize,
}

/// [`Columns::add_rows`] for `R` rows of A and a strip of B, whose columns start at `first` in `out`.
#[inline(always)]
fn add_strip<S: Simd, const R: usize>(simd: S, a: [&[f32]; R], b: Strip, first: usize, out: &mut [&mut [f32]]) {
    let mut acc = [[simd.splat_f32s(0.0); VECTORS]; R];
    for (index, row) in b.rows.chunks_exact(b.n).enumerate() {
        let (row, _) = S::as_simd_f32s(&row[b.first..][..VECTORS * S::F32_LANES]);
        for r in 0..R {
            let a = simd.splat_f32s(a[r][b.depth + index]);
            for v in 0..VECTORS {
                acc[r][v] = simd.mul_add_e_f32s(a, row[v], acc[r][v]);
            }
        }
    }
    for r in 0..R {
        let (out, _) = S::as_mut_simd_f32s(&mut out[r][first..][..VECTORS * S::F32_LANES]);
        for v in 0..VECTORS {
            out[v] = simd.add_f32s(out[v], acc[r][v]);
        }
    }
}
