//! Techniques against references: what `regard verify` and the kernel tests run.

use std::fmt;

use crate::capabilities::Capabilities;
use crate::case::Case;
use crate::compare::{Comparison, NanMeans, Tolerance, compare};
use crate::device::{Device, Inner};
use crate::error::Result;
use crate::op::{Rows, Technique, Trial};
use crate::ops::REGISTRY;
use crate::tensor::{Dtype, HostTensor, TensorDesc};
use crate::{cpu, gpu};

/// Bytes after each output that a kernel must leave alone.
const GUARD: usize = 64;

/// Of so many quantised elements one may be a level off, having been between two of them.
const BETWEEN_LEVELS: usize = 100;

/// What became of one technique on one case.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Within tolerance, guard bytes untouched.
    Passed(Comparison),
    /// Outside tolerance.
    Wrong(Comparison),
    /// It wrote past the end of an output.
    Overrun,
    /// The device refused.
    Refused(String),
    /// The device offers nothing for this case, for this reason.
    Skipped(String),
}

impl Outcome {
    /// Neither passed nor skipped.
    pub fn failed(&self) -> bool {
        !matches!(self, Self::Passed(_) | Self::Skipped(_))
    }

    /// The numbers, where there are any.
    pub fn comparison(&self) -> Option<&Comparison> {
        match self {
            Self::Passed(comparison) | Self::Wrong(comparison) => Some(comparison),
            _ => None,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed(comparison) => write!(f, "passed, {comparison}"),
            Self::Wrong(comparison) => write!(f, "wrong, {comparison}"),
            Self::Overrun => write!(f, "wrote past the end of an output"),
            Self::Refused(error) => write!(f, "the device refused: {error}"),
            Self::Skipped(reason) => write!(f, "skipped: {reason}"),
        }
    }
}

/// A case with its inputs drawn and its reference computed.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The case.
    pub case: Case,
    inputs: Vec<HostTensor>,
    expected: Vec<HostTensor>,
}

/// Cases of the registry whose op is named `op` and whose name contains `case`; everything where they are `None`.
pub fn cases(op: Option<&str>, case: Option<&str>) -> Vec<Case> {
    let entries = REGISTRY.iter().filter(|entry| op.is_none_or(|op| op == entry.name));
    let cases = entries.flat_map(|entry| (entry.cases)());
    cases.filter(|found| case.is_none_or(|case| found.name.contains(case))).collect()
}

/// The texts of what a driver compiles for a case: those of the GPU techniques that are offered with these capabilities. Cases that
/// differ in nothing but parameters have the same, and a device that has run one compiles nothing for the others.
pub fn kernels(case: &Case, capabilities: &Capabilities) -> Vec<String> {
    case.op.techniques(&case.descs(), capabilities).iter().filter_map(Technique::wgsl).collect()
}

impl Prepared {
    /// Draws the inputs and computes the reference.
    pub fn new(case: Case) -> Self {
        let inputs = case.draw();
        let expected = case.op.reference(&inputs.iter().collect::<Vec<_>>(), Rows::All);
        Self { case, inputs, expected }
    }

    /// Every technique that the device offers, or one skip with its reason.
    pub fn run(&self, device: &Device) -> Vec<(String, Outcome)> {
        self.run_some(device, |_, _| true)
    }

    /// Those techniques that are wanted, by their place among the names of those that the device offers; one skip where none is
    /// offered.
    pub fn run_some(&self, device: &Device, wanted: impl Fn(usize, &[&str]) -> bool) -> Vec<(String, Outcome)> {
        let techniques = self.case.op.techniques(&self.case.descs(), device.capabilities());
        if techniques.is_empty() {
            let (bound, bindable) = (self.inputs.len() + self.expected.len(), device.capabilities().storage_buffers);
            let reason = if self.case.has_f16() && !device.capabilities().f16 {
                "the device has no f16 in shaders".into()
            } else if bound > bindable as usize {
                format!("it binds {bound} storage buffers and the device has {bindable}")
            } else {
                "no technique is offered".into()
            };
            return vec![("none".into(), Outcome::Skipped(reason))];
        }
        let names: Vec<&str> = techniques.iter().map(Technique::name).collect();
        let techniques = techniques.iter().enumerate().filter(|(place, _)| wanted(*place, &names));
        techniques.map(|(_, technique)| (technique.name().to_owned(), self.check(device, technique))).collect()
    }

    /// Runs one technique and compares every output.
    pub fn check(&self, device: &Device, technique: &Technique) -> Outcome {
        let bytes = match self.bytes(device, technique) {
            Ok(bytes) => bytes,
            Err(error) => return Outcome::Refused(error.to_string()),
        };
        let descs = match self.case.op.outputs(&self.case.descs()) {
            Ok(descs) => descs,
            Err(error) => return Outcome::Refused(error.to_string()),
        };
        let mut worst: Option<Comparison> = None;
        for ((bytes, desc), expected) in bytes.iter().zip(descs).zip(&self.expected) {
            let (data, guard) = bytes.split_at(desc.bytes() as usize);
            if guard.iter().any(|&byte| byte != 0xff) {
                return Outcome::Overrun;
            }
            // A result is rounded to its storage, which may overflow to infinity; the reference is rounded alike.
            let expected = match desc.dtype {
                Dtype::F16 | Dtype::BF16 => &expected.cast(desc.dtype),
                _ => expected,
            };
            let got = HostTensor::from_bytes(desc, data).expect("as many bytes as the description says");
            let comparison = self.compare(&got, expected);
            if worst.as_ref().is_none_or(|worst| comparison.failed > worst.failed) {
                worst = Some(comparison);
            }
        }
        let comparison = worst.expect("every op has an output");
        if comparison.passed() { Outcome::Passed(comparison) } else { Outcome::Wrong(comparison) }
    }

    /// Integers are exact, except that a quotient about halfway between two levels may become either.
    fn compare(&self, got: &HostTensor, expected: &HostTensor) -> Comparison {
        let with = |tolerance| compare(got, expected, tolerance, NanMeans::Nan);
        let exact = Tolerance::of_scale(0.0);
        match got.desc().dtype {
            Dtype::U32 => with(exact),
            Dtype::I8 => {
                let comparison = with(exact);
                let few = comparison.failed <= 1 + comparison.compared / BETWEEN_LEVELS;
                if few { with(Tolerance { absolute: 1.0, ..exact }) } else { comparison }
            }
            _ => with(self.case.tolerance),
        }
    }

    fn bytes(&self, device: &Device, technique: &Technique) -> Result<Vec<Vec<u8>>> {
        let updates = self.case.op.updates();
        let before = |(index, desc): (usize, TensorDesc)| {
            // 0xff is NaN in every float.
            let mut bytes = vec![0xff; desc.bytes() as usize + GUARD];
            if let Some(update) = updates.iter().find(|update| update.output == index) {
                let input = self.inputs[update.input].bytes();
                bytes[..input.len()].copy_from_slice(input);
            }
            (desc, bytes)
        };
        let outputs = self.case.op.outputs(&self.case.descs())?.into_iter().enumerate().map(before).collect();
        let trial = Trial { inputs: &self.inputs, outputs, updates };
        match (technique, &device.inner) {
            (Technique::Gpu(launch), Inner::Gpu(gpu)) => gpu::run_trial(gpu, launch, &trial),
            (Technique::Cpu(kernel), Inner::Cpu(_)) => cpu::run_trial(kernel, &trial),
            _ => Err(crate::Error::Device("the technique is for another kind of device".into())),
        }
    }
}
