//! Sizes of windows over images: what the shape rules of convolutions and pools share.

use crate::cpu::kernels::windows::Axis;
pub use crate::cpu::kernels::windows::ImageLayout;
use crate::error::{Error, Result};
use crate::shader::{Source, wgsl};
use crate::tensor::TensorDesc;

pub(super) const IMAGE_NCHW: Source = wgsl!("lib/image_nchw");
pub(super) const IMAGE_NHWC: Source = wgsl!("lib/image_nhwc");

/// Largest padded image along one axis: kernels tell padding by coordinates that wrap around.
const MAX_PADDED: usize = i32::MAX as usize;

/// Rows and columns around an image. They read as zero in a convolution and take no part in a maximum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Padding {
    /// Rows before the first.
    pub top: usize,
    /// Columns before the first.
    pub left: usize,
    /// Rows after the last.
    pub bottom: usize,
    /// Columns after the last.
    pub right: usize,
}

/// Which side of an image gets one more when padding is odd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Uneven {
    /// Bottom and right: Keras' `same`, `SAME_UPPER` of ONNX.
    After,
    /// Top and left: `SAME_LOWER` of ONNX.
    Before,
}

/// How a window moves, rows first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Window2d {
    /// Taps.
    pub kernel: [usize; 2],
    /// From one window to the next; 1 or more.
    pub stride: [usize; 2],
    /// From one tap to the next; 1 or more.
    pub dilation: [usize; 2],
}

impl Padding {
    /// The same number on each side.
    pub fn all(size: usize) -> Self {
        Self { top: size, left: size, bottom: size, right: size }
    }

    /// What gives ⌈size / stride⌉ windows along each axis of an image of `size` rows and columns.
    pub fn same(size: [usize; 2], window: Window2d, uneven: Uneven) -> Self {
        let [(top, bottom), (left, right)] = [0, 1].map(|axis| {
            let stride = window.stride[axis].max(1);
            let span = window.dilation[axis].saturating_mul(window.kernel[axis].saturating_sub(1)).saturating_add(1);
            let windows = size[axis].div_ceil(stride).saturating_sub(1);
            let total = windows.saturating_mul(stride).saturating_add(span).saturating_sub(size[axis]);
            let less = total / 2;
            if uneven == Uneven::After { (less, total - less) } else { (total - less, less) }
        });
        Self { top, left, bottom, right }
    }
}

/// What becomes of the rows and columns after the last whole window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Rounding {
    /// They are left out.
    #[default]
    Floor,
    /// They get a window of their own, as long as it starts in the image or in the padding before it.
    Ceil,
}

/// Batch, channels and size of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Image {
    pub batch: usize,
    pub channels: usize,
    pub size: [usize; 2],
}

impl Image {
    /// `None` unless `shape` has rank 4.
    pub fn of(shape: &[usize], layout: ImageLayout) -> Option<Self> {
        let &[batch, a, b, c] = shape else { return None };
        Some(match layout {
            ImageLayout::Nchw => Self { batch, channels: a, size: [b, c] },
            ImageLayout::Nhwc => Self { batch, channels: c, size: [a, b] },
        })
    }

    pub fn shape(&self, layout: ImageLayout) -> [usize; 4] {
        let [height, width] = self.size;
        match layout {
            ImageLayout::Nchw => [self.batch, self.channels, height, width],
            ImageLayout::Nhwc => [self.batch, height, width, self.channels],
        }
    }
}

/// The axes of a layout in words.
pub(super) fn words(layout: ImageLayout) -> &'static str {
    match layout {
        ImageLayout::Nchw => "[batch, channels, height, width]",
        ImageLayout::Nhwc => "[batch, height, width, channels]",
    }
}

/// The image that an op takes, or what is wrong with it.
pub(super) fn image(op: &'static str, x: &TensorDesc, layout: ImageLayout) -> Result<Image> {
    match Image::of(&x.shape, layout) {
        Some(image) if x.dtype.is_device_float() => Ok(image),
        _ => Err(Error::shape(op, format!("takes f32 or f16 {}, got {x}", words(layout)))),
    }
}

/// Both axes of a window over an image.
pub(super) fn axes(
    op: &'static str,
    size: [usize; 2],
    window: Window2d,
    padding: Padding,
    rounding: Rounding,
) -> Result<[Axis; 2]> {
    for (name, values) in [("kernel", window.kernel), ("stride", window.stride), ("dilation", window.dilation)] {
        if values.contains(&0) {
            return Err(Error::option(op, format!("{name} is {values:?}, both must be 1 or more")));
        }
    }
    let axis = |axis: usize, before: usize, after: usize, rows: &str| {
        let (input, kernel) = (size[axis], window.kernel[axis]);
        let (stride, dilation) = (window.stride[axis], window.dilation[axis]);
        let span = dilation.saturating_mul(kernel - 1).saturating_add(1);
        let padded = input.saturating_add(before).saturating_add(after);
        if padded.max(stride) > MAX_PADDED {
            let message = format!("{padded} padded {rows} at stride {stride}, at most {MAX_PADDED} are supported");
            return Err(Error::shape(op, message));
        }
        let Some(rest) = padded.checked_sub(span) else {
            return Err(Error::shape(op, format!("the window spans {span} {rows}, the padded image has {padded}")));
        };
        let output = match rounding {
            Rounding::Floor => rest / stride + 1,
            Rounding::Ceil => {
                let windows = rest.div_ceil(stride) + 1;
                // The last one may start past the image.
                if (windows - 1) * stride >= input + before { (windows - 1).max(1) } else { windows }
            }
        };
        Ok(Axis { input, output, kernel, stride, dilation, before, after })
    };
    Ok([axis(0, padding.top, padding.bottom, "rows")?, axis(1, padding.left, padding.right, "columns")?])
}

/// Refuses windows that have nothing of the image.
pub(super) fn refuse_windows_of_padding(op: &'static str, axes: &[Axis; 2]) -> Result<()> {
    for (axis, words) in axes.iter().zip(["rows", "columns"]) {
        if let Some(window) = (0..axis.output).find(|&window| is_padding(axis, window)) {
            let message = format!(
                "window {window} of {} lies in the padding of {} and {} {words} around {} only",
                axis.output, axis.before, axis.after, axis.input
            );
            return Err(Error::shape(op, message));
        }
    }
    Ok(())
}

/// No tap of the window is in the image.
fn is_padding(axis: &Axis, window: usize) -> bool {
    let start = window * axis.stride;
    let tap = axis.before.saturating_sub(start).div_ceil(axis.dilation);
    tap >= axis.kernel || start + tap * axis.dilation >= axis.before + axis.input
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outputs(size: usize, kernel: usize, stride: usize, pads: [usize; 2], rounding: Rounding) -> usize {
        let window = Window2d { kernel: [kernel, 1], stride: [stride, 1], dilation: [1, 1] };
        let padding = Padding { top: pads[0], bottom: pads[1], ..Padding::default() };
        axes("test", [size, 1], window, padding, rounding).unwrap()[0].output
    }

    #[test]
    fn windows_are_counted_as_onnx_does() {
        assert_eq!(outputs(4, 3, 2, [0, 0], Rounding::Floor), 1);
        assert_eq!(outputs(4, 3, 2, [0, 0], Rounding::Ceil), 2);
        // The second window would start past the image.
        assert_eq!(outputs(2, 1, 2, [0, 0], Rounding::Ceil), 1);
        assert_eq!(outputs(2, 3, 3, [1, 1], Rounding::Ceil), 1);
        assert_eq!(outputs(7, 3, 2, [1, 1], Rounding::Floor), 4);
    }

    #[test]
    fn same_padding_by_hand() {
        let window = |kernel, stride| Window2d { kernel, stride, dilation: [1, 1] };
        let pads = |size, window, uneven| {
            let Padding { top, left, bottom, right } = Padding::same(size, window, uneven);
            [top, left, bottom, right]
        };
        assert_eq!(pads([5, 32], window([3, 3], [1, 1]), Uneven::After), [1, 1, 1, 1]);
        assert_eq!(pads([32, 32], window([2, 2], [1, 1]), Uneven::After), [0, 0, 1, 1]);
        assert_eq!(pads([32, 32], window([2, 2], [1, 1]), Uneven::Before), [1, 1, 0, 0]);
        assert_eq!(pads([5, 6], window([3, 3], [2, 2]), Uneven::After), [1, 0, 1, 1]);
        assert_eq!(pads([5, 5], window([1, 1], [2, 2]), Uneven::After), [0; 4]);
    }
}
