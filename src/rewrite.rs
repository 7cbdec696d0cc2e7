//! Rewrites of a graph before its steps are laid out: fewer nodes that compute the same.
//!
//! Each is a function that makes one node of two, and [`Rewrites`] turns it on and off. They look at concrete ops, which the
//! graph does not. What they save is traffic: an element-wise chain of its own reads and writes every element once more.

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;

use crate::graph::{Graph, Node, Origin, Tensor};
use crate::op::Op;
use crate::ops::{Elementwise, Epilogue, MatMul, Operand, Step};
use crate::tensor::TensorDesc;

/// Which rewrites a plan makes: by default all. Element-wise nodes stay as they are where a technique of theirs is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rewrites {
    /// One or two element-wise steps after a product become its [`Epilogue`], with one tensor beside it as the residual.
    pub fold_epilogues: bool,
    /// Two element-wise chains, of which one continues the other, become one.
    pub join_chains: bool,
}

impl Default for Rewrites {
    fn default() -> Self {
        Self { fold_epilogues: true, join_chains: true }
    }
}

impl Rewrites {
    /// None of them.
    pub const NONE: Self = Self { fold_epilogues: false, join_chains: false };

    /// Makes them in a graph whose nodes are all needed.
    pub(crate) fn apply(self, graph: &mut Graph) {
        let kinds: [(bool, Merge); 2] = [(self.fold_epilogues, folded), (self.join_chains, joined)];
        for (_, merge) in kinds.into_iter().filter(|(wanted, _)| *wanted) {
            let mut links = Links::new(graph);
            for index in 0..graph.nodes.len() {
                let chains = chains(graph, &links, index);
                let merged = chains.into_iter().find_map(|chain| Some((merge(graph, &chain)?, chain)));
                if let Some((merged, chain)) = merged {
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

/// The node that computes what a chain and the node before it compute; `None` where no op does.
type Merge = fn(&Graph, &Chain) -> Option<Merged>;

struct Merged {
    op: Arc<dyn Op>,
    inputs: Vec<Tensor>,
    /// The last of the inputs is to have this shape, of as many elements.
    last_shape: Option<Vec<usize>>,
}

/// An element-wise node as steps that start from what another node computes for it alone.
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
    let alone = node.outputs.len() == 1 && node.lowerings.is_empty() && node.op.updates().is_empty();
    (alone && !changed).then_some(first)
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
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::ops::{Binary, Unary};
    use crate::plan::{Plan, PlanOptions};
    use crate::tensor::{Dtype, HostTensor};

    const GELU: Step = Step::Unary(Unary::Gelu);

    /// A product of x `[4, 8]`, as `[2, 2, 6]`, and a graph to go on with.
    fn product(graph: &mut Graph) -> (Tensor, Tensor) {
        let x = graph.input("x", TensorDesc::new(Dtype::F32, [4, 8])).unwrap();
        let weight = HostTensor::f32(&[8, 6], (0..48).map(|at| (at % 7) as f32 - 3.0).collect()).unwrap();
        let bias = HostTensor::f32(&[6], vec![0.5; 6]).unwrap();
        let [weight, bias] = [weight, bias].map(|value| graph.constant(value).unwrap());
        let y = graph.matmul(x, weight, Some(bias), MatMul::default()).unwrap();
        (x, graph.reshape(y, &[2, 2, 6]).unwrap())
    }

    /// The steps of a plan whose output is `y`, after a run that gives what the graph gives without rewrites.
    fn steps(mut graph: Graph, y: Tensor) -> Vec<String> {
        graph.output("y", y).unwrap();
        let device = Device::cpu();
        let inputs: Vec<(String, HostTensor)> =
            graph.inputs().map(|(name, desc)| (name.to_owned(), drawn(desc))).collect();
        let inputs: Vec<(&str, &HostTensor)> = inputs.iter().map(|(name, value)| (name.as_str(), value)).collect();
        let run = |options: &PlanOptions| {
            let mut plan = Plan::with_options(&device, &graph, options).unwrap();
            (plan.run(&inputs).unwrap(), plan.describe().steps)
        };
        let (got, steps) = run(&PlanOptions::default());
        let (wanted, plain) = run(&PlanOptions { rewrites: Rewrites::NONE, ..PlanOptions::default() });
        assert!(plain.iter().all(|step| step.then.is_empty()) && plain.len() >= steps.len());
        for (name, wanted) in wanted {
            let near = got[&name].to_f64().into_iter().zip(wanted.to_f64()).all(|(a, b)| (a - b).abs() <= 1e-6);
            assert!(near && got[&name].desc() == wanted.desc(), "{name}: {:?}, {wanted:?}", got[&name]);
        }
        steps.iter().map(|step| step.technique_and_reason()).collect()
    }

    fn drawn(desc: &TensorDesc) -> HostTensor {
        HostTensor::f32(&desc.shape, (0..desc.len()).map(|at| ((at * 37 % 23) as f32 - 11.0) / 8.0).collect()).unwrap()
    }

    fn input(graph: &mut Graph, shape: &[usize]) -> Tensor {
        let name = format!("other{}", graph.inputs().count());
        graph.input(&name, TensorDesc::new(Dtype::F32, shape)).unwrap()
    }

    #[test]
    fn steps_after_a_product_become_its_epilogue() {
        let mut graph = Graph::new();
        let (_, y) = product(&mut graph);
        let other = input(&mut graph, &[2, 2, 6]);
        let y = graph.unary(y, Unary::Gelu).unwrap();
        // The product is the second operand.
        let y = graph.binary(other, y, Binary::Sub).unwrap();
        assert_eq!(steps(graph, y), ["matmul_native then gelu, sub from"]);
    }

    #[test]
    fn a_residual_may_be_computed_after_the_product_and_be_of_another_shape() {
        let mut graph = Graph::new();
        let (x, y) = product(&mut graph);
        let other = graph.reduce(x, crate::ops::Reduction::Sum, &[1], crate::ops::ReducedAxes::Kept).unwrap();
        let ones = input(&mut graph, &[4, 6]);
        let other = graph.binary(ones, other, Binary::Mul).unwrap();
        let other = graph.reshape(other, &[2, 2, 6]).unwrap();
        let y = graph.binary(y, other, Binary::Add).unwrap();
        assert_eq!(steps(graph, y), ["reduce_native", "elementwise_native", "matmul_native then add"]);
    }

    #[test]
    fn what_does_not_fit_an_epilogue_is_one_chain() {
        let mut graph = Graph::new();
        let (_, y) = product(&mut graph);
        let others = [input(&mut graph, &[2, 2, 6]), input(&mut graph, &[6])];
        let mut y = graph.elementwise(&[y, others[0]], &[GELU, Step::Binary(Binary::Mul, Operand::Input(1))]).unwrap();
        // A third step, and a tensor that broadcasts.
        y = graph.unary(y, Unary::Abs).unwrap();
        y = graph.binary(others[1], y, Binary::Sub).unwrap();
        assert_eq!(steps(graph, y), ["matmul_native then gelu, mul", "elementwise_native then sub from"]);
    }

    #[test]
    fn what_others_read_stays() {
        // The product is an output too.
        let mut graph = Graph::new();
        let (_, y) = product(&mut graph);
        graph.output("product", y).unwrap();
        let z = graph.unary(y, Unary::Tanh).unwrap();
        assert_eq!(steps(graph, z), ["matmul_native", "elementwise_native"]);
        // Two nodes read it, one of them twice.
        let mut graph = Graph::new();
        let (_, y) = product(&mut graph);
        let square = graph.binary(y, y, Binary::Mul).unwrap();
        let tanh = graph.unary(y, Unary::Tanh).unwrap();
        let sum = graph.binary(square, tanh, Binary::Add).unwrap();
        assert_eq!(steps(graph, sum), ["matmul_native", "elementwise_native", "elementwise_native then add"]);
        // It grows.
        let mut graph = Graph::new();
        let (_, y) = product(&mut graph);
        let more = input(&mut graph, &[3, 1, 1, 1]);
        let sum = graph.binary(y, more, Binary::Add).unwrap();
        assert_eq!(steps(graph, sum), ["matmul_native", "elementwise_native"]);
    }

    #[test]
    fn a_product_does_not_move_behind_a_change_of_what_it_reads() {
        let mut graph = Graph::new();
        let (x, y) = product(&mut graph);
        let new = input(&mut graph, &[4, 8]);
        let changed = graph.assign(x, new).unwrap();
        graph.output("changed", changed).unwrap();
        let y = graph.unary(y, Unary::Relu).unwrap();
        graph.output("y", y).unwrap();
        let plan = Plan::preview(&Device::cpu(), &graph, &PlanOptions::default()).unwrap();
        assert_eq!(plan.steps.iter().map(|step| step.op).collect::<Vec<_>>(), ["matmul", "assign", "elementwise"]);
    }

    #[test]
    fn steps_read_well() {
        let names = [
            GELU,
            Step::Unary(Unary::LeakyRelu { alpha: 0.1 }),
            Step::Reversed(Binary::Sub, Operand::Scalar(1.0)),
            Step::Binary(Binary::Add, Operand::Input(1)),
        ];
        assert_eq!(names.map(|step| step.to_string()), ["gelu", "leaky_relu", "sub from 1", "add"]);
    }
}
