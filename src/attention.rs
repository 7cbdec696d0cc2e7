//! Attention as one call: which kernels it becomes is the strategy's business.

mod lowering;
mod plain;
mod unfused;

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::graph::{Graph, Lowering, Tensor};
use crate::mask::{Causal, Fill, Masking, Window};
use crate::ops::{AttentionFused, Layout, Operands, ScoreMasks, Sizes, Split};
use crate::precision::Precision;
use lowering::Unfuse;
use unfused::Unfused;

/// How attention is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Strategy {
    /// Fused where the device has a kernel for it, else unfused; the plan's description says which. Without a fused kernel are
    /// heads wider than 512 on a GPU, and options that together bind more buffers than the device has.
    #[default]
    Auto,
    /// matmul, mask_scores, softmax, matmul, of which the second and third become one step; scores are stored in f32.
    Unfused,
    /// One pass over the keys, or one over each of several shares of them where queries are few; scores are never stored.
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
    /// Order of the axes of `q` and of the result.
    pub q_layout: Layout,
    /// Order of the axes of `k` and `v`.
    pub kv_layout: Layout,
    /// `k` and `v` are i8, and these, f32 of their shapes without `head_dim`, are the scales of their rows: element = level ×
    /// scale. Where a layout merges heads and `head_dim`, the scales have the heads for a last axis.
    pub kv_scales: Option<[Tensor; 2]>,
    /// `k` and `v` are pages `[pages, page_size, kv_heads, head_dim]`, and this, u32 `[batch, per_sequence]`, says which pages
    /// each sequence has: its key j lies in row `j % page_size` of page `block_table[b][j / page_size]`.
    pub block_table: Option<Tensor>,
    /// What a masked score becomes.
    pub fill: Fill,
    /// Whether operands may be rounded to f16 for the products; the fused kernels only.
    pub precision: Precision,
    /// How it is computed.
    pub strategy: Strategy,
}

/// Attention with its intermediates.
///
/// Where packed queries look at batched keys, the batch of scores and weights is that of the keys: element s has those of all
/// queries over the keys of sequence s. From the masks on, the queries of other sequences have −inf there, and weights of zero.
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

/// What the fused node has for outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Returns {
    Output,
    OutputAndSums,
}

impl Graph {
    /// Attention of `q` over `k` and `v`.
    ///
    /// Shapes: `q` `[batch, heads, seq_q, head_dim]`, `k` `[batch, kv_heads, seq_kv, head_dim]`,
    /// `v` `[batch, kv_heads, seq_kv, head_dim_v]`, result `[batch, heads, seq_q, head_dim_v]`, or in another [`Layout`].
    /// Query head h reads key head `h / (heads / kv_heads)`. Ranks 2 and 3 leave out the leading axes.
    ///
    /// `q` is f32, f16 or bf16, and the result like it; `k` and `v` are both one of these or i8, whatever `q` is.
    ///
    /// # Errors
    /// Shapes that do not fit (both sides are named), masks that do not broadcast, options that mean nothing.
    pub fn attention(&mut self, q: Tensor, k: Tensor, v: Tensor, options: &Attention) -> Result<Tensor> {
        match options.strategy {
            Strategy::Auto | Strategy::Fused => Ok(self.attention_fused([q, k, v], options, Returns::Output)?[0]),
            Strategy::Unfused => Ok(self.unfused([q, k, v], options)?.output),
        }
    }

    /// [`Graph::attention`], and the natural logarithm of each row's softmax denominator, sink included: f32
    /// `[batch, heads, seq_q]`, heads first whatever the layout, without the axes that `q` leaves out. −inf for a row that does not
    /// exist or sees nothing. Results over parts of the keys combine by it.
    ///
    /// # Errors
    /// As [`Graph::attention`].
    pub fn attention_lse(&mut self, q: Tensor, k: Tensor, v: Tensor, options: &Attention) -> Result<(Tensor, Tensor)> {
        match options.strategy {
            Strategy::Auto | Strategy::Fused => {
                let outputs = self.attention_fused([q, k, v], options, Returns::OutputAndSums)?;
                Ok((outputs[0], outputs[1]))
            }
            Strategy::Unfused => {
                let unfused = self.unfused([q, k, v], options)?;
                Ok((unfused.output, self.unfused_lse([q, k, v], unfused.scores, options)?))
            }
        }
    }

    /// [`Graph::attention`], and scores and weights at every stage. Asking for them does not change how the output is computed.
    ///
    /// # Errors
    /// As [`Graph::attention`], and as for [`Strategy::Unfused`].
    pub fn attention_steps(&mut self, [q, k, v]: [Tensor; 3], options: &Attention) -> Result<AttentionSteps> {
        let Unfused { raw, capped, scores, weights, output } = self.unfused([q, k, v], options)?;
        let lse = self.unfused_lse([q, k, v], scores, options)?;
        let output = match options.strategy {
            Strategy::Auto | Strategy::Fused => self.attention_fused([q, k, v], options, Returns::Output)?[0],
            Strategy::Unfused => output,
        };
        Ok(AttentionSteps { raw, capped, scores, weights, lse, output })
    }

    /// The fused node and its outputs.
    fn attention_fused(&mut self, qkv: [Tensor; 3], options: &Attention, returns: Returns) -> Result<Vec<Tensor>> {
        let scale = options.scale(&self.sizes(qkv, options)?)?;
        let (rule, tensors) = options.masks().rule();
        let has_sinks = options.sinks.is_some();
        let returns_lse = returns == Returns::OutputAndSums;
        let (operands, precision) = (options.operands(), options.precision);
        let op = AttentionFused { scale, rule, operands, has_sinks, returns_lse, precision };
        let operands = qkv.into_iter().chain(options.stored());
        let inputs: Vec<_> = operands.chain(options.sinks).chain(tensors).collect();
        let unfuse = || Arc::new(Unfuse::of(options, &inputs, returns)) as Arc<dyn Lowering>;
        let unfuse = (options.strategy == Strategy::Auto).then(unfuse);
        let split = op.splits().then(|| Arc::new(Split(op)) as Arc<dyn Lowering>);
        let lowerings = split.into_iter().chain(unfuse).collect();
        self.add_lowerable(op, &inputs, lowerings)
    }

    fn sizes(&self, qkv: [Tensor; 3], options: &Attention) -> Result<Sizes> {
        let tensors = qkv.into_iter().chain(options.stored());
        let descs = tensors.map(|tensor| self.desc(tensor).cloned()).collect::<Result<Vec<_>>>()?;
        options.operands().sizes(&descs)
    }
}

impl Attention {
    /// The options that are not tensors.
    pub fn masking(&self) -> Masking {
        Masking { causal: self.causal, window: self.window, fill: self.fill }
    }

    /// The same with other tensors.
    fn map(&self, place: impl Fn(Tensor) -> Tensor) -> Self {
        let ScoreMasks { mask, bias, kv_lengths, slopes, q_lengths, q_starts, kv_starts, .. } =
            self.masks().map(&place);
        Self {
            mask,
            bias,
            kv_lengths,
            slopes,
            q_lengths,
            q_starts,
            kv_starts,
            sinks: self.sinks.map(&place),
            kv_scales: self.kv_scales.map(|scales| scales.map(&place)),
            block_table: self.block_table.map(&place),
            ..*self
        }
    }

    /// How q, k and v are stored.
    fn operands(&self) -> Operands {
        Operands {
            q_layout: self.q_layout,
            kv_layout: self.kv_layout,
            has_scales: self.kv_scales.is_some(),
            has_pages: self.block_table.is_some(),
        }
    }

    /// The tensors that belong to k and v.
    fn stored(&self) -> impl Iterator<Item = Tensor> + use<> {
        self.kv_scales.into_iter().flatten().chain(self.block_table)
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
