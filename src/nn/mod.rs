//! Layers built on [`Graph`](crate::Graph), and files that hold their weights and inputs.

pub mod golden;
mod kinds;
mod multi_head_attention;
pub mod onnx;

pub use multi_head_attention::{Linear, MultiHeadAttention, MultiHeadAttentionTensors};
