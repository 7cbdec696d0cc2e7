//! The layers and models of the seed documents, as their authors wrote them. Dropout is the identity: inference only.
//!
//! Query-key-value attention and the multi-head attention of seed document 002 need no layer of their own: they are
//! [`Graph::attention`](crate::Graph::attention) and [`MultiHeadAttention`](super::MultiHeadAttention).

mod cifar10_cnn;
mod cnn_attention;
mod context_attention;
mod diagonal_attention;
mod exp_normalised;
mod feed_forward_attention;
mod head_attention;
mod keras;
mod lstm_classifier;
mod per_head_attention;
mod position_attention;
mod rnn_attention;

pub use cifar10_cnn::{Cifar10Cnn, Cifar10CnnTensors};
pub use cnn_attention::{BatchNorm, CnnAttention, CnnAttentionTensors, MapLayer};
pub use context_attention::{ContextAttention, ContextAttentionTensors};
pub use diagonal_attention::{DiagonalAttention, DiagonalAttentionTensors};
pub use feed_forward_attention::{FeedForwardAttention, FeedForwardAttentionTensors};
pub use head_attention::{HeadAttention, HeadAttentionTensors};
pub use keras::{Convolution, Dense, Edges};
pub use lstm_classifier::{LstmClassifier, LstmClassifierTensors};
pub use per_head_attention::{PerHeadAttention, PerHeadAttentionTensors};
pub use position_attention::{PositionAttention, PositionAttentionTensors};
pub use rnn_attention::{RnnAttention, RnnAttentionTensors};
