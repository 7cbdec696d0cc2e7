//! Plans: every way of running one gives the same numbers, resident tensors are not copied, nothing is made in a run.

mod common;
#[path = "common/embed.rs"]
mod embed;

use std::process::ExitCode;
use std::sync::Arc;

use common::{Subject, Verdict, each_device, each_of, run};
use embed::{ALL_FEATURES, wgpu_device};
use libtest_mimic::{Completion, Failed, Trial};
use regard::capabilities::Backend;
use regard::case::CaseInput;
use regard::compare::{NanMeans, Tolerance, compare};
use regard::ops::MatMul;
use regard::plan::Clock;
use regard::{Attention, Device, DeviceTensor, Dtype, Graph, HostTensor, Plan, TensorDesc, reference};

fn main() -> ExitCode {
    let mut trials = vec![Trial::test("devices and plans can be sent and shared", sendable)];
    for (name, body) in [
        ("every way of running", every_way_of_running as fn(&Subject) -> Verdict),
        ("resident tensors", resident_tensors),
        ("one plan's output is another's input", chained_plans),
        ("inputs keep their values", inputs_keep_their_values),
        ("no buffer is made in a run", no_buffer_is_made_in_a_run),
        ("plans share weights", plans_share_weights),
        ("profile has an entry for each step", profile),
        ("description", description),
        ("aliased memory is refused", aliased_memory_is_refused),
        ("outputs that are inputs or reshapes", outputs_that_are_inputs),
        ("two threads", two_threads),
        ("futures that are dropped", dropped_futures),
    ] {
        trials.extend(each_device(name, body));
    }
    trials.extend(each_of(&[Backend::Gpu], "caller's encoder", callers_encoder));
    trials.extend(each_of(&[Backend::Gpu], "caller's buffers", callers_buffers));
    run(trials)
}

/// A device of a trial's own, for counting buffers while other trials make theirs.
fn fresh(subject: &Subject) -> Result<Device, Failed> {
    match subject.device.capabilities().backend {
        Backend::Cpu => Ok(Device::cpu()),
        Backend::Gpu => Ok(wgpu_device(subject, ALL_FEATURES)?.2),
    }
}

/// Fails to compile where it fails.
fn sendable() -> Result<(), Failed> {
    fn check<T: Send + Sync>() {}
    check::<Device>();
    check::<Plan>();
    check::<DeviceTensor>();
    check::<Graph>();
    Ok(())
}

/// softmax(x · w) twice, w being a weight: `[6, 10]` in, `[6, 10]` out, an odd number of f32 rows.
fn layer(w: &Arc<HostTensor>) -> regard::Result<Graph> {
    let mut graph = Graph::new();
    let x = graph.input("x", TensorDesc::new(Dtype::F32, [6, 10]))?;
    let w = graph.weight("w", w.clone())?;
    let h = graph.matmul(x, w, None, MatMul::default())?;
    let h = graph.softmax(h, 2.0)?;
    let y = graph.matmul(h, w, None, MatMul::default())?;
    graph.output("y", y)?;
    Ok(graph)
}

fn weight() -> Arc<HostTensor> {
    Arc::new(CaseInput::normal(Dtype::F32, &[10, 10], 1.0).draw(7))
}

fn x(seed: u64) -> HostTensor {
    CaseInput::normal(Dtype::F32, &[6, 10], 1.0).draw(seed)
}

/// What the layer gives for x: sums of ten terms of magnitude 1, rounded in f32.
fn assert_right(w: &Arc<HostTensor>, x: &HostTensor, got: &HostTensor, how: &str) {
    let wanted = reference::run(&layer(w).expect("shapes that fit"), &[("x", x)]).expect("x is given");
    let comparison = compare(got, &wanted["y"], Tolerance::of_scale(1e-5), NanMeans::Nan);
    assert!(comparison.passed(), "{how}: {comparison}");
}

fn every_way_of_running(subject: &Subject) -> Verdict {
    let w = weight();
    let mut plan = Plan::new(&subject.device, &layer(&w)?)?;
    let first = plan.run(&[("x", &x(1))])?;
    assert_right(&w, &x(1), &first["y"], "run");
    let future = pollster::block_on(plan.run_async(&[("x", &x(1))]))?;
    assert_eq!(future, first, "run_async");
    plan.write("x", &x(2))?;
    plan.submit()?;
    assert_right(&w, &x(2), &plan.read("y")?, "write, submit, read");
    assert_eq!(plan.read("y")?, plan.read("y")?, "reading twice");
    plan.write("x", &x(3))?;
    plan.write("x", &x(1))?;
    plan.submit()?;
    plan.submit()?;
    assert_eq!(plan.read("y")?, first["y"], "the last write counts, and a run can be repeated");
    plan.measure()?;
    assert_eq!(plan.read("y")?, first["y"], "measure");
    plan.profile()?;
    assert_eq!(plan.read("y")?, first["y"], "profile");
    Ok(Completion::Completed)
}

fn callers_encoder(subject: &Subject) -> Verdict {
    let (device, queue, regard) = wgpu_device(subject, ALL_FEATURES)?;
    let w = weight();
    let mut plan = Plan::new(&regard, &layer(&w)?)?;
    let mut encoder = device.create_command_encoder(&Default::default());
    let why = plan.encode(&mut encoder).expect_err("x is missing");
    assert_eq!(why.to_string(), "plan: input `x` was not given");
    for seed in 1..4 {
        plan.write("x", &x(seed))?;
        let mut encoder = device.create_command_encoder(&Default::default());
        plan.encode(&mut encoder)?;
        queue.submit([encoder.finish()]);
        assert_right(&w, &x(seed), &plan.read("y")?, "encode");
    }
    let mut native = Plan::new(&Device::cpu(), &layer(&w)?)?;
    native.write("x", &x(1))?;
    let why = native.encode(&mut device.create_command_encoder(&Default::default())).expect_err("no commands");
    assert_eq!(why.to_string(), "plan: a plan of the CPU backend has no commands to encode");
    Ok(Completion::Completed)
}

/// Buffers that the caller made, as input and as output, in the caller's encoder with a copy before the plan's steps.
fn callers_buffers(subject: &Subject) -> Verdict {
    let (device, queue, regard) = wgpu_device(subject, ALL_FEATURES)?;
    let w = weight();
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
    let buffer = |size, usage| {
        device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
    };
    let desc = TensorDesc::new(Dtype::F32, [6, 10]);
    let (source, input, output) = (buffer(240, usage), buffer(240, usage), buffer(256, usage));
    queue.write_buffer(&source, 0, x(5).bytes());
    let mut plan = Plan::new(&regard, &layer(&w)?)?;
    plan.bind("x", &DeviceTensor::from_wgpu(desc.clone(), input.clone())?)?;
    let result = DeviceTensor::from_wgpu(desc.clone(), output)?;
    plan.bind("y", &result)?;
    let mut encoder = device.create_command_encoder(&Default::default());
    encoder.copy_buffer_to_buffer(&source, 0, &input, 0, 240);
    plan.encode(&mut encoder)?;
    queue.submit([encoder.finish()]);
    assert_right(&w, &x(5), &regard.download(&result)?, "the caller's output buffer");
    assert_right(&w, &x(5), &plan.read("y")?, "read from the caller's buffer");
    assert_eq!(plan.tensor("y")?.as_wgpu(), result.as_wgpu());
    let why = DeviceTensor::from_wgpu(desc.clone(), buffer(236, usage)).expect_err("too small");
    assert_eq!(why.to_string(), "tensor: f32 [6, 10] needs 240 bytes, the buffer has 236");
    let why = DeviceTensor::from_wgpu(desc, buffer(240, wgpu::BufferUsages::STORAGE)).expect_err("usages are missing");
    assert!(why.to_string().contains("it needs"), "{why}");
    Ok(Completion::Completed)
}

fn resident_tensors(subject: &Subject) -> Verdict {
    let device = fresh(subject)?;
    let w = weight();
    let mut plan = Plan::new(&device, &layer(&w)?)?;
    let resident = device.upload(&x(4))?;
    let result = device.upload(&HostTensor::zeros(TensorDesc::new(Dtype::F32, [6, 10])))?;
    let before = device.buffers_created();
    plan.bind("x", &resident)?;
    plan.bind("y", &result)?;
    plan.submit()?;
    assert_right(&w, &x(4), &plan.read("y")?, "bound tensors");
    assert_eq!(device.buffers_created(), before, "binding makes no buffer");
    assert_right(&w, &x(4), &device.download(&result)?, "the bound output");
    assert_eq!(device.download(&resident)?, x(4), "an input is not written");
    // A write goes into the bound tensor.
    plan.write("x", &x(9))?;
    plan.submit()?;
    assert_right(&w, &x(9), &plan.read("y")?, "a write after a bind");
    let wrong = device.upload(&HostTensor::zeros(TensorDesc::new(Dtype::F32, [10, 6])))?;
    let why = plan.bind("x", &wrong).expect_err("another shape");
    assert_eq!(why.to_string(), "plan: `x` is f32 [6, 10], got f32 [10, 6]");
    Ok(Completion::Completed)
}

fn chained_plans(subject: &Subject) -> Verdict {
    let w = weight();
    let (mut first, mut second) = (Plan::new(&subject.device, &layer(&w)?)?, Plan::new(&subject.device, &layer(&w)?)?);
    second.bind("x", &first.tensor("y")?)?;
    for seed in [1, 2] {
        first.write("x", &x(seed))?;
        first.submit()?;
        second.submit()?;
        let middle = first.read("y")?;
        assert_right(&w, &middle, &second.read("y")?, "the second plan");
    }
    Ok(Completion::Completed)
}

fn inputs_keep_their_values(subject: &Subject) -> Verdict {
    let mut graph = Graph::new();
    let desc = TensorDesc::new(Dtype::F32, [10, 10]);
    let (a, b) = (graph.input("a", desc.clone())?, graph.input("b", desc)?);
    let y = graph.matmul(a, b, None, MatMul::default())?;
    graph.output("y", y)?;
    let mut plan = Plan::new(&subject.device, &graph)?;
    let [one, two] = [1, 2].map(|seed| CaseInput::normal(Dtype::F32, &[10, 10], 1.0).draw(seed));
    let both = plan.run(&[("a", &one), ("b", &two)])?;
    assert_eq!(plan.run(&[("a", &one)])?, both, "b was given before");
    assert_eq!(plan.run(&[])?, both, "both were given before");
    assert_ne!(plan.run(&[("b", &one)])?, both);
    Ok(Completion::Completed)
}

fn no_buffer_is_made_in_a_run(subject: &Subject) -> Verdict {
    // A device of this trial's own, since trials of others make buffers at the same time.
    let device = fresh(subject)?;
    let w = weight();
    let mut plan = Plan::new(&device, &layer(&w)?)?;
    let mut profiled = Plan::new(&device, &layer(&w)?)?;
    profiled.run(&[("x", &x(1))])?;
    profiled.profile()?;
    let before = device.buffers_created();
    for seed in 0..100 {
        plan.run(&[("x", &x(seed))])?;
        plan.write("x", &x(seed + 1))?;
        plan.submit()?;
        plan.read("y")?;
        pollster::block_on(plan.run_async(&[]))?;
        plan.measure()?;
        profiled.profile()?;
    }
    // The first `measure` of a plan makes its queries' buffers.
    let made = device.buffers_created() - before;
    assert!(made <= 2, "{made} buffers were made in 100 runs");
    let before = device.buffers_created();
    plan.run(&[("x", &x(0))])?;
    plan.measure()?;
    assert_eq!(device.buffers_created(), before);
    Ok(Completion::Completed)
}

fn plans_share_weights(subject: &Subject) -> Verdict {
    let device = fresh(subject)?;
    let made = |w: &Arc<HostTensor>| {
        let before = device.buffers_created();
        let plan = Plan::new(&device, &layer(w).expect("shapes that fit")).expect("a plan");
        (device.buffers_created() - before, plan)
    };
    let (w, other) = (weight(), weight());
    let (first, mut one) = made(&w);
    let (second, mut two) = made(&w);
    let (third, _) = made(&other);
    assert_eq!(second, first - 1, "the second plan uploads no weight");
    assert_eq!(third, first, "equal values in another Arc are another weight");
    assert_eq!(one.run(&[("x", &x(1))])?, two.run(&[("x", &x(1))])?);
    Ok(Completion::Completed)
}

fn profile(subject: &Subject) -> Verdict {
    let mut plan = Plan::new(&subject.device, &layer(&weight())?)?;
    assert_eq!(plan.profile().expect_err("x is missing").to_string(), "plan: input `x` was not given");
    plan.write("x", &x(1))?;
    let profile = plan.profile()?;
    let techniques: Vec<_> = plan.describe().steps.iter().map(|step| step.technique).collect();
    assert_eq!(profile.steps.iter().map(|(technique, _)| *technique).collect::<Vec<_>>(), techniques);
    assert!(profile.steps.iter().all(|(_, seconds)| (0.0..10.0).contains(seconds)), "{profile:?}");
    let capabilities = subject.device.capabilities();
    let clock = match (capabilities.backend, capabilities.timestamps) {
        (Backend::Cpu, _) => Clock::Host,
        (Backend::Gpu, true) => Clock::Gpu,
        (Backend::Gpu, false) => Clock::HostNoTimestamps,
    };
    let sample = plan.measure()?;
    assert_eq!((profile.clock, sample.clock), (clock, clock));
    assert!(sample.seconds > 0.0 && sample.seconds < 10.0, "{sample:?}");
    Ok(Completion::Completed)
}

fn description(subject: &Subject) -> Verdict {
    let plan = Plan::new(&subject.device, &layer(&weight())?)?;
    let description = plan.describe();
    let ops: Vec<_> = description.steps.iter().map(|step| step.op).collect();
    assert_eq!(ops, ["matmul", "softmax", "matmul"]);
    assert_eq!(description.cost().flops, 2 * 2 * 6 * 10 * 10 + 5 * 60);
    assert_eq!(description.peak_bytes(), 240 + 400 + 240 + 2 * 240);
    let text = description.to_string();
    for step in &description.steps {
        assert!(text.contains(step.technique), "{text}");
        assert_eq!(step.workgroups.is_some(), subject.device.capabilities().backend == Backend::Gpu);
    }
    assert!(text.contains(&subject.device.name()) && text.contains("f32 [6, 10]") && text.contains("1200"), "{text}");
    Ok(Completion::Completed)
}

fn aliased_memory_is_refused(subject: &Subject) -> Verdict {
    let mut plan = Plan::new(&subject.device, &layer(&weight())?)?;
    let tensor = subject.device.upload(&x(1))?;
    plan.bind("x", &tensor)?;
    let why = plan.bind("y", &tensor).expect_err("y would be written while x is read");
    let expected = "plan: `y` and `x` are one tensor, and a run would write it while it reads it";
    assert_eq!(why.to_string(), expected);
    let own = plan.tensor("y")?;
    let why = plan.bind("x", &own).expect_err("the other way round");
    assert_eq!(why.to_string(), "plan: `x` and `y` are one tensor, and a run would write it while it reads it");
    plan.run(&[])?;
    Ok(Completion::Completed)
}

/// An output may be an input, a reshape of one, a weight, or several names of one tensor.
fn outputs_that_are_inputs(subject: &Subject) -> Verdict {
    let mut graph = Graph::new();
    let given = graph.input("x", TensorDesc::new(Dtype::F32, [6, 10]))?;
    let w = graph.weight("w", weight())?;
    let y = graph.softmax(given, 1.0)?;
    let flat = graph.reshape(given, &[60])?;
    let tall = graph.reshape(y, &[30, 2])?;
    for (name, tensor) in [("same", given), ("flat", flat), ("w", w), ("y", y), ("tall", tall), ("again", y)] {
        graph.output(name, tensor)?;
    }
    let got = Plan::new(&subject.device, &graph)?.run(&[("x", &x(1))])?;
    assert_eq!(got["same"], x(1));
    assert_eq!(got["flat"], x(1).reshape(&[60])?);
    assert_eq!(got["w"], *weight());
    assert_eq!(got["again"], got["y"]);
    assert_eq!(got["tall"], got["y"].clone().reshape(&[30, 2])?);
    let wanted = reference::run(&graph, &[("x", &x(1))])?;
    assert!(compare(&got["y"], &wanted["y"], Tolerance::of_scale(1e-6), NanMeans::Nan).passed());
    Ok(Completion::Completed)
}

/// Two plans on one device, each on a thread of its own, and both correct.
fn two_threads(subject: &Subject) -> Verdict {
    let w = weight();
    let work = |first: u64| -> Result<(), Failed> {
        let mut plan = Plan::new(&subject.device, &layer(&w)?)?;
        for seed in first..first + 50 {
            let got = plan.run(&[("x", &x(seed))])?;
            assert_right(&w, &x(seed), &got["y"], "a thread");
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads = [1, 1000].map(|first| scope.spawn(move || work(first)));
        threads.into_iter().try_for_each(|thread| thread.join().expect("the thread did not panic"))
    })?;
    Ok(Completion::Completed)
}

/// A run whose future is dropped halfway leaves the plan usable.
fn dropped_futures(subject: &Subject) -> Verdict {
    let w = weight();
    let mut plan = Plan::new(&subject.device, &layer(&w)?)?;
    for seed in 1..10 {
        let input = x(seed);
        let inputs = [("x", &input)];
        let mut future = Box::pin(plan.run_async(&inputs));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let _ = std::future::Future::poll(future.as_mut(), &mut context);
    }
    assert_right(&w, &x(20), &plan.run(&[("x", &x(20))])?["y"], "after dropped futures");
    let q = TensorDesc::new(Dtype::F32, [1, 2, 5, 8]);
    let mut graph = Graph::new();
    let [q, k, v] = [graph.input("q", q.clone())?, graph.input("k", q.clone())?, graph.input("v", q)?];
    let y = graph.attention(q, k, v, &Attention::default())?;
    graph.output("y", y)?;
    let input = CaseInput::normal(Dtype::F32, &[1, 2, 5, 8], 1.0).draw(1);
    let got = pollster::block_on(Plan::new(&subject.device, &graph)?.run_async(&[
        ("q", &input),
        ("k", &input),
        ("v", &input),
    ]))?;
    assert_eq!(got["y"].shape(), [1, 2, 5, 8]);
    Ok(Completion::Completed)
}
