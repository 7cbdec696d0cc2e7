//! Host tensors from and to NumPy's `.npy` files.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::Path;

use half::f16;
use npyz::{DType, Deserialize, NpyFile, NpyHeader, Order, TypeChar, WriterBuilder};

use crate::error::{Error, Result};
use crate::tensor::{Dtype, HostTensor, TensorDesc};

impl HostTensor {
    /// Reads an array of f32, f16, f64, bool, u32 or i8 in row-major order, of either byte order; u8, such as images are,
    /// as u32.
    ///
    /// # Errors
    /// A file that cannot be read, is no `.npy` file or is cut short, or holds another type or order; each names the file.
    pub fn read_npy(path: &Path) -> Result<Self> {
        let fail = |message: String| Error::File { path: path.display().to_string(), message };
        let io = |error: std::io::Error| fail(error.to_string());
        let mut reader = BufReader::new(File::open(path).map_err(io)?);
        let header = NpyHeader::from_reader(&mut reader).map_err(io)?;
        let array = NpyFile::with_header(header, reader);
        if array.order() != Order::C {
            return Err(fail("the array is in column-major order; save np.ascontiguousarray(array)".into()));
        }
        let shape = array.shape().iter().map(|&size| usize::try_from(size)).collect::<std::result::Result<Vec<_>, _>>();
        let shape = shape.map_err(|_| fail("a size is larger than any memory".into()))?;
        let dtype = stored(&array.dtype()).ok_or_else(|| {
            fail(format!("the array is {}; f32, f16, f64, bool, u32, u8 or i8 was expected", array.dtype().descr()))
        })?;
        let desc = TensorDesc::new(dtype, shape);
        if desc.bytes() > isize::MAX as u64 {
            return Err(fail(format!("{desc} is larger than any memory")));
        }
        let tensor = match dtype {
            Dtype::F16 => Self::f16(&desc.shape, elements::<f16>(array).map_err(io)?),
            Dtype::F64 => Self::f64(&desc.shape, elements(array).map_err(io)?),
            Dtype::Bool => Self::bool(&desc.shape, elements(array).map_err(io)?),
            Dtype::U32 if array.dtype().num_bytes() == Some(1) => {
                let bytes = elements::<u8>(array).map_err(io)?;
                Self::u32(&desc.shape, bytes.into_iter().map(u32::from).collect())
            }
            Dtype::U32 => Self::u32(&desc.shape, elements(array).map_err(io)?),
            Dtype::I8 => Self::i8(&desc.shape, elements(array).map_err(io)?),
            _ => Self::f32(&desc.shape, elements(array).map_err(io)?),
        };
        tensor.map_err(|error| fail(error.to_string()))
    }

    /// Writes the tensor; bf16, which NumPy has not, as f32.
    ///
    /// # Errors
    /// A file that cannot be written; names it.
    pub fn write_npy(&self, path: &Path) -> Result<()> {
        let write = || -> std::io::Result<()> {
            let mut file = BufWriter::new(File::create(path)?);
            self.write_npy_to(&mut file)?;
            file.flush()
        };
        write().map_err(|error| Error::File { path: path.display().to_string(), message: error.to_string() })
    }

    /// As [`HostTensor::write_npy`], to anything that takes bytes.
    ///
    /// # Errors
    /// What the writer refuses.
    pub fn write_npy_to(&self, writer: &mut dyn Write) -> std::io::Result<()> {
        match self.desc().dtype {
            Dtype::F32 | Dtype::BF16 => write(self, writer, self.to_f64().into_iter().map(|x| x as f32)),
            Dtype::F16 => write(self, writer, bytemuck::pod_collect_to_vec::<u8, f16>(self.bytes()).into_iter()),
            Dtype::F64 => write(self, writer, self.to_f64().into_iter()),
            Dtype::Bool => write(self, writer, self.bytes().iter().map(|&byte| byte != 0)),
            Dtype::U32 => write(self, writer, self.to_f64().into_iter().map(|x| x as u32)),
            Dtype::I8 => write(self, writer, self.to_f64().into_iter().map(|x| x as i8)),
        }
    }
}

fn stored(dtype: &DType) -> Option<Dtype> {
    let DType::Plain(plain) = dtype else { return None };
    match (plain.type_char(), plain.size_field()) {
        (TypeChar::Float, 4) => Some(Dtype::F32),
        (TypeChar::Float, 2) => Some(Dtype::F16),
        (TypeChar::Float, 8) => Some(Dtype::F64),
        (TypeChar::Bool, 1) => Some(Dtype::Bool),
        (TypeChar::Uint, 1 | 4) => Some(Dtype::U32),
        (TypeChar::Int, 1) => Some(Dtype::I8),
        _ => None,
    }
}

fn elements<T: Deserialize>(array: NpyFile<BufReader<File>>) -> std::io::Result<Vec<T>> {
    // Grows as elements arrive: a header may promise more than the file has.
    array
        .data::<T>()
        .map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error.to_string()))?
        .collect()
}

fn write<T: npyz::AutoSerialize>(
    tensor: &HostTensor,
    writer: &mut dyn Write,
    elements: impl Iterator<Item = T>,
) -> std::io::Result<()> {
    let shape: Vec<u64> = tensor.shape().iter().map(|&size| size as u64).collect();
    let mut file = npyz::WriteOptions::new().default_dtype().shape(&shape).writer(writer).begin_nd()?;
    file.extend(elements)?;
    file.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("regard-npy-{}-{name}.npy", std::process::id()))
    }

    #[test]
    fn what_is_written_is_read() {
        let wide = HostTensor::f64(&[2, 3], vec![0.0, 1.0, 2.0, 3.0, 100.0, 127.0]).unwrap();
        for dtype in [Dtype::F32, Dtype::F16, Dtype::F64, Dtype::Bool, Dtype::U32, Dtype::I8] {
            let (tensor, path) = (wide.cast(dtype), path(&dtype.to_string()));
            tensor.write_npy(&path).unwrap();
            assert_eq!(HostTensor::read_npy(&path).unwrap(), tensor);
            std::fs::remove_file(&path).unwrap();
        }
        let (half, path) = (wide.cast(Dtype::BF16), path("bf16"));
        half.write_npy(&path).unwrap();
        assert_eq!(HostTensor::read_npy(&path).unwrap(), half.cast(Dtype::F32));
        for shape in [vec![], vec![0, 4]] {
            let tensor = HostTensor::zeros(TensorDesc::new(Dtype::F32, shape));
            tensor.write_npy(&path).unwrap();
            assert_eq!(HostTensor::read_npy(&path).unwrap(), tensor);
        }
        let file = npyz::WriteOptions::new().default_dtype().shape(&[2]);
        let mut file = file.writer(File::create(&path).unwrap()).begin_nd().unwrap();
        file.extend([3_u8, 255]).unwrap();
        file.finish().unwrap();
        assert_eq!(HostTensor::read_npy(&path).unwrap(), HostTensor::u32(&[2], vec![3, 255]).unwrap());
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn broken_files_are_refused() {
        let path = path("broken");
        let wide = HostTensor::f32(&[2, 3], vec![1.0; 6]).unwrap();
        wide.write_npy(&path).unwrap();
        let good = std::fs::read(&path).unwrap();
        let text = |from: &str, to: &str| {
            assert_eq!(from.len(), to.len());
            let at = good.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
            [&good[..at], to.as_bytes(), &good[at + from.len()..]].concat()
        };
        let broken = [
            Vec::new(),
            good[..20].to_vec(),
            good[..good.len() - 1].to_vec(),
            text("NUMPY", "NUMPI"),
            text("'<f4'", "'<c8'"),
            text("'<f4'", "'<i4'"),
            text("False", "True "),
            text("(2, 3, )", "(9, 9, )"),
        ];
        for bytes in broken {
            std::fs::write(&path, &bytes).unwrap();
            let error = HostTensor::read_npy(&path).unwrap_err().to_string();
            assert!(error.contains("regard-npy"), "{error}");
        }
        std::fs::remove_file(&path).unwrap();
    }
}
