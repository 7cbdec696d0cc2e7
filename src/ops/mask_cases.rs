//! Every way to mask, alone and combined, for the cases of every op that masks.

use crate::case::{CaseInput, Values};
use crate::mask::{Causal, Fill, Masking, Window};
use crate::ops::ScoreRule;
use crate::tensor::{Dtype, HostTensor, TensorDesc};

/// A rule with its tensors, which follow an op's own.
pub(super) struct MaskCase {
    pub name: &'static str,
    pub rule: ScoreRule,
    pub tensors: Vec<CaseInput>,
}

impl MaskCase {
    /// Nothing happens to a score.
    pub fn none() -> Self {
        Self::new("no mask", Masking::default())
    }

    /// Options without tensors.
    pub fn new(name: &'static str, masking: Masking) -> Self {
        Self { name, rule: ScoreRule { masking, ..ScoreRule::default() }, tensors: Vec::new() }
    }

    pub fn causal(name: &'static str, causal: Causal, fill: Fill) -> Self {
        Self::new(name, Masking { causal: Some(causal), window: None, fill })
    }

    fn window(name: &'static str, left: Option<i64>, right: Option<i64>, causal: Option<Causal>) -> Self {
        Self::new(name, Masking { causal, window: Some(Window { left, right, align: None }), fill: Fill::Exclude })
    }

    fn capped(mut self, softcap: f32) -> Self {
        self.rule.softcap = Some(softcap);
        self
    }

    // The tensors must be added in the order of the rule's fields.

    fn mask(mut self, shape: &[usize], empty_rows: bool) -> Self {
        let values = Values::Mask { keep: 0.7, empty_rows };
        self.rule.has_mask = true;
        self.tensors.push(CaseInput { desc: TensorDesc::new(Dtype::Bool, shape), values });
        self
    }

    pub fn bias(mut self, dtype: Dtype, shape: &[usize], values: Values) -> Self {
        self.rule.has_bias = true;
        self.tensors.push(CaseInput { desc: TensorDesc::new(dtype, shape), values });
        self
    }

    /// Lengths from none to more than there are keys.
    fn lengths(mut self, batch: usize, seq_kv: usize) -> Self {
        let lengths = [seq_kv / 2, seq_kv + 9, 0, 1];
        let lengths = (0..batch).map(|b| lengths[b % 4] as u32).collect();
        let tensor = HostTensor::u32(&[batch], lengths).expect("one length for each");
        self.rule.has_lengths = true;
        self.tensors.push(CaseInput { desc: tensor.desc().clone(), values: Values::Given(tensor) });
        self
    }
}

/// For scores of this shape.
pub(super) fn mask_cases([batch, heads, seq_q, seq_kv]: [usize; 4]) -> Vec<MaskCase> {
    let some = || Values::Bias { excluded: 0.2 };
    let assign = Fill::Assign(-1e9);
    let plain = |name| MaskCase { name, ..MaskCase::none() };
    let causal = MaskCase::causal;
    let shorter = seq_kv.div_ceil(2).max(2).min(seq_kv);
    vec![
        MaskCase::none(),
        causal("causal top-left", Causal::TopLeft, Fill::Exclude),
        causal("causal bottom-right", Causal::BottomRight, Fill::Exclude),
        causal("causal with a past", Causal::Past(3), Fill::Exclude),
        causal("causal assigned", Causal::BottomRight, assign),
        MaskCase::window("window 3, 2", Some(3), Some(2), None),
        MaskCase::window("causal window 4", Some(4), None, Some(Causal::TopLeft)),
        plain("boolean").mask(&[batch, heads, seq_q, seq_kv], true),
        plain("boolean per key").mask(&[batch, 1, 1, seq_kv], false),
        MaskCase::new("boolean assigned", Masking { fill: assign, ..Masking::default() })
            .mask(&[batch, 1, seq_q, seq_kv], true),
        plain("boolean shorter than the keys").mask(&[seq_q, shorter], false),
        plain("additive").bias(Dtype::F32, &[seq_q, seq_kv], some()),
        plain("additive f16 per head").bias(Dtype::F16, &[heads, 1, seq_kv], some()),
        plain("additive shorter than the keys").bias(Dtype::F32, &[batch, 1, seq_q, shorter], some()),
        causal("causal boolean additive", Causal::TopLeft, Fill::Exclude).mask(&[seq_q, seq_kv], false).bias(
            Dtype::F32,
            &[batch, 1, 1, seq_kv],
            some(),
        ),
        plain("softcap").capped(0.7),
        plain("lengths").lengths(batch, seq_kv),
        causal("lengths assigned", Causal::BottomRight, assign).lengths(batch, seq_kv),
        causal("lengths causal bottom-right", Causal::BottomRight, Fill::Exclude).lengths(batch, seq_kv),
        causal("lengths causal top-left", Causal::TopLeft, Fill::Exclude).lengths(batch, seq_kv),
        causal("lengths causal with a past", Causal::Past(2), Fill::Exclude).lengths(batch, seq_kv),
        MaskCase::window("everything", Some(9), Some(3), None)
            .capped(2.0)
            .mask(&[batch, 1, seq_q, seq_kv], false)
            .bias(Dtype::F16, &[seq_q, seq_kv], some())
            .lengths(batch, seq_kv),
    ]
}
