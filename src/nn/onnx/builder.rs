//! What every importer needs: the slots and attributes of a node, and the graph under construction.

use std::ops::Range;

use safetensors::Dtype as StoredDtype;
use serde_json::Value;

use super::{OnnxNode, Stored};
use crate::error::Result;
use crate::graph::{Graph, Tensor};
use crate::nn::golden::GoldenGraph;
use crate::tensor::{Dtype, HostTensor};

/// The slots of an operator.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slots {
    /// Names of the inputs, in order.
    pub inputs: &'static [&'static str],
    /// How many of them must be given, from the first on.
    pub required: usize,
    /// Number of outputs.
    pub outputs: usize,
}

/// A node under construction: each named input is one tensor, however many slots take it.
pub(super) struct Builder<'a> {
    pub node: &'a OnnxNode,
    pub graph: Graph,
    names: &'static [&'static str],
    added: Vec<(String, HostTensor, Tensor)>,
}

impl<'a> Builder<'a> {
    /// An empty graph for a node whose slots are checked: none that the operator lacks, none that it needs is empty, and no
    /// tensor without a slot.
    pub fn new(node: &'a OnnxNode, slots: &Slots) -> Result<Self> {
        let extra = |names: &[String], known| names.iter().skip(known).find(|name| !name.is_empty()).cloned();
        if let Some(name) = extra(&node.inputs, slots.inputs.len()).or_else(|| extra(&node.outputs, slots.outputs)) {
            return Err(node.fail(format!("{}-{} has no slot for `{name}`", node.operator, node.opset)));
        }
        let given = node.tensors.keys().filter_map(|name| name.strip_prefix("in."));
        if let Some(name) = given.into_iter().find(|name| !node.inputs.iter().any(|input| input == name)) {
            return Err(node.fail(format!("tensor `in.{name}` is in no input slot")));
        }
        let builder = Self { node, graph: Graph::new(), names: slots.inputs, added: Vec::new() };
        (0..slots.required).try_for_each(|slot| builder.required(slot).map(|_| ()))?;
        Ok(builder)
    }

    /// The file's tensor in an input slot; `None` where the slot is not used.
    pub fn slot(&self, slot: usize) -> Result<Option<&'a Stored>> {
        let name = self.node.inputs.get(slot).filter(|name| !name.is_empty());
        name.map(|name| self.node.stored(&format!("in.{name}"))).transpose()
    }

    /// The same for a slot that must be used.
    pub fn required(&self, slot: usize) -> Result<&'a Stored> {
        self.slot(slot)?.ok_or_else(|| self.node.fail(format!("input `{}` is absent", self.names[slot])))
    }

    /// Sizes of a tensor that must be there.
    pub fn shape(&self, slot: usize) -> Result<&'a [usize]> {
        Ok(self.required(slot)?.value.shape())
    }

    /// What floats of these slots are computed in: f16 where all that are given are f16, else f32, which holds bf16 exactly.
    pub fn float_dtype(&self, slots: &[usize]) -> Result<Dtype> {
        let mut common = Dtype::F16;
        for &slot in slots {
            match self.slot(slot)?.map(|stored| stored.dtype) {
                None | Some(StoredDtype::F16) => {}
                Some(StoredDtype::F32 | StoredDtype::BF16) => common = Dtype::F32,
                Some(other) => {
                    let name = self.names[slot];
                    return Err(self.node.fail(format!("input `{name}` is {other:?}; f32, f16 or bf16 was expected")));
                }
            }
        }
        Ok(common)
    }

    /// As [`Builder::float_dtype`], for slots that must be of one type.
    pub fn one_float_dtype(&self, slots: &[usize]) -> Result<Dtype> {
        let first = self.required(slots[0])?.dtype;
        for &slot in slots {
            if let Some(stored) = self.slot(slot)?.filter(|stored| stored.dtype != first) {
                let (name, other) = (self.names[slot], self.names[slots[0]]);
                let message = format!("input `{name}` is {:?}, and `{other}` is {first:?}", stored.dtype);
                return Err(self.node.fail(message));
            }
        }
        self.float_dtype(slots)
    }

    /// Refuses a tensor of another shape.
    pub fn expect_shape(&self, slot: usize, shape: &[usize]) -> Result<()> {
        match self.slot(slot)?.map(|stored| stored.value.shape()) {
            Some(found) if found != shape => {
                let name = self.names[slot];
                Err(self.node.fail(format!("input `{name}` has shape {found:?}, {shape:?} was expected")))
            }
            _ => Ok(()),
        }
    }

    /// The graph's tensor for an input slot that is used.
    pub fn input(&mut self, slot: usize, value: HostTensor) -> Result<Tensor> {
        let name = &self.node.inputs[slot];
        // The same bits, as a NaN is not even equal to itself.
        let same = |known: &HostTensor| known.desc() == value.desc() && known.bytes() == value.bytes();
        if let Some((.., tensor)) = self.added.iter().find(|(added, known, _)| added == name && same(known)) {
            return Ok(*tensor);
        }
        // Another slot of the same name may have taken the tensor in another form.
        let taken = self.added.iter().any(|(added, ..)| added == name);
        let name = if taken { format!("{name} as {}", self.names[slot]) } else { name.clone() };
        let tensor = self.graph.input(&name, value.desc().clone())?;
        self.added.push((name, value, tensor));
        Ok(tensor)
    }

    /// The graph's tensor for a slot that must be used, as a float of this type.
    pub fn float(&mut self, slot: usize, dtype: Dtype) -> Result<Tensor> {
        let value = self.required(slot)?.value.cast(dtype);
        self.input(slot, value)
    }

    /// The tensor as a float of this type; itself where it is one.
    pub fn cast(&mut self, tensor: Tensor, dtype: Dtype) -> Result<Tensor> {
        if self.graph.desc(tensor)?.dtype == dtype { Ok(tensor) } else { self.graph.cast(tensor, dtype) }
    }

    /// Whether an output slot is used.
    pub fn wants(&self, slot: usize) -> bool {
        self.node.wants(slot)
    }

    /// Gives an output slot its tensor; nothing where the slot is not used.
    pub fn output(&mut self, slot: usize, tensor: Tensor) -> Result<()> {
        match self.node.outputs.get(slot).filter(|name| !name.is_empty()) {
            Some(name) => self.graph.output(name, tensor),
            None => Ok(()),
        }
    }

    /// The graph with the values of its inputs.
    pub fn finish(self) -> GoldenGraph {
        let inputs = self.added.into_iter().map(|(name, value, _)| (name, value)).collect();
        GoldenGraph { graph: self.graph, inputs }
    }
}

/// The attributes of a node, read by name; what is never asked for is refused in the end.
pub(super) struct Attributes<'a> {
    node: &'a OnnxNode,
    read: Vec<&'static str>,
}

impl<'a> Attributes<'a> {
    pub fn of(node: &'a OnnxNode) -> Self {
        Self { node, read: Vec::new() }
    }

    /// The attribute as it is, where it is given.
    pub fn find(&mut self, name: &'static str) -> Option<&'a Value> {
        self.read.push(name);
        self.node.attributes.get(name)
    }

    /// An integer of this range, where it is given.
    pub fn integer(&mut self, name: &'static str, range: Range<i64>) -> Result<Option<i64>> {
        let node = self.node;
        self.find(name).map(|value| integer(node, name, value, range)).transpose()
    }

    /// A number, where it is given.
    pub fn float(&mut self, name: &'static str) -> Result<Option<f32>> {
        let node = self.node;
        self.find(name).map(|value| float(node, name, value)).transpose()
    }

    /// Whether a switch is on, which is one number of two.
    pub fn switch(&mut self, name: &'static str) -> Result<bool> {
        Ok(self.integer(name, 0..2)? == Some(1))
    }

    /// So many integers of this range, where they are given.
    pub fn integers(&mut self, name: &'static str, count: usize, range: Range<i64>) -> Result<Option<Vec<i64>>> {
        let (node, Some(value)) = (self.node, self.find(name)) else { return Ok(None) };
        let Some(list) = value.as_array().filter(|list| list.len() == count) else {
            return Err(node.fail(format!("attribute `{name}` is {value}, a list of {count} integers was expected")));
        };
        list.iter().map(|value| integer(node, name, value, range.clone())).collect::<Result<_>>().map(Some)
    }

    /// Texts, where they are given.
    pub fn texts(&mut self, name: &'static str) -> Result<Option<Vec<&'a str>>> {
        let (node, Some(value)) = (self.node, self.find(name)) else { return Ok(None) };
        let texts = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
        let expected = || node.fail(format!("attribute `{name}` is {value}, a list of texts was expected"));
        texts.ok_or_else(expected).map(Some)
    }

    /// A text, where it is given.
    pub fn any_text(&mut self, name: &'static str) -> Result<Option<&'a str>> {
        let (node, Some(value)) = (self.node, self.find(name)) else { return Ok(None) };
        let expected = || node.fail(format!("attribute `{name}` is {value}, a text was expected"));
        value.as_str().ok_or_else(expected).map(Some)
    }

    /// The index of a text among those that are known, where it is given.
    pub fn text(&mut self, name: &'static str, known: &[&str]) -> Result<Option<usize>> {
        let node = self.node;
        let found = self.find(name).map(|value| {
            let index = known.iter().position(|known| value.as_str() == Some(known));
            let expected = || format!("attribute `{name}` is {value}, one of {known:?} was expected");
            index.ok_or_else(|| node.fail(expected()))
        });
        found.transpose()
    }

    /// An axis of a tensor of so many, counted from the back where it is negative.
    pub fn axis(&mut self, name: &'static str, default: i64, rank: usize) -> Result<usize> {
        let rank = rank as i64;
        let axis = self.integer(name, -rank..rank)?.unwrap_or(default);
        match usize::try_from(if axis < 0 { axis + rank } else { axis }) {
            Ok(axis) if (axis as i64) < rank => Ok(axis),
            _ => Err(self.node.fail(format!("axis {axis} is none of a tensor of rank {rank}"))),
        }
    }

    /// Refuses attributes that were not read.
    pub fn finish(self) -> Result<()> {
        let node = self.node;
        match node.attributes.iter().find(|(name, _)| !self.read.contains(&name.as_str())) {
            Some((name, value)) => Err(unknown(node, name, value)),
            None => Ok(()),
        }
    }
}

/// The error for an attribute that the operator lacks.
pub(super) fn unknown(node: &OnnxNode, name: &str, value: &Value) -> crate::error::Error {
    node.fail(format!("{}-{} has no attribute `{name}` = {value}", node.operator, node.opset))
}

/// An attribute's integer, which must lie in this range; the end `i64::MAX` is no end.
pub(super) fn integer(node: &OnnxNode, name: &str, value: &Value, range: Range<i64>) -> Result<i64> {
    let number = value.as_i64().filter(|number| range.contains(number));
    number.ok_or_else(|| {
        let range = if range.end == i64::MAX {
            range.start.to_string()
        } else {
            format!("{} to {}", range.start, range.end - 1)
        };
        node.fail(format!("attribute `{name}` is {value}, an integer from {range} was expected"))
    })
}

/// An attribute's number.
pub(super) fn float(node: &OnnxNode, name: &str, value: &Value) -> Result<f32> {
    let number = value.as_f64().map(|number| number as f32);
    number.ok_or_else(|| node.fail(format!("attribute `{name}` is {value}, a number was expected")))
}
