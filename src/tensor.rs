//! Tensors: a dtype, a shape and, on the host, the elements. Always dense and row-major.

use std::fmt;

use half::{bf16, f16};

use crate::error::{Error, Result};

/// Element type of a tensor as it is stored. Kernels accumulate in f32 whatever the storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// 32-bit float.
    F32,
    /// 16-bit IEEE float.
    F16,
    /// The upper half of an f32. WGSL has no such type: kernels widen it as they load it and round to nearest even as they
    /// store it.
    BF16,
    /// 64-bit float. Host only: references and expected values; a graph refuses it.
    F64,
    /// One byte per element, 0 or 1; masks, where true takes part.
    Bool,
    /// 32-bit unsigned integer: lengths, positions, pages.
    U32,
    /// 8-bit signed integer: quantised key/value caches, whose scales are another tensor.
    I8,
}

impl Dtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 | Self::U32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Bool | Self::I8 => 1,
        }
    }

    /// Whether every kernel can compute with it. A few more take bf16.
    pub fn is_device_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F64 => "f64",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::Bool => "bool",
            Self::U32 => "u32",
            Self::I8 => "i8",
        })
    }
}

/// Dtype and shape of a tensor.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TensorDesc {
    /// Element type.
    pub dtype: Dtype,
    /// Sizes, slowest axis first. Sizes of zero are legal.
    pub shape: Vec<usize>,
}

impl TensorDesc {
    /// A description from its parts.
    pub fn new(dtype: Dtype, shape: impl Into<Vec<usize>>) -> Self {
        Self { dtype, shape: shape.into() }
    }

    /// Number of elements; 1 for rank 0. Saturates, as [`TensorDesc::bytes`] does.
    pub fn len(&self) -> usize {
        self.shape.iter().fold(1, |len: usize, &size| len.saturating_mul(size))
    }

    /// Whether a size is zero.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of all elements, without padding.
    pub fn bytes(&self) -> u64 {
        self.shape.iter().fold(self.dtype.size() as u64, |bytes, &size| bytes.saturating_mul(size as u64))
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Size of the last axis; 1 for rank 0.
    pub fn row_length(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Number of rows, a row being one run along the last axis.
    pub fn rows(&self) -> usize {
        self.shape[..self.rank().saturating_sub(1)].iter().product()
    }
}

impl fmt::Display for TensorDesc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.dtype, self.shape)
    }
}

/// Elements of a host tensor.
#[derive(Debug, Clone, PartialEq)]
enum Data {
    F32(Vec<f32>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
    U32(Vec<u32>),
    I8(Vec<i8>),
}

/// A tensor in host memory.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor {
    desc: TensorDesc,
    data: Data,
}

impl HostTensor {
    /// f32 elements in row-major order.
    ///
    /// # Errors
    /// When the number of elements is not the product of the shape.
    pub fn f32(shape: &[usize], data: Vec<f32>) -> Result<Self> {
        Self::checked(Dtype::F32, shape, data.len(), Data::F32(data))
    }

    /// f16 elements in row-major order. Errors as [`HostTensor::f32`].
    pub fn f16(shape: &[usize], data: Vec<f16>) -> Result<Self> {
        Self::checked(Dtype::F16, shape, data.len(), Data::F16(data))
    }

    /// bf16 elements in row-major order. Errors as [`HostTensor::f32`].
    pub fn bf16(shape: &[usize], data: Vec<bf16>) -> Result<Self> {
        Self::checked(Dtype::BF16, shape, data.len(), Data::BF16(data))
    }

    /// i8 elements in row-major order. Errors as [`HostTensor::f32`].
    pub fn i8(shape: &[usize], data: Vec<i8>) -> Result<Self> {
        Self::checked(Dtype::I8, shape, data.len(), Data::I8(data))
    }

    /// f64 elements in row-major order. Errors as [`HostTensor::f32`].
    pub fn f64(shape: &[usize], data: Vec<f64>) -> Result<Self> {
        Self::checked(Dtype::F64, shape, data.len(), Data::F64(data))
    }

    /// Boolean elements in row-major order. Errors as [`HostTensor::f32`].
    pub fn bool(shape: &[usize], data: Vec<bool>) -> Result<Self> {
        Self::checked(Dtype::Bool, shape, data.len(), Data::Bool(data))
    }

    /// u32 elements in row-major order. Errors as [`HostTensor::f32`].
    pub fn u32(shape: &[usize], data: Vec<u32>) -> Result<Self> {
        Self::checked(Dtype::U32, shape, data.len(), Data::U32(data))
    }

    /// All zeros (false for bool).
    pub fn zeros(desc: TensorDesc) -> Self {
        let len = desc.len();
        let data = match desc.dtype {
            Dtype::F32 => Data::F32(vec![0.0; len]),
            Dtype::F16 => Data::F16(vec![f16::ZERO; len]),
            Dtype::BF16 => Data::BF16(vec![bf16::ZERO; len]),
            Dtype::F64 => Data::F64(vec![0.0; len]),
            Dtype::Bool => Data::Bool(vec![false; len]),
            Dtype::U32 => Data::U32(vec![0; len]),
            Dtype::I8 => Data::I8(vec![0; len]),
        };
        Self { desc, data }
    }

    /// A tensor from little-endian bytes.
    ///
    /// # Errors
    /// When the number of bytes does not fit the description, or a bool is neither 0 nor 1.
    pub fn from_bytes(desc: TensorDesc, bytes: &[u8]) -> Result<Self> {
        if bytes.len() as u64 != desc.bytes() {
            return Err(Error::shape("tensor", format!("{desc} needs {} bytes, got {}", desc.bytes(), bytes.len())));
        }
        let data = match desc.dtype {
            Dtype::F32 => Data::F32(bytemuck::pod_collect_to_vec(bytes)),
            Dtype::F16 => Data::F16(bytemuck::pod_collect_to_vec(bytes)),
            Dtype::BF16 => Data::BF16(bytemuck::pod_collect_to_vec(bytes)),
            Dtype::I8 => Data::I8(bytemuck::pod_collect_to_vec(bytes)),
            Dtype::F64 => Data::F64(bytemuck::pod_collect_to_vec(bytes)),
            Dtype::U32 => Data::U32(bytemuck::pod_collect_to_vec(bytes)),
            Dtype::Bool => Data::Bool(
                bytes
                    .iter()
                    .map(|&byte| match byte {
                        0 => Ok(false),
                        1 => Ok(true),
                        other => Err(Error::shape("tensor", format!("a bool is 0 or 1, got {other}"))),
                    })
                    .collect::<Result<_>>()?,
            ),
        };
        Ok(Self { desc, data })
    }

    /// Takes over these little-endian bytes, in the memory that the tensor has. Errors as [`HostTensor::from_bytes`].
    pub(crate) fn copy_from_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        let own_length = bytes.len() as u64 == self.desc.bytes();
        if !own_length || self.desc.dtype == Dtype::Bool {
            // An error, or bytes that must each be 0 or 1.
            *self = Self::from_bytes(self.desc.clone(), bytes)?;
            return Ok(());
        }
        let own: &mut [u8] = match &mut self.data {
            Data::F32(data) => bytemuck::cast_slice_mut(data),
            Data::F16(data) => bytemuck::cast_slice_mut(data),
            Data::BF16(data) => bytemuck::cast_slice_mut(data),
            Data::I8(data) => bytemuck::cast_slice_mut(data),
            Data::F64(data) => bytemuck::cast_slice_mut(data),
            Data::U32(data) => bytemuck::cast_slice_mut(data),
            Data::Bool(_) => unreachable!("bools have been looked at one by one"),
        };
        own.copy_from_slice(bytes);
        Ok(())
    }

    /// Dtype and shape.
    pub fn desc(&self) -> &TensorDesc {
        &self.desc
    }

    /// Sizes, slowest axis first.
    pub fn shape(&self) -> &[usize] {
        &self.desc.shape
    }

    /// The elements as stored.
    pub fn bytes(&self) -> &[u8] {
        match &self.data {
            Data::F32(data) => bytemuck::cast_slice(data),
            Data::F16(data) => bytemuck::cast_slice(data),
            Data::BF16(data) => bytemuck::cast_slice(data),
            Data::I8(data) => bytemuck::cast_slice(data),
            Data::F64(data) => bytemuck::cast_slice(data),
            Data::Bool(data) => bytemuck::cast_slice(data),
            Data::U32(data) => bytemuck::cast_slice(data),
        }
    }

    /// The elements of an f32 tensor, `None` for another dtype.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &self.data {
            Data::F32(data) => Some(data),
            _ => None,
        }
    }

    /// The elements of a u32 tensor, `None` for another dtype.
    pub fn as_u32(&self) -> Option<&[u32]> {
        match &self.data {
            Data::U32(data) => Some(data),
            _ => None,
        }
    }

    /// The elements of an f64 tensor, `None` for another dtype.
    pub fn as_f64(&self) -> Option<&[f64]> {
        match &self.data {
            Data::F64(data) => Some(data),
            _ => None,
        }
    }

    /// The elements of a bool tensor, `None` for another dtype.
    pub fn as_bool(&self) -> Option<&[bool]> {
        match &self.data {
            Data::Bool(data) => Some(data),
            _ => None,
        }
    }

    /// Every element widened to f64; true is 1.
    pub fn to_f64(&self) -> Vec<f64> {
        match &self.data {
            Data::F32(data) => data.iter().map(|&x| f64::from(x)).collect(),
            Data::F16(data) => data.iter().map(|x| x.to_f64()).collect(),
            Data::BF16(data) => data.iter().map(|x| x.to_f64()).collect(),
            Data::I8(data) => data.iter().map(|&x| f64::from(x)).collect(),
            Data::F64(data) => data.clone(),
            Data::Bool(data) => data.iter().map(|&x| f64::from(u8::from(x))).collect(),
            Data::U32(data) => data.iter().map(|&x| f64::from(x)).collect(),
        }
    }

    /// The same values in another dtype, rounded to nearest even; non-zero becomes true, and u32 (truncated) and i8 saturate.
    #[must_use]
    pub fn cast(&self, dtype: Dtype) -> Self {
        if dtype == self.desc.dtype {
            return self.clone();
        }
        let wide = self.to_f64();
        let data = match dtype {
            Dtype::F32 => Data::F32(wide.iter().map(|&x| x as f32).collect()),
            Dtype::F16 => Data::F16(wide.iter().map(|&x| f16::from_f32(rounded_to_odd(x))).collect()),
            Dtype::BF16 => Data::BF16(wide.iter().map(|&x| bf16::from_f32(rounded_to_odd(x))).collect()),
            Dtype::I8 => Data::I8(wide.iter().map(|&x| x.round_ties_even() as i8).collect()),
            Dtype::F64 => Data::F64(wide),
            Dtype::Bool => Data::Bool(wide.iter().map(|&x| x != 0.0).collect()),
            Dtype::U32 => Data::U32(wide.iter().map(|&x| x as u32).collect()),
        };
        Self { desc: TensorDesc::new(dtype, self.desc.shape.clone()), data }
    }

    /// The same elements under another shape.
    ///
    /// # Errors
    /// When the two shapes have different numbers of elements.
    pub fn reshape(self, shape: &[usize]) -> Result<Self> {
        let Self { desc, data } = self;
        Self::checked(desc.dtype, shape, desc.len(), data)
    }

    fn checked(dtype: Dtype, shape: &[usize], len: usize, data: Data) -> Result<Self> {
        let desc = TensorDesc::new(dtype, shape);
        if desc.len() != len {
            return Err(Error::shape("tensor", format!("{desc} has {} elements, got {len}", desc.len())));
        }
        Ok(Self { desc, data })
    }
}

/// A tensor's bytes with its description, as a native kernel reads it.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// Dtype and shape.
    pub desc: &'a TensorDesc,
    /// The elements; aligned for every dtype.
    pub bytes: &'a [u8],
}

/// A tensor's bytes with its description, as a native kernel writes it.
#[derive(Debug)]
pub struct ViewMut<'a> {
    /// Dtype and shape.
    pub desc: &'a TensorDesc,
    /// The elements; aligned for every dtype.
    pub bytes: &'a mut [u8],
}

/// One of the two f32 around `x`, that with an odd last bit: rounded to nearest even in fewer bits it gives what `x` gives. The
/// `half` crate rounds the upper 32 bits of an f64 and takes what is a little more than a tie for one.
fn rounded_to_odd(x: f64) -> f32 {
    let nearest = x as f32;
    let bits = nearest.to_bits();
    if x.is_nan() || f64::from(nearest) == x || bits % 2 == 1 {
        return nearest;
    }
    f32::from_bits(if f64::from(nearest.abs()) < x.abs() { bits + 1 } else { bits - 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn casts_round_once() {
        let ulp = 2.0_f64.powi(-40);
        let tie = 1.0 + 2.0_f64.powi(-8);
        let x = HostTensor::f64(&[5], vec![tie - ulp, tie, tie + ulp, -1e-60, 3.4e38]).unwrap();
        let upper = 1.0 + 2.0_f64.powi(-7);
        assert_eq!(x.cast(Dtype::BF16).to_f64(), [1.0, 1.0, upper, 0.0, f64::INFINITY]);
        let tie = 1.0 + 2.0_f64.powi(-11);
        let x = HostTensor::f64(&[4], vec![tie - ulp, tie, tie + ulp, 65_520.0]).unwrap();
        assert_eq!(x.cast(Dtype::F16).to_f64(), [1.0, 1.0, 1.0 + 2.0_f64.powi(-10), f64::INFINITY]);
    }
}
