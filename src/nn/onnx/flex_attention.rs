//! `FlexAttention` of ONNX's preview domain, opset 1. Scores are modified by a chain of element-wise steps at most, each of the
//! score and one number.

use serde_json::Value;

use super::OnnxNode;
use super::builder::{Attributes, Builder, Slots};
use crate::attention::{Attention, Strategy};
use crate::error::Result;
use crate::graph::Tensor;
use crate::nn::golden::GoldenGraph;
use crate::ops::{Binary, MatMul, Operand, Step, Unary};
use crate::tensor::Dtype;

const SLOTS: Slots = Slots { inputs: &["Q", "K", "V"], required: 3, outputs: 1 };
const Q: usize = 0;
const K: usize = 1;
const V: usize = 2;
const SCORE_MOD: &str = "score_mod";

pub(super) fn lacking(node: &OnnxNode) -> Option<String> {
    if node.attributes.contains_key("prob_mod") {
        return Some("`prob_mod` is not supported".into());
    }
    let modified = node.attributes.get(SCORE_MOD)?;
    chain(modified).is_none().then(|| format!("a `{SCORE_MOD}` that is no chain of steps with one number each"))
}

pub(super) fn build(node: &OnnxNode, strategy: Strategy) -> Result<GoldenGraph> {
    let mut builder = Builder::new(node, &SLOTS)?;
    let dtype = builder.one_float_dtype(&[Q, K, V])?;
    let mut attributes = Attributes::of(node);
    let scale = attributes.float("scale")?;
    let steps = attributes.find(SCORE_MOD).and_then(chain);
    attributes.finish()?;
    for slot in [Q, K, V] {
        let (name, shape) = (SLOTS.inputs[slot], builder.shape(slot)?);
        if shape.len() != 4 {
            return Err(node.fail(format!("input `{name}` {shape:?} has rank {}, 4 was expected", shape.len())));
        }
    }
    let y = match steps {
        None => {
            let [q, k, v] = [builder.float(Q, dtype)?, builder.float(K, dtype)?, builder.float(V, dtype)?];
            builder.graph.attention(q, k, v, &Attention { scale, strategy, ..Attention::default() })?
        }
        Some(steps) => {
            let y = modified(&mut builder, scale, &steps)?;
            builder.cast(y, dtype)?
        }
    };
    builder.output(0, y)?;
    Ok(builder.finish())
}

/// Scores, their steps, softmax, values; in f32. Query heads of one key head are rows of one product.
fn modified(builder: &mut Builder<'_>, scale: Option<f32>, steps: &[Step]) -> Result<Tensor> {
    let [q_shape, k_shape, v_shape] = [builder.shape(Q)?, builder.shape(K)?, builder.shape(V)?];
    let (&[batch, heads, queries, width], &[_, kv_heads, ..]) = (q_shape, k_shape) else {
        return Err(builder.node.fail("Q and K need rank 4"));
    };
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(builder.node.fail(format!("{heads} heads are no multiple of {kv_heads}")));
    }
    let [q, k, v] = [builder.float(Q, Dtype::F32)?, builder.float(K, Dtype::F32)?, builder.float(V, Dtype::F32)?];
    let graph = &mut builder.graph;
    let q = graph.reshape(q, &[batch, kv_heads, heads / kv_heads * queries, width])?;
    let alpha = scale.unwrap_or((1.0 / (width.max(1) as f64).sqrt()) as f32);
    let scores = graph.matmul(q, k, None, MatMul { transpose_b: true, alpha, ..MatMul::default() })?;
    let scores = graph.elementwise(&[scores], steps)?;
    let weights = graph.softmax(scores, 1.0)?;
    let y = graph.matmul(weights, v, None, MatMul::default())?;
    graph.reshape(y, &[batch, heads, queries, v_shape[3]])
}

/// The steps of a subgraph in which each node takes what the one before it gave, and a number; `None` where it is another.
fn chain(subgraph: &Value) -> Option<Vec<Step>> {
    let one = |value: &Value, list: &str| match value[list].as_array().map(Vec::as_slice) {
        Some([Value::String(name)]) => Some(name.clone()),
        _ => None,
    };
    let number = |name: &Value| match subgraph["initializers"][name.as_str()?]["values"].as_array().map(Vec::as_slice) {
        Some([number]) => number.as_f64().map(|number| Operand::Scalar(number as f32)),
        _ => None,
    };
    let mut value = one(subgraph, "inputs")?;
    let mut steps = Vec::new();
    for node in subgraph["nodes"].as_array()? {
        if node["attributes"].as_object().is_some_and(|attributes| !attributes.is_empty()) {
            return None;
        }
        steps.push(match (node["op"].as_str()?, node["inputs"].as_array()?.as_slice()) {
            (operator, [x]) if *x == value => Step::Unary(unary(operator)?),
            (operator, [x, c]) if *x == value => Step::Binary(binary(operator)?, number(c)?),
            (operator @ ("Add" | "Mul"), [c, x]) if *x == value => Step::Binary(binary(operator)?, number(c)?),
            _ => return None,
        });
        value = one(node, "outputs")?;
    }
    (one(subgraph, "outputs")? == value).then_some(steps)
}

fn unary(operator: &str) -> Option<Unary> {
    Some(match operator {
        "Abs" => Unary::Abs,
        "Exp" => Unary::Exp,
        "Neg" => Unary::Neg,
        "Relu" => Unary::Relu,
        "Sigmoid" => Unary::Sigmoid,
        "Tanh" => Unary::Tanh,
        _ => return None,
    })
}

fn binary(operator: &str) -> Option<Binary> {
    Some(match operator {
        "Add" => Binary::Add,
        "Div" => Binary::Div,
        "Mul" => Binary::Mul,
        "Sub" => Binary::Sub,
        _ => return None,
    })
}
