//! A GRU layer: the projection of its input, then the recurrence.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::nn::gates::Gates;
use crate::ops::{GruOptions, GruOutputs, GruTensors, MatMul, Reset};
use crate::tensor::{Dtype, HostTensor};

/// Weights of one layer and direction, whichever framework they come from, as the op takes them: gates in the order
/// update, reset, candidate, side by side in columns.
///
/// Graphs that are built from one `GruWeights` or its clones share the tensors on a device.
#[derive(Debug, Clone, PartialEq)]
pub struct GruWeights {
    kernel: Arc<HostTensor>,
    recurrent: Arc<HostTensor>,
    bias: Option<Arc<HostTensor>>,
    /// The candidate's recurrent bias, where the reset gate scales it.
    candidate_bias: Option<Arc<HostTensor>>,
    reset: Reset,
}

/// The tensors of ONNX's `GRU`, which hold all directions: W `[directions, 3 · hidden, in]`, R
/// `[directions, 3 · hidden, hidden]`, B `[directions, 6 · hidden]`.
#[derive(Debug, Clone, Copy)]
pub struct OnnxGru<'a> {
    /// W.
    pub w: &'a HostTensor,
    /// R.
    pub r: &'a HostTensor,
    /// B, input biases before recurrent ones.
    pub b: Option<&'a HostTensor>,
    /// `linear_before_reset` other than 0 is [`Reset::AfterProduct`].
    pub reset: Reset,
}

/// Where each gate of the op is among those of ONNX and Keras (z, r, h), and of torch (r, z, n).
const IN_ORDER: Gates<3> = Gates { op: "gru", from: [0, 1, 2] };
const TORCH: Gates<3> = Gates { op: "gru", from: [1, 0, 2] };

impl GruWeights {
    /// As `torch.nn.GRU` keeps a layer: `weight_ih` `[3 · hidden, in]`, `weight_hh` `[3 · hidden, hidden]`, and both
    /// biases `[3 · hidden]`. Gates r, z, n.
    ///
    /// # Errors
    /// Shapes that do not fit each other.
    pub fn torch(weight_ih: &HostTensor, weight_hh: &HostTensor, biases: Option<[&HostTensor; 2]>) -> Result<Self> {
        let (kernel, recurrent) = (TORCH.of_rows(weight_ih)?, TORCH.of_rows(weight_hh)?);
        let biases = biases.map(|[a, b]| Ok([TORCH.of_vector(a)?, TORCH.of_vector(b)?])).transpose()?;
        Self::checked(kernel, recurrent, biases, Reset::AfterProduct)
    }

    /// As Keras keeps a `GRU`: `kernel` `[in, 3 · hidden]`, `recurrent` `[hidden, 3 · hidden]`, and with `reset_after`
    /// biases `[2, 3 · hidden]`, without it `[3 · hidden]`. Gates z, r, h.
    ///
    /// # Errors
    /// Shapes that do not fit each other.
    pub fn keras(kernel: &HostTensor, recurrent: &HostTensor, bias: Option<&HostTensor>, reset: Reset) -> Result<Self> {
        let biases = match (bias, reset) {
            (None, _) => None,
            (Some(bias), Reset::AfterProduct) => Some(IN_ORDER.halves(bias)?),
            (Some(bias), Reset::BeforeProduct) => Some([bias.clone(), HostTensor::zeros(bias.desc().clone())]),
        };
        Self::checked(kernel.clone(), recurrent.clone(), biases, reset)
    }

    /// One direction of ONNX's `GRU`. Gates z, r, h.
    ///
    /// # Errors
    /// Shapes that do not fit each other, a direction that the tensors lack.
    pub fn onnx(tensors: &OnnxGru<'_>, direction: usize) -> Result<Self> {
        let part = |tensor: &HostTensor| IN_ORDER.of_direction(tensor, direction);
        let (kernel, recurrent) = (IN_ORDER.of_rows(&part(tensors.w)?)?, IN_ORDER.of_rows(&part(tensors.r)?)?);
        let biases = tensors.b.map(|b| IN_ORDER.halves(&part(b)?)).transpose()?;
        Self::checked(kernel, recurrent, biases, tensors.reset)
    }

    /// Number of units.
    pub fn hidden(&self) -> usize {
        self.recurrent.shape()[0]
    }

    /// Width of the input.
    pub fn input(&self) -> usize {
        self.kernel.shape()[0]
    }

    /// Biases are the input's and the recurrent one, gates in the op's order. All that nothing scales is added up.
    fn checked(
        kernel: HostTensor,
        recurrent: HostTensor,
        biases: Option<[HostTensor; 2]>,
        reset: Reset,
    ) -> Result<Self> {
        let &[hidden, width] = recurrent.shape() else {
            return wrong(format!("recurrent weights have rank 2, got {}", recurrent.desc()));
        };
        if hidden.checked_mul(3) != Some(width) {
            return wrong(format!("recurrent weights of {hidden} units have 3 gates each, got {width} in all"));
        }
        if kernel.shape().len() != 2 || kernel.shape()[1] != width {
            return wrong(format!("input weights are {}, recurrent ones have {width} gates", kernel.desc()));
        }
        let (mut bias, mut candidate_bias) = (None, None);
        if let Some(biases) = biases {
            if let Some(biases) = biases.iter().find(|bias| bias.shape() != [width]) {
                return wrong(format!("bias is {}, weights have {width} gates", biases.desc()));
            }
            let [mut sum, mut recurrent] = biases.map(|bias| bias.to_f64());
            if reset == Reset::AfterProduct {
                let own = recurrent.drain(2 * hidden..).map(|x| x as f32).collect();
                candidate_bias = Some(Arc::new(HostTensor::f32(&[hidden], own)?));
            }
            sum.iter_mut().zip(recurrent).for_each(|(sum, x)| *sum += x);
            bias = Some(Arc::new(HostTensor::f32(&[width], sum.into_iter().map(|x| x as f32).collect())?));
        }
        Ok(Self { kernel: Arc::new(kernel), recurrent: Arc::new(recurrent), bias, candidate_bias, reset })
    }
}

impl Graph {
    /// A GRU layer: x `[batch, steps, in]`, whose projection is one product for all steps, and the recurrence. Two
    /// directions are two layers and a [`Graph::concat`] along the last axis.
    ///
    /// # Errors
    /// An input of another width than the weights', and what [`Graph::gru_steps`] refuses.
    pub fn gru(&mut self, x: Tensor, weights: &GruWeights, options: &GruOptions) -> Result<GruOutputs> {
        let desc = self.desc(x)?.clone();
        if desc.rank() != 3 || desc.row_length() != weights.input() {
            return wrong(format!("x is {desc}, the weights take [batch, steps, {}]", weights.input()));
        }
        let kernel = self.constant(weights.kernel.clone())?;
        let recurrent = self.constant(weights.recurrent.clone())?;
        let bias = weights.bias.clone().map(|bias| self.constant(bias)).transpose()?;
        let candidate_bias = weights.candidate_bias.clone().map(|bias| self.constant(bias)).transpose()?;
        // Rounding what gates add up from would cost more than rounding what they give.
        let projection = MatMul { output: Some(Dtype::F32), ..MatMul::default() };
        let gates = self.matmul(x, kernel, bias, projection)?;
        let reset = weights.reset;
        self.gru_steps(GruTensors { gates, recurrent, candidate_bias, reset, output: Some(desc.dtype) }, options)
    }
}

fn wrong<T>(message: String) -> Result<T> {
    Err(Error::shape("gru", message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;
    use crate::tensor::TensorDesc;

    fn tensor(shape: &[usize], data: &[f32]) -> HostTensor {
        HostTensor::f32(shape, data.to_vec()).unwrap()
    }

    /// One unit, one input, all gates different: as torch has it.
    fn torch() -> ([HostTensor; 2], [HostTensor; 2]) {
        let weights = [tensor(&[3, 1], &[0.1, 0.2, 0.3]), tensor(&[3, 1], &[0.4, 0.5, 0.6])];
        (weights, [tensor(&[3], &[0.01, 0.02, 0.03]), tensor(&[3], &[0.04, 0.05, 0.06])])
    }

    fn run(weights: &GruWeights, x: &HostTensor) -> Vec<f64> {
        let mut graph = Graph::new();
        let input = graph.input("x", x.desc().clone()).unwrap();
        let outputs = graph.gru(input, weights, &GruOptions::default()).unwrap();
        graph.output("y", outputs.sequence).unwrap();
        reference::run(&graph, &[("x", x)]).unwrap()["y"].to_f64()
    }

    #[test]
    fn a_layer_is_its_definition() {
        let ([ih, hh], [bias_ih, bias_hh]) = torch();
        let weights = GruWeights::torch(&ih, &hh, Some([&bias_ih, &bias_hh])).unwrap();
        assert_eq!((weights.hidden(), weights.input()), (1, 1));
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let mut h = 0.0;
        let mut wanted = Vec::new();
        for x in [1.0, -2.0] {
            let r = sigmoid(0.1 * x + 0.01 + 0.4 * h + 0.04);
            let z = sigmoid(0.2 * x + 0.02 + 0.5 * h + 0.05);
            let n = (0.3 * x + 0.03 + r * (0.6 * h + 0.06)).tanh();
            h = (1.0 - z) * n + z * h;
            wanted.push(h);
        }
        for (got, wanted) in run(&weights, &tensor(&[1, 2, 1], &[1.0, -2.0])).iter().zip(wanted) {
            assert!((got - wanted).abs() < 1e-6, "{got} is not {wanted}");
        }
    }

    #[test]
    fn frameworks_agree() {
        let ([ih, hh], [bias_ih, bias_hh]) = torch();
        let torch = GruWeights::torch(&ih, &hh, Some([&bias_ih, &bias_hh])).unwrap();
        let (w, r) = (tensor(&[1, 3, 1], &[0.2, 0.1, 0.3]), tensor(&[1, 3, 1], &[0.5, 0.4, 0.6]));
        let b = tensor(&[1, 6], &[0.02, 0.01, 0.03, 0.05, 0.04, 0.06]);
        let onnx = |reset| GruWeights::onnx(&OnnxGru { w: &w, r: &r, b: Some(&b), reset }, 0).unwrap();
        assert_eq!(onnx(Reset::AfterProduct), torch);
        let keras = |bias: &HostTensor, reset| GruWeights::keras(&torch.kernel, &torch.recurrent, Some(bias), reset);
        assert_eq!(keras(&b.clone().reshape(&[2, 3]).unwrap(), Reset::AfterProduct).unwrap(), torch);
        // Nothing scales the candidate's recurrent bias: it is added to the other.
        let before = onnx(Reset::BeforeProduct);
        assert_eq!(before.candidate_bias, None);
        let summed = before.bias.clone().unwrap();
        assert!((summed.to_f64()[2] - 0.09).abs() < 1e-7);
        assert_eq!(keras(&summed, Reset::BeforeProduct).unwrap(), before);
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let refused = |result: Result<GruWeights>, message: &str| {
            assert_eq!(result.unwrap_err().to_string(), format!("gru: {message}"));
        };
        let of = |shape: &[usize]| HostTensor::zeros(TensorDesc::new(Dtype::F32, shape));
        let (ih, hh) = (of(&[9, 2]), of(&[9, 3]));
        refused(GruWeights::torch(&of(&[10, 2]), &hh, None), "weights have rows for 3 gates, got f32 [10, 2]");
        refused(
            GruWeights::torch(&ih, &of(&[9, 4]), None),
            "recurrent weights of 4 units have 3 gates each, got 9 in all",
        );
        refused(
            GruWeights::torch(&of(&[6, 2]), &hh, None),
            "input weights are f32 [2, 6], recurrent ones have 9 gates",
        );
        let odd = GruWeights::keras(&of(&[2, 9]), &of(&[3, 9]), Some(&of(&[9])), Reset::AfterProduct);
        refused(odd, "f32 [9] is not two biases");
        let short = GruWeights::keras(&of(&[2, 9]), &of(&[3, 9]), Some(&of(&[8])), Reset::BeforeProduct);
        refused(short, "bias is f32 [8], weights have 9 gates");
        let weights = GruWeights::torch(&ih, &hh, None).unwrap();
        let mut graph = Graph::new();
        let x = graph.input("x", TensorDesc::new(Dtype::F32, [5, 2])).unwrap();
        let error = graph.gru(x, &weights, &GruOptions::default()).unwrap_err().to_string();
        assert_eq!(error, "gru: x is f32 [5, 2], the weights take [batch, steps, 2]");
    }
}
