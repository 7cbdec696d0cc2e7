//! The masks of `torch.nn.MultiheadAttention` as the engine takes them.

use crate::error::{Error, Result};
use crate::tensor::{Dtype, HostTensor};

const OP: &str = "multi_head_attention";

/// PyTorch's two masks as one.
///
/// In PyTorch's boolean masks true means "not allowed", the opposite of [`Attention::mask`](crate::Attention::mask); floats
/// are added to the scores.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TorchMasks {
    /// For [`Attention::mask`](crate::Attention::mask), where all masks are boolean.
    pub mask: Option<HostTensor>,
    /// For [`Attention::bias`](crate::Attention::bias), where one of them is not.
    pub bias: Option<HostTensor>,
    /// f32 `[batch, heads, seq_q, 1]`, each axis full or 1: NaN for a row that may see no key, else 0. `None` when there is no
    /// such row. Added to result and weights, it makes them what PyTorch returns with `need_weights=True`; with
    /// `need_weights=False` such a row attends to nothing and gives zeros, as here.
    pub empty_rows: Option<HostTensor>,
}

/// What masks must fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaskedScores {
    /// Batch elements.
    pub batch: usize,
    /// Heads.
    pub heads: usize,
    /// Queries.
    pub seq_q: usize,
    /// Keys of the input.
    pub seq_kv: usize,
    /// Keys after them, which no mask hides.
    pub appended: usize,
}

/// A mask as `[batch, heads, seq_q, seq_kv]`, axes that it lacks being 1.
struct Part {
    shape: [usize; 4],
    values: Vec<f64>,
}

impl TorchMasks {
    /// `attn_mask` is `[seq_q, seq_kv]` or `[batch × heads, seq_q, seq_kv]`, `key_padding_mask` is `[batch, seq_kv]`; each is
    /// bool, true being not allowed, or float, which is added.
    ///
    /// # Errors
    /// Other shapes and dtypes; names both sides.
    pub fn new(
        scores: MaskedScores,
        attn_mask: Option<&HostTensor>,
        key_padding_mask: Option<&HostTensor>,
    ) -> Result<Self> {
        let MaskedScores { batch, heads, seq_q, seq_kv, appended } = scores;
        let mut parts = Vec::new();
        if let Some(mask) = attn_mask {
            let shape = match *mask.shape() {
                [q, kv] if [q, kv] == [seq_q, seq_kv] => [1, 1, seq_q, seq_kv],
                [each, q, kv] if [each, q, kv] == [batch * heads, seq_q, seq_kv] => [batch, heads, seq_q, seq_kv],
                _ => {
                    let (desc, each) = (mask.desc(), batch * heads);
                    let message =
                        format!("attn_mask is {desc}, [{seq_q}, {seq_kv}] or [{each}, {seq_q}, {seq_kv}] was expected");
                    return Err(Error::shape(OP, message));
                }
            };
            parts.push(Part { shape, values: additive("attn_mask", mask)? });
        }
        if let Some(mask) = key_padding_mask {
            if mask.shape() != [batch, seq_kv] {
                let message = format!("key_padding_mask is {}, [{batch}, {seq_kv}] was expected", mask.desc());
                return Err(Error::shape(OP, message));
            }
            parts.push(Part { shape: [batch, 1, 1, seq_kv], values: additive("key_padding_mask", mask)? });
        }
        if parts.is_empty() {
            return Ok(Self::default());
        }
        let joined = Joined::new(&parts, appended);
        let empty_rows = joined.empty_rows()?;
        let boolean = [attn_mask, key_padding_mask].into_iter().flatten().all(|mask| mask.desc().dtype == Dtype::Bool);
        Ok(if boolean {
            let allowed = joined.sums.iter().map(|&sum| sum == 0.0).collect();
            Self { mask: Some(HostTensor::bool(&joined.shape, allowed)?), bias: None, empty_rows }
        } else {
            let sums = joined.sums.iter().map(|&sum| sum as f32).collect();
            Self { mask: None, bias: Some(HostTensor::f32(&joined.shape, sums)?), empty_rows }
        })
    }
}

/// What all masks together add to each score.
struct Joined {
    shape: [usize; 4],
    sums: Vec<f64>,
}

impl Joined {
    fn new(parts: &[Part], appended: usize) -> Self {
        let mut shape = parts.iter().fold([0; 4], |shape, part| std::array::from_fn(|a| shape[a].max(part.shape[a])));
        let keys = shape[3];
        shape[3] += appended;
        let [_, heads, seq_q, _] = shape;
        let mut sums = Vec::with_capacity(shape.iter().product());
        for row in 0..shape[..3].iter().product() {
            let at = [row / seq_q / heads, row / seq_q % heads, row % seq_q];
            sums.extend((0..keys).map(|key| parts.iter().map(|part| part.value(at, key)).sum::<f64>()));
            sums.resize(sums.len() + appended, 0.0);
        }
        Self { shape, sums }
    }

    /// As [`TorchMasks::empty_rows`].
    fn empty_rows(&self) -> Result<Option<HostTensor>> {
        let [batch, heads, seq_q, keys] = self.shape;
        let empty = |row: &[f64]| if row.iter().all(|&sum| sum == f64::NEG_INFINITY) { f32::NAN } else { 0.0 };
        let rows: Vec<f32> = self.sums.chunks_exact(keys.max(1)).map(empty).collect();
        let any = rows.iter().any(|row| row.is_nan());
        any.then(|| HostTensor::f32(&[batch, heads, seq_q, 1], rows)).transpose()
    }
}

impl Part {
    fn value(&self, at: [usize; 3], key: usize) -> f64 {
        let axes = at.iter().zip(&self.shape);
        let row = axes.fold(0, |row, (&at, &size)| row * size + if size == 1 { 0 } else { at });
        self.values[row * self.shape[3] + key]
    }
}

/// What is added to a score.
fn additive(role: &str, mask: &HostTensor) -> Result<Vec<f64>> {
    match mask.desc().dtype {
        Dtype::Bool => Ok(mask.to_f64().into_iter().map(|x| if x == 0.0 { 0.0 } else { f64::NEG_INFINITY }).collect()),
        Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64 => Ok(mask.to_f64()),
        Dtype::U32 | Dtype::I8 => {
            Err(Error::shape(OP, format!("{role} is {}, a bool or float was expected", mask.desc())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCORES: MaskedScores = MaskedScores { batch: 2, heads: 1, seq_q: 2, seq_kv: 2, appended: 0 };

    #[test]
    fn boolean_masks_are_joined_and_turned_round() {
        let causal = HostTensor::bool(&[2, 2], vec![false, true, false, false]).unwrap();
        let padding = HostTensor::bool(&[2, 2], vec![false, false, true, false]).unwrap();
        let masks = TorchMasks::new(SCORES, Some(&causal), Some(&padding)).unwrap();
        let allowed = [true, false, true, true, false, false, false, true];
        assert_eq!(masks.mask.unwrap().as_bool().unwrap(), allowed);
        let empty = masks.empty_rows.unwrap();
        assert_eq!(empty.shape(), [2, 1, 2, 1]);
        let nan: Vec<bool> = empty.as_f32().unwrap().iter().map(|x| x.is_nan()).collect();
        assert_eq!(nan, [false, false, true, false]);
    }

    #[test]
    fn a_float_makes_all_of_it_a_bias_and_appended_keys_are_seen() {
        let bias = HostTensor::f32(&[2, 2], vec![0.5, f32::NEG_INFINITY, 0.0, 1.0]).unwrap();
        let padding = HostTensor::bool(&[2, 2], vec![false, false, true, true]).unwrap();
        let scores = MaskedScores { appended: 1, ..SCORES };
        let masks = TorchMasks::new(scores, Some(&bias), Some(&padding)).unwrap();
        let out = f32::NEG_INFINITY;
        let wanted = [0.5, out, 0.0, 0.0, 1.0, 0.0, out, out, 0.0, out, out, 0.0];
        assert_eq!(masks.bias.unwrap().as_f32().unwrap(), wanted);
        assert!(masks.mask.is_none() && masks.empty_rows.is_none());
    }

    #[test]
    fn misfits_are_refused() {
        let mask = HostTensor::bool(&[2, 3], vec![false; 6]).unwrap();
        let message = |attn, padding| TorchMasks::new(SCORES, attn, padding).unwrap_err().to_string();
        assert_eq!(
            message(Some(&mask), None),
            "multi_head_attention: attn_mask is bool [2, 3], [2, 2] or [2, 2, 2] was expected"
        );
        assert!(message(None, Some(&mask)).contains("key_padding_mask is bool [2, 3], [2, 2] was expected"));
        let ids = HostTensor::u32(&[2, 2], vec![0; 4]).unwrap();
        assert!(message(Some(&ids), None).contains("a bool or float was expected"));
    }
}
