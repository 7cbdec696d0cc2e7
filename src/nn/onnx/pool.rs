//! ONNX's `MaxPool`, `AveragePool` and `GlobalAveragePool`, every opset, over one to three spatial axes. Integers of 8 bits
//! are computed in f32, which holds them exactly.
//!
//! `Indices` number the elements of X from 0 on, batch and channels included: in the order in which they lie, or, by
//! `storage_order`, with the spatial axes of each channel the other way round, the first one fastest. Of equal elements the first
//! in the order in which they lie is the largest, whatever the numbers say.

use safetensors::Dtype as StoredDtype;

use super::OnnxNode;
use super::builder::{Attributes, Builder, Slots};
use super::windows::{self, Dilations, Windows};
use crate::attention::Strategy;
use crate::error::Result;
use crate::graph::{Graph, Tensor};
use crate::nn::golden::GoldenGraph;
use crate::ops::{Counted, ImageLayout, MaxPoolIndices, Padding, Pool2d, PoolKind, Rounding, Window2d};
use crate::tensor::{Dtype, HostTensor};

const SLOTS: Slots = Slots { inputs: &["X"], required: 1, outputs: 1 };
/// Y, Indices.
const MAX_SLOTS: Slots = Slots { outputs: 2, ..SLOTS };
const INDICES: usize = 1;

/// How `Indices` count within a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Numbering {
    RowMajor,
    ColumnMajor,
}

pub(super) fn lacking(node: &OnnxNode) -> Option<String> {
    // An average over everything needs no windows.
    if node.operator == "GlobalAveragePool" { None } else { windows::lacking(node, 3) }
}

pub(super) fn max(node: &OnnxNode, _: Strategy) -> Result<GoldenGraph> {
    pool(node, if node.opset >= 10 { Dilations::Known } else { Dilations::Unknown }, |attributes, node| {
        let columns = node.opset >= 8 && attributes.switch("storage_order")?;
        Ok((PoolKind::Max, if columns { Numbering::ColumnMajor } else { Numbering::RowMajor }))
    })
}

pub(super) fn average(node: &OnnxNode, _: Strategy) -> Result<GoldenGraph> {
    pool(node, if node.opset >= 19 { Dilations::Known } else { Dilations::Unknown }, |attributes, node| {
        let padded = node.opset >= 7 && attributes.switch("count_include_pad")?;
        let counted = if padded { Counted::Padded } else { Counted::Image };
        Ok((PoolKind::Average(counted), Numbering::RowMajor))
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
type ReadKind = fn(&mut Attributes<'_>, &OnnxNode) -> Result<(PoolKind, Numbering)>;

fn pool(node: &OnnxNode, dilations: Dilations, read: ReadKind) -> Result<GoldenGraph> {
    let has_indices = node.operator == "MaxPool" && node.opset >= 8;
    let mut builder = Builder::new(node, if has_indices { &MAX_SLOTS } else { &SLOTS })?;
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
    let (kind, numbering) = read(&mut attributes, node)?;
    let x = builder.float(0, dtype)?;
    let windows = Windows::read(node, &mut attributes, [sizes, &kernel], dilations)?;
    let ceil = node.opset >= 10 && attributes.switch("ceil_mode")?;
    attributes.finish()?;
    // Sizes that `auto_pad` gives are whole numbers of windows already.
    let rounding = if ceil && windows.explicit { Rounding::Ceil } else { Rounding::Floor };
    let pool = |(window, padding): (Window2d, Padding)| {
        let layout = ImageLayout::Nchw;
        Pool { values: Pool2d { kind, layout, window, padding, rounding }, has_indices: builder.wants(INDICES) }
    };
    let (plane, along_depth) = (pool(windows.plane()), (spatial == 3).then(|| pool(windows.depth())));
    let graph = &mut builder.graph;
    let image = [batch, channels * depth, height, width];
    let numbers = match numbering {
        Numbering::ColumnMajor if plane.has_indices => Some(graph.constant(column_major(shape)?)?),
        _ => None,
    };
    let mut pooled = plane.add(graph, x, numbers, image)?;
    let [mut layers, rows, columns] = [depth, pooled.size[0], pooled.size[1]];
    if let Some(along_depth) = along_depth {
        // A maximum of maxima, and an average of averages over equally many.
        let image = [batch, channels, depth, rows * columns];
        pooled = along_depth.add(graph, pooled.values, pooled.indices, image)?;
        layers = pooled.size[0];
    }
    let shape = [&[batch, channels], &[layers, rows, columns][3 - spatial..]].concat();
    for (slot, tensor) in [(0, Some(pooled.values)), (INDICES, pooled.indices)] {
        if let Some(tensor) = tensor {
            let tensor = builder.graph.reshape(tensor, &shape)?;
            builder.output(slot, tensor)?;
        }
    }
    Ok(builder.finish())
}

/// Windows along two axes.
struct Pool {
    values: Pool2d,
    has_indices: bool,
}

/// What they give, and the number of rows and columns of it.
struct Pooled {
    values: Tensor,
    indices: Option<Tensor>,
    size: [usize; 2],
}

impl Pool {
    /// `x` and the numbers of its elements, both seen as this image.
    fn add(&self, graph: &mut Graph, x: Tensor, numbers: Option<Tensor>, image: [usize; 4]) -> Result<Pooled> {
        let x = graph.reshape(x, &image)?;
        let values = graph.pool2d(x, self.values)?;
        let indices = if self.has_indices {
            let Pool2d { layout, window, padding, rounding, .. } = self.values;
            let numbers = numbers.map(|numbers| graph.reshape(numbers, &image)).transpose()?;
            Some(graph.max_pool_indices(x, numbers, MaxPoolIndices { layout, window, padding, rounding })?)
        } else {
            None
        };
        let shape = &graph.desc(values)?.shape;
        Ok(Pooled { values, indices, size: [shape[2], shape[3]] })
    }
}

/// For each element of X the number that it has with the spatial axes the other way round.
fn column_major(shape: &[usize]) -> Result<HostTensor> {
    let sizes = &shape[2..];
    let channel: usize = sizes.iter().product();
    let number = |position: usize| {
        let (mut rest, mut number) = (position % channel, 0);
        let mut stride = channel;
        for &size in sizes.iter().rev() {
            stride /= size;
            number += rest % size * stride;
            rest /= size;
        }
        (position / channel * channel + number) as u32
    };
    HostTensor::u32(shape, (0..shape.iter().product()).map(number).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use super::*;
    use crate::nn::onnx::Stored;
    use crate::reference;

    /// Y and Indices of a `MaxPool` over 0, 1, … and the elements that stand in for them.
    fn max_pool(shape: &[usize], x: impl Fn(usize) -> f64, attributes: Value) -> [(Vec<usize>, Vec<f64>); 2] {
        let data = (0..shape.iter().product()).map(x).collect();
        let value = HostTensor::f64(shape, data).unwrap().cast(Dtype::F32);
        let node = OnnxNode {
            path: "a file".into(),
            operator: "MaxPool".into(),
            opset: 22,
            attributes: attributes.as_object().unwrap().clone(),
            inputs: vec!["x".into()],
            outputs: vec!["y".into(), "z".into()],
            case: Value::Null,
            tensors: BTreeMap::from([("in.x".into(), Stored { dtype: StoredDtype::F32, value })]),
        };
        let built = node.graph(Strategy::Auto).unwrap();
        let inputs: Vec<_> = built.inputs.iter().map(|(name, value)| (name.as_str(), value)).collect();
        let mut outputs = reference::run(&built.graph, &inputs).unwrap();
        ["y", "z"].map(|name| {
            let output = outputs.remove(name).unwrap();
            (output.shape().to_vec(), output.to_f64())
        })
    }

    #[test]
    fn indices_by_hand() {
        // The example of ONNX's own documentation.
        let attributes = json!({ "kernel_shape": [2, 2], "strides": [2, 2], "storage_order": 1 });
        let [y, z] = max_pool(&[1, 1, 5, 5], |i| i as f64 + 1.0, attributes);
        assert_eq!(y, (vec![1, 1, 2, 2], vec![7.0, 9.0, 17.0, 19.0]));
        assert_eq!(z, (vec![1, 1, 2, 2], vec![6.0, 16.0, 8.0, 18.0]));
        let attributes = json!({ "kernel_shape": [2] });
        let [y, z] = max_pool(&[2, 2, 3], |i| -(i as f64), attributes);
        assert_eq!(y.1, [0.0, -1.0, -3.0, -4.0, -6.0, -7.0, -9.0, -10.0]);
        assert_eq!(z, (vec![2, 2, 2], vec![0.0, 1.0, 3.0, 4.0, 6.0, 7.0, 9.0, 10.0]));
    }

    /// Element (d, h, w) of channel c is 24 c + 12 d + 4 h + w, or, the other way round, 24 c + d + 2 h + 6 w.
    #[test]
    fn indices_of_three_axes_by_hand() {
        let shape = [1, 2, 2, 3, 4];
        // The windows are whole channels; 50 is at (0, 1, 2) of the first, and twice in the second, from (1, 0, 3) on.
        let x = |i| if [6, 24 + 15, 24 + 18].contains(&i) { 50.0 } else { i as f64 };
        let rows = json!({ "kernel_shape": [2, 3, 4] });
        let [y, z] = max_pool(&shape, x, rows);
        assert_eq!(y, (vec![1, 2, 1, 1, 1], vec![50.0, 50.0]));
        assert_eq!(z, (vec![1, 2, 1, 1, 1], vec![6.0, 39.0]));
        let columns = json!({ "kernel_shape": [2, 3, 4], "storage_order": 1 });
        let [_, z] = max_pool(&shape, x, columns);
        assert_eq!(z.1, [2.0 + 12.0, 24.0 + 1.0 + 18.0]);
    }
}
