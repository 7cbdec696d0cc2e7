//! The plain Keras layers that the models of the seed documents have around their attention.

use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::ops::{Conv2d, ImageLayout, MatMul, Padding, Uneven, Window2d};

/// `Dense` without its activation: `x · kernel + bias`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dense {
    /// `[in, out]`.
    pub kernel: Tensor,
    /// `[out]`.
    pub bias: Option<Tensor>,
}

/// `Conv2D` without its activation, stride 1, images `[batch, height, width, channels]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Convolution {
    /// `[height, width, in, out]`.
    pub kernel: Tensor,
    /// `[out]`.
    pub bias: Option<Tensor>,
    /// What happens at the edges of an image.
    pub edges: Edges,
}

/// Keras' `padding`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Edges {
    /// `same`: zeros around the image, so that it keeps its size.
    Same,
    /// `valid`: whole windows only.
    Valid,
}

impl Dense {
    /// `[.., in]` into `[.., out]`.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn add(&self, graph: &mut Graph, x: Tensor) -> Result<Tensor> {
        graph.matmul(x, self.kernel, self.bias, MatMul::default())
    }
}

impl Convolution {
    /// `[batch, height, width, in]` into `[batch, height, width, out]`, smaller by the kernel less one where edges are
    /// valid.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn add(&self, graph: &mut Graph, x: Tensor) -> Result<Tensor> {
        let (image, kernel) = (graph.desc(x)?, graph.desc(self.kernel)?);
        let (&[_, height, width, _], &[rows, columns, ..]) = (&image.shape[..], &kernel.shape[..]) else {
            return Err(Error::shape("conv2d", format!("x is {image}, the kernel {kernel}, both need rank 4")));
        };
        let window = Window2d { kernel: [rows, columns], stride: [1, 1], dilation: [1, 1] };
        let padding = match self.edges {
            Edges::Same => Padding::same([height, width], window, Uneven::After),
            Edges::Valid => Padding::default(),
        };
        let options = Conv2d { layout: ImageLayout::Nhwc, padding, ..Conv2d::default() };
        graph.conv2d(x, self.kernel, self.bias, options)
    }
}
