//! Cases of `conv2d`.

use crate::case::{Case, CaseInput};
use crate::compare::Tolerance;
use crate::ops::conv2d::Conv2d;
use crate::ops::windows::{ImageLayout, Padding};
use crate::ops::{EPSILON_F16, EPSILON_F32};
use crate::tensor::Dtype;

/// A convolution of some size: image `[batch, in, height, width]`, `out` channels, kernel `[height, width]`.
#[derive(Clone, Copy)]
struct Problem {
    image: [usize; 4],
    out: usize,
    kernel: [usize; 2],
    op: Conv2d,
}

/// Tiles and their edges in pixels, channels and depth; every option; primes, zero sizes, two magnitudes, both layouts
/// and dtypes, more than 65,535 workgroups.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [Dtype::F32, Dtype::F16] {
        for layout in [ImageLayout::Nchw, ImageLayout::Nhwc] {
            for problem in problems() {
                let op = Conv2d { layout, ..problem.op };
                cases.push(case(dtype, Problem { op, ..problem }, 1.0));
            }
        }
    }
    let plain = Problem { image: [2, 5, 9, 11], out: 7, kernel: [3, 3], op: Conv2d::default() };
    cases.push(case(Dtype::F32, plain, 1e-3));
    cases.push(case(Dtype::F32, Problem { op: Conv2d { layout: ImageLayout::Nhwc, ..plain.op }, ..plain }, 30.0));
    // 66,049 groups of one channel: as many tiles.
    let many = Conv2d { groups: 66_049, ..Conv2d::default() };
    cases.push(case(Dtype::F32, Problem { image: [1, 66_049, 2, 3], out: 66_049, kernel: [2, 2], op: many }, 1.0));
    cases.push(mixed());
    cases
}

fn problems() -> Vec<Problem> {
    let plain = Conv2d::default();
    let padding = Padding { top: 2, left: 0, bottom: 1, right: 3 };
    let strided = Conv2d { stride: [2, 3], padding, ..plain };
    let dilated = Conv2d { dilation: [3, 2], padding: Padding::all(2), ..plain };
    let wide_padding = Conv2d { padding: Padding::all(5), stride: [3, 1], ..plain };
    let of = |image, out, kernel, op| Problem { image, out, kernel, op };
    vec![
        of([1, 1, 1, 1], 1, [1, 1], plain),
        of([1, 15, 7, 9], 63, [1, 1], plain),
        of([2, 16, 8, 8], 64, [1, 1], plain),
        of([1, 17, 5, 13], 65, [1, 1], Conv2d { stride: [2, 1], ..plain }),
        of([2, 3, 16, 16], 8, [3, 3], Conv2d { padding: Padding::all(1), ..plain }),
        of([2, 7, 11, 13], 67, [3, 2], strided),
        of([1, 4, 10, 9], 5, [3, 4], dilated),
        of([2, 3, 2, 4], 3, [2, 3], wide_padding),
        of([3, 5, 1, 41], 6, [1, 5], Conv2d { padding: Padding { left: 4, ..Padding::default() }, ..plain }),
        of([2, 12, 6, 7], 12, [3, 3], Conv2d { groups: 12, padding: Padding::all(1), ..plain }),
        of([1, 6, 7, 5], 9, [2, 2], Conv2d { groups: 3, stride: [1, 2], ..plain }),
        of([2, 34, 5, 6], 132, [2, 2], Conv2d { groups: 2, ..plain }),
        of([1, 40, 37, 31], 16, [3, 3], plain),
        of([0, 3, 5, 5], 4, [3, 3], plain),
        of([2, 0, 5, 5], 4, [3, 3], plain),
        of([2, 3, 5, 5], 0, [3, 3], plain),
        of([2, 3, 0, 5], 4, [2, 2], Conv2d { padding: Padding::all(1), ..plain }),
    ]
}

fn inputs(dtype: Dtype, problem: Problem, deviation: f32) -> Vec<CaseInput> {
    let Problem { image: [batch, channels, height, width], out, kernel: [rows, columns], op } = problem;
    let group = channels / op.groups;
    let (x, kernel) = match op.layout {
        ImageLayout::Nchw => ([batch, channels, height, width], [out, group, rows, columns]),
        ImageLayout::Nhwc => ([batch, height, width, channels], [rows, columns, group, out]),
    };
    let mut inputs = vec![CaseInput::normal(dtype, &x, deviation), CaseInput::normal(dtype, &kernel, 1.0)];
    if out % 2 == 1 || channels == 0 {
        inputs.push(CaseInput::normal(dtype, &[out], 1.0));
    }
    inputs
}

fn case(dtype: Dtype, problem: Problem, deviation: f32) -> Case {
    let Problem { image, out, kernel, op } = problem;
    let Conv2d { layout, stride, padding: Padding { top, left, bottom, right }, dilation, groups } = op;
    let options = format!("stride {stride:?} pads {top},{left},{bottom},{right} dilation {dilation:?} groups {groups}");
    let name = format!("{dtype} {layout:?} {image:?} to {out} by {kernel:?} {options} of {deviation}");
    let depth = image[1] / groups * kernel[0] * kernel[1];
    Case::new(name, op, inputs(dtype, problem, deviation), tolerance(dtype, depth, deviation))
}

/// As a matrix product's: a partial sum of k products has about √k times a term's magnitude, here `deviation`, and
/// takes k roundings, of which about √k add up: `ε · k · deviation`, times 4 for the tails. Result and reference are
/// rounded to storage, and may fall to either side of a middle.
fn tolerance(dtype: Dtype, depth: usize, deviation: f32) -> Tolerance {
    let storage = 2.0 * if dtype == Dtype::F16 { EPSILON_F16 } else { EPSILON_F32 };
    let absolute = 4.0 * EPSILON_F32 * (depth as f64 + 1.0) * f64::from(deviation.max(1e-2));
    Tolerance { of_scale: storage + EPSILON_F32, relative: 0.0, absolute }
}

/// f32 images under f16 weights and bias, as files store them.
fn mixed() -> Case {
    let problem = Problem { image: [2, 5, 9, 11], out: 9, kernel: [3, 3], op: Conv2d::default() };
    let mut inputs = inputs(Dtype::F16, problem, 1.0);
    inputs[0].desc.dtype = Dtype::F32;
    Case::new("f32 under f16 kernel and bias", problem.op, inputs, tolerance(Dtype::F32, 45, 1.0))
}
