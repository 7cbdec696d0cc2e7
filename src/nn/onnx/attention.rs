//! ONNX's `Attention`, opsets 23 to 25, as its documentation says (onnx 1.23, docs/Operators.md).
//!
//! Query i stands at key position `i + offset`: the offset is the length of the past where there is one,
//! `nonpad_kv_seqlen − q_sequence_length` per batch element where that is given, and 0 otherwise. Causality and windows both
//! count from it.

use safetensors::Dtype as StoredDtype;
use serde_json::Value;

use super::builder::{Builder, Slots, float, integer, unknown};
use super::{OnnxNode, Stored};
use crate::attention::{Attention, Strategy};
use crate::error::Result;
use crate::graph::Tensor;
use crate::mask::{Causal, Window};
use crate::nn::golden::GoldenGraph;
use crate::ops::Layout;
use crate::tensor::{Dtype, HostTensor, TensorDesc};

/// Output slots that repeat inputs: `present_key` and `present_value`.
pub(super) const COPIES: &[usize] = &[1, 2];

const INPUTS: &[&str] = &["Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen"];
/// Y, present_key, present_value, qk_matmul_output.
const OUTPUTS: usize = 4;
const Q: usize = 0;
const K: usize = 1;
const V: usize = 2;
const ATTN_MASK: usize = 3;
const PAST_KEY: usize = 4;
const PAST_VALUE: usize = 5;
const NONPAD: usize = 6;

/// Types that ONNX may ask softmax to be computed in: f32, f16, f64, bf16. Here it is f32 whatever is asked.
const SOFTMAX_PRECISIONS: [i64; 4] = [1, 10, 11, 16];

pub(super) fn build(node: &OnnxNode, strategy: Strategy) -> Result<GoldenGraph> {
    let attributes = Attributes::read(node)?;
    let mut builder = start(node)?;
    let dtype = storage(&builder)?;
    let heads = attributes.heads(node, [builder.shape(Q)?, builder.shape(K)?])?;
    let q = operand(&mut builder, Q, dtype, heads.map(|heads| heads[0]))?;
    let mut k = operand(&mut builder, K, dtype, heads.map(|heads| heads[1]))?;
    let mut v = operand(&mut builder, V, dtype, heads.map(|heads| heads[1]))?;
    let mut past = 0;
    if builder.slot(PAST_KEY)?.is_some() {
        let past_key = operand(&mut builder, PAST_KEY, dtype, None)?;
        let past_value = operand(&mut builder, PAST_VALUE, dtype, None)?;
        past = builder.graph.desc(past_key.tensor)?.shape[2];
        k = joined(&mut builder, [past_key, k])?;
        v = joined(&mut builder, [past_value, v])?;
    }
    for (slot, operand) in [(1, k), (2, v)] {
        if builder.wants(slot) {
            let heads_first = heads_first(&mut builder, operand)?;
            builder.output(slot, heads_first)?;
        }
    }
    let [seq_q, keys] = [q.positions(&builder)?, k.positions(&builder)?];
    let mut options = Attention {
        scale: attributes.scale,
        softcap: attributes.softcap,
        q_layout: q.layout,
        kv_layout: k.layout,
        strategy,
        ..Attention::default()
    };
    mask(&mut builder, keys, &mut options)?;
    positions(&mut builder, &attributes, [seq_q, keys, past], &mut options)?;
    let [q, k, v] = [q, k, v].map(|operand| operand.tensor);
    let steps = if builder.wants(3) { Some(builder.graph.attention_steps([q, k, v], &options)?) } else { None };
    let y = match steps {
        Some(steps) if strategy == Strategy::Unfused => steps.output,
        _ => builder.graph.attention(q, k, v, &options)?,
    };
    builder.output(0, y)?;
    if let Some(steps) = steps {
        let stages = [steps.raw, steps.capped, steps.scores, steps.weights];
        builder.output(3, stages[attributes.mode])?;
    }
    Ok(builder.finish())
}

/// What the attributes say.
struct Attributes {
    causal: bool,
    heads: [Option<usize>; 2],
    scale: Option<f32>,
    softcap: Option<f32>,
    window: Window,
    mode: usize,
}

impl Attributes {
    fn read(node: &OnnxNode) -> Result<Self> {
        let mut read =
            Self { causal: false, heads: [None; 2], scale: None, softcap: None, window: Window::default(), mode: 0 };
        for (name, value) in &node.attributes {
            match name.as_str() {
                "is_causal" => read.causal = integer(node, name, value, 0..2)? == 1,
                "q_num_heads" => read.heads[0] = Some(integer(node, name, value, 1..i64::MAX)? as usize),
                "kv_num_heads" => read.heads[1] = Some(integer(node, name, value, 1..i64::MAX)? as usize),
                "scale" => read.scale = Some(float(node, name, value)?),
                "softcap" => read.softcap = Some(float(node, name, value)?).filter(|&softcap| softcap != 0.0),
                "qk_matmul_output_mode" => read.mode = integer(node, name, value, 0..4)? as usize,
                "softmax_precision" if SOFTMAX_PRECISIONS.contains(&integer(node, name, value, 0..i64::MAX)?) => {}
                "left_window_size" if node.opset >= 25 => read.window.left = reach(node, name, value)?,
                "right_window_size" if node.opset >= 25 => read.window.right = reach(node, name, value)?,
                _ => return Err(unknown(node, name, value)),
            }
        }
        Ok(read)
    }

    /// Heads of Q and of K where the layout is `[batch, seq, heads × head_dim]`.
    fn heads(&self, node: &OnnxNode, [q, k]: [&[usize]; 2]) -> Result<Option<[usize; 2]>> {
        match (self.heads, q.len()) {
            ([Some(q), Some(kv)], 3) => Ok(Some([q, kv])),
            (_, 3) => Err(node.fail("Q of rank 3 needs the attributes `q_num_heads` and `kv_num_heads`")),
            ([None, None], _) => Ok(None),
            (_, _) if node.opset >= 25 => {
                Err(node.fail("Q of rank 4 excludes the attributes `q_num_heads` and `kv_num_heads`"))
            }
            (heads, _) => match heads
                .iter()
                .zip([q, k])
                .find(|(heads, shape)| heads.is_some() && shape.get(1) != heads.as_ref())
            {
                Some((Some(heads), shape)) => Err(node.fail(format!("{heads} heads are claimed of shape {shape:?}"))),
                _ => Ok(None),
            },
        }
    }
}

/// One side of a window; −1 is unlimited.
fn reach(node: &OnnxNode, name: &str, value: &Value) -> Result<Option<i64>> {
    Ok(Some(integer(node, name, value, -1..i64::MAX)?).filter(|&reach| reach >= 0))
}

/// A graph with the slots that this opset has, in combinations that mean something.
fn start(node: &OnnxNode) -> Result<Builder<'_>> {
    let known = if node.opset >= 24 { INPUTS.len() } else { NONPAD };
    let builder = Builder::new(node, &Slots { inputs: &INPUTS[..known], required: 3, outputs: OUTPUTS })?;
    let used = |slot: usize| node.inputs.get(slot).is_some_and(|name| !name.is_empty());
    if used(PAST_KEY) != used(PAST_VALUE) {
        return Err(node.fail("past_key and past_value need each other, one of them is absent"));
    }
    if used(PAST_KEY) && used(NONPAD) {
        return Err(node.fail("nonpad_kv_seqlen excludes past_key and past_value"));
    }
    Ok(builder)
}

/// Queries, keys or values where they lie.
#[derive(Clone, Copy)]
struct Operand {
    tensor: Tensor,
    layout: Layout,
}

impl Operand {
    fn positions(self, builder: &Builder<'_>) -> Result<usize> {
        let desc = builder.graph.desc(self.tensor)?;
        Ok(desc.shape[if self.layout == Layout::HeadsFirst { 2 } else { 1 }])
    }
}

/// An operand as `[batch, heads, seq, head_dim]`, or `[batch, seq, heads × head_dim]` where `heads` says how many there are.
fn operand(builder: &mut Builder<'_>, slot: usize, dtype: Dtype, heads: Option<usize>) -> Result<Operand> {
    let value = builder.required(slot)?.value.cast(dtype);
    let expected = if heads.is_some() { 3 } else { 4 };
    if value.desc().rank() != expected {
        let message = format!("input `{}` is {}, rank {expected} was expected", INPUTS[slot], value.desc());
        return Err(builder.node.fail(message));
    }
    let tensor = builder.input(slot, value)?;
    Ok(Operand { tensor, layout: heads.map_or(Layout::HeadsFirst, |heads| Layout::Merged { heads }) })
}

/// bf16 where all operands are, else as [`Builder::float_dtype`] has it.
fn storage(builder: &Builder<'_>) -> Result<Dtype> {
    let slots = [Q, K, V, PAST_KEY, PAST_VALUE];
    for slot in slots {
        if builder.slot(slot)?.is_some_and(|stored| stored.dtype != StoredDtype::BF16) {
            return builder.float_dtype(&slots);
        }
    }
    Ok(Dtype::BF16)
}

/// The past, then what is new, by heads as the past is. bf16 comes back from f32 as it was.
fn joined(builder: &mut Builder<'_>, [past, new]: [Operand; 2]) -> Result<Operand> {
    let parts = [past.tensor, heads_first(builder, new)?];
    let dtype = builder.graph.desc(parts[0])?.dtype;
    let wide = if dtype == Dtype::BF16 { Dtype::F32 } else { dtype };
    let [past, new] = [builder.cast(parts[0], wide)?, builder.cast(parts[1], wide)?];
    let both = builder.graph.concat(past, new, 2)?;
    Ok(Operand { tensor: builder.cast(both, dtype)?, layout: Layout::HeadsFirst })
}

/// `[batch, heads, seq, head_dim]`, which pasts and presents are.
fn heads_first(builder: &mut Builder<'_>, operand: Operand) -> Result<Tensor> {
    let Operand { tensor, layout: Layout::Merged { heads } } = operand else { return Ok(operand.tensor) };
    let graph = &mut builder.graph;
    match graph.desc(tensor)?.clone() {
        TensorDesc { dtype: Dtype::BF16, shape } if shape[2] % heads == 0 => {
            let x = graph.reshape(tensor, &[shape[0], shape[1], heads, shape[2] / heads])?;
            graph.transpose(x, &[0, 2, 1, 3])
        }
        _ => graph.split_heads(tensor, heads),
    }
}

/// `attn_mask`: bool is a mask, a number is added.
fn mask(builder: &mut Builder<'_>, keys: usize, options: &mut Attention) -> Result<()> {
    let Some(stored) = builder.slot(ATTN_MASK)? else { return Ok(()) };
    let boolean = stored.dtype == StoredDtype::BOOL;
    let value = match stored.dtype {
        StoredDtype::BOOL | StoredDtype::F16 => stored.value.clone(),
        _ => stored.value.cast(Dtype::F32),
    };
    // One key is padded like any other number of keys; opset 23 has no padding, there it is repeated.
    let lone = value.shape().last() == Some(&1) && keys > 1 && builder.node.opset >= 24;
    let value = if lone { pad(&value, keys)? } else { value };
    let tensor = Some(builder.input(ATTN_MASK, value)?);
    if boolean {
        options.mask = tensor
    } else {
        options.bias = tensor
    }
    Ok(())
}

/// A mask for one key as one for `keys` keys of which the others take no part.
fn pad(mask: &HostTensor, keys: usize) -> Result<HostTensor> {
    let absent = if mask.desc().dtype == Dtype::Bool { 0.0 } else { f64::NEG_INFINITY };
    let mut data = vec![absent; mask.desc().len() * keys];
    for (row, value) in data.chunks_exact_mut(keys).zip(mask.to_f64()) {
        row[0] = value;
    }
    let mut shape = mask.shape().to_vec();
    *shape.last_mut().expect("the mask has a last axis") = keys;
    Ok(HostTensor::f64(&shape, data)?.cast(mask.desc().dtype))
}

/// Causality, window and lengths.
fn positions(
    builder: &mut Builder<'_>,
    attributes: &Attributes,
    [seq_q, keys, past]: [usize; 3],
    options: &mut Attention,
) -> Result<()> {
    options.window = Some(attributes.window).filter(|window| *window != Window::default());
    options.causal = attributes.causal.then_some(Causal::BottomRight);
    if let Some(stored) = builder.slot(NONPAD)? {
        let lengths = lengths(builder.node, stored, keys)?;
        options.kv_lengths = Some(builder.input(NONPAD, lengths)?);
        return Ok(());
    }
    if past + seq_q == keys {
        return Ok(());
    }
    // These queries do not end where the keys do, which is what the graph would take them to do.
    let past = u32::try_from(past).map_err(|_| builder.node.fail(format!("a past of {past} keys is too long")))?;
    let own = Some(Causal::Past(past));
    options.causal = options.causal.and(own);
    options.window = options.window.map(|window| Window { align: own, ..window });
    Ok(())
}

/// `nonpad_kv_seqlen` as the graph takes it.
fn lengths(node: &OnnxNode, stored: &Stored, keys: usize) -> Result<HostTensor> {
    if stored.dtype != StoredDtype::I64 {
        return Err(node.fail(format!("nonpad_kv_seqlen is {:?}, i64 was expected", stored.dtype)));
    }
    let lengths = stored.value.to_f64();
    if let Some(outside) = lengths.iter().find(|&&length| !(0.0..=keys as f64).contains(&length)) {
        return Err(node.fail(format!("nonpad_kv_seqlen holds {outside}, and there are {keys} keys")));
    }
    Ok(stored.value.cast(Dtype::U32))
}
