//! ONNX's `RotaryEmbedding`, from opset 23 on.

use safetensors::Dtype as StoredDtype;

use super::OnnxNode;
use super::builder::{Attributes, Builder, Slots};
use crate::attention::Strategy;
use crate::error::Result;
use crate::nn::golden::GoldenGraph;
use crate::ops::{Angles, Layout, Pairs, Positions, RotaryOptions};
use crate::tensor::{Dtype, HostTensor};

const SLOTS: Slots = Slots { inputs: &["X", "cos_cache", "sin_cache", "position_ids"], required: 3, outputs: 1 };
const X: usize = 0;
const COS: usize = 1;
const SIN: usize = 2;
const POSITIONS: usize = 3;

pub(super) fn build(node: &OnnxNode, _: Strategy) -> Result<GoldenGraph> {
    let mut builder = Builder::new(node, &SLOTS)?;
    let dtype = builder.one_float_dtype(&[X, COS, SIN])?;
    let mut attributes = Attributes::of(node);
    let pairs = match attributes.integer("interleaved", 0..2)? {
        Some(1) => Pairs::Interleaved,
        _ => Pairs::Halves,
    };
    let heads = attributes.integer("num_heads", 0..i64::MAX)?.filter(|&heads| heads > 0).map(|heads| heads as usize);
    let turning = attributes.integer("rotary_embedding_dim", 0..i64::MAX)?.unwrap_or(0) as usize;
    attributes.finish()?;
    let Sizes { layout, batch, seq, head_dim } = Sizes::new(&builder, heads)?;
    let turning = if turning == 0 { head_dim } else { turning };
    check_angles(&builder, [turning, head_dim])?;
    let positions = match positions(&builder, [batch, seq])? {
        Some(positions) => Positions::Given(builder.input(POSITIONS, positions)?),
        None => Positions::Counted,
    };
    let angles = Angles { cos: builder.float(COS, dtype)?, sin: builder.float(SIN, dtype)?, pairs };
    let x = builder.float(X, dtype)?;
    let y = builder.graph.rotary(x, &RotaryOptions { layout, angles, positions, norm: None })?;
    builder.output(0, y)?;
    Ok(builder.finish())
}

struct Sizes {
    layout: Layout,
    batch: usize,
    seq: usize,
    head_dim: usize,
}

impl Sizes {
    fn new(builder: &Builder<'_>, heads: Option<usize>) -> Result<Self> {
        let node = builder.node;
        match (builder.shape(X)?, heads) {
            (&[batch, own, seq, head_dim], heads) if heads.is_none_or(|heads| heads == own) => {
                Ok(Self { layout: Layout::HeadsFirst, batch, seq, head_dim })
            }
            (&[batch, seq, width], Some(heads)) if width % heads == 0 => {
                Ok(Self { layout: Layout::Merged { heads }, batch, seq, head_dim: width / heads })
            }
            ([_, _, _], None) => Err(node.fail("X of rank 3 needs the attribute `num_heads`")),
            (shape @ ([_, _, _] | [_, _, _, _]), heads) => {
                Err(node.fail(format!("X {shape:?} has not {} heads", heads.unwrap_or_default())))
            }
            (shape, _) => Err(node.fail(format!("X {shape:?} has rank {}, 3 or 4 was expected", shape.len()))),
        }
    }
}

/// Half as many angles as elements that turn; of each position, or, where there are none given, of each row.
fn check_angles(builder: &Builder<'_>, [turning, head_dim]: [usize; 2]) -> Result<()> {
    let rank = if builder.slot(POSITIONS)?.is_some() { 2 } else { 3 };
    for slot in [COS, SIN] {
        let shape = builder.shape(slot)?;
        if shape.len() != rank || turning > head_dim || shape[rank - 1].checked_mul(2) != Some(turning) {
            let expected = format!("rank {rank} and {turning} / 2 angles for head_size {head_dim}");
            let message = format!("input `{}` is {shape:?}, {expected} were expected", SLOTS.inputs[slot]);
            return Err(builder.node.fail(message));
        }
    }
    Ok(())
}

/// `position_ids` as the graph takes them.
fn positions(builder: &Builder<'_>, rows: [usize; 2]) -> Result<Option<HostTensor>> {
    let (node, Some(stored)) = (builder.node, builder.slot(POSITIONS)?) else { return Ok(None) };
    if stored.dtype != StoredDtype::I64 {
        return Err(node.fail(format!("input `position_ids` is {:?}, i64 was expected", stored.dtype)));
    }
    builder.expect_shape(POSITIONS, &rows)?;
    let known = builder.shape(COS)?[0];
    if let Some(outside) = stored.value.to_f64().into_iter().find(|position| !(0.0..known as f64).contains(position)) {
        return Err(node.fail(format!("position_ids holds {outside}, and there are angles of {known} positions")));
    }
    Ok(Some(stored.value.cast(Dtype::U32)))
}
