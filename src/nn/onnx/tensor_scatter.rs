//! ONNX's `TensorScatter`, from opset 24 on. Circular writing wraps the position along the axis; that the pseudocode of its
//! documentation wraps those in front of it too is taken for a slip.

use safetensors::Dtype as StoredDtype;

use super::OnnxNode;
use super::builder::{Attributes, Builder, Slots};
use crate::attention::Strategy;
use crate::error::Result;
use crate::nn::golden::GoldenGraph;
use crate::ops::{TensorScatter, Wrap};
use crate::tensor::HostTensor;

const SLOTS: Slots = Slots { inputs: &["past_cache", "update", "write_indices"], required: 2, outputs: 1 };
const CACHE: usize = 0;
const UPDATE: usize = 1;
const STARTS: usize = 2;

pub(super) fn build(node: &OnnxNode, _: Strategy) -> Result<GoldenGraph> {
    let mut builder = Builder::new(node, &SLOTS)?;
    let dtype = builder.one_float_dtype(&[CACHE, UPDATE])?;
    let (shape, update) = (builder.shape(CACHE)?, builder.shape(UPDATE)?);
    let mut attributes = Attributes::of(node);
    let axis = attributes.axis("axis", -2, shape.len())?;
    if axis == 0 {
        return Err(node.fail("attribute `axis` names axis 0, which is the batch"));
    }
    let wrap = match attributes.text("mode", &["linear", "circular"])? {
        Some(1) => Wrap::Circular,
        _ => Wrap::Linear,
    };
    attributes.finish()?;
    let rows = [shape, update].map(|shape| shape.get(axis).copied().unwrap_or_default());
    let (cache, update) = (builder.float(CACHE, dtype)?, builder.float(UPDATE, dtype)?);
    let starts = match starts(&builder, rows, wrap)? {
        Some(starts) => builder.input(STARTS, starts)?,
        None => builder.graph.constant(HostTensor::u32(&shape[..1], vec![0; shape[0]])?)?,
    };
    let y = builder.graph.tensor_scatter([cache, update, starts], TensorScatter { axis, wrap })?;
    builder.output(0, y)?;
    Ok(builder.finish())
}

/// `write_indices` as the graph takes them.
fn starts(builder: &Builder<'_>, [capacity, seq]: [usize; 2], wrap: Wrap) -> Result<Option<HostTensor>> {
    let (node, Some(stored)) = (builder.node, builder.slot(STARTS)?) else { return Ok(None) };
    if stored.dtype != StoredDtype::I64 {
        return Err(node.fail(format!("input `write_indices` is {:?}, i64 was expected", stored.dtype)));
    }
    let mut starts = stored.value.to_f64();
    let last = capacity as f64 - seq as f64;
    if wrap == Wrap::Circular && capacity > 0 {
        starts.iter_mut().for_each(|start| *start = start.rem_euclid(capacity as f64));
    } else if let Some(outside) = starts.iter().find(|&&start| !(0.0..=last).contains(&start)) {
        let message = format!("write_indices holds {outside}, and {seq} rows go into a cache of {capacity}");
        return Err(node.fail(message));
    }
    Ok(Some(HostTensor::f64(stored.value.shape(), starts)?.cast(crate::tensor::Dtype::U32)))
}
