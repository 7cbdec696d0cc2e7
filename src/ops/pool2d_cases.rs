//! Cases of `pool2d`.

use crate::case::{Case, CaseInput, Values};
use crate::compare::Tolerance;
use crate::ops::pool2d::{Counted, Pool2d, PoolKind};
use crate::ops::windows::{Image, ImageLayout, Padding, Rounding, Window2d};
use crate::ops::{EPSILON_F16, EPSILON_F32};
use crate::tensor::{Dtype, HostTensor};

/// A pooling of some size: image `[batch, channels, height, width]`.
type Sized = ([usize; 4], Window2d, Padding, Rounding);

/// Every kind and layout over windows that overlap, leave gaps, are dilated, padded and rounded up; primes, zero sizes,
/// infinities and NaN, more than 65,535 workgroups.
pub(super) fn cases() -> Vec<Case> {
    let kinds = [PoolKind::Max, PoolKind::Average(Counted::Image), PoolKind::Average(Counted::Padded)];
    let mut cases = Vec::new();
    for dtype in [Dtype::F32, Dtype::F16] {
        for (layout, kind) in
            [ImageLayout::Nchw, ImageLayout::Nhwc].into_iter().flat_map(|l| kinds.map(|kind| (l, kind)))
        {
            for (image, window, padding, rounding) in sizes() {
                cases.push(case(dtype, image, Pool2d { kind, layout, window, padding, rounding }, 1.0));
            }
        }
    }
    for kind in kinds {
        let window = Window2d { kernel: [1, 2], stride: [1, 1], dilation: [1, 1] };
        let (layout, padding, rounding) = (ImageLayout::Nchw, Padding::default(), Rounding::Floor);
        let op = Pool2d { kind, layout, window, padding, rounding };
        // One workgroup for each of 70,000 windows in `pool2d_wide`, 256 windows for each of 65,537 in `pool2d_each`.
        let image = if kind == PoolKind::Max { [4097, 64, 8, 9] } else { [100, 70, 10, 2] };
        cases.push(case(Dtype::F32, image, op, 30.0));
    }
    cases.push(not_finite());
    cases
}

fn sizes() -> Vec<Sized> {
    let window = |kernel, stride, dilation| Window2d { kernel, stride, dilation };
    let (none, one, ragged) = (Padding::default(), Padding::all(1), Padding { top: 0, left: 2, bottom: 1, right: 0 });
    let (floor, ceil) = (Rounding::Floor, Rounding::Ceil);
    vec![
        ([1, 1, 1, 1], window([1, 1], [1, 1], [1, 1]), none, floor),
        ([2, 3, 8, 8], window([2, 2], [2, 2], [1, 1]), none, floor),
        ([1, 33, 13, 11], window([3, 2], [1, 1], [1, 1]), none, floor),
        ([2, 5, 7, 9], window([3, 3], [2, 2], [1, 1]), one, ceil),
        ([1, 4, 6, 6], window([3, 4], [2, 3], [1, 1]), ragged, ceil),
        ([1, 3, 2, 2], window([3, 3], [3, 3], [1, 1]), one, ceil),
        ([1, 2, 9, 10], window([2, 3], [1, 2], [3, 2]), one, floor),
        ([1, 2, 9, 10], window([2, 2], [3, 5], [2, 2]), none, ceil),
        ([2, 7, 5, 41], window([5, 41], [1, 1], [1, 1]), none, floor),
        ([1, 3, 37, 31], window([35, 31], [1, 1], [1, 1]), Padding::all(1), floor),
        ([0, 3, 5, 5], window([2, 2], [1, 1], [1, 1]), none, floor),
        ([2, 0, 5, 5], window([2, 2], [1, 1], [1, 1]), none, floor),
    ]
}

fn case(dtype: Dtype, image: [usize; 4], op: Pool2d, deviation: f32) -> Case {
    let [batch, channels, height, width] = image;
    let shape = Image { batch, channels, size: [height, width] }.shape(op.layout);
    let Pool2d { kind, layout, window: Window2d { kernel, stride, dilation }, padding, rounding } = op;
    let Padding { top, left, bottom, right } = padding;
    let options = format!("stride {stride:?} pads {top},{left},{bottom},{right} dilation {dilation:?} {rounding:?}");
    let name = format!("{dtype} {kind:?} {layout:?} {image:?} by {kernel:?} {options}");
    Case::new(name, op, vec![CaseInput::normal(dtype, &shape, deviation)], tolerance(kind, dtype, deviation))
}

/// A maximum is exact. A sum of n elements has partial sums of about √n times an element's magnitude, here `deviation`,
/// and takes n roundings, of which about √n add up; divided by n that is `ε · deviation`, times 4 for the tails; the
/// quotient, of which drivers may be 2.5 units off, and the reference are rounded to storage, and may fall to either
/// side of a middle.
fn tolerance(kind: PoolKind, dtype: Dtype, deviation: f32) -> Tolerance {
    if kind == PoolKind::Max {
        return Tolerance::of_scale(0.0);
    }
    let storage = 2.0 * if dtype == Dtype::F16 { EPSILON_F16 } else { EPSILON_F32 };
    Tolerance { of_scale: storage, relative: 5.0 * EPSILON_F32, absolute: 4.0 * EPSILON_F32 * f64::from(deviation) }
}

/// Windows of −inf only, of infinities of both signs, and with a NaN before and after larger elements.
fn not_finite() -> Case {
    let (nan, high, low) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
    let x = HostTensor::f32(
        &[1, 1, 2, 8],
        vec![low, low, 1.0, nan, 3.0, low, high, low, low, low, 4.0, 5.0, 2.0, low, low, 0.0],
    );
    let x = x.expect("2 x 8");
    let window = Window2d { kernel: [2, 2], stride: [1, 1], dilation: [1, 1] };
    let (layout, padding, rounding) = (ImageLayout::Nchw, Padding::all(1), Rounding::Floor);
    let op = Pool2d { kind: PoolKind::Max, layout, window, padding, rounding };
    let input = CaseInput { desc: x.desc().clone(), values: Values::Given(x) };
    Case::new("f32 maximum of infinities and NaN", op, vec![input], Tolerance::of_scale(0.0))
}
