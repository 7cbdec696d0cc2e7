//! Files that hold a layer's weights, inputs and expected outputs: safetensors with a `case` in their metadata.
//!
//! Tensors are named `in.*` (inputs), `w.*` (weights), `f64.*` (expected, in double precision), `out.*` and `mid.*` (what
//! the framework gave in single precision). A whole model's weights are not in the file. The metadata's `case` is a JSON
//! object with `kind`, `config` and, for each tensor in double precision, `accuracy.<name>` with `max_abs_value`,
//! `suggested_atol` and `suggested_rtol`.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::{Dtype as StoredDtype, SafeTensors};
use serde_json::Value;

use super::kinds;
use crate::attention::Strategy;
use crate::compare::{Comparison, NanMeans, Tolerance, compare};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::plan::Outputs;
use crate::tensor::{Dtype, HostTensor, TensorDesc};

/// A golden file, read and checked.
#[derive(Debug, Clone)]
pub struct Golden {
    /// The file as it was named.
    pub path: String,
    /// Which layer it is for, such as `seed2_mha`.
    pub kind: String,
    case: Value,
    tensors: BTreeMap<String, HostTensor>,
}

/// A golden file's layer as a graph, with the inputs that the file gives.
#[derive(Debug)]
pub struct GoldenGraph {
    /// The layer; outputs are named as in the file.
    pub graph: Graph,
    /// Name and value of each graph input.
    pub inputs: Vec<(String, HostTensor)>,
}

impl Golden {
    /// Reads a file.
    ///
    /// # Errors
    /// A file that cannot be read, is not safetensors, has no `case` with a `kind` that is known, or a tensor of a dtype that
    /// is none of the kind's; each names the file.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|error| fail(path, error.to_string()))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| fail(path, error.to_string()))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|error| fail(path, error.to_string()))?;
        let case = header.metadata().as_ref().and_then(|metadata| metadata.get("case"));
        let case =
            case.ok_or_else(|| fail(path, "its metadata has no `case`, so there is no telling which layer it is"))?;
        let case: Value = serde_json::from_str(case).map_err(|error| fail(path, format!("`case`: {error}")))?;
        let kind = case["kind"].as_str().ok_or_else(|| fail(path, "`case` has no `kind`"))?.to_owned();
        if let Some(message) = kinds::unknown(&kind) {
            return Err(fail(path, message));
        }
        let mut tensors = BTreeMap::new();
        for (name, view) in file.tensors() {
            let tensor = if kinds::holds_ids(&kind, &name) {
                load_ids(&view)
            } else {
                load(&view, case["stored_as_u8_divide_by"][&name].as_f64())
            };
            let tensor = tensor.map_err(|message| fail(path, format!("tensor `{name}` {message}")))?;
            tensors.insert(name, tensor);
        }
        Ok(Self { path: path.display().to_string(), kind, case, tensors })
    }

    /// Whether the file is for a whole model, whose weights are in a folder of their own: for
    /// [`SentenceEncoder::run_golden`](crate::models::SentenceEncoder::run_golden), not for [`Golden::graph`].
    pub fn is_model(&self) -> bool {
        kinds::is_model(&self.kind)
    }

    /// The strategies to run a file of this kind with: fused and unfused, or one where it has no attention that fused
    /// kernels compute.
    pub fn strategies(&self) -> &'static [Strategy] {
        kinds::strategies(&self.kind)
    }

    /// The layer as a graph.
    ///
    /// # Errors
    /// A kind that is a whole model, a missing tensor or setting, shapes that do not fit; each names the file.
    pub fn graph(&self, strategy: Strategy) -> Result<GoldenGraph> {
        kinds::build(self, strategy).map_err(|error| match error {
            Error::File { .. } => error,
            other => self.fail(other.to_string()),
        })
    }

    /// Compares a run's outputs with what the file expects of them: each `f64.*` tensor at the file's own tolerance; each
    /// `mid.*` and `out.*` that the file has in single precision only, at the share of its largest magnitude that the file
    /// allows the others, 1e-5 at least and masked scores left out; a model's ids exactly. `None` is an expected tensor that
    /// the run does not expose, such as the scores of fused attention.
    ///
    /// # Errors
    /// A tensor of another shape than the run gives, one in double precision without a tolerance.
    pub fn compare(&self, outputs: &Outputs) -> Result<Vec<(String, Option<Comparison>)>> {
        let outputs = kinds::derive(self, outputs)?;
        let expected = self.expected().into_iter().map(|(name, expected)| {
            let tolerance = self.tolerance(name, expected)?;
            let Some(got) = outputs.get(name) else { return Ok((name.to_owned(), None)) };
            let Expected { tensor, value, .. } = expected;
            if got.shape() != value.shape() {
                let message = format!("tensor `{tensor}` is {}, the run gives {}", value.desc(), got.desc());
                return Err(self.fail(message));
            }
            Ok((name.to_owned(), Some(compare(got, value, tolerance, NanMeans::Nan))))
        });
        expected.collect()
    }

    /// Number of tensors that the file expects.
    pub fn expectations(&self) -> usize {
        self.expected().len()
    }

    /// What [`Golden::compare`] looks at, by output name.
    pub(crate) fn expected(&self) -> BTreeMap<&str, Expected<'_>> {
        let prefixes =
            [("in.", Stored::Exact), ("mid.", Stored::Single), ("out.", Stored::Single), ("f64.", Stored::Double)];
        let mut expected = BTreeMap::new();
        // What there is in both precisions counts in double precision.
        for (prefix, stored) in prefixes {
            for (tensor, value) in &self.tensors {
                // Inputs are a model's ids, which its tokenizer must give.
                let counts = stored != Stored::Exact || self.is_model();
                if let Some(name) = tensor.strip_prefix(prefix).filter(|_| counts) {
                    expected.insert(name, Expected { stored, tensor, value });
                }
            }
        }
        expected
    }

    pub(crate) fn config(&self) -> &Value {
        &self.case["config"]
    }

    pub(super) fn size(&self, setting: &str) -> Result<usize> {
        let value = &self.config()[setting];
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        size.ok_or_else(|| self.fail(format!("config `{setting}` is {value}, a size was expected")))
    }

    pub(super) fn sizes(&self, setting: &str) -> Result<Vec<usize>> {
        let value = &self.config()[setting];
        let sizes = value.as_array().and_then(|sizes| {
            let size = |size: &Value| size.as_u64().and_then(|size| usize::try_from(size).ok());
            sizes.iter().map(size).collect()
        });
        sizes.ok_or_else(|| self.fail(format!("config `{setting}` is {value}, a list of sizes was expected")))
    }

    pub(super) fn number(&self, setting: &str) -> Result<f64> {
        let value = &self.config()[setting];
        value.as_f64().ok_or_else(|| self.fail(format!("config `{setting}` is {value}, a number was expected")))
    }

    /// Whether the case names this among its inputs.
    pub(super) fn lists_input(&self, name: &str) -> bool {
        self.case["inputs"].as_array().is_some_and(|inputs| inputs.iter().any(|input| input == name))
    }

    /// Ids of a table with so many rows.
    pub(crate) fn ids(&self, name: &str, rows: usize) -> Result<&HostTensor> {
        let ids = self.tensor(name)?;
        let Some(values) = ids.as_u32() else {
            return Err(self.fail(format!("tensor `{name}` is {}, integers were expected", ids.desc())));
        };
        match values.iter().find(|&&id| id as usize >= rows) {
            Some(id) => Err(self.fail(format!("tensor `{name}` has an id of {id}, the table has {rows} rows"))),
            None => Ok(ids),
        }
    }

    /// Names of all tensors.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub(crate) fn optional(&self, name: &str) -> Option<&HostTensor> {
        self.tensors.get(name)
    }

    pub(super) fn tensor(&self, name: &str) -> Result<&HostTensor> {
        self.optional(name).ok_or_else(|| self.fail(format!("tensor `{name}` is missing")))
    }

    /// A tensor as f32, whatever float it is stored as.
    pub(super) fn floats(&self, name: &str) -> Result<HostTensor> {
        let tensor = self.tensor(name)?;
        match tensor.desc().dtype {
            Dtype::Bool | Dtype::U32 => {
                Err(self.fail(format!("tensor `{name}` is {}, a float was expected", tensor.desc())))
            }
            _ => Ok(tensor.cast(Dtype::F32)),
        }
    }

    pub(crate) fn fail(&self, message: impl Into<String>) -> Error {
        Error::File { path: self.path.clone(), message: message.into() }
    }

    fn tolerance(&self, name: &str, Expected { stored, value, .. }: Expected<'_>) -> Result<Tolerance> {
        let accuracy = &self.case["accuracy"][name];
        match (stored, accuracy["suggested_atol"].as_f64(), accuracy["suggested_rtol"].as_f64()) {
            (Stored::Exact, ..) => Ok(Tolerance::of_scale(0.0)),
            (_, Some(absolute), Some(relative)) => Ok(Tolerance { of_scale: 0.0, relative, absolute }),
            (Stored::Single, ..) => {
                let share = self.share();
                Ok(Tolerance { of_scale: 0.0, relative: share, absolute: share * scale(value) })
            }
            (Stored::Double, ..) => {
                Err(self.fail(format!("`accuracy.{name}` has no suggested_atol and suggested_rtol")))
            }
        }
    }

    /// The largest tolerance that the file suggests as a share of a tensor's largest magnitude: what large scores do to one
    /// tensor in single precision they do to others.
    fn share(&self) -> f64 {
        let suggested = self.case["accuracy"].as_object().into_iter().flat_map(|accuracy| accuracy.values());
        let shares = suggested.filter_map(|accuracy| {
            Some(accuracy["suggested_atol"].as_f64()? / accuracy["max_abs_value"].as_f64().filter(|max| *max > 0.0)?)
        });
        shares.fold(SINGLE, f64::max)
    }
}

/// What a file expects of an output.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expected<'a> {
    stored: Stored,
    /// The tensor's name in the file.
    tensor: &'a str,
    value: &'a HostTensor,
}

/// How a file has what it expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stored {
    /// Integers.
    Exact,
    /// `mid.*` and `out.*`: what the framework gave.
    Single,
    /// `f64.*`, with a tolerance beside it.
    Double,
}

/// How far something in single precision may be off at least, as a share of the largest magnitude: sums of up to some
/// thousand terms on both sides, each rounded.
const SINGLE: f64 = 1e-5;
/// Layers put −1e9 in place of masked scores, which says nothing of the size of the others.
const MASKED: f64 = 1e9;

/// The largest finite magnitude but those of masked scores.
fn scale(tensor: &HostTensor) -> f64 {
    tensor.to_f64().into_iter().map(f64::abs).filter(|x| *x < MASKED / 2.0).fold(0.0, f64::max)
}

fn fail(path: &Path, message: impl Into<String>) -> Error {
    Error::File { path: path.display().to_string(), message: message.into() }
}

/// Floats as they are, bf16 widened; u8 only as fractions of a divisor.
fn load(view: &safetensors::tensor::TensorView<'_>, divisor: Option<f64>) -> std::result::Result<HostTensor, String> {
    let shape = view.shape();
    let data = view.data();
    let desc = |dtype| TensorDesc::new(dtype, shape);
    let tensor = match (view.dtype(), divisor) {
        (StoredDtype::F64, _) => HostTensor::from_bytes(desc(Dtype::F64), data),
        (StoredDtype::F32, _) => HostTensor::from_bytes(desc(Dtype::F32), data),
        (StoredDtype::F16, _) => HostTensor::from_bytes(desc(Dtype::F16), data),
        (StoredDtype::BOOL, _) => HostTensor::from_bytes(desc(Dtype::Bool), data),
        (StoredDtype::BF16, _) => {
            let halves = data.chunks_exact(2).map(|pair| half::bf16::from_le_bytes([pair[0], pair[1]]).to_f32());
            HostTensor::f32(shape, halves.collect())
        }
        (StoredDtype::U8, Some(divisor)) => {
            HostTensor::f32(shape, data.iter().map(|&byte| (f64::from(byte) / divisor) as f32).collect())
        }
        (other, _) => return Err(format!("is {other:?}, a float or bool was expected")),
    };
    tensor.map_err(|error| error.to_string())
}

/// Integers of any width, which must not be negative.
fn load_ids(view: &safetensors::tensor::TensorView<'_>) -> std::result::Result<HostTensor, String> {
    let width = match view.dtype() {
        StoredDtype::I32 | StoredDtype::U32 => 4,
        StoredDtype::I64 | StoredDtype::U64 => 8,
        other => return Err(format!("is {other:?}, integers were expected")),
    };
    let signed = matches!(view.dtype(), StoredDtype::I32 | StoredDtype::I64);
    let id = |bytes: &[u8]| {
        let fill = if signed && bytes[width - 1] >= 0x80 { 0xff } else { 0 };
        let mut wide = [fill; 8];
        wide[..width].copy_from_slice(bytes);
        let id = i64::from_le_bytes(wide);
        u32::try_from(id).map_err(|_| format!("has an id of {id}, 0 to {} was expected", u32::MAX))
    };
    let ids = view.data().chunks_exact(width).map(id).collect::<std::result::Result<_, _>>()?;
    HostTensor::u32(view.shape(), ids).map_err(|error| error.to_string())
}
