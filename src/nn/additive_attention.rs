//! Attention whose scores are no product.

use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::mask::{Causal, Fill, Masking};
use crate::ops::{Binary, MatMul, Operand, ReducedAxes, Reduction, ScoreMasks, Step, Unary};

/// Additive attention: `score[i, j] = Σ_d scale[d] · tanh(inner_scale · (q[i, d] + k[j, d]))`, then masks, softmax, `· v`.
///
/// `query` `[batch, seq_q, width]`, `key` `[batch, seq_kv, width]`, `value` `[batch, seq_kv, out]`, result
/// `[batch, seq_q, out]`. Source: Bahdanau et al., arXiv:1409.0473, appendix A.1.2, as Keras has it:
///
/// - `keras.layers.AdditiveAttention`: `scale` `[width]` where `use_scale` is set.
/// - `keras.layers.Attention` with `score_mode="concat"`: `inner_scale` `[1]` where `use_scale` is set, and
///   `concat_score_weight` as a `scale` of `[1]`.
///
/// The terms of the sum are one tensor `[batch, seq_q, seq_kv, width]`, width times the memory of the scores. Dropout is
/// the identity: this is inference.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct AdditiveAttention {
    /// Times the sum of query and key: `[1]`, or `[width]`; absent, 1.
    pub inner_scale: Option<Tensor>,
    /// Times the tangent: `[1]`, or `[width]`; absent, 1.
    pub scale: Option<Tensor>,
    /// Bool, true where a key takes part; broadcasts to `[batch, 1, seq_q, seq_kv]`.
    pub mask: Option<Tensor>,
    /// Which keys a query may see by their place.
    pub causal: Option<Causal>,
    /// What a masked score becomes.
    pub fill: Fill,
}

/// What the layer computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdditiveAttentionTensors {
    /// Scores after masks, `[batch, seq_q, seq_kv]`.
    pub scores: Tensor,
    /// Attention weights, `[batch, seq_q, seq_kv]`.
    pub weights: Tensor,
    /// The result, `[batch, seq_q, out]`.
    pub output: Tensor,
}

impl AdditiveAttention {
    /// Adds the layer to a graph; `inputs` are query, key and value.
    ///
    /// # Errors
    /// Inputs of another rank than 3, sizes that do not fit or broadcast.
    pub fn add(&self, graph: &mut Graph, inputs: [Tensor; 3]) -> Result<AdditiveAttentionTensors> {
        let [query, key, value] = inputs;
        let [of_query, of_key] = [graph.desc(query)?.clone(), graph.desc(key)?.clone()];
        let (&[batch, seq_q, width], &[key_batch, seq_kv, key_width]) = (&of_query.shape[..], &of_key.shape[..]) else {
            let message = format!("query is {of_query}, key is {of_key}; both need rank 3");
            return Err(Error::shape("additive_attention", message));
        };
        if [key_batch, key_width] != [batch, width] {
            let message = format!("query is {of_query}, key is {of_key}; batch and width must be the same");
            return Err(Error::shape("additive_attention", message));
        }
        let rows = graph.reshape(query, &[batch, seq_q, 1, width])?;
        let columns = graph.reshape(key, &[batch, 1, seq_kv, width])?;
        let terms = self.terms(graph, [rows, columns])?;
        let scores = graph.reduce(terms, Reduction::Sum, &[3], ReducedAxes::Dropped)?;
        let scores = graph.reshape(scores, &[batch, 1, seq_q, seq_kv])?;
        let masking = Masking { causal: self.causal, fill: self.fill, ..Masking::default() };
        let scores = graph.mask_scores(scores, &ScoreMasks { masking, mask: self.mask, ..ScoreMasks::default() })?;
        let weights = graph.softmax(scores, 1.0)?;
        let shape = [batch, seq_q, seq_kv];
        let [scores, weights] = [graph.reshape(scores, &shape)?, graph.reshape(weights, &shape)?];
        let output = graph.matmul(weights, value, None, MatMul::default())?;
        Ok(AdditiveAttentionTensors { scores, weights, output })
    }

    /// `scale · tanh(inner_scale · (q + k))`, in one dispatch.
    fn terms(&self, graph: &mut Graph, operands: [Tensor; 2]) -> Result<Tensor> {
        let mut inputs = operands.to_vec();
        let mut steps = vec![Step::Binary(Binary::Add, Operand::Input(1))];
        let mut times = |scale: Option<Tensor>, steps: &mut Vec<Step>| {
            if let Some(scale) = scale {
                steps.push(Step::Binary(Binary::Mul, Operand::Input(inputs.len())));
                inputs.push(scale);
            }
        };
        times(self.inner_scale, &mut steps);
        steps.push(Step::Unary(Unary::Tanh));
        times(self.scale, &mut steps);
        graph.elementwise(&inputs, &steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::plan::Plan;
    use crate::tensor::{Dtype, HostTensor, TensorDesc};

    fn tensor(shape: &[usize], data: &[f32]) -> HostTensor {
        HostTensor::f32(shape, data.to_vec()).unwrap()
    }

    /// Two queries, two keys of width 2; both scales are given.
    #[test]
    fn values_by_hand() {
        let mut graph = Graph::new();
        let mut add = |name: &str, value: HostTensor| graph.weight(name, value).unwrap();
        let query = add("q", tensor(&[1, 2, 2], &[0.5, -0.25, 0.0, 0.0]));
        let key = add("k", tensor(&[1, 2, 2], &[0.25, 0.5, -1.0, 0.0]));
        let value = add("v", tensor(&[1, 2, 1], &[1.0, 3.0]));
        let inner_scale = Some(add("inner", tensor(&[1], &[2.0])));
        let scale = Some(add("scale", tensor(&[2], &[1.0, -3.0])));
        let layer = AdditiveAttention { inner_scale, scale, ..AdditiveAttention::default() };
        let tensors = layer.add(&mut graph, [query, key, value]).unwrap();
        graph.output("scores", tensors.scores).unwrap();
        graph.output("y", tensors.output).unwrap();
        let outputs = Plan::new(&Device::cpu(), &graph).unwrap().run(&[]).unwrap();
        let wanted = [
            1.5_f64.tanh() - 3.0 * 0.5_f64.tanh(),
            (-1.0_f64).tanh() - 3.0 * (-0.5_f64).tanh(),
            0.5_f64.tanh() - 3.0 * 1.0_f64.tanh(),
            (-2.0_f64).tanh(),
        ];
        for (got, wanted) in outputs["scores"].to_f64().into_iter().zip(wanted) {
            assert!((got - wanted).abs() < 1e-5, "{got} {wanted}");
        }
        for (got, scores) in outputs["y"].to_f64().into_iter().zip(wanted.chunks_exact(2)) {
            // A softmax over two is a sigmoid of their difference.
            let second = 1.0 / (1.0 + (scores[0] - scores[1]).exp());
            assert!((got - (1.0 + 2.0 * second)).abs() < 1e-5, "{got} {second}");
        }
    }

    #[test]
    fn other_shapes_are_refused() {
        for (query, key) in [([1, 2, 3], [2, 2, 3]), ([1, 2, 3], [1, 2, 4])] {
            let mut graph = Graph::new();
            let query = graph.input("q", TensorDesc::new(Dtype::F32, query)).unwrap();
            let key = graph.input("k", TensorDesc::new(Dtype::F32, key)).unwrap();
            let error = AdditiveAttention::default().add(&mut graph, [query, key, key]).unwrap_err().to_string();
            assert!(error.contains("additive_attention: query is f32 [1, 2, 3], key is f32 ["), "{error}");
        }
    }
}
