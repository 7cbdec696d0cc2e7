//! The definition of attention in f64 and plain loops: every score of a row, then its softmax, then the weighted values.

use std::ops::Range;

use super::AttentionFused;
use crate::op::Rows;
use crate::ops::definition::Definition;
use crate::ops::operands::Layout;
use crate::tensor::HostTensor;

/// Output, and the logarithms of the sums where they are asked for.
pub(super) fn compute(op: &AttentionFused, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
    let problem = Problem::new(op, inputs);
    let Tensor { layout, batch, heads, seq, .. } = problem.q;
    let width = problem.v.width;
    let all_keys = 0..problem.seq_kv;
    let mut shape = inputs[0].shape().to_vec();
    *shape.last_mut().expect("queries have an axis") =
        if let Layout::Merged { heads } | Layout::Joined { heads, .. } = layout { heads * width } else { width };
    let output = rows.compute(&shape, |row, out| match layout {
        Layout::HeadsFirst => problem.attend([row / seq / heads, row / seq % heads, row % seq], all_keys.clone(), out),
        Layout::SeqFirst => problem.attend([row / heads / seq, row % heads, row / heads % seq], all_keys.clone(), out),
        Layout::Merged { heads } | Layout::Joined { heads, .. } => {
            for head in 0..heads {
                let out = &mut out[head * width..(head + 1) * width];
                problem.attend([row / seq, head, row % seq], all_keys.clone(), out);
            }
        }
    });
    if !op.returns_lse {
        return vec![output];
    }
    let all = [batch, heads, seq];
    let leading = match layout {
        Layout::Merged { .. } | Layout::Joined { .. } => 3,
        Layout::HeadsFirst | Layout::SeqFirst => inputs[0].shape().len() - 1,
    };
    let lse = rows.compute(&all[3 - leading..], |row, out| {
        for (i, out) in out.iter_mut().enumerate() {
            let at = [row / heads, row % heads, i];
            *out = problem.log_sum(at, all_keys.clone());
        }
    });
    vec![output, lse]
}

/// Outputs over each share of the keys alone, `[splits, batch, heads, seq_q, head_dim_v]`, and the logarithms of their sums.
pub(in crate::ops) fn shares(
    op: &AttentionFused,
    splits: usize,
    inputs: &[&HostTensor],
    rows: Rows,
) -> Vec<HostTensor> {
    let problem = Problem::new(op, inputs);
    let Tensor { batch, heads, seq, .. } = problem.q;
    // Share and row of all scores.
    let place = |row: usize| {
        let (share, row) = (row / (batch * heads * seq), row % (batch * heads * seq));
        ([row / seq / heads, row / seq % heads, row % seq], problem.rule.share(row, share, splits))
    };
    let output = rows.compute(&[splits, batch, heads, seq, problem.v.width], |row, out| {
        let (at, keys) = place(row);
        problem.attend(at, keys, out);
    });
    let lse = rows.compute(&[splits, batch, heads, seq], |row, out| {
        for (i, out) in out.iter_mut().enumerate() {
            let (at, keys) = place(row * seq + i);
            *out = problem.log_sum(at, keys);
        }
    });
    vec![output, lse]
}

/// What a tensor is read for.
#[derive(Clone, Copy)]
enum Part {
    Query,
    Key,
    Value,
}

/// q, k or v.
struct Tensor {
    data: Vec<f64>,
    layout: Layout,
    part: Part,
    batch: usize,
    heads: usize,
    seq: usize,
    width: usize,
}

struct Problem {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Option<(Vec<f64>, usize)>,
    seq_kv: usize,
    sinks: Option<Vec<f64>>,
    rule: Definition,
    scale: f64,
}

impl Tensor {
    /// Element = level × scale of its row, where there are scales.
    fn new(tensor: &HostTensor, part: Part, layout: Layout, scales: Option<&HostTensor>) -> Self {
        let shape = tensor.shape();
        let axis = |from_the_end: usize| if shape.len() < from_the_end { 1 } else { shape[shape.len() - from_the_end] };
        let mut data = tensor.to_f64();
        let [batch, heads, seq, width] = match layout {
            Layout::HeadsFirst => [axis(4), axis(3), axis(2), axis(1)],
            Layout::SeqFirst => [axis(4), axis(2), axis(3), axis(1)],
            Layout::Merged { heads } => [shape[0], heads, shape[1], shape[2] / heads],
            Layout::Joined { heads, kv_heads } => {
                let own = if let Part::Query = part { heads } else { kv_heads };
                [shape[0], own, shape[1], shape[2] / (heads + 2 * kv_heads)]
            }
        };
        if let Some(scales) = scales {
            let scales = scales.to_f64();
            data.iter_mut().enumerate().for_each(|(at, level)| *level *= scales[at / width]);
        }
        Self { data, layout, part, batch, heads, seq, width }
    }

    fn row(&self, batch: usize, head: usize, position: usize) -> &[f64] {
        let row = match self.layout {
            Layout::HeadsFirst => (batch * self.heads + head) * self.seq + position,
            Layout::SeqFirst | Layout::Merged { .. } => (batch * self.seq + position) * self.heads + head,
            Layout::Joined { heads, kv_heads } => {
                let before = match self.part {
                    Part::Query => 0,
                    Part::Key => heads,
                    Part::Value => heads + kv_heads,
                };
                (batch * self.seq + position) * (heads + 2 * kv_heads) + before + head
            }
        };
        &self.data[row * self.width..(row + 1) * self.width]
    }
}

impl Problem {
    fn new(op: &AttentionFused, inputs: &[&HostTensor]) -> Self {
        let mut rest = inputs[3..].iter();
        let scales =
            if op.operands.has_scales { [rest.next(), rest.next()].map(|scales| scales.copied()) } else { [None; 2] };
        let table = if op.operands.has_pages { rest.next() } else { None };
        let sinks = if op.has_sinks { rest.next() } else { None };
        let kv_layout = if op.operands.has_pages { Layout::SeqFirst } else { op.operands.kv_layout };
        let q = Tensor::new(inputs[0], Part::Query, op.operands.q_layout, None);
        let k = Tensor::new(inputs[1], Part::Key, kv_layout, scales[0]);
        let v = Tensor::new(inputs[2], Part::Value, kv_layout, scales[1]);
        let seq_kv = table.map_or(k.seq, |table| table.shape()[1] * k.seq);
        Self {
            rule: Definition::new(op.rule, &[q.batch, q.heads, q.seq, seq_kv], rest.as_slice()),
            table: table.map(|table| (table.to_f64(), table.shape()[1])),
            sinks: sinks.map(|sinks| sinks.to_f64()),
            scale: f64::from(op.scale),
            q,
            k,
            v,
            seq_kv,
        }
    }

    /// The row of key `j`, in k or v.
    fn key<'a>(&self, of: &'a Tensor, batch: usize, head: usize, j: usize) -> &'a [f64] {
        let kv_head = head * of.heads / self.q.heads;
        match &self.table {
            None => of.row(batch, kv_head, j),
            // Of a page that does not exist the last one takes the place.
            Some((table, per_sequence)) => {
                let page = table[batch * per_sequence + j / of.seq] as usize;
                of.row(page.min(of.batch - 1), kv_head, j % of.seq)
            }
        }
    }

    /// Row of all scores, heads first.
    fn row(&self, [batch, head, i]: [usize; 3]) -> usize {
        (batch * self.q.heads + head) * self.q.seq + i
    }

    /// The batch element of k and v that a query looks at; `None` where there is no query.
    fn sequence_of_keys(&self, at: [usize; 3]) -> Option<usize> {
        self.rule.key_batch(self.row(at))
    }

    /// Over these keys: weights before they are divided by their sum, `None` where a key takes no part; the maximum that was
    /// subtracted; the sum.
    fn softmax(&self, at: [usize; 3], sequence: usize, keys: Range<usize>) -> (Vec<Option<f64>>, f64, f64) {
        let [batch, head, i] = at;
        let query = self.q.row(batch, head, i);
        let row = self.row(at);
        let score = |j: usize| {
            let key = self.key(&self.k, sequence, head, j);
            let product: f64 = query.iter().zip(key).map(|(q, k)| q * k).sum();
            self.rule.apply(row, j, product * self.scale)
        };
        let scores: Vec<f64> = keys.map(score).collect();
        let sink = self.sinks.as_ref().map_or(f64::NEG_INFINITY, |sinks| sinks[head]);
        let maximum = scores.iter().copied().fold(sink, f64::max);
        let weight = |score: f64| (score != f64::NEG_INFINITY).then(|| (score - maximum).exp());
        let weights: Vec<Option<f64>> = scores.iter().copied().map(weight).collect();
        let sum = weights.iter().flatten().sum::<f64>() + weight(sink).unwrap_or(0.0);
        (weights, maximum, sum)
    }

    /// The logarithm of the sum of exponentials over these keys.
    fn log_sum(&self, at: [usize; 3], keys: Range<usize>) -> f64 {
        match self.sequence_of_keys(at).map(|sequence| self.softmax(at, sequence, keys)) {
            Some((_, maximum, sum)) if sum != 0.0 => maximum + sum.ln(),
            _ => f64::NEG_INFINITY,
        }
    }

    fn attend(&self, at: [usize; 3], keys: Range<usize>, out: &mut [f64]) {
        out.fill(0.0);
        let Some(sequence) = self.sequence_of_keys(at) else { return };
        let (weights, _, sum) = self.softmax(at, sequence, keys.clone());
        for (j, weight) in keys.zip(&weights) {
            let Some(weight) = weight else { continue };
            let value = self.key(&self.v, sequence, at[1], j);
            out.iter_mut().zip(value).for_each(|(out, value)| *out += weight / sum * value);
        }
    }
}
