//! The host: what it is called, and what fits into it.

use super::task::Task;
use crate::plan::PlanDescription;

/// An adapter's name, its driver and its interface, of a device's name such as `llvmpipe (LLVM 15, 256 bits) (llvmpipe Mesa 22, vulkan)`.
/// Asking the drivers again would make each of them start another time.
pub(super) fn parts(device: &str) -> Option<[&str; 3]> {
    let inner = device.strip_suffix(')')?;
    let mut depth = 1;
    let open = inner.char_indices().rev().find(|(_, letter)| {
        depth += match letter {
            ')' => 1,
            '(' => -1,
            _ => 0,
        };
        depth == 0
    });
    let (at, _) = open?;
    let (driver, interface) = inner[at + 1..].rsplit_once(", ")?;
    Some([inner[..at].trim_end(), driver, interface])
}

/// The host's processor; empty where the system does not say so in `/proc`.
pub(super) fn processor() -> String {
    // No figure depends on it.
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(String::new, |(_, name)| name.trim().to_owned())
}

/// Why a problem does not fit into the host's memory, where its inputs, its reference and perhaps its plan live.
pub(super) fn too_large(plan: &PlanDescription, task: &Task) -> Option<String> {
    let free = free_bytes()?;
    // Drawn, widened to f64 by the reference, and an output in three copies of f64 while it is compared.
    let inputs = task.inputs.iter().map(|(_, input)| input.desc.bytes() + 8 * input.desc.len() as u64).sum();
    let outputs = task.graph.outputs().map(|(_, desc)| 24 * desc.len() as u64).sum();
    let needed = [inputs, outputs, plan.peak_bytes()].into_iter().fold(0, u64::saturating_add);
    (needed > free).then(|| format!("it needs {needed} bytes of the host's memory with its check, and {free} are free"))
}

/// Memory that can be had without swapping; `None` where the system does not say so in `/proc`.
pub(super) fn free_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        let name = "llvmpipe (LLVM 15.0.6, 256 bits) (llvmpipe Mesa 22.3.6 (LLVM 15.0.6), vulkan)";
        let expected = ["llvmpipe (LLVM 15.0.6, 256 bits)", "llvmpipe Mesa 22.3.6 (LLVM 15.0.6)", "vulkan"];
        assert_eq!(parts(name), Some(expected));
        for other in ["", "a GPU", "odd) name)", "a GPU (vulkan)"] {
            assert_eq!(parts(other), None, "{other}");
        }
    }
}
