//! The oracle: a graph by its ops' definitions, in f64 from end to end.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::graph::{Graph, Origin};
use crate::op::Rows;
use crate::tensor::HostTensor;

/// Every output of the graph as f64, by name. Intermediates are not rounded to their storage.
///
/// # Errors
/// An input that is missing or of another shape or dtype than the graph says.
pub fn run(graph: &Graph, inputs: &[(&str, &HostTensor)]) -> Result<BTreeMap<String, HostTensor>> {
    let mut values: Vec<Option<HostTensor>> = vec![None; graph.tensors.len()];
    for (index, info) in graph.tensors.iter().enumerate() {
        values[index] = match &info.origin {
            Origin::Input(name) => Some(input(name, &info.desc, inputs)?),
            Origin::Weight(value) => Some(HostTensor::clone(value)),
            Origin::Node | Origin::Update(_) | Origin::Reshape(_) => None,
        };
    }
    for node in &graph.nodes {
        let inputs: Vec<HostTensor> = node.inputs.iter().map(|&tensor| viewed(graph, &values, tensor)).collect();
        let outputs = node.op.reference(&inputs.iter().collect::<Vec<_>>(), Rows::All);
        for (tensor, value) in node.outputs.iter().zip(outputs) {
            values[tensor.index] = Some(value);
        }
    }
    Ok(graph.outputs.iter().map(|(name, tensor)| (name.clone(), viewed(graph, &values, *tensor))).collect())
}

fn input(name: &str, desc: &crate::tensor::TensorDesc, inputs: &[(&str, &HostTensor)]) -> Result<HostTensor> {
    let Some((_, value)) = inputs.iter().find(|(given, _)| *given == name) else {
        return Err(Error::Plan(format!("input `{name}` was not given")));
    };
    if value.desc() != desc {
        return Err(Error::Plan(format!("input `{name}` is {desc}, got {}", value.desc())));
    }
    Ok(HostTensor::clone(value))
}

/// The tensor's value under its own shape; nodes are in order, so it exists.
fn viewed(graph: &Graph, values: &[Option<HostTensor>], tensor: crate::graph::Tensor) -> HostTensor {
    let value = values[graph.root(tensor)].clone().expect("nodes come after what they read");
    value.reshape(&graph.tensors[tensor.index].desc.shape).expect("the graph checked the number of elements")
}
