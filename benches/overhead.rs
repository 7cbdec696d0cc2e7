//! What a run costs besides its kernels: building a plan, and encoding and submitting one.
//!
//! Wall time of the host, and the thread's own time for submissions. Targets: a plan for the seed-2 layer under 1 ms with warm
//! pipelines, one for twelve layers of BERT-base under 10 ms; encode and submit of ten steps under 200 µs on a software device, of
//! the seed-2 layer under 60 µs.

#[path = "common/mod.rs"]
mod common;
#[path = "../tests/common/encoder.rs"]
mod encoder;

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use cpu_time::ThreadTime;
use criterion::{Criterion, criterion_group, criterion_main};
use encoder::Encoder;
use regard::capabilities::Backend;
use regard::case::CaseInput;
use regard::compare::{NanMeans, Tolerance, compare};
use regard::ops::MatMul;
use regard::{Attention, Dtype, Graph, HostTensor, Layout, Plan, Tensor, TensorDesc, reference};

/// The layer of `shared/seeds/002`: batch 128, seq 32, width 200, 5 heads; `batch` is smaller for the check.
fn layer(batch: usize, weights: &[Arc<HostTensor>]) -> regard::Result<Graph> {
    let mut graph = Graph::new();
    let x = graph.input("x", TensorDesc::new(Dtype::F32, [batch, 32, 200]))?;
    let linear = |graph: &mut Graph, x: Tensor, index: usize| {
        let w = graph.weight(&format!("w{index}"), weights[2 * index].clone())?;
        let b = graph.weight(&format!("b{index}"), weights[2 * index + 1].clone())?;
        graph.matmul(x, w, Some(b), MatMul::default())
    };
    let [q, k, v] = [linear(&mut graph, x, 0)?, linear(&mut graph, x, 1)?, linear(&mut graph, x, 2)?];
    // Heads are read and written where the products have them.
    let layout = Layout::Merged { heads: 5 };
    let y = graph.attention(q, k, v, &Attention { q_layout: layout, kv_layout: layout, ..Attention::default() })?;
    let y = linear(&mut graph, y, 3)?;
    graph.output("y", y)?;
    Ok(graph)
}

fn weights() -> Vec<Arc<HostTensor>> {
    let shapes = (0..4).flat_map(|_| [vec![200, 200], vec![200]]);
    shapes.zip(1..).map(|(shape, seed)| Arc::new(CaseInput::normal(Dtype::F32, &shape, 0.07).draw(seed))).collect()
}

fn plan_building(criterion: &mut Criterion) {
    let weights = weights();
    for device in common::devices() {
        let small = layer(2, &weights).expect("shapes that fit");
        let x = CaseInput::normal(Dtype::F32, &[2, 32, 200], 1.0).draw(9);
        let got = Plan::new(&device, &small).and_then(|mut plan| plan.run(&[("x", &x)])).expect("the layer runs");
        let wanted = reference::run(&small, &[("x", &x)]).expect("the layer has a reference");
        // Two products of 200 terms in f32 after one another.
        let comparison = compare(&got["y"], &wanted["y"], Tolerance::of_scale(1e-5), NanMeans::Nan);
        assert!(comparison.passed(), "{device}: {comparison}");

        let graph = layer(128, &weights).expect("shapes that fit");
        // Keeps the weights on the device, and the pipelines are compiled from here on.
        let warm = Plan::new(&device, &graph).expect("the layer fits");
        let mut group = criterion.benchmark_group(format!("{}/plan building", common::short(&device)));
        group.bench_function("graph of the seed-2 layer", |bencher| bencher.iter(|| layer(128, black_box(&weights))));
        group.bench_function("plan of the seed-2 layer", |bencher| {
            // Freeing the buffers is not building.
            bencher.iter_with_large_drop(|| Plan::new(&device, &graph).expect("the layer fits"));
        });
        group.bench_function("preview of the seed-2 layer", |bencher| {
            bencher.iter(|| Plan::preview(&device, &graph, &Default::default()).expect("the layer fits"));
        });
        group.finish();
        drop(warm);
    }
}

/// Twelve layers of BERT-base: what building a plan costs where there are many steps.
fn model_building(criterion: &mut Criterion) {
    let weights = Encoder::BERT_BASE.weights();
    for device in common::devices() {
        let graph = Encoder::BERT_BASE.graph(&weights).expect("shapes that fit");
        let warm = Plan::new(&device, &graph).expect("the model fits");
        eprintln!("{}: {} steps", common::short(&device), warm.describe().steps.len());
        let mut group = criterion.benchmark_group(format!("{}/BERT-base, 12 layers", common::short(&device)));
        group.bench_function("graph", |bencher| bencher.iter(|| Encoder::BERT_BASE.graph(black_box(&weights))));
        group.bench_function("preview", |bencher| {
            bencher.iter(|| Plan::preview(&device, &graph, &Default::default()).expect("the model fits"));
        });
        group.bench_function("plan", |bencher| {
            bencher.iter_with_large_drop(|| Plan::new(&device, &graph).expect("the model fits"));
        });
        group.finish();
        drop(warm);
    }
}

/// The time that this thread works on one submission of the plan, which is then waited for. A software device's threads take the
/// cores as soon as they have something to run, often before `submit` has returned; on the clock that would count as well.
fn submissions(plan: &mut Plan, runs: u64) -> Duration {
    let timed = (0..runs).map(|_| {
        let start = ThreadTime::now();
        plan.submit().expect("the device is there");
        let elapsed = start.elapsed();
        plan.read("y").expect("the device is there");
        elapsed
    });
    timed.sum()
}

fn encode_and_submit(criterion: &mut Criterion) {
    for device in common::devices() {
        let mut graph = Graph::new();
        let x = graph.input("x", TensorDesc::new(Dtype::F32, [1, 4])).expect("a new name");
        let y = (0..10).try_fold(x, |y, _| graph.softmax(y, 1.0)).expect("shapes that fit");
        graph.output("y", y).expect("the only output");
        let mut plan = Plan::new(&device, &graph).expect("ten small steps");
        let x = CaseInput::normal(Dtype::F32, &[1, 4], 1.0).draw(1);
        let got = plan.run(&[("x", &x)]).expect("the device is there");
        let wanted = reference::run(&graph, &[("x", &x)]).expect("softmax has a reference");
        assert!(compare(&got["y"], &wanted["y"], Tolerance::of_scale(1e-5), NanMeans::Nan).passed());

        let mut group = criterion.benchmark_group(format!("{}/ten steps", common::short(&device)));
        group.bench_function("encode and submit", |bencher| bencher.iter_custom(|runs| submissions(&mut plan, runs)));
        group.bench_function("write, run and read", |bencher| {
            bencher.iter(|| plan.run(&[("x", &x)]).expect("the device is there"));
        });
        group.finish();
    }
}

/// The layer itself, and the same commands over one sequence: a software device runs the layer on the host's cores, whose caches
/// and threads it takes from the next encoding.
fn submit_the_layer(criterion: &mut Criterion) {
    let weights = weights();
    for device in common::devices().into_iter().filter(|device| device.capabilities().backend == Backend::Gpu) {
        let mut group = criterion.benchmark_group(format!("{}/seed-2 layer", common::short(&device)));
        for batch in [128, 1] {
            let graph = layer(batch, &weights).expect("shapes that fit");
            let mut plan = Plan::new(&device, &graph).expect("the layer fits");
            let x = CaseInput::normal(Dtype::F32, &[batch, 32, 200], 1.0).draw(9);
            plan.write("x", &x).expect("the device is there");
            let name = format!("encode and submit, batch {batch}");
            group.bench_function(name, |bencher| bencher.iter_custom(|runs| submissions(&mut plan, runs)));
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = common::config();
    targets = plan_building, model_building, encode_and_submit, submit_the_layer
}
criterion_main!(benches);
