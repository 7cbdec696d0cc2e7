//! Operands that are columns of wider rows: every storage, each operand alone and all of them, with NaN in the columns beside.

use super::{Storage, build, given, plain};
use crate::case::Case;
use crate::ops::attention_fused::AttentionFused;
use crate::ops::mask_cases::mask_cases;
use crate::ops::operands::Layout;
use crate::tensor::{Dtype, HostTensor};

pub(super) fn cases() -> Vec<Case> {
    let (f32, f16, bf16, i8) = (Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::I8);
    let all = Layout::Joined { heads: 4, kv_heads: 2 };
    let layouts = [
        (all, all),
        (Layout::Merged { heads: 4 }, Layout::Joined { heads: 0, kv_heads: 2 }),
        (all, Layout::SeqFirst),
        (Layout::HeadsFirst, all),
    ];
    let mut cases = Vec::new();
    for (q, kv) in [(f32, f32), (bf16, bf16), (f32, i8), (bf16, i8), (f16, f16)] {
        for (at, (q_layout, kv_layout)) in layouts.into_iter().enumerate() {
            let storage = Storage { q, kv, q_layout, kv_layout, page_size: None };
            // Sizes and masks whose pipelines other layouts have already.
            let problems =
                [([2, 4, 2, 35, 70, 20, 24], 0), ([2, 4, 2, 33, 37, 7, 5], 2), ([2, 4, 2, 3, 41, 9, 16], 17)];
            for (index, (sizes, mask)) in problems.into_iter().enumerate() {
                if index == 0 || at == 0 || at == 1 + index {
                    let mask = mask_cases([sizes[0], sizes[1], sizes[3], sizes[4]]).swap_remove(mask);
                    cases.push(joined(build(storage, sizes, mask, 1.0, AttentionFused::default()), &storage));
                }
            }
        }
    }
    let storage = Storage { q_layout: all, kv_layout: all, ..plain(f32) };
    let few = Layout::Joined { heads: 2, kv_heads: 1 };
    let packed = Storage { q_layout: few, kv_layout: few, ..plain(f32) };
    for (storage, sizes) in [(storage, [2, 4, 2, 35, 70, 20, 24]), (packed, [1, 2, 1, 70, 35, 16, 16])] {
        let masks = mask_cases([sizes[0], sizes[1], sizes[3], sizes[4]]).into_iter().skip(1);
        cases.extend(masks.map(|mask| joined(build(storage, sizes, mask, 1.0, AttentionFused::default()), &storage)));
    }
    let lse = AttentionFused { has_sinks: true, returns_lse: true, ..AttentionFused::default() };
    let mask = mask_cases([2, 4, 35, 70]).swap_remove(0);
    cases.push(joined(build(storage, [2, 4, 2, 35, 70, 20, 24], mask, 1.0, lse), &storage));
    for sizes in [[2, 4, 2, 0, 5, 8, 8], [2, 4, 2, 3, 0, 8, 8], [2, 4, 2, 3, 4, 0, 8], [2, 4, 2, 3, 4, 8, 0]] {
        let mask = mask_cases([2, 4, 3, 4]).swap_remove(0);
        cases.push(build(storage, sizes, mask, 1.0, AttentionFused::default()));
    }
    cases
}

/// NaN in what belongs to other operands; of i8 the scales hold it.
fn joined(mut case: Case, storage: &Storage) -> Case {
    let drawn = case.draw();
    for (operand, layout) in [storage.q_layout, storage.kv_layout, storage.kv_layout].into_iter().enumerate() {
        let Layout::Joined { heads, kv_heads } = layout else { continue };
        let own = [0..heads, heads..heads + kv_heads, heads + kv_heads..heads + 2 * kv_heads][operand].clone();
        let input = if operand > 0 && storage.kv == Dtype::I8 { operand + 2 } else { operand };
        let all = heads + 2 * kv_heads;
        let width = drawn[input].shape()[2] / all;
        let mut data = drawn[input].to_f64();
        let others = data.iter_mut().enumerate().filter(|(at, _)| !own.contains(&(at / width % all)));
        others.for_each(|(_, element)| *element = f64::NAN);
        let tensor = HostTensor::f64(drawn[input].shape(), data).expect("the shape is the input's");
        case.inputs[input] = given(tensor.cast(drawn[input].desc().dtype));
    }
    case
}
