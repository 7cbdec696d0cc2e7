//! Memory that is changed in place: what it is called, who may read it, and that kernels which leave it as it was are seen.

mod common;

use std::process::ExitCode;
use std::sync::Arc;

use common::{Subject, Verdict, each_device, run};
use libtest_mimic::{Completion, Failed, Trial};
use regard::case::CaseInput;
use regard::compare::{NanMeans, Tolerance, compare};
use regard::op::{CpuKernel, Launch, Technique};
use regard::ops::{AppendOptions, KvCache};
use regard::verify::{Outcome, Prepared, cases};
use regard::{DeviceTensor, Dtype, Graph, HostTensor, Plan, Result, Tensor, TensorDesc, reference};

fn main() -> ExitCode {
    let mut trials = Vec::new();
    for (name, body) in [
        ("outputs of changed memory", outputs_of_changed_memory as fn(&Subject) -> Verdict),
        ("intermediates that are changed", changed_intermediates),
        ("binding changed memory", binding_changed_memory),
        ("writing changed memory", writing_changed_memory),
        ("two threads that change each other's memory", two_threads),
        ("kernels that go wrong in place", kernels_that_go_wrong),
    ] {
        trials.extend(each_device(name, body));
    }
    for (name, build, expected) in refused_graphs() {
        trials.push(Trial::test(format!("refused: {name}"), move || match build() {
            Err(error) if error.to_string() == expected => Ok(()),
            Err(error) => Err(format!("wanted: {expected}\n   got: {error}").into()),
            Ok(()) => Err(format!("nothing was refused; wanted: {expected}").into()),
        }));
    }
    run(trials)
}

fn desc(dtype: Dtype, shape: &[usize]) -> TensorDesc {
    TensorDesc::new(dtype, shape)
}

/// Inputs of two sequences with room for four rows of one element each.
fn cache(graph: &mut Graph) -> Result<KvCache> {
    let rows = desc(Dtype::F32, &[2, 1, 4, 1]);
    Ok(KvCache {
        keys: graph.input("keys", rows.clone())?,
        values: graph.input("values", rows)?,
        lengths: graph.input("lengths", desc(Dtype::U32, &[2]))?,
        scales: None,
        block_table: None,
    })
}

/// An output that is changed memory is that memory; the definition gives the changed value.
fn outputs_of_changed_memory(subject: &Subject) -> Verdict {
    let mut graph = Graph::new();
    let shape = desc(Dtype::F32, &[2, 3]);
    let (x, y) = (graph.input("x", shape.clone())?, graph.input("y", shape)?);
    let doubled = graph.softmax(x, 2.0)?;
    let changed = graph.assign(x, y)?;
    let flat = graph.reshape(changed, &[6])?;
    for (name, tensor) in [("before", doubled), ("x after", changed), ("flat", flat)] {
        graph.output(name, tensor)?;
    }
    let mut plan = Plan::new(&subject.device, &graph)?;
    let [x, y] = [1, 2].map(|seed| CaseInput::normal(Dtype::F32, &[2, 3], 1.0).draw(seed));
    let resident = subject.device.upload(&x)?;
    plan.bind("x", &resident)?;
    let got = plan.run(&[("y", &y)])?;
    let wanted = reference::run(&graph, &[("x", &x), ("y", &y)])?;
    for (name, wanted) in &wanted {
        let comparison = compare(&got[name], wanted, Tolerance::of_scale(1e-6), NanMeans::Nan);
        assert!(comparison.passed(), "{name}: {comparison}");
    }
    assert_eq!(subject.device.download(&resident)?, y, "no copy");
    let other = subject.device.upload(&x)?;
    plan.bind("x after", &other)?;
    plan.submit()?;
    assert_eq!(subject.device.download(&other)?, y);
    assert_eq!(plan.describe().output_bytes, 24, "only what is before has memory of its own");
    Ok(Completion::Completed)
}

/// What is changed lives as long as what it became, and others stay out of its memory.
fn changed_intermediates(subject: &Subject) -> Verdict {
    let mut graph = Graph::new();
    let x = graph.input("x", desc(Dtype::F32, &[4, 5]))?;
    let mut chain = graph.softmax(x, 1.0)?;
    let kept = graph.softmax(chain, 3.0)?;
    let other = graph.softmax(chain, -1.0)?;
    let kept = graph.assign(kept, other)?;
    for _ in 0..4 {
        chain = graph.softmax(chain, 2.0)?;
    }
    let joined = graph.concat(kept, chain, 0)?;
    graph.output("joined", joined)?;
    let input = CaseInput::normal(Dtype::F32, &[4, 5], 1.0).draw(1);
    let got = Plan::new(&subject.device, &graph)?.run(&[("x", &input)])?;
    let wanted = reference::run(&graph, &[("x", &input)])?;
    let comparison = compare(&got["joined"], &wanted["joined"], Tolerance::of_scale(1e-5), NanMeans::Nan);
    assert!(comparison.passed(), "{comparison}");
    Ok(Completion::Completed)
}

fn binding_changed_memory(subject: &Subject) -> Verdict {
    let mut graph = Graph::new();
    let row = desc(Dtype::F32, &[2, 1, 1, 1]);
    let (k, v) = (graph.input("k", row.clone())?, graph.input("v", row.clone())?);
    let cache = cache(&mut graph)?;
    graph.append_kv(&cache, k, v, &AppendOptions::default())?;
    let mut plan = Plan::new(&subject.device, &graph)?;
    let zeros = |desc| subject.device.upload(&HostTensor::zeros(desc));
    let rows = || desc(Dtype::F32, &[2, 1, 4, 1]);
    let (keys, values) = (zeros(rows())?, zeros(rows())?);
    plan.bind("keys", &keys)?;
    let why = plan.bind("values", &keys).expect_err("both are changed");
    let expected = "plan: `values` and `keys` are one tensor, and a run would write it while it reads it";
    assert_eq!(why.to_string(), expected);
    plan.bind("values", &values)?;
    let why = plan.bind("keys", &values).expect_err("the other way round");
    let expected = "plan: `keys` and `values` are one tensor, and a run would write it while it reads it";
    assert_eq!(why.to_string(), expected);
    // What is only read may be one.
    let ones = subject.device.upload(&HostTensor::f32(&[2, 1, 1, 1], vec![1.0; 2])?)?;
    plan.bind("k", &ones)?;
    plan.bind("v", &ones)?;
    plan.write("lengths", &HostTensor::u32(&[2], vec![0, 2])?)?;
    plan.submit()?;
    let wanted = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0];
    for tensor in [&keys, &values] {
        assert_eq!(subject.device.download(tensor)?.to_f64(), wanted);
    }
    Ok(Completion::Completed)
}

/// A written input keeps what runs make of it until it is written again, an odd number of bytes too.
fn writing_changed_memory(subject: &Subject) -> Verdict {
    let mut graph = Graph::new();
    let (x, y) = (graph.input("x", desc(Dtype::Bool, &[7]))?, graph.input("y", desc(Dtype::Bool, &[7]))?);
    graph.assign(x, y)?;
    let mut plan = Plan::new(&subject.device, &graph)?;
    let [ones, zeros] = [true, false].map(|value| HostTensor::bool(&[7], vec![value; 7]));
    let (ones, zeros) = (ones?, zeros?);
    plan.write("x", &ones)?;
    let x = |plan: &Plan| subject.device.download(&plan.tensor("x")?);
    assert_eq!(plan.submit().expect_err("y is missing").to_string(), "plan: input `y` was not given");
    plan.write("y", &zeros)?;
    plan.submit()?;
    assert_eq!(x(&plan)?, zeros);
    plan.write("y", &ones)?;
    assert!(plan.run(&[])?.is_empty(), "there is no output, and the run is for what it changes");
    assert_eq!(x(&plan)?, ones);
    plan.write("y", &zeros)?;
    plan.write("x", &ones)?;
    plan.profile()?;
    assert_eq!(x(&plan)?, zeros);
    Ok(Completion::Completed)
}

/// What is changed holds the input before: a kernel that does nothing, or mistakes one param for another, must not pass.
fn kernels_that_go_wrong(subject: &Subject) -> Verdict {
    for (op, case) in
        [("append_kv", "plain f32 into f32"), ("append_kv", "paged f32 into i8"), ("assign", "f32 [3, 257]")]
    {
        let prepared = Prepared::new(cases(Some(op), Some(case)).remove(0));
        let offered = prepared.case.op.techniques(&prepared.case.descs(), subject.device.capabilities());
        for technique in offered {
            let outcome = prepared.check(&subject.device, &technique);
            assert!(matches!(outcome, Outcome::Passed(_)), "{op}, {case} before it is broken: {outcome}");
            let idle = match technique.clone() {
                Technique::Gpu(launch) => Technique::Gpu(Launch { workgroups: [0; 3], ..launch }),
                Technique::Cpu(kernel) => Technique::Cpu(CpuKernel { run: Arc::new(|_, _| ()), ..kernel }),
            };
            let outcome = prepared.check(&subject.device, &idle);
            assert!(matches!(outcome, Outcome::Wrong(_)), "{op}, {case}, nothing written: {outcome}");
            let Technique::Gpu(launch) = technique else { continue };
            for (one, other) in [("k_head", "k_row"), ("v_head", "v_row"), ("head_dim", "head_dim_v")] {
                if op == "append_kv" {
                    let outcome = prepared.check(&subject.device, &Technique::Gpu(swapped(&launch, one, other)));
                    assert!(outcome.failed(), "{case} with {one} and {other} swapped: {outcome}");
                }
            }
        }
    }
    Ok(Completion::Completed)
}

/// The launch with two of its params exchanged.
fn swapped(launch: &Launch, one: &str, other: &str) -> Launch {
    let place = |name| 4 * launch.params.layout.iter().position(|(field, _)| *field == name).expect("a param");
    let mut broken = launch.clone();
    (0..4).for_each(|byte| broken.params.bytes.swap(place(one) + byte, place(other) + byte));
    broken
}

/// Each plan reads what the other writes: they take turns, and neither waits for ever.
fn two_threads(subject: &Subject) -> Verdict {
    let tensors = [1, 2].map(|seed| subject.device.upload(&CaseInput::normal(Dtype::F32, &[300], 1.0).draw(seed)));
    let [a, b] = tensors;
    let (a, b) = (a?, b?);
    let work = |target: &DeviceTensor, value: &DeviceTensor| -> std::result::Result<(), Failed> {
        let mut graph = Graph::new();
        let (x, y) = (graph.input("x", desc(Dtype::F32, &[300]))?, graph.input("y", desc(Dtype::F32, &[300]))?);
        graph.assign(x, y)?;
        let mut plan = Plan::new(&subject.device, &graph)?;
        plan.bind("x", target)?;
        plan.bind("y", value)?;
        for _ in 0..100 {
            plan.submit()?;
            plan.run(&[])?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads = [(&a, &b), (&b, &a)].map(|(target, value)| scope.spawn(move || work(target, value)));
        threads.into_iter().try_for_each(|thread| thread.join().expect("the thread did not panic"))
    })?;
    assert_eq!(subject.device.download(&a)?, subject.device.download(&b)?, "whoever came first, both are alike");
    Ok(Completion::Completed)
}

type Refused = (&'static str, fn() -> Result<()>, &'static str);

/// A graph with inputs x and y and a weight w, all f32 `[2]`.
fn three() -> Result<(Graph, [Tensor; 3])> {
    let mut graph = Graph::new();
    let (x, y) = (graph.input("x", desc(Dtype::F32, &[2]))?, graph.input("y", desc(Dtype::F32, &[2]))?);
    let w = graph.weight("w", HostTensor::f32(&[2], vec![1.0, 2.0])?)?;
    Ok((graph, [x, y, w]))
}

fn refused_graphs() -> Vec<Refused> {
    vec![
        (
            "changing a weight",
            || {
                let (mut graph, [x, _, w]) = three()?;
                graph.assign(w, x).map(drop)
            },
            "graph: assign changes `w` f32 [2] in place, and it is a weight or constant; give it as an input",
        ),
        (
            "changing a constant",
            || {
                let (mut graph, [x, ..]) = three()?;
                let constant = graph.constant(HostTensor::f32(&[1, 2], vec![1.0, 2.0])?)?;
                let constant = graph.reshape(constant, &[2])?;
                graph.assign(constant, x).map(drop)
            },
            "graph: assign changes f32 [1, 2] in place, and it is a weight or constant; give it as an input",
        ),
        (
            "reading what was changed",
            || {
                let (mut graph, [x, y, _]) = three()?;
                graph.assign(x, y)?;
                graph.softmax(x, 1.0).map(drop)
            },
            "graph: softmax: `x` was changed in place by assign; use what that returned",
        ),
        (
            "reading a reshape of what was changed",
            || {
                let (mut graph, [x, y, _]) = three()?;
                let h = graph.softmax(x, 1.0)?;
                let tall = graph.reshape(h, &[2, 1])?;
                graph.assign(h, y)?;
                graph.softmax(tall, 1.0).map(drop)
            },
            "graph: softmax: a tensor was changed in place by assign; use what that returned",
        ),
        (
            "naming what was changed",
            || {
                let (mut graph, [x, y, _]) = three()?;
                graph.assign(x, y)?;
                graph.output("out", x)
            },
            "graph: output `out`: `x` was changed in place by assign; use what that returned",
        ),
        (
            "changing it again",
            || {
                let (mut graph, [x, y, w]) = three()?;
                graph.assign(x, y)?;
                graph.assign(x, w).map(drop)
            },
            "graph: assign: `x` was changed in place by assign; use what that returned",
        ),
        (
            "changing an output",
            || {
                let (mut graph, [x, y, _]) = three()?;
                graph.output("out", x)?;
                graph.assign(x, y).map(drop)
            },
            "graph: assign changes `x` f32 [2] in place, and output `out` keeps it; name what assign returns instead",
        ),
        (
            "changing what is read by the same op",
            || {
                let (mut graph, [x, ..]) = three()?;
                graph.assign(x, x).map(drop)
            },
            "graph: assign changes `x` f32 [2] in place, and is given it twice",
        ),
        (
            "one cache for keys and values",
            || {
                let mut graph = Graph::new();
                let cache = cache(&mut graph)?;
                let k = graph.input("k", desc(Dtype::F32, &[2, 1, 1, 1]))?;
                let cache = KvCache { values: cache.keys, ..cache };
                graph.append_kv(&cache, k, k, &AppendOptions::default()).map(drop)
            },
            "graph: append_kv changes `keys` f32 [2, 1, 4, 1] in place, and is given it twice",
        ),
        (
            "a cache that was appended to before",
            || {
                let mut graph = Graph::new();
                let cache = cache(&mut graph)?;
                let k = graph.input("k", desc(Dtype::F32, &[2, 1, 1, 1]))?;
                graph.append_kv(&cache, k, k, &AppendOptions::default())?;
                graph.append_kv(&cache, k, k, &AppendOptions::default()).map(drop)
            },
            "graph: append_kv: `keys` was changed in place by append_kv; use what that returned",
        ),
    ]
}
