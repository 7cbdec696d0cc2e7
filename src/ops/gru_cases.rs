//! Cases of `gru`.

use crate::case::{Case, CaseInput, Values};
use crate::compare::Tolerance;
use crate::cpu::kernels::recurrence::{Direction, Gate, MaskedOutput};
use crate::ops::gru::{Gru, Reset};
use crate::ops::{EPSILON_F16, EPSILON_F32};
use crate::tensor::{Dtype, HostTensor};

/// Units around a subgroup and around the 256 lanes, one step and many, every option alone and together, saturated
/// gates, zero sizes, both dtypes, more than 65,535 sequences.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let plain = Gru::default();
    let before = Gru { reset: Reset::BeforeProduct, ..plain };
    for dtype in [Dtype::F32, Dtype::F16] {
        for sizes in [[1, 1, 1], [2, 7, 3], [3, 5, 31], [1, 9, 32], [2, 4, 33], [2, 3, 255], [1, 3, 256], [1, 2, 257]] {
            cases.push(case(dtype, sizes, plain, 1.0));
            cases.push(case(dtype, sizes, before, 1.0));
        }
        for op in options() {
            cases.push(case(dtype, [3, 11, 24], op, 1.0));
            let hard = Gru { gate: Gate::HardSigmoid, has_candidate_bias: false, reset: Reset::BeforeProduct, ..op };
            cases.push(case(dtype, [4, 6, 300], hard, 1.0));
        }
        for sizes in [[0, 3, 4], [2, 0, 5], [2, 3, 0]] {
            cases.push(case(dtype, sizes, Gru { has_state: true, ..plain }, 1.0));
        }
    }
    cases.push(case(Dtype::F32, [2, 129, 8], plain, 1.0));
    cases.push(case(Dtype::F32, [2, 6, 20], before, 100.0));
    cases.push(case(Dtype::F32, [66_000, 2, 2], Gru { has_lengths: true, ..plain }, 1.0));
    // As the layer has it for f16: gates that were not rounded.
    let mut mixed = case(Dtype::F16, [2, 5, 12], Gru { output: Some(Dtype::F16), ..plain }, 1.0);
    mixed.inputs[0].desc.dtype = Dtype::F32;
    cases.push(mixed);
    cases
}

fn options() -> Vec<Gru> {
    let plain = Gru::default();
    let masked = Gru { has_mask: true, ..plain };
    let full = Gru { has_state: true, has_candidate_bias: true, ..plain };
    let mut options = vec![
        masked,
        Gru { masked: MaskedOutput::Repeat, ..masked },
        Gru { has_lengths: true, ..plain },
        full,
        Gru { has_mask: true, masked: MaskedOutput::Repeat, ..full },
        Gru { has_lengths: true, ..full },
    ];
    options.extend(options.clone().into_iter().map(|op| Gru { direction: Direction::Backward, ..op }));
    options
}

fn case(dtype: Dtype, sizes: [usize; 3], op: Gru, deviation: f32) -> Case {
    let [batch, steps, hidden] = sizes;
    let mut inputs = vec![
        CaseInput::normal(dtype, &[batch, steps, 3 * hidden], deviation),
        CaseInput::normal(dtype, &[hidden, 3 * hidden], 0.5 / (hidden.max(1) as f32).sqrt()),
    ];
    if op.has_mask {
        // The first sequence has holes, the second takes every step, the third none, and so on.
        let keeps = |index: usize, step: usize| match index % 3 {
            0 => step > 1 && step % 4 != 3,
            1 => true,
            _ => false,
        };
        let mask = (0..batch).flat_map(|index| (0..steps).map(move |step| keeps(index, step))).collect();
        inputs.push(given(HostTensor::bool(&[batch, steps], mask).expect("one for each step")));
    }
    if op.has_lengths {
        let lengths = (0..batch).map(|index| ((5 * index + 3) % (steps + 1)) as u32).collect();
        inputs.push(given(HostTensor::u32(&[batch], lengths).expect("one for each sequence")));
    }
    if op.has_state {
        inputs.push(CaseInput::normal(dtype, &[batch, hidden], 0.5));
    }
    if op.has_candidate_bias {
        inputs.push(CaseInput::normal(dtype, &[hidden], 0.5));
    }
    let Gru { gate, reset, direction, masked, .. } = op;
    let flags = [(op.has_mask, " mask"), (op.has_lengths, " lengths"), (op.has_state, " state")];
    let flags = flags.into_iter().chain([(op.has_candidate_bias, " bias"), (op.output.is_some(), " of f32 gates")]);
    let flags: String = flags.filter(|(present, _)| *present).map(|(_, word)| word).collect();
    let name = format!("{dtype} {sizes:?} {gate:?} {reset:?} {direction:?} {masked:?}{flags} of {deviation}");
    Case::new(name, op, inputs, tolerance(op.output.unwrap_or(dtype), hidden, deviation))
}

/// As an LSTM's: a gate's sum, of magnitude `deviation` + 1, takes √hidden roundings; tanh and exp are off by 10 units,
/// and on some drivers by 16 more. A step adds that to h, which forgets half of it at the next, and the recurrent
/// weights, of norm about 1, give back less than a gate's slope: twice in all, and twice that for units that forget
/// slowly. Result and reference are rounded to storage, and may fall to either side of a middle.
fn tolerance(dtype: Dtype, hidden: usize, deviation: f32) -> Tolerance {
    let storage = 2.0 * if dtype == Dtype::F16 { EPSILON_F16 } else { EPSILON_F32 };
    let step = 26.0 + (f64::from(deviation) + 1.0) * (hidden as f64).sqrt();
    Tolerance { of_scale: storage, relative: 0.0, absolute: 4.0 * EPSILON_F32 * step }
}

fn given(tensor: HostTensor) -> CaseInput {
    CaseInput { desc: tensor.desc().clone(), values: Values::Given(tensor) }
}
