//! Weights from safetensors files: memory-mapped, checked before use, converted as they are read.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype as StoredDtype, Metadata};

use crate::error::{Error, Result};
use crate::tensor::{Dtype, HostTensor, TensorDesc};

/// A safetensors file whose header was checked: its size, that offsets lie inside the file, follow each other without gap or
/// overlap, and fit shapes and dtypes, and that no name appears twice. The elements stay in the file until they are asked for.
#[derive(Debug)]
pub struct WeightFile {
    path: String,
    map: Mmap,
    header: Metadata,
    /// Where the elements begin.
    start: usize,
}

impl WeightFile {
    /// Maps a file and checks its header.
    ///
    /// The file must not be changed or cut short by anybody while it is open.
    ///
    /// # Errors
    /// A file that cannot be read or whose header is wrong; each names the file.
    pub fn open(path: &Path) -> Result<Self> {
        let fail = |message: String| Error::File { path: path.display().to_string(), message };
        let file = File::open(path).map_err(|error| fail(error.to_string()))?;
        #[expect(unsafe_code, reason = "mapping a file is unsafe in every crate that offers it")]
        // SAFETY: the bytes are only read, as plain numbers. Another process that changes the file meanwhile could change them
        // under us, which the documentation asks callers not to do, as every program that maps its weights does.
        let map = unsafe { Mmap::map(&file) }.map_err(|error| fail(error.to_string()))?;
        let (size, header) = SafeTensors::read_metadata(&map).map_err(|error| fail(error.to_string()))?;
        let start = size8(size);
        if let Some(name) = repeated(&map[8..start]) {
            return Err(fail(format!("tensor `{name}` appears twice in the header")));
        }
        Ok(Self { path: path.display().to_string(), map, header, start })
    }

    /// The file as it was named.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Names of the tensors, in the order in which they lie in the file.
    pub fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// The strings that the file's author put into its header.
    pub fn metadata(&self) -> Option<&HashMap<String, String>> {
        self.header.metadata().as_ref()
    }

    /// The shape of a tensor.
    ///
    /// # Errors
    /// A tensor that the file does not have; names both.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.info(name)?.shape)
    }

    /// A tensor as it is stored: f32, f16, bf16, f64, bool, u32 or i8.
    ///
    /// # Errors
    /// A tensor that the file does not have, or of another dtype; names the file and the tensor.
    pub fn tensor(&self, name: &str) -> Result<HostTensor> {
        let info = self.info(name)?;
        let dtype = match info.dtype {
            StoredDtype::F32 => Dtype::F32,
            StoredDtype::F16 => Dtype::F16,
            StoredDtype::BF16 => Dtype::BF16,
            StoredDtype::F64 => Dtype::F64,
            StoredDtype::BOOL => Dtype::Bool,
            StoredDtype::U32 => Dtype::U32,
            StoredDtype::I8 => Dtype::I8,
            other => {
                return Err(self.fail(format!("tensor `{name}` is {other:?}; a float, bool, u32 or i8 was expected")));
            }
        };
        let (start, end) = info.data_offsets;
        let bytes = &self.map[self.start + start..self.start + end];
        HostTensor::from_bytes(TensorDesc::new(dtype, info.shape.as_slice()), bytes)
            .map_err(|error| self.fail(format!("tensor `{name}`: {error}")))
    }

    /// A tensor of floats of this shape, converted to this dtype.
    ///
    /// # Errors
    /// A tensor that is missing, is no float, or has another shape; names the file, the tensor and both shapes.
    pub fn floats(&self, name: &str, shape: &[usize], dtype: Dtype) -> Result<HostTensor> {
        let info = self.info(name)?;
        if info.shape != shape {
            return Err(self.fail(format!("tensor `{name}` has shape {:?}, {shape:?} was expected", info.shape)));
        }
        let float = matches!(info.dtype, StoredDtype::F32 | StoredDtype::F16 | StoredDtype::BF16 | StoredDtype::F64);
        if !float {
            return Err(self.fail(format!("tensor `{name}` is {:?}, a float was expected", info.dtype)));
        }
        Ok(self.tensor(name)?.cast(dtype))
    }

    fn info(&self, name: &str) -> Result<&safetensors::tensor::TensorInfo> {
        self.header.info(name).ok_or_else(|| self.fail(format!("tensor `{name}` is missing")))
    }

    fn fail(&self, message: String) -> Error {
        Error::File { path: self.path.clone(), message }
    }
}

/// The header is preceded by its size in eight bytes.
fn size8(header: usize) -> usize {
    8 + header
}

/// A name that a JSON object has twice: parsers keep one of the two without a word.
fn repeated(header: &[u8]) -> Option<String> {
    struct Names;
    impl<'de> serde::de::Visitor<'de> for Names {
        type Value = Option<String>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
            let (mut seen, mut repeated) = (std::collections::HashSet::new(), None);
            while let Some((name, serde::de::IgnoredAny)) = map.next_entry::<String, _>()? {
                if !seen.insert(name.clone()) {
                    repeated = Some(name);
                }
            }
            Ok(repeated)
        }
    }
    serde::Deserializer::deserialize_map(&mut serde_json::Deserializer::from_slice(header), Names).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, header: &str, data: &[u8]) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("regard-weights-{}-{name}", std::process::id()));
        let size = (header.len() as u64).to_le_bytes();
        std::fs::write(&path, [&size[..], header.as_bytes(), data].concat()).unwrap();
        path
    }

    fn error(name: &str, header: &str, data: &[u8]) -> String {
        let path = file(name, header, data);
        let error = WeightFile::open(&path).unwrap_err().to_string();
        std::fs::remove_file(&path).unwrap();
        assert!(error.contains(name), "`{error}` does not name the file");
        error
    }

    #[test]
    fn reads_and_converts() {
        let header = r#"{"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},"b":{"dtype":"I64","shape":[1],"data_offsets":[4,12]}}"#;
        let path = file("good", header, &[0x80, 0x3f, 0x00, 0xc0, 1, 0, 0, 0, 0, 0, 0, 0]);
        let weights = WeightFile::open(&path).unwrap();
        assert_eq!(weights.names(), ["a", "b"]);
        assert_eq!(weights.tensor("a").unwrap().desc().dtype, Dtype::BF16);
        assert_eq!(weights.floats("a", &[2], Dtype::F32).unwrap().as_f32().unwrap(), [1.0, -2.0]);
        let message = |result: Result<HostTensor>| result.unwrap_err().to_string();
        assert!(message(weights.floats("a", &[1, 2], Dtype::F32)).contains("`a` has shape [2], [1, 2] was expected"));
        assert!(message(weights.floats("b", &[1], Dtype::F32)).contains("`b` is I64, a float was expected"));
        assert!(message(weights.tensor("c")).contains("`c` is missing"));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn broken_files_are_refused() {
        let one = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        error("empty", "", &[]);
        error("truncated", one, &[0; 3]);
        error("longer", one, &[0; 5]);
        error("shape", &one.replace("[1]", "[2]"), &[0; 4]);
        error("outside", &one.replace("[0,4]", "[4,8]"), &[0; 4]);
        error("nan", &one.replace("[0,4]", "[0,NaN]"), &[0; 4]);
        error("negative", &one.replace("[1]", "[-1]"), &[0; 4]);
        error("dtype", &one.replace("F32", "F33"), &[0; 4]);
        error("huge", &one.replace("[1]", "[18446744073709551615, 3]"), &[0; 4]);
        let overlap = one.replace("}}", r#"},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}"#);
        error("overlap", &overlap, &[0; 6]);
        let twice = one.replace("}}", r#"},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#);
        assert!(!error("twice", &twice, &[0; 8]).is_empty());
        let path = Path::new("no-such-folder/weights.safetensors");
        assert!(WeightFile::open(path).unwrap_err().to_string().contains("no-such-folder"));
    }
}
