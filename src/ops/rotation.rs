//! What happens to a row of a head before it is used: RMSNorm, then rotary embedding. `rotary` and `append_kv` share it.

use crate::cpu::kernels::args::Elements;
use crate::cpu::kernels::rms_norm;
use crate::cpu::kernels::rotary::Turn;
use crate::error::{Error, Result};
use crate::graph::Tensor;
use crate::ops::REDUCE_WORKGROUP;
use crate::ops::operands::Layout;
use crate::shader::{Constant, Source, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc, View};

const NORM_NONE: Source = wgsl!("lib/norm_none");
const NORM_RMS: Source = wgsl!("lib/norm_rms");
const NORM_WEIGHT_NONE: Source = wgsl!("lib/norm_weight_none");
const NORM_WEIGHT_DENSE: Source = wgsl!("lib/norm_weight_dense");
const ROTATE_NONE: Source = wgsl!("lib/rotate_none");
const ROTATE_PAIRS: Source = wgsl!("lib/rotate_pairs");

// Binding numbers in the library files.
pub(super) const COSINES_BINDING: u32 = 11;
pub(super) const SINES_BINDING: u32 = 12;
pub(super) const WEIGHT_BINDING: u32 = 13;

/// Which elements of a row turn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Pairs {
    /// p and p + rotary_dim / 2 (GPT-NeoX, Llama in PyTorch).
    #[default]
    Halves,
    /// 2p and 2p + 1 (GPT-J, RoFormer).
    Interleaved,
}

/// The angles of a rotary embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Angles {
    /// Cosines, f32 or f16: `[positions, rotary_dim / 2]`, or, of the rows themselves, `[batch, seq, rotary_dim / 2]`.
    /// What is left of head_dim after rotary_dim stays as it is.
    pub cos: Tensor,
    /// Sines, like the cosines.
    pub sin: Tensor,
    /// Which elements turn together.
    pub pairs: Pairs,
}

/// RMSNorm of a head's row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadNorm {
    /// One for each element, f32 or f16 `[head_dim]`.
    pub weight: Option<Tensor>,
    /// Added to the mean of the squares.
    pub epsilon: f32,
}

/// RMSNorm without its tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormRule {
    /// Added to the mean of the squares; finite, 0 or more.
    pub epsilon: f32,
    /// A weight is among the op's inputs.
    pub has_weight: bool,
}

impl HeadNorm {
    pub(super) fn rule(&self) -> NormRule {
        NormRule { epsilon: self.epsilon, has_weight: self.weight.is_some() }
    }
}

/// Cosines and sines of `position × base^(−2p / rotary_dim)` for pair p, f32 `[positions, rotary_dim / 2]`: Llama and GPT-NeoX
/// have a base of 10000.
///
/// # Errors
/// An odd rotary_dim, or a base that is not finite and larger than zero.
pub fn rotary_caches(base: f64, rotary_dim: usize, positions: usize) -> Result<[HostTensor; 2]> {
    if !rotary_dim.is_multiple_of(2) {
        return Err(Error::option("rotary", format!("rotary_dim is {rotary_dim}, it must be even")));
    }
    if !(base.is_finite() && base > 0.0) {
        return Err(Error::option("rotary", format!("base is {base}, it must be finite and larger than zero")));
    }
    let pairs = rotary_dim / 2;
    let table = |of: fn(f64) -> f64| {
        let angle = |at: usize| (at / pairs) as f64 * base.powf(-2.0 * (at % pairs) as f64 / rotary_dim as f64);
        HostTensor::f32(&[positions, pairs], (0..positions * pairs).map(|at| of(angle(at)) as f32).collect())
    };
    Ok([table(f64::cos)?, table(f64::sin)?])
}

/// Sizes of a tensor of heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HeadSizes {
    pub batch: usize,
    pub heads: usize,
    pub seq: usize,
    pub head_dim: usize,
}

impl HeadSizes {
    /// Errs, in the name of `op`, when `desc`, called `name`, has no such axes.
    pub fn new(op: &'static str, name: &str, desc: &TensorDesc, layout: Layout) -> Result<Self> {
        let fail = |wanted: &str| Err(Error::shape(op, format!("{name} is {desc}, it must be {wanted}")));
        if !desc.dtype.is_device_float() {
            return fail("f32 or f16");
        }
        let axis = |from_the_end: usize| desc.rank().checked_sub(from_the_end).map_or(1, |axis| desc.shape[axis]);
        match (layout, desc.rank()) {
            (Layout::HeadsFirst, 2..=4) => Ok(Self { batch: axis(4), heads: axis(3), seq: axis(2), head_dim: axis(1) }),
            (Layout::HeadsFirst, _) => fail("[batch, heads, seq, head_dim]"),
            (Layout::SeqFirst, 3..=4) => Ok(Self { batch: axis(4), heads: axis(2), seq: axis(3), head_dim: axis(1) }),
            (Layout::SeqFirst, _) => fail("[batch, seq, heads, head_dim]"),
            (Layout::Merged { heads }, 2..=3) if heads > 0 && axis(1).is_multiple_of(heads) => {
                Ok(Self { batch: axis(3), heads, seq: axis(2), head_dim: axis(1) / heads })
            }
            (Layout::Merged { heads }, _) => fail(&format!("[batch, seq, {heads} heads × head_dim]")),
            (Layout::Joined { .. }, _) => fail("on its own; only attention reads it out of a joined tensor"),
        }
    }

    /// Rows from one head to the next, and from one position to the next.
    pub fn steps(&self, layout: Layout) -> [usize; 2] {
        match layout {
            Layout::HeadsFirst => [self.seq, 1],
            Layout::SeqFirst | Layout::Merged { .. } | Layout::Joined { .. } => [1, self.heads],
        }
    }
}

/// Tables of angles as they were given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AngleTable {
    pub pairs: usize,
    /// Positions that it has angles of; `None` where the angles are of the rows themselves.
    pub positions: Option<usize>,
}

impl AngleTable {
    /// Errs, in the name of `op`, when the tables do not fit rows of these sizes.
    pub fn new(op: &'static str, [cos, sin]: [&TensorDesc; 2], sizes: &HeadSizes) -> Result<Self> {
        let fail = |message: String| Err(Error::shape(op, message));
        if cos != sin || !cos.dtype.is_device_float() {
            return fail(format!("cos is {cos} and sin is {sin}, both must be alike, f32 or f16"));
        }
        let (pairs, head_dim) = (cos.row_length(), sizes.head_dim);
        if pairs.saturating_mul(2) > head_dim {
            return fail(format!("cos is {cos} for pairs, so that {pairs} pairs turn in a head_dim of {head_dim}"));
        }
        match cos.shape[..] {
            [0, _] => fail(format!("cos is {cos}, it needs a position at least")),
            [positions, _] => Ok(Self { pairs, positions: Some(positions) }),
            [batch, seq, _] if [batch, seq] == [sizes.batch, sizes.seq] => Ok(Self { pairs, positions: None }),
            _ => fail(format!(
                "cos is {cos}, it must be [positions, {pairs}] or [{}, {}, {pairs}]",
                sizes.batch, sizes.seq
            )),
        }
    }

    /// Refuses a position that the tables have no angles of.
    pub fn check(&self, op: &'static str, sequence: usize, position: u64) -> Result<()> {
        match self.positions {
            Some(positions) if position >= positions as u64 => {
                let message =
                    format!("sequence {sequence} reaches position {position}, cos and sin have {positions} positions");
                Err(Error::shape(op, message))
            }
            _ => Ok(()),
        }
    }

    /// For the native kernel.
    pub fn turn<'a>(&self, pairs: Pairs, [cos, sin]: [&View<'a>; 2]) -> Turn<'a> {
        let interleaved = pairs == Pairs::Interleaved;
        Turn { cosines: Elements::of(cos), sines: Elements::of(sin), pairs: self.pairs, interleaved }
    }
}

impl NormRule {
    /// Errs, in the name of `op`, on an epsilon or a weight that does not fit rows of `length`.
    pub fn check(&self, op: &'static str, weight: Option<&TensorDesc>, length: usize) -> Result<()> {
        if !(self.epsilon.is_finite() && self.epsilon >= 0.0) {
            let message = format!("epsilon is {}, it must be finite and 0 or more", self.epsilon);
            return Err(Error::option(op, message));
        }
        match weight.filter(|weight| !weight.dtype.is_device_float() || weight.shape != [length]) {
            Some(weight) => {
                Err(Error::shape(op, format!("the norm's weight is {weight}, it must be f32 or f16 [{length}]")))
            }
            None => Ok(()),
        }
    }

    /// For the native kernel.
    pub fn native<'a>(&self, weight: Option<&View<'a>>) -> rms_norm::Norm<'a> {
        rms_norm::Norm { weight: weight.map(Elements::of), epsilon: self.epsilon }
    }
}

/// Library files and the constants that they have.
pub(super) type Parts = (Vec<Source>, Vec<(&'static str, Constant)>);

/// The norm of a kernel's rows: of none, or with a weight of this dtype or without.
pub(super) fn norm_parts(norm: Option<Option<Dtype>>) -> Parts {
    match norm {
        None => (vec![NORM_NONE], Vec::new()),
        Some(None) => (vec![REDUCE_WORKGROUP, NORM_RMS, NORM_WEIGHT_NONE], Vec::new()),
        Some(Some(weight)) => {
            let constants = vec![("Weight", Constant::Scalar(weight))];
            (vec![REDUCE_WORKGROUP, NORM_RMS, NORM_WEIGHT_DENSE], constants)
        }
    }
}

/// The rotation of a kernel's rows, by angles of this dtype.
pub(super) fn rotation_parts(angles: Option<Dtype>) -> Parts {
    match angles {
        None => (vec![ROTATE_NONE], Vec::new()),
        Some(dtype) => (vec![ROTATE_PAIRS], vec![("Angle", Constant::Scalar(dtype))]),
    }
}

/// What a row becomes by definition.
#[derive(Debug, Default)]
pub(super) struct RowDefinition {
    /// Epsilon, and the weight if there is one.
    pub norm: Option<(f32, Option<Vec<f64>>)>,
    /// Cosines, sines and their pairs.
    pub rotation: Option<(Vec<f64>, Vec<f64>, Pairs)>,
    /// Pairs that turn.
    pub turning: usize,
}

impl RowDefinition {
    /// The row normalised, then turned by the angles in row `angles` of the tables.
    pub fn apply(&self, row: &[f64], angles: usize) -> Vec<f64> {
        let mut row = row.to_vec();
        if let Some((epsilon, weight)) = &self.norm {
            let mean = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
            for (d, x) in row.iter_mut().enumerate() {
                *x = *x / (mean + f64::from(*epsilon)).sqrt() * weight.as_ref().map_or(1.0, |weight| weight[d]);
            }
        }
        if let Some((cosines, sines, pairs)) = &self.rotation {
            let before = row.clone();
            for p in 0..self.turning {
                let (one, other) = match pairs {
                    Pairs::Halves => (p, p + self.turning),
                    Pairs::Interleaved => (2 * p, 2 * p + 1),
                };
                let (cosine, sine) = (cosines[angles * self.turning + p], sines[angles * self.turning + p]);
                row[one] = before[one] * cosine - before[other] * sine;
                row[other] = before[other] * cosine + before[one] * sine;
            }
        }
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_by_hand() {
        let [cos, sin] = rotary_caches(100.0, 4, 3).unwrap();
        assert_eq!((cos.shape(), sin.shape()), (&[3, 2][..], &[3, 2][..]));
        // Pair 0 turns by 1 at each position, pair 1 by 100^(−1/2).
        let wanted = [0.0, 0.0, 1.0, 0.1, 2.0, 0.2];
        for ((cos, sin), angle) in cos.to_f64().iter().zip(sin.to_f64()).zip(wanted) {
            assert!((cos - f64::cos(angle)).abs() < 1e-7 && (sin - f64::sin(angle)).abs() < 1e-7);
        }
        assert!(rotary_caches(1e4, 3, 1).unwrap_err().to_string().contains("rotary_dim is 3"));
        assert!(rotary_caches(f64::NAN, 2, 1).unwrap_err().to_string().contains("base is NaN"));
    }

    #[test]
    fn a_row_by_hand() {
        let rotation = Some((vec![9.0, 9.0, 0.0, 1.0], vec![9.0, 9.0, 1.0, 0.0], Pairs::Halves));
        let definition = RowDefinition { norm: None, rotation, turning: 2 };
        assert_eq!(definition.apply(&[1.0, 2.0, 3.0, 4.0, 5.0], 1), [-3.0, 2.0, 1.0, 4.0, 5.0]);
        let definition = RowDefinition { norm: Some((0.5, Some(vec![1.0, 10.0]))), ..RowDefinition::default() };
        assert_eq!(definition.apply(&[1.0, 2.0], 0), [1.0 / 3.0_f64.sqrt(), 20.0 / 3.0_f64.sqrt()]);
    }
}
