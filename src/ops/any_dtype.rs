//! Inputs of cases for ops that move elements of any dtype.

use half::{bf16, f16};

use crate::case::{CaseInput, Values};
use crate::tensor::{Dtype, HostTensor};

/// Values of this dtype, scattered; floats have about this deviation, bf16 and integers whatever they have.
pub(super) fn drawn(dtype: Dtype, shape: &[usize], deviation: f32) -> CaseInput {
    let len: usize = shape.iter().product();
    let numbers = || (0..len).map(|i| (i * 7919 % 251) as f32 - 125.0);
    let given = match dtype {
        Dtype::Bool => HostTensor::bool(shape, numbers().map(|x| x as i32 % 3 == 0).collect()),
        Dtype::U32 => HostTensor::u32(shape, (0..len).map(|i| (i as u32).wrapping_mul(2_654_435_761)).collect()),
        Dtype::I8 => HostTensor::i8(shape, numbers().map(|x| x as i8).collect()),
        Dtype::BF16 => HostTensor::bf16(shape, numbers().map(bf16::from_f32).collect()),
        Dtype::F16 => HostTensor::f16(shape, numbers().map(|x| f16::from_f32(x * deviation)).collect()),
        _ => return CaseInput::normal(dtype, shape, deviation),
    };
    let given = given.expect("as many values as the shape says");
    CaseInput { desc: given.desc().clone(), values: Values::Given(given) }
}
