//! Layers built on [`Graph`](crate::Graph), and files that hold their weights and inputs.

mod gates;
pub mod golden;
mod gru;
mod kinds;
mod lstm;
mod multi_head_attention;
pub mod onnx;

pub use gru::{GruWeights, OnnxGru};
pub use lstm::{LstmWeights, OnnxLstm};
pub use multi_head_attention::{Linear, MultiHeadAttention, MultiHeadAttentionTensors};
