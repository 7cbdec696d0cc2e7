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

    fn filled(mut self, fill: Fill) -> Self {
        self.rule.masking.fill = fill;
        self
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
        self.rule.has_lengths = true;
        self.u32s((0..batch).map(|b| lengths[b % 4] as u32).collect())
    }

    /// Slopes as ALiBi has them, halved from head to head, of either sign where there is one for each sequence.
    fn slopes(mut self, shape: &[usize]) -> Self {
        let slope = |at: usize| if at % 5 == 3 { -0.125 } else { (-(1.0 + (at % 4) as f32)).exp2() };
        let slopes = (0..shape.iter().product()).map(slope).collect();
        self.rule.has_slopes = true;
        self.given(HostTensor::f32(shape, slopes).expect("one for each"))
    }

    /// Lengths from more than there are queries to none.
    fn q_lengths(mut self, batch: usize, seq_q: usize) -> Self {
        let lengths = [seq_q.div_ceil(2), seq_q + 7, 1, 0];
        self.rule.has_q_lengths = true;
        self.u32s((0..batch).map(|b| lengths[b % 4] as u32).collect())
    }

    /// Packed sequences of queries and keys.
    fn packed(mut self, q_starts: Vec<u32>, kv_starts: Vec<u32>) -> Self {
        self.rule.has_q_starts = true;
        self.rule.has_kv_starts = true;
        self.u32s(q_starts).u32s(kv_starts)
    }

    /// Packed sequences of queries over batched keys.
    fn q_starts(mut self, q_starts: Vec<u32>) -> Self {
        self.rule.has_q_starts = true;
        self.u32s(q_starts)
    }

    fn u32s(self, data: Vec<u32>) -> Self {
        self.given(HostTensor::u32(&[data.len()], data).expect("as many as there are"))
    }

    fn given(mut self, tensor: HostTensor) -> Self {
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
    let mut cases = vec![
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
    ];
    cases.extend(sequence_cases([batch, heads, seq_q, seq_kv]));
    if batch == 1 {
        cases.extend(packed_cases([heads, seq_q, seq_kv]));
    }
    cases
}

/// Slopes and query lengths.
fn sequence_cases([batch, heads, seq_q, seq_kv]: [usize; 4]) -> Vec<MaskCase> {
    let assign = Fill::Assign(-1e9);
    let plain = |name| MaskCase { name, ..MaskCase::none() };
    let causal = MaskCase::causal;
    let aligned = Window { left: Some(4), right: Some(3), align: Some(Causal::TopLeft) };
    vec![
        plain("slopes").slopes(&[heads]),
        plain("slopes per sequence").slopes(&[batch, heads]),
        causal("slopes causal top-left", Causal::TopLeft, Fill::Exclude).slopes(&[heads]),
        causal("slopes with a past", Causal::Past(3), assign).slopes(&[heads]),
        plain("slopes softcap lengths").capped(2.0).lengths(batch, seq_kv).slopes(&[batch, heads]),
        MaskCase::new("window from the top left", Masking { window: Some(aligned), ..Masking::default() }),
        plain("query lengths").q_lengths(batch, seq_q),
        causal("query lengths assigned", Causal::TopLeft, assign).q_lengths(batch, seq_q),
        causal("query lengths causal bottom-right", Causal::BottomRight, Fill::Exclude).q_lengths(batch, seq_q),
        causal("both lengths causal bottom-right", Causal::BottomRight, Fill::Exclude)
            .lengths(batch, seq_kv)
            .slopes(&[heads])
            .q_lengths(batch, seq_q),
        MaskCase::window("both lengths window assigned", Some(3), Some(1), None)
            .filled(assign)
            .mask(&[batch, 1, seq_q, seq_kv], false)
            .lengths(batch, seq_kv)
            .q_lengths(batch, seq_q),
    ]
}

/// Packed sequences, empty ones among them.
fn packed_cases([heads, seq_q, seq_kv]: [usize; 3]) -> Vec<MaskCase> {
    let plain = |name| MaskCase { name, ..MaskCase::none() };
    let causal = MaskCase::causal;
    let at = |size: usize, parts: &[usize]| parts.iter().map(|part| (size * part / 8) as u32).collect::<Vec<_>>();
    let q = || at(seq_q, &[0, 3, 3, 4, 8]);
    let kv = || at(seq_kv, &[0, 2, 3, 3, 8]);
    let some = || Values::Bias { excluded: 0.2 };
    vec![
        plain("packed").packed(q(), kv()),
        causal("packed causal top-left", Causal::TopLeft, Fill::Exclude).packed(q(), kv()),
        causal("packed causal bottom-right", Causal::BottomRight, Fill::Exclude).packed(q(), kv()),
        causal("packed causal assigned", Causal::BottomRight, Fill::Assign(-1e9)).packed(q(), kv()),
        MaskCase::window("packed window", Some(2), Some(5), None).packed(q(), kv()),
        plain("packed slopes").slopes(&[4, heads]).packed(q(), kv()),
        plain("packed additive shorter than the keys")
            .bias(Dtype::F32, &[heads, seq_q, seq_kv.div_ceil(2).max(2).min(seq_kv)], some())
            .packed(q(), kv()),
        causal("packed everything", Causal::BottomRight, Fill::Exclude)
            .capped(3.0)
            .mask(&[1, seq_q, seq_kv], false)
            .bias(Dtype::F16, &[seq_q, seq_kv], some())
            .slopes(&[heads])
            .packed(q(), kv()),
        plain("packed, rows of no sequence").packed(at(seq_q, &[1, 5, 7]), at(seq_kv, &[2, 3, 6])),
        plain("packed, no sequences").packed(vec![0], vec![0]),
        plain("packed, starts that decrease").packed(at(seq_q, &[0, 4, 2, 7]), at(seq_kv, &[3, 0, 8, 5])),
        plain("packed, starts that overrun").packed(vec![0, 1, u32::MAX], vec![0, u32::MAX, u32::MAX]),
    ]
}

/// Packed queries over batched keys: three sequences, of which the second has no query.
pub(super) fn serving_cases([heads, seq_q, seq_kv]: [usize; 3]) -> Vec<MaskCase> {
    let plain = |name| MaskCase { name, ..MaskCase::none() };
    let starts = || vec![0, (seq_q / 3) as u32, (seq_q / 3) as u32, seq_q as u32];
    vec![
        plain("packed queries").q_starts(starts()),
        MaskCase::causal("packed queries causal lengths", Causal::BottomRight, Fill::Exclude)
            .lengths(3, seq_kv)
            .q_starts(starts()),
        plain("packed queries everything")
            .capped(3.0)
            .mask(&[1, seq_q, seq_kv], false)
            .bias(Dtype::F32, &[heads, 1, seq_kv], Values::Bias { excluded: 0.2 })
            .lengths(3, seq_kv)
            .slopes(&[3, heads])
            .q_starts(starts()),
    ]
}
