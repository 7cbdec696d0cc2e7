//! Cases of `lstm`.

use crate::case::{Case, CaseInput, Values};
use crate::compare::Tolerance;
use crate::ops::lstm::{Direction, Gate, Lstm, MaskedOutput};
use crate::ops::{EPSILON_F16, EPSILON_F32};
use crate::tensor::{Dtype, HostTensor};

/// Units around a subgroup and around the 256 lanes, one step and many, every option alone and together, saturated
/// gates, zero sizes, both dtypes, more than 65,535 sequences.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let plain = Lstm::default();
    for dtype in [Dtype::F32, Dtype::F16] {
        for sizes in [[1, 1, 1], [2, 7, 3], [3, 5, 31], [1, 9, 32], [2, 4, 33], [2, 3, 255], [1, 3, 256], [1, 2, 257]] {
            cases.push(case(dtype, sizes, plain, 1.0));
        }
        for op in options() {
            cases.push(case(dtype, [3, 11, 24], op, 1.0));
            cases.push(case(dtype, [2, 6, 300], Lstm { gate: Gate::HardSigmoid, ..op }, 1.0));
        }
        for sizes in [[0, 3, 4], [2, 0, 5], [2, 3, 0]] {
            cases.push(case(dtype, sizes, Lstm { has_state: true, ..plain }, 1.0));
        }
    }
    cases.push(case(Dtype::F32, [2, 129, 8], plain, 1.0));
    cases.push(case(Dtype::F32, [2, 6, 20], plain, 100.0));
    cases.push(case(Dtype::F32, [1, 2, 1100], plain, 1.0));
    cases.push(case(Dtype::F32, [66_000, 2, 2], Lstm { has_lengths: true, ..plain }, 1.0));
    // As the layer has it for f16: gates that were not rounded.
    let mut mixed = case(Dtype::F16, [2, 5, 12], Lstm { output: Some(Dtype::F16), ..plain }, 1.0);
    mixed.inputs[0].desc.dtype = Dtype::F32;
    cases.push(mixed);
    cases
}

fn options() -> Vec<Lstm> {
    let plain = Lstm::default();
    let masked = Lstm { has_mask: true, ..plain };
    let full = Lstm { has_state: true, has_peepholes: true, ..plain };
    let repeat = Lstm { masked: MaskedOutput::Repeat, ..masked };
    let mut options = vec![
        masked,
        repeat,
        Lstm { has_lengths: true, ..plain },
        Lstm { has_state: true, ..plain },
        Lstm { has_peepholes: true, ..plain },
        Lstm { has_mask: true, masked: MaskedOutput::Repeat, ..full },
        Lstm { has_lengths: true, ..full },
    ];
    options.extend(options.clone().into_iter().map(|op| Lstm { direction: Direction::Backward, ..op }));
    options
}

fn case(dtype: Dtype, sizes: [usize; 3], op: Lstm, deviation: f32) -> Case {
    let [batch, steps, hidden] = sizes;
    let mut inputs = vec![
        CaseInput::normal(dtype, &[batch, steps, 4 * hidden], deviation),
        CaseInput::normal(dtype, &[hidden, 4 * hidden], 0.5 / (hidden.max(1) as f32).sqrt()),
    ];
    if op.has_mask {
        inputs.push(given(mask(batch, steps)));
    }
    if op.has_lengths {
        // From all steps down to none, again and again.
        let lengths = (0..batch).map(|index| ((steps + 1) * (index + 1) - 1 - 3 * index) % (steps + 1));
        let lengths = HostTensor::u32(&[batch], lengths.map(|length| length as u32).collect());
        inputs.push(given(lengths.expect("one for each sequence")));
    }
    if op.has_state {
        inputs.push(CaseInput::normal(dtype, &[2, batch, hidden], 0.5));
    }
    if op.has_peepholes {
        inputs.push(CaseInput::normal(dtype, &[3 * hidden], 0.5));
    }
    let Lstm { gate, direction, masked, .. } = op;
    let flags = [(op.has_mask, " mask"), (op.has_lengths, " lengths"), (op.has_state, " state")];
    let flags = flags.into_iter().chain([(op.has_peepholes, " peepholes"), (op.output.is_some(), " of f32 gates")]);
    let flags: String = flags.filter(|(present, _)| *present).map(|(_, word)| word).collect();
    let name = format!("{dtype} {sizes:?} {gate:?} {direction:?} {masked:?}{flags} of {deviation}");
    Case::new(name, op, inputs, tolerance(op.output.unwrap_or(dtype), hidden, deviation))
}

/// A gate's sum, of magnitude `deviation` + 1, takes √hidden roundings; tanh and exp are off by 10 units, and on some
/// drivers by 16 more. A step adds that to c, which forgets half of it at the next, and the recurrent weights, of norm
/// about 1, give back less than a gate's slope of 1/4: twice in all, and twice that for units that forget slowly.
/// Result and reference are rounded to storage, and may fall to either side of a middle.
fn tolerance(dtype: Dtype, hidden: usize, deviation: f32) -> Tolerance {
    let storage = 2.0 * if dtype == Dtype::F16 { EPSILON_F16 } else { EPSILON_F32 };
    let step = 26.0 + (f64::from(deviation) + 1.0) * (hidden as f64).sqrt();
    Tolerance { of_scale: storage, relative: 0.0, absolute: 4.0 * EPSILON_F32 * step }
}

/// The first sequence has a hole at either end, the second takes every step, the third none, and so on.
fn mask(batch: usize, steps: usize) -> HostTensor {
    let keeps = |index: usize, step: usize| match index % 3 {
        0 => step > 1 && step + 2 < steps && step % 4 != 3,
        1 => true,
        _ => false,
    };
    let data = (0..batch).flat_map(|index| (0..steps).map(move |step| keeps(index, step))).collect();
    HostTensor::bool(&[batch, steps], data).expect("one for each step")
}

fn given(tensor: HostTensor) -> CaseInput {
    CaseInput { desc: tensor.desc().clone(), values: Values::Given(tensor) }
}
