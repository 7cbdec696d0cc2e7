//! How a graph is computed, resolved but not yet allocated: a technique for each node, a slot for each tensor.

mod description;

use std::borrow::Cow;
use std::sync::Arc;

use crate::capabilities::{Backend, Capabilities};
use crate::error::{Error, Result};
use crate::graph::{Graph, Node, Origin, Tensor};
use crate::memory::{Lifetime, assign, largest_live_set};
use crate::op::{Cost, Op, Technique};
pub use crate::rewrite::Rewrites;
use crate::tensor::{Dtype, HostTensor, TensorDesc};
use crate::tuned::Table;
pub use description::{PlanDescription, StepDescription};

/// Choices that override the default ones.
#[derive(Debug, Clone, Default)]
pub struct PlanOptions {
    /// Pairs of op and technique, such as `("matmul", "matmul_tiled")`: every node of the op runs that technique. Attention
    /// that was built with [`Strategy::Auto`](crate::Strategy::Auto) also has `("attention_fused", "unfused")`, and any that
    /// is not unfused and whose fill excludes `("attention_fused", "split")`.
    pub techniques: Vec<(String, String)>,
    /// What is made of the graph first.
    pub rewrites: Rewrites,
}

impl PlanOptions {
    /// This technique for every node of an op, and the default for the rest.
    pub fn technique(op: &str, technique: &str) -> Self {
        Self { techniques: vec![(op.into(), technique.into())], ..Self::default() }
    }
}

/// One dispatch or native call.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub op: Arc<dyn Op>,
    pub technique: Technique,
    pub inputs: Vec<Operand>,
    pub outputs: Vec<Operand>,
    pub cost: Cost,
    /// The op that this step computes together with others.
    pub instead_of: Option<&'static str>,
    /// Steps of other nodes that it computes besides.
    pub then: Vec<String>,
    /// Measurements chose it.
    pub tuned: bool,
}

/// A tensor of a step: where it lies and what it is.
#[derive(Debug, Clone)]
pub(crate) struct Operand {
    pub slot: usize,
    pub desc: TensorDesc,
}

/// Memory for one tensor, or for several that are never alive together.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    pub bytes: u64,
    pub role: Role,
}

/// What a slot is for.
#[derive(Debug, Clone)]
pub(crate) enum Role {
    Input,
    Weight(Arc<HostTensor>),
    Output,
    Scratch,
}

/// A named input or output.
#[derive(Debug, Clone)]
pub(crate) struct Port {
    pub name: String,
    pub operand: Operand,
}

#[derive(Debug, Clone)]
pub(crate) struct Schedule {
    pub steps: Vec<Step>,
    pub slots: Vec<Slot>,
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
    /// Bytes of the tensors, weights aside, that are alive at the step where most are.
    live_bytes: u64,
    /// Slots that a run writes.
    written: Vec<bool>,
}

/// Where tensors lie.
struct Placed {
    slots: Vec<Slot>,
    /// Slot of each tensor that has memory of its own.
    slot_of: Vec<Option<usize>>,
    live_bytes: u64,
}

/// What the choice of techniques depends on, the nodes aside.
#[derive(Clone, Copy)]
struct Chooser<'a> {
    capabilities: &'a Capabilities,
    options: &'a PlanOptions,
    table: &'a Table,
}

impl Schedule {
    /// Without measurements.
    #[cfg(test)]
    pub fn new(graph: &Graph, capabilities: &Capabilities, options: &PlanOptions) -> Result<Self> {
        Self::tuned(graph, capabilities, options, &Table::default())
    }

    /// With the techniques that were measured fastest, where nobody asks for another.
    pub fn tuned(graph: &Graph, capabilities: &Capabilities, options: &PlanOptions, table: &Table) -> Result<Self> {
        let chooser = Chooser { capabilities, options, table };
        check_forced(graph, options)?;
        let mut graph = chooser.lowered(graph)?;
        let rewrites =
            options.rewrites.suited(capabilities, |op| options.techniques.iter().any(|(asked, _)| asked == op));
        if rewrites != Rewrites::NONE {
            let graph = graph.to_mut();
            graph.nodes = needed(graph).into_iter().cloned().collect();
            rewrites.apply(graph);
        }
        let graph = &*graph;
        let nodes = needed(graph);
        if graph.outputs.is_empty() && nodes.is_empty() {
            return Err(Error::Graph("there is no output; name one with Graph::output".into()));
        }
        let Placed { slots, slot_of, live_bytes } = place(graph, &nodes);
        let operand = |tensor: Tensor| Operand {
            slot: slot_of[graph.memory(tensor)].expect("every tensor that is needed has a slot"),
            desc: graph.tensors[tensor.index].desc.clone(),
        };
        let steps = nodes
            .iter()
            .map(|node| {
                let descs = input_descs(graph, node);
                let (technique, tuned) = chooser.choose(node, &descs)?;
                Ok(Step {
                    op: node.op.clone(),
                    technique,
                    tuned: tuned || node.tuned,
                    inputs: node.inputs.iter().map(|&tensor| operand(tensor)).collect(),
                    outputs: node.outputs.iter().map(|&tensor| operand(tensor)).collect(),
                    cost: node.op.cost(&descs),
                    instead_of: node.instead_of,
                    then: node.then.clone(),
                })
            })
            .collect::<Result<Vec<Step>>>()?;
        let mut written = vec![false; slots.len()];
        steps.iter().flat_map(|step| &step.outputs).for_each(|output| written[output.slot] = true);
        let inputs = graph.tensors.iter().enumerate().filter_map(|(index, info)| {
            let Origin::Input(name) = &info.origin else { return None };
            let operand = Operand { slot: slot_of[index].expect("inputs have slots"), desc: info.desc.clone() };
            Some(Port { name: name.clone(), operand })
        });
        let outputs = graph.outputs.iter().map(|(name, t)| Port { name: name.clone(), operand: operand(*t) });
        Ok(Self { steps, slots, inputs: inputs.collect(), outputs: outputs.collect(), live_bytes, written })
    }

    /// Whether a run writes this slot.
    pub fn writes(&self, slot: usize) -> bool {
        self.written[slot]
    }

    /// Refuses tensors that the device cannot bind or kernels cannot index.
    pub fn check_limits(&self, capabilities: &Capabilities) -> Result<()> {
        let named =
            self.inputs.iter().chain(&self.outputs).map(|port| (format!("`{}`", port.name), &port.operand.desc));
        let inner = self.steps.iter().flat_map(|step| {
            step.inputs
                .iter()
                .chain(&step.outputs)
                .map(|operand| (format!("a tensor of {}", step.op.name()), &operand.desc))
        });
        for (tensor, desc) in named.chain(inner) {
            let indexable = match capabilities.backend {
                Backend::Gpu => u64::from(u32::MAX) * desc.dtype.size() as u64,
                Backend::Cpu => u64::MAX,
            };
            let allowed = capabilities.binding_bytes.min(indexable);
            if desc.bytes() > allowed {
                let (needed, fit) = (desc.bytes(), allowed / desc.dtype.size() as u64);
                let hint = format!(
                    "{desc} would fit with at most {fit} elements (split the batch); fused attention stores no scores"
                );
                return Err(Error::TooLarge { tensor: format!("{tensor} {:?}", desc.shape), needed, allowed, hint });
            }
        }
        Ok(())
    }

    pub fn describe(&self, device: String, capabilities: &Capabilities) -> PlanDescription {
        let sum = |wanted: fn(&Role) -> bool| {
            self.slots.iter().filter(|slot| wanted(&slot.role)).map(|slot| slot.bytes).fold(0, u64::saturating_add)
        };
        PlanDescription {
            device,
            steps: self.steps.iter().map(StepDescription::new).collect(),
            input_bytes: sum(|role| matches!(role, Role::Input)),
            weight_bytes: sum(|role| matches!(role, Role::Weight(_))),
            output_bytes: sum(|role| matches!(role, Role::Output)),
            scratch_bytes: sum(|role| matches!(role, Role::Scratch)),
            live_bytes: self.live_bytes,
            staging_bytes: match capabilities.backend {
                Backend::Gpu => {
                    let unchanged = self.inputs.iter().filter(|port| !self.writes(port.operand.slot));
                    unchanged.chain(&self.outputs).map(|port| port.operand.desc.bytes()).sum()
                }
                Backend::Cpu => 0,
            },
        }
    }
}

fn input_descs(graph: &Graph, node: &Node) -> Vec<TensorDesc> {
    node.inputs.iter().map(|tensor| graph.tensors[tensor.index].desc.clone()).collect()
}

/// Refuses techniques of ops that the graph does not have.
fn check_forced(graph: &Graph, options: &PlanOptions) -> Result<()> {
    if options.techniques.is_empty() {
        return Ok(());
    }
    let mut ops: Vec<_> = needed(graph).iter().map(|node| node.op.name()).collect();
    match options.techniques.iter().find(|(op, _)| !ops.contains(&op.as_str())) {
        None => Ok(()),
        Some((op, _)) => {
            ops.dedup();
            Err(Error::Plan(format!("a technique is given for `{op}`; the ops are {}", ops.join(", "))))
        }
    }
}

/// The technique that was asked for; nodes of a lowering that was asked for by their own op's name are free.
fn forced<'a>(node: &Node, options: &'a PlanOptions) -> Option<&'a str> {
    if node.instead_of == Some(node.op.name()) {
        return None;
    }
    let mut techniques = options.techniques.iter();
    techniques.find(|(op, _)| op == node.op.name()).map(|(_, technique)| technique.as_str())
}

impl Chooser<'_> {
    /// The graph with other nodes for those that this device computes better in several steps, or cannot compute in one.
    fn lowered<'a>(&self, graph: &'a Graph) -> Result<Cow<'a, Graph>> {
        let mut graph = Cow::Borrowed(graph);
        let mut index = 0;
        while let Some(node) = graph.nodes.get(index) {
            if node.lowerings.is_empty() {
                index += 1;
                continue;
            }
            let descs = input_descs(&graph, node);
            let forced = forced(node, self.options);
            let tuned = if forced.is_none() { self.measured(node, &descs) } else { None };
            let wanted = node.lowerings.iter().find(|lowering| match forced.or(tuned) {
                Some(name) => lowering.name() == name,
                None => lowering.wins(&descs, &node.op.techniques(&descs, self.capabilities), self.capabilities),
            });
            let Some(lowering) = wanted.cloned() else {
                index += 1;
                continue;
            };
            let (is_tuned, nodes) = (tuned.is_some(), graph.nodes.len());
            // What comes in its place may have lowerings of its own.
            graph.to_mut().lower(index, &*lowering, self.capabilities)?;
            let added = graph.nodes.len() + 1 - nodes;
            graph.to_mut().nodes[index..index + added].iter_mut().for_each(|node| node.tuned |= is_tuned);
        }
        Ok(graph)
    }

    /// What was measured to be the fastest for a node: a technique, or a lowering of the node's.
    fn measured(&self, node: &Node, descs: &[TensorDesc]) -> Option<&str> {
        let techniques = || node.op.techniques(descs, self.capabilities);
        self.table.choice(&*node.op, descs, &node.lowerings, techniques)
    }

    /// A node's technique, and whether measurements chose it.
    fn choose(&self, node: &Node, descs: &[TensorDesc]) -> Result<(Technique, bool)> {
        let Self { capabilities, options, .. } = *self;
        let forced = forced(node, options);
        let mut offered = node.op.techniques(descs, capabilities);
        let named = |name: &str| offered.iter().position(|technique| technique.name() == name);
        let tuned = if forced.is_none() { self.measured(node, descs).and_then(named) } else { None };
        let first = match forced {
            Some(forced) => named(forced),
            None => (!offered.is_empty()).then_some(0),
        };
        match tuned.or(first) {
            Some(index) => Ok((offered.swap_remove(index), tuned.is_some())),
            None => Err(unsupported(node, descs, &offered, *self)),
        }
    }
}

/// Nodes that some output depends on, or that change an input in place, in order.
fn needed(graph: &Graph) -> Vec<&Node> {
    let mut wanted = vec![false; graph.tensors.len()];
    for (_, tensor) in &graph.outputs {
        wanted[graph.root(*tensor)] = true;
    }
    let mut nodes: Vec<&Node> = Vec::new();
    for node in graph.nodes.iter().rev() {
        let changes_an_input = node.outputs.iter().any(|&tensor| {
            matches!(graph.tensors[tensor.index].origin, Origin::Update(_))
                && matches!(graph.tensors[graph.memory(tensor)].origin, Origin::Input(_))
        });
        if changes_an_input || node.outputs.iter().any(|tensor| wanted[tensor.index]) {
            node.inputs.iter().for_each(|&tensor| wanted[graph.root(tensor)] = true);
            nodes.push(node);
        }
    }
    nodes.reverse();
    nodes
}

/// Gives each tensor its memory, in time that is linear in the graph but for the search of a free slot.
fn place(graph: &Graph, nodes: &[&Node]) -> Placed {
    let mut slots = Vec::new();
    let mut slot_of = vec![None; graph.tensors.len()];
    let mut kept = vec![false; graph.tensors.len()];
    graph.outputs.iter().for_each(|(_, tensor)| kept[graph.memory(*tensor)] = true);
    let mut read = kept.clone();
    nodes.iter().flat_map(|node| &node.inputs).for_each(|&tensor| read[graph.memory(tensor)] = true);
    // Inputs and outputs keep their values from one run to the next.
    let mut named = Vec::new();
    for (index, info) in graph.tensors.iter().enumerate() {
        let bytes = info.desc.bytes();
        let role = match &info.origin {
            Origin::Input(_) => Role::Input,
            Origin::Weight(value) if read[index] => Role::Weight(value.clone()),
            Origin::Node if kept[index] => Role::Output,
            _ => continue,
        };
        if !matches!(role, Role::Weight(_)) {
            named.push(Lifetime { bytes, first: 0, last: nodes.len() });
        }
        slot_of[index] = Some(slots.len());
        slots.push(Slot { bytes, role });
    }
    let mut lifetimes: Vec<Lifetime> = Vec::new();
    let mut inner: Vec<usize> = Vec::new();
    let mut lifetime_of = vec![None; graph.tensors.len()];
    for (step, node) in nodes.iter().enumerate() {
        // What was changed in place lives on where it was.
        for tensor in node.outputs.iter().filter(|tensor| graph.memory(**tensor) == tensor.index) {
            if slot_of[tensor.index].is_none() {
                let bytes = graph.tensors[tensor.index].desc.bytes();
                lifetime_of[tensor.index] = Some(lifetimes.len());
                lifetimes.push(Lifetime { bytes, first: step, last: step });
                inner.push(tensor.index);
            }
        }
        for lifetime in node.inputs.iter().filter_map(|&tensor| lifetime_of[graph.memory(tensor)]) {
            lifetimes[lifetime].last = step;
        }
    }
    let assignment = assign(&lifetimes);
    for (index, slot) in inner.into_iter().zip(&assignment.slot_of) {
        slot_of[index] = Some(slots.len() + slot);
    }
    slots.extend(assignment.slots.iter().map(|&bytes| Slot { bytes, role: Role::Scratch }));
    named.extend(lifetimes);
    Placed { slots, slot_of, live_bytes: largest_live_set(&named) }
}

/// Why a node has no technique.
fn unsupported(node: &Node, descs: &[TensorDesc], offered: &[Technique], chooser: Chooser<'_>) -> Error {
    let Chooser { capabilities, options, .. } = chooser;
    let forced = forced(node, options);
    // Those that did not win are no help to somebody who asked for nothing.
    let lowerings = node.lowerings.iter().filter(|_| forced.is_some()).map(|lowering| lowering.name());
    let names: Vec<_> = offered.iter().map(Technique::name).chain(lowerings).collect();
    let outputs = match node.op.outputs(descs) {
        Ok(outputs) => outputs,
        Err(error) => return error,
    };
    let lacks_f16 = !capabilities.f16 && descs.iter().chain(&outputs).any(|desc| desc.dtype == Dtype::F16);
    let bound = descs.len() + outputs.len();
    let reason = match (lacks_f16, names.is_empty()) {
        (true, _) => "a tensor is f16 and the device has no f16 in shaders".to_owned(),
        (false, true) if bound > capabilities.storage_buffers as usize => {
            format!("it binds {bound} storage buffers and the device has {}", capabilities.storage_buffers)
        }
        (false, true) => match capabilities.loop_rounds {
            Some(rounds) => {
                format!("nothing is offered for these shapes by a driver that may end loops after {rounds} rounds")
            }
            None => "nothing is offered for these shapes".to_owned(),
        },
        (false, false) => format!("offered are {}", names.join(", ")),
    };
    Error::Unsupported { op: node.op.name(), technique: forced.unwrap_or("any").into(), reason }
}
