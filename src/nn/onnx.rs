//! Files that hold one ONNX node with its inputs and expected outputs: safetensors with a `case` in their metadata.
//!
//! `case` is a JSON object: `op_type`, `domain`, `opset`, `attributes`, `inputs` and `outputs` (names in slot order, empty where
//! a slot is not used), `atol`, `rtol` and `max_abs_diff_from_ref64`. Tensors are named `in.*`, `out.*` (what ONNX's
//! reference evaluator gave, in the node's own types) and `ref64.*` (the same outputs in double precision).

mod activation;
mod attention;
mod batch_normalization;
mod builder;
mod conv;
mod einsum;
mod flex_attention;
mod folded;
mod gather;
mod gemm;
mod linear_attention;
mod matmul;
mod normalization;
mod pool;
mod recurrent;
mod rotary;
mod score_mod;
mod softmax;
mod tensor_scatter;
mod windows;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype as StoredDtype, SafeTensors};
use serde_json::{Map, Value};

use super::golden::GoldenGraph;
use crate::attention::Strategy;
use crate::compare::{Comparison, NanMeans, Tolerance, compare};
use crate::error::{Error, Result};
use crate::plan::Outputs;
use crate::tensor::{Dtype, HostTensor, TensorDesc};

/// An operator of ONNX's own domain that [`OnnxNode::graph`] builds.
struct Operator {
    name: &'static str,
    /// The opsets that have it as it is built here.
    opsets: RangeInclusive<u64>,
    build: Build,
    /// Output slots that repeat inputs, bit by bit.
    copies: &'static [usize],
    /// Strategies that give different graphs.
    strategies: &'static [Strategy],
    /// What a node asks for that this crate has no op for.
    lacking: fn(&OnnxNode) -> Option<String>,
}

type Build = fn(&OnnxNode, Strategy) -> Result<GoldenGraph>;

/// An operator that is built in one way, whole, from this opset on.
const fn since(first: u64, name: &'static str, build: Build) -> Operator {
    let opsets = RangeInclusive::new(first, u64::MAX);
    Operator { name, opsets, build, copies: &[], strategies: &[Strategy::Auto], lacking: |_| None }
}

const OPERATORS: &[Operator] = &[
    Operator {
        opsets: 23..=25,
        copies: attention::COPIES,
        strategies: &[Strategy::Fused, Strategy::Unfused],
        ..since(23, "Attention", attention::build)
    },
    since(1, "MatMul", matmul::build),
    since(1, "Softmax", softmax::softmax),
    since(1, "LogSoftmax", softmax::log_softmax),
    since(17, "LayerNormalization", normalization::layer),
    since(23, "RMSNormalization", normalization::rms),
    Operator { lacking: batch_normalization::lacking, ..since(9, "BatchNormalization", batch_normalization::build) },
    since(23, "RotaryEmbedding", rotary::build),
    Operator { copies: &[0], ..since(24, "TensorScatter", tensor_scatter::build) },
    since(27, "LinearAttention", linear_attention::build),
    since(6, "Relu", activation::relu),
    since(6, "Sigmoid", activation::sigmoid),
    since(6, "Tanh", activation::tanh),
    since(6, "Elu", activation::elu),
    since(9, "Erf", activation::erf),
    since(20, "Gelu", activation::gelu),
    since(24, "Swish", activation::swish),
    since(28, "SwiGLU", activation::swiglu),
    since(7, "Gemm", gemm::build),
    Operator { lacking: einsum::lacking, ..since(12, "Einsum", einsum::build) },
    Operator {
        lacking: flex_attention::lacking,
        strategies: &[Strategy::Auto, Strategy::Unfused],
        ..since(1, "ai.onnx.preview.FlexAttention", flex_attention::build)
    },
    Operator { lacking: conv::lacking, ..since(1, "Conv", conv::build) },
    Operator { lacking: pool::lacking, ..since(1, "MaxPool", pool::max) },
    Operator { lacking: pool::lacking, ..since(1, "AveragePool", pool::average) },
    Operator { lacking: pool::lacking, ..since(1, "GlobalAveragePool", pool::global_average) },
    Operator { copies: &[0], ..since(1, "Gather", gather::build) },
    since(7, "LSTM", recurrent::lstm),
    since(7, "GRU", recurrent::gru),
];

/// Share of the largest magnitude that an f32 output may be off: sums of up to some hundred terms, each rounded once.
const F32_OF_SCALE: f64 = 1e-5;
/// The same for f16: four roundings of 2⁻¹¹, as ONNX's evaluator rounds every step.
const F16_OF_SCALE: f64 = 2e-3;
/// The same for bf16: about two roundings of 2⁻⁸.
const BF16_OF_SCALE: f64 = 1e-2;

/// A node read from a file.
#[derive(Debug, Clone)]
pub struct OnnxNode {
    /// The file as it was named.
    pub path: String,
    /// Operator type; with its domain in front where that is not ONNX's own.
    pub operator: String,
    /// Version of the operator set.
    pub opset: u64,
    attributes: Map<String, Value>,
    inputs: Vec<String>,
    outputs: Vec<String>,
    case: Value,
    tensors: BTreeMap<String, Stored>,
}

/// A tensor and what it was stored as: bf16 is widened to f32, and integers to f64, which holds
/// every length and mask exactly.
#[derive(Debug, Clone)]
struct Stored {
    dtype: StoredDtype,
    value: HostTensor,
}

impl OnnxNode {
    /// Reads a file.
    ///
    /// # Errors
    /// A file that cannot be read, is not safetensors, or has no `case` that names a node; each names the file.
    pub fn open(path: &Path) -> Result<Self> {
        let fail = |message: String| Error::File { path: path.display().to_string(), message };
        let bytes = std::fs::read(path).map_err(|error| fail(error.to_string()))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| fail(error.to_string()))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|error| fail(error.to_string()))?;
        let case = header.metadata().as_ref().and_then(|metadata| metadata.get("case"));
        let case =
            case.ok_or_else(|| fail("its metadata has no `case`, so there is no telling which node it is".into()))?;
        let case: Value = serde_json::from_str(case).map_err(|error| fail(format!("`case`: {error}")))?;
        let lacks = |setting: &str, kind: &str| fail(format!("`case` has no `{setting}` that is {kind}"));
        let operator = case["op_type"].as_str().ok_or_else(|| lacks("op_type", "a name"))?;
        let operator = match case["domain"].as_str().unwrap_or_default() {
            "" | "ai.onnx" => operator.to_owned(),
            domain => format!("{domain}.{operator}"),
        };
        let opset = case["opset"].as_u64().ok_or_else(|| lacks("opset", "a number"))?;
        let attributes = case["attributes"].as_object().ok_or_else(|| lacks("attributes", "an object"))?.clone();
        let names = |setting: &str| -> Result<Vec<String>> {
            let names = case[setting].as_array().and_then(|names| names.iter().map(|name| name.as_str()).collect());
            let names: Vec<&str> = names.ok_or_else(|| lacks(setting, "a list of names"))?;
            Ok(names.into_iter().map(str::to_owned).collect())
        };
        let (inputs, outputs) = (names("inputs")?, names("outputs")?);
        let mut tensors = BTreeMap::new();
        // Only the tensors of an operator that can be built must be of known types.
        let known = known(&operator).is_some();
        for (name, view) in file.tensors().into_iter().filter(|_| known) {
            let value = load(&view).map_err(|message| fail(format!("tensor `{name}` {message}")))?;
            tensors.insert(name, Stored { dtype: view.dtype(), value });
        }
        let path = path.display().to_string();
        Ok(Self { path, operator, opset, attributes, inputs, outputs, case, tensors })
    }

    /// Whether [`OnnxNode::graph`] knows the operator.
    pub fn is_known(&self) -> bool {
        known(&self.operator).is_some()
    }

    /// What the node asks for that this crate lacks although it knows the operator; `None` where it lacks nothing.
    pub fn lacking(&self) -> Option<String> {
        known(&self.operator).and_then(|operator| (operator.lacking)(self))
    }

    /// The strategies that give different graphs; none for an operator that is not known.
    pub fn strategies(&self) -> &'static [Strategy] {
        known(&self.operator).map_or(&[], |operator| operator.strategies)
    }

    /// The node as a graph whose inputs and outputs are named as in the file.
    ///
    /// # Errors
    /// An unknown operator, attribute or slot; values that mean nothing; shapes that do not fit. Each names the file.
    pub fn graph(&self, strategy: Strategy) -> Result<GoldenGraph> {
        let Some(operator) = known(&self.operator) else {
            let known: Vec<_> = OPERATORS.iter().map(|operator| operator.name).collect();
            return Err(self.fail(format!("operator `{}` is unknown; known are {}", self.operator, known.join(", "))));
        };
        if !operator.opsets.contains(&self.opset) {
            let (first, last) = operator.opsets.clone().into_inner();
            let known = if last == u64::MAX { format!("{first} and later") } else { format!("{first} to {last}") };
            return Err(self.fail(format!("{} of opset {} is unknown; known are {known}", operator.name, self.opset)));
        }
        if let Some(lacking) = self.lacking() {
            return Err(self.fail(format!("{}: {lacking}", operator.name)));
        }
        (operator.build)(self, strategy).map_err(|error| match error {
            Error::File { .. } => error,
            other => self.fail(other.to_string()),
        })
    }

    /// Compares a run's outputs with the file's: an f32 output with `ref64.*`, or with `out.*` at the file's own tolerance where
    /// there is no `ref64.*`; a 16-bit output with both; indices exactly; an output that repeats inputs bit by bit. Names say what
    /// was compared.
    ///
    /// # Errors
    /// An output that the run or the file lacks.
    pub fn compare(&self, outputs: &Outputs) -> Result<Vec<(String, Comparison)>> {
        let copies = known(&self.operator).map_or(&[][..], |operator| operator.copies);
        let mut comparisons = Vec::new();
        for (slot, name) in self.outputs.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
            let got = outputs.get(name.as_str());
            let got = got.ok_or_else(|| self.fail(format!("the run has no output `{name}`")))?;
            let out = self.stored(&format!("out.{name}"))?;
            let exact = self.tensors.get(&format!("ref64.{name}"));
            let checks = if copies.contains(&slot) {
                vec![("out", copied(got, &out.value))]
            } else {
                self.checks(got, out, exact.map(|exact| &exact.value))
            };
            comparisons.extend(checks.into_iter().map(|(kind, comparison)| (format!("{kind}.{name}"), comparison)));
        }
        Ok(comparisons)
    }

    fn checks(&self, got: &HostTensor, out: &Stored, exact: Option<&HostTensor>) -> Vec<(&'static str, Comparison)> {
        let check = |wanted: &HostTensor, tolerance| compare(got, wanted, tolerance, NanMeans::Nan);
        if got.desc().dtype == Dtype::U32 {
            return vec![("out", check(&out.value, Tolerance::of_scale(0.0)))];
        }
        let number = |setting: &str| self.case[setting].as_f64().unwrap_or(0.0);
        let of_scale = match out.dtype {
            StoredDtype::F16 => F16_OF_SCALE,
            StoredDtype::BF16 => BF16_OF_SCALE,
            _ => F32_OF_SCALE,
        };
        let exact_check = exact.map(|exact| ("ref64", check(exact, Tolerance::of_scale(of_scale))));
        let half = matches!(out.dtype, StoredDtype::F16 | StoredDtype::BF16);
        // `out` itself rounds every step to 16 bits: the file says how far that took it.
        let rounding = if half { number("max_abs_diff_from_ref64") } else { 0.0 };
        let out_check = || {
            let scaled = check(&out.value, Tolerance { of_scale, relative: 0.0, absolute: rounding });
            let own = Tolerance { of_scale: 0.0, relative: number("rtol"), absolute: number("atol") };
            // Whichever is wider.
            if half || scaled.passed() { scaled } else { check(&out.value, own) }
        };
        let out_check = (half || exact.is_none()).then(|| ("out", out_check()));
        exact_check.into_iter().chain(out_check).collect()
    }

    /// Sizes of what an input slot holds, as far as the file has it.
    fn input_shape(&self, slot: usize) -> Option<&[usize]> {
        let name = self.inputs.get(slot)?;
        self.tensors.get(&format!("in.{name}")).map(|stored| stored.value.shape())
    }

    /// Whether an output slot is used.
    fn wants(&self, slot: usize) -> bool {
        self.outputs.get(slot).is_some_and(|name| !name.is_empty())
    }

    fn stored(&self, name: &str) -> Result<&Stored> {
        self.tensors.get(name).ok_or_else(|| self.fail(format!("tensor `{name}` is missing")))
    }

    fn fail(&self, message: impl Into<String>) -> Error {
        Error::File { path: self.path.clone(), message: message.into() }
    }
}

fn known(name: &str) -> Option<&'static Operator> {
    OPERATORS.iter().find(|operator| operator.name == name)
}

/// The same bits. A copy that passes as numbers may still differ in the sign of a zero.
fn copied(got: &HostTensor, wanted: &HostTensor) -> Comparison {
    let wanted = wanted.cast(got.desc().dtype);
    let mut comparison = compare(got, &wanted, Tolerance::of_scale(0.0), NanMeans::Nan);
    if comparison.passed() && got.bytes() != wanted.bytes() {
        comparison.failed = 1;
    }
    comparison
}

fn load(view: &TensorView<'_>) -> std::result::Result<HostTensor, String> {
    let (shape, data) = (view.shape(), view.data());
    let same = |dtype| HostTensor::from_bytes(TensorDesc::new(dtype, shape), data);
    let tensor = match view.dtype() {
        StoredDtype::F32 => same(Dtype::F32),
        StoredDtype::F16 => same(Dtype::F16),
        StoredDtype::F64 => same(Dtype::F64),
        StoredDtype::BOOL => same(Dtype::Bool),
        StoredDtype::BF16 => {
            let halves = data.chunks_exact(2).map(|pair| half::bf16::from_le_bytes([pair[0], pair[1]]).to_f32());
            HostTensor::f32(shape, halves.collect())
        }
        StoredDtype::U8 => HostTensor::f64(shape, data.iter().map(|&number| f64::from(number)).collect()),
        StoredDtype::I8 => HostTensor::f64(shape, data.iter().map(|&byte| f64::from(byte as i8)).collect()),
        StoredDtype::I32 => {
            let numbers = data.chunks_exact(4).map(|bytes| i32::from_le_bytes(bytes.try_into().expect("four bytes")));
            HostTensor::f64(shape, numbers.map(f64::from).collect())
        }
        StoredDtype::I64 => {
            let numbers = data.chunks_exact(8).map(|bytes| i64::from_le_bytes(bytes.try_into().expect("eight bytes")));
            HostTensor::f64(shape, numbers.map(|number| number as f64).collect())
        }
        other => return Err(format!("is {other:?}; a float of 16 to 64 bits, u8, i8, i32, i64 or bool was expected")),
    };
    tensor.map_err(|error| error.to_string())
}
