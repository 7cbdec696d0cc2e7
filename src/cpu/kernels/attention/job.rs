//! A job: a block of query rows of one key head over a range of keys, and where its result goes.

use super::pack::Rows;
use crate::cpu::kernels::args::{AttentionArgs, AttentionShape, ElementsMut};
use crate::cpu::kernels::mask;
use crate::mask::Fill;
use std::ops::Range;

/// The rows `first_row..first_row + rows` of the group of query heads that read `kv_head`, in (head, query) order.
pub struct Job<'a> {
    pub args: &'a AttentionArgs<'a>,
    pub batch: usize,
    pub kv_head: usize,
    pub first_row: usize,
    pub rows: usize,
    /// Those to visit, all of which exist.
    pub keys: Range<usize>,
    pub sink: Sink<'a>,
}

impl Job<'_> {
    /// Query head and query of row `row` of the job.
    #[inline(always)]
    pub fn head_and_query(&self, row: usize) -> (usize, usize) {
        let shape = self.args.shape;
        let row = self.first_row + row;
        let head = self.kv_head * (shape.heads / shape.kv_heads) + row / shape.seq_q;
        (head, row % shape.seq_q)
    }

    /// The query at `query` of `head`, without the scale; `row_f32` takes it where it is not stored as f32.
    #[inline(always)]
    pub fn query<'r>(&'r self, head: usize, query: usize, row_f32: &'r mut [f32]) -> &'r [f32] {
        let [per_batch, per_head, stride] = self.args.q.strides;
        let offset = self.batch * per_batch + head * per_head + query * stride;
        let width = self.args.shape.head_dim;
        Rows { data: self.args.q.data, offset, stride, width }.get(0, row_f32)
    }

    /// Keys that the band does not hide from `query`.
    #[inline(always)]
    pub fn visible(&self, query: usize) -> Range<usize> {
        mask::visible(&self.args.masking, self.batch, query, [self.args.shape.seq_q, self.args.shape.seq_kv])
    }

    /// Bias of row `row` of the job, or that it is masked, for the keys from `first_key` on.
    #[inline(always)]
    pub fn read_bias(&self, row: usize, first_key: usize, out: &mut [f32]) {
        let (head, query) = self.head_and_query(row);
        mask::read_row(&self.args.masking, [self.batch, head, query], first_key, out);
    }

    /// Offset of the first element of this job's key head in `strides`.
    #[inline(always)]
    pub fn kv_offset(&self, strides: [usize; 3]) -> usize {
        self.batch * strides[0] + self.kv_head * strides[1]
    }
}

/// Keys that rows `rows` of a group in `batch` have to visit: from the first to the last that some row sees, or under
/// `Assign`, where masked keys count too, all that exist.
pub fn span(args: &AttentionArgs, batch: usize, rows: Range<usize>) -> Range<usize> {
    let AttentionShape { seq_q, seq_kv, .. } = args.shape;
    if let Fill::Assign(_) = args.masking.fill {
        return 0..mask::existing(&args.masking, batch, seq_kv);
    }
    let (first, last) = (rows.start, rows.end - 1);
    let one_head = first / seq_q == last / seq_q;
    let [first, last] = if one_head { [first % seq_q, last % seq_q] } else { [0, seq_q - 1] };
    let visible = |query| mask::visible(&args.masking, batch, query, [seq_q, seq_kv]);
    visible(first).start..visible(last).end
}

/// Where the rows of a job go.
pub enum Sink<'a> {
    /// Divided by the sum of weights, into the output.
    Rows(OutRows<'a>),
    /// `[rows, 2 + head_dim_v]`: maximum, sum of weights and undivided output, for [`combine`].
    Partial(&'a mut [f32]),
}

impl Sink<'_> {
    /// The factor that the sink wants on a row whose weights add up to `sum`; a row that saw no key, whose sum
    /// is zero, stays zero.
    #[inline(always)]
    pub fn factor(&self, sum: f32) -> f32 {
        match self {
            Self::Rows(_) if sum == 0.0 => 0.0,
            Self::Rows(_) => 1.0 / sum,
            Self::Partial(_) => 1.0,
        }
    }

    /// Where to put one row of `width` elements: the weighted values relative to `max`, times [`Sink::factor`].
    #[inline(always)]
    pub fn row(&mut self, row: usize, max: f32, sum: f32, width: usize) -> ElementsMut<'_> {
        match self {
            Self::Rows(OutRows::Contiguous { data, .. }) => data.part(row * width, width),
            Self::Rows(OutRows::Scattered(rows)) => rows[row].part(0, width),
            Self::Partial(data) => {
                let (head, output) = data[row * (width + 2)..][..width + 2].split_at_mut(2);
                head.copy_from_slice(&[max, sum]);
                ElementsMut::F32(output)
            }
        }
    }
}

/// Joins the parts of one row that [`Sink::Partial`] stored into the finished row.
pub fn combine<'a>(parts: impl Iterator<Item = &'a [f32]> + Clone, out: &mut [f32]) {
    let max = parts.clone().fold(f32::NEG_INFINITY, |max, part| max.max(part[0]));
    let base = if max == f32::NEG_INFINITY { 0.0 } else { max };
    let mut sum = 0.0;
    out.fill(0.0);
    for part in parts {
        // A part that saw no key has a zero sum; skipping it keeps a NaN maximum elsewhere from mattering.
        if part[1] == 0.0 {
            continue;
        }
        let weight = (part[0] - base).exp();
        sum += weight * part[1];
        for (x, &y) in out.iter_mut().zip(&part[2..]) {
            *x += weight * y;
        }
    }
    let inverse = if sum == 0.0 { 0.0 } else { 1.0 / sum };
    for x in out {
        *x *= inverse;
    }
}

/// Output rows, in logical order.
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

impl<'a> OutRows<'a> {
    /// The rows of `data`, `[batch, heads, rows]` of `width` elements, that `strides` address.
    pub fn new(data: ElementsMut<'a>, sizes: [usize; 3], strides: [usize; 3], width: usize) -> Self {
        let contiguous = [sizes[1] * sizes[2] * width, sizes[2] * width, width];
        if (0..3).all(|axis| sizes[axis] == 1 || strides[axis] == contiguous[axis]) {
            let (data, _) = data.split_at(sizes[0] * contiguous[0]);
            return Self::Contiguous { data, width };
        }
        let count = sizes[0] * sizes[1] * sizes[2];
        let offset = |row: usize| {
            row / (sizes[1] * sizes[2]) * strides[0]
                + row / sizes[2] % sizes[1] * strides[1]
                + row % sizes[2] * strides[2]
        };
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_unstable_by_key(|&row| offset(row));
        let mut rows: Vec<Option<ElementsMut>> = (0..count).map(|_| None).collect();
        let (mut rest, mut start) = (data, 0);
        for row in order {
            let (_, tail) = rest.split_at(offset(row) - start);
            let (piece, tail) = tail.split_at(width);
            rows[row] = Some(piece);
            (rest, start) = (tail, offset(row) + width);
        }
        Self::Scattered(rows.into_iter().flatten().collect())
    }

    /// All rows but the last `count`, and those.
    pub fn split_last(self, count: usize) -> (Self, Self) {
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

    /// Stores one row.
    #[inline(always)]
    pub fn write(&mut self, row: usize, values: &[f32]) {
        match self {
            Self::Contiguous { data, width } => data.write(row * *width, values),
            Self::Scattered(rows) => rows[row].write(0, values),
        }
    }

    /// Stores zeros in every row.
    pub fn clear(self) {
        match self {
            Self::Contiguous { mut data, .. } => data.clear(),
            Self::Scattered(rows) => rows.into_iter().for_each(|mut row| row.clear()),
        }
    }
}
