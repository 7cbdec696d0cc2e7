//! The layer against its definition with heads split and merged by copies, and the steps of its plans.

use super::*;
use crate::capabilities::Capabilities;
use crate::case::CaseInput;
use crate::compare::{NanMeans, Tolerance, compare};
use crate::nn::WeightOrder;
use crate::reference;
use crate::schedule::{PlanOptions, Schedule};
use crate::tensor::Dtype;

/// A layer whose sizes are given, over inputs of this width.
#[derive(Clone, Copy)]
struct Sizes {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    head_dim_v: usize,
    width: usize,
}

const GROUPED: Sizes = Sizes { heads: 4, kv_heads: 2, head_dim: 3, head_dim_v: 3, width: 6 };

fn drawn(shape: &[usize], seed: u64) -> HostTensor {
    CaseInput::normal(Dtype::F32, shape, 0.5).draw(seed)
}

fn linear(graph: &mut Graph, shape: [usize; 2], seed: u64) -> Linear {
    let weight = graph.constant(drawn(&shape, seed)).unwrap();
    let bias = graph.constant(drawn(&shape[..1], seed + 50)).unwrap();
    Linear { weight, bias: Some(bias), order: WeightOrder::OutIn }
}

fn layer(graph: &mut Graph, sizes: Sizes) -> MultiHeadAttention {
    let Sizes { heads, kv_heads, head_dim, head_dim_v, width } = sizes;
    let projections = Projections::Separate([
        linear(graph, [heads * head_dim, width], 1),
        linear(graph, [kv_heads * head_dim, width], 2),
        linear(graph, [kv_heads * head_dim_v, width], 3),
    ]);
    let output = linear(graph, [width, heads * head_dim_v], 4);
    let attention = Attention::default();
    MultiHeadAttention { heads, kv_heads, projections, output, appended: AppendedKeys::default(), attention }
}

fn ops(graph: &Graph) -> Vec<&'static str> {
    let schedule = Schedule::new(graph, &Capabilities::baseline(), &PlanOptions::default()).unwrap();
    schedule.steps.iter().map(|step| step.op.name()).collect()
}

/// Projections, heads, scores over them, merged heads, output: each as it is written down.
fn definition(graph: &mut Graph, layer: &MultiHeadAttention, inputs: [Tensor; 3]) -> Vec<Tensor> {
    let Projections::Separate(parts) = layer.projections else { panic!("the definition has three maps") };
    let [q, k, v] = [0, 1, 2].map(|part: usize| parts[part].add(graph, inputs[part]).unwrap());
    let [k, v] = layer.appended.add(graph, [k, v]).unwrap();
    let [k_heads, v_heads] = [k, v].map(|x| graph.split_heads(x, layer.kv_heads).unwrap());
    let q_heads = graph.split_heads(q, layer.heads).unwrap();
    let attended = graph.attention(q_heads, k_heads, v_heads, &layer.attention).unwrap();
    let merged = graph.merge_heads(attended).unwrap();
    let output = layer.output.add(graph, merged).unwrap();
    vec![q, k, v, q_heads, k_heads, v_heads, attended, merged, output]
}

fn all(tensors: &MultiHeadAttentionTensors) -> Vec<Tensor> {
    let MultiHeadAttentionTensors { features, split, attended, merged, output, .. } = *tensors;
    features.into_iter().chain(split).chain([attended, merged, output]).collect()
}

#[test]
fn every_tensor_is_what_copies_of_heads_give() {
    let apart = Sizes { head_dim_v: 5, ..GROUPED };
    let equal = Sizes { kv_heads: 4, ..GROUPED };
    for (sizes, sources, appended) in [
        (GROUPED, [0, 0, 0], false),
        (GROUPED, [0, 1, 1], false),
        (GROUPED, [0, 1, 0], false),
        (GROUPED, [0, 0, 0], true),
        (apart, [0, 0, 0], false),
        (apart, [0, 1, 1], true),
        (equal, [0, 0, 0], false),
    ] {
        for strategy in [Strategy::Fused, Strategy::Unfused] {
            let mut graph = Graph::new();
            let given = [drawn(&[2, 5, sizes.width], 7), drawn(&[2, 4, sizes.width], 8)];
            let given = if sources == [0, 1, 0] { [given[0].clone(), drawn(&[2, 5, 6], 8)] } else { given };
            let x = graph.input("x", given[0].desc().clone()).unwrap();
            let y = graph.input("y", given[1].desc().clone()).unwrap();
            let mut layer = layer(&mut graph, sizes);
            layer.attention.strategy = strategy;
            if appended {
                let [k, v] = [sizes.head_dim, sizes.head_dim_v].map(|width| [1, 1, sizes.kv_heads * width]);
                let learnt = [graph.constant(drawn(&k, 11)).unwrap(), graph.constant(drawn(&v, 12)).unwrap()];
                layer.appended = AppendedKeys { learnt: Some(learnt), zero: true };
            }
            let inputs = sources.map(|source| [x, y][source]);
            let wanted = definition(&mut graph, &layer, inputs);
            let got = layer.add(&mut graph, inputs).unwrap();
            assert_eq!(got.scores_and_weights.is_some(), strategy == Strategy::Unfused);
            for (at, (wanted, got)) in wanted.into_iter().zip(all(&got)).enumerate() {
                graph.output(&format!("wanted {at}"), wanted).unwrap();
                graph.output(&format!("got {at}"), got).unwrap();
            }
            let outputs = reference::run(&graph, &[("x", &given[0]), ("y", &given[1])]).unwrap();
            for at in 0..9 {
                let [wanted, got] = ["wanted", "got"].map(|which| &outputs[&format!("{which} {at}")]);
                // f64 from end to end, in another order of sums at most.
                let comparison = compare(got, wanted, Tolerance::of_scale(1e-12), NanMeans::Nan);
                assert!(comparison.passed(), "{sources:?} {appended} {strategy:?} tensor {at}: {comparison}");
            }
        }
    }
}

/// `MultiHeadedAttention(d_feat=200, n_head=5)` over `[128, 32, 200]`, as seed document 002 prints it.
#[test]
fn the_layer_of_seed_2_takes_three_dispatches() {
    let sizes = Sizes { heads: 5, kv_heads: 5, head_dim: 40, head_dim_v: 40, width: 200 };
    let mut graph = Graph::new();
    let x = graph.input("x", TensorDesc::new(Dtype::F32, [128, 32, 200])).unwrap();
    let tensors = layer(&mut graph, sizes).add(&mut graph, [x; 3]).unwrap();
    graph.output("out", tensors.output).unwrap();
    assert_eq!(ops(&graph), ["matmul", "attention_fused", "matmul"]);
    // What is asked for by name takes the copies that it is.
    graph.output("keys", tensors.split[1]).unwrap();
    assert_eq!(ops(&graph), ["matmul", "slice", "attention_fused", "matmul", "split_heads"]);
}

#[test]
fn products_are_shared_as_far_as_inputs_are() {
    let steps = |sources: [usize; 3], sizes: Sizes, appended: bool| {
        let mut graph = Graph::new();
        let inputs = ["x", "y", "z"].map(|name| graph.input(name, TensorDesc::new(Dtype::F32, [2, 5, 6])).unwrap());
        let mut layer = layer(&mut graph, sizes);
        layer.appended.zero = appended;
        let tensors = layer.add(&mut graph, sources.map(|source| inputs[source])).unwrap();
        graph.output("out", tensors.output).unwrap();
        ops(&graph)
    };
    let fused = |products: usize| [vec!["matmul"; products], vec!["attention_fused", "matmul"]].concat();
    assert_eq!(steps([0, 0, 0], GROUPED, false), fused(1));
    assert_eq!(steps([0, 1, 1], GROUPED, false), fused(2));
    assert_eq!(steps([0, 1, 2], GROUPED, false), fused(3));
    assert_eq!(steps([0, 0, 0], Sizes { head_dim_v: 5, ..GROUPED }, false), fused(3));
    let appended = ["matmul", "matmul", "matmul", "concat", "concat", "attention_fused", "matmul"];
    assert_eq!(steps([0, 0, 0], GROUPED, true), appended);
}

#[test]
fn joined_projections_are_of_one_input_that_heads_divide() {
    let mut graph = Graph::new();
    let inputs = ["x", "y"].map(|name| graph.input(name, TensorDesc::new(Dtype::F32, [2, 5, 6])).unwrap());
    let joined = linear(&mut graph, [24, 6], 1);
    let layer = MultiHeadAttention { projections: Projections::Joined(joined), ..layer(&mut graph, GROUPED) };
    let [x, y] = inputs;
    let tensors = layer.add(&mut graph, [x; 3]).unwrap();
    graph.output("out", tensors.output).unwrap();
    assert_eq!(ops(&graph), ["matmul", "attention_fused", "matmul"]);
    let why = layer.add(&mut graph, [x, y, y]).unwrap_err();
    assert!(why.to_string().contains("query, key and value are not one tensor"), "{why}");
    let why = MultiHeadAttention { kv_heads: 3, ..layer }.add(&mut graph, [x; 3]).unwrap_err();
    let message = "the joined projection is f32 [2, 5, 24], which 10 heads of query, key and value do not divide";
    assert_eq!(why.to_string(), format!("multi_head_attention: {message}"));
}
