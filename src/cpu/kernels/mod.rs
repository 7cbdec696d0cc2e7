//! Native kernels: the arithmetic of the CPU backend, over borrowed slices.

pub mod append;
pub mod args;
pub mod attention;
pub(crate) mod axes;
pub mod convert;
pub(crate) mod elementwise;
pub(crate) mod exp;
pub(crate) mod gather;
pub mod heads;
pub mod layer_norm;
pub mod linear_attention;
pub mod log_sum_exp;
pub mod mask;
pub mod matmul;
pub mod pages;
pub mod quantise;
pub(crate) mod reduce;
pub mod rms_norm;
pub mod rotary;
pub(crate) mod scratch;
mod sequence;
pub mod softmax;
pub(crate) mod tanh;
pub mod tensor_scatter;
pub mod transpose;
