//! The unfused path: matmul, mask_scores, softmax, matmul, and what they need around them.
//!
//! Packed queries over batched keys have one matrix of scores for each batch element of the keys: those of all queries, of which
//! its sequence keeps its own. That is as many times the work as there are sequences, for how long they are is known on the
//! device only.

use super::Attention;
use crate::error::Result;
use crate::graph::{Graph, Tensor};
use crate::ops::{LogSumExpRows, MatMul, ReducedAxes, Reduction, ScoreMasks, Sizes, Zeros, check_sinks};
use crate::tensor::{Dtype, TensorDesc};

/// The steps of [`Strategy::Unfused`](super::Strategy::Unfused).
pub(super) struct Unfused {
    pub raw: Tensor,
    pub capped: Tensor,
    pub scores: Tensor,
    pub weights: Tensor,
    pub output: Tensor,
}

impl Graph {
    pub(super) fn unfused(&mut self, [q, k, v]: [Tensor; 3], options: &Attention) -> Result<Unfused> {
        let sizes = self.sizes([q, k, v], options)?;
        let alpha = options.scale(&sizes)?;
        self.check_unfused(&sizes, options)?;
        let [rows, keys, values] = self.plain_operands([q, k, v], options, &sizes)?;
        let dtype = self.desc(rows)?.dtype;
        // The query heads of one key head are more rows of one product.
        let Sizes { batch, heads, kv_batch, kv_heads, seq_q, seq_kv, head_dim, .. } = sizes;
        let group = heads.checked_div(kv_heads).unwrap_or(0);
        let rows = self.reshape(rows, &[batch, kv_heads, group * seq_q, head_dim])?;
        let product = MatMul { alpha, transpose_b: true, output: Some(Dtype::F32), ..MatMul::default() };
        let scores = self.matmul(rows, keys, None, product)?;
        let raw = self.reshape(scores, &[kv_batch, heads, seq_q, seq_kv])?;
        let masks = options.masks();
        let capped = match masks.softcap {
            None => raw,
            softcap => self.mask_scores(raw, &ScoreMasks { softcap, ..ScoreMasks::default() })?,
        };
        let uncapped = ScoreMasks { softcap: None, ..masks };
        let masked = uncapped.rule().0.changes(seq_q, seq_kv);
        let scores = if masked { self.mask_scores(capped, &uncapped)? } else { capped };
        let weights = match options.sinks {
            None => self.softmax(scores, 1.0)?,
            Some(sinks) => self.softmax_with_sinks(scores, 1.0, sinks)?,
        };
        let zeros = if masked { Zeros::Annihilate } else { Zeros::Multiply };
        let rows = self.reshape(weights, &[kv_batch, kv_heads, group * seq_q, seq_kv])?;
        let weighted = MatMul { zeros, output: Some(dtype), ..MatMul::default() };
        let output = self.matmul(rows, values, None, weighted)?;
        // All but one of a row's batch elements are zeros.
        let output = self.of_own_sequence(output, Reduction::Sum, options)?;
        let output = self.stored_output(output, q, options, &sizes)?;
        Ok(Unfused { raw, capped, scores, weights, output })
    }

    /// What rows have in the one batch element of their sequence, where packed queries look at batched keys.
    fn of_own_sequence(&mut self, rows: Tensor, others: Reduction, options: &Attention) -> Result<Tensor> {
        match options.masks().rule().0.reads_batched_keys() {
            true => self.reduce(rows, others, &[0], ReducedAxes::Kept),
            false => Ok(rows),
        }
    }

    /// Refuses in attention's name what its ops would refuse in their own.
    fn check_unfused(&self, sizes: &Sizes, options: &Attention) -> Result<()> {
        let (rule, tensors) = options.masks().rule();
        let descs = tensors.map(|tensor| self.desc(tensor).cloned()).collect::<Result<Vec<_>>>()?;
        rule.check_fit("attention", sizes.scores(), sizes.kv_batch, &descs)?;
        match options.sinks {
            Some(sinks) => check_sinks("attention", self.desc(sinks)?, &TensorDesc::new(Dtype::F32, sizes.scores())),
            None => Ok(()),
        }
    }

    /// The logarithm of the denominators, in the shape of the rows of `q`, heads first.
    pub(super) fn unfused_lse(&mut self, qkv: [Tensor; 3], scores: Tensor, options: &Attention) -> Result<Tensor> {
        let Attention { sinks, q_lengths, q_starts, .. } = *options;
        let lse = self.log_sum_exp(scores, &LogSumExpRows { sinks, q_lengths, q_starts })?;
        // All but one of a row's batch elements are −inf.
        let lse = self.of_own_sequence(lse, Reduction::Max, options)?;
        let shape = self.sizes(qkv, options)?.rows_shape(&options.operands(), self.desc(qkv[0])?);
        self.reshape(lse, &shape)
    }
}
