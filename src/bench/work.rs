//! What a plan does, as a line says it.

use serde::{Deserialize, Serialize};

use super::task::Task;
use crate::op::Cost;
use crate::plan::{PlanDescription, StepDescription};
use crate::shader::{Constant, Shader};

/// What a plan does.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Work {
    /// Techniques of the plan's steps in order, joined by ` + `.
    pub path: String,
    /// Steps.
    #[serde(default)]
    pub dispatches: usize,
    /// Operations by FlashAttention's formula for attention, else the exact count.
    pub flops: u64,
    /// Operations of the plan's steps; scores that are skipped count nothing.
    #[serde(default)]
    pub flops_exact: u64,
    /// Those of them that are done in f16; the others are done in f32 whatever the storage, unless they are of cooperative matrices.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub flops_f16: u64,
    /// Those of `flops_exact` that cooperative matrices do.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub flops_matrices: u64,
    /// Bytes that the plan's steps read and write at least.
    #[serde(default)]
    pub bytes: u64,
    /// Bytes that are allocated while the plan lives.
    #[serde(default)]
    pub peak_bytes: u64,
    /// What the kernels use that not every device has: `f16`, `subgroups`, `cooperative matrices`.
    #[serde(default)]
    pub features: Vec<String>,
    /// Sizes that the host chose for the kernels, such as `queries 64, keys 32`; each kernel by name where there are several.
    #[serde(default)]
    pub tiles: String,
    /// Which ops of the graph have other steps in their place, and which; missing where each op runs as itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
}

/// Constants that follow from the shapes alone.
const OF_SHAPES: [&str; 4] = ["HEAD_DIM", "VALUE_DIM", "HIDDEN", "PER_WORD"];

/// Kernels that compute in the type in which they store; every other one widens f16 to f32.
const IN_STORAGE: [&str; 1] = ["fma_chain_lanes"];

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Units of a device that have peaks of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arithmetic {
    F32,
    F16,
    Matrices,
}

impl Arithmetic {
    /// As lines and plots say it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Matrices => "matrices",
        }
    }

    fn of(shader: Option<&Shader>) -> Self {
        match shader {
            Some(shader) if shader.needs_cooperative() => Self::Matrices,
            Some(shader) if shader.needs_f16() && IN_STORAGE.contains(&shader.main.name) => Self::F16,
            _ => Self::F32,
        }
    }
}

impl Work {
    /// The exact operations of each kind, of which there are some.
    pub(super) fn arithmetic(&self) -> Vec<(Arithmetic, u64)> {
        // Lines of earlier versions name the feature alone.
        let on_matrices = self.features.iter().any(|feature| feature == MATRICES);
        let matrices = if on_matrices && self.flops_matrices == 0 {
            self.flops_exact - self.flops_f16
        } else {
            self.flops_matrices
        };
        let f32 = self.flops_exact.saturating_sub(self.flops_f16).saturating_sub(matrices);
        let all = [(Arithmetic::F32, f32), (Arithmetic::F16, self.flops_f16), (Arithmetic::Matrices, matrices)];
        all.into_iter().filter(|(_, flops)| *flops > 0).collect()
    }

    pub(super) fn new(plan: &PlanDescription, task: &Task) -> Self {
        let techniques: Vec<_> = plan.steps.iter().map(StepDescription::technique_and_reason).collect();
        let cost: Cost = plan.cost();
        let flops_in = |arithmetic| {
            let steps = plan.steps.iter().filter(|step| Arithmetic::of(step.shader.as_ref()) == arithmetic);
            steps.map(|step| step.cost.flops).sum()
        };
        Self {
            path: techniques.join(" + "),
            dispatches: plan.steps.len(),
            flops: task.flops.unwrap_or(cost.flops),
            flops_exact: cost.flops,
            flops_f16: flops_in(Arithmetic::F16),
            flops_matrices: flops_in(Arithmetic::Matrices),
            bytes: cost.bytes(),
            peak_bytes: plan.peak_bytes(),
            features: features(plan),
            tiles: tiles(plan),
            fallback: fallback(plan),
        }
    }
}

/// The feature whose operations have a peak of their own.
const MATRICES: &str = "cooperative matrices";

fn shaders(plan: &PlanDescription) -> impl Iterator<Item = &Shader> {
    plan.steps.iter().filter_map(|step| step.shader.as_ref())
}

fn features(plan: &PlanDescription) -> Vec<String> {
    let uses = [
        ("f16", shaders(plan).any(Shader::needs_f16)),
        ("subgroups", shaders(plan).any(Shader::needs_subgroups)),
        (MATRICES, shaders(plan).any(Shader::needs_cooperative)),
    ];
    uses.into_iter().filter(|(_, used)| *used).map(|(name, _)| name.to_owned()).collect()
}

fn tiles(plan: &PlanDescription) -> String {
    let of_shader = |shader: &Shader| {
        let chosen = shader.constants.iter().filter_map(|(name, constant)| match constant {
            Constant::U32(value) if !OF_SHAPES.iter().any(|shape| name.starts_with(shape)) => {
                Some(format!("{} {value}", name.to_lowercase().replace('_', " ")))
            }
            _ => None,
        });
        chosen.collect::<Vec<_>>().join(", ")
    };
    let mut kernels: Vec<String> = Vec::new();
    for shader in shaders(plan) {
        let text = match (of_shader(shader), plan.steps.len()) {
            (text, _) if text.is_empty() => continue,
            (text, 1) => text,
            (text, _) => format!("{} {text}", shader.main.name),
        };
        if !kernels.contains(&text) {
            kernels.push(text);
        }
    }
    kernels.join("; ")
}

fn fallback(plan: &PlanDescription) -> Option<String> {
    let mut ops: Vec<&str> = plan.steps.iter().filter_map(|step| step.instead_of).collect();
    ops.dedup();
    let instead = |op: &&str| {
        let steps = plan.steps.iter().filter(|step| step.instead_of == Some(op)).map(|step| step.technique);
        format!("{} in place of {op}", steps.collect::<Vec<_>>().join(" + "))
    };
    (!ops.is_empty()).then(|| ops.iter().map(instead).collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capabilities::Capabilities;
    use crate::op::{Op, Technique};
    use crate::ops::FmaChain;
    use crate::schedule::Schedule;
    use crate::shader::wgsl;
    use crate::tensor::{Dtype, TensorDesc};

    fn work(problem: &str, technique: Option<&str>) -> Work {
        let mut task = Task::attention("problem", &problem.parse().unwrap()).unwrap();
        task.options.techniques.extend(technique.map(|technique| ("attention_fused".into(), technique.into())));
        let capabilities = Capabilities::baseline_f16();
        let schedule = Schedule::new(&task.graph, &capabilities, &task.options).unwrap();
        Work::new(&schedule.describe("a device".into(), &capabilities), &task)
    }

    #[test]
    fn what_a_kernel_uses_is_read_off_its_shader() {
        let work = work("b=1,h=8,s=1024,d=64,dtype=f16", Some("attention_fused"));
        assert_eq!(work.features, ["f16"]);
        assert!(work.tiles.contains("queries ") && work.tiles.contains("keys "), "{}", work.tiles);
        assert!(!work.tiles.contains("head dim") && !work.tiles.contains("attention_fused"), "{}", work.tiles);
        assert_eq!(work.fallback, None);
    }

    #[test]
    fn operations_belong_to_what_does_them() {
        let half = work("b=1,h=8,s=1024,d=64,dtype=f16", Some("attention_fused"));
        assert_eq!(half.arithmetic(), [(Arithmetic::F32, half.flops_exact)], "f16 is widened");
        let mixed = Work { flops_exact: 10, flops_f16: 1, flops_matrices: 6, ..Work::default() };
        let kinds = [(Arithmetic::F32, 3), (Arithmetic::F16, 1), (Arithmetic::Matrices, 6)];
        assert_eq!(mixed.arithmetic(), kinds);
        let of_before = Work { flops_exact: 10, features: vec![MATRICES.into()], ..Work::default() };
        assert_eq!(of_before.arithmetic(), [(Arithmetic::Matrices, 10)]);
        assert_eq!(Work::default().arithmetic(), []);
    }

    #[test]
    fn a_chain_in_f16_and_products_of_matrices_have_their_own_arithmetic() {
        let capabilities = Capabilities::baseline_f16();
        let chain = FmaChain { steps: 3, factor: 0.5, addend: 0.5 };
        for (dtype, expected) in [(Dtype::F16, Arithmetic::F16), (Dtype::F32, Arithmetic::F32)] {
            let Technique::Gpu(launch) = chain.techniques(&[TensorDesc::new(dtype, [8])], &capabilities).remove(0)
            else {
                panic!("a GPU has no native kernels")
            };
            assert_eq!(Arithmetic::of(Some(&launch.shader)), expected);
        }
        assert_eq!(Arithmetic::of(None), Arithmetic::F32);
        let source = wgsl!("matrix_chain_coop");
        let library = wgsl!("lib/matrices_8");
        let coop = Shader { main: source, libraries: vec![library], constants: Vec::new() };
        assert_eq!(Arithmetic::of(Some(&coop)), Arithmetic::Matrices);
    }

    #[test]
    fn what_stands_in_the_place_of_an_op_is_named() {
        let work = work("b=1,h=8,s=1024,d=64", Some("unfused"));
        let fallback = work.fallback.unwrap();
        assert!(fallback.starts_with("matmul") && fallback.ends_with("in place of attention_fused"), "{fallback}");
        assert!(work.features.is_empty() && work.tiles.contains("matmul_tiled "), "{}", work.tiles);
    }
}
