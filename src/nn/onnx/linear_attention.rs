//! ONNX's `LinearAttention`, from opset 27 on.

use super::OnnxNode;
use super::builder::{Attributes, Builder, Slots};
use crate::attention::Strategy;
use crate::error::Result;
use crate::graph::Tensor;
use crate::nn::golden::GoldenGraph;
use crate::ops::{LinearAttention, LinearTensors};
use crate::tensor::Dtype;

const SLOTS: Slots =
    Slots { inputs: &["query", "key", "value", "past_state", "decay", "beta"], required: 3, outputs: 2 };
const QKV: [usize; 3] = [0, 1, 2];
const PAST_STATE: usize = 3;
const DECAY: usize = 4;
const BETA: usize = 5;

const RULES: [&str; 4] = ["linear", "gated", "delta", "gated_delta"];

pub(super) fn build(node: &OnnxNode, _: Strategy) -> Result<GoldenGraph> {
    let mut builder = Builder::new(node, &SLOTS)?;
    let dtype = builder.one_float_dtype(&[QKV[0], QKV[1], QKV[2], DECAY, BETA])?;
    let state_dtype = builder.float_dtype(&[PAST_STATE])?;
    let mut attributes = Attributes::of(node);
    let mut heads = |name| {
        let heads = attributes.integer(name, 1..i64::MAX)?;
        heads.map(|heads| heads as usize).ok_or_else(|| node.fail(format!("attribute `{name}` is missing")))
    };
    let (heads, kv_heads) = (heads("q_num_heads")?, heads("kv_num_heads")?);
    // Zero is how the default is written.
    let scale = attributes.float("scale")?.filter(|&scale| scale != 0.0);
    let rule = RULES[attributes.text("update_rule", &RULES)?.unwrap_or(3)];
    // How far ahead to work, which changes no result.
    attributes.integer("chunk_size", 0..i64::MAX)?;
    attributes.finish()?;
    for (slot, needed) in [(DECAY, rule.starts_with("gated")), (BETA, rule.ends_with("delta"))] {
        if builder.slot(slot)?.is_some() != needed {
            let verb = if needed { "needs" } else { "excludes" };
            return Err(node.fail(format!("update_rule `{rule}` {verb} the input `{}`", SLOTS.inputs[slot])));
        }
    }
    let qkv = [builder.float(QKV[0], dtype)?, builder.float(QKV[1], dtype)?, builder.float(QKV[2], dtype)?];
    let tensors = LinearTensors {
        qkv,
        past_state: optional(&mut builder, PAST_STATE, state_dtype)?,
        decay: optional(&mut builder, DECAY, dtype)?,
        beta: optional(&mut builder, BETA, dtype)?,
    };
    let op = LinearAttention { heads, kv_heads, scale, has_past: false, has_decay: false, has_beta: false };
    let [y, state] = builder.graph.linear_attention(&tensors, op)?;
    builder.output(0, y)?;
    builder.output(1, state)?;
    Ok(builder.finish())
}

fn optional(builder: &mut Builder<'_>, slot: usize, dtype: Dtype) -> Result<Option<Tensor>> {
    builder.slot(slot)?.map(|_| builder.float(slot, dtype)).transpose()
}
