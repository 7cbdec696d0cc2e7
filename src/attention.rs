//! Attention as one call: which kernels it becomes is the strategy's business.

use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::mask::{Causal, Fill, Masking, Window};
use crate::ops::{AttentionFused, LogSumExpRows, MAX_HEAD_DIM, MatMul, ScoreMasks, Sizes, Zeros, check_sinks};
use crate::tensor::{Dtype, TensorDesc};

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
/// Order: `scores = q · kᵀ × scale`, softcap, minus `slopes` times distance, plus `bias`, masked, softmax over the keys and the
/// sink, times `v`.
///
/// A sequence is a batch element, or one of several that are packed into one batch element (`q_starts`, `kv_starts`). Queries and
/// keys that do not exist are no matter of the fill: such a key is never looked at, and the output of such a query is zero.
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
    /// How many queries there are, u32 `[batch]`, at most `seq_q`. Bottom-right causality and windows count from it.
    pub q_lengths: Option<Tensor>,
    /// Where packed sequences start among the queries and where the last one ends, u32 `[sequences + 1]`, for a `q` of batch 1:
    /// sequence s has the rows from start s up to start s + 1, and sees the keys of sequence s only. Rows of no sequence do not
    /// exist. Masks and bias broadcast to `[1, heads, seq_q, seq_kv]`, all sequences together.
    pub q_starts: Option<Tensor>,
    /// The same among the keys, for `k` and `v` of batch 1. Without it, packed sequence s has batch element s of `k` and `v`, as in
    /// a cache that is served to prompts of different lengths; the fused kernels only.
    pub kv_starts: Option<Tensor>,
    /// ALiBi slopes, f32 `[heads]` or `[sequences, heads]`: `slope × |j − i − position|` is subtracted from the score of query i and
    /// key j, where position is that of query 0 among the keys: 0, a past, or by how many the keys outnumber the queries, as
    /// [`Causal`] and [`Window`] say; the last where neither says.
    pub slopes: Option<Tensor>,
    /// One more score for every row of a head, f32 `[heads]`, which has no value: `exp(sink)` is added to the softmax's denominator.
    pub sinks: Option<Tensor>,
    /// What a masked score becomes.
    pub fill: Fill,
    /// How it is computed.
    pub strategy: Strategy,
}

/// Attention with its intermediates.
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
    /// As [`Graph::attention_lse`] returns it.
    pub lse: Tensor,
    /// What [`Graph::attention`] returns.
    pub output: Tensor,
}

/// What a strategy comes to.
enum Path {
    Fused,
    Unfused,
}

/// The steps of [`Strategy::Unfused`].
struct Unfused {
    raw: Tensor,
    capped: Tensor,
    scores: Tensor,
    weights: Tensor,
    output: Tensor,
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
        match options.path(&self.sizes([q, k, v])?) {
            Path::Fused => self.attention_fused([q, k, v], options),
            Path::Unfused => Ok(self.unfused([q, k, v], options)?.output),
        }
    }

    /// [`Graph::attention`], and the natural logarithm of each row's softmax denominator, sink included: f32
    /// `[batch, heads, seq_q]` without the axes that `q` leaves out. −inf for a row that does not exist or sees nothing. Results
    /// over parts of the keys combine by it.
    ///
    /// # Errors
    /// As [`Graph::attention`].
    pub fn attention_lse(&mut self, q: Tensor, k: Tensor, v: Tensor, options: &Attention) -> Result<(Tensor, Tensor)> {
        let path = options.path(&self.sizes([q, k, v])?);
        let unfused = self.unfused([q, k, v], options)?;
        let lse = self.unfused_lse(q, unfused.scores, options)?;
        match path {
            Path::Fused => Ok((self.attention_fused([q, k, v], options)?, lse)),
            Path::Unfused => Ok((unfused.output, lse)),
        }
    }

    /// [`Graph::attention`], and scores and weights at every stage. Asking for them does not change how the output is computed.
    ///
    /// # Errors
    /// As [`Graph::attention`], and as for [`Strategy::Unfused`].
    pub fn attention_steps(&mut self, [q, k, v]: [Tensor; 3], options: &Attention) -> Result<AttentionSteps> {
        let path = options.path(&self.sizes([q, k, v])?);
        let Unfused { raw, capped, scores, weights, output } = self.unfused([q, k, v], options)?;
        let lse = self.unfused_lse(q, scores, options)?;
        let output = match path {
            Path::Fused => self.attention_fused([q, k, v], options)?,
            Path::Unfused => output,
        };
        Ok(AttentionSteps { raw, capped, scores, weights, lse, output })
    }

    fn attention_fused(&mut self, [q, k, v]: [Tensor; 3], options: &Attention) -> Result<Tensor> {
        let sizes = self.sizes([q, k, v])?;
        if options.sinks.is_some() {
            return Err(Error::option("attention", "the fused kernel takes no sinks"));
        }
        let (rule, tensors) = options.masks().rule();
        let op = AttentionFused { scale: options.scale(&sizes)?, rule };
        let inputs: Vec<Tensor> = [q, k, v].into_iter().chain(tensors).collect();
        Ok(self.add(op, &inputs)?[0])
    }

    fn unfused(&mut self, [q, k, v]: [Tensor; 3], options: &Attention) -> Result<Unfused> {
        let sizes = self.sizes([q, k, v])?;
        let alpha = options.scale(&sizes)?;
        self.check_unfused(&sizes, options)?;
        let mut output_desc = self.desc(q)?.clone();
        *output_desc.shape.last_mut().expect("rank 2 or more") = sizes.head_dim_v;
        // The query heads of one key head are more rows of one product.
        let Sizes { batch, heads, kv_heads, seq_q, seq_kv, head_dim, head_dim_v, .. } = sizes;
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
        let weights = match options.sinks {
            None => self.softmax(scores, 1.0)?,
            Some(sinks) => self.softmax_with_sinks(scores, 1.0, sinks)?,
        };
        let zeros = if masked { Zeros::Annihilate } else { Zeros::Multiply };
        let rows = self.reshape(weights, &[batch, kv_heads, group * seq_q, seq_kv])?;
        let weighted = MatMul { zeros, output: Some(output_desc.dtype), ..MatMul::default() };
        let output = self.matmul(rows, values, None, weighted)?;
        Ok(Unfused { raw, capped, scores, weights, output: self.reshape(output, &output_desc.shape)? })
    }

    /// Refuses in attention's name what its ops would refuse in their own, and what they cannot compute.
    fn check_unfused(&self, sizes: &Sizes, options: &Attention) -> Result<()> {
        let (rule, tensors) = options.masks().rule();
        if rule.reads_batched_keys() {
            let message = "q_starts without kv_starts needs a fused kernel, Strategy::Unfused has one matrix of scores";
            return Err(Error::option("attention", message));
        }
        let descs = tensors.map(|tensor| self.desc(tensor).cloned()).collect::<Result<Vec<_>>>()?;
        let scores = [sizes.batch, sizes.heads, sizes.seq_q, sizes.seq_kv];
        rule.check_fit("attention", scores, sizes.kv_batch, &descs)?;
        match options.sinks {
            Some(sinks) => check_sinks("attention", self.desc(sinks)?, &TensorDesc::new(Dtype::F32, scores)),
            None => Ok(()),
        }
    }

    /// The logarithm of the denominators, in the shape of `q` without `head_dim`.
    fn unfused_lse(&mut self, q: Tensor, scores: Tensor, options: &Attention) -> Result<Tensor> {
        let Attention { sinks, q_lengths, q_starts, .. } = *options;
        let lse = self.log_sum_exp(scores, &LogSumExpRows { sinks, q_lengths, q_starts })?;
        let shape = self.desc(q)?.shape.clone();
        self.reshape(lse, &shape[..shape.len() - 1])
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
            slopes: self.slopes,
            q_lengths: self.q_lengths,
            q_starts: self.q_starts,
            kv_starts: self.kv_starts,
        }
    }

    fn path(&self, sizes: &Sizes) -> Path {
        let too_wide = sizes.head_dim.max(sizes.head_dim_v) > MAX_HEAD_DIM;
        match self.strategy {
            Strategy::Fused => Path::Fused,
            Strategy::Auto if !too_wide && self.sinks.is_none() => Path::Fused,
            Strategy::Auto | Strategy::Unfused => Path::Unfused,
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
