//! Layers built on [`Graph`](crate::Graph), and files that hold their weights and inputs.

mod additive_attention;
mod attended_axes;
mod encoder_layer;
mod gates;
pub mod golden;
mod gru;
mod kinds;
mod linear;
mod lstm;
mod multi_head_attention;
pub mod onnx;
pub mod seeds;
mod torch_masks;

pub use additive_attention::{AdditiveAttention, AdditiveAttentionTensors};
pub use attended_axes::AttendedAxes;
pub use encoder_layer::{NormOrder, TransformerEncoderLayer, TransformerEncoderTensors};
pub use gru::{GruWeights, OnnxGru};
pub use linear::{Linear, Norm, WeightOrder};
pub use lstm::{LstmWeights, OnnxLstm};
pub use multi_head_attention::{AppendedKeys, MultiHeadAttention, MultiHeadAttentionTensors, Projections};
pub use torch_masks::{MaskedScores, TorchMasks};
