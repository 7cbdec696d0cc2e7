//! Every technique of every op: the largest case of each op and dtype in the registry, and problems too large to test often.
//!
//! Results are checked before the clock starts. A figure is GPU time by timestamps where the device has them, else wall
//! time; the device's line says which. Throughput counts the flops of `Op::cost`, or elements where an op has none.

#[path = "common/case.rs"]
mod case;
#[path = "common/mod.rs"]
mod common;

use criterion::{Criterion, criterion_group, criterion_main};
use regard::case::{Case, CaseInput};
use regard::compare::Tolerance;
use regard::ops::{MatMul, MergeHeads, REGISTRY, Softmax, SplitHeads};
use regard::{Device, Dtype};

fn kernels(criterion: &mut Criterion) {
    let cases: Vec<Case> = REGISTRY
        .iter()
        .flat_map(|entry| [Dtype::F32, Dtype::F16].into_iter().filter_map(|dtype| largest((entry.cases)(), dtype)))
        .chain(large())
        .collect();
    for device in common::devices() {
        for case in &cases {
            bench(criterion, &device, case);
        }
    }
}

fn bench(criterion: &mut Criterion, device: &Device, case: &Case) {
    case::check(device, case);
    let mut group = criterion.benchmark_group(format!("{}/{}", common::short(device), case.op.name()));
    for technique in case.op.techniques(&case.descs(), device.capabilities()) {
        let mut plan = case::plan(device, case, technique.name());
        group.throughput(case::throughput(case));
        group.bench_function(format!("{}/{}", technique.name(), case.name), |bencher| {
            bencher.iter_custom(|runs| case::seconds(&mut plan, runs));
        });
    }
    group.finish();
}

/// The case that does most, by flops and then by bytes.
fn largest(cases: Vec<Case>, dtype: Dtype) -> Option<Case> {
    let of_dtype = cases.into_iter().filter(|case| case.inputs[0].desc.dtype == dtype);
    of_dtype.max_by_key(|case| {
        let cost = case.op.cost(&case.descs());
        (cost.flops, cost.bytes())
    })
}

/// Sizes that layers have.
fn large() -> Vec<Case> {
    let normal = |shape: &[usize]| CaseInput::normal(Dtype::F32, shape, 1.0);
    let product = |name: &str, a: &[usize], b: &[usize]| {
        // As the op's own cases: about √k roundings of a sum that grows as √k, times 4 for the tails.
        let k = b[b.len() - 2] as f64;
        let tolerance = Tolerance { of_scale: 1e-7, relative: 0.0, absolute: 4.0 * (k + 1.0) / f64::from(1 << 24) };
        Case::new(name, MatMul::default(), vec![normal(a), normal(b)], tolerance)
    };
    let exact = Tolerance::of_scale(0.0);
    vec![
        product("projection [4096, 200] x [200, 200]", &[4096, 200], &[200, 200]),
        product("square [512, 512] x [512, 512]", &[512, 512], &[512, 512]),
        product("one row [1, 2048] x [2048, 2048]", &[1, 2048], &[2048, 2048]),
        product("scores 16 x [256, 64] x [64, 256]", &[16, 256, 64], &[16, 64, 256]),
        Case::new(
            "scores [4096, 1024]",
            Softmax { scale: 1.0, has_sinks: false },
            vec![normal(&[4096, 1024])],
            Tolerance::of_scale(2e-6),
        ),
        Case::new("[128, 32, 5 x 40]", SplitHeads { heads: 5 }, vec![normal(&[128, 32, 200])], exact),
        Case::new("[128, 5, 32, 40]", MergeHeads, vec![normal(&[128, 5, 32, 40])], exact),
    ]
}

criterion_group! { name = benches; config = common::config(); targets = kernels }
criterion_main!(benches);
