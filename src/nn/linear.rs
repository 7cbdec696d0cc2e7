//! Affine maps and normalisations with their weights.

use std::sync::Arc;

use crate::error::Result;
use crate::graph::{Graph, Origin, Tensor};
use crate::ops::{LayerNorm, MatMul, Statistics};
use crate::tensor::{HostTensor, TensorDesc};

/// An affine map, `x · weight + bias`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Linear {
    /// `[out, in]` or `[in, out]`.
    pub weight: Tensor,
    /// `[out]`.
    pub bias: Option<Tensor>,
    /// Which of the two the weight is.
    pub order: WeightOrder,
}

/// How a framework stores the weight of an affine map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WeightOrder {
    /// `[out, in]`, as PyTorch does.
    #[default]
    OutIn,
    /// `[in, out]`, as Keras does.
    InOut,
}

impl Linear {
    /// `[.., in]` into `[.., out]`.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn add(&self, graph: &mut Graph, x: Tensor) -> Result<Tensor> {
        let transpose_b = self.order == WeightOrder::OutIn;
        graph.matmul(x, self.weight, self.bias, MatMul { transpose_b, ..MatMul::default() })
    }

    /// Width of the result, where the weight has two axes.
    pub(super) fn width(&self, graph: &Graph) -> Result<Option<usize>> {
        Ok(match (&graph.desc(self.weight)?.shape[..], self.order) {
            (&[out, _], WeightOrder::OutIn) | (&[_, out], WeightOrder::InOut) => Some(out),
            _ => None,
        })
    }

    /// Maps of one input as one map, whose results lie side by side in the last axis. `None` where it takes more than putting
    /// weights together: some are computed or of another dtype or order, or they do not fit.
    ///
    /// # Errors
    /// A tensor of another graph.
    pub(super) fn joined(graph: &mut Graph, parts: &[Self]) -> Result<Option<Self>> {
        let mut weights = Vec::new();
        for part in parts {
            weights.extend(Constant::of(graph, part.weight)?);
        }
        let Some((first, order)) =
            weights.first().map(|weight| weight.desc.clone()).zip(parts.first().map(|p| p.order))
        else {
            return Ok(None);
        };
        let [rows, inputs] = match order {
            WeightOrder::OutIn => [0, 1],
            WeightOrder::InOut => [1, 0],
        };
        let fits = |weight: &Constant| {
            weight.desc.rank() == 2
                && weight.desc.dtype == first.dtype
                && weight.desc.shape[inputs] == first.shape[inputs]
        };
        if weights.len() != parts.len() || !weights.iter().all(fits) || parts.iter().any(|part| part.order != order) {
            return Ok(None);
        }
        let widths: Vec<usize> = weights.iter().map(|weight| weight.desc.shape[rows]).collect();
        let bias = match Self::joined_bias(graph, parts, &widths)? {
            Biases::Unlike => return Ok(None),
            Biases::None => None,
            Biases::Joined(bias) => Some(graph.constant(bias)?),
        };
        // Along the first axis weights follow one another; along the last their rows do.
        let lines = if order == WeightOrder::OutIn { 1 } else { first.shape[inputs] };
        let mut bytes = Vec::new();
        for line in 0..lines {
            for weight in &weights {
                let each = weight.value.bytes().len() / lines;
                bytes.extend_from_slice(&weight.value.bytes()[line * each..(line + 1) * each]);
            }
        }
        let mut desc = first;
        desc.shape[rows] = widths.iter().sum();
        let weight = graph.constant(HostTensor::from_bytes(desc, &bytes)?)?;
        Ok(Some(Self { weight, bias, order }))
    }

    /// A map without a bias adds zero.
    fn joined_bias(graph: &Graph, parts: &[Self], widths: &[usize]) -> Result<Biases> {
        let mut found = Vec::new();
        for bias in parts.iter().map(|part| part.bias) {
            found.push(match bias {
                None => None,
                Some(bias) => match Constant::of(graph, bias)? {
                    Some(bias) => Some(bias),
                    None => return Ok(Biases::Unlike),
                },
            });
        }
        let Some(dtype) = found.iter().flatten().map(|bias| bias.desc.dtype).next() else { return Ok(Biases::None) };
        let mut bytes = Vec::new();
        for (bias, &width) in found.iter().zip(widths) {
            match bias {
                Some(bias) if bias.desc == TensorDesc::new(dtype, [width]) => {
                    bytes.extend_from_slice(bias.value.bytes())
                }
                Some(_) => return Ok(Biases::Unlike),
                None => bytes.resize(bytes.len() + width * dtype.size(), 0),
            }
        }
        let desc = TensorDesc::new(dtype, [widths.iter().sum()]);
        Ok(Biases::Joined(HostTensor::from_bytes(desc, &bytes)?))
    }
}

/// The biases of several maps.
enum Biases {
    None,
    Joined(HostTensor),
    /// They are no biases of one map.
    Unlike,
}

/// A weight or constant of a graph.
pub(super) struct Constant {
    pub desc: TensorDesc,
    pub value: Arc<HostTensor>,
}

impl Constant {
    /// `None` for what is computed or given before each run.
    pub fn of(graph: &Graph, tensor: Tensor) -> Result<Option<Self>> {
        let desc = graph.desc(tensor)?.clone();
        Ok(match &graph.tensors[graph.root(tensor)].origin {
            Origin::Weight(value) => Some(Self { desc, value: value.clone() }),
            _ => None,
        })
    }
}

/// Layer normalisation over the last axis (Ba et al., arXiv:1607.06450), with the biased variance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm {
    /// `[width]`.
    pub scale: Tensor,
    /// `[width]`.
    pub bias: Option<Tensor>,
    /// Is added to the variance.
    pub epsilon: f32,
}

impl Norm {
    /// `[.., width]` into the same shape.
    ///
    /// # Errors
    /// Sizes that do not fit, an epsilon that means nothing.
    pub fn add(&self, graph: &mut Graph, x: Tensor) -> Result<Tensor> {
        let axis = graph.desc(x)?.rank().saturating_sub(1);
        let op = LayerNorm { axis, epsilon: self.epsilon, statistics: Statistics::Omit };
        Ok(graph.layer_norm(x, self.scale, self.bias, op)?[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::CaseInput;
    use crate::compare::{NanMeans, Tolerance, compare};
    use crate::reference;
    use crate::tensor::Dtype;

    /// Maps of 5 features into 4, 3 and 2.
    fn maps(graph: &mut Graph, order: WeightOrder, biased: [bool; 3]) -> [Linear; 3] {
        [0, 1, 2].map(|which: usize| {
            let out = 4 - which;
            let shape = if order == WeightOrder::OutIn { [out, 5] } else { [5, out] };
            let mut weight = |name: &str, shape: &[usize], seed| {
                let value = CaseInput::normal(Dtype::F32, shape, 1.0).draw(seed);
                graph.weight(&format!("{name} {which}"), value).unwrap()
            };
            let bias = biased[which].then(|| weight("bias", &[out], 10 + which as u64));
            Linear { weight: weight("weight", &shape, which as u64), bias, order }
        })
    }

    #[test]
    fn one_map_gives_what_three_give_side_by_side() {
        let x = CaseInput::normal(Dtype::F32, &[2, 3, 5], 1.0).draw(9);
        for order in [WeightOrder::OutIn, WeightOrder::InOut] {
            for biased in [[true; 3], [false; 3], [true, false, true]] {
                let mut graph = Graph::new();
                let input = graph.input("x", x.desc().clone()).unwrap();
                let parts = maps(&mut graph, order, biased);
                let joined = Linear::joined(&mut graph, &parts).unwrap().unwrap();
                assert_eq!(joined.width(&graph).unwrap(), Some(4 + 3 + 2));
                let one = joined.add(&mut graph, input).unwrap();
                let [first, second, third] = parts.map(|part| part.add(&mut graph, input).unwrap());
                let two = graph.concat(first, second, 2).unwrap();
                let three = graph.concat(two, third, 2).unwrap();
                graph.output("one", one).unwrap();
                graph.output("three", three).unwrap();
                let got = reference::run(&graph, &[("x", &x)]).unwrap();
                let comparison = compare(&got["one"], &got["three"], Tolerance::of_scale(1e-15), NanMeans::Nan);
                assert!(comparison.passed(), "{order:?} {biased:?}: {comparison}");
            }
        }
    }

    #[test]
    fn what_is_not_stored_alike_stays_apart() {
        let mut graph = Graph::new();
        let parts = maps(&mut graph, WeightOrder::OutIn, [true; 3]);
        let [mut computed, mut half, mut other, mut wide, mut short] = [parts; 5];
        let desc = graph.desc(parts[1].weight).unwrap().clone();
        computed[1].weight = graph.input("weight", desc.clone()).unwrap();
        half[1].weight = graph.constant(HostTensor::zeros(TensorDesc::new(Dtype::F16, desc.shape))).unwrap();
        other[2].order = WeightOrder::InOut;
        wide[2].weight = graph.constant(HostTensor::zeros(TensorDesc::new(Dtype::F32, [2, 6]))).unwrap();
        short[0].bias = graph.constant(HostTensor::zeros(TensorDesc::new(Dtype::F32, [3]))).ok();
        for parts in [&computed[..], &half, &other, &wide, &short, &[]] {
            assert_eq!(Linear::joined(&mut graph, parts).unwrap(), None, "{parts:?}");
        }
    }
}
