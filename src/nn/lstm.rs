//! An LSTM layer: the projection of its input, then the recurrence.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::nn::gates::Gates;
use crate::ops::{LstmOptions, LstmOutputs, LstmTensors, MatMul};
use crate::tensor::{Dtype, HostTensor};

/// Weights of one layer and direction, whichever framework they come from, as the op takes them: gates in the order
/// input, forget, candidate, output, side by side in columns.
///
/// Graphs that are built from one `LstmWeights` or its clones share the tensors on a device.
#[derive(Debug, Clone, PartialEq)]
pub struct LstmWeights {
    kernel: Arc<HostTensor>,
    recurrent: Arc<HostTensor>,
    bias: Option<Arc<HostTensor>>,
    peepholes: Option<Arc<HostTensor>>,
}

/// The tensors of ONNX's `LSTM`, which hold all directions: W `[directions, 4 · hidden, in]`, R
/// `[directions, 4 · hidden, hidden]`, B `[directions, 8 · hidden]`, P `[directions, 3 · hidden]`.
#[derive(Debug, Clone, Copy)]
pub struct OnnxLstm<'a> {
    /// W.
    pub w: &'a HostTensor,
    /// R.
    pub r: &'a HostTensor,
    /// B, input biases before recurrent ones.
    pub b: Option<&'a HostTensor>,
    /// P: input, output and forget gate.
    pub p: Option<&'a HostTensor>,
}

/// Where each gate of the op is among those of torch and Keras, and of ONNX (i, o, f, c).
const IN_ORDER: Gates<4> = Gates { op: "lstm", from: [0, 1, 2, 3] };
const ONNX: Gates<4> = Gates { op: "lstm", from: [0, 2, 3, 1] };
const ONNX_PEEPHOLES: Gates<3> = Gates { op: "lstm", from: [0, 2, 1] };

impl LstmWeights {
    /// As `torch.nn.LSTM` keeps a layer: `weight_ih` `[4 · hidden, in]`, `weight_hh` `[4 · hidden, hidden]`, and both
    /// biases `[4 · hidden]`, which are added. Gates i, f, g, o.
    ///
    /// # Errors
    /// Shapes that do not fit each other.
    pub fn torch(weight_ih: &HostTensor, weight_hh: &HostTensor, biases: Option<[&HostTensor; 2]>) -> Result<Self> {
        let (kernel, recurrent) = (IN_ORDER.of_rows(weight_ih)?, IN_ORDER.of_rows(weight_hh)?);
        let bias = biases.map(|biases| IN_ORDER.of_sum(biases)).transpose()?;
        Self::checked(kernel, recurrent, bias, None)
    }

    /// As Keras keeps an `LSTM`: `kernel` `[in, 4 · hidden]`, `recurrent` `[hidden, 4 · hidden]`, one bias `[4 ·
    /// hidden]`. Gates i, f, c, o.
    ///
    /// # Errors
    /// Shapes that do not fit each other.
    pub fn keras(kernel: &HostTensor, recurrent: &HostTensor, bias: Option<&HostTensor>) -> Result<Self> {
        Self::checked(kernel.clone(), recurrent.clone(), bias.cloned(), None)
    }

    /// One direction of ONNX's `LSTM`. Gates i, o, f, c.
    ///
    /// # Errors
    /// Shapes that do not fit each other, a direction that the tensors lack.
    pub fn onnx(tensors: &OnnxLstm<'_>, direction: usize) -> Result<Self> {
        let part = |tensor: &HostTensor| ONNX.of_direction(tensor, direction);
        let (kernel, recurrent) = (ONNX.of_rows(&part(tensors.w)?)?, ONNX.of_rows(&part(tensors.r)?)?);
        let bias =
            tensors.b.map(|b| ONNX.halves(&part(b)?).and_then(|[wb, rb]| ONNX.of_sum([&wb, &rb]))).transpose()?;
        let peepholes = tensors.p.map(|p| ONNX_PEEPHOLES.of_vector(&part(p)?)).transpose()?;
        Self::checked(kernel, recurrent, bias, peepholes)
    }

    /// Number of units.
    pub fn hidden(&self) -> usize {
        self.recurrent.shape()[0]
    }

    /// Width of the input.
    pub fn input(&self) -> usize {
        self.kernel.shape()[0]
    }

    fn checked(
        kernel: HostTensor,
        recurrent: HostTensor,
        bias: Option<HostTensor>,
        peepholes: Option<HostTensor>,
    ) -> Result<Self> {
        let &[hidden, width] = recurrent.shape() else {
            return wrong(format!("recurrent weights have rank 2, got {}", recurrent.desc()));
        };
        if hidden.checked_mul(4) != Some(width) {
            return wrong(format!("recurrent weights of {hidden} units have 4 gates each, got {width} in all"));
        }
        if kernel.shape().len() != 2 || kernel.shape()[1] != width {
            return wrong(format!("input weights are {}, recurrent ones have {width} gates", kernel.desc()));
        }
        if let Some(bias) = bias.as_ref().filter(|bias| bias.shape() != [width]) {
            return wrong(format!("bias is {}, weights have {width} gates", bias.desc()));
        }
        if let Some(peepholes) = peepholes.as_ref().filter(|peepholes| peepholes.shape() != [3 * hidden]) {
            return wrong(format!("peepholes are {}, there are {hidden} units", peepholes.desc()));
        }
        let shared = |tensor: Option<HostTensor>| tensor.map(Arc::new);
        let (kernel, recurrent) = (Arc::new(kernel), Arc::new(recurrent));
        Ok(Self { kernel, recurrent, bias: shared(bias), peepholes: shared(peepholes) })
    }
}

impl Graph {
    /// An LSTM layer: x `[batch, steps, in]`, whose projection is one product for all steps, and the recurrence. Two
    /// directions are two layers and a [`Graph::concat`] along the last axis.
    ///
    /// # Errors
    /// An input of another width than the weights', and what [`Graph::lstm_steps`] refuses.
    pub fn lstm(&mut self, x: Tensor, weights: &LstmWeights, options: &LstmOptions) -> Result<LstmOutputs> {
        let desc = self.desc(x)?.clone();
        if desc.rank() != 3 || desc.row_length() != weights.input() {
            return wrong(format!("x is {desc}, the weights take [batch, steps, {}]", weights.input()));
        }
        let kernel = self.constant(weights.kernel.clone())?;
        let recurrent = self.constant(weights.recurrent.clone())?;
        let bias = weights.bias.clone().map(|bias| self.constant(bias)).transpose()?;
        let peepholes = weights.peepholes.clone().map(|peepholes| self.constant(peepholes)).transpose()?;
        // Rounding what gates add up from would cost more than rounding what they give.
        let projection = MatMul { output: Some(Dtype::F32), ..MatMul::default() };
        let gates = self.matmul(x, kernel, bias, projection)?;
        self.lstm_steps(LstmTensors { gates, recurrent, peepholes, output: Some(desc.dtype) }, options)
    }
}

fn wrong<T>(message: String) -> Result<T> {
    Err(Error::shape("lstm", message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Direction;
    use crate::reference;
    use crate::tensor::TensorDesc;

    fn numbered(shape: &[usize], step: f32) -> HostTensor {
        let len = TensorDesc::new(Dtype::F32, shape).len();
        HostTensor::f32(shape, (0..len).map(|i| ((i * 37 % 23) as f32 - 11.0) * step).collect()).unwrap()
    }

    /// Blocks of rows moved, and rows into columns.
    fn moved(weight: &HostTensor, order: [usize; 4]) -> HostTensor {
        let (rows, columns) = (weight.shape()[0], weight.shape()[1]);
        let data = weight.as_f32().unwrap();
        let block = rows / 4 * columns;
        let blocks: Vec<f32> = order.iter().flat_map(|gate| data[gate * block..][..block].to_vec()).collect();
        HostTensor::f32(&[rows, columns], blocks).unwrap()
    }

    #[test]
    fn frameworks_agree() {
        let (ih, hh) = (numbered(&[12, 2], 0.05), numbered(&[12, 3], 0.03));
        let (bias_ih, bias_hh) = (numbered(&[12], 0.1), numbered(&[12], 0.01));
        let torch = LstmWeights::torch(&ih, &hh, Some([&bias_ih, &bias_hh])).unwrap();
        assert_eq!((torch.hidden(), torch.input()), (3, 2));
        // i, f, g, o as i, o, f, g.
        let order = [0, 3, 1, 2];
        let column = |bias: &HostTensor| moved(&bias.clone().reshape(&[12, 1]).unwrap(), order).to_f64();
        let both: Vec<f32> = [column(&bias_ih), column(&bias_hh)].concat().iter().map(|&x| x as f32).collect();
        let w = moved(&ih, order).reshape(&[1, 12, 2]).unwrap();
        let r = moved(&hh, order).reshape(&[1, 12, 3]).unwrap();
        let b = HostTensor::f32(&[1, 24], both).unwrap();
        let p = HostTensor::f32(&[1, 9], (0..9).map(|i| i as f32).collect()).unwrap();
        let onnx = LstmWeights::onnx(&OnnxLstm { w: &w, r: &r, b: Some(&b), p: Some(&p) }, 0).unwrap();
        assert_eq!(LstmWeights { peepholes: None, ..onnx.clone() }, torch);
        assert_eq!(onnx.peepholes.unwrap().to_f64(), [0.0, 1.0, 2.0, 6.0, 7.0, 8.0, 3.0, 4.0, 5.0]);
        let keras = LstmWeights::keras(&torch.kernel, &torch.recurrent, torch.bias.as_deref()).unwrap();
        assert_eq!(keras, torch);
        let kernel = torch.kernel.as_f32().unwrap();
        assert_eq!((kernel[1], kernel[12]), (ih.as_f32().unwrap()[2], ih.as_f32().unwrap()[1]));
    }

    #[test]
    fn a_layer_is_its_definition() {
        let (ih, hh) = (numbered(&[4, 1], 0.1), numbered(&[4, 1], 0.07));
        let weights = LstmWeights::torch(&ih, &hh, None).unwrap();
        let x = HostTensor::f32(&[1, 2, 1], vec![0.5, -1.0]).unwrap();
        let mut graph = Graph::new();
        let input = graph.input("x", x.desc().clone()).unwrap();
        let options = LstmOptions { direction: Direction::Backward, ..LstmOptions::default() };
        let outputs = graph.lstm(input, &weights, &options).unwrap();
        for (name, tensor) in [("sequence", outputs.sequence), ("h", outputs.last_h), ("c", outputs.last_c)] {
            graph.output(name, tensor).unwrap();
        }
        let got = reference::run(&graph, &[("x", &x)]).unwrap();
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let (mut h, mut c) = (0.0, 0.0);
        let mut sequence = [0.0; 2];
        for step in [1, 0] {
            let sum = |gate: usize| ih.to_f64()[gate] * x.to_f64()[step] + hh.to_f64()[gate] * h;
            let [i, f, g, o] = [0, 1, 2, 3].map(sum);
            c = sigmoid(f) * c + sigmoid(i) * g.tanh();
            h = sigmoid(o) * c.tanh();
            sequence[step] = h;
        }
        for (name, wanted) in [("sequence", &sequence[..]), ("h", &[h]), ("c", &[c])] {
            for (got, wanted) in got[name].to_f64().iter().zip(wanted) {
                assert!((got - wanted).abs() < 1e-12, "{name}: {got} is not {wanted}");
            }
        }
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let refused = |result: Result<LstmWeights>, message: &str| {
            assert_eq!(result.unwrap_err().to_string(), format!("lstm: {message}"));
        };
        let of = |shape: &[usize]| numbered(shape, 1.0);
        let (ih, hh) = (of(&[12, 2]), of(&[12, 3]));
        refused(LstmWeights::torch(&of(&[10, 2]), &hh, None), "weights have rows for 4 gates, got f32 [10, 2]");
        refused(LstmWeights::torch(&ih, &of(&[12]), None), "weights have rank 2, got f32 [12]");
        refused(
            LstmWeights::torch(&ih, &of(&[12, 4]), None),
            "recurrent weights of 4 units have 4 gates each, got 12 in all",
        );
        refused(
            LstmWeights::torch(&of(&[8, 2]), &hh, None),
            "input weights are f32 [2, 8], recurrent ones have 12 gates",
        );
        let biases = [&of(&[12]), &of(&[8])];
        refused(LstmWeights::torch(&ih, &hh, Some(biases)), "the input bias is f32 [12], the recurrent one f32 [8]");
        refused(
            LstmWeights::keras(&of(&[2, 12]), &of(&[3, 12]), Some(&of(&[3]))),
            "bias is f32 [3], weights have 12 gates",
        );
        let (w, r) = (of(&[1, 12, 2]), of(&[1, 12, 3]));
        let onnx = OnnxLstm { w: &w, r: &r, b: None, p: None };
        refused(LstmWeights::onnx(&onnx, 1), "f32 [1, 12, 2] has no direction 1");
        let mut graph = Graph::new();
        let x = graph.input("x", TensorDesc::new(Dtype::F32, [1, 5, 3])).unwrap();
        let weights = LstmWeights::onnx(&onnx, 0).unwrap();
        let error = graph.lstm(x, &weights, &LstmOptions::default()).unwrap_err().to_string();
        assert_eq!(error, "lstm: x is f32 [1, 5, 3], the weights take [batch, steps, 2]");
    }
}
