//! ONNX's `LayerNormalization`, from opset 17 on, and `RMSNormalization`, from opset 23 on. Computed in f32, whatever
//! `stash_type` says.

use super::OnnxNode;
use super::builder::{Attributes, Builder, Slots};
use crate::attention::Strategy;
use crate::error::Result;
use crate::graph::Tensor;
use crate::nn::golden::GoldenGraph;
use crate::ops::{LayerNorm, Statistics};
use crate::tensor::{Dtype, HostTensor};

const LAYER: Slots = Slots { inputs: &["X", "Scale", "B"], required: 2, outputs: 3 };
const RMS: Slots = Slots { inputs: &["X", "scale"], required: 2, outputs: 1 };
const X: usize = 0;
const SCALE: usize = 1;
const BIAS: usize = 2;

/// Types that ONNX may ask the statistics to be computed in: f32 and bf16.
const STASH_TYPES: [i64; 2] = [1, 16];

/// Attributes of a normalisation.
struct Options {
    axis: usize,
    epsilon: f32,
}

pub(super) fn layer(node: &OnnxNode, _: Strategy) -> Result<GoldenGraph> {
    let mut builder = Builder::new(node, &LAYER)?;
    let dtype = builder.one_float_dtype(&[X, SCALE, BIAS])?;
    let Options { axis, epsilon } = Options::read(&builder)?;
    let x = builder.float(X, dtype)?;
    let scale = factor(&mut builder, SCALE, dtype)?;
    let bias = if builder.slot(BIAS)?.is_some() { Some(factor(&mut builder, BIAS, dtype)?) } else { None };
    let wanted = builder.wants(1) || builder.wants(2);
    let statistics = if wanted { Statistics::Return } else { Statistics::Omit };
    let outputs = builder.graph.layer_norm(x, scale, bias, LayerNorm { axis, epsilon, statistics })?;
    outputs.into_iter().enumerate().try_for_each(|(slot, tensor)| builder.output(slot, tensor))?;
    Ok(builder.finish())
}

pub(super) fn rms(node: &OnnxNode, _: Strategy) -> Result<GoldenGraph> {
    let mut builder = Builder::new(node, &RMS)?;
    let dtype = builder.float_dtype(&[X, SCALE])?;
    let Options { axis, epsilon } = Options::read(&builder)?;
    let shape = builder.shape(X)?;
    let (outer, row) = shape.split_at(axis);
    let [rows, length] = [outer, row].map(|sizes| sizes.iter().product());
    let x = builder.float(X, dtype)?;
    let x = builder.graph.reshape(x, &[rows, length])?;
    let stored = builder.required(SCALE)?;
    let Some(scale) = spread(&stored.value, shape).filter(|scale| scale.desc().rank() <= row.len()) else {
        let scale = stored.value.shape();
        return Err(node.fail(format!("input `scale` {scale:?} does not broadcast to rows {row:?} of X")));
    };
    let scale: Vec<f64> = scale.to_f64().into_iter().cycle().take(length).collect();
    let scale = builder.input(SCALE, HostTensor::f64(&[length], scale)?.cast(dtype))?;
    let y = builder.graph.rms_norm(x, Some(scale), epsilon)?;
    let y = builder.graph.reshape(y, shape)?;
    builder.output(0, y)?;
    Ok(builder.finish())
}

impl Options {
    fn read(builder: &Builder<'_>) -> Result<Self> {
        let node = builder.node;
        let mut attributes = Attributes::of(node);
        let axis = attributes.axis("axis", -1, builder.shape(X)?.len())?;
        let epsilon = attributes.float("epsilon")?.unwrap_or(1e-5);
        let stash_type = attributes.integer("stash_type", 0..i64::MAX)?.unwrap_or(1);
        attributes.finish()?;
        if !STASH_TYPES.contains(&stash_type) {
            return Err(
                node.fail(format!("attribute `stash_type` is {stash_type}, one of {STASH_TYPES:?} was expected"))
            );
        }
        Ok(Self { axis, epsilon })
    }
}

/// Scale or bias, which broadcasts to X, with the shape of the last axes of X.
fn factor(builder: &mut Builder<'_>, slot: usize, dtype: Dtype) -> Result<Tensor> {
    let (x, stored) = (builder.shape(X)?, builder.required(slot)?);
    let Some(value) = spread(&stored.value, x) else {
        let (name, shape) = (LAYER.inputs[slot], stored.value.shape());
        return Err(builder.node.fail(format!("input `{name}` {shape:?} does not broadcast to X {x:?}")));
    };
    builder.input(slot, value.cast(dtype))
}

/// The value repeated along its axes of size 1, as far in front as it varies.
fn spread(value: &HostTensor, target: &[usize]) -> Option<HostTensor> {
    let shape = value.shape();
    let skipped = target.len().checked_sub(shape.len())?;
    if shape.iter().zip(&target[skipped..]).any(|(&size, &wanted)| size != wanted && size != 1) {
        return None;
    }
    let first = shape.iter().position(|&size| size != 1).unwrap_or(shape.len());
    let (own, target) = (&shape[first..], &target[skipped + first..]);
    if own == target {
        return value.clone().reshape(own).ok();
    }
    let data = value.to_f64();
    let spread = (0..target.iter().product()).map(|index: usize| {
        let (mut from, mut stride, mut rest) = (0, 1, index);
        for (&size, &wanted) in own.iter().zip(target).rev() {
            from += if size == 1 { 0 } else { rest % wanted * stride };
            stride *= size;
            rest /= wanted;
        }
        data[from]
    });
    Some(HostTensor::f64(target, spread.collect()).ok()?.cast(value.desc().dtype))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_spread() {
        let tensor = |shape: &[usize], data: &[f64]| HostTensor::f64(shape, data.to_vec()).unwrap();
        let check = |from: &HostTensor, target: &[usize], shape: &[usize], data: &[f64]| {
            assert_eq!(spread(from, target), Some(tensor(shape, data)));
        };
        check(&tensor(&[2], &[1.0, 2.0]), &[3, 2], &[2], &[1.0, 2.0]);
        check(&tensor(&[1, 2], &[1.0, 2.0]), &[3, 2], &[2], &[1.0, 2.0]);
        check(&tensor(&[1, 1], &[5.0]), &[3, 2], &[], &[5.0]);
        check(&tensor(&[2, 1], &[1.0, 2.0]), &[3, 2, 2], &[2, 2], &[1.0, 1.0, 2.0, 2.0]);
        let column = tensor(&[2, 1, 2], &[1.0, 2.0, 3.0, 4.0]);
        check(&column, &[2, 2, 2], &[2, 2, 2], &[1.0, 2.0, 1.0, 2.0, 3.0, 4.0, 3.0, 4.0]);
        assert_eq!(spread(&tensor(&[3], &[0.0; 3]), &[3, 2]), None);
        assert_eq!(spread(&tensor(&[1, 1, 2], &[0.0; 2]), &[3, 2]), None);
    }
}
