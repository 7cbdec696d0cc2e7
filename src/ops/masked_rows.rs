//! What `mask_scores` and `masked_softmax` share: what their kernels are told of scores and of the rule that masks them.

use crate::op::index;
use crate::ops::masks::{Checked, ScoreRule};
use crate::shader::{Params, Source, params, wgsl};

/// What a row makes of its scores; with what [`Checked::link`] returns.
pub(super) const MASKED_ROW: Source = wgsl!("lib/masked_row");

params! {
    struct MaskedRowsParams {
        count: u32, heads: u32, seq_q: u32, seq_kv: u32, band_lower: i32, band_upper: i32, fill: f32, excluded: f32,
        softcap: f32, band_follows: u32, mask_keys: u32, bias_keys: u32,
        mask_batch: u32, mask_head: u32, mask_query: u32, mask_key: u32,
        bias_batch: u32, bias_head: u32, bias_query: u32, bias_key: u32, position: i32, slope_sequence: u32, sequences: u32,
        own_batch: u32,
    }
}

/// Of scores `[batch, heads, seq_q, seq_kv]`.
pub(super) fn params([batch, heads, seq_q, seq_kv]: [usize; 4], rule: &ScoreRule, checked: &Checked) -> Params {
    let own_batch = u32::from(rule.reads_batched_keys());
    let rule = checked.params();
    let [mask_batch, mask_head, mask_query, mask_key] = rule.mask;
    let [bias_batch, bias_head, bias_query, bias_key] = rule.bias;
    let params = MaskedRowsParams {
        count: index(batch * heads * seq_q * seq_kv),
        heads: index(heads),
        seq_q: index(seq_q),
        seq_kv: index(seq_kv),
        band_lower: rule.band.lower as i32,
        band_upper: rule.band.upper as i32,
        fill: rule.fill,
        excluded: rule.excluded,
        softcap: rule.softcap,
        band_follows: rule.band_follows,
        mask_keys: rule.mask_keys,
        bias_keys: rule.bias_keys,
        mask_batch,
        mask_head,
        mask_query,
        mask_key,
        bias_batch,
        bias_head,
        bias_query,
        bias_key,
        position: rule.position,
        slope_sequence: rule.slope_sequence,
        sequences: rule.sequences,
        own_batch,
    };
    params.into()
}
