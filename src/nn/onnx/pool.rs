//! ONNX's `MaxPool`, `AveragePool` and `GlobalAveragePool`, every opset, over one to three spatial axes. Integers of 8 bits
//! are computed in f32, which holds them exactly.

use safetensors::Dtype as StoredDtype;

use super::OnnxNode;
use super::builder::{Attributes, Builder, Slots};
use super::windows::{self, Dilations, Windows};
use crate::attention::Strategy;
use crate::error::{Error, Result};
use crate::graph::Tensor;
use crate::nn::golden::GoldenGraph;
use crate::ops::{Counted, ImageLayout, Padding, Pool2d, PoolKind, Rounding, Window2d};
use crate::tensor::Dtype;

const SLOTS: Slots = Slots { inputs: &["X"], required: 1, outputs: 1 };
const INDICES: usize = 1;

pub(super) fn lacking(node: &OnnxNode) -> Option<String> {
    if node.operator == "MaxPool" && node.opset >= 8 && node.wants(INDICES) {
        return Some("the output `Indices` is not supported".into());
    }
    // An average over everything needs no windows.
    if node.operator == "GlobalAveragePool" { None } else { windows::lacking(node, 3) }
}

pub(super) fn max(node: &OnnxNode, _: Strategy) -> Result<GoldenGraph> {
    pool(node, if node.opset >= 10 { Dilations::Known } else { Dilations::Unknown }, |attributes, node| {
        // The order of the indices, which are not asked for.
        if node.opset >= 8 {
            attributes.switch("storage_order")?;
        }
        Ok(PoolKind::Max)
    })
}

pub(super) fn average(node: &OnnxNode, _: Strategy) -> Result<GoldenGraph> {
    pool(node, if node.opset >= 19 { Dilations::Known } else { Dilations::Unknown }, |attributes, node| {
        let padded = node.opset >= 7 && attributes.switch("count_include_pad")?;
        Ok(PoolKind::Average(if padded { Counted::Padded } else { Counted::Image }))
    })
}

pub(super) fn global_average(node: &OnnxNode, _: Strategy) -> Result<GoldenGraph> {
    Attributes::of(node).finish()?;
    let mut builder = Builder::new(node, &SLOTS)?;
    let dtype = builder.float_dtype(&[0])?;
    let shape = builder.shape(0)?;
    let (&[batch, channels], inner) = shape.split_first_chunk().ok_or_else(|| {
        node.fail(format!("input `X` {shape:?} has rank {}, batch and channels were expected", shape.len()))
    })?;
    let x = builder.float(0, dtype)?;
    let x = builder.graph.reshape(x, &[batch, channels, 1, inner.iter().product()])?;
    let y = builder.graph.global_average_pool(x, ImageLayout::Nchw)?;
    let shape: Vec<usize> = [batch, channels].into_iter().chain(inner.iter().map(|_| 1)).collect();
    let y = builder.graph.reshape(y, &shape)?;
    builder.output(0, y)?;
    Ok(builder.finish())
}

/// What the operator's own attributes make of it.
type ReadKind = fn(&mut Attributes<'_>, &OnnxNode) -> Result<PoolKind>;

fn pool(node: &OnnxNode, dilations: Dilations, read: ReadKind) -> Result<GoldenGraph> {
    let mut builder = Builder::new(node, &SLOTS)?;
    let bytes = matches!(builder.required(0)?.dtype, StoredDtype::U8 | StoredDtype::I8);
    let dtype = if bytes && node.operator == "MaxPool" { Dtype::F32 } else { builder.float_dtype(&[0])? };
    let shape = builder.shape(0)?;
    let wrong = || node.fail(format!("input `X` {shape:?} has rank {}, 3 to 5 was expected", shape.len()));
    let &[batch, channels, ref sizes @ ..] = shape else { return Err(wrong()) };
    let [depth, height, width] = match *sizes {
        [width] => [1, 1, width],
        [height, width] => [1, height, width],
        [depth, height, width] => [depth, height, width],
        _ => return Err(wrong()),
    };
    let spatial = sizes.len();
    let mut attributes = Attributes::of(node);
    let kernel = attributes.integers("kernel_shape", spatial, 1..i64::MAX)?;
    let kernel = kernel.ok_or_else(|| node.fail("attribute `kernel_shape` is missing"))?;
    let kernel: Vec<usize> = kernel.into_iter().map(|size| size as usize).collect();
    let kind = read(&mut attributes, node)?;
    let x = builder.float(0, dtype)?;
    let windows = Windows::read(node, &mut attributes, [sizes, &kernel], dilations)?;
    let ceil = node.opset >= 10 && attributes.switch("ceil_mode")?;
    attributes.finish()?;
    // Sizes that `auto_pad` gives are whole numbers of windows already.
    let rounding = if ceil && windows.explicit { Rounding::Ceil } else { Rounding::Floor };
    let mut pooled = |x: Tensor, image: [usize; 4], (window, padding): (Window2d, Padding)| {
        let x = builder.graph.reshape(x, &image)?;
        let y = builder.graph.pool2d(x, Pool2d { kind, layout: ImageLayout::Nchw, window, padding, rounding })?;
        let desc = builder.graph.desc(y)?;
        Ok::<_, Error>((y, [desc.shape[2], desc.shape[3]]))
    };
    let (mut y, [rows, columns]) = pooled(x, [batch, channels * depth, height, width], windows.plane())?;
    let mut layers = depth;
    if spatial == 3 {
        // A maximum of maxima, and an average of averages over equally many.
        (y, [layers, _]) = pooled(y, [batch, channels, depth, rows * columns], windows.depth())?;
    }
    let y = builder.graph.reshape(y, &[&[batch, channels], &[layers, rows, columns][3 - spatial..]].concat())?;
    builder.output(0, y)?;
    Ok(builder.finish())
}
