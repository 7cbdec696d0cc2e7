//! Attention as one call: which kernels it becomes is the strategy's business.

use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::mask::{Causal, Fill, Masking, Window};
use crate::ops::{AttentionFused, MAX_HEAD_DIM, MatMul, ScoreMasks, Sizes, Zeros};
use crate::tensor::Dtype;

/// How attention is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Strategy {
    /// Fused, unless head_dim is larger than the fused kernel takes (256).
    #[default]
    Auto,
    /// matmul, mask_scores, softmax, matmul; scores are stored in f32.
    Unfused,
    /// One pass over the keys; scores are never stored.
    Fused,
}

/// Options of [`Graph::attention`].
///
/// Order: `scores = q · kᵀ × scale`, softcap, plus `bias`, masked, softmax over the keys, times `v`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Attention {
    /// Multiplies q · kᵀ; `1 / √head_dim` by default.
    pub scale: Option<f32>,
    /// A score s becomes `c · tanh(s / c)` before bias and mask; larger than zero.
    pub softcap: Option<f32>,
    /// Causality and where its diagonal lies.
    pub causal: Option<Causal>,
    /// Sliding window.
    pub window: Option<Window>,
    /// Boolean mask that broadcasts to `[batch, heads, seq_q, seq_kv]`, true where a key takes part. It may end before the
    /// keys; the others do not take part.
    pub mask: Option<Tensor>,
    /// Additive mask (f32 or f16, −inf allowed) that broadcasts to `[batch, heads, seq_q, seq_kv]`. It may end before the
    /// keys; the others do not take part.
    pub bias: Option<Tensor>,
    /// How many keys there are, u32 `[batch]`, at most `seq_kv`: the rest is never looked at. It is data, so a growing cache
    /// needs no new plan. Bottom-right causality and windows count from it.
    pub kv_lengths: Option<Tensor>,
    /// What a masked score becomes.
    pub fill: Fill,
    /// How it is computed.
    pub strategy: Strategy,
}

/// Unfused attention with its intermediates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionSteps {
    /// Scaled scores, f32 `[batch, heads, seq_q, seq_kv]`.
    pub raw: Tensor,
    /// Scores after the softcap; `raw` where there is none.
    pub capped: Tensor,
    /// Scaled, capped and masked scores, f32 `[batch, heads, seq_q, seq_kv]`.
    pub scores: Tensor,
    /// Attention weights, f32 `[batch, heads, seq_q, seq_kv]`.
    pub weights: Tensor,
    /// What [`Graph::attention`] returns.
    pub output: Tensor,
}

impl Graph {
    /// Attention of `q` over `k` and `v`.
    ///
    /// Shapes: `q` `[batch, heads, seq_q, head_dim]`, `k` `[batch, kv_heads, seq_kv, head_dim]`,
    /// `v` `[batch, kv_heads, seq_kv, head_dim_v]`, result `[batch, heads, seq_q, head_dim_v]`; all f32 or all f16.
    /// Query head h reads key head `h / (heads / kv_heads)`. Ranks 2 and 3 leave out the leading axes.
    ///
    /// # Errors
    /// Shapes that do not fit (both sides are named), masks that do not broadcast, options that mean nothing.
    pub fn attention(&mut self, q: Tensor, k: Tensor, v: Tensor, options: &Attention) -> Result<Tensor> {
        let sizes = self.sizes([q, k, v])?;
        let too_wide = sizes.head_dim.max(sizes.head_dim_v) > MAX_HEAD_DIM;
        if options.strategy == Strategy::Unfused || (options.strategy == Strategy::Auto && too_wide) {
            return Ok(self.attention_steps([q, k, v], options)?.output);
        }
        let (rule, tensors) = options.masks().rule();
        let op = AttentionFused { scale: options.scale(&sizes)?, rule };
        let inputs: Vec<Tensor> = [q, k, v].into_iter().chain(tensors).collect();
        Ok(self.add(op, &inputs)?[0])
    }

    /// Unfused attention that returns its scores and weights too. Shapes and errors as [`Graph::attention`].
    ///
    /// # Errors
    /// As [`Graph::attention`].
    pub fn attention_steps(&mut self, [q, k, v]: [Tensor; 3], options: &Attention) -> Result<AttentionSteps> {
        let sizes = self.sizes([q, k, v])?;
        let alpha = options.scale(&sizes)?;
        options.masking().validate("attention")?;
        let dtype = self.desc(q)?.dtype;
        let output_shape = {
            let mut shape = self.desc(q)?.shape.clone();
            *shape.last_mut().expect("rank 2 or more") = sizes.head_dim_v;
            shape
        };
        // The query heads of one key head are more rows of one product.
        let Sizes { batch, heads, kv_heads, seq_q, seq_kv, head_dim, head_dim_v } = sizes;
        let group = heads.checked_div(kv_heads).unwrap_or(0);
        let rows = self.reshape(q, &[batch, kv_heads, group * seq_q, head_dim])?;
        let keys = self.reshape(k, &[batch, kv_heads, seq_kv, head_dim])?;
        let values = self.reshape(v, &[batch, kv_heads, seq_kv, head_dim_v])?;
        let product = MatMul { alpha, transpose_b: true, output: Some(Dtype::F32), ..MatMul::default() };
        let scores = self.matmul(rows, keys, None, product)?;
        let raw = self.reshape(scores, &[batch, heads, seq_q, seq_kv])?;
        let masks = options.masks();
        let capped = match masks.softcap {
            None => raw,
            softcap => self.mask_scores(raw, &ScoreMasks { softcap, ..ScoreMasks::default() })?,
        };
        let uncapped = ScoreMasks { softcap: None, ..masks };
        let masked = uncapped.rule().0.changes(seq_q, seq_kv);
        let scores = if masked { self.mask_scores(capped, &uncapped)? } else { capped };
        let weights = self.softmax(scores, 1.0)?;
        let zeros = if masked { Zeros::Annihilate } else { Zeros::Multiply };
        let rows = self.reshape(weights, &[batch, kv_heads, group * seq_q, seq_kv])?;
        let weighted = MatMul { zeros, output: Some(dtype), ..MatMul::default() };
        let output = self.matmul(rows, values, None, weighted)?;
        Ok(AttentionSteps { raw, capped, scores, weights, output: self.reshape(output, &output_shape)? })
    }

    fn sizes(&self, [q, k, v]: [Tensor; 3]) -> Result<Sizes> {
        Sizes::new(self.desc(q)?, self.desc(k)?, self.desc(v)?)
    }
}

impl Attention {
    /// The options that are not tensors.
    pub fn masking(&self) -> Masking {
        Masking { causal: self.causal, window: self.window, fill: self.fill }
    }

    /// What happens to a scaled score.
    fn masks(&self) -> ScoreMasks {
        ScoreMasks {
            softcap: self.softcap,
            masking: self.masking(),
            mask: self.mask,
            bias: self.bias,
            kv_lengths: self.kv_lengths,
        }
    }

    fn scale(&self, sizes: &Sizes) -> Result<f32> {
        match self.scale {
            Some(scale) if !scale.is_finite() => {
                Err(Error::option("attention", format!("scale is {scale}, it must be finite")))
            }
            Some(scale) => Ok(scale),
            None => Ok((1.0 / (sizes.head_dim.max(1) as f64).sqrt()) as f32),
        }
    }
}
