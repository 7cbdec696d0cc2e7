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

impl Work {
    pub(super) fn new(plan: &PlanDescription, task: &Task) -> Self {
        let techniques: Vec<_> = plan.steps.iter().map(StepDescription::technique_and_reason).collect();
        let cost: Cost = plan.cost();
        Self {
            path: techniques.join(" + "),
            dispatches: plan.steps.len(),
            flops: task.flops.unwrap_or(cost.flops),
            flops_exact: cost.flops,
            bytes: cost.bytes(),
            peak_bytes: plan.peak_bytes(),
            features: features(plan),
            tiles: tiles(plan),
            fallback: fallback(plan),
        }
    }
}

fn shaders(plan: &PlanDescription) -> impl Iterator<Item = &Shader> {
    plan.steps.iter().filter_map(|step| step.shader.as_ref())
}

fn features(plan: &PlanDescription) -> Vec<String> {
    let uses = [
        ("f16", shaders(plan).any(Shader::needs_f16)),
        ("subgroups", shaders(plan).any(Shader::needs_subgroups)),
        ("cooperative matrices", shaders(plan).any(Shader::needs_cooperative)),
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
    use crate::schedule::Schedule;

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
    fn what_stands_in_the_place_of_an_op_is_named() {
        let work = work("b=1,h=8,s=1024,d=64", Some("unfused"));
        let fallback = work.fallback.unwrap();
        assert!(fallback.starts_with("matmul") && fallback.ends_with("in place of attention_fused"), "{fallback}");
        assert!(work.features.is_empty() && work.tiles.contains("matmul_tiled "), "{}", work.tiles);
    }
}
