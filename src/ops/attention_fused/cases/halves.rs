//! For kernels that multiply in f16: every storage rounded to it; and in f16 as it is, scores of four magnitudes, masks of every
//! kind over several tiles, poison.

use super::{Storage, build, case, hidden_tiles, plain, poisoned};
use crate::case::{Case, Values};
use crate::mask::{Causal, Fill};
use crate::ops::mask_cases::{MaskCase, mask_cases, serving_cases};
use crate::ops::{AttentionFused, EPSILON_F16};
use crate::precision::Precision;
use crate::tensor::Dtype;

pub(super) fn cases() -> Vec<Case> {
    let (f32, f16, bf16, i8) = (Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::I8);
    let half = AttentionFused { precision: Precision::Half, ..AttentionFused::default() };
    let mut cases = Vec::new();
    let pairs = [(f32, f32), (bf16, bf16), (f32, i8), (f16, i8), (bf16, f32), (f16, bf16), (f32, f16)];
    for (at, (q, kv)) in pairs.into_iter().enumerate() {
        let (sizes, mask) = match at % 3 {
            0 => ([2, 4, 2, 70, 101, 12, 8], 2),
            1 => ([1, 2, 1, 33, 70, 7, 5], 14),
            _ => ([2, 2, 2, 3, 41, 9, 16], 16),
        };
        let mask = mask_cases([sizes[0], sizes[1], sizes[3], sizes[4]]).swap_remove(mask);
        cases.push(build(Storage { kv, ..plain(q) }, sizes, mask, 1.0, half));
    }
    // Scores of about 1e-3, 1, 30 and 1e4.
    for deviation in [0.03, 1.0, 5.5, 100.0] {
        let sizes = [1, 2, 1, 130, 200, 32, 32];
        let causal = MaskCase::causal("causal bottom-right", Causal::BottomRight, Fill::Exclude);
        cases.push(case(f16, sizes, causal, deviation));
        cases.push(case(f16, sizes, MaskCase::none(), deviation));
    }
    // Causality, a window, a boolean and an additive mask, everything, slopes, lengths on both sides.
    let sizes = [2, 4, 2, 70, 101, 8, 8];
    let masks = mask_cases([2, 4, 70, 101]).into_iter().enumerate();
    let some = masks.filter(|(at, _)| [1, 4, 5, 7, 11, 21, 26, 31].contains(at));
    cases.extend(some.map(|(_, mask)| case(f16, sizes, mask, 1.0)));
    for mask in serving_cases([4, 70, 41]) {
        let mut case = case(f16, [1, 4, 2, 70, 41, 12, 16], mask, 1.0);
        case.inputs[1..3].iter_mut().for_each(|kv| kv.desc.shape[0] = 3);
        cases.push(case);
    }
    for mut poisoned in poisoned().into_iter().chain([hidden_tiles()]) {
        poisoned.name = poisoned.name.replacen("f32", "f16", 1);
        for input in &mut poisoned.inputs[..3] {
            input.desc.dtype = f16;
            if let Values::Given(tensor) = &input.values {
                input.values = Values::Given(tensor.cast(f16));
            }
        }
        poisoned.tolerance.of_scale += 2.0 * EPSILON_F16;
        cases.push(poisoned);
    }
    cases
}
