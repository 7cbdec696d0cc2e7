//! What happens to a score, as its definition says it: for references, without a thought for speed.

use std::ops::Range;

use crate::mask::{Causal, Fill};
use crate::ops::ScoreRule;
use crate::tensor::HostTensor;

/// A rule with its tensors. Rows count (batch, head, query) together, keys as they lie in one batch element.
pub(super) struct Definition {
    rule: ScoreRule,
    batch: usize,
    heads: usize,
    seq_q: usize,
    seq_kv: usize,
    mask: Option<(Vec<f64>, Vec<usize>)>,
    bias: Option<(Vec<f64>, Vec<usize>)>,
    lengths: Option<Vec<usize>>,
    slopes: Option<Vec<f64>>,
    rows: Rows,
    kv_starts: Option<Vec<usize>>,
}

/// Which rows are queries, and of what.
pub(super) struct Rows {
    seq_q: usize,
    lengths: Option<Vec<usize>>,
    starts: Option<Vec<usize>>,
}

/// A query among those of its sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Query {
    /// Batch element, or which one of the packed sequences.
    pub sequence: usize,
    /// Its number in the sequence.
    pub at: usize,
    /// How many queries the sequence has.
    pub queries: usize,
}

fn sizes(tensor: &HostTensor) -> Vec<usize> {
    tensor.to_f64().iter().map(|&size| size as usize).collect()
}

impl Rows {
    /// Of so many rows for each batch element, by u32 lengths or starts.
    pub fn new(seq_q: usize, lengths: Option<&HostTensor>, starts: Option<&HostTensor>) -> Self {
        Self { seq_q, lengths: lengths.map(sizes), starts: starts.map(sizes) }
    }

    /// The query in a row of a batch element, where there is one.
    pub fn query(&self, batch: usize, row: usize) -> Option<Query> {
        let Some(starts) = &self.starts else {
            let queries = self.lengths.as_ref().map_or(self.seq_q, |lengths| lengths[batch].min(self.seq_q));
            return (row < queries).then_some(Query { sequence: batch, at: row, queries });
        };
        // The first start behind the row ends its sequence. Where starts do not decrease there is only one choice.
        let end = starts.iter().position(|&start| start > row)?;
        let sequence = end.checked_sub(1)?;
        let begin = starts[sequence];
        Some(Query { sequence, at: row - begin, queries: starts[end].min(self.seq_q) - begin })
    }
}

impl Definition {
    /// For scores of this shape; `tensors` are those that follow the op's own.
    pub fn new(rule: ScoreRule, shape: &[usize], tensors: &[&HostTensor]) -> Self {
        let axis = |from_the_end: usize| if shape.len() < from_the_end { 1 } else { shape[shape.len() - from_the_end] };
        let mut tensors = tensors.iter().copied();
        let mut next = |has: bool| if has { tensors.next() } else { None };
        let dense = |tensor: &HostTensor| {
            let ones = std::iter::repeat_n(1, 4 - tensor.shape().len());
            (tensor.to_f64(), ones.chain(tensor.shape().iter().copied()).collect())
        };
        Self {
            rule,
            batch: axis(4),
            heads: axis(3),
            seq_q: axis(2),
            seq_kv: axis(1),
            mask: next(rule.has_mask).map(dense),
            bias: next(rule.has_bias).map(dense),
            lengths: next(rule.has_lengths).map(sizes),
            slopes: next(rule.has_slopes).map(HostTensor::to_f64),
            rows: Rows::new(axis(2), next(rule.has_q_lengths), next(rule.has_q_starts)),
            kv_starts: next(rule.has_kv_starts).map(sizes),
        }
    }

    /// The query in a row, where there is one.
    pub fn query(&self, row: usize) -> Option<Query> {
        self.rows.query(row / self.seq_q / self.heads, row % self.seq_q)
    }

    /// The batch element of the keys that a row's query looks at.
    pub fn key_batch(&self, row: usize) -> Option<usize> {
        self.query(row).map(|query| if self.rule.has_kv_starts { 0 } else { query.sequence })
    }

    /// Share number `share` of `splits` of the keys that a row's query has, as they lie in one batch element.
    pub fn share(&self, row: usize, share: usize, splits: usize) -> Range<usize> {
        let Some(query) = self.query(row) else { return 0..0 };
        let (first_key, keys) = self.keys(query.sequence);
        let each = keys.div_ceil(splits).next_multiple_of(64);
        let end = |share: usize| first_key + keys.min(share * each);
        end(share)..end(share + 1)
    }

    /// What becomes of a scaled score.
    pub fn apply(&self, row: usize, key: usize, score: f64) -> f64 {
        let Some(query) = self.query(row) else { return f64::NEG_INFINITY };
        // Of packed queries only, scores may have a batch element for each sequence.
        if self.batch > 1 && query.sequence != row / self.seq_q / self.heads {
            return f64::NEG_INFINITY;
        }
        let (first_key, keys) = self.keys(query.sequence);
        if !(first_key..first_key + keys).contains(&key) {
            return f64::NEG_INFINITY;
        }
        let head = row / self.seq_q % self.heads;
        // What a mask that ends before the keys says of the others.
        let element = |(data, shape): &(Vec<f64>, Vec<usize>), beyond: f64| {
            if shape[3] != 1 && key >= shape[3] {
                return beyond;
            }
            let at = [row / self.seq_q / self.heads, head, row % self.seq_q, key];
            data[(0..4).fold(0, |index, axis| index * shape[axis] + if shape[axis] == 1 { 0 } else { at[axis] })]
        };
        let masked_out = self.mask.as_ref().is_some_and(|mask| element(mask, 0.0) == 0.0);
        let distance = (key - first_key) as i64 - self.position(query, keys);
        if masked_out || !self.sees(distance) {
            return match self.rule.masking.fill {
                Fill::Exclude => f64::NEG_INFINITY,
                Fill::Assign(value) => f64::from(value),
            };
        }
        let capped = self.rule.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh());
        let slope = self.slopes.as_ref().map_or(0.0, |slopes| {
            let each_sequence = if slopes.len() == self.heads { 0 } else { query.sequence };
            slopes[each_sequence * self.heads + head]
        });
        match self.bias.as_ref().map_or(0.0, |bias| element(bias, f64::NEG_INFINITY)) {
            // Masked out, whatever the score: it may be NaN.
            f64::NEG_INFINITY => f64::NEG_INFINITY,
            bias => capped - slope * distance.abs() as f64 + bias,
        }
    }

    /// Where a sequence's keys begin, and how many it has.
    fn keys(&self, sequence: usize) -> (usize, usize) {
        match (&self.kv_starts, &self.lengths) {
            (Some(starts), _) => {
                let [begin, end] = [starts[sequence], starts[sequence + 1]].map(|start| start.min(self.seq_kv));
                (begin, end.saturating_sub(begin))
            }
            (None, Some(lengths)) => (0, lengths[sequence].min(self.seq_kv)),
            (None, None) => (0, self.seq_kv),
        }
    }

    /// Which of its sequence's keys stands where a query does; it may lie before the first of them, or behind the last.
    fn position(&self, query: Query, keys: usize) -> i64 {
        let masking = self.rule.masking;
        match masking.causal.or(masking.window.and_then(|window| window.align)) {
            Some(Causal::TopLeft) => query.at as i64,
            Some(Causal::Past(past)) => query.at as i64 + i64::from(past),
            Some(Causal::BottomRight) | None => query.at as i64 + keys as i64 - query.queries as i64,
        }
    }

    /// Whether a key may be looked at from so far.
    fn sees(&self, distance: i64) -> bool {
        let window = self.rule.masking.window.unwrap_or_default();
        let causal = self.rule.masking.causal.is_none() || distance <= 0;
        causal && window.left.is_none_or(|left| distance >= -left) && window.right.is_none_or(|right| distance <= right)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mask::{Masking, Window};

    const NONE: f64 = f64::NEG_INFINITY;

    fn u32s(data: &[u32]) -> HostTensor {
        HostTensor::u32(&[data.len()], data.to_vec()).unwrap()
    }

    /// What becomes of scores of zero.
    fn zeros<const KEYS: usize>(rule: ScoreRule, shape: [usize; 4], tensors: &[&HostTensor]) -> Vec<[f64; KEYS]> {
        let definition = Definition::new(rule, &shape, tensors);
        let rows = shape[0] * shape[1] * shape[2];
        (0..rows).map(|row| std::array::from_fn(|key| definition.apply(row, key, 0.0))).collect()
    }

    fn causal(causal: Causal) -> Masking {
        Masking { causal: Some(causal), ..Masking::default() }
    }

    #[test]
    fn slopes_count_from_the_position() {
        let slopes = HostTensor::f32(&[2], vec![1.0, 0.5]).unwrap();
        let rule = ScoreRule { has_slopes: true, ..ScoreRule::default() };
        // Two queries at the last two of three keys.
        let got = zeros::<3>(rule, [1, 2, 2, 3], &[&slopes]);
        assert_eq!(got, [[-1.0, 0.0, -1.0], [-2.0, -1.0, 0.0], [-0.5, 0.0, -0.5], [-1.0, -0.5, 0.0]]);
        let rule = ScoreRule { masking: causal(Causal::TopLeft), ..rule };
        assert_eq!(zeros::<3>(rule, [1, 2, 2, 3], &[&slopes])[..2], [[0.0, NONE, NONE], [-1.0, 0.0, NONE]]);
        let window = Window { align: Some(Causal::Past(2)), ..Window::default() };
        let rule = ScoreRule { masking: Masking { window: Some(window), ..Masking::default() }, ..rule };
        assert_eq!(zeros::<3>(rule, [1, 2, 2, 3], &[&slopes])[..2], [[-2.0, -1.0, 0.0], [-3.0, -2.0, -1.0]]);
    }

    #[test]
    fn slopes_of_each_sequence() {
        let slopes = HostTensor::f32(&[2, 1], vec![1.0, 10.0]).unwrap();
        let rule = ScoreRule { has_slopes: true, ..ScoreRule::default() };
        assert_eq!(zeros::<2>(rule, [2, 1, 1, 2], &[&slopes]), [[-1.0, 0.0], [-10.0, 0.0]]);
    }

    #[test]
    fn rows_beyond_the_query_length_see_nothing_whatever_the_fill() {
        let masking = Masking { fill: Fill::Assign(-7.0), ..causal(Causal::BottomRight) };
        let rule = ScoreRule { masking, has_lengths: true, has_q_lengths: true, ..ScoreRule::default() };
        let got = zeros::<4>(rule, [1, 1, 3, 4], &[&u32s(&[3]), &u32s(&[2])]);
        assert_eq!(got, [[0.0, 0.0, -7.0, NONE], [0.0, 0.0, 0.0, NONE], [NONE; 4]]);
    }

    #[test]
    fn packed_sequences_see_themselves_only() {
        let rule = ScoreRule { masking: causal(Causal::BottomRight), ..ScoreRule::default() };
        let rule = ScoreRule { has_q_starts: true, has_kv_starts: true, ..rule };
        // Sequences of 2 queries and 3 keys, of none, and of 1 and 1; a row before them and one behind.
        let got = zeros::<5>(rule, [1, 1, 5, 5], &[&u32s(&[1, 3, 3, 4]), &u32s(&[0, 3, 4, 5])]);
        let wanted =
            [[NONE; 5], [0.0, 0.0, NONE, NONE, NONE], [0.0, 0.0, 0.0, NONE, NONE], [NONE, NONE, NONE, NONE, 0.0]];
        assert_eq!(got[..4], wanted);
        assert_eq!(got[4], [NONE; 5]);
    }

    #[test]
    fn shares_are_of_the_keys_that_exist() {
        let rule = ScoreRule { has_lengths: true, ..ScoreRule::default() };
        let definition = Definition::new(rule, &[3, 1, 1, 999], &[&u32s(&[130, 64, 999])]);
        let shares = |row| [0, 1, 2].map(|share| definition.share(row, share, 3));
        assert_eq!(shares(0), [0..64, 64..128, 128..130]);
        assert_eq!(shares(1), [0..64, 64..64, 64..64]);
        assert_eq!(shares(2), [0..384, 384..768, 768..999]);
        let rule = ScoreRule { has_q_starts: true, has_kv_starts: true, ..ScoreRule::default() };
        let definition = Definition::new(rule, &[1, 1, 2, 200], &[&u32s(&[0, 1]), &u32s(&[10, 110])]);
        assert_eq!([0, 1].map(|row| definition.share(row, 1, 2)), [74..110, 0..0]);
    }

    #[test]
    fn starts_that_decrease_or_overrun() {
        let rows = Rows::new(9, None, Some(&u32s(&[0, 4, 2, 6, 99])));
        let query = |sequence, at, queries| Some(Query { sequence, at, queries });
        assert_eq!(
            [rows.query(0, 3), rows.query(0, 4), rows.query(0, 8)],
            [query(0, 3, 4), query(2, 2, 4), query(3, 2, 3)]
        );
        assert_eq!(Rows::new(9, None, Some(&u32s(&[3]))).query(0, 5), None);
    }

    #[test]
    fn packed_queries_over_batched_keys() {
        let rule = ScoreRule { has_lengths: true, has_q_starts: true, ..ScoreRule::default() };
        let definition = Definition::new(rule, &[1, 2, 3, 4], &[&u32s(&[4, 1]), &u32s(&[0, 1, 3])]);
        assert_eq!([0, 1, 2, 3, 5].map(|row| definition.key_batch(row)), [0, 1, 1, 0, 1].map(Some));
        assert_eq!(
            [definition.apply(0, 3, 1.0), definition.apply(1, 0, 1.0), definition.apply(1, 1, 1.0)],
            [1.0, 1.0, NONE]
        );
    }
}
