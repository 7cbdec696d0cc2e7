//! What ONNX's convolutions and pools say of their windows.

use super::OnnxNode;
use super::builder::Attributes;
use crate::error::Result;
use crate::ops::{Padding, Uneven, Window2d};

/// Axes in front of the spatial ones: batch and channels.
const OUTER: usize = 2;
const MODES: [&str; 4] = ["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"];

/// The reason why a node's image cannot be taken, if that is how many axes it has.
pub(super) fn lacking(node: &OnnxNode) -> Option<String> {
    let spatial = node.input_shape(0)?.len().saturating_sub(OUTER);
    (spatial > 2).then(|| format!("{spatial} spatial axes; 1 and 2 are supported"))
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
    pub window: Window2d,
    pub padding: Padding,
    /// The padding is given, not derived from the sizes.
    pub explicit: bool,
}

/// Whether the operator has the attribute `dilations`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dilations {
    Known,
    Unknown,
}

impl Windows {
    /// `image` as [`image`] gives it, of which `spatial` axes are the node's own.
    pub fn read(
        node: &OnnxNode,
        attributes: &mut Attributes<'_>,
        (image, spatial): ([usize; 4], usize),
        kernel: &[usize],
        dilations: Dilations,
    ) -> Result<Self> {
        let stride = pair(attributes, "strides", spatial)?;
        let dilation = if dilations == Dilations::Known { pair(attributes, "dilations", spatial)? } else { [1, 1] };
        let kernel = if let &[height, width] = kernel { [height, width] } else { [1, kernel[0]] };
        let window = Window2d { kernel, stride, dilation };
        let mode = attributes.text("auto_pad", &MODES)?.unwrap_or(0);
        let pads = attributes.integers("pads", 2 * spatial, 0..i64::MAX)?;
        if mode != 0 && pads.is_some() {
            return Err(node.fail(format!("attribute `auto_pad` is {}, which excludes `pads`", MODES[mode])));
        }
        let size = [image[2], image[3]];
        let padding = match mode {
            2 => Padding::same(size, window, Uneven::After),
            3 => Padding::same(size, window, Uneven::Before),
            _ => match pads.unwrap_or_default()[..] {
                [top, left, bottom, right] => {
                    let [top, left, bottom, right] = [top, left, bottom, right].map(|pad| pad as usize);
                    Padding { top, left, bottom, right }
                }
                [left, right] => Padding { left: left as usize, right: right as usize, ..Padding::default() },
                _ => Padding::default(),
            },
        };
        Ok(Self { window, padding, explicit: mode == 0 })
    }
}

/// One number for each of two axes, 1 where the node has no such axis or says nothing.
fn pair(attributes: &mut Attributes<'_>, name: &'static str, spatial: usize) -> Result<[usize; 2]> {
    Ok(match attributes.integers(name, spatial, 1..i64::MAX)?.unwrap_or_default()[..] {
        [rows, columns] => [rows as usize, columns as usize],
        [columns] => [1, columns as usize],
        _ => [1, 1],
    })
}
