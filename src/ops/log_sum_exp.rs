//! `log_sum_exp`: the natural logarithm of a softmax's denominator, for each row of attention scores.
//!
//! Techniques: `log_sum_exp_row` (one workgroup per row), `log_sum_exp_native`.

use std::sync::Arc;

use crate::capabilities::{Backend, Capabilities};
use crate::case::{Case, CaseInput, Values};
use crate::compare::Tolerance;
use crate::cpu::kernels::args::Elements;
use crate::cpu::kernels::log_sum_exp::log_sum_exp;
use crate::cpu::kernels::softmax::RowSinks;
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::op::{Bindings, Cost, CpuKernel, Launch, Op, Rows, Technique, Update, fold, index};
use crate::ops::definition;
use crate::ops::masks::to_rank_4;
use crate::ops::sequences::{KEYS_ALL, Queries, SEQUENCE, check_ends, check_starts};
use crate::ops::sinks::{check_sinks, rows_of_a_head, sinks};
use crate::ops::{
    EPSILON_F32, EXCLUDED, REDUCE_WORKGROUP, ROW_SUM, SINKS_BINDING, SINKS_DENSE, SINKS_NONE, row_rounds,
};
use crate::shader::{Constant, Shader, Source, params, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc, View, ViewMut};

const ROW: Source = wgsl!("log_sum_exp_row");

/// `ln(Σ exp(x) + exp(sink))` along the last axis of scores `[batch, heads, seq_q, seq_kv]`, f32 `[batch, heads, seq_q]`.
///
/// Scores may have rank 2 to 4; missing leading axes count as 1. −inf for a row without anything to add up, and for a row that
/// is no query, which may have a sink all the same. Its other tensors follow the scores in the order of the fields.
///
/// Packed sequences share a batch of 1, or each has a batch element of its own, where the rows of the others are no queries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogSumExp {
    /// There are sinks, f32 `[heads]`: one more score for every row of a head.
    pub has_sinks: bool,
    /// There is a u32 tensor `[batch]`: rows at or past it are no queries.
    pub has_q_lengths: bool,
    /// There is a u32 tensor `[sequences + 1]`: rows before the first and behind the last of them are no queries.
    pub has_q_starts: bool,
}

/// Tensors of [`Graph::log_sum_exp`]; see [`LogSumExp`].
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LogSumExpRows {
    /// f32 `[heads]`.
    pub sinks: Option<Tensor>,
    /// u32 `[batch]`.
    pub q_lengths: Option<Tensor>,
    /// u32 `[sequences + 1]`.
    pub q_starts: Option<Tensor>,
}

impl Graph {
    /// Adds [`LogSumExp`]: scores `[.., seq_q, seq_kv]` into f32 `[.., seq_q]`.
    ///
    /// # Errors
    /// Scores that are neither f32 nor f16 or of another rank than 2 to 4; tensors that do not fit them.
    pub fn log_sum_exp(&mut self, scores: Tensor, rows: &LogSumExpRows) -> Result<Tensor> {
        let LogSumExpRows { sinks, q_lengths, q_starts } = *rows;
        let op = LogSumExp {
            has_sinks: sinks.is_some(),
            has_q_lengths: q_lengths.is_some(),
            has_q_starts: q_starts.is_some(),
        };
        let inputs: Vec<Tensor> = [Some(scores), sinks, q_lengths, q_starts].into_iter().flatten().collect();
        Ok(self.add(op, &inputs)?[0])
    }
}

params! {
    struct LogSumExpParams { rows: u32, heads: u32, seq_q: u32, seq_kv: u32, sequences: u32, own_batch: u32, excluded: f32 }
}

impl Op for LogSumExp {
    fn name(&self) -> &'static str {
        "log_sum_exp"
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let fail = |message: String| Err(Error::shape("log_sum_exp", message));
        let expected = 1 + self.has().into_iter().filter(|&has| has).count();
        if inputs.len() != expected {
            return fail(format!("takes {expected} tensors with these options, got {}", inputs.len()));
        }
        let scores = &inputs[0];
        if !(2..=4).contains(&scores.rank()) || !scores.dtype.is_device_float() {
            return fail(format!("scores are f32 or f16 of rank 2 to 4, got {scores}"));
        }
        let (sinks, queries) = self.split(inputs);
        if let Some(sinks) = sinks {
            check_sinks("log_sum_exp", sinks, scores)?;
        }
        queries.sequences("log_sum_exp", queries.batch(to_rank_4(&scores.shape)[0]))?;
        Ok(vec![TensorDesc::new(Dtype::F32, &scores.shape[..scores.rank() - 1])])
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        let [batch, heads, seq_q, seq_kv] = to_rank_4(inputs[0].shape());
        let scores = inputs[0].to_f64();
        let (sinks, queries) = self.split(inputs);
        let sinks = sinks.map(|sinks| sinks.to_f64());
        let queries = definition::Rows::new(seq_q, queries.lengths.copied(), queries.starts.copied());
        let result = rows.compute(&inputs[0].shape()[..inputs[0].shape().len() - 1], |block, out| {
            for (row, out) in out.iter_mut().enumerate() {
                let sink = sinks.as_ref().map_or(f64::NEG_INFINITY, |sinks| sinks[block % heads]);
                let scores = &scores[(block * seq_q + row) * seq_kv..][..seq_kv];
                let maximum = scores.iter().copied().fold(sink, f64::max);
                let terms = scores.iter().chain([&sink]).filter(|&&score| score != f64::NEG_INFINITY);
                let sum: f64 = terms.map(|score| (score - maximum).exp()).sum();
                let query = queries.query(block / heads, row);
                let exists = query.is_some_and(|query| batch == 1 || query.sequence == block / heads);
                *out = if exists && sum != 0.0 { maximum + sum.ln() } else { f64::NEG_INFINITY };
            }
        });
        vec![result]
    }

    /// Four operations for each element: maximum, difference with exponential, sum.
    fn cost(&self, inputs: &[TensorDesc]) -> Cost {
        let outputs = self.outputs(inputs).unwrap_or_default();
        Cost::once(4 * inputs[0].len() as u64, inputs, &outputs)
    }

    fn updates(&self) -> &'static [Update] {
        &[]
    }

    fn check(&self, inputs: &[TensorDesc], data: &[Option<&HostTensor>]) -> Result<()> {
        let seq_q = to_rank_4(&inputs[0].shape)[2];
        let (_, Queries { lengths, starts }) = self.split(data);
        check_ends("log_sum_exp", "q_lengths", lengths.copied().flatten(), ("seq_q", seq_q))?;
        check_starts("log_sum_exp", "q_starts", starts.copied().flatten(), ("seq_q", seq_q))
    }

    fn techniques(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Vec<Technique> {
        match capabilities.backend {
            Backend::Cpu => vec![self.native(&inputs[0])],
            Backend::Gpu => self.row(inputs, capabilities).map(Technique::Gpu).into_iter().collect(),
        }
    }
}

impl LogSumExp {
    fn has(&self) -> [bool; 3] {
        [self.has_sinks, self.has_q_lengths, self.has_q_starts]
    }

    /// Which is which among all inputs.
    fn split<'a, T>(&self, inputs: &'a [T]) -> (Option<&'a T>, Queries<&'a T>) {
        let mut rest = inputs[1..].iter();
        let [sinks, lengths, starts] = self.has().map(|has| if has { rest.next() } else { None });
        (sinks, Queries { lengths, starts })
    }

    fn native(&self, scores: &TensorDesc) -> Technique {
        let op = *self;
        let [heads, rows] = rows_of_a_head(scores);
        let [batch, ..] = to_rank_4(&scores.shape);
        let row_length = scores.row_length();
        let run = move |inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]| {
            let (sinks, queries) = op.split(inputs);
            let sinks = sinks.map(|sinks| RowSinks { data: bytemuck::cast_slice(sinks.bytes), rows });
            let out: &mut [f32] = bytemuck::cast_slice_mut(outputs[0].bytes);
            log_sum_exp(Elements::of(&inputs[0]), row_length, sinks, out);
            let queries = queries.map(|view| bytemuck::cast_slice::<u8, u32>(view.bytes));
            for (head, out) in out.chunks_mut(rows.max(1)).enumerate() {
                let existing = match batch {
                    1 => queries.rows(0, rows),
                    _ => queries.own_rows(head / heads, rows),
                };
                out[..existing.start].fill(f32::NEG_INFINITY);
                out[existing.end..].fill(f32::NEG_INFINITY);
            }
        };
        Technique::Cpu(CpuKernel { name: "log_sum_exp_native", run: Arc::new(run) })
    }

    fn row(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Option<Launch> {
        let scores = &inputs[0];
        if (scores.dtype == Dtype::F16 && !capabilities.f16) || !capabilities.completes(row_rounds(scores.row_length()))
        {
            return None;
        }
        let mut bindings = Bindings::in_order(1, 1);
        bindings.inputs.extend(self.has_sinks.then_some(SINKS_BINDING));
        let (_, queries) = self.split(inputs);
        let lanes = if scores.row_length() <= 256 { 64 } else { 256 };
        let sinks = if self.has_sinks { SINKS_DENSE } else { SINKS_NONE };
        let shader = Shader {
            main: ROW,
            libraries: vec![
                EXCLUDED,
                REDUCE_WORKGROUP,
                sinks,
                ROW_SUM,
                SEQUENCE,
                queries.link(&mut bindings),
                KEYS_ALL,
            ],
            constants: vec![("LANES", Constant::U32(lanes)), ("Elem", Constant::Scalar(scores.dtype))],
        };
        let [batch, heads, seq_q, seq_kv] = to_rank_4(&scores.shape);
        let params = LogSumExpParams {
            rows: index(scores.rows()),
            heads: index(heads),
            seq_q: index(seq_q),
            seq_kv: index(seq_kv),
            sequences: index(queries.sequences("log_sum_exp", queries.batch(batch)).ok()?),
            own_batch: u32::from(batch > 1),
            excluded: f32::NEG_INFINITY,
        };
        Some(Launch { shader, params: params.into(), workgroups: fold(scores.rows(), capabilities), bindings })
    }
}

/// Row lengths around the lanes, large scores, rows of −inf, no keys, rows that are no queries; each with sinks and without.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [Dtype::F32, Dtype::F16] {
        for shape in [[2, 3, 4, 1], [1, 2, 3, 64], [2, 1, 3, 257], [1, 2, 3, 1021], [2, 3, 2, 0], [1, 2, 0, 5]] {
            cases.extend(case(dtype, &shape, Values::Normal(3.0), None));
        }
        cases.extend(case(dtype, &[2, 5, 40], Values::Bias { excluded: 0.9 }, None));
        cases.extend(case(dtype, &[1, 2, 3, 100], Values::Bias { excluded: 1.0 }, None));
        let rows = |name, starts: &[u32]| Some((name, HostTensor::u32(&[starts.len()], starts.to_vec()).expect("all")));
        cases.extend(case(dtype, &[3, 2, 5, 9], Values::Normal(1.0), rows("q_lengths", &[0, 3, 99])));
        cases.extend(case(dtype, &[1, 2, 9, 7], Values::Normal(1.0), rows("q_starts", &[1, 4, 4, 8])));
        cases.extend(case(dtype, &[1, 2, 9, 7], Values::Normal(1.0), rows("q_starts that decrease", &[2, 5, 1, 77])));
        cases.extend(case(dtype, &[1, 2, 9, 7], Values::Normal(1.0), rows("q_starts of nothing", &[4])));
        cases.extend(case(dtype, &[3, 2, 9, 7], Values::Normal(1.0), rows("q_starts of each batch", &[1, 4, 4, 8])));
        let decrease = rows("q_starts of each batch that decrease", &[2, 5, 1, 77]);
        cases.extend(case(dtype, &[3, 2, 9, 7], Values::Normal(1.0), decrease));
    }
    for deviation in [1e-3, 30.0, 1e4] {
        cases.extend(case(Dtype::F32, &[40, 33], Values::Normal(deviation), None));
        cases.extend(case(Dtype::F16, &[2, 3, 4, 300], Values::Normal(deviation), None));
    }
    cases
}

/// Without sinks, and with them where the scores have heads.
fn case(dtype: Dtype, shape: &[usize], values: Values, rows: Option<(&str, HostTensor)>) -> Vec<Case> {
    let largest = match values {
        Values::Normal(deviation) => 5.0 * f64::from(deviation),
        _ => 5.0,
    };
    // Differences to the maximum are rounded; exp, its sum and the logarithm take a few roundings; the result is rounded.
    let absolute = (2.0 * largest + 16.0) * EPSILON_F32;
    let tolerance = Tolerance { of_scale: 0.0, relative: 2.0 * EPSILON_F32, absolute };
    let scores = CaseInput { desc: TensorDesc::new(dtype, shape), values };
    let name = format!("{dtype} {shape:?} {:?} {}", scores.values, rows.as_ref().map_or("", |(name, _)| name));
    let has_q_lengths = rows.as_ref().is_some_and(|(name, _)| *name == "q_lengths");
    let plain = LogSumExp { has_sinks: false, has_q_lengths, has_q_starts: rows.is_some() && !has_q_lengths };
    let rows = rows.map(|(_, tensor)| CaseInput { desc: tensor.desc().clone(), values: Values::Given(tensor) });
    let [heads, _] = rows_of_a_head(&scores.desc);
    let of = |op: LogSumExp, name: String| {
        let sinks = op.has_sinks.then(|| sinks(heads));
        let inputs = [Some(scores.clone()), sinks, rows.clone()].into_iter().flatten().collect();
        Case::new(name, op, inputs, tolerance)
    };
    let mut cases = vec![of(plain, name.clone())];
    if shape.len() > 2 {
        cases.push(of(LogSumExp { has_sinks: true, ..plain }, name + " with sinks"));
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(op: LogSumExp, shape: &[usize], scores: &[f32], others: &[&HostTensor]) -> Vec<f64> {
        let scores = HostTensor::f32(shape, scores.to_vec()).unwrap();
        let inputs: Vec<&HostTensor> = [&scores].into_iter().chain(others.iter().copied()).collect();
        op.reference(&inputs, Rows::All)[0].as_f64().unwrap().to_vec()
    }

    #[test]
    fn reference_by_hand() {
        let plain = LogSumExp::default();
        let got = reference(plain, &[2, 2], &[1e4, 1e4, f32::NEG_INFINITY, f32::NEG_INFINITY], &[]);
        assert_eq!(got, [1e4 + 2.0_f64.ln(), f64::NEG_INFINITY]);
        let sinks = HostTensor::f32(&[2], vec![3.0_f32.ln(), f32::NEG_INFINITY]).unwrap();
        let with_sinks = LogSumExp { has_sinks: true, ..plain };
        let got = reference(with_sinks, &[2, 1, 1], &[0.0, 0.0], &[&sinks]);
        assert!((got[0] - 4.0_f64.ln()).abs() < 1e-7);
        assert_eq!(got[1], 0.0);
    }

    #[test]
    fn a_row_that_sees_nothing_is_the_sink_and_one_that_is_no_query_nothing() {
        let sinks = HostTensor::f32(&[1], vec![2.0]).unwrap();
        let lengths = HostTensor::u32(&[1], vec![1]).unwrap();
        let op = LogSumExp { has_sinks: true, has_q_lengths: true, ..LogSumExp::default() };
        let got = reference(op, &[1, 2, 1], &[f32::NEG_INFINITY; 2], &[&sinks, &lengths]);
        assert_eq!(got, [2.0, f64::NEG_INFINITY]);
    }
}
