//! What to compute: nodes and tensor descriptions. Knows no device and no concrete op; each op adds its own
//! builder method to [`Graph`] in its own file.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::capabilities::Capabilities;
use crate::error::{Error, Result};
use crate::op::{Op, Technique, Update};
use crate::tensor::{HostTensor, TensorDesc};

/// Handle of a tensor in one [`Graph`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tensor {
    graph: u64,
    pub(crate) index: usize,
}

/// Where a tensor comes from.
#[derive(Debug, Clone)]
pub(crate) enum Origin {
    /// Written or bound before each run.
    Input(String),
    /// A value that stays on the device; plans of one device share it as long as they share the `Arc`.
    Weight(Arc<HostTensor>),
    /// Output of a node.
    Node,
    /// Output of a node that changed this tensor in place, and lies where it lay.
    Update(Tensor),
    /// The same bytes as another tensor, under another shape.
    Reshape(Tensor),
}

#[derive(Debug, Clone)]
pub(crate) struct TensorInfo {
    pub desc: TensorDesc,
    pub origin: Origin,
    /// Name given by the user; empty for anything else.
    pub name: String,
    /// The op that has changed it in place. What it held is gone, so nothing reads it any more.
    pub changed_by: Option<&'static str>,
}

/// One op with its tensors.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub op: Arc<dyn Op>,
    pub inputs: Vec<Tensor>,
    pub outputs: Vec<Tensor>,
    /// Other ways to the same outputs, best first.
    pub lowerings: Vec<Arc<dyn Lowering>>,
    /// The op that a plan computes by this node and others.
    pub instead_of: Option<&'static str>,
    /// Steps of other nodes that this one has taken over.
    pub then: Vec<String>,
    /// Tuning put it in the place of another.
    pub tuned: bool,
}

/// The tensor among `to` that stands where `tensor` stands among `from`.
pub(crate) fn renamed(tensor: Tensor, from: &[Tensor], to: &[Tensor]) -> Tensor {
    let at = from.iter().position(|other| *other == tensor);
    to[at.expect("a lowering names tensors that its node has for inputs")]
}

/// Nodes that compute what one node computes. A plan puts them in its place where its device is better off with them.
pub(crate) trait Lowering: fmt::Debug + Send + Sync {
    /// Name to ask for it by, as for a technique of the op.
    fn name(&self) -> &'static str;

    /// Whether a device of these capabilities, on which the op offers these techniques, is better off with the nodes.
    fn wins(&self, inputs: &[TensorDesc], offered: &[Technique], capabilities: &Capabilities) -> bool;

    /// Adds the nodes for a device; returns what they compute in the order of the op's outputs. `inputs` are the node's.
    fn build(&self, graph: &mut Graph, inputs: &[Tensor], capabilities: &Capabilities) -> Result<Vec<Tensor>>;
}

/// A computation on dense tensors. Shapes are checked as it is built.
#[derive(Debug, Clone)]
pub struct Graph {
    id: u64,
    pub(crate) tensors: Vec<TensorInfo>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) outputs: Vec<(String, Tensor)>,
}

impl Default for Graph {
    fn default() -> Self {
        Self::new()
    }
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { id, tensors: Vec::new(), nodes: Vec::new(), outputs: Vec::new() }
    }

    /// A tensor that the caller gives before each run, by this name.
    ///
    /// # Errors
    /// When the name is taken, the dtype is f64, or no memory could hold it.
    pub fn input(&mut self, name: &str, desc: TensorDesc) -> Result<Tensor> {
        self.named(name, desc, Origin::Input(name.to_owned()))
    }

    /// A named tensor whose value does not change. It is uploaded once for each device,
    /// however many plans hold the same `Arc`.
    ///
    /// # Errors
    /// As [`Graph::input`].
    pub fn weight(&mut self, name: &str, value: impl Into<Arc<HostTensor>>) -> Result<Tensor> {
        let value = value.into();
        self.named(name, value.desc().clone(), Origin::Weight(value))
    }

    /// An unnamed tensor whose value does not change.
    ///
    /// # Errors
    /// When the dtype is f64.
    pub fn constant(&mut self, value: impl Into<Arc<HostTensor>>) -> Result<Tensor> {
        let value = value.into();
        storable(value.desc())?;
        Ok(self.push(value.desc().clone(), Origin::Weight(value), String::new()))
    }

    /// Marks a tensor to be kept and read under this name.
    ///
    /// # Errors
    /// When the name is an output's already, the tensor is another graph's, or an op has changed it in place.
    pub fn output(&mut self, name: &str, tensor: Tensor) -> Result<()> {
        self.check_readable(&format!("output `{name}`"), tensor)?;
        if self.outputs.iter().any(|(taken, _)| taken == name) {
            return Err(Error::Graph(format!("two outputs are named `{name}`")));
        }
        self.outputs.push((name.to_owned(), tensor));
        Ok(())
    }

    /// Adds a node. Where the op changes inputs in place, the outputs that take their memory are to be used from then on.
    ///
    /// # Errors
    /// What the op's shape rule refuses, a tensor of another graph, or one that an earlier op changed in place; a weight, an
    /// output, or a tensor that the op reads besides, to be changed in place.
    pub fn add(&mut self, op: impl Op + 'static, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        self.add_shared(Arc::new(op), inputs)
    }

    /// Adds a node whose op is shared already. Errors as [`Graph::add`].
    pub fn add_shared(&mut self, op: Arc<dyn Op>, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        self.add_node(op, inputs, Vec::new())
    }

    /// Adds a node that a plan may compute in other ways. Errors as [`Graph::add`].
    pub(crate) fn add_lowerable(
        &mut self,
        op: impl Op + 'static,
        inputs: &[Tensor],
        lowerings: Vec<Arc<dyn Lowering>>,
    ) -> Result<Vec<Tensor>> {
        self.add_node(Arc::new(op), inputs, lowerings)
    }

    /// Adds a node with other ways to compute it. Errors as [`Graph::add`].
    pub(crate) fn add_node(
        &mut self,
        op: Arc<dyn Op>,
        inputs: &[Tensor],
        lowerings: Vec<Arc<dyn Lowering>>,
    ) -> Result<Vec<Tensor>> {
        for &input in inputs {
            self.check_readable(op.name(), input)?;
        }
        let descs: Vec<_> = inputs.iter().map(|input| self.tensors[input.index].desc.clone()).collect();
        let outputs = op.outputs(&descs)?;
        outputs.iter().try_for_each(storable)?;
        let mut origins = vec![Origin::Node; outputs.len()];
        for &Update { output, input } in op.updates() {
            if outputs[output] != descs[input] {
                let message = format!("{} cannot become {} in place", descs[input], outputs[output]);
                return Err(Error::shape(op.name(), message));
            }
            self.check_changeable(op.name(), inputs, input)?;
            origins[output] = Origin::Update(inputs[input]);
        }
        for &Update { input, .. } in op.updates() {
            let root = self.root(inputs[input]);
            self.tensors[root].changed_by = Some(op.name());
        }
        let outputs: Vec<Tensor> =
            outputs.into_iter().zip(origins).map(|(desc, origin)| self.push(desc, origin, String::new())).collect();
        let (inputs, instead_of, then, tuned) = (inputs.to_vec(), None, Vec::new(), false);
        self.nodes.push(Node { op, inputs, outputs: outputs.clone(), lowerings, instead_of, then, tuned });
        Ok(outputs)
    }

    /// The same elements under another shape. Costs nothing: no node, no copy.
    ///
    /// # Errors
    /// When the two shapes have different numbers of elements, or an op has changed the tensor in place.
    pub fn reshape(&mut self, tensor: Tensor, shape: &[usize]) -> Result<Tensor> {
        self.check_readable("reshape", tensor)?;
        let from = &self.tensors[tensor.index].desc;
        let to = TensorDesc::new(from.dtype, shape);
        if to.len() != from.len() {
            let message = format!("{:?} has {} elements, {:?} has {}", from.shape, from.len(), to.shape, to.len());
            return Err(Error::shape("reshape", message));
        }
        Ok(self.push(to, Origin::Reshape(tensor), String::new()))
    }

    /// Dtype and shape of a tensor of this graph.
    ///
    /// # Errors
    /// When the tensor is another graph's.
    pub fn desc(&self, tensor: Tensor) -> Result<&TensorDesc> {
        self.check(tensor)?;
        Ok(&self.tensors[tensor.index].desc)
    }

    /// Names and descriptions of the inputs, in the order in which they were added.
    pub fn inputs(&self) -> impl Iterator<Item = (&str, &TensorDesc)> {
        self.tensors.iter().filter_map(|info| match &info.origin {
            Origin::Input(name) => Some((name.as_str(), &info.desc)),
            _ => None,
        })
    }

    /// Names and descriptions of the outputs, in the order in which they were added.
    pub fn outputs(&self) -> impl Iterator<Item = (&str, &TensorDesc)> {
        self.outputs.iter().map(|(name, tensor)| (name.as_str(), &self.tensors[tensor.index].desc))
    }

    /// Index of the tensor that has the elements of this one: itself, or what it is a reshape of.
    pub(crate) fn root(&self, tensor: Tensor) -> usize {
        match self.tensors[tensor.index].origin {
            Origin::Reshape(of) => self.root(of),
            _ => tensor.index,
        }
    }

    /// Index of the tensor that this one shares its memory with: its root, or what that came from by changes in place.
    pub(crate) fn memory(&self, tensor: Tensor) -> usize {
        let root = self.root(tensor);
        match self.tensors[root].origin {
            Origin::Update(of) => self.memory(of),
            _ => root,
        }
    }

    fn named(&mut self, name: &str, desc: TensorDesc, origin: Origin) -> Result<Tensor> {
        storable(&desc)?;
        if name.is_empty() {
            return Err(Error::Graph("an input or weight needs a name".into()));
        }
        if self.tensors.iter().any(|info| info.name == name) {
            return Err(Error::Graph(format!("two inputs or weights are named `{name}`")));
        }
        Ok(self.push(desc, origin, name.to_owned()))
    }

    /// Puts the nodes of a lowering in the place of node `index`, whose outputs become reshapes of theirs.
    pub(crate) fn lower(&mut self, index: usize, lowering: &dyn Lowering, capabilities: &Capabilities) -> Result<()> {
        let node = self.nodes[index].clone();
        let mut part = Self::new();
        let descs = node.inputs.iter().map(|input| &self.tensors[input.index].desc).enumerate();
        let inputs = descs.map(|(at, desc)| part.input(&at.to_string(), desc.clone())).collect::<Result<Vec<_>>>()?;
        let results = lowering.build(&mut part, &inputs, capabilities)?;
        // The part's tensors as this graph's: its inputs are the node's, and come first.
        let mut tensors = node.inputs.clone();
        for info in part.tensors.drain(inputs.len()..) {
            let origin = match info.origin {
                Origin::Update(of) => Origin::Update(tensors[of.index]),
                Origin::Reshape(of) => Origin::Reshape(tensors[of.index]),
                origin => origin,
            };
            tensors.push(self.push(info.desc, origin, info.name));
        }
        let here = |of: &[Tensor]| of.iter().map(|tensor| tensors[tensor.index]).collect::<Vec<_>>();
        let instead_of = Some(node.instead_of.unwrap_or(node.op.name()));
        let nodes = part.nodes.into_iter().map(|node| Node {
            inputs: here(&node.inputs),
            outputs: here(&node.outputs),
            instead_of,
            ..node
        });
        self.nodes.splice(index..=index, nodes.collect::<Vec<_>>());
        for (output, result) in node.outputs.iter().zip(here(&results)) {
            self.tensors[output.index].origin = Origin::Reshape(result);
        }
        Ok(())
    }

    /// Adds a tensor.
    pub(crate) fn push(&mut self, desc: TensorDesc, origin: Origin, name: String) -> Tensor {
        self.tensors.push(TensorInfo { desc, origin, name, changed_by: None });
        Tensor { graph: self.id, index: self.tensors.len() - 1 }
    }

    fn check(&self, tensor: Tensor) -> Result<()> {
        // A clone keeps its graph's id, so an index may be one that only the clone has.
        if tensor.graph == self.id && tensor.index < self.tensors.len() {
            return Ok(());
        }
        Err(Error::Graph("a tensor of another graph was used".into()))
    }

    /// Refuses, in the name of `reader`, a tensor whose elements are gone.
    fn check_readable(&self, reader: &str, tensor: Tensor) -> Result<()> {
        self.check(tensor)?;
        let info = &self.tensors[self.root(tensor)];
        match info.changed_by {
            Some(op) => {
                let name = if info.name.is_empty() { "a tensor".into() } else { format!("`{}`", info.name) };
                let message = format!("{reader}: {name} was changed in place by {op}; use what that returned");
                Err(Error::Graph(message))
            }
            None => Ok(()),
        }
    }

    /// Refuses to let an op change an input in place that something else still needs.
    fn check_changeable(&self, op: &'static str, inputs: &[Tensor], input: usize) -> Result<()> {
        let memory = self.memory(inputs[input]);
        let info = &self.tensors[memory];
        let fail = |why: String| {
            let name = if info.name.is_empty() { String::new() } else { format!(" `{}`", info.name) };
            Err(Error::Graph(format!("{op} changes{name} {} in place, {why}", info.desc)))
        };
        if matches!(info.origin, Origin::Weight(_)) {
            return fail("and it is a weight or constant; give it as an input".into());
        }
        if let Some((output, _)) = self.outputs.iter().find(|(_, output)| self.memory(*output) == memory) {
            return fail(format!("and output `{output}` keeps it; name what {op} returns instead"));
        }
        if inputs.iter().filter(|&&other| self.memory(other) == memory).count() > 1 {
            return fail("and is given it twice".into());
        }
        Ok(())
    }
}

fn storable(desc: &TensorDesc) -> Result<()> {
    if desc.dtype == crate::tensor::Dtype::F64 {
        return Err(Error::Graph(format!("{desc} cannot be stored on a device; cast it to f32 or f16")));
    }
    if desc.bytes() > isize::MAX as u64 {
        return Err(Error::Graph(format!("{desc} is larger than any memory")));
    }
    Ok(())
}
