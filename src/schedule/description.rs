//! What a plan does, in words and numbers.

use std::fmt;

use super::{Operand, Step};
use crate::op::{Cost, Technique};
use crate::precision::Precision;
use crate::shader::Shader;
use crate::tensor::TensorDesc;

/// What a plan does, step by step, and the memory that it takes. Its `Display` is a table.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanDescription {
    /// Name of the device.
    pub device: String,
    /// In order of execution.
    pub steps: Vec<StepDescription>,
    /// Bytes of the inputs.
    pub input_bytes: u64,
    /// Bytes of weights and constants; plans may share them.
    pub weight_bytes: u64,
    /// Bytes of the outputs.
    pub output_bytes: u64,
    /// Bytes of the slots that intermediates share.
    pub scratch_bytes: u64,
    /// Bytes of the tensors, weights aside, that are alive together at the step where most are: inputs and outputs always, since
    /// they keep their values between runs, intermediates from the step that writes them to the last that reads them. No plan
    /// could need less.
    pub live_bytes: u64,
    /// Bytes that the host maps to write inputs (but those that a run changes) and read outputs of a GPU; not part of the peak, which is the device's.
    pub staging_bytes: u64,
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq)]
pub struct StepDescription {
    /// Op, such as `matmul`.
    pub op: &'static str,
    /// Technique, such as `matmul_tiled`.
    pub technique: &'static str,
    /// The op of the graph that this step computes together with others, such as `attention_fused` on a device that has no
    /// technique of it.
    pub instead_of: Option<&'static str>,
    /// Element-wise steps of the graph that it computes besides, such as `gelu`; see [`Rewrites`](crate::Rewrites).
    pub then: Vec<String>,
    /// Measurements chose it ([`Device::tune`](crate::Device::tune)), alone or with the steps beside it that stand for the same op.
    pub tuned: bool,
    /// Whether operands are rounded to f16 for the products; only where the graph allows it.
    pub precision: Precision,
    /// What goes in.
    pub inputs: Vec<TensorDesc>,
    /// What comes out.
    pub outputs: Vec<TensorDesc>,
    /// The grid of a GPU step.
    pub workgroups: Option<[u32; 3]>,
    /// The specialised kernel of a GPU step.
    pub shader: Option<Shader>,
    /// Flops and bytes.
    pub cost: Cost,
}

impl StepDescription {
    /// Such as `softmax_row`, `softmax_row for attention_fused`, or `matmul_coop then gelu, add (products in f16)`.
    pub(crate) fn technique_and_reason(&self) -> String {
        let instead_of = self.instead_of.map_or(String::new(), |op| format!(" for {op}"));
        let rounded = if self.precision == Precision::Half { " (products in f16)" } else { "" };
        let then = if self.then.is_empty() { String::new() } else { format!(" then {}", self.then.join(", ")) };
        let tuned = if self.tuned { " (tuned)" } else { "" };
        format!("{}{then}{instead_of}{rounded}{tuned}", self.technique)
    }

    pub(super) fn new(step: &Step) -> Self {
        let descs = |operands: &[Operand]| operands.iter().map(|operand| operand.desc.clone()).collect();
        Self {
            op: step.op.name(),
            technique: step.technique.name(),
            instead_of: step.instead_of,
            then: step.then.clone(),
            tuned: step.tuned,
            precision: step.technique.precision(),
            inputs: descs(&step.inputs),
            outputs: descs(&step.outputs),
            workgroups: match &step.technique {
                Technique::Gpu(launch) => Some(launch.workgroups),
                Technique::Cpu(_) => None,
            },
            shader: match &step.technique {
                Technique::Gpu(launch) => Some(launch.shader.clone()),
                Technique::Cpu(_) => None,
            },
            cost: step.cost,
        }
    }
}

impl PlanDescription {
    /// Bytes of the device's memory while the plan lives: inputs, weights, outputs and scratch.
    pub fn peak_bytes(&self) -> u64 {
        [self.weight_bytes, self.output_bytes, self.scratch_bytes]
            .iter()
            .fold(self.input_bytes, |sum, &bytes| sum.saturating_add(bytes))
    }

    /// Work of all steps.
    pub fn cost(&self) -> Cost {
        self.steps.iter().fold(Cost::default(), |sum, step| sum + step.cost)
    }
}

impl fmt::Display for PlanDescription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_header(["step", "technique", "inputs", "outputs", "workgroups", "flops", "bytes"]);
        let shapes = |descs: &[TensorDesc]| descs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        for (index, step) in self.steps.iter().enumerate() {
            table.add_row([
                index.to_string(),
                step.technique_and_reason(),
                shapes(&step.inputs),
                shapes(&step.outputs),
                step.workgroups.map_or_else(|| "native".into(), |grid| format!("{grid:?}")),
                step.cost.flops.to_string(),
                step.cost.bytes().to_string(),
            ]);
        }
        writeln!(f, "on {}", self.device)?;
        writeln!(f, "{}", table.trim_fmt())?;
        write!(
            f,
            "peak {} bytes: inputs {}, weights {}, outputs {}, scratch {}; alive at once {}",
            self.peak_bytes(),
            self.input_bytes,
            self.weight_bytes,
            self.output_bytes,
            self.scratch_bytes,
            self.live_bytes
        )?;
        match self.staging_bytes {
            0 => Ok(()),
            bytes => write!(f, "; {bytes} bytes of the host's for staging"),
        }
    }
}
