//! What ONNX's convolutions and pools say of their windows.

use super::OnnxNode;
use super::builder::Attributes;
use crate::error::Result;
use crate::ops::{Padding, Uneven, Window2d};

/// Axes in front of the spatial ones: batch and channels.
const OUTER: usize = 2;
const MODES: [&str; 4] = ["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"];

/// The reason why a node's image cannot be taken, if that is how many axes it has.
pub(super) fn lacking(node: &OnnxNode, most: usize) -> Option<String> {
    let spatial = node.input_shape(0)?.len().saturating_sub(OUTER);
    (spatial > most).then(|| format!("{spatial} spatial axes; 1 to {most} are supported"))
}

/// The image as rows and columns, one row where there is one spatial axis.
pub(super) fn image(node: &OnnxNode, name: &str, shape: &[usize]) -> Result<[usize; 4]> {
    match *shape {
        [batch, channels, width] => Ok([batch, channels, 1, width]),
        [batch, channels, height, width] => Ok([batch, channels, height, width]),
        _ => Err(node.fail(format!("input `{name}` {shape:?} has rank {}, 3 or 4 was expected", shape.len()))),
    }
}

/// The shape without the axis of rows, where the image has none.
pub(super) fn without_rows(shape: &[usize], spatial: usize) -> Vec<usize> {
    let skipped = 2 - spatial;
    shape[..OUTER].iter().chain(&shape[OUTER + skipped..]).copied().collect()
}

/// How windows move, and what is around the image.
pub(super) struct Windows {
    axes: Vec<Axis>,
    /// The padding is given, not derived from the sizes.
    pub explicit: bool,
}

/// The same along one spatial axis.
#[derive(Clone, Copy)]
struct Axis {
    kernel: usize,
    stride: usize,
    dilation: usize,
    /// Before the image and after it.
    padding: [usize; 2],
}

/// An axis that the image has not.
const NO_AXIS: Axis = Axis { kernel: 1, stride: 1, dilation: 1, padding: [0, 0] };

/// Whether the operator has the attribute `dilations`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dilations {
    Known,
    Unknown,
}

impl Windows {
    /// `sizes` of the spatial axes, and of the window along each.
    pub fn read(
        node: &OnnxNode,
        attributes: &mut Attributes<'_>,
        [sizes, kernel]: [&[usize]; 2],
        dilations: Dilations,
    ) -> Result<Self> {
        let spatial = sizes.len();
        let strides = each(attributes, "strides", spatial)?;
        let dilations =
            if dilations == Dilations::Known { each(attributes, "dilations", spatial)? } else { vec![1; spatial] };
        let mode = attributes.text("auto_pad", &MODES)?.unwrap_or(0);
        let pads = attributes.integers("pads", 2 * spatial, 0..i64::MAX)?;
        if mode != 0 && pads.is_some() {
            return Err(node.fail(format!("attribute `auto_pad` is {}, which excludes `pads`", MODES[mode])));
        }
        let axes = (0..spatial).map(|at| {
            let axis = Axis { kernel: kernel[at], stride: strides[at], dilation: dilations[at], padding: [0, 0] };
            let padding = match (mode, &pads) {
                (2, _) => axis.same(sizes[at], Uneven::After),
                (3, _) => axis.same(sizes[at], Uneven::Before),
                // All that come first, then all that come last.
                (_, Some(pads)) => [pads[at] as usize, pads[spatial + at] as usize],
                (_, None) => [0, 0],
            };
            Axis { padding, ..axis }
        });
        Ok(Self { axes: axes.collect(), explicit: mode == 0 })
    }

    /// The window over the last two axes, the first of which is a single row where there is one axis.
    pub fn plane(&self) -> (Window2d, Padding) {
        let [rows, columns] = match self.axes[..] {
            [columns] => [NO_AXIS, columns],
            [.., rows, columns] => [rows, columns],
            [] => [NO_AXIS; 2],
        };
        window([rows, columns])
    }

    /// The window over the axis before those two.
    pub fn depth(&self) -> (Window2d, Padding) {
        window([self.axes[0], NO_AXIS])
    }
}

impl Axis {
    fn same(self, size: usize, uneven: Uneven) -> [usize; 2] {
        let (window, _) = window([self, NO_AXIS]);
        let Padding { top, bottom, .. } = Padding::same([size, 1], window, uneven);
        [top, bottom]
    }
}

fn window(axes: [Axis; 2]) -> (Window2d, Padding) {
    let window = Window2d {
        kernel: axes.map(|axis| axis.kernel),
        stride: axes.map(|axis| axis.stride),
        dilation: axes.map(|axis| axis.dilation),
    };
    let [[top, bottom], [left, right]] = axes.map(|axis| axis.padding);
    (window, Padding { top, left, bottom, right })
}

/// One number for each axis, 1 where the node says nothing.
fn each(attributes: &mut Attributes<'_>, name: &'static str, spatial: usize) -> Result<Vec<usize>> {
    let given = attributes.integers(name, spatial, 1..i64::MAX)?;
    Ok(given.map_or_else(|| vec![1; spatial], |given| given.into_iter().map(|number| number as usize).collect()))
}
