//! ONNX's `Conv`, every opset, over one or two spatial axes.

use super::OnnxNode;
use super::builder::{Attributes, Builder, Slots};
use super::windows::{self, Dilations, Windows};
use crate::attention::Strategy;
use crate::error::Result;
use crate::nn::golden::GoldenGraph;
use crate::ops::{Conv2d, ImageLayout};

const SLOTS: Slots = Slots { inputs: &["X", "W", "B"], required: 2, outputs: 1 };
const X: usize = 0;
const W: usize = 1;
const B: usize = 2;

pub(super) fn lacking(node: &OnnxNode) -> Option<String> {
    windows::lacking(node, 2)
}

pub(super) fn build(node: &OnnxNode, _: Strategy) -> Result<GoldenGraph> {
    let mut builder = Builder::new(node, &SLOTS)?;
    let dtype = builder.one_float_dtype(&[X, W, B])?;
    let (x_shape, w_shape) = (builder.shape(X)?, builder.shape(W)?);
    let image = windows::image(node, "X", x_shape)?;
    let kernel_image = windows::image(node, "W", w_shape)?;
    if x_shape.len() != w_shape.len() {
        return Err(node.fail(format!("X {x_shape:?} and W {w_shape:?} differ in rank")));
    }
    let (spatial, kernel) = (x_shape.len() - 2, &w_shape[2..]);
    let mut attributes = Attributes::of(node);
    let given = attributes.integers("kernel_shape", spatial, 1..i64::MAX)?;
    if let Some(given) = given.filter(|given| given.iter().zip(kernel).any(|(&given, &size)| given as usize != size)) {
        return Err(node.fail(format!("attribute `kernel_shape` is {given:?}, and W is {w_shape:?}")));
    }
    let groups = attributes.integer("group", 1..i64::MAX)?.unwrap_or(1) as usize;
    let windows = Windows::read(node, &mut attributes, [&x_shape[2..], kernel], Dilations::Known)?;
    let (window, padding) = windows.plane();
    attributes.finish()?;
    let (x, w) = (builder.float(X, dtype)?, builder.float(W, dtype)?);
    let bias = builder.slot(B)?.map(|_| builder.float(B, dtype)).transpose()?;
    let (x, w) = (builder.graph.reshape(x, &image)?, builder.graph.reshape(w, &kernel_image)?);
    let layout = ImageLayout::Nchw;
    let options = Conv2d { layout, stride: window.stride, padding, dilation: window.dilation, groups };
    let y = builder.graph.conv2d(x, w, bias, options)?;
    let shape = windows::without_rows(&builder.graph.desc(y)?.shape, spatial);
    let y = builder.graph.reshape(y, &shape)?;
    builder.output(0, y)?;
    Ok(builder.finish())
}
