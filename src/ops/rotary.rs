//! `rotary`: rotary embedding of the rows of heads (Su et al., arXiv:2104.09864; ONNX's RotaryEmbedding), after an RMSNorm of
//! each row where that is asked for.
//!
//! Techniques: `rotary_row` (one workgroup per row), `rotary_native`.

mod cases;

use std::sync::Arc;

use crate::capabilities::{Backend, Capabilities};
use crate::cpu::kernels::args::{Elements, ElementsMut};
use crate::cpu::kernels::rotary::{self as native, RotaryArgs, rotary};
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::op::{Bindings, Cost, CpuKernel, Launch, Op, Rows, Technique, Update, fold, index};
use crate::ops::operands::Layout;
use crate::ops::rotation::{
    AngleTable, Angles, COSINES_BINDING, HeadNorm, HeadSizes, NormRule, Pairs, RowDefinition, SINES_BINDING,
    WEIGHT_BINDING, norm_parts, rotation_parts,
};
use crate::shader::{Constant, Shader, Source, params, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc, View, ViewMut};

pub(super) use cases::cases;

const ROW: Source = wgsl!("rotary_row");
const POSITION_COUNTED: Source = wgsl!("lib/position_counted");
const POSITION_GIVEN: Source = wgsl!("lib/position_given");
const POSITION_AFTER: Source = wgsl!("lib/position_after");

/// Binding number in the library files.
const POSITIONS_BINDING: u32 = 14;

/// Rotary embedding of `x`; cosines and sines follow, then positions and the norm's weight where the options have them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rotary {
    /// Axes of `x`.
    pub layout: Layout,
    /// Which elements turn together.
    pub pairs: Pairs,
    /// Where positions come from.
    pub positions: PositionRule,
    /// Comes first.
    pub norm: Option<NormRule>,
}

/// Where the positions of rows come from, without the tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PositionRule {
    /// Row i has position i; nothing to read, as for angles of the rows themselves.
    Counted,
    /// u32 `[batch, seq]`.
    Given,
    /// Row i has position `lengths + i`, u32 `[batch]`.
    After,
}

/// Where the positions of rows come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Positions {
    /// Row i of each sequence has position i.
    #[default]
    Counted,
    /// u32 `[batch, seq]`.
    Given(Tensor),
    /// u32 `[batch]`: row i comes i after so many others, such as those of a cache before it gets these.
    After(Tensor),
}

/// Options of [`Graph::rotary`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RotaryOptions {
    /// Axes of the tensor.
    pub layout: Layout,
    /// Cosines and sines.
    pub angles: Angles,
    /// Where positions come from. Angles of the rows themselves leave it at [`Positions::Counted`].
    pub positions: Positions,
    /// RMSNorm of each head's row before it turns.
    pub norm: Option<HeadNorm>,
}

impl Graph {
    /// Adds [`Rotary`]: `x`, f32 or f16 of the layout that the options say, into the same shape and dtype. A position past the end
    /// of the angles counts as their last, unless a checked run refuses it.
    ///
    /// # Errors
    /// Shapes that do not fit, angles of the rows themselves together with positions, options that mean nothing.
    pub fn rotary(&mut self, x: Tensor, options: &RotaryOptions) -> Result<Tensor> {
        let RotaryOptions { layout, angles, positions, norm } = *options;
        let (positions, tensor) = match positions {
            Positions::Counted => (PositionRule::Counted, None),
            Positions::Given(tensor) => (PositionRule::Given, Some(tensor)),
            Positions::After(tensor) => (PositionRule::After, Some(tensor)),
        };
        let weight = norm.and_then(|norm| norm.weight);
        let op = Rotary { layout, pairs: angles.pairs, positions, norm: norm.map(|norm| norm.rule()) };
        let inputs: Vec<Tensor> = [x, angles.cos, angles.sin].into_iter().chain(tensor).chain(weight).collect();
        Ok(self.add(op, &inputs)?[0])
    }
}

params! {
    struct RotaryParams {
        rows: u32, heads: u32, seq: u32, step: u32, head_dim: u32,
        rotary_dim: u32, interleaved: u32, per_token: u32, positions: u32, epsilon: f32,
    }
}

impl Op for Rotary {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        self.checked(inputs)?;
        Ok(vec![inputs[0].clone()])
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        let (x, cos, sin) = (inputs[0].to_f64(), inputs[1].to_f64(), inputs[2].to_f64());
        let (positions, weight) = self.optional(inputs);
        let positions = positions.map(|positions| positions.to_f64());
        let angle_shape = inputs[1].shape();
        let norm = self.norm.map(|norm| (norm.epsilon, weight.map(|weight| weight.to_f64())));
        let turning = angle_shape[angle_shape.len() - 1];
        let definition = RowDefinition { norm, rotation: Some((cos, sin, self.pairs)), turning };
        let shape = inputs[0].shape();
        let from_the_end = |axis: usize| if shape.len() < axis { 1 } else { shape[shape.len() - axis] };
        let (heads, seq) = match self.layout {
            Layout::HeadsFirst => (from_the_end(3), from_the_end(2)),
            Layout::SeqFirst => (from_the_end(2), from_the_end(3)),
            Layout::Merged { heads } | Layout::Joined { heads, .. } => (heads, from_the_end(2)),
        };
        let angles = |row: usize| {
            let batch = row / heads / seq;
            let i = if self.layout == Layout::HeadsFirst { row % seq } else { row / heads % seq };
            let position = match (&positions, self.positions) {
                _ if angle_shape.len() == 3 => return batch * seq + i,
                (Some(positions), PositionRule::Given) => positions[batch * seq + i] as usize,
                (Some(lengths), _) => lengths[batch] as usize + i,
                (None, _) => i,
            };
            position.min(angle_shape[0] - 1)
        };
        // Rows of heads, which are parts of a row of a merged tensor.
        let result = rows.compute(shape, |row, out| {
            let heads_of_row = if let Layout::Merged { heads } = self.layout { heads } else { 1 };
            let head_dim = out.len() / heads_of_row;
            for part in 0..heads_of_row {
                let head_row = row * heads_of_row + part;
                let turned = definition.apply(&x[head_row * head_dim..(head_row + 1) * head_dim], angles(head_row));
                out[part * head_dim..(part + 1) * head_dim].copy_from_slice(&turned);
            }
        });
        vec![result]
    }

    /// Three operations for each element that turns, four for each that is normalised.
    fn cost(&self, inputs: &[TensorDesc]) -> Cost {
        let elements = inputs[0].len() as u64;
        let turning = 2 * inputs[1].row_length() * inputs[0].len();
        let head_dim = self.checked(inputs).map_or(1, |checked| checked.sizes.head_dim.max(1));
        let normed = if self.norm.is_some() { 4 * elements } else { 0 };
        Cost::once(3 * (turning / head_dim) as u64 + normed, inputs, &inputs[..1])
    }

    fn updates(&self) -> &'static [Update] {
        &[]
    }

    fn check(&self, inputs: &[TensorDesc], data: &[Option<&HostTensor>]) -> Result<()> {
        let Checked { sizes, table } = self.checked(inputs)?;
        let Some(numbers) = self.optional(data).0.and_then(|data| data.and_then(HostTensor::as_u32)) else {
            return Ok(());
        };
        for (at, &number) in numbers.iter().enumerate() {
            match self.positions {
                PositionRule::Given => table.check("rotary", at / sizes.seq.max(1), u64::from(number))?,
                _ if sizes.seq > 0 => table.check("rotary", at, u64::from(number) + sizes.seq as u64 - 1)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn techniques(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Vec<Technique> {
        let Ok(checked) = self.checked(inputs) else { return Vec::new() };
        match capabilities.backend {
            Backend::Cpu => self.native(checked),
            Backend::Gpu => self.row(inputs, &checked, capabilities).map(Technique::Gpu).into_iter().collect(),
        }
    }
}

/// What the shape rule found.
#[derive(Debug, Clone, Copy)]
struct Checked {
    sizes: HeadSizes,
    table: AngleTable,
}

impl Rotary {
    /// Positions and weight among what belongs to the inputs.
    fn optional<'a, T>(&self, inputs: &'a [T]) -> (Option<&'a T>, Option<&'a T>) {
        let mut rest = inputs[3..].iter();
        let positions = if self.positions == PositionRule::Counted { None } else { rest.next() };
        (positions, if self.norm.is_some_and(|norm| norm.has_weight) { rest.next() } else { None })
    }

    fn checked(&self, inputs: &[TensorDesc]) -> Result<Checked> {
        let fail = |message: String| Err(Error::shape("rotary", message));
        let has_weight = self.norm.is_some_and(|norm| norm.has_weight);
        let expected = 3 + usize::from(self.positions != PositionRule::Counted) + usize::from(has_weight);
        if inputs.len() != expected {
            return fail(format!("takes {expected} tensors with these options, got {}", inputs.len()));
        }
        let sizes = HeadSizes::new("rotary", "x", &inputs[0], self.layout)?;
        let table = AngleTable::new("rotary", [&inputs[1], &inputs[2]], &sizes)?;
        let (positions, weight) = self.optional(inputs);
        if let Some(positions) = positions {
            if table.positions.is_none() {
                return fail(format!("cos is {}, of the rows themselves, and there are positions too", inputs[1]));
            }
            let wanted = match self.positions {
                PositionRule::Given => vec![sizes.batch, sizes.seq],
                _ => vec![sizes.batch],
            };
            if positions.dtype != Dtype::U32 || positions.shape != wanted {
                return fail(format!("the positions are {positions}, they must be u32 {wanted:?}"));
            }
        }
        if let (PositionRule::Counted, Some(positions)) = (self.positions, table.positions)
            && positions < sizes.seq
        {
            return fail(format!("cos is {} and x has {} positions", inputs[1], sizes.seq));
        }
        if let Some(norm) = self.norm {
            norm.check("rotary", weight, sizes.head_dim)?;
        }
        Ok(Checked { sizes, table })
    }

    fn native(&self, Checked { sizes, table }: Checked) -> Vec<Technique> {
        let op = *self;
        let run = move |inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]| {
            let (positions, weight) = op.optional(inputs);
            let positions = positions.map_or(&[][..], |positions| bytemuck::cast_slice(positions.bytes));
            let args = RotaryArgs {
                x: Elements::of(&inputs[0]),
                heads: sizes.heads,
                seq: sizes.seq,
                step: sizes.steps(op.layout)[1],
                head_dim: sizes.head_dim,
                norm: op.norm.map(|norm| norm.native(weight)),
                turn: table.turn(op.pairs, [&inputs[1], &inputs[2]]),
                positions: table.positions.unwrap_or(sizes.batch * sizes.seq),
                angles: match op.positions {
                    _ if table.positions.is_none() => native::Angles::PerToken,
                    PositionRule::Counted => native::Angles::Counted,
                    PositionRule::Given => native::Angles::Given(positions),
                    PositionRule::After => native::Angles::After(positions),
                },
            };
            rotary(args, ElementsMut::of(&mut outputs[0]));
        };
        vec![Technique::Cpu(CpuKernel { name: "rotary_native", run: Arc::new(run) })]
    }

    fn row(&self, inputs: &[TensorDesc], checked: &Checked, capabilities: &Capabilities) -> Option<Launch> {
        if inputs.iter().any(|input| input.dtype == Dtype::F16) && !capabilities.f16 {
            return None;
        }
        let Checked { sizes, table } = checked;
        let weight = self.optional(inputs).1.map(|weight| weight.dtype);
        let (mut libraries, mut constants) = norm_parts(self.norm.map(|_| weight));
        let (rotation, angle) = rotation_parts(Some(inputs[1].dtype));
        libraries.extend(rotation);
        libraries.push(match self.positions {
            PositionRule::Counted => POSITION_COUNTED,
            PositionRule::Given => POSITION_GIVEN,
            PositionRule::After => POSITION_AFTER,
        });
        constants.extend(angle);
        constants.push(("Elem", Constant::Scalar(inputs[0].dtype)));
        let rows = inputs[0].len().checked_div(sizes.head_dim).unwrap_or(0);
        let params = RotaryParams {
            rows: index(rows),
            heads: index(sizes.heads),
            seq: index(sizes.seq),
            step: index(sizes.steps(self.layout)[1]),
            head_dim: index(sizes.head_dim),
            rotary_dim: index(2 * table.pairs),
            interleaved: u32::from(self.pairs == Pairs::Interleaved),
            per_token: u32::from(table.positions.is_none()),
            positions: index(table.positions.unwrap_or(0)),
            epsilon: self.norm.map_or(0.0, |norm| norm.epsilon),
        };
        let mut bindings = Bindings { inputs: vec![1, COSINES_BINDING, SINES_BINDING], outputs: vec![2] };
        bindings.inputs.extend((self.positions != PositionRule::Counted).then_some(POSITIONS_BINDING));
        bindings.inputs.extend(weight.map(|_| WEIGHT_BINDING));
        let shader = Shader { main: ROW, libraries, constants };
        Some(Launch { shader, params: params.into(), workgroups: fold(rows, capabilities), bindings })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two heads, two positions, `[batch, seq, heads, head_dim]` in both layouts of the same numbers.
    #[test]
    fn reference_by_hand() {
        let angles = |data: &[f32]| HostTensor::f32(&[2, 1], data.to_vec()).unwrap();
        // Position 0 does not turn, position 1 turns by a quarter.
        let (cos, sin) = (angles(&[1.0, 0.0]), angles(&[0.0, 1.0]));
        let x = HostTensor::f32(&[1, 2, 2, 2], (1..9).map(|x| x as f32).collect()).unwrap();
        let op =
            Rotary { layout: Layout::SeqFirst, pairs: Pairs::Halves, positions: PositionRule::Counted, norm: None };
        let out = op.reference(&[&x, &cos, &sin], Rows::All).remove(0);
        assert_eq!(out.as_f64().unwrap(), [1.0, 2.0, 3.0, 4.0, -6.0, 5.0, -8.0, 7.0]);
        let op = Rotary { layout: Layout::HeadsFirst, ..op };
        let out = op.reference(&[&x, &cos, &sin], Rows::All).remove(0);
        assert_eq!(out.as_f64().unwrap(), [1.0, 2.0, -4.0, 3.0, 5.0, 6.0, -8.0, 7.0]);
        let after = HostTensor::u32(&[1], vec![1]).unwrap();
        let op = Rotary { positions: PositionRule::After, ..op };
        let out = op.reference(&[&x, &cos, &sin, &after], Rows::All).remove(0);
        assert_eq!(out.as_f64().unwrap(), [-2.0, 1.0, -4.0, 3.0, -6.0, 5.0, -8.0, 7.0]);
        let desc = [&x, &cos, &sin, &after].map(|tensor| tensor.desc().clone());
        let error = op.check(&desc, &[None, None, None, Some(&after)]).unwrap_err();
        let expected = "rotary: sequence 0 reaches position 2, cos and sin have 2 positions";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let op =
            Rotary { layout: Layout::HeadsFirst, pairs: Pairs::Halves, positions: PositionRule::Counted, norm: None };
        let refused = |op: Rotary, shapes: &[&[usize]], part: &str| {
            let inputs: Vec<_> = shapes.iter().map(|shape| TensorDesc::new(Dtype::F32, *shape)).collect();
            let error = op.outputs(&inputs).unwrap_err().to_string();
            assert!(error.starts_with("rotary: ") && error.contains(part), "{error}");
        };
        let x: &[usize] = &[2, 3, 4, 8];
        refused(op, &[x], "takes 3 tensors with these options, got 1");
        refused(op, &[&[8], &[4, 4], &[4, 4]], "x is f32 [8], it must be [batch, heads, seq, head_dim]");
        refused(op, &[x, &[4, 4], &[4, 3]], "cos is f32 [4, 4] and sin is f32 [4, 3]");
        refused(op, &[x, &[4, 5], &[4, 5]], "5 pairs turn in a head_dim of 8");
        refused(op, &[x, &[3, 4], &[3, 4]], "cos is f32 [3, 4] and x has 4 positions");
        refused(op, &[x, &[0, 4], &[0, 4]], "needs a position at least");
        refused(op, &[x, &[2, 3, 4], &[2, 3, 4]], "must be [positions, 4] or [2, 4, 4]");
        let merged = Rotary { layout: Layout::Merged { heads: 3 }, ..op };
        refused(merged, &[&[2, 3, 8], &[4, 1], &[4, 1]], "it must be [batch, seq, 3 heads × head_dim]");
        let given = Rotary { positions: PositionRule::Given, ..op };
        refused(given, &[x, &[9, 4], &[9, 4], &[2, 4]], "positions are f32 [2, 4], they must be u32 [2, 4]");
        refused(given, &[x, &[2, 4, 4], &[2, 4, 4], &[2, 4]], "and there are positions too");
        let norm = Some(NormRule { epsilon: 0.0, has_weight: true });
        refused(Rotary { norm, ..op }, &[x, &[9, 4], &[9, 4], &[7]], "weight is f32 [7], it must be f32 or f16 [8]");
    }
}
