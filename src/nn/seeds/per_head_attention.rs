//! Multi-head attention with kernels for each head: the second layer of seed document 003, "SelfAttention 理解".

use crate::attention::{Attention, Strategy};
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::nn::linear::Constant;
use crate::nn::{AppendedKeys, Linear, MultiHeadAttention, Projections, WeightOrder};
use crate::ops::{Binary, Operand, Step};
use crate::tensor::{HostTensor, TensorDesc};

/// Attention over heads whose kernels are separate, over any number of leading axes.
///
/// The query is divided by `√head_size` before it meets the keys. Kernels that are weights are put side by side as the layer
/// is added, so that it is [`MultiHeadAttention`] over any number of axes. The original has a `projection_bias` among its
/// weights that it never adds, so it is no field here. Sources: that document, and tensorflow-addons' `MultiHeadAttention`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PerHeadAttention {
    /// `[heads, features, head_size]`.
    pub query: Tensor,
    /// `[heads, features, head_size]`.
    pub key: Tensor,
    /// `[heads, features, head_size]`.
    pub value: Tensor,
    /// `[heads, head_size, out]`.
    pub projection: Tensor,
    /// How attention is computed.
    pub strategy: Strategy,
}

/// Every tensor that the layer has; `batch` are all axes of the input before its last two, folded into one. A plan computes those
/// that are asked for: attention reads the products as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PerHeadAttentionTensors {
    /// Scaled query, key and value, `[batch, seq, heads × head_size]`.
    pub qkv: [Tensor; 3],
    /// Scores and attention weights, `[batch, heads, seq_q, seq_kv]`; unfused attention only.
    pub scores_and_weights: Option<[Tensor; 2]>,
    /// What the heads return, side by side, `[batch, seq_q, heads × head_size]`.
    pub merged: Tensor,
    /// The result, `[.., seq_q, out]`, with the leading axes of the query.
    pub output: Tensor,
}

impl PerHeadAttention {
    /// Adds the layer: `query` `[.., seq_q, features]`, `key` and `value` `[.., seq_kv, features]`.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn add(&self, graph: &mut Graph, inputs: [Tensor; 3]) -> Result<PerHeadAttentionTensors> {
        let leading = self.leading(graph, inputs)?;
        let [heads, _, head_size] = kernel_axes(graph, self.query)?;
        let kernels = [self.query, self.key, self.value];
        let mut projections = kernels.map(|weight| Linear { weight, bias: None, order: WeightOrder::InOut });
        for projection in &mut projections {
            projection.weight = side_by_side(graph, projection.weight)?;
        }
        let [rows, width, out] = kernel_axes(graph, self.projection)?;
        let weight = graph.reshape(self.projection, &[rows * width, out])?;
        let layer = MultiHeadAttention {
            heads,
            kv_heads: heads,
            projections: Projections::Separate(projections),
            output: Linear { weight, bias: None, order: WeightOrder::InOut },
            appended: AppendedKeys::default(),
            attention: Attention { strategy: self.strategy, ..Attention::default() },
        };
        let inputs = folded(graph, inputs, leading.len())?;
        let tensors = layer.add(graph, inputs)?;
        let [query, key, value] = tensors.features;
        let scale = Operand::Scalar((1.0 / (head_size.max(1) as f64).sqrt()) as f32);
        let query = graph.elementwise(&[query], &[Step::Binary(Binary::Mul, scale)])?;
        let shape = [&leading[..], &graph.desc(tensors.output)?.shape[1..]].concat();
        let output = graph.reshape(tensors.output, &shape)?;
        let scores_and_weights = tensors.scores_and_weights.map(|(scores, weights)| [scores, weights]);
        Ok(PerHeadAttentionTensors { qkv: [query, key, value], scores_and_weights, merged: tensors.merged, output })
    }

    /// The axes of the inputs before their last two, which are the same for all.
    fn leading(&self, graph: &Graph, inputs: [Tensor; 3]) -> Result<Vec<usize>> {
        let wrong = |message: String| Err(Error::shape("per_head_attention", message));
        let query = graph.desc(inputs[0])?;
        let Some(axes) = query.rank().checked_sub(2) else {
            return wrong(format!("query is {query}, rank 2 at least was expected"));
        };
        for (name, input) in [("key", inputs[1]), ("value", inputs[2])] {
            let desc = graph.desc(input)?;
            if desc.rank() != query.rank() || desc.shape[..axes] != query.shape[..axes] {
                return wrong(format!("query is {query}, {name} is {desc}; they differ before the last two axes"));
            }
        }
        let width = kernel_axes(graph, self.query)?;
        for (name, kernel) in [("key", self.key), ("value", self.value)] {
            let other = kernel_axes(graph, kernel)?;
            if (other[0], other[2]) != (width[0], width[2]) {
                return wrong(format!("the kernel of query is {width:?}, that of {name} is {other:?}"));
            }
        }
        Ok(query.shape[..axes].to_vec())
    }
}

/// The three axes of a kernel.
fn kernel_axes(graph: &Graph, kernel: Tensor) -> Result<[usize; 3]> {
    let desc = graph.desc(kernel)?;
    let message = || Error::shape("per_head_attention", format!("a kernel is {desc}, three axes were expected"));
    <[usize; 3]>::try_from(&desc.shape[..]).map_err(|_| message())
}

/// A kernel `[heads, features, head_size]` as `[features, heads × head_size]`.
fn side_by_side(graph: &mut Graph, kernel: Tensor) -> Result<Tensor> {
    let [heads, features, head_size] = kernel_axes(graph, kernel)?;
    let Some(Constant { desc, value }) = Constant::of(graph, kernel)? else {
        let kernel = graph.transpose(kernel, &[1, 0, 2])?;
        return graph.reshape(kernel, &[features, heads * head_size]);
    };
    let row = head_size * desc.dtype.size();
    let rows = (0..features).flat_map(|feature| (0..heads).map(move |head| (head * features + feature) * row));
    let bytes: Vec<u8> = rows.flat_map(|start| &value.bytes()[start..start + row]).copied().collect();
    graph.constant(HostTensor::from_bytes(TensorDesc::new(desc.dtype, [features, heads * head_size]), &bytes)?)
}

/// The inputs with their leading axes as one. Those that are one tensor stay so.
fn folded(graph: &mut Graph, inputs: [Tensor; 3], leading: usize) -> Result<[Tensor; 3]> {
    let mut folded = inputs;
    for which in 0..inputs.len() {
        let shape = &graph.desc(inputs[which])?.shape;
        let shape = [&[shape[..leading].iter().product()], &shape[leading..]].concat();
        folded[which] = match inputs[..which].iter().position(|input| *input == inputs[which]) {
            Some(same) => folded[same],
            None => graph.reshape(inputs[which], &shape)?,
        };
    }
    Ok(folded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::CaseInput;
    use crate::compare::{NanMeans, Tolerance, compare};
    use crate::reference;
    use crate::tensor::Dtype;

    #[test]
    fn kernels_that_are_computed_give_what_weights_give() {
        let draw = |shape: &[usize], seed| CaseInput::normal(Dtype::F32, shape, 1.0).draw(seed);
        let kernels = [[3, 5, 4], [3, 5, 4], [3, 5, 4], [3, 4, 6]].map(|shape| draw(&shape, shape[1] as u64));
        let x = draw(&[2, 1, 7, 5], 9);
        let run = |computed: bool| {
            let mut graph = Graph::new();
            let input = graph.input("x", x.desc().clone()).unwrap();
            let mut kernel = |which: usize| {
                let (name, value) = (format!("kernel {which}"), kernels[which].clone());
                let kernel = graph.weight(&name, value).unwrap();
                if computed { graph.elementwise(&[kernel], &[]).unwrap() } else { kernel }
            };
            let [query, key, value, projection] = [0, 1, 2, 3].map(&mut kernel);
            let layer = PerHeadAttention { query, key, value, projection, strategy: Strategy::Auto };
            let output = layer.add(&mut graph, [input; 3]).unwrap().output;
            graph.output("y", output).unwrap();
            reference::run(&graph, &[("x", &x)]).unwrap().remove("y").unwrap()
        };
        let (got, wanted) = (run(true), run(false));
        assert_eq!(got.shape(), [2, 1, 7, 6]);
        let comparison = compare(&got, &wanted, Tolerance::of_scale(1e-14), NanMeans::Nan);
        assert!(comparison.passed(), "{comparison}");
    }

    #[test]
    fn refuses_kernels_that_do_not_fit() {
        let mut graph = Graph::new();
        let mut tensor = |name: &str, shape: &[usize]| graph.input(name, TensorDesc::new(Dtype::F32, shape)).unwrap();
        let (x, flat, kernel) = (tensor("x", &[2, 7, 5]), tensor("flat", &[5, 12]), tensor("kernel", &[3, 5, 4]));
        let (wide, projection) = (tensor("wide", &[3, 5, 6]), tensor("projection", &[3, 4, 6]));
        let layer =
            PerHeadAttention { query: kernel, key: kernel, value: kernel, projection, strategy: Strategy::Auto };
        let error = PerHeadAttention { query: flat, ..layer }.add(&mut graph, [x; 3]).unwrap_err().to_string();
        assert_eq!(error, "per_head_attention: a kernel is f32 [5, 12], three axes were expected");
        let error = PerHeadAttention { value: wide, ..layer }.add(&mut graph, [x; 3]).unwrap_err().to_string();
        assert_eq!(error, "per_head_attention: the kernel of query is [3, 5, 4], that of value is [3, 5, 6]");
    }
}
