//! The ops, one file each, and the list of them that tests, `verify` and benches walk.

mod attention_fused;
mod mask_scores;
mod matmul;
mod merge_heads;
mod softmax;
mod split_heads;

pub use attention_fused::AttentionFused;
pub(crate) use attention_fused::{MAX_HEAD_DIM, Sizes};
pub use mask_scores::{MaskScores, ScoreMasks};
pub use matmul::{MatMul, Zeros};
pub use merge_heads::MergeHeads;
pub use softmax::Softmax;
pub use split_heads::SplitHeads;

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
    Entry { name: "mask_scores", cases: mask_scores::cases },
    Entry { name: "split_heads", cases: split_heads::cases },
    Entry { name: "merge_heads", cases: merge_heads::cases },
    Entry { name: "attention_fused", cases: attention_fused::cases },
];

// Library files that several ops call.
const ALLOW_ALL: Source = wgsl!("lib/allow_all");
const ALLOW_BAND: Source = wgsl!("lib/allow_band");
const ALLOW_DENSE: Source = wgsl!("lib/allow_dense");
const BIAS_NONE: Source = wgsl!("lib/bias_none");
const BIAS_DENSE: Source = wgsl!("lib/bias_dense");
const EXCLUDED: Source = wgsl!("lib/excluded");
const REDUCE_WORKGROUP: Source = wgsl!("lib/reduce_workgroup");

/// Binding of an optional boolean mask; see `shaders/lib/allow_dense.wgsl`.
const MASK_BINDING: u32 = 10;
/// Binding of an optional additive mask; see `shaders/lib/bias_dense.wgsl`.
const BIAS_BINDING: u32 = 11;

/// Relative rounding of f32 and f16.
const EPSILON_F32: f64 = 1.0 / (1 << 24) as f64;
const EPSILON_F16: f64 = 1.0 / (1 << 11) as f64;
