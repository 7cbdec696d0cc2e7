//! Checks that must fail. Each takes a launch or a result that is right, shows that it passes, breaks one thing, and
//! expects the check to see it.

mod common;
#[path = "common/wgsl.rs"]
mod wgsl;

use std::process::ExitCode;
use std::sync::Arc;

use common::{Subject, Verdict, each_device, each_of, run};
use libtest_mimic::{Completion, Failed, Trial};
use regard::capabilities::{Backend, Capabilities};
use regard::case::Case;
use regard::compare::{NanMeans, Tolerance, compare};
use regard::op::{CpuKernel, Launch, Rows, Technique};
use regard::shader::{Constant, Shader};
use regard::tensor::{View, ViewMut};
use regard::verify::{Outcome, Prepared, cases};
use regard::{Dtype, HostTensor};

fn main() -> ExitCode {
    let mut trials = Vec::new();
    trials.extend(each_device("nothing written", nothing_written));
    trials.extend(each_of(&[Backend::Gpu], "two params swapped", two_params_swapped));
    trials.extend(each_of(&[Backend::Gpu], "one param changed", one_param_changed));
    trials.extend(each_of(&[Backend::Gpu], "wrong constant", wrong_constant));
    trials.extend(each_of(&[Backend::Gpu], "write past the end", write_past_the_end));
    trials.extend(each_device("tolerance of zero", tolerance_of_zero));
    trials.extend(each_of(&[Backend::Cpu], "native kernels that go wrong", native_kernels_that_go_wrong));
    trials.push(Trial::test("comparison", || checked(comparison)));
    trials.push(Trial::test("shader and host disagree", || checked(shader_and_host_disagree)));
    run(trials)
}

/// A trial that panics where it fails.
fn checked(body: fn()) -> Result<(), Failed> {
    body();
    Ok(())
}

/// The first case of an op whose name contains `part`, prepared.
fn prepared(op: &str, part: &str) -> Prepared {
    let mut found = cases(Some(op), Some(part));
    assert!(!found.is_empty(), "{op} has no case `{part}`");
    Prepared::new(found.remove(0))
}

/// What the device offers for a case; at least one thing.
fn offered(case: &Case, subject: &Subject) -> Vec<Technique> {
    let techniques = case.op.techniques(&case.descs(), subject.device.capabilities());
    assert!(!techniques.is_empty(), "{} on {}: nothing is offered", case.op.name(), subject.name);
    techniques
}

/// The launch called `name`, which passes as it is.
fn launch(prepared: &Prepared, subject: &Subject, name: &str) -> Launch {
    let technique = offered(&prepared.case, subject).into_iter().find(|technique| technique.name() == name);
    let technique = technique.unwrap_or_else(|| panic!("{} offers no {name}", subject.name));
    let outcome = prepared.check(&subject.device, &technique);
    assert!(matches!(outcome, Outcome::Passed(_)), "{name} before it is broken: {outcome}");
    match technique {
        Technique::Gpu(launch) => launch,
        Technique::Cpu(_) => panic!("{name} is native"),
    }
}

/// A case of each op with an output, on which a kernel that does nothing leaves the NaN of the fill.
const EVERY_OP: [(&str, &str); 6] = [
    ("matmul", "f32 [63, 15]"),
    ("softmax", "f32 [3, 65]"),
    ("mask_scores", "f32 [2, 3, 7, 11] no mask"),
    ("split_heads", "f32 [2, 7, 3 x 5]"),
    ("merge_heads", "f32 [2, "),
    ("attention_fused", "f32 b1 h2/2 9x33"),
];

fn nothing_written(subject: &Subject) -> Verdict {
    for (op, part) in EVERY_OP {
        let prepared = prepared(op, part);
        for technique in offered(&prepared.case, subject) {
            let idle = match technique {
                Technique::Gpu(launch) => Technique::Gpu(Launch { workgroups: [0; 3], ..launch }),
                Technique::Cpu(kernel) => Technique::Cpu(CpuKernel { run: Arc::new(|_, _| ()), ..kernel }),
            };
            let outcome = prepared.check(&subject.device, &idle);
            let Outcome::Wrong(comparison) = &outcome else { panic!("{op}, nothing written: {outcome}") };
            assert!(comparison.got.is_nan() && comparison.failed == comparison.compared, "{op}: {outcome}");
        }
    }
    Ok(Completion::Completed)
}

/// Where the four bytes of a param begin. Arrays, which come first, are of vectors: `[[u32; 4]; 2]`.
fn place(launch: &Launch, param: &str) -> usize {
    let index = launch.params.layout.iter().position(|(field, _)| *field == param).expect("a param");
    let size = |kind: &str| match kind.strip_prefix("[[u32; 4]; ").and_then(|rest| rest.strip_suffix(']')) {
        Some(vectors) => 16 * vectors.parse::<usize>().expect("a number of vectors"),
        None => 4,
    };
    launch.params.layout[..index].iter().map(|(_, kind)| size(kind)).sum()
}

/// The launch with the four bytes of two params exchanged.
fn swapped(launch: &Launch, one: &str, other: &str) -> Launch {
    let place = |name| place(launch, name);
    let mut broken = launch.clone();
    for byte in 0..4 {
        broken.params.bytes.swap(place(one) + byte, place(other) + byte);
    }
    assert_ne!(&broken, launch, "{one} and {other} are equal");
    broken
}

fn two_params_swapped(subject: &Subject) -> Verdict {
    for (op, part, technique, one, other) in [
        ("matmul", "f32 [63, 15]", "matmul_tiled", "m", "n"),
        ("matmul", "f32 [63, 15]", "matmul_tiled", "n", "k"),
        ("softmax", "f32 [3, 65]", "softmax_row", "rows", "length"),
        ("mask_scores", "f32 [2, 3, 7, 11] causal top-left", "mask_scores_each", "seq_q", "seq_kv"),
        ("split_heads", "f32 [2, 7, 3 x 5]", "split_heads_each", "heads", "seq"),
        ("merge_heads", "f32 [2, ", "merge_heads_each", "heads", "seq"),
        ("attention_fused", "f32 b1 h2/2 9x33", "attention_fused", "seq_q", "seq_kv"),
        ("attention_fused", "35x70 d20/24 of 1 causal top-left", "attention_fused", "heads", "kv_heads"),
    ] {
        let prepared = prepared(op, part);
        let launch = launch(&prepared, subject, technique);
        let outcome = prepared.check(&subject.device, &Technique::Gpu(swapped(&launch, one, other)));
        assert!(outcome.failed(), "{technique} with {one} and {other} swapped: {outcome}");
    }
    Ok(Completion::Completed)
}

/// Changing any one size or stride that is not zero must be seen: no param is for nothing.
fn one_param_changed(subject: &Subject) -> Verdict {
    for (op, part, technique, params) in [
        ("matmul", "f32 [63, 15]", "matmul_tiled", &["m", "n", "k", "batch_count", "alpha"][..]),
        ("softmax", "f32 [2, 3, 100]", "softmax_row", &["rows", "length", "scale"]),
        ("split_heads", "f32 [2, 7, 3 x 5]", "split_heads_each", &["count", "heads", "seq", "head_dim"]),
        ("attention_fused", "f32 b2 h6/2 33x40", "attention_fused", &["batch", "kv_heads", "seq_q", "seq_kv", "scale"]),
    ] {
        let prepared = prepared(op, part);
        let launch = launch(&prepared, subject, technique);
        for &param in params {
            let (_, kind) = launch.params.layout.iter().find(|(field, _)| *field == param).expect("a param");
            let at = place(&launch, param);
            let bytes: [u8; 4] = launch.params.bytes[at..][..4].try_into().expect("four bytes");
            // Smaller, so that the kernel stays inside its buffers.
            let changed = match *kind {
                "f32" => (f32::from_le_bytes(bytes) * 0.5).to_le_bytes(),
                _ => (u32::from_le_bytes(bytes) - 1).to_le_bytes(),
            };
            let mut broken = launch.clone();
            broken.params.bytes[at..][..4].copy_from_slice(&changed);
            // A divisor of zero is the device's business, not a control.
            if changed != [0; 4] || param == "batch_count" {
                let outcome = prepared.check(&subject.device, &Technique::Gpu(broken));
                assert!(outcome.failed(), "{technique} with another {param}: {outcome}");
            }
        }
    }
    Ok(Completion::Completed)
}

fn wrong_constant(subject: &Subject) -> Verdict {
    for (op, part, technique, name, value) in [
        ("matmul", "f32 [63, 15]", "matmul_tiled", "TRANSPOSED_B", Constant::Bool(true)),
        ("matmul", "zeros annihilate", "matmul_tiled", "ANNIHILATE", Constant::Bool(false)),
        ("attention_fused", "f32 b1 h1/1 35x37 d31/33", "attention_fused", "HEAD_DIM", Constant::U32(30)),
        ("attention_fused", "f32 b1 h1/1 35x37 d31/33", "attention_fused", "VALUE_DIM", Constant::U32(32)),
    ] {
        let prepared = prepared(op, part);
        let mut launch = launch(&prepared, subject, technique);
        let constant = launch.shader.constants.iter_mut().find(|(constant, _)| *constant == name);
        constant.expect("the shader has it").1 = value;
        let outcome = prepared.check(&subject.device, &Technique::Gpu(launch));
        assert!(matches!(outcome, Outcome::Wrong(_)), "{technique} with {name} = {value:?}: {outcome}");
    }
    Ok(Completion::Completed)
}

/// One element more than there is: the guard bytes after the output must show it, checks in the shader or not.
fn write_past_the_end(subject: &Subject) -> Verdict {
    for (op, part, technique, param) in [
        ("split_heads", "f32 [2, 7, 3 x 5]", "split_heads_each", "count"),
        ("merge_heads", "f32 [2, ", "merge_heads_each", "count"),
        ("softmax", "f32 [3, 2]", "softmax_row", "rows"),
        ("mask_scores", "f32 [2, 3, 7, 11] no mask", "mask_scores_each", "count"),
    ] {
        let prepared = prepared(op, part);
        let mut launch = launch(&prepared, subject, technique);
        let at = place(&launch, param);
        let bytes: [u8; 4] = launch.params.bytes[at..][..4].try_into().expect("four bytes");
        launch.params.bytes[at..][..4].copy_from_slice(&(u32::from_le_bytes(bytes) + 1).to_le_bytes());
        // A grid of one group for each row has no lane for one row more.
        launch.workgroups[0] += 1;
        let outcome = prepared.check(&subject.device, &Technique::Gpu(launch));
        assert_eq!(outcome, Outcome::Overrun, "{technique} with one more in {param}: {outcome}");
    }
    Ok(Completion::Completed)
}

/// Results are rounded, so no tolerance at all must fail.
fn tolerance_of_zero(subject: &Subject) -> Verdict {
    for (op, part) in [("matmul", "f32 [63, 15]"), ("softmax", "f32 [3, 65]"), ("attention_fused", "f32 b1 h2/2 9x33")]
    {
        let mut prepared = prepared(op, part);
        for technique in offered(&prepared.case, subject) {
            let outcome = prepared.check(&subject.device, &technique);
            assert!(matches!(outcome, Outcome::Passed(_)), "{op} at its own tolerance: {outcome}");
        }
        prepared.case.tolerance = Tolerance::of_scale(0.0);
        for technique in offered(&prepared.case, subject) {
            let outcome = prepared.check(&subject.device, &technique);
            assert!(matches!(outcome, Outcome::Wrong(_)), "{op} at a tolerance of zero: {outcome}");
        }
    }
    Ok(Completion::Completed)
}

/// A kernel that knows the answer passes; one changed element, one NaN or one infinity in it does not.
fn native_kernels_that_go_wrong(subject: &Subject) -> Verdict {
    let prepared = prepared("matmul", "f32 [63, 15]");
    let inputs = prepared.case.draw();
    let answer = prepared.case.op.reference(&inputs.iter().collect::<Vec<_>>(), Rows::All).remove(0).cast(Dtype::F32);
    let outcome = |change: &dyn Fn(&mut [f32])| {
        let mut values = answer.as_f32().expect("it was cast to f32").to_vec();
        change(&mut values);
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let copy = move |_: &[View<'_>], outputs: &mut [ViewMut<'_>]| outputs[0].bytes.copy_from_slice(&bytes);
        prepared.check(&subject.device, &Technique::Cpu(CpuKernel { name: "control", run: Arc::new(copy) }))
    };
    assert!(matches!(outcome(&|_| ()), Outcome::Passed(_)));
    for (what, change) in [
        ("one element", &(|values: &mut [f32]| values[1234] += 0.01) as &dyn Fn(&mut [f32])),
        ("NaN", &|values| values[0] = f32::NAN),
        ("infinity", &|values| *values.last_mut().expect("not empty") = f32::INFINITY),
        ("two elements swapped", &|values| values.swap(3, 4)),
    ] {
        let outcome = outcome(change);
        let Outcome::Wrong(comparison) = &outcome else { panic!("{what}: {outcome}") };
        assert!(comparison.failed <= 2, "{what}: {outcome}");
    }
    Ok(Completion::Completed)
}

fn comparison() {
    let wanted: Vec<f64> = (0..24).map(f64::from).collect();
    let tensor = |data: &[f64]| HostTensor::f64(&[2, 3, 4], data.to_vec()).expect("24 elements");
    let outcome = |change: &dyn Fn(&mut Vec<f64>), tolerance| {
        let mut got = wanted.clone();
        change(&mut got);
        compare(&tensor(&got), &tensor(&wanted), tolerance, NanMeans::Nan)
    };
    let tight = Tolerance::of_scale(1e-6);
    assert!(outcome(&|_| (), Tolerance::of_scale(0.0)).passed());
    let changed = outcome(&|got| got[17] += 0.1, tight);
    assert_eq!((changed.passed(), changed.failed, changed.worst_at), (false, 1, vec![1, 1, 1]));
    assert!(outcome(&|got| got[17] += 0.1, Tolerance::of_scale(0.1)).passed());
    for poison in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert!(!outcome(&|got| got[5] = poison, Tolerance::of_scale(1e9)).passed(), "{poison}");
    }
    assert!(!compare(&tensor(&wanted), &tensor(&wanted).cast(Dtype::Bool), tight, NanMeans::Nan).passed());
    let other = tensor(&wanted).reshape(&[4, 6]).expect("24 elements");
    assert!(!compare(&other, &tensor(&wanted), tight, NanMeans::Nan).passed(), "another shape");
    assert!(!outcome(&|_| (), Tolerance::of_scale(f64::NAN)).passed(), "a tolerance that is NaN");
}

/// `wgsl::check` accepts a real launch and refuses it with one thing broken.
fn shader_and_host_disagree() {
    let capabilities = Capabilities::baseline();
    let case = cases(Some("matmul"), Some("f32 [63, 15]")).remove(0);
    let Technique::Gpu(good) = case.op.techniques(&case.descs(), &capabilities).remove(0) else { panic!("a GPU's") };
    wgsl::check(&good, &capabilities).expect("the launch is right before it is broken");
    let edited = |from: &str, to: &str| {
        let mut broken = good.clone();
        let Shader { main, libraries, .. } = &mut broken.shader;
        for source in libraries.iter_mut().chain([main]) {
            source.text = source.text.replace(from, to).leak();
        }
        assert_ne!(broken, good, "`{from}` was not found");
        broken
    };
    let refused = |broken: &Launch, capabilities: &Capabilities, expected: &str| {
        let why = wgsl::check(broken, capabilities).expect_err(expected);
        assert!(why.contains(expected), "wanted `{expected}`, got: {why}");
    };
    for (from, to, expected) in [
        ("m: u32,\n    n: u32,", "n: u32,\n    m: u32,", "the shader's params are"),
        ("alpha: f32,", "alpha: u32,", "Operation Multiply can't work"),
        ("alpha: f32,\n}", "alpha: f32,\n    beta: f32,\n}", "the shader's params are"),
        ("var<storage, read> a:", "var<storage, read_write> a:", "the shader binds"),
        ("@binding(3)", "@binding(4)", "the shader binds"),
        ("@group(0) @binding(1)", "@group(1) @binding(1)", "the shader binds"),
        ("@workgroup_size(256)", "@workgroup_size(512)", "512 invocations"),
        ("array<vec4<f32>, DEPTH * STRIDE>", "array<vec4<f32>, 64u * DEPTH>", "bytes of workgroup memory"),
        ("params.alpha *", "params.beta *", "invalid field accessor"),
    ] {
        refused(&edited(from, to), &capabilities, expected);
    }
    let mut broken = good.clone();
    broken.bindings.outputs[0] += 1;
    refused(&broken, &capabilities, "the shader binds");
    let mut broken = good.clone();
    broken.shader.constants.pop();
    refused(&broken, &capabilities, "the launch does not set it");
    let mut broken = good.clone();
    broken.params.bytes.truncate(16);
    refused(&broken, &capabilities, "for a struct of");
    let mut broken = good.clone();
    broken.workgroups[1] = 70_000;
    refused(&broken, &capabilities, "the limit is 65535");
    let mut broken = good.clone();
    broken.shader.constants.iter_mut().for_each(|(_, value)| {
        if *value == Constant::Scalar(Dtype::F32) {
            *value = Constant::Scalar(Dtype::F16);
        }
    });
    refused(&broken, &capabilities, "needs f16");
}
