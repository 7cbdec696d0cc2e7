//! Windows that slide over images: what convolutions and pools share.

use std::ops::Range;

use super::args::ElementsMut;

/// Order of the axes of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ImageLayout {
    /// `[batch, channels, height, width]`, as in torch and ONNX.
    #[default]
    Nchw,
    /// `[batch, height, width, channels]`, as in Keras.
    Nhwc,
}

/// One axis of a sliding window. Tap `t` of window `w` reads position `w · stride + t · dilation − before` of the
/// image, or the padding where there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Axis {
    /// Size of the image.
    pub input: usize,
    /// Number of windows.
    pub output: usize,
    /// Taps of a window.
    pub kernel: usize,
    /// From one window to the next.
    pub stride: usize,
    /// From one tap to the next.
    pub dilation: usize,
    /// Padding before the image.
    pub before: usize,
    /// Padding after the image.
    pub after: usize,
}

impl Axis {
    /// The position that a tap reads, unless it is padding.
    #[inline(always)]
    pub fn source(&self, window: usize, tap: usize) -> Option<usize> {
        (window * self.stride + tap * self.dilation).checked_sub(self.before).filter(|&position| position < self.input)
    }

    /// The windows whose tap `tap` is not padding.
    pub fn inside(&self, tap: usize) -> Range<usize> {
        let from = |position: usize| position.saturating_sub(tap * self.dilation).div_ceil(self.stride);
        let end = from(self.before + self.input).min(self.output);
        from(self.before).min(end)..end
    }

    /// Every window is one position of the image.
    pub fn is_pointwise(&self) -> bool {
        self.kernel == 1 && self.stride == 1 && self.before == 0 && self.after == 0
    }
}

/// Lines of an output.
pub struct Lines<'a> {
    /// Number of the first.
    pub first: usize,
    /// Elements of each.
    pub length: usize,
    /// All of them.
    pub data: ElementsMut<'a>,
}

impl Lines<'_> {
    /// Calls `work` with parts of `each` lines, halves of the output side by side.
    pub fn in_parts(self, each: usize, work: &(impl Fn(Lines<'_>) + Sync)) {
        let parts = self.data.len().div_ceil(each * self.length);
        if parts < 2 {
            return work(self);
        }
        let count = parts / 2 * each;
        let (data, others) = self.data.split_at(count * self.length);
        let rest = Lines { first: self.first + count, length: self.length, data: others };
        rayon::join(|| Lines { data, ..self }.in_parts(each, work), || rest.in_parts(each, work));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inside_is_where_there_is_a_source() {
        for (input, before, stride, dilation) in [(5, 0, 1, 1), (5, 3, 2, 2), (1, 1, 3, 1), (0, 2, 1, 1), (7, 4, 1, 5)]
        {
            let axis = Axis { input, output: 6, kernel: 4, stride, dilation, before, after: 0 };
            for tap in 0..axis.kernel {
                let windows: Vec<usize> = (0..axis.output).filter(|&at| axis.source(at, tap).is_some()).collect();
                assert_eq!(axis.inside(tap).collect::<Vec<_>>(), windows, "{axis:?}, tap {tap}");
            }
        }
    }
}
