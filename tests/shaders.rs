//! Shaders without a GPU: every specialisation that a case yields is valid and agrees with the host;
//! every file is used; wgpu is named in one folder only.

#[path = "common/launches.rs"]
mod launches;
#[path = "common/wgsl.rs"]
mod wgsl;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use launches::{devices, launches};
use regard::capabilities::Capabilities;
use regard::op::{Launch, Op, Technique};
use regard::ops::{AttentionFused, MatMul, REGISTRY};
use regard::verify::cases;
use regard::{Dtype, Precision, TensorDesc};

/// Files under `shaders`, named as a `Source` names them.
fn files() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
    let entries = [root.clone(), root.join("lib")].into_iter().flat_map(|folder| fs::read_dir(folder).unwrap());
    let paths = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    let name = |path: &Path| path.strip_prefix(&root).unwrap().with_extension("").to_string_lossy().replace('\\', "/");
    paths.map(|path| (name(&path), fs::read_to_string(&path).unwrap())).collect()
}

#[test]
fn every_specialisation_is_valid_and_agrees_with_the_host() {
    let mut seen = HashSet::new();
    let mut failures = Vec::new();
    for (device, capabilities) in devices() {
        for (words, launch) in launches(&capabilities) {
            // The whole launch, since params and grids differ where the shader is the same.
            if seen.insert((launch.shader.clone(), launch.workgroups, launch.params.bytes.clone(), device)) {
                failures
                    .extend(wgsl::check(&launch, &capabilities).err().map(|why| format!("{words}, {device}: {why}")));
            }
        }
    }
    assert!(failures.is_empty(), "{} of {} launches:\n{}", failures.len(), seen.len(), failures.join("\n"));
    assert!(seen.len() > 100, "only {} launches were found", seen.len());
}

/// Tiles of attention are a function of the device's limits: 128 invocations are enough, whatever the workgroup memory.
#[test]
fn attention_fits_devices_with_few_invocations() {
    let least = Capabilities { invocations: 128, subgroups: Some((32, 32)), ..Capabilities::baseline_f16() };
    let memories = [16 << 10, 32 << 10, 48 << 10];
    let mut seen = HashSet::new();
    for (workgroup_memory, software) in memories.into_iter().flat_map(|memory| [(memory, false), (memory, true)]) {
        let capabilities = Capabilities { workgroup_memory, software, storage_buffers: 32, ..least.clone() };
        for case in cases(Some("attention_fused"), None) {
            let offered = case.op.techniques(&case.descs(), &capabilities);
            assert!(offered.len() >= 2, "case `{}`: {offered:?}", case.name);
            for technique in offered {
                let Technique::Gpu(launch) = &technique else { panic!("{} is native", technique.name()) };
                if !seen.insert((launch.shader.clone(), workgroup_memory)) {
                    continue;
                }
                let checked = wgsl::check(launch, &capabilities);
                assert_eq!(checked, Ok(()), "case `{}`, {}, {workgroup_memory} bytes", case.name, technique.name());
            }
        }
    }
}

#[test]
fn every_case_has_a_gpu_technique_at_the_baseline() {
    for case in cases(None, None) {
        let f16 = case.has_f16();
        let capabilities = if f16 { Capabilities::baseline_f16() } else { Capabilities::baseline() };
        let offered = case.op.techniques(&case.descs(), &capabilities);
        let outputs = case.op.outputs(&case.descs()).unwrap().len();
        if case.inputs.len() + outputs - case.op.updates().len() > capabilities.storage_buffers as usize {
            assert!(offered.is_empty(), "{}, case `{}`: more bindings than there are", case.op.name(), case.name);
            continue;
        }
        assert!(!offered.is_empty(), "{}, case `{}`: nothing is offered", case.op.name(), case.name);
        if f16 {
            let offered = case.op.techniques(&case.descs(), &Capabilities::baseline());
            // Those that only move words need no feature.
            let needs =
                |technique: &Technique| matches!(technique, Technique::Gpu(launch) if launch.shader.needs_f16());
            assert!(!offered.iter().any(needs), "{}, case `{}`: f16 without the feature", case.op.name(), case.name);
        }
    }
}

#[test]
fn f32_is_rounded_to_f16_only_where_asked_and_says_so() {
    let [_, _, (_, matrices), ..] = devices();
    let f32s = [TensorDesc::new(Dtype::F32, [64, 64]), TensorDesc::new(Dtype::F32, [64, 64])];
    let qkv = [(); 3].map(|()| TensorDesc::new(Dtype::F32, [1, 2, 64, 32]));
    for (precision, matmul, attention) in
        [(Precision::Full, "matmul_tiled", "attention_fused"), (Precision::Half, "matmul_coop", "attention_coop")]
    {
        let products = MatMul { precision, ..MatMul::default() }.techniques(&f32s, &matrices);
        assert_eq!((products[0].name(), products[0].precision()), (matmul, precision));
        let attentions = AttentionFused { precision, ..AttentionFused::default() }.techniques(&qkv, &matrices);
        assert_eq!((attentions[0].name(), attentions[0].precision()), (attention, precision));
        assert!(attentions.iter().skip(1).all(|technique| technique.precision() == Precision::Full));
    }
    // One query row would leave a matrix nearly empty.
    let step = [1, 64, 64].map(|seq| TensorDesc::new(Dtype::F16, [1, 2, seq, 32]));
    let offered = AttentionFused::default().techniques(&step, &matrices);
    assert_eq!(offered.last().map(Technique::name), Some("attention_coop"));
    assert!(offered.len() > 1);
}

#[test]
fn every_case_has_a_native_technique() {
    for case in cases(None, None) {
        let offered = case.op.techniques(&case.descs(), &Capabilities::cpu());
        let native = offered.iter().all(|technique| matches!(technique, Technique::Cpu(_)));
        assert!(native && !offered.is_empty(), "{}, case `{}` on the CPU: {offered:?}", case.op.name(), case.name);
    }
}

#[test]
fn every_file_is_used() {
    let mut used = BTreeSet::new();
    for (_, capabilities) in devices() {
        for (_, launch) in launches(&capabilities) {
            let Launch { shader, .. } = launch;
            used.extend(shader.libraries.iter().chain([&shader.main]).map(|source| source.name.to_owned()));
        }
    }
    let present: BTreeSet<String> = files().into_keys().collect();
    assert_eq!(present, used, "left: files under shaders, right: sources that some case runs");
}

#[test]
fn files_start_with_a_header_and_leave_enable_lines_to_the_host() {
    for (name, text) in files() {
        let first = text.lines().next().unwrap_or_default();
        assert!(first.starts_with("// "), "{name}: no header comment");
        if !name.starts_with("lib/") {
            assert!(
                first.starts_with(&format!("// {name}: ")),
                "{name}: the header does not say the name and the formula"
            );
        }
        assert!(!text.lines().any(|line| line.trim_start().starts_with("enable ")), "{name} has an enable line");
        assert!(!text.contains("override "), "{name} has an override; constants that the host sets end in `// host`");
        let host = text.lines().filter(|line| line.contains("// host"));
        for line in host {
            let declares = ["const ", "alias "].iter().any(|word| line.starts_with(word));
            assert!(
                declares && line.ends_with("; // host"),
                "{name}: `{line}` is not a line that the host can replace"
            );
        }
    }
}

/// The technique's name is its file's, and its op's name comes first.
#[test]
fn techniques_are_named_after_their_op() {
    for case in cases(None, None) {
        for (_, capabilities) in devices().into_iter().chain([("cpu", Capabilities::cpu())]) {
            for technique in case.op.techniques(&case.descs(), &capabilities) {
                let op = case.op.name();
                let family = op.strip_suffix("_fused").unwrap_or(op);
                assert!(technique.name().starts_with(family), "{} is a technique of {op}", technique.name());
            }
        }
    }
}

#[test]
fn case_names_are_unique_and_belong_to_their_entry() {
    let mut seen = HashSet::new();
    for entry in REGISTRY {
        let cases = (entry.cases)();
        assert!(!cases.is_empty(), "{} has no case", entry.name);
        for case in cases {
            assert_eq!(case.op.name(), entry.name);
            assert!(seen.insert((entry.name, case.name.clone())), "{}: two cases `{}`", entry.name, case.name);
        }
    }
}

#[test]
fn wgpu_is_named_under_src_gpu_only() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let sources = rust_files(&root);
    assert!(sources.len() > 20, "the sources were not found");
    for path in sources.iter().filter(|path| !path.starts_with(root.join("gpu"))) {
        let text = fs::read_to_string(path).unwrap();
        let code = text.lines().map(|line| line.split("//").next().unwrap_or_default());
        for (number, line) in code.enumerate() {
            let names = ["wgpu::", "use wgpu", "extern crate wgpu"].iter().any(|word| line.contains(word));
            assert!(!names, "{}:{}: {line}", path.display(), number + 1);
        }
    }
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let files = files.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    files.chain(folders.iter().flat_map(|folder| rust_files(folder))).collect()
}
