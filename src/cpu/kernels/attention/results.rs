//! Where finished rows go: the output, and the logarithms of their sums.

use super::job::Normal;
use crate::cpu::kernels::args::ElementsMut;

/// Rows of the output in the order in which jobs have them, and their logarithms.
#[derive(Default)]
pub struct Results<'a> {
    pub rows: OutRows<'a>,
    pub log_sums: Option<&'a mut [f32]>,
}

impl<'a> Results<'a> {
    /// All rows but the last `count`, and those.
    pub fn split_last(self, count: usize) -> (Self, Self) {
        let (rows, last_rows) = self.rows.split_last(count);
        let log_sums = self.log_sums.map(|log_sums| log_sums.split_at_mut(log_sums.len() - count));
        let (log_sums, last_log_sums) = log_sums.unzip();
        (Self { rows, log_sums }, Self { rows: last_rows, log_sums: last_log_sums })
    }

    /// Stores the logarithm of a row; returns the factor on its output.
    #[inline(always)]
    pub fn finish(&mut self, row: usize, normal: Normal) -> f32 {
        if let Some(log_sums) = &mut self.log_sums {
            log_sums[row] = normal.log_sum;
        }
        normal.factor
    }
}

/// Output rows, in the order in which jobs have them.
pub enum OutRows<'a> {
    /// One after another.
    Contiguous { data: ElementsMut<'a>, width: usize },
    /// Wherever strides put them.
    Scattered(Vec<ElementsMut<'a>>),
}

impl Default for OutRows<'_> {
    fn default() -> Self {
        Self::Scattered(Vec::new())
    }
}

/// The place of a row that no job has.
pub const NO_JOB: usize = usize::MAX;

impl<'a> OutRows<'a> {
    /// The rows of `data`, `[batch, heads, rows]` of `width` elements, that `strides` address. Jobs have row `r` at
    /// `places[r]`, or as it comes; rows that no job has become zeros.
    pub fn new(
        data: ElementsMut<'a>,
        sizes: [usize; 3],
        strides: [usize; 3],
        width: usize,
        places: Option<&[usize]>,
    ) -> Self {
        let contiguous = [sizes[1] * sizes[2] * width, sizes[2] * width, width];
        if places.is_none() && (0..3).all(|axis| sizes[axis] == 1 || strides[axis] == contiguous[axis]) {
            let (data, _) = data.split_at(sizes[0] * contiguous[0]);
            return Self::Contiguous { data, width };
        }
        let mut rows: Vec<Option<ElementsMut>> = (0..sizes.iter().product()).map(|_| None).collect();
        let (mut rest, mut start) = (data, 0);
        for (offset, row) in in_memory_order(sizes, strides) {
            let (_, tail) = rest.split_at(offset - start);
            let (mut piece, tail) = tail.split_at(width);
            match places.map_or(row, |places| places[row]) {
                NO_JOB => piece.clear(),
                place => rows[place] = Some(piece),
            }
            (rest, start) = (tail, offset + width);
        }
        Self::Scattered(rows.into_iter().flatten().collect())
    }

    /// All rows but the last `count`, and those.
    fn split_last(self, count: usize) -> (Self, Self) {
        match self {
            Self::Contiguous { data, width } => {
                let mid = data.len() - count * width;
                let (head, tail) = data.split_at(mid);
                (Self::Contiguous { data: head, width }, Self::Contiguous { data: tail, width })
            }
            Self::Scattered(mut rows) => {
                let tail = rows.split_off(rows.len() - count);
                (Self::Scattered(rows), Self::Scattered(tail))
            }
        }
    }

    /// One row.
    #[inline(always)]
    pub fn row(&mut self, row: usize) -> ElementsMut<'_> {
        match self {
            Self::Contiguous { data, width } => data.part(row * *width, *width),
            Self::Scattered(rows) => {
                let row = &mut rows[row];
                row.part(0, row.len())
            }
        }
    }
}

/// Offset and number of each row of `[batch, heads, rows]`, by offset.
fn in_memory_order(sizes: [usize; 3], strides: [usize; 3]) -> Vec<(usize, usize)> {
    let mut axes = [0, 1, 2];
    axes.sort_unstable_by_key(|&axis| std::cmp::Reverse(strides[axis]));
    let logical = [sizes[1] * sizes[2], sizes[2], 1];
    let [outer, middle, inner] = axes;
    let mut order = Vec::with_capacity(sizes.iter().product());
    for x in 0..sizes[outer] {
        for y in 0..sizes[middle] {
            for z in 0..sizes[inner] {
                let at = |steps: [usize; 3]| x * steps[outer] + y * steps[middle] + z * steps[inner];
                order.push((at(strides), at(logical)));
            }
        }
    }
    // Axes that are interleaved leave something to sort; others cost one pass.
    order.sort_unstable();
    order
}
