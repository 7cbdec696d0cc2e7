//! Attention as users call it, fused and unfused, over shapes of layers; checked against the reference, then timed.
//!
//! Throughput counts the flops of the fused op, which are those of visited scores only, for both strategies.

#[path = "common/case.rs"]
mod case;
#[path = "common/mod.rs"]
mod common;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use regard::case::{Case, CaseInput};
use regard::compare::{NanMeans, Tolerance, compare};
use regard::mask::Masking;
use regard::op::Rows;
use regard::ops::{AttentionFused, REGISTRY, ScoreRule};
use regard::{Attention, Causal, Device, Dtype, Graph, HostTensor, Plan, Strategy};

/// `[batch, heads, kv_heads, seq_q, seq_kv, head_dim]`.
struct Problem {
    name: &'static str,
    sizes: [usize; 6],
    causal: bool,
    dtype: Dtype,
}

const PROBLEMS: [Problem; 7] = [
    Problem { name: "seed-2 layer", sizes: [128, 5, 5, 32, 32, 40], causal: false, dtype: Dtype::F32 },
    Problem { name: "heads of 64", sizes: [1, 8, 8, 512, 512, 64], causal: false, dtype: Dtype::F32 },
    Problem { name: "heads of 64, causal", sizes: [1, 8, 8, 512, 512, 64], causal: true, dtype: Dtype::F32 },
    Problem { name: "heads of 128", sizes: [1, 4, 4, 384, 384, 128], causal: false, dtype: Dtype::F32 },
    Problem { name: "grouped heads", sizes: [1, 8, 2, 384, 384, 64], causal: true, dtype: Dtype::F32 },
    Problem { name: "one query", sizes: [1, 16, 4, 1, 4096, 64], causal: false, dtype: Dtype::F32 },
    Problem { name: "heads of 64 in f16", sizes: [1, 8, 8, 512, 512, 64], causal: true, dtype: Dtype::F16 },
];

fn attention(criterion: &mut Criterion) {
    for device in common::devices() {
        let mut group = criterion.benchmark_group(format!("{}/attention", common::short(&device)));
        for problem in &PROBLEMS {
            if problem.dtype == Dtype::F16 && !device.capabilities().f16 {
                eprintln!("{}: skipped, the device has no f16 in shaders", problem.name);
                continue;
            }
            let case = problem.case();
            let inputs = case.draw();
            let every = case.op.reference(&inputs.iter().collect::<Vec<_>>(), Rows::Every(7)).remove(0);
            group.throughput(Throughput::Elements(case.op.cost(&case.descs()).flops));
            for strategy in [Strategy::Fused, Strategy::Unfused] {
                let mut plan = problem.plan(&device, strategy, &case, &inputs);
                plan.submit().expect("the device is there");
                let got = plan.read("y").expect("the device is there");
                let comparison = compare(&got, &every, case.tolerance, NanMeans::NotSampled);
                assert!(comparison.passed(), "{} {strategy:?} on {device}: {comparison}", problem.name);
                group.bench_function(BenchmarkId::new(format!("{strategy:?}"), problem.name), |bencher| {
                    bencher.iter_custom(|runs| case::seconds(&mut plan, runs));
                });
            }
        }
        group.finish();
    }
    // The op's own largest case, so that the bench and the tests share one.
    let cases = REGISTRY.iter().filter(|entry| entry.name == "attention_fused").flat_map(|entry| (entry.cases)());
    let largest = cases.max_by_key(|case| case.op.cost(&case.descs()).flops).expect("the op has cases");
    for device in common::devices() {
        case::check(&device, &largest);
        for technique in largest.op.techniques(&largest.descs(), device.capabilities()) {
            let mut plan = case::plan(&device, &largest, technique.name());
            let mut group = criterion.benchmark_group(format!("{}/attention_fused", common::short(&device)));
            group.throughput(case::throughput(&largest));
            group.bench_function(BenchmarkId::new(technique.name(), &largest.name), |bencher| {
                bencher.iter_custom(|runs| case::seconds(&mut plan, runs));
            });
            group.finish();
        }
    }
}

impl Problem {
    fn masking(&self) -> Masking {
        Masking { causal: self.causal.then_some(Causal::BottomRight), ..Masking::default() }
    }

    fn case(&self) -> Case {
        let [batch, heads, kv_heads, seq_q, seq_kv, head_dim] = self.sizes;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let rule = ScoreRule { masking: self.masking(), ..ScoreRule::default() };
        let op = AttentionFused { scale, rule, ..AttentionFused::default() };
        let shapes =
            [[batch, heads, seq_q, head_dim], [batch, kv_heads, seq_kv, head_dim], [batch, kv_heads, seq_kv, head_dim]];
        let inputs = shapes.iter().map(|shape| CaseInput::normal(self.dtype, shape, 1.0)).collect();
        // Ten roundings of √head_dim terms in a score, in exp as much relatively, and one of storage.
        let storage = if self.dtype == Dtype::F16 { (-11.0_f64).exp2() } else { 0.0 };
        let tolerance = (64.0 + 10.0 * (head_dim as f64).sqrt()) * (-24.0_f64).exp2() + storage;
        Case::new(self.name, op, inputs, Tolerance::of_scale(tolerance))
    }

    fn plan(&self, device: &Device, strategy: Strategy, case: &Case, inputs: &[HostTensor]) -> Plan {
        let mut graph = Graph::new();
        let mut input = |name: &str, index: usize| graph.input(name, case.descs()[index].clone()).expect("a new name");
        let [q, k, v] = [input("q", 0), input("k", 1), input("v", 2)];
        let options = Attention { causal: self.masking().causal, strategy, ..Attention::default() };
        let y = graph.attention(q, k, v, &options).expect("shapes that fit");
        graph.output("y", y).expect("the only output");
        let mut plan = Plan::new(device, &graph).expect("a problem within the limits");
        for (name, value) in ["q", "k", "v"].iter().zip(inputs) {
            plan.write(name, value).expect("the device is there");
        }
        plan
    }
}

criterion_group! { name = benches; config = common::config(); targets = attention }
criterion_main!(benches);
