//! Rewrites of a graph before its steps are laid out: fewer nodes that compute the same.
//!
//! Each is a function that makes one node of two, and [`Rewrites`] turns it on and off. They look at concrete ops, which the
//! graph does not. What they save is traffic: an element-wise chain of its own reads and writes every element once more.

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;

use crate::capabilities::Capabilities;
use crate::graph::{Graph, Node, Origin, Tensor};
use crate::op::Op;
use crate::ops::{Elementwise, Epilogue, MaskScores, MaskedSoftmax, MatMul, Operand, Softmax, Step};
use crate::tensor::TensorDesc;

/// Which rewrites a plan makes: by default all. Nodes stay as they are where a technique of theirs is asked for: element-wise
/// ones, masks and softmax.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rewrites {
    /// One or two element-wise steps after a product become its [`Epilogue`], with one tensor beside it as the residual.
    pub fold_epilogues: bool,
    /// Two element-wise chains, of which one continues the other, become one.
    pub join_chains: bool,
    /// A softmax takes over the mask of its scores and becomes a [`MaskedSoftmax`]; not on software devices, where its lanes cost more
    /// than the two steps (`b=1,h=8,s=512,d=64,causal`, unfused: 270 ms in place of 157 on Mesa 22.3).
    pub mask_in_softmax: bool,
}

impl Default for Rewrites {
    fn default() -> Self {
        Self { fold_epilogues: true, join_chains: true, mask_in_softmax: true }
    }
}

impl Rewrites {
    /// None of them.
    pub const NONE: Self = Self { fold_epilogues: false, join_chains: false, mask_in_softmax: false };

    /// Those that suit a device and change no node of an op of which a technique is asked for.
    pub(crate) fn suited(self, capabilities: &Capabilities, is_asked_for: impl Fn(&str) -> bool) -> Self {
        let [chains, masks] =
            [&["elementwise"][..], &["mask_scores", "softmax"]].map(|ops| !ops.iter().any(|op| is_asked_for(op)));
        Self {
            fold_epilogues: self.fold_epilogues && chains,
            join_chains: self.join_chains && chains,
            mask_in_softmax: self.mask_in_softmax && masks && !capabilities.software,
        }
    }

    /// Makes them in a graph whose nodes are all needed.
    pub(crate) fn apply(self, graph: &mut Graph) {
        let kinds: [(bool, Find); 3] = [
            (self.fold_epilogues, |graph, links, index| of_chains(graph, links, index, folded)),
            (self.join_chains, |graph, links, index| of_chains(graph, links, index, joined)),
            (self.mask_in_softmax, masked),
        ];
        for (_, find) in kinds.into_iter().filter(|(wanted, _)| *wanted) {
            let mut links = Links::new(graph);
            for index in 0..graph.nodes.len() {
                if let Some((merged, chain)) = find(graph, &links, index) {
                    replace(graph, &mut links, index, merged, chain);
                }
            }
            let mut gone = links.gone.into_iter();
            graph.nodes.retain(|_| gone.next() == Some(false));
        }
    }
}

/// Who makes, reads and changes each tensor, kept up to date as nodes merge: looking that up in the graph each time would take
/// time with the square of its nodes.
struct Links {
    /// How often nodes read each root.
    reads: Vec<usize>,
    /// Roots that the graph's outputs keep.
    kept: Vec<bool>,
    /// The node that computes each root.
    producer: Vec<Option<usize>>,
    /// Nodes that change each memory in place, in order. These never merge.
    changes: HashMap<usize, Vec<usize>>,
    /// Nodes that others have taken over; they keep their places until all is done, and with them everybody's number.
    gone: Vec<bool>,
}

impl Links {
    fn new(graph: &Graph) -> Self {
        let tensors = graph.tensors.len();
        let mut links = Self {
            reads: vec![0; tensors],
            kept: vec![false; tensors],
            producer: vec![None; tensors],
            changes: HashMap::new(),
            gone: vec![false; graph.nodes.len()],
        };
        for (_, output) in &graph.outputs {
            links.kept[graph.root(*output)] = true;
        }
        for (index, node) in graph.nodes.iter().enumerate() {
            node.inputs.iter().for_each(|&input| links.reads[graph.root(input)] += 1);
            node.outputs.iter().for_each(|output| links.producer[output.index] = Some(index));
            for update in node.op.updates() {
                links.changes.entry(graph.memory(node.inputs[update.input])).or_default().push(index);
            }
        }
        links
    }

    /// Whether a node after `first` and before `index` changes this memory in place.
    fn is_changed(&self, memory: usize, first: usize, index: usize) -> bool {
        let Some(changes) = self.changes.get(&memory) else { return false };
        changes.get(changes.partition_point(|&at| at <= first)).is_some_and(|&at| at < index)
    }
}

/// What node `index` merges with, and the node that computes what both do.
type Find = fn(&Graph, &Links, usize) -> Option<(Merged, Chain)>;

/// The node that computes what a chain and the node before it compute; `None` where no op does.
type Merge = fn(&Graph, &Chain) -> Option<Merged>;

struct Merged {
    op: Arc<dyn Op>,
    inputs: Vec<Tensor>,
    /// The last of the inputs is to have this shape, of as many elements.
    last_shape: Option<Vec<usize>>,
}

/// An element-wise node as steps that start from what another node computes for it alone; or another node, without steps.
struct Chain {
    /// Index of the other node, which may as well run in this one's place.
    first: usize,
    /// The tensor between the two.
    value: Tensor,
    /// Their operands are inputs of the node; none is the value.
    steps: Vec<Step>,
    inputs: Vec<Tensor>,
    output: Tensor,
}

impl Chain {
    /// Inputs that steps take, in the order of the node.
    fn operands(&self) -> Vec<usize> {
        let taken = |input: &usize| self.steps.iter().any(|step| step.input() == Some(*input));
        (0..self.inputs.len()).filter(taken).collect()
    }

    /// The steps with other numbers for their operands.
    fn renumbered(&self, number: impl Fn(usize) -> usize) -> Vec<Step> {
        self.steps.iter().map(|step| step.with_input(&number)).collect()
    }
}

/// The ways to see a node as a chain; none unless it is element-wise.
fn chains(graph: &Graph, links: &Links, index: usize) -> Vec<Chain> {
    let node = &graph.nodes[index];
    let Some(Elementwise { steps }) = of_kind(node) else { return Vec::new() };
    let chain = |(place, &value): (usize, &Tensor)| {
        let first = only_producer(graph, links, index, value)?;
        let steps = started_at(steps, place)?;
        Some(Chain { first, value, steps, inputs: node.inputs.clone(), output: node.outputs[0] })
    };
    node.inputs.iter().enumerate().filter_map(chain).collect()
}

/// The first way to see a node as a chain that `merge` accepts.
fn of_chains(graph: &Graph, links: &Links, index: usize, merge: Merge) -> Option<(Merged, Chain)> {
    chains(graph, links, index).into_iter().find_map(|chain| Some((merge(graph, &chain)?, chain)))
}

/// Steps that start from another input than the first, which only the first step may take.
fn started_at(steps: &[Step], place: usize) -> Option<Vec<Step>> {
    let mut steps = steps.to_vec();
    if place > 0 {
        let first = steps.first_mut()?;
        *first = match *first {
            Step::Binary(f, Operand::Input(input)) if input == place => Step::Reversed(f, Operand::Input(0)),
            Step::Reversed(f, Operand::Input(input)) if input == place => Step::Binary(f, Operand::Input(0)),
            _ => return None,
        };
    }
    let value_is_taken = steps.iter().any(|step| step.input() == Some(place));
    let first_is_taken = place > 0 && steps[1..].iter().any(|step| step.input() == Some(0));
    (!value_is_taken && !first_is_taken).then_some(steps)
}

/// The node that computes this tensor for node `index` and nobody else, if nothing changes before `index` what it reads.
fn only_producer(graph: &Graph, links: &Links, index: usize, tensor: Tensor) -> Option<usize> {
    let root = graph.root(tensor);
    if links.reads[root] != 1 || links.kept[root] || !matches!(graph.tensors[root].origin, Origin::Node) {
        return None;
    }
    let first = links.producer[root]?;
    let node = &graph.nodes[first];
    let changed = node.inputs.iter().any(|&input| links.is_changed(graph.memory(input), first, index));
    // Masks may come in two steps, and are one here as long as a device can bind all of it.
    let whole = node.lowerings.is_empty() || of_kind::<MaskScores>(node).is_some();
    let alone = node.outputs.len() == 1 && whole && node.op.updates().is_empty();
    (alone && !changed).then_some(first)
}

/// Tensors that one step may have on every device: WebGPU's storage buffers.
const TENSORS: usize = 8;

/// A softmax with the mask of its scores.
fn masked(graph: &Graph, links: &Links, index: usize) -> Option<(Merged, Chain)> {
    let node = &graph.nodes[index];
    let softmax: &Softmax = of_kind(node)?;
    let first = only_producer(graph, links, index, node.inputs[0])?;
    let masks = &graph.nodes[first];
    let rule = of_kind::<MaskScores>(masks)?.rule;
    let (value, output) = (node.inputs[0], node.outputs[0]);
    if softmax.scale != 1.0 || value != masks.outputs[0] || !node.lowerings.is_empty() {
        return None;
    }
    let inputs: Vec<Tensor> = masks.inputs.iter().chain(&node.inputs[1..]).copied().collect();
    let op = MaskedSoftmax { rule, has_sinks: softmax.has_sinks };
    let descs: Vec<TensorDesc> = inputs.iter().map(|&input| graph.tensors[input.index].desc.clone()).collect();
    op.outputs(&descs).ok().filter(|_| inputs.len() < TENSORS)?;
    let chain = Chain { first, value, steps: Vec::new(), inputs: node.inputs.clone(), output };
    Some((Merged { op: Arc::new(op), inputs, last_shape: None }, chain))
}

/// A product with the chain for an epilogue.
fn folded(graph: &Graph, chain: &Chain) -> Option<Merged> {
    let node = &graph.nodes[chain.first];
    let product: &MatMul = of_kind(node)?;
    let desc = |tensor: Tensor| &graph.tensors[tensor.index].desc;
    let result = desc(node.outputs[0]);
    let operands = chain.operands();
    let whole = |tensor: Tensor| desc(tensor).len() == result.len();
    let taken = usize::from(product.epilogue.has_residual()) + operands.len();
    if taken > 1 || !whole(chain.output) || !operands.iter().all(|&input| whole(chain.inputs[input])) {
        return None;
    }
    let steps: Vec<Step> = product.epilogue.steps().chain(chain.renumbered(|_| 1)).collect();
    let op = MatMul { epilogue: Epilogue::of(&steps)?, output: Some(result.dtype), ..*product };
    let residual = operands.first().map(|&input| chain.inputs[input]);
    let mut descs: Vec<TensorDesc> = node.inputs.iter().map(|&input| desc(input).clone()).collect();
    descs.extend(residual.map(|residual| TensorDesc::new(desc(residual).dtype, &result.shape[..])));
    op.outputs(&descs).ok()?;
    let inputs = node.inputs.iter().copied().chain(residual).collect();
    Some(Merged { op: Arc::new(op), inputs, last_shape: residual.map(|_| result.shape.clone()) })
}

/// A chain that the chain continues.
fn joined(graph: &Graph, chain: &Chain) -> Option<Merged> {
    let node = &graph.nodes[chain.first];
    let before: &Elementwise = of_kind(node)?;
    let desc = |tensor: Tensor| &graph.tensors[tensor.index].desc;
    if chain.value != node.outputs[0] || desc(chain.value) != desc(chain.output) {
        return None;
    }
    let operands = chain.operands();
    let place = |input: usize| operands.iter().position(|&operand| operand == input).unwrap_or(0);
    let mut steps = before.steps.clone();
    steps.extend(chain.renumbered(|input| node.inputs.len() + place(input)));
    let inputs: Vec<Tensor> =
        node.inputs.iter().copied().chain(operands.iter().map(|&input| chain.inputs[input])).collect();
    let op = Elementwise { steps };
    let descs: Vec<TensorDesc> = inputs.iter().map(|&input| desc(input).clone()).collect();
    op.outputs(&descs).ok().filter(|outputs| outputs[0] == *desc(chain.output))?;
    Some(Merged { op: Arc::new(op), inputs, last_shape: None })
}

/// Puts one node into the place of node `index`, and takes away the one before it that its chain starts from.
fn replace(graph: &mut Graph, links: &mut Links, index: usize, merged: Merged, chain: Chain) {
    let Merged { op, mut inputs, last_shape } = merged;
    if let (Some(shape), Some(last)) = (last_shape, inputs.last_mut()) {
        let dtype = graph.tensors[last.index].desc.dtype;
        *last = graph.push(TensorDesc::new(dtype, shape), Origin::Reshape(*last), String::new());
    }
    let first = graph.nodes[chain.first].clone();
    for &read in first.inputs.iter().chain(&chain.inputs) {
        links.reads[graph.root(read)] -= 1;
    }
    inputs.iter().for_each(|&read| links.reads[graph.root(read)] += 1);
    let (result, output) = (first.outputs[0], chain.output.index);
    // Who reads the chain's output reads the node's from here on.
    links.reads[result.index] = links.reads[output];
    links.kept[result.index] = links.kept[output];
    links.producer[result.index] = Some(index);
    links.gone[chain.first] = true;
    let then = first.then.into_iter().chain(chain.steps.iter().map(ToString::to_string)).collect();
    graph.nodes[index] = Node { op, inputs, outputs: first.outputs, lowerings: Vec::new(), then, ..first };
    graph.tensors[output].origin = Origin::Reshape(result);
}

fn of_kind<T: Op + 'static>(node: &Node) -> Option<&T> {
    let op: &dyn Any = &*node.op;
    op.downcast_ref()
}

#[cfg(test)]
mod tests;
