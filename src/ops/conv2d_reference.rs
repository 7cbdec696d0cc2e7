//! The definition of `conv2d`, in f64, one output element at a time.

use crate::op::{Op, Rows};
use crate::ops::conv2d::Conv2d;
use crate::ops::windows::ImageLayout;
use crate::tensor::{Dtype, HostTensor, TensorDesc};

/// The output of [`Conv2d`].
pub(super) fn reference(op: &Conv2d, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
    // Intermediates come as f64, which `outputs` refuses; only the shape is asked for.
    let descs: Vec<_> = inputs.iter().map(|input| TensorDesc::new(Dtype::F32, input.shape())).collect();
    let shape = op.outputs(&descs).expect("the graph accepted these shapes").remove(0).shape;
    let definition = Definition::new(op, inputs, &shape);
    let result = rows.compute(&shape, |row, out| {
        let row_length = out.len();
        for (column, value) in out.iter_mut().enumerate() {
            *value = definition.element(row * row_length + column);
        }
    });
    vec![result]
}

/// The sum as it is written, one output element at a time.
struct Definition {
    options: Conv2d,
    x: Vec<f64>,
    kernel: Vec<f64>,
    bias: Option<Vec<f64>>,
    x_shape: Vec<usize>,
    kernel_shape: Vec<usize>,
    y_shape: Vec<usize>,
}

impl Definition {
    fn new(options: &Conv2d, inputs: &[&HostTensor], y_shape: &[usize]) -> Self {
        Self {
            options: *options,
            x: inputs[0].to_f64(),
            kernel: inputs[1].to_f64(),
            bias: inputs.get(2).map(|bias| bias.to_f64()),
            x_shape: inputs[0].shape().to_vec(),
            kernel_shape: inputs[1].shape().to_vec(),
            y_shape: y_shape.to_vec(),
        }
    }

    fn element(&self, position: usize) -> f64 {
        let [b, c, d, e] = [0, 1, 2, 3].map(|axis| self.y_shape[axis]);
        let at = [position / e / d / c % b, position / e / d % c, position / e % d, position % e];
        let last = self.options.layout == ImageLayout::Nhwc;
        let [batch, channel, row, column] = if last { [at[0], at[3], at[1], at[2]] } else { at };
        let [height, width] = if last { [0, 1] } else { [2, 3] }.map(|axis| self.kernel_shape[axis]);
        let (group_channels, out) = if last {
            (self.kernel_shape[2], self.kernel_shape[3])
        } else {
            (self.kernel_shape[1], self.kernel_shape[0])
        };
        let group = channel / (out / self.options.groups);
        let Conv2d { stride, padding, dilation, .. } = self.options;
        let mut sum = self.bias.as_ref().map_or(0.0, |bias| bias[channel]);
        for c in 0..group_channels {
            for u in 0..height {
                for v in 0..width {
                    let y = (row * stride[0] + u * dilation[0]) as i64 - padding.top as i64;
                    let x = (column * stride[1] + v * dilation[1]) as i64 - padding.left as i64;
                    let at = if last { [u, v, c, channel] } else { [channel, c, u, v] };
                    let weight = self.kernel[dense(at, &self.kernel_shape)];
                    sum += self.pixel(batch, group * group_channels + c, y, x) * weight;
                }
            }
        }
        sum
    }

    fn pixel(&self, batch: usize, channel: usize, y: i64, x: i64) -> f64 {
        let last = self.options.layout == ImageLayout::Nhwc;
        let [height, width] = if last { [1, 2] } else { [2, 3] }.map(|axis| self.x_shape[axis] as i64);
        if y < 0 || x < 0 || y >= height || x >= width {
            return 0.0;
        }
        let (y, x) = (y as usize, x as usize);
        self.x[dense(if last { [batch, y, x, channel] } else { [batch, channel, y, x] }, &self.x_shape)]
    }
}

/// Where an element of rank 4 lies.
fn dense(at: [usize; 4], shape: &[usize]) -> usize {
    at.iter().zip(shape).fold(0, |offset, (at, size)| offset * size + at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::windows::Padding;

    fn tensor(shape: &[usize], data: &[f32]) -> HostTensor {
        HostTensor::f32(shape, data.to_vec()).unwrap()
    }

    #[test]
    fn reference_by_hand() {
        let x = tensor(&[1, 1, 2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let kernel = tensor(&[1, 1, 2, 2], &[1.0, 10.0, 100.0, 1000.0]);
        let bias = tensor(&[1], &[0.5]);
        let out = Conv2d::default().reference(&[&x, &kernel, &bias], Rows::All).remove(0);
        assert_eq!((out.shape(), out.as_f64().unwrap()), (&[1, 1, 1, 2][..], &[5421.5, 6532.5][..]));
        let padding = Padding { top: 1, ..Padding::default() };
        let strided = Conv2d { padding, stride: [2, 2], ..Conv2d::default() };
        assert_eq!(strided.reference(&[&x, &kernel], Rows::All)[0].as_f64().unwrap(), [2100.0]);
        let dilated = Conv2d { dilation: [1, 2], ..Conv2d::default() };
        assert_eq!(dilated.reference(&[&x, &kernel], Rows::All)[0].as_f64().unwrap(), [6431.0]);
    }

    #[test]
    fn reference_of_channels_last_and_groups_by_hand() {
        let x = tensor(&[1, 1, 2, 2], &[1.0, 2.0, 3.0, 4.0]);
        let kernel = tensor(&[1, 1, 2, 3], &[1.0, 10.0, 100.0, 2.0, 20.0, 200.0]);
        let op = Conv2d { layout: ImageLayout::Nhwc, ..Conv2d::default() };
        let out = op.reference(&[&x, &kernel], Rows::All).remove(0);
        assert_eq!(
            (out.shape(), out.as_f64().unwrap()),
            (&[1, 1, 2, 3][..], &[5.0, 50.0, 500.0, 11.0, 110.0, 1100.0][..])
        );
        let kernel = tensor(&[1, 1, 1, 4], &[1.0, 10.0, 100.0, 1000.0]);
        let out = Conv2d { groups: 2, ..op }.reference(&[&x, &kernel], Rows::All).remove(0);
        assert_eq!(out.as_f64().unwrap(), [1.0, 10.0, 200.0, 2000.0, 3.0, 30.0, 400.0, 4000.0]);
    }
}
