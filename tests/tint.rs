//! Every specialisation that a case yields, as browsers see it: Tint takes what naga takes. Tint is stricter where control flow
//! around barriers is concerned, and wants `enable` lines.

#[path = "common/launches.rs"]
mod launches;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::process::{Command, ExitCode};

use launches::{devices, launches};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use serde_json::{Value, json};

/// Kernels that only naga takes: WGSL has no cooperative matrices yet.
const NAGA_ONLY: [&str; 3] = ["attention_coop", "matmul_coop", "matrix_chain_coop"];

/// What `scripts/tint` exits with where Tint cannot be had.
const ABSENT: i32 = 3;

fn main() -> ExitCode {
    let trials = vec![Trial::ignorable_test("every portable specialisation", every_specialisation)];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Controls: naga takes both, and Tint neither.
fn controls() -> [(&'static str, &'static str); 2] {
    let barrier =
        "var<workgroup> x: u32; @compute @workgroup_size(8) fn main(@builtin(local_invocation_index) i: u32) {
        if i > 3u { workgroupBarrier(); } x = i; }";
    let without_enable = "@compute @workgroup_size(8) fn main() { _ = subgroupAdd(1u); }";
    [("control: barrier in divergent flow", barrier), ("control: subgroups without enable", without_enable)]
}

fn every_specialisation() -> Result<Completion, Failed> {
    let mut seen = HashSet::new();
    let mut shaders: Vec<Value> = Vec::new();
    for (device, capabilities) in devices() {
        for (words, launch) in launches(&capabilities) {
            let name = launch.shader.main.name;
            assert_eq!(launch.shader.needs_cooperative(), NAGA_ONLY.contains(&name), "{name}");
            if !launch.shader.needs_cooperative() && seen.insert(launch.shader.clone()) {
                let enable = if launch.shader.needs_subgroups() { "enable subgroups;\n" } else { "" };
                let code = format!("{enable}{}", launch.shader.text()?);
                shaders.push(json!({ "name": format!("{words}, {device}"), "code": code }));
            }
        }
    }
    let checked = shaders.len() + controls().len();
    shaders.extend(controls().map(|(name, code)| json!({ "name": name, "code": code })));
    let file = std::env::temp_dir().join(format!("regard-shaders-{}.json", std::process::id()));
    std::fs::write(&file, serde_json::to_vec(&shaders)?)?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/tint");
    let output = Command::new(script).arg(&file).output();
    std::fs::remove_file(&file)?;
    let output = output?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) => {}
        Some(ABSENT) => return Ok(Completion::ignored_with(complaint.lines().last().unwrap_or("no reason"))),
        code => return Err(format!("scripts/tint ended with {code:?}: {complaint}").into()),
    }
    let answers = String::from_utf8(output.stdout)?;
    let answers = answers.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut refused: BTreeMap<String, String> =
        answers.iter().map(|answer| (text(&answer["name"]), text(&answer["message"]))).collect();
    refused.remove("");
    assert!(answers.iter().any(|answer| answer["checked"] == checked), "Tint saw fewer than {checked} shaders");
    for (name, code) in controls() {
        naga::front::wgsl::parse_str(code).map_err(|error| error.emit_to_string(code))?;
        assert!(refused.remove(name).is_some(), "Tint takes `{name}`, so it checks nothing");
    }
    let all: Vec<_> = refused.iter().map(|(name, message)| format!("{name}:\n{message}")).collect();
    if all.is_empty() {
        return Ok(Completion::Completed);
    }
    Err(format!("Tint refuses {} of {checked}:\n{}", all.len(), all.join("\n")).into())
}
