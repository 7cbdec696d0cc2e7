//! Every launch that a case yields, on devices from the least to a roomy one, without a GPU.

use regard::capabilities::{Capabilities, CooperativeMatrix};
use regard::op::{Launch, Technique};
use regard::verify::cases;

/// Devices from the least to a roomy one; techniques may differ between them.
pub fn devices() -> [(&'static str, Capabilities); 5] {
    let roomy = Capabilities {
        subgroups: Some((4, 128)),
        timestamps: true,
        workgroup_memory: 48 << 10,
        invocations: 1024,
        binding_bytes: 4 << 30,
        storage_buffers: 32,
        ..Capabilities::baseline_f16()
    };
    let matrix =
        |edge: u32| CooperativeMatrix { m: edge, n: edge, k: edge, factors: "f16".into(), accumulator: "f32".into() };
    let matrices = |edge, least, largest, workgroup_memory| Capabilities {
        subgroups: Some((least, largest)),
        cooperative: vec![matrix(edge)],
        workgroup_memory,
        ..roomy.clone()
    };
    [
        ("baseline", Capabilities::baseline()),
        ("baseline with f16", Capabilities::baseline_f16()),
        ("matrices of 8", matrices(8, 8, 8, 32 << 10)),
        ("matrices of 16", matrices(16, 32, 64, 48 << 10)),
        ("roomy", roomy),
    ]
}

/// Every launch of every case, with the words that name it.
pub fn launches(capabilities: &Capabilities) -> Vec<(String, Launch)> {
    let launches = cases(None, None).into_iter().flat_map(|case| {
        let techniques = case.op.techniques(&case.descs(), capabilities).into_iter();
        let launches = techniques.map(|technique| match technique {
            Technique::Gpu(launch) => launch,
            Technique::Cpu(kernel) => panic!("{} is native, and the capabilities are a GPU's", kernel.name),
        });
        let words = format!("{}, case `{}`", case.op.name(), case.name);
        launches.map(move |launch| (format!("{words}, {}", launch.shader.main.name), launch)).collect::<Vec<_>>()
    });
    launches.collect()
}
