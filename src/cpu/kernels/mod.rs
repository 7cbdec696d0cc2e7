//! Native kernels: the arithmetic of the CPU backend, over borrowed slices.

pub mod args;
pub mod attention;
pub(crate) mod exp;
pub mod heads;
pub mod mask;
pub mod matmul;
pub(crate) mod scratch;
pub mod softmax;
pub(crate) mod tanh;
