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
/// Order: `scores = q · kᵀ × scale`, plus `bias`, masked, softmax over the keys, times `v`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Attention {
    /// Multiplies q · kᵀ; `1 / √head_dim` by default.
    pub scale: Option<f32>,
    /// Causality and where its diagonal lies.
    pub causal: Option<Causal>,
    /// Sliding window.
    pub window: Option<Window>,
    /// Boolean mask that broadcasts to `[batch, heads, seq_q, seq_kv]`, true where a key takes part.
    pub mask: Option<Tensor>,
    /// Additive mask (f32 or f16, −inf allowed) that broadcasts to `[batch, heads, seq_q, seq_kv]`.
    pub bias: Option<Tensor>,
    /// What a masked score becomes.
    pub fill: Fill,
    /// How it is computed.
    pub strategy: Strategy,
}

/// Unfused attention with its intermediates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionSteps {
    /// Scaled and masked scores, f32 `[batch, heads, seq_q, seq_kv]`.
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
        let op = AttentionFused {
            scale: options.scale(&sizes)?,
            masking: options.masking(),
            has_mask: options.mask.is_some(),
            has_bias: options.bias.is_some(),
        };
        let inputs: Vec<Tensor> = [q, k, v].into_iter().chain(options.mask).chain(options.bias).collect();
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
        let mut scores = self.reshape(scores, &[batch, heads, seq_q, seq_kv])?;
        let masks = ScoreMasks { masking: options.masking(), mask: options.mask, bias: options.bias };
        let masked =
            masks.mask.is_some() || masks.bias.is_some() || !masks.masking.band(seq_q, seq_kv).is_full(seq_q, seq_kv);
        if masked {
            scores = self.mask_scores(scores, &masks)?;
        }
        let weights = self.softmax(scores, 1.0)?;
        let zeros = if masked { Zeros::Annihilate } else { Zeros::Multiply };
        let rows = self.reshape(weights, &[batch, kv_heads, group * seq_q, seq_kv])?;
        let weighted = MatMul { zeros, output: Some(dtype), ..MatMul::default() };
        let output = self.matmul(rows, values, None, weighted)?;
        Ok(AttentionSteps { scores, weights, output: self.reshape(output, &output_shape)? })
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
