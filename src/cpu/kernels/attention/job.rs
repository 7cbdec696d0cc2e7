//! A job: a block of query rows of one key head over a range of keys, and where its result goes.

use super::pack::{Place, Rows};
use super::results::Results;
use crate::cpu::kernels::args::{AttentionArgs, ElementsMut, Operand};
use crate::cpu::kernels::mask;
use crate::cpu::kernels::sequence::Sequence;
use crate::mask::Fill;
use std::ops::Range;

/// The rows `first_row..first_row + rows` of the group of query heads that read `kv_head`, in (head, query) order.
pub struct Job<'a, 'o> {
    pub args: &'a AttentionArgs<'a>,
    pub sequence: &'a Sequence,
    pub kv_head: usize,
    pub first_row: usize,
    pub rows: usize,
    /// Those to visit, all of which exist.
    pub keys: Range<usize>,
    pub destination: Destination<'a, 'o>,
}

impl Job<'_, '_> {
    /// Query head and query of row `row` of the job.
    #[inline(always)]
    pub fn head_and_query(&self, row: usize) -> (usize, usize) {
        let (shape, queries) = (self.args.shape, &self.sequence.queries);
        let row = self.first_row + row;
        let head = self.kv_head * (shape.heads / shape.kv_heads) + row / queries.len();
        (head, queries.start + row % queries.len())
    }

    /// The query at `query` of `head`, without the scale; `row_f32` takes it where it is not stored as f32.
    #[inline(always)]
    pub fn query<'r>(&'r self, head: usize, query: usize, row_f32: &'r mut [f32]) -> &'r [f32] {
        let [per_batch, per_head, stride] = self.args.q.strides;
        let Sequence { q_batch, q_row, .. } = self.sequence;
        let offset = q_batch * per_batch + head * per_head + (q_row + query) * stride;
        let width = self.args.shape.head_dim;
        Rows { data: self.args.q.data, place: Place::Strided { offset, stride }, width }.get(0, row_f32)
    }

    /// Keys that the band does not hide from `query`.
    #[inline(always)]
    pub fn visible(&self, query: usize) -> Range<usize> {
        self.sequence.visible(query)
    }

    /// Bias of row `row` of the job, or that it is masked, for the keys from `first_key` on.
    #[inline(always)]
    pub fn read_bias(&self, row: usize, first_key: usize, out: &mut [f32]) {
        let (head, query) = self.head_and_query(row);
        mask::read_row(&self.args.masking, self.sequence, [head, query], first_key, out);
    }

    /// Whether the boolean mask hides `keys` from all of `rows`, so that there is nothing to visit.
    #[inline(always)]
    pub fn masks_all(&self, rows: Range<usize>, keys: Range<usize>) -> bool {
        match (&self.args.masking.bool_mask, self.args.masking.fill) {
            (Some(mask), Fill::Exclude) => {
                let queries = rows.map(|row| self.head_and_query(row).into());
                mask::hides_all(mask, self.sequence, queries, keys)
            }
            _ => false,
        }
    }

    /// Slope of a head, and where a query stands among the keys.
    #[inline(always)]
    pub fn slope(&self, head: usize, query: usize) -> Option<(f32, i64)> {
        let slopes = self.args.masking.slopes.as_ref()?;
        Some((mask::slope(slopes, self.sequence, head), query as i64 + self.sequence.position))
    }

    /// Rows of this job's key head, which are `width` wide, from `first_key` on.
    #[inline(always)]
    pub fn rows_of<'a>(&self, operand: &Operand<'a>, width: usize, first_key: usize) -> Rows<'a> {
        let [per_batch, per_head, stride] = operand.strides;
        let Sequence { kv_batch, kv_row, .. } = self.sequence;
        let (head, first) = (self.kv_head * per_head, kv_row + first_key);
        let place = match operand.pages {
            None => Place::Strided { offset: kv_batch * per_batch + head + first * stride, stride },
            Some(pages) => Place::Paged { pages, batch: *kv_batch, first, page: per_batch, head, stride },
        };
        Rows { data: operand.data, place, width }
    }

    /// Takes note of a row whose weights relative to `max` add up to `sum`. Returns the factor on its weighted values.
    #[inline(always)]
    pub fn finish(&mut self, row: usize, max: f32, sum: f32) -> f32 {
        let sink = match self.args.sinks {
            None => f32::NEG_INFINITY,
            Some(sinks) => sinks[self.head_and_query(row).0],
        };
        let width = 2 + self.args.shape.head_dim_v;
        match &mut self.destination {
            Destination::Results(results) => results.finish(row, Normal::new(max, sum, sink)),
            Destination::Partial(data) => {
                data[row * width..][..2].copy_from_slice(&[max, sum]);
                1.0
            }
        }
    }

    /// Where the weighted values of a row go, times the factor.
    #[inline(always)]
    pub fn output(&mut self, row: usize) -> ElementsMut<'_> {
        let width = 2 + self.args.shape.head_dim_v;
        match &mut self.destination {
            Destination::Results(results) => results.rows.row(row),
            Destination::Partial(data) => ElementsMut::F32(&mut data[row * width..][2..width]),
        }
    }
}

/// Where the rows of a job go.
pub enum Destination<'a, 'o> {
    /// Divided by the sum of weights, into the output.
    Results(Results<'a, 'o>),
    /// `[rows, 2 + head_dim_v]`: maximum, sum of weights and undivided output, for [`combine`].
    Partial(&'a mut [f32]),
}

/// What makes a softmax of weights.
pub struct Normal {
    /// On the weights.
    pub factor: f32,
    /// Logarithm of the sum of the exponentials of all scores.
    pub log_sum: f32,
}

impl Normal {
    /// For weights relative to `max` that add up to `sum`, and one score more. A row that saw no key has a zero sum.
    #[inline(always)]
    pub fn new(max: f32, sum: f32, sink: f32) -> Self {
        // Keeps a NaN maximum from mattering that nothing was added to.
        let max = if sum == 0.0 { f32::NEG_INFINITY } else { max };
        let base = max.max(sink);
        if sum == 0.0 && base == f32::NEG_INFINITY {
            return Self { factor: 0.0, log_sum: base };
        }
        let kept = if base == max { 1.0 } else { (max - base).exp() };
        let total = sum * kept + (sink - base).exp();
        Self { factor: kept / total, log_sum: base + total.ln() }
    }
}

/// Joins the parts of one row that [`Destination::Partial`] stored into the finished row.
pub fn combine<'a>(parts: impl Iterator<Item = &'a [f32]> + Clone, sink: f32, out: &mut [f32]) -> Normal {
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
    let normal = Normal::new(max, sum, sink);
    for x in out {
        *x *= normal.factor;
    }
    normal
}
