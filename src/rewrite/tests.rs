//! Each rewrite, by the steps that it leaves and by what they compute.

use super::*;
use crate::attention::{Attention, Strategy};
use crate::device::Device;
use crate::mask::{Causal, Masking};
use crate::ops::{Binary, ScoreMasks, Unary};
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
    let inputs: Vec<(String, HostTensor)> = graph.inputs().map(|(name, desc)| (name.to_owned(), drawn(desc))).collect();
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

/// Attention in steps, on scores of queries `[1, 2, 3, 4]` and five keys.
fn unfused(graph: &mut Graph, options: Attention) -> Tensor {
    let [q, k, v] = [3, 5, 5].map(|rows| input(graph, &[1, 2, rows, 4]));
    graph.attention(q, k, v, &Attention { strategy: Strategy::Unfused, ..options }).unwrap()
}

#[test]
fn a_softmax_takes_over_the_mask() {
    let causal = Attention { causal: Some(Causal::BottomRight), ..Attention::default() };
    let mut graph = Graph::new();
    let y = unfused(&mut graph, causal);
    assert_eq!(steps(graph, y).len(), 3);
    let mut graph = Graph::new();
    let bias = input(&mut graph, &[3, 5]);
    let sinks = input(&mut graph, &[2]);
    let y = unfused(&mut graph, Attention { bias: Some(bias), sinks: Some(sinks), ..causal });
    let names = steps(graph, y);
    assert_eq!(names[1..2], ["masked_softmax_native"], "{names:?}");
    // Nothing is masked, and nothing merges.
    let mut graph = Graph::new();
    let y = unfused(&mut graph, Attention::default());
    assert_eq!(steps(graph, y), ["matmul_native", "softmax_native", "matmul_native"]);
    // A scale between the two.
    let mut graph = Graph::new();
    let x = input(&mut graph, &[1, 2, 3, 5]);
    let masks =
        ScoreMasks { masking: Masking { causal: Some(Causal::TopLeft), ..Default::default() }, ..Default::default() };
    let x = graph.mask_scores(x, &masks).unwrap();
    let y = graph.softmax(x, 0.5).unwrap();
    assert_eq!(steps(graph, y), ["mask_scores_native", "softmax_native"]);
}

#[test]
fn masks_whose_technique_is_asked_for_stay() {
    let mut graph = Graph::new();
    let y = unfused(&mut graph, Attention { causal: Some(Causal::TopLeft), ..Attention::default() });
    graph.output("y", y).unwrap();
    for (op, technique) in [("mask_scores", "mask_scores_native"), ("softmax", "softmax_native")] {
        let plan = Plan::preview(&Device::cpu(), &graph, &PlanOptions::technique(op, technique)).unwrap();
        let names: Vec<_> = plan.steps.iter().map(|step| step.op).collect();
        assert_eq!(names, ["matmul", "mask_scores", "softmax", "matmul"]);
    }
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
