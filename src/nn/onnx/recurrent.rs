//! ONNX's `LSTM` and `GRU`, from opset 7 on, with the gates and functions that the ops have.

use safetensors::Dtype as StoredDtype;

use super::OnnxNode;
use super::builder::{Attributes, Builder, Slots};
use crate::attention::Strategy;
use crate::error::Result;
use crate::graph::Tensor;
use crate::nn::golden::GoldenGraph;
use crate::nn::{GruWeights, LstmWeights, OnnxGru, OnnxLstm};
use crate::ops::{AxisSlice, Direction, Gate, GruOptions, LstmOptions, Reset};
use crate::tensor::{Dtype, HostTensor, TensorDesc};

const LSTM: Slots =
    Slots { inputs: &["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"], required: 3, outputs: 3 };
const GRU: Slots = Slots { inputs: &["X", "W", "R", "B", "sequence_lens", "initial_h"], required: 3, outputs: 2 };
const X: usize = 0;
const W: usize = 1;
const R: usize = 2;
const B: usize = 3;
const LENGTHS: usize = 4;
const INITIAL_H: usize = 5;
const INITIAL_C: usize = 6;
const PEEPHOLES: usize = 7;

pub(super) fn lstm(node: &OnnxNode, _: Strategy) -> Result<GoldenGraph> {
    let mut attributes = Attributes::of(node);
    if attributes.switch("input_forget")? {
        return Err(node.fail("attribute `input_forget` is 1, coupled gates are not supported"));
    }
    let builder = Builder::new(node, &LSTM)?;
    let dtype = builder.one_float_dtype(&[X, W, R, B, INITIAL_H, INITIAL_C, PEEPHOLES])?;
    let mut layer = Layer::read(builder, attributes, dtype, &["Tanh", "Tanh"])?;
    layer.expect_weights(4)?;
    let [w, r] = [layer.weight(W)?, layer.weight(R)?];
    let [b, p] = [layer.optional_weight(B)?, layer.optional_weight(PEEPHOLES)?];
    let (mut sequences, mut last_h, mut last_c) = (Vec::new(), Vec::new(), Vec::new());
    for (number, direction) in layer.directions.iter().copied().enumerate() {
        let weights = LstmWeights::onnx(&OnnxLstm { w: &w, r: &r, b: b.as_ref(), p: p.as_ref() }, number)?;
        let state = match (layer.state(INITIAL_H, number)?, layer.state(INITIAL_C, number)?) {
            (None, None) => None,
            (h, c) => Some([layer.or_zeros(h)?, layer.or_zeros(c)?]),
        };
        let (gate, lengths) = (layer.gates[number], layer.lengths);
        let options = LstmOptions { gate, direction, lengths, state, ..LstmOptions::default() };
        let outputs = layer.builder.graph.lstm(layer.x, &weights, &options)?;
        sequences.push(outputs.sequence);
        last_h.push(outputs.last_h);
        last_c.push(outputs.last_c);
    }
    layer.sequences(sequences)?;
    layer.last(1, last_h)?;
    layer.last(2, last_c)?;
    Ok(layer.builder.finish())
}

pub(super) fn gru(node: &OnnxNode, _: Strategy) -> Result<GoldenGraph> {
    let mut attributes = Attributes::of(node);
    let after = attributes.integer("linear_before_reset", i64::MIN..i64::MAX)?.unwrap_or(0) != 0;
    let reset = if after { Reset::AfterProduct } else { Reset::BeforeProduct };
    let builder = Builder::new(node, &GRU)?;
    let dtype = builder.one_float_dtype(&[X, W, R, B, INITIAL_H])?;
    let mut layer = Layer::read(builder, attributes, dtype, &["Tanh"])?;
    layer.expect_weights(3)?;
    let (w, r, b) = (layer.weight(W)?, layer.weight(R)?, layer.optional_weight(B)?);
    let (mut sequences, mut last_h) = (Vec::new(), Vec::new());
    for (number, direction) in layer.directions.iter().copied().enumerate() {
        let weights = GruWeights::onnx(&OnnxGru { w: &w, r: &r, b: b.as_ref(), reset }, number)?;
        let state = layer.state(INITIAL_H, number)?;
        let (gate, lengths) = (layer.gates[number], layer.lengths);
        let options = GruOptions { gate, direction, lengths, state, ..GruOptions::default() };
        let outputs = layer.builder.graph.gru(layer.x, &weights, &options)?;
        sequences.push(outputs.sequence);
        last_h.push(outputs.last_h);
    }
    layer.sequences(sequences)?;
    layer.last(1, last_h)?;
    Ok(layer.builder.finish())
}

/// Which axis of X comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Steps,
    Batch,
}

/// What both operators have in common.
struct Layer<'a> {
    builder: Builder<'a>,
    dtype: Dtype,
    order: Order,
    directions: &'static [Direction],
    /// For each direction.
    gates: Vec<Gate>,
    /// `[batch, steps, in]`.
    x: Tensor,
    lengths: Option<Tensor>,
    batch: usize,
    input: usize,
    hidden: usize,
}

impl<'a> Layer<'a> {
    /// `others` are the functions after the gates', which are fixed.
    fn read(mut builder: Builder<'a>, mut attributes: Attributes<'a>, dtype: Dtype, others: &[&str]) -> Result<Self> {
        let node = builder.node;
        let directions: &[Direction] = match attributes.text("direction", &["forward", "reverse", "bidirectional"])? {
            Some(1) => &[Direction::Backward],
            Some(2) => &[Direction::Forward, Direction::Backward],
            _ => &[Direction::Forward],
        };
        let order = if node.opset >= 14 && attributes.switch("layout")? { Order::Batch } else { Order::Steps };
        let gates = gates(node, &mut attributes, directions.len(), others)?;
        let hidden = attributes.integer("hidden_size", 1..i64::MAX)?.map(|size| size as usize);
        attributes.finish()?;
        let (&[first, second, input], &[_, _, units]) = (builder.shape(X)?, builder.shape(R)?) else {
            let (x, r) = (builder.shape(X)?, builder.shape(R)?);
            return Err(node.fail(format!("X and R have rank 3, X is {x:?}, R is {r:?}")));
        };
        let hidden = hidden.unwrap_or(units);
        let mut x = builder.float(X, dtype)?;
        let [batch, steps] = if order == Order::Batch { [first, second] } else { [second, first] };
        if order == Order::Steps {
            x = builder.graph.transpose(x, &[1, 0, 2])?;
        }
        let lengths = lengths(&builder, [batch, steps])?;
        let lengths = lengths.map(|lengths| builder.input(LENGTHS, lengths)).transpose()?;
        Ok(Self { builder, dtype, order, directions, gates, x, lengths, batch, input, hidden })
    }

    /// Checks the shapes of an operator with so many gates.
    fn expect_weights(&self, gates: usize) -> Result<()> {
        let (directions, hidden) = (self.directions.len(), self.hidden);
        let Some(width) = hidden.checked_mul(2 * gates).map(|both| both / 2) else {
            return Err(self.builder.node.fail(format!("attribute `hidden_size` is {hidden}, which is too much")));
        };
        self.builder.expect_shape(W, &[directions, width, self.input])?;
        self.builder.expect_shape(R, &[directions, width, hidden])?;
        self.builder.expect_shape(B, &[directions, 2 * width])?;
        if gates == 4 {
            self.builder.expect_shape(PEEPHOLES, &[directions, 3 * hidden])?;
        }
        Ok(())
    }

    fn weight(&self, slot: usize) -> Result<HostTensor> {
        Ok(self.builder.required(slot)?.value.cast(self.dtype))
    }

    fn optional_weight(&self, slot: usize) -> Result<Option<HostTensor>> {
        Ok(self.builder.slot(slot)?.map(|stored| stored.value.cast(self.dtype)))
    }

    /// The shape of a state of all directions, and which of its axes they are.
    fn state_shape(&self) -> ([usize; 3], usize) {
        let directions = self.directions.len();
        match self.order {
            Order::Steps => ([directions, self.batch, self.hidden], 0),
            Order::Batch => ([self.batch, directions, self.hidden], 1),
        }
    }

    /// A first state of one direction, `[batch, hidden]`, where it is given.
    fn state(&mut self, slot: usize, direction: usize) -> Result<Option<Tensor>> {
        let Some(stored) = self.builder.slot(slot)? else { return Ok(None) };
        let (shape, axis) = self.state_shape();
        self.builder.expect_shape(slot, &shape)?;
        let mut state = self.builder.input(slot, stored.value.cast(self.dtype))?;
        if self.directions.len() > 1 {
            let start = direction as i64;
            state = self.builder.graph.slice(state, &[AxisSlice { axis, start, end: start + 1, step: 1 }])?;
        }
        self.builder.graph.reshape(state, &[self.batch, self.hidden]).map(Some)
    }

    fn or_zeros(&mut self, state: Option<Tensor>) -> Result<Tensor> {
        let zeros = || HostTensor::zeros(TensorDesc::new(self.dtype, [self.batch, self.hidden]));
        state.map_or_else(|| self.builder.graph.constant(zeros()), Ok)
    }

    /// Puts out Y from the sequence of each direction, `[batch, steps, hidden]`.
    fn sequences(&mut self, sequences: Vec<Tensor>) -> Result<()> {
        let graph = &mut self.builder.graph;
        let mut parts = Vec::new();
        for sequence in sequences {
            let sequence = if self.order == Order::Steps { graph.transpose(sequence, &[1, 0, 2])? } else { sequence };
            let &[first, second, hidden] = &graph.desc(sequence)?.shape[..] else { continue };
            let shape =
                if self.order == Order::Steps { [first, 1, second, hidden] } else { [first, second, 1, hidden] };
            parts.push(graph.reshape(sequence, &shape)?);
        }
        self.joined(0, parts, if self.order == Order::Steps { 1 } else { 2 })
    }

    /// Puts out the last state of each direction, `[batch, hidden]`.
    fn last(&mut self, slot: usize, states: Vec<Tensor>) -> Result<()> {
        let (mut shape, axis) = self.state_shape();
        shape[axis] = 1;
        let parts = states.into_iter().map(|state| self.builder.graph.reshape(state, &shape));
        let parts = parts.collect::<Result<_>>()?;
        self.joined(slot, parts, axis)
    }

    fn joined(&mut self, slot: usize, parts: Vec<Tensor>, axis: usize) -> Result<()> {
        let graph = &mut self.builder.graph;
        match parts[..] {
            _ if !self.builder.node.wants(slot) => Ok(()),
            [first, second] => {
                let both = graph.concat(first, second, axis)?;
                self.builder.output(slot, both)
            }
            _ => parts.into_iter().try_for_each(|part| self.builder.output(slot, part)),
        }
    }
}

/// The function of the gates, for each direction.
fn gates(node: &OnnxNode, attributes: &mut Attributes<'_>, directions: usize, others: &[&str]) -> Result<Vec<Gate>> {
    let Some(names) = attributes.texts("activations")? else { return Ok(vec![Gate::Sigmoid; directions]) };
    let refused = || {
        let known = format!("Sigmoid or HardSigmoid, then {}, for each direction", others.join(", "));
        node.fail(format!("attribute `activations` is {names:?}; {known}, is supported"))
    };
    let count = 1 + others.len();
    if names.len() != count * directions {
        return Err(refused());
    }
    let gate = |names: &[&str]| match names[0] {
        _ if &names[1..] != others => Err(refused()),
        "Sigmoid" => Ok(Gate::Sigmoid),
        // ONNX's defaults, 0.2 and 0.5, are those of the op.
        "HardSigmoid" => Ok(Gate::HardSigmoid),
        _ => Err(refused()),
    };
    names.chunks_exact(count).map(gate).collect()
}

/// `sequence_lens` as the graph takes them.
fn lengths(builder: &Builder<'_>, [batch, steps]: [usize; 2]) -> Result<Option<HostTensor>> {
    let (node, Some(stored)) = (builder.node, builder.slot(LENGTHS)?) else { return Ok(None) };
    if stored.dtype != StoredDtype::I32 {
        return Err(node.fail(format!("input `sequence_lens` is {:?}, i32 was expected", stored.dtype)));
    }
    builder.expect_shape(LENGTHS, &[batch])?;
    if let Some(outside) = stored.value.to_f64().iter().find(|&&length| !(0.0..=steps as f64).contains(&length)) {
        return Err(node.fail(format!("sequence_lens holds {outside}, and there are {steps} steps")));
    }
    Ok(Some(stored.value.cast(Dtype::U32)))
}
