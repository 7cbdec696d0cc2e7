//! Keys and values of a block, rearranged so that a kernel reads them front to back, as f32.

use crate::cpu::kernels::args::{Elements, Pages};

/// Elements of a key that lie together in a panel.
pub const DEPTH: usize = 8;

/// Packs `count` keys of `head_dim` elements, `stride` apart from `offset` on, into panels of `N` keys.
///
/// `panels` is `[count / N][head_dim / DEPTH]` of `[N, DEPTH]` blocks, both counts rounded up and padded by zeros.
#[inline(always)]
pub fn pack_keys<const N: usize>(rows: &Rows, count: usize, row_f32: &mut [f32], panels: &mut [[[f32; DEPTH]; N]]) {
    let chunks = rows.width.div_ceil(DEPTH);
    for (first, panel) in (0..count).step_by(N).zip(panels.chunks_exact_mut(chunks)) {
        for lane in 0..N {
            if first + lane >= count {
                for block in panel.iter_mut() {
                    block[lane] = [0.0; DEPTH];
                }
                continue;
            }
            let (whole, rest) = rows.get(first + lane, row_f32).as_chunks::<DEPTH>();
            for (block, chunk) in panel.iter_mut().zip(whole) {
                block[lane] = *chunk;
            }
            if !rest.is_empty() {
                let last = &mut panel[chunks - 1][lane];
                *last = [0.0; DEPTH];
                last[..rest.len()].copy_from_slice(rest);
            }
        }
    }
}

/// Packs `count` values into strips of `N` elements: `strips` is `[width / N][block][N]`, padded by zeros, of which
/// the first `count` of every `block` are written.
#[inline(always)]
pub fn pack_values<const N: usize>(
    rows: &Rows,
    count: usize,
    row_f32: &mut [f32],
    strips: &mut [[f32; N]],
    block: usize,
) {
    for key in 0..count {
        let (whole, rest) = rows.get(key, row_f32).as_chunks::<N>();
        for (strip, chunk) in whole.iter().enumerate() {
            strips[strip * block + key] = *chunk;
        }
        if !rest.is_empty() {
            let last = &mut strips[whole.len() * block + key];
            *last = [0.0; N];
            last[..rest.len()].copy_from_slice(rest);
        }
    }
}

/// Rows of one head of k or v.
pub struct Rows<'a> {
    pub data: Elements<'a>,
    pub place: Place<'a>,
    pub width: usize,
}

/// Where rows lie.
pub enum Place<'a> {
    /// One after another.
    Strided {
        /// Of the first row.
        offset: usize,
        stride: usize,
    },
    /// Where the table of their batch element says.
    Paged {
        pages: Pages<'a>,
        batch: usize,
        /// The first row.
        first: usize,
        /// Elements from one page to the next, and from a page to the head in it.
        page: usize,
        head: usize,
        stride: usize,
    },
}

impl<'a> Rows<'a> {
    /// Where a row begins.
    #[inline(always)]
    pub fn offset(&self, row: usize) -> usize {
        match self.place {
            Place::Strided { offset, stride } => offset + row * stride,
            Place::Paged { pages, batch, first, page, head, stride } => {
                let row = first + row;
                let entry = pages.table[batch * pages.per_sequence + row / pages.size] as usize;
                entry.min(pages.count - 1) * page + head + row % pages.size * stride
            }
        }
    }

    /// One row as f32, converted into `row_f32` when it is stored otherwise.
    #[inline(always)]
    pub fn get<'r>(&self, row: usize, row_f32: &'r mut [f32]) -> &'r [f32]
    where
        'a: 'r,
    {
        let offset = self.offset(row);
        match self.data {
            Elements::F32(data) => &data[offset..][..self.width],
            _ => {
                self.data.read(offset, &mut row_f32[..self.width]);
                &row_f32[..self.width]
            }
        }
    }
}

/// A value element that must not be multiplied by the zero weight of a row that cannot see it.
pub struct NonFinite {
    pub key: usize,
    pub column: usize,
    pub value: f32,
}

/// Whether any element is NaN or infinite.
#[inline(always)]
pub fn any_non_finite(values: &[f32]) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    let mut any = false;
    for x in values {
        any |= x.to_bits() & EXPONENT == EXPONENT;
    }
    any
}

/// Replaces the NaNs and infinities of the first `count` keys of each strip by zeros, and lists them in `found`.
#[inline(always)]
pub fn take_non_finite<const N: usize>(
    strips: &mut [[f32; N]],
    count: usize,
    block: usize,
    found: &mut Vec<NonFinite>,
) {
    for (strip, values) in strips.chunks_mut(block).enumerate() {
        let values = &mut values[..count];
        if !any_non_finite(values.as_flattened()) {
            continue;
        }
        for (key, value) in values.iter_mut().enumerate() {
            for (column, x) in value.iter_mut().enumerate() {
                if !x.is_finite() {
                    found.push(NonFinite { key, column: strip * N + column, value: *x });
                    *x = 0.0;
                }
            }
        }
    }
}
