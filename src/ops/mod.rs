//! The ops, one file each, and the list of them that tests, `verify` and benches walk.

mod any_dtype;
mod append_kv;
mod assign;
mod attention_combine;
mod attention_fused;
mod attention_split;
mod cast;
mod concat;
mod conv2d;
mod conv2d_cases;
mod conv2d_reference;
mod definition;
mod dequantize;
mod elementwise;
mod embedding;
mod fma_chain;
mod gather_pages;
mod gru;
mod gru_cases;
mod gru_reference;
mod held_rows;
mod layer_norm;
mod linear_attention;
mod locally_connected;
mod log_sum_exp;
mod lstm;
mod lstm_cases;
mod lstm_reference;
mod mask_cases;
mod mask_scores;
mod masked_rows;
mod masked_softmax;
mod masks;
mod matmul;
mod matrix_chain;
mod max_pool_indices;
mod merge_heads;
mod operands;
mod pad;
mod pool2d;
mod pool2d_cases;
mod quantize;
mod recurrent;
mod recurrent_reference;
mod reduce;
mod rms_norm;
mod rotary;
mod rotation;
mod sequences;
mod sinks;
mod slice;
mod softmax;
mod split_heads;
mod steps;
mod tensor_scatter;
mod transpose;
mod windows;

pub use append_kv::{AppendKv, AppendOptions, KvCache};
pub use assign::Assign;
pub use attention_combine::AttentionCombine;
pub use attention_fused::AttentionFused;
pub use attention_split::AttentionSplit;
pub(crate) use attention_split::Split;
pub use cast::Cast;
pub use concat::Concat;
pub use conv2d::Conv2d;
pub use dequantize::Dequantize;
pub use elementwise::{Binary, Elementwise, Operand, Step, Unary};
pub use embedding::Embedding;
pub use fma_chain::FmaChain;
pub use gather_pages::GatherPages;
pub use gru::{Gru, GruOptions, GruOutputs, GruTensors, Reset};
pub use layer_norm::{LayerNorm, Statistics};
pub use linear_attention::{LinearAttention, LinearTensors};
pub use locally_connected::LocallyConnected;
pub use log_sum_exp::{LogSumExp, LogSumExpRows};
pub use lstm::{Direction, Gate, Lstm, LstmOptions, LstmOutputs, LstmTensors, MaskedOutput};
pub use mask_scores::{MaskScores, ScoreMasks};
pub use masked_softmax::MaskedSoftmax;
pub use masks::ScoreRule;
pub use matmul::{Epilogue, MatMul, Zeros};
pub use matrix_chain::MatrixChain;
pub(crate) use matrix_chain::factor as matrix_chain_factor;
pub use max_pool_indices::MaxPoolIndices;
pub use merge_heads::MergeHeads;
pub(crate) use operands::Sizes;
pub use operands::{Layout, Operands};
pub use pad::{AxisPadding, Pad};
pub use pool2d::{Counted, Pool2d, PoolKind};
pub use quantize::Quantize;
pub use reduce::{Reduce, ReducedAxes, Reduction};
pub use rms_norm::RmsNorm;
pub use rotary::{PositionRule, Positions, Rotary, RotaryOptions};
pub use rotation::{Angles, HeadNorm, NormRule, Pairs, rotary_caches};
pub(crate) use sinks::check_sinks;
pub use slice::{AxisSlice, Slice};
pub use softmax::Softmax;
pub use split_heads::SplitHeads;
pub use tensor_scatter::{TensorScatter, Wrap};
pub use transpose::Transpose;
pub use windows::{ImageLayout, Padding, Rounding, Uneven, Window2d};

use crate::case::Case;
use crate::shader::{Source, wgsl};

/// An op as the registry knows it.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// What [`Op::name`](crate::op::Op::name) returns.
    pub name: &'static str,
    /// Its cases.
    pub cases: fn() -> Vec<Case>,
}

/// Every op.
pub const REGISTRY: &[Entry] = &[
    Entry { name: "matmul", cases: matmul::cases },
    Entry { name: "softmax", cases: softmax::cases },
    Entry { name: "log_sum_exp", cases: log_sum_exp::cases },
    Entry { name: "mask_scores", cases: mask_scores::cases },
    Entry { name: "masked_softmax", cases: masked_softmax::cases },
    Entry { name: "split_heads", cases: split_heads::cases },
    Entry { name: "merge_heads", cases: merge_heads::cases },
    Entry { name: "concat", cases: concat::cases },
    Entry { name: "cast", cases: cast::cases },
    Entry { name: "quantize", cases: quantize::cases },
    Entry { name: "dequantize", cases: dequantize::cases },
    Entry { name: "gather_pages", cases: gather_pages::cases },
    Entry { name: "attention_fused", cases: attention_fused::cases },
    Entry { name: "attention_split", cases: attention_split::cases },
    Entry { name: "attention_combine", cases: attention_combine::cases },
    Entry { name: "assign", cases: assign::cases },
    Entry { name: "rms_norm", cases: rms_norm::cases },
    Entry { name: "rotary", cases: rotary::cases },
    Entry { name: "append_kv", cases: append_kv::cases },
    Entry { name: "transpose", cases: transpose::cases },
    Entry { name: "layer_norm", cases: layer_norm::cases },
    Entry { name: "tensor_scatter", cases: tensor_scatter::cases },
    Entry { name: "linear_attention", cases: linear_attention::cases },
    Entry { name: "elementwise", cases: elementwise::cases },
    Entry { name: "reduce", cases: reduce::cases },
    Entry { name: "embedding", cases: embedding::cases },
    Entry { name: "slice", cases: slice::cases },
    Entry { name: "pad", cases: pad::cases },
    Entry { name: "conv2d", cases: conv2d::cases },
    Entry { name: "pool2d", cases: pool2d::cases },
    Entry { name: "max_pool_indices", cases: max_pool_indices::cases },
    Entry { name: "locally_connected", cases: locally_connected::cases },
    Entry { name: "lstm", cases: lstm::cases },
    Entry { name: "gru", cases: gru::cases },
    Entry { name: "fma_chain", cases: fma_chain::cases },
    Entry { name: "matrix_chain", cases: matrix_chain::cases },
];

// Library files that several ops call.
const BF16: Source = wgsl!("lib/bf16");
const BLOCKS: Source = wgsl!("lib/blocks");
const EXCLUDED: Source = wgsl!("lib/excluded");
const INT8: Source = wgsl!("lib/int8");
const MATRICES_8: Source = wgsl!("lib/matrices_8");
const MATRICES_16: Source = wgsl!("lib/matrices_16");
const REDUCE_WORKGROUP: Source = wgsl!("lib/reduce_workgroup");
const ROW_SUM: Source = wgsl!("lib/row_sum");
const SINKS_NONE: Source = wgsl!("lib/sinks_none");
const SINKS_DENSE: Source = wgsl!("lib/sinks_dense");

/// Binding of `sinks_dense`.
const SINKS_BINDING: u32 = 17;

/// Relative rounding of f32, f16 and bf16.
const EPSILON_F32: f64 = 1.0 / (1 << 24) as f64;
const EPSILON_F16: f64 = 1.0 / (1 << 11) as f64;
const EPSILON_BF16: f64 = 1.0 / (1 << 8) as f64;

/// Rounds of the loops in which the lanes of a workgroup walk a row up to three times, and add up what each found.
fn row_rounds(length: usize) -> usize {
    3 * (length / 256 + 1) + 32
}
