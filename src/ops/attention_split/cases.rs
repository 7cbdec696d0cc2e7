//! Sizes around tiles and shares, shares without a key, head dimensions from 1 to 512, every mask kind, every storage, large scores,
//! poison, zero sizes.

use super::AttentionSplit;
use crate::case::{Case, CaseInput, Values};
use crate::mask::{Causal, Fill};
use crate::ops::attention_fused::AttentionFused;
use crate::ops::attention_fused::cases::{Storage, parts, plain, poison_pages};
use crate::ops::mask_cases::{MaskCase, mask_cases, serving_cases};
use crate::ops::operands::Layout;
use crate::tensor::{Dtype, HostTensor};

const HEAD_DIMS: [(usize, usize); 10] =
    [(1, 1), (3, 5), (31, 33), (40, 40), (80, 12), (64, 128), (128, 129), (256, 256), (320, 64), (512, 512)];

pub(in crate::ops) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [Dtype::F32, Dtype::F16] {
        let plain = |splits, sizes, deviation| case(plain(dtype), splits, sizes, MaskCase::none(), deviation);
        for (splits, seq_q, seq_kv) in
            [(1, 1, 1), (1, 1, 200), (2, 1, 63), (2, 1, 64), (2, 1, 65), (3, 2, 200), (5, 1, 129), (4, 9, 300)]
        {
            cases.push(plain(splits, [2, 4, 2, seq_q, seq_kv, 16, 16], 1.0));
        }
        for (at, (head_dim, head_dim_v)) in HEAD_DIMS
            .into_iter()
            .enumerate()
            .skip(usize::from(dtype == Dtype::F16))
            .step_by(if dtype == Dtype::F32 { 1 } else { 2 })
        {
            cases.push(plain(2, [1, 2, 1, 1 + 2 * (at % 2), 101, head_dim, head_dim_v], 1.0));
        }
        // Heads of one key head: three, which do not fill a block of rows, and twelve, which do not fit into one tile.
        cases.push(plain(3, [2, 6, 2, 1, 140, 24, 24], 1.0));
        cases.push(plain(3, [1, 12, 1, 1, 140, 24, 24], 1.0));
        // Scores of about 1e-3, 1, 30 and 1e4.
        for deviation in [0.0316, 1.0, 5.48, 100.0] {
            cases.push(plain(2, [1, 2, 1, 2, 133, 64, 64], deviation));
        }
        cases.push(plain(2, [2, 4, 1, 1, 170, 16, 20], 30.0));
        for sizes in [[1, 2, 2, 0, 5, 8, 8], [2, 2, 2, 3, 0, 8, 8], [1, 1, 1, 3, 4, 0, 8], [1, 1, 1, 3, 4, 8, 0]] {
            cases.push(plain(2, sizes, 1.0));
        }
    }
    for sizes in [[2, 4, 2, 3, 150, 20, 24], [1, 4, 1, 11, 400, 16, 16]] {
        // Of a single batch element only what packs sequences.
        let masks = mask_cases([sizes[0], sizes[1], sizes[3], sizes[4]]).into_iter().skip(1);
        let masks = masks.filter(|mask| sizes[0] > 1 || mask.rule.has_q_starts);
        cases.extend(masks.map(|mask| case(plain(Dtype::F32), 2, sizes, mask, 1.0)));
    }
    for mask in serving_cases([4, 11, 150]) {
        let mut case = case(plain(Dtype::F32), 2, [1, 4, 2, 11, 150, 12, 16], mask, 1.0);
        case.inputs[1..3].iter_mut().for_each(|kv| kv.desc.shape[0] = 3);
        cases.push(case);
    }
    cases.extend(stored());
    cases.extend(poisoned());
    cases
}

fn case(storage: Storage, splits: usize, sizes: [usize; 7], mask: MaskCase, deviation: f32) -> Case {
    let (name, AttentionFused { scale, rule, operands, .. }, inputs, tolerance) =
        parts(storage, sizes, mask, deviation, AttentionFused::default());
    let op = AttentionSplit { scale, rule, operands, splits };
    Case::new(format!("{splits} of {name}"), op, inputs, tolerance)
}

/// Every cache, dense and in pages, in every layout; what no sequence has of pages is NaN where the storage has one.
fn stored() -> Vec<Case> {
    let (f32, f16, bf16, i8) = (Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::I8);
    let mut cases = Vec::new();
    for (q, kv) in [(f32, f32), (f16, f16), (bf16, bf16), (f32, i8), (f16, i8), (bf16, i8), (f32, bf16), (bf16, f32)] {
        for (q_layout, kv_layout) in [
            (Layout::SeqFirst, Layout::SeqFirst),
            (Layout::Merged { heads: 4 }, Layout::Merged { heads: 2 }),
            (Layout::Joined { heads: 4, kv_heads: 2 }, Layout::Joined { heads: 4, kv_heads: 2 }),
        ] {
            let storage = Storage { q, kv, q_layout, kv_layout, page_size: None };
            // Only widths that agree have a place in one row.
            let widths = if let Layout::Joined { .. } = q_layout { [20, 20] } else { [9, 16] };
            let sizes = [2, 4, 2, 3, 141, widths[0], widths[1]];
            let mask = mask_cases([2, 4, 3, 141]).swap_remove(17);
            cases.push(case(storage, 2, sizes, mask, 1.0));
        }
        for (size, sizes, mask) in [(16, [3, 4, 4, 1, 160, 5, 7], 16), (40, [2, 4, 1, 3, 160, 16, 16], 18)] {
            let storage = Storage { page_size: Some(size), kv, ..plain(q) };
            let mask = mask_cases([sizes[0], sizes[1], sizes[3], sizes[4]]).swap_remove(mask);
            let mut case = case(storage, 2, sizes, mask, 1.0);
            poison_pages(&mut case);
            cases.push(case);
        }
    }
    cases
}

/// NaN and infinity in keys and values that only some rows may look at, by causality or by an additive mask, for rows that share
/// a tile; and in a value that all look at.
fn poisoned() -> Vec<Case> {
    let [seq_q, seq_kv, width] = [4, 150, 8];
    let bias = |at: usize| if at % seq_kv > 100 + at / seq_kv * 16 { f32::NEG_INFINITY } else { 0.25 };
    let bias = HostTensor::f32(&[seq_q, seq_kv], (0..seq_q * seq_kv).map(bias).collect()).expect("one for each score");
    let masks = [
        MaskCase::causal("causal poisoned", Causal::BottomRight, Fill::Exclude),
        MaskCase { name: "additive poisoned", ..MaskCase::none() }.bias(
            Dtype::F32,
            &[seq_q, seq_kv],
            Values::Given(bias),
        ),
    ];
    let places = [
        [(1, 149, f32::NAN), (2, 148, f32::NAN), (2, 147, f32::INFINITY)],
        [(1, 140, f32::NAN), (2, 130, f32::NAN), (2, 110, f32::INFINITY)],
    ];
    let poisoned = masks.into_iter().zip(places).map(|(mask, places)| {
        let mut case = case(plain(Dtype::F32), 2, [1, 1, 1, seq_q, seq_kv, width, width], mask, 1.0);
        for (input, row, value) in places {
            let mut data = case.inputs[input].draw(input as u64).as_f32().expect("f32 was asked for").to_vec();
            data[row * width + 3] = value;
            let tensor = HostTensor::f32(&[1, 1, seq_kv, width], data).expect("the shape is the input's");
            case.inputs[input] = CaseInput { desc: tensor.desc().clone(), values: Values::Given(tensor) };
        }
        case
    });
    poisoned.collect()
}

#[cfg(test)]
mod tests {
    use crate::op::{Op, Rows};
    use crate::ops::AttentionSplit;
    use crate::tensor::HostTensor;

    #[test]
    fn reference_by_hand() {
        let column = |data: Vec<f32>| HostTensor::f32(&[data.len(), 1], data).unwrap();
        let op = AttentionSplit { scale: 1.0, rule: Default::default(), operands: Default::default(), splits: 3 };
        // 64 keys of value 2, and two whose weights are as 1 to 3; nothing is left for the third share.
        let [q, k, v] = [
            column(vec![1.0]),
            column([vec![0.0; 65], vec![3.0_f32.ln()]].concat()),
            column([vec![2.0; 64], vec![4.0, 0.0]].concat()),
        ];
        let outputs = op.reference(&[&q, &k, &v], Rows::All);
        let [partials, sums] = [0, 1].map(|output: usize| outputs[output].as_f64().unwrap().to_vec());
        assert_eq!(outputs[0].shape(), [3, 1, 1, 1, 1]);
        assert!((partials[0] - 2.0).abs() < 1e-12 && (partials[1] - 1.0).abs() < 1e-6, "{partials:?}");
        assert!((sums[0] - 64.0_f64.ln()).abs() < 1e-12 && (sums[1] - 4.0_f64.ln()).abs() < 1e-6, "{sums:?}");
        assert_eq!((partials[2], sums[2]), (0.0, f64::NEG_INFINITY));
    }
}
