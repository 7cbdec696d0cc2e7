//! Where finished rows go: the output, and the logarithms of their sums.

use super::job::Normal;
use crate::cpu::kernels::args::ElementsMut;

/// Rows of the output in the order in which jobs have them, and their logarithms.
pub struct Results<'a, 'o> {
    pub rows: OutRows<'a, 'o>,
    pub log_sums: Option<&'a mut [f32]>,
}

impl<'a, 'o> Results<'a, 'o> {
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
pub enum OutRows<'a, 'o> {
    /// One after another.
    Contiguous { data: ElementsMut<'a>, width: usize },
    /// Wherever strides put them.
    Scattered(&'a mut [ElementsMut<'o>]),
}

/// The place of a row that no job has.
pub const NO_JOB: usize = usize::MAX;

/// Where the rows of `[batch, heads, rows]`, of `width` elements, lie in the output, and in which order jobs have them.
pub struct Placement<'a> {
    pub sizes: [usize; 3],
    pub strides: [usize; 3],
    pub width: usize,
    /// Jobs have row `r` at `places[r]`, or as it comes; rows that no job has become zeros.
    pub places: Option<&'a [usize]>,
}

/// Memory for lists of rows.
#[derive(Default)]
pub struct RowLists<'o> {
    rows: Vec<ElementsMut<'o>>,
    order: Vec<(usize, usize)>,
}

impl RowLists<'_> {
    /// The same memory for the rows of another output: the standard library collects in place what is as large.
    pub fn recycled<'o>(mut self) -> RowLists<'o> {
        self.rows.clear();
        RowLists { rows: self.rows.into_iter().map(|_| ElementsMut::default()).collect(), order: self.order }
    }
}

impl<'a, 'o: 'a> OutRows<'a, 'o> {
    /// The rows of `data`, listed in `lists` where they do not lie one after another.
    pub fn new(data: ElementsMut<'o>, placement: &Placement, lists: &'a mut RowLists<'o>) -> Self {
        let &Placement { sizes, strides, width, places } = placement;
        let contiguous = [sizes[1] * sizes[2] * width, sizes[2] * width, width];
        if places.is_none() && (0..3).all(|axis| sizes[axis] == 1 || strides[axis] == contiguous[axis]) {
            let (data, _) = data.split_at(sizes[0] * contiguous[0]);
            return Self::Contiguous { data, width };
        }
        let RowLists { rows, order } = lists;
        in_memory_order(sizes, strides, order);
        let of_jobs = places.map_or(order.len(), |places| places.iter().filter(|&&place| place != NO_JOB).count());
        rows.clear();
        rows.resize_with(of_jobs, ElementsMut::default);
        let (mut rest, mut start) = (data, 0);
        for &(offset, row) in order.iter() {
            let (_, tail) = rest.split_at(offset - start);
            let (mut piece, tail) = tail.split_at(width);
            match places.map_or(row, |places| places[row]) {
                NO_JOB => piece.clear(),
                place => rows[place] = piece,
            }
            (rest, start) = (tail, offset + width);
        }
        Self::Scattered(rows)
    }

    /// All rows but the last `count`, and those.
    fn split_last(self, count: usize) -> (Self, Self) {
        match self {
            Self::Contiguous { data, width } => {
                let mid = data.len() - count * width;
                let (head, tail) = data.split_at(mid);
                (Self::Contiguous { data: head, width }, Self::Contiguous { data: tail, width })
            }
            Self::Scattered(rows) => {
                let (head, tail) = rows.split_at_mut(rows.len() - count);
                (Self::Scattered(head), Self::Scattered(tail))
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
fn in_memory_order(sizes: [usize; 3], strides: [usize; 3], order: &mut Vec<(usize, usize)>) {
    let mut axes = [0, 1, 2];
    axes.sort_unstable_by_key(|&axis| std::cmp::Reverse(strides[axis]));
    let logical = [sizes[1] * sizes[2], sizes[2], 1];
    let [outer, middle, inner] = axes;
    order.clear();
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
}
