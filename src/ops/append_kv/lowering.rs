//! Keys normed and turned in a step of their own, for a device that cannot bind the tensors of both steps.

use super::{AppendOptions, KvCache};
use crate::capabilities::Capabilities;
use crate::error::Result;
use crate::graph::{Graph, Lowering, Tensor, renamed};
use crate::op::Technique;
use crate::ops::operands::Layout;
use crate::ops::rotary::{Positions, RotaryOptions};
use crate::ops::rotation::{Angles, HeadNorm};
use crate::tensor::TensorDesc;

/// `rotary`, or `rms_norm` alone, and then an append of what that gives.
#[derive(Debug)]
pub(super) struct TurnFirst {
    pub cache: KvCache,
    pub options: AppendOptions,
    /// Of the node, among them the tensors above.
    pub inputs: Vec<Tensor>,
}

impl Lowering for TurnFirst {
    fn name(&self) -> &'static str {
        "turn_first"
    }

    fn wins(&self, inputs: &[TensorDesc], offered: &[Technique], capabilities: &Capabilities) -> bool {
        offered.is_empty() && capabilities.has_types(inputs)
    }

    fn build(&self, graph: &mut Graph, inputs: &[Tensor], _capabilities: &Capabilities) -> Result<Vec<Tensor>> {
        let place = |tensor: Tensor| renamed(tensor, &self.inputs, inputs);
        let AppendOptions { layout, new_lengths, rotary, key_norm } = self.options;
        let KvCache { keys, values, lengths, scales, block_table } = self.cache;
        let norm = key_norm.map(|norm| HeadNorm { weight: norm.weight.map(place), ..norm });
        let [k, v, lengths] = [inputs[0], inputs[1], place(lengths)];
        let k = match (rotary, norm) {
            (Some(angles), norm) => {
                let angles = Angles { cos: place(angles.cos), sin: place(angles.sin), ..angles };
                // Angles of rank 3 are those of the new rows, whatever their positions.
                let of_positions = graph.desc(angles.cos)?.rank() == 2;
                let positions = if of_positions { Positions::After(lengths) } else { Positions::Counted };
                graph.rotary(k, &RotaryOptions { layout, angles, positions, norm })?
            }
            (None, Some(norm)) => normed(graph, k, layout, &norm)?,
            (None, None) => k,
        };
        let cache = KvCache {
            keys: place(keys),
            values: place(values),
            lengths,
            scales: scales.map(|scales| scales.map(place)),
            block_table: block_table.map(place),
        };
        let options = AppendOptions { layout, new_lengths: new_lengths.map(place), rotary: None, key_norm: None };
        let cache = graph.append_kv(&cache, k, v, &options)?;
        Ok([cache.keys, cache.values, cache.lengths].into_iter().chain(cache.scales.into_iter().flatten()).collect())
    }
}

/// RMSNorm of the rows of heads.
fn normed(graph: &mut Graph, k: Tensor, layout: Layout, norm: &HeadNorm) -> Result<Tensor> {
    let shape = graph.desc(k)?.shape.clone();
    let Layout::Merged { heads } = layout else { return graph.rms_norm(k, norm.weight, norm.epsilon) };
    let [outer, merged] = [&shape[..shape.len() - 1], &shape[shape.len() - 1..]];
    let rows = graph.reshape(k, &[outer, &[heads, merged[0] / heads.max(1)]].concat())?;
    let rows = graph.rms_norm(rows, norm.weight, norm.epsilon)?;
    graph.reshape(rows, &shape)
}
