//! Weights of recurrent layers from the order of a framework into the order of an op.

use crate::error::{Error, Result};
use crate::tensor::{Dtype, HostTensor};

/// Gate g of an op is gate `from[g]` of the framework.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gates<const N: usize> {
    /// The op, as errors name it.
    pub op: &'static str,
    pub from: [usize; N],
}

impl<const N: usize> Gates<N> {
    fn wrong<T>(&self, message: String) -> Result<T> {
        Err(Error::shape(self.op, message))
    }

    /// `[N · hidden, n]` into `[n, N · hidden]`.
    pub fn of_rows(&self, weight: &HostTensor) -> Result<HostTensor> {
        let &[width, columns] = weight.shape() else {
            return self.wrong(format!("weights have rank 2, got {}", weight.desc()));
        };
        if width % N != 0 {
            return self.wrong(format!("weights have rows for {N} gates, got {}", weight.desc()));
        }
        let (data, hidden) = (weight.to_f64(), width / N);
        let row = |column: usize| (self.from[column / hidden] * hidden + column % hidden) * columns;
        let turned = (0..columns).flat_map(|k| (0..width).map(move |column| (k, column)));
        tensor(weight.desc().dtype, &[columns, width], turned.map(|(k, column)| data[row(column) + k]).collect())
    }

    /// `[N · hidden]`.
    pub fn of_vector(&self, vector: &HostTensor) -> Result<HostTensor> {
        let &[width] = vector.shape() else {
            return self.wrong(format!("a vector of gates has rank 1, got {}", vector.desc()));
        };
        if width % N != 0 {
            return self.wrong(format!("a vector of {N} gates has {width} elements"));
        }
        let (data, hidden) = (vector.to_f64(), width / N);
        let moved = (0..width).map(|at| data[self.from[at / hidden] * hidden + at % hidden]).collect();
        tensor(vector.desc().dtype, &[width], moved)
    }

    /// Two biases `[N · hidden]` as one, in f32 whatever they are stored in.
    pub fn of_sum(&self, [a, b]: [&HostTensor; 2]) -> Result<HostTensor> {
        if a.shape() != b.shape() {
            return self.wrong(format!("the input bias is {}, the recurrent one {}", a.desc(), b.desc()));
        }
        let added = a.to_f64().iter().zip(b.to_f64()).map(|(a, b)| a + b).collect();
        self.of_vector(&tensor(Dtype::F32, a.shape(), added)?)
    }

    /// One direction of a tensor whose first axis is directions.
    pub fn of_direction(&self, whole: &HostTensor, direction: usize) -> Result<HostTensor> {
        match whole.shape() {
            &[directions, ref rest @ ..] if direction < directions => {
                let size: usize = rest.iter().product();
                let data = whole.to_f64()[direction * size..][..size].to_vec();
                tensor(whole.desc().dtype, rest, data)
            }
            _ => self.wrong(format!("{} has no direction {direction}", whole.desc())),
        }
    }

    /// The first and the second half of a vector, or both rows of a matrix.
    pub fn halves(&self, biases: &HostTensor) -> Result<[HostTensor; 2]> {
        let desc = biases.desc();
        let half = desc.len() / 2;
        if !matches!(desc.shape[..], [_] | [2, _]) || !desc.len().is_multiple_of(2) {
            return self.wrong(format!("{desc} is not two biases"));
        }
        let data = biases.to_f64();
        let part = |from: usize| tensor(desc.dtype, &[half], data[from..][..half].to_vec());
        Ok([part(0)?, part(half)?])
    }
}

fn tensor(dtype: Dtype, shape: &[usize], data: Vec<f64>) -> Result<HostTensor> {
    Ok(HostTensor::f64(shape, data)?.cast(dtype))
}
