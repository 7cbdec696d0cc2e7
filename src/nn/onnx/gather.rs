//! ONNX's `Gather`, every opset, of floats.

use safetensors::Dtype as StoredDtype;

use super::OnnxNode;
use super::builder::{Attributes, Builder, Slots};
use crate::attention::Strategy;
use crate::error::Result;
use crate::nn::golden::GoldenGraph;
use crate::tensor::{Dtype, HostTensor};

const SLOTS: Slots = Slots { inputs: &["data", "indices"], required: 2, outputs: 1 };
const DATA: usize = 0;
const INDICES: usize = 1;

/// Rows of a table, for which the axis comes first and goes back to its place afterwards.
pub(super) fn build(node: &OnnxNode, _: Strategy) -> Result<GoldenGraph> {
    let mut builder = Builder::new(node, &SLOTS)?;
    let dtype = builder.float_dtype(&[DATA])?;
    let shape = builder.shape(DATA)?;
    let mut attributes = Attributes::of(node);
    let axis = attributes.axis("axis", 0, shape.len())?;
    attributes.finish()?;
    let (before, after) = (&shape[..axis], &shape[axis + 1..]);
    let [outer, inner]: [usize; 2] = [before, after].map(|sizes| sizes.iter().product());
    let indices = indices(&builder, shape[axis])?;
    let count = indices.desc().len();
    let result = [before, indices.shape(), after].concat();
    let (data, indices) = (builder.float(DATA, dtype)?, builder.input(INDICES, indices)?);
    let graph = &mut builder.graph;
    let mut table = graph.reshape(data, &[outer, shape[axis], inner])?;
    if outer != 1 {
        table = graph.transpose(table, &[1, 0, 2])?;
    }
    let table = graph.reshape(table, &[shape[axis], outer * inner])?;
    let picked = graph.embedding(table, indices)?;
    let mut y = graph.reshape(picked, &[count, outer, inner])?;
    if outer != 1 {
        y = graph.transpose(y, &[1, 0, 2])?;
    }
    let y = graph.reshape(y, &result)?;
    builder.output(0, y)?;
    Ok(builder.finish())
}

/// `indices` as the graph takes them: counted from the front.
fn indices(builder: &Builder<'_>, size: usize) -> Result<HostTensor> {
    let (node, stored) = (builder.node, builder.required(INDICES)?);
    if !matches!(stored.dtype, StoredDtype::I32 | StoredDtype::I64) {
        return Err(node.fail(format!("input `indices` is {:?}, i32 or i64 was expected", stored.dtype)));
    }
    let size = size as f64;
    // Since opset 11 an index may count from the back.
    let first = if node.opset >= 11 { -size } else { 0.0 };
    let mut indices = stored.value.to_f64();
    if let Some(outside) = indices.iter().find(|&&index| !(first..size).contains(&index)) {
        return Err(node.fail(format!("indices holds {outside}, and the axis of data has size {size}")));
    }
    indices.iter_mut().filter(|index| **index < 0.0).for_each(|index| *index += size);
    Ok(HostTensor::f64(stored.value.shape(), indices)?.cast(Dtype::U32))
}
