//! Attention in two steps, for few query rows over many keys.

use super::{AttentionSplit, KEYS, MAX_ROWS};
use crate::capabilities::{Backend, Capabilities};
use crate::error::Result;
use crate::graph::{Graph, Lowering, Tensor};
use crate::mask::Fill;
use crate::op::{Op, Technique};
use crate::ops::attention_combine::AttentionCombine;
use crate::ops::attention_fused::AttentionFused;
use crate::tensor::TensorDesc;

/// Workgroups of the kernel that a processor holds at once, about.
const RESIDENT: usize = 8;

/// Most shares.
const MAX_SPLITS: usize = 256;

/// Fewest keys that are worth a second step.
const MIN_KEYS: usize = 512;

/// `attention_split` and `attention_combine` for a node of `attention_fused`.
#[derive(Debug)]
pub(crate) struct Split(pub AttentionFused);

impl Split {
    /// How many shares suit a device.
    fn splits(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Result<usize> {
        let sizes = self.0.sizes(inputs)?;
        let seen = self.0.keys_seen(&sizes, inputs)?;
        let rows = self.0.rows_of_a_tile(&sizes).div_ceil(MAX_ROWS);
        let tiles = sizes.batch.max(self.0.checked(&sizes, inputs)?.sequences()) * sizes.kv_heads * rows;
        let splits = best(tiles, capabilities.processors as usize * RESIDENT, seen.div_ceil(KEYS));
        // Of shares of all keys those that a window leaves out have nothing to do.
        let splits = (splits * sizes.seq_kv).div_ceil(seen.max(1)).clamp(splits, MAX_SPLITS.max(splits));
        // Some drivers end loops over longer shares.
        let more =
            std::iter::successors(Some(splits), |splits| Some(2 * splits)).take_while(|&splits| splits <= MAX_SPLITS);
        Ok(more.into_iter().find(|&splits| self.is_offered(splits, inputs, capabilities)).unwrap_or(splits))
    }

    fn is_offered(&self, splits: usize, inputs: &[TensorDesc], capabilities: &Capabilities) -> bool {
        !self.0.split_into(splits).techniques(&self.0.without_sinks(inputs), capabilities).is_empty()
    }
}

/// The number of shares of so many tiles of keys, for `rows` workgroups without a split where `slots` run at once.
fn best(rows: usize, slots: usize, tiles: usize) -> usize {
    if rows == 0 || 5 * rows >= 4 * slots {
        return 1;
    }
    // Numbers that make no share shorter than the number before has are no better than that.
    let shorter = |&splits: &usize| splits == 1 || tiles.div_ceil(splits) < tiles.div_ceil(splits - 1);
    let candidates = (1..=MAX_SPLITS.min(tiles).max(1)).filter(shorter);
    let efficiency = |splits: usize| {
        let rounds = (rows * splits) as f64 / slots as f64;
        rounds / rounds.ceil()
    };
    let greatest = candidates.clone().map(efficiency).fold(0.0, f64::max);
    candidates.into_iter().find(|&splits| efficiency(splits) >= 0.85 * greatest).unwrap_or(1)
}

impl Lowering for Split {
    fn name(&self) -> &'static str {
        "split"
    }

    /// For few rows, of which no other kernel computes as many without others beside them, so that one share is one too; and
    /// for more keys than a driver lets any kernel walk alone.
    fn wins(&self, inputs: &[TensorDesc], offered: &[Technique], capabilities: &Capabilities) -> bool {
        let Ok(sizes) = self.0.sizes(inputs) else { return false };
        let few = self.0.rows_of_a_tile(&sizes) <= MAX_ROWS;
        let many = self.0.keys_seen(&sizes, inputs).is_ok_and(|seen| seen >= MIN_KEYS);
        let suits = !self.0.rule.has_q_starts && many && (few || offered.is_empty());
        let takes = |splits| self.is_offered(splits, inputs, capabilities);
        capabilities.backend == Backend::Gpu && suits && self.splits(inputs, capabilities).is_ok_and(takes)
    }

    fn build(&self, graph: &mut Graph, inputs: &[Tensor], capabilities: &Capabilities) -> Result<Vec<Tensor>> {
        let descs = inputs.iter().map(|&tensor| graph.desc(tensor).cloned()).collect::<Result<Vec<_>>>()?;
        let splits = self.splits(&descs, capabilities)?;
        let results = graph.add(self.0.split_into(splits), &self.0.without_sinks(inputs))?;
        // Whether a row is a query matters to one that sees nothing and has a sink.
        let [q_lengths, q_starts] = match self.0.has_sinks && self.0.returns_lse {
            true => self.0.queries(inputs),
            false => [None; 2],
        };
        let combine = AttentionCombine {
            dtype: descs[0].dtype,
            layout: self.0.operands.q_layout.output(),
            has_sinks: self.0.has_sinks,
            has_q_lengths: q_lengths.is_some(),
            has_q_starts: q_starts.is_some(),
            returns_lse: self.0.returns_lse,
        };
        let others = [self.0.sinks(inputs).copied(), q_lengths, q_starts];
        let inputs: Vec<Tensor> = results.into_iter().chain(others.into_iter().flatten()).collect();
        graph.add(combine, &inputs)
    }
}

impl AttentionFused {
    /// Whether shares of the keys can be combined: an assigned score may be so large that a share's logarithm, in f32, does not
    /// say how many there were.
    pub(crate) fn splits(&self) -> bool {
        self.rule.masking.fill == Fill::Exclude
    }

    fn split_into(&self, splits: usize) -> AttentionSplit {
        let Self { scale, rule, operands, .. } = *self;
        AttentionSplit { scale, rule, operands, splits }
    }

    /// The inputs of an op that has no sinks.
    fn without_sinks<T: Clone>(&self, inputs: &[T]) -> Vec<T> {
        let mut inputs = inputs.to_vec();
        if self.has_sinks {
            inputs.remove(self.operands.tensors());
        }
        inputs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_fill_a_device() {
        // Full already, or nearly.
        assert_eq!([best(1024, 1024, 64), best(820, 1024, 64), best(0, 1024, 64)], [1; 3]);
        // Of 64 rows of tiles 13 shares fill 81 % of the slots and 16 all; 14 and 15 leave one as long as 13 do.
        assert_eq!(best(64, 1024, 64), 16);
        // Never more shares than tiles of keys.
        assert_eq!(best(8, 1024, 16), 16);
        for rows in 1..300 {
            let splits = best(rows, 256, 100);
            assert!((1..=100).contains(&splits), "{rows}: {splits}");
        }
    }
}
