//! What a user can do wrong with a plan or a device, what looks wrong and works, and devices that are missing, poor or lost.

mod common;
#[path = "common/embed.rs"]
mod embed;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use common::{Subject, Verdict, each_device, each_of, run};
use embed::{ALL_FEATURES, wgpu_device};
use libtest_mimic::{Completion, Failed, Trial};
use regard::bench::{Bench, CacheState, Settings};
use regard::capabilities::Backend;
use regard::case::CaseInput;
use regard::compare::{NanMeans, Tolerance, compare};
use regard::gpu::{Kind, adapters};
use regard::ops::MatMul;
use regard::plan::Clock;
use regard::{
    Attention, Cache, Device, DeviceOptions, Dtype, Error, Graph, HostTensor, Plan, PlanOptions, Result, Select,
    Strategy, TensorDesc, reference,
};

fn main() -> ExitCode {
    let mut trials = Vec::new();
    for (name, misuse, expected) in bad_uses() {
        trials.extend(each_device(name, move |subject| match misuse(&subject.device) {
            Err(error) if error.to_string() == expected => Ok(Completion::Completed),
            Err(error) => Err(format!("wanted: {expected}\n   got: {error}").into()),
            Ok(()) => Err(format!("nothing was refused; wanted: {expected}").into()),
        }));
    }
    trials.extend(each_device("a misuse loses nothing", a_misuse_loses_nothing));
    trials.extend(each_device("a technique that there is not", unknown_technique));
    trials.extend(each_device("sizes of zero work", sizes_of_zero));
    trials.extend(each_device("more than 65,535 workgroups work", many_workgroups));
    trials.extend(each_of(&[Backend::Gpu], "a device without features", without_features));
    trials.extend(each_of(&[Backend::Gpu], "a buffer over the binding limit", over_the_limit));
    trials.extend(each_of(&[Backend::Cpu], "more memory than there is", out_of_memory));
    trials.extend(each_of(&[Backend::Gpu], "a tensor of the other backend", other_backend));
    trials.extend(each_of(&[Backend::Gpu], "a tensor of another device", other_device));
    trials.extend(each_of(&[Backend::Gpu], "device lost", device_lost));
    trials.extend(each_of(&[Backend::Gpu], "pipelines stay on disk", pipelines_on_disk));
    trials.extend(each_of(&[Backend::Gpu], "plans made by many threads", plans_of_many_threads));
    trials.push(Trial::test("which device is taken", which_device));
    run(trials)
}

/// Whatever the folder holds, or if there can be none, plans give the same; afterwards the file is whole.
fn pipelines_on_disk(subject: &Subject) -> Verdict {
    let place = format!("regard-pipelines-{}-{}", std::process::id(), subject.name.replace(' ', "-"));
    let folder = std::env::temp_dir().join(place);
    let wanted = softmax_plan(&subject.device)?.run(&[("x", &x())])?;
    let run_with = |folder: &Path| -> Result<()> {
        let select = Select::Named(subject.device.name());
        let cache = Cache::Folder(folder.to_owned());
        let device = Device::new(&DeviceOptions { select, cache, ..DeviceOptions::default() })?;
        let got = softmax_plan(&device)?.run(&[("x", &x())])?;
        assert_eq!(got["y"], wanted["y"], "{}", subject.name);
        Ok(())
    };
    let files =
        || -> Vec<_> { fs::read_dir(&folder).expect("a folder").map(|file| file.expect("a file").path()).collect() };
    run_with(&folder)?;
    let [file] = &files()[..] else { return Err(format!("not one file but {:?}", files()).into()) };
    let whole = fs::read(file)?;
    assert!(whole.starts_with(b"regard pipelines"), "{whole:?}");
    run_with(&folder)?;
    for damaged in [&b""[..], b"something else", &whole[..whole.len() - 1], &[&whole[..], b"more"].concat()] {
        fs::write(file, damaged)?;
        run_with(&folder)?;
        assert!(fs::read(file)?.starts_with(b"regard pipelines"), "{}", subject.name);
        assert_eq!(files().len(), 1, "nothing else is left behind");
    }
    // Where the folder would be is a file.
    run_with(file)?;
    fs::remove_dir_all(&folder)?;
    Ok(Completion::Completed)
}

/// Threads that want the same pipelines and others at once all get them.
fn plans_of_many_threads(subject: &Subject) -> Verdict {
    let select = Select::Named(subject.device.name());
    let device = Device::new(&DeviceOptions { select, cache: Cache::None, ..DeviceOptions::default() })?;
    let run = |thread: usize| -> Result<HostTensor> {
        let mut graph = Graph::new();
        let x = graph.input("x", TensorDesc::new(Dtype::F32, [2, 3]))?;
        let y = graph.softmax(x, 1.0)?;
        let y = if thread.is_multiple_of(2) { graph.transpose(y, &[1, 0])? } else { graph.cast(y, Dtype::F32)? };
        graph.output("y", y)?;
        Ok(Plan::new(&device, &graph)?.run(&[("x", &self::x())])?.remove("y").expect("an output y"))
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..16).map(|thread| scope.spawn(move || run(thread))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no thread panics")).collect()
    });
    let results = results.into_iter().collect::<Result<Vec<_>>>()?;
    for (thread, result) in results.iter().enumerate() {
        assert_eq!(*result, results[thread % 2], "thread {thread} on {}", subject.name);
    }
    Ok(Completion::Completed)
}

/// y = softmax(x), x being `[2, 3]`.
fn softmax_graph() -> Result<Graph> {
    let mut graph = Graph::new();
    let x = graph.input("x", TensorDesc::new(Dtype::F32, [2, 3]))?;
    let y = graph.softmax(x, 1.0)?;
    graph.output("y", y)?;
    Ok(graph)
}

fn softmax_plan(device: &Device) -> Result<Plan> {
    Plan::new(device, &softmax_graph()?)
}

fn x() -> HostTensor {
    HostTensor::f32(&[2, 3], vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]).expect("six elements")
}

type BadUse = (&'static str, fn(&Device) -> Result<()>, &'static str);

fn bad_uses() -> Vec<BadUse> {
    vec![
        (
            "no output",
            |device| Plan::new(device, &Graph::new()).map(drop),
            "graph: there is no output; name one with Graph::output",
        ),
        (
            "an input that is missing",
            |device| softmax_plan(device)?.run(&[]).map(drop),
            "plan: input `x` was not given",
        ),
        ("submit without input", |device| softmax_plan(device)?.submit(), "plan: input `x` was not given"),
        ("measure without input", |device| softmax_plan(device)?.measure().map(drop), "plan: input `x` was not given"),
        (
            "async without input",
            |device| pollster::block_on(softmax_plan(device)?.run_async(&[])).map(drop),
            "plan: input `x` was not given",
        ),
        (
            "a name given twice",
            |device| softmax_plan(device)?.run(&[("x", &x()), ("x", &x())]).map(drop),
            "plan: input `x` was given twice",
        ),
        (
            "an unknown name",
            |device| softmax_plan(device)?.run(&[("X", &x())]).map(drop),
            "plan: there is no input or output `X`; there are x, y",
        ),
        (
            "writing an output",
            |device| softmax_plan(device)?.write("y", &x()),
            "plan: `y` is an output, it cannot be written",
        ),
        ("reading an input", |device| softmax_plan(device)?.read("x").map(drop), "plan: there is no output `x`"),
        (
            "binding an unknown name",
            |device| softmax_plan(device)?.bind("z", &device.upload(&x())?),
            "plan: there is no input or output `z`; there are x, y",
        ),
        (
            "a wrong dtype",
            |device| softmax_plan(device)?.run(&[("x", &x().cast(Dtype::F16))]).map(drop),
            "plan: `x` is f32 [2, 3], got f16 [2, 3]",
        ),
        (
            "a wrong length",
            |device| softmax_plan(device)?.write("x", &HostTensor::f32(&[2], vec![0.0; 2])?),
            "plan: `x` is f32 [2, 3], got f32 [2]",
        ),
        (
            "a wrong shape of the right length",
            |device| softmax_plan(device)?.write("x", &x().reshape(&[3, 2])?),
            "plan: `x` is f32 [2, 3], got f32 [3, 2]",
        ),
        (
            "a technique for an op that is not there",
            |device| {
                let options = PlanOptions::technique("sofmax", "softmax_row");
                Plan::with_options(device, &softmax_graph()?, &options).map(drop)
            },
            "plan: a technique is given for `sofmax`; the ops are softmax",
        ),
        (
            "the reference without input",
            |_| reference::run(&softmax_graph()?, &[]).map(drop),
            "plan: input `x` was not given",
        ),
        (
            "the reference with a wrong shape",
            |_| reference::run(&softmax_graph()?, &[("x", &x().reshape(&[6])?)]).map(drop),
            "plan: input `x` is f32 [2, 3], got f32 [6]",
        ),
    ]
}

fn a_misuse_loses_nothing(subject: &Subject) -> Verdict {
    let mut plan = softmax_plan(&subject.device)?;
    let right = plan.run(&[("x", &x())])?;
    assert!(plan.run(&[("x", &x().cast(Dtype::F16))]).is_err());
    assert!(plan.run(&[("other", &x())]).is_err());
    assert_eq!(plan.run(&[])?, right);
    Ok(Completion::Completed)
}

fn unknown_technique(subject: &Subject) -> Verdict {
    let force = |technique: &str| PlanOptions::technique("softmax", technique);
    let why =
        Plan::with_options(&subject.device, &softmax_graph()?, &force("softmax_magic")).expect_err("no such thing");
    let offered = Plan::new(&subject.device, &softmax_graph()?)?.describe().steps[0].technique;
    let all = match subject.device.capabilities().backend {
        Backend::Gpu => "softmax_held, softmax_row",
        Backend::Cpu => "softmax_native",
    };
    let expected = format!("softmax: technique `softmax_magic` is not offered on this device: offered are {all}");
    assert_eq!(why.to_string(), expected);
    let plan = Plan::with_options(&subject.device, &softmax_graph()?, &force(offered))?;
    assert_eq!(plan.describe().steps[0].technique, offered);
    Ok(Completion::Completed)
}

fn sizes_of_zero(subject: &Subject) -> Verdict {
    let desc = |shape: &[usize]| TensorDesc::new(Dtype::F32, shape);
    for [batch, seq, inner, width] in [[0, 5, 4, 6], [2, 0, 4, 6], [2, 5, 0, 6], [2, 5, 4, 0], [0, 0, 0, 0]] {
        let mut graph = Graph::new();
        let x = graph.input("x", desc(&[batch, seq, inner]))?;
        let w = graph.input("w", desc(&[inner, width]))?;
        let h = graph.matmul(x, w, None, MatMul::default())?;
        let heads = graph.split_heads(h, 2)?;
        let y = graph.attention(heads, heads, heads, &Attention::default())?;
        let y = graph.merge_heads(y)?;
        let y = graph.softmax(y, 1.0)?;
        graph.output("y", y)?;
        let [x, w] = [&[batch, seq, inner][..], &[inner, width]].map(|shape| HostTensor::zeros(desc(shape)));
        let inputs = [("x", &x), ("w", &w)];
        let mut plan = Plan::new(&subject.device, &graph)?;
        let got = plan.run(&inputs)?;
        assert_eq!(got["y"].shape(), [batch, seq, width]);
        let comparison =
            compare(&got["y"], &reference::run(&graph, &inputs)?["y"], Tolerance::of_scale(1e-6), NanMeans::Nan);
        assert!(comparison.passed(), "{batch} x {seq} x {inner} x {width} on {}: {comparison}", subject.name);
        plan.profile()?;
        assert_eq!(pollster::block_on(plan.run_async(&inputs))?, got);
    }
    Ok(Completion::Completed)
}

fn many_workgroups(subject: &Subject) -> Verdict {
    let mut graph = Graph::new();
    let x = graph.input("x", TensorDesc::new(Dtype::F32, [70_001, 3]))?;
    let y = graph.softmax(x, 1.0)?;
    graph.output("y", y)?;
    let input = CaseInput::normal(Dtype::F32, &[70_001, 3], 1.0).draw(1);
    // A workgroup for each row.
    let row = ("softmax".to_owned(), "softmax_row".to_owned());
    let techniques = if subject.device.capabilities().backend == Backend::Gpu { vec![row] } else { vec![] };
    let mut plan = Plan::with_options(&subject.device, &graph, &PlanOptions { techniques, ..PlanOptions::default() })?;
    if let Some([x, y, z]) = plan.describe().steps[0].workgroups {
        assert!(x <= 65_535 && y > 1 && x * y * z >= 70_001, "the grid is folded: {x} x {y} x {z}");
    }
    let (got, wanted) = (plan.run(&[("x", &input)])?, reference::run(&graph, &[("x", &input)])?);
    let comparison = compare(&got["y"], &wanted["y"], Tolerance::of_scale(1e-6), NanMeans::Nan);
    assert!(comparison.passed(), "{comparison}");
    Ok(Completion::Completed)
}

/// A caller's device that was opened without f16 and timestamps, whatever the adapter has.
fn without_features(subject: &Subject) -> Verdict {
    let (_device, _queue, device) = wgpu_device(subject, wgpu::Features::empty())?;
    let mut graph = Graph::new();
    let x16 = graph.input("x", TensorDesc::new(Dtype::F16, [2, 3]))?;
    let y = graph.softmax(x16, 1.0)?;
    graph.output("y", y)?;
    let reason = "is not offered on this device: a tensor is f16 and the device has no f16 in shaders";
    let why = Plan::new(&device, &graph).expect_err("f16");
    assert_eq!(why.to_string(), format!("softmax: technique `any` {reason}"));
    let force = PlanOptions::technique("softmax", "softmax_row");
    let why = Plan::with_options(&device, &graph, &force).expect_err("f16");
    assert_eq!(why.to_string(), format!("softmax: technique `softmax_row` {reason}"));
    let mut plan = softmax_plan(&device)?;
    let got = plan.run(&[("x", &x())])?;
    assert_eq!(got, softmax_plan(&subject.device)?.run(&[("x", &x())])?);
    assert_eq!(plan.measure()?.clock, Clock::HostNoTimestamps);
    let profile = plan.profile()?;
    assert_eq!((profile.steps.len(), profile.clock), (1, Clock::HostNoTimestamps));
    assert!(profile.clock.describe().contains("no timestamps"));
    let bench = Bench::new(device, Settings { cache: CacheState::Warm, ..Settings::default() })?;
    assert!(bench.clock().contains("µs of an empty submission, the device has no timestamps"), "{}", bench.clock());
    Ok(Completion::Completed)
}

/// A caller's device with WebGPU's default limits binds 128 MiB.
fn over_the_limit(subject: &Subject) -> Verdict {
    let (_device, _queue, device) = wgpu_device(subject, ALL_FEATURES)?;
    let attention = |strategy| {
        let mut graph = Graph::new();
        let mut input = |name| graph.input(name, TensorDesc::new(Dtype::F32, [1, 1, 8192, 4]));
        let [q, k, v] = [input("q")?, input("k")?, input("v")?];
        let y = graph.attention(q, k, v, &Attention { strategy, ..Attention::default() })?;
        graph.output("y", y)?;
        Plan::new(&device, &graph)
    };
    let why = attention(Strategy::Unfused).expect_err("the scores have 256 MiB");
    let Error::TooLarge { needed, allowed, hint, .. } = &why else { panic!("{why}") };
    assert_eq!((*needed, *allowed), (1 << 28, 1 << 27));
    assert!(hint.contains("at most 33554432 elements") && hint.contains("fused attention stores no scores"), "{hint}");
    let text = why.to_string();
    assert!(text.contains("268435456") && text.contains("134217728") && text.contains("matmul"), "{text}");
    attention(Strategy::Fused)?;
    let mut graph = Graph::new();
    let x = graph.input("tokens", TensorDesc::new(Dtype::F32, [1 << 13, 1 << 13]))?;
    graph.output("y", x)?;
    let text = Plan::new(&device, &graph).expect_err("256 MiB").to_string();
    assert!(text.contains("`tokens`") && text.contains("268435456") && text.contains("134217728"), "{text}");
    let text =
        device.upload(&HostTensor::zeros(TensorDesc::new(Dtype::F32, [(1 << 25) + 1]))).expect_err("4 bytes more");
    assert!(matches!(text, Error::TooLarge { needed: 134_217_732, allowed: 134_217_728, .. }), "{text}");
    Ok(Completion::Completed)
}

fn out_of_memory(subject: &Subject) -> Verdict {
    let mut graph = Graph::new();
    let x = graph.input("x", TensorDesc::new(Dtype::F32, [1 << 20, 1 << 30]))?;
    let y = graph.softmax(x, 1.0)?;
    graph.output("y", y)?;
    let why = Plan::new(&subject.device, &graph).expect_err("no host has four petabytes");
    assert_eq!(why.to_string(), format!("device: the host has no {} bytes for one buffer", 1_u64 << 52));
    Ok(Completion::Completed)
}

fn other_backend(subject: &Subject) -> Verdict {
    let (native, gpu) = (Device::cpu(), &subject.device);
    let why = softmax_plan(gpu)?.bind("x", &native.upload(&x())?).expect_err("a host tensor");
    assert_eq!(why.to_string(), "plan: the tensor for `x` lives on another kind of device");
    let why = softmax_plan(&native)?.bind("x", &gpu.upload(&x())?).expect_err("a GPU tensor");
    assert_eq!(why.to_string(), "plan: the tensor for `x` lives on another kind of device");
    let why = native.download(&gpu.upload(&x())?).expect_err("a GPU tensor");
    assert_eq!(why.to_string(), "device: the tensor lives on another kind of device");
    let mut native = softmax_plan(&native)?;
    native.bind("y", &native.tensor("y")?)?;
    Ok(Completion::Completed)
}

/// Two wgpu devices do not share buffers; the plan that refused one still has its own.
fn other_device(subject: &Subject) -> Verdict {
    let (_device, _queue, other) = wgpu_device(subject, ALL_FEATURES)?;
    let mut plan = softmax_plan(&subject.device)?;
    let right = plan.run(&[("x", &x())])?;
    for name in ["x", "y"] {
        let foreign = other.upload(&x())?;
        let why = plan.bind(name, &foreign).expect_err("a tensor of another device");
        assert_eq!(why.to_string(), "device: the tensor lives on another device");
        let why = subject.device.download(&foreign).expect_err("a tensor of another device");
        assert_eq!(why.to_string(), "device: the tensor lives on another device");
        assert_eq!(plan.run(&[("x", &x())])?, right, "after `{name}` was refused");
    }
    Ok(Completion::Completed)
}

/// Every call on a plan of a lost device is an error, never a panic, and the next device works.
fn device_lost(subject: &Subject) -> Verdict {
    let (wgpu_device_, _queue, device) = wgpu_device(subject, ALL_FEATURES)?;
    let mut plans = [softmax_plan(&device)?, softmax_plan(&device)?, softmax_plan(&device)?, softmax_plan(&device)?];
    let right = plans[0].run(&[("x", &x())])?;
    plans.iter_mut().skip(1).try_for_each(|plan| plan.write("x", &x()))?;
    wgpu_device_.destroy();
    let [ran, submitted, measured, awaited] = &mut plans;
    let errors = [
        ("run", ran.run(&[("x", &x())]).map(drop)),
        ("submit", submitted.submit()),
        ("read", submitted.read("y").map(drop)),
        ("measure", measured.measure().map(drop)),
        ("profile", measured.profile().map(drop)),
        ("run_async", pollster::block_on(awaited.run_async(&[("x", &x())])).map(drop)),
        ("write and submit", ran.write("x", &x()).and_then(|()| ran.submit())),
        ("a new plan", softmax_plan(&device).map(drop)),
        ("upload", device.upload(&x()).map(drop)),
    ];
    for (call, result) in errors {
        let why = result.expect_err(call);
        assert!(matches!(why, Error::DeviceLost(_)), "{call}: {why:?}");
    }
    let (_wgpu, _queue, next) = wgpu_device(subject, ALL_FEATURES)?;
    assert_eq!(softmax_plan(&next)?.run(&[("x", &x())])?, right);
    Ok(Completion::Completed)
}

/// A GPU that is asked for and not there is an error; software Vulkan does not count as one, and the default is native.
fn which_device() -> std::result::Result<(), Failed> {
    let found = adapters();
    let gpu = found.iter().find(|adapter| adapter.kind != Kind::Software);
    let software: Vec<_> = found.iter().map(|adapter| adapter.name.as_str()).collect();
    let best = Device::new(&DeviceOptions::default())?;
    match (gpu, Device::gpu()) {
        (Some(adapter), Ok(device)) => {
            assert_eq!(device.name(), adapter.describe());
            assert_eq!(best.name(), adapter.describe());
        }
        (Some(adapter), Err(why)) => panic!("{} is there: {why}", adapter.name),
        (None, Ok(device)) => panic!("there is no GPU, and it gave {device}"),
        (None, Err(why)) => {
            let expected = match software[..] {
                [] => "there is no GPU adapter".into(),
                _ => format!("there is no GPU, only software devices, taken by name ({})", software.join(", ")),
            };
            assert_eq!(why.to_string(), format!("device: {expected}"));
            assert!(matches!(why, Error::NoAdapter(_)));
            assert_eq!(best.capabilities().backend, Backend::Cpu);
            assert_eq!(best.reason(), format!("{expected}, so the CPU backend"));
        }
    }
    let named = Select::Named("no such thing".into());
    let why = Device::new(&DeviceOptions { select: named, ..DeviceOptions::default() }).expect_err("no such adapter");
    assert!(why.to_string().starts_with("device: no adapter is called `no such thing`; there are: "), "{why}");
    assert_eq!("CPU".to_lowercase().parse::<Select>(), Ok(Select::Cpu));
    Ok(())
}
