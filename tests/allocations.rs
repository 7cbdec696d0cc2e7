//! A run in steady state allocates nothing on the host and submits once.
//!
//! What is counted: every call of the global allocator by any thread, from `write` or `run_into` to the bytes in the caller's
//! tensors, after a few runs have warmed up. Each is charged to the innermost function on its stack that is of neither the
//! standard library nor a container: so what `wgpu` allocates for commands, and `gemm` for packed factors, is told apart from what
//! the library itself does. What a driver allocates in C is not seen. On the CPU backend the runs start on a thread of the pool:
//! rayon's queue for work from other threads takes a block for each 63 jobs.

#![expect(unsafe_code, reason = "a global allocator is unsafe to write")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use common::{Subject, Verdict, each_device, each_of, run};
use libtest_mimic::Completion;
use regard::capabilities::Backend;
use regard::case::{Case, CaseInput};
use regard::ops::{MatMul, REGISTRY};
use regard::{Attention, Device, Dtype, Graph, HostTensor, Layout as Heads, Plan, TensorDesc};

/// Runs that are counted, half of them in steps.
const RUNS: usize = 20;

/// How often those runs are counted; the round with the fewest allocations counts. What runs allocate is there in each, while memory
/// that a thread keeps is made when the thread first takes a task, or one inside another, which may be late.
const ROUNDS: usize = 4;

/// Most frames of a stack that are looked at.
const FRAMES: usize = 40;

fn main() -> ExitCode {
    let mut trials = each_device("a run allocates nothing", runs_allocate_nothing);
    trials.extend(each_device("the count sees what is allocated", the_count_sees));
    trials.extend(each_device("a run is one submission", one_submission));
    trials.extend(each_of(&[Backend::Cpu], "native kernels allocate nothing", kernels_allocate_nothing));
    run(trials)
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Held by the trial that runs: what others allocate at the same time would be counted.
static TURN: Mutex<()> = Mutex::new(());

static COUNTS: AtomicBool = AtomicBool::new(false);
static STACKS: Mutex<BTreeMap<[usize; FRAMES], usize>> = Mutex::new(BTreeMap::new());

thread_local! {
    /// Set while this thread notes an allocation, which allocates as well.
    static NOTING: Cell<bool> = const { Cell::new(false) };
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller keeps the system allocator's terms.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note();
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }
}

/// Notes the stack of an allocation.
fn note() {
    if !COUNTS.load(Ordering::Relaxed) || NOTING.replace(true) {
        return;
    }
    let (mut stack, mut depth) = ([0; FRAMES], 0);
    backtrace::trace(|frame| {
        stack[depth] = frame.ip().addr();
        depth += 1;
        depth < FRAMES
    });
    *STACKS.lock().unwrap_or_else(PoisonError::into_inner).entry(stack).or_default() += 1;
    NOTING.set(false);
}

/// Allocations during `work`, by the function that they are charged to.
fn allocations<T>(work: impl FnOnce() -> T) -> (T, BTreeMap<String, usize>) {
    STACKS.lock().unwrap_or_else(PoisonError::into_inner).clear();
    COUNTS.store(true, Ordering::SeqCst);
    let result = work();
    COUNTS.store(false, Ordering::SeqCst);
    let stacks = std::mem::take(&mut *STACKS.lock().unwrap_or_else(PoisonError::into_inner));
    let mut charged = BTreeMap::new();
    for (stack, count) in stacks {
        *charged.entry(culprit(&stack)).or_default() += count;
    }
    (result, charged)
}

/// Functions that allocate so often in a run at most: callbacks, for which wgpu's interface has a box each.
const ALLOWED: [(&str, usize); 2] = [("gpu::readback::Readback::map", 1), ("gpu::upload::Upload::map_after", 1)];

/// Crates whose functions allocate for those that call them.
const CONTAINERS: [&str; 19] = [
    "__rustc",
    "std",
    "core",
    "alloc",
    "hashbrown",
    "smallvec",
    "arrayvec",
    "indexmap",
    "bytemuck",
    "backtrace",
    "allocations",
    "crossbeam_deque",
    "crossbeam_epoch",
    "crossbeam_utils",
    "dyn_stack",
    "equator",
    "parking_lot",
    "once_cell",
    "pollster",
];

/// The innermost function that is of no container.
fn culprit(stack: &[usize]) -> String {
    let mut names = Vec::new();
    for &address in stack.iter().take_while(|address| **address != 0) {
        // A return address is behind its call.
        backtrace::resolve(std::ptr::without_provenance_mut(address - 1), |symbol| {
            names.extend(symbol.name().map(|name| format!("{name:#}")));
        });
    }
    let found = names.iter().find(|name| name.contains("::") && !CONTAINERS.contains(&crate_of(name)));
    found.unwrap_or(&"nobody that has a name".to_owned()).clone()
}

/// The crate in `<wgpu::Queue as …>::submit` and `regard::plan::Plan::run`.
fn crate_of(name: &str) -> &str {
    let name = name.trim_start_matches(['<', '&', '*', '[', '(']);
    let name = name.trim_start_matches("mut ").trim_start_matches("dyn ");
    name.split("::").next().unwrap_or(name)
}

/// The seed-2 layer at a smaller size: four products and attention between them.
fn layer() -> regard::Result<Graph> {
    let mut graph = Graph::new();
    let mut y = graph.input("x", TensorDesc::new(Dtype::F32, [8, 32, 40]))?;
    let weight = |seed| Arc::new(CaseInput::normal(Dtype::F32, &[40, 40], 0.1).draw(seed));
    let product = |graph: &mut Graph, x, seed: u64| {
        let w = graph.weight(&format!("w{seed}"), weight(seed))?;
        graph.matmul(x, w, None, MatMul::default())
    };
    let [q, k, v] = [product(&mut graph, y, 1)?, product(&mut graph, y, 2)?, product(&mut graph, y, 3)?];
    let layout = Heads::Merged { heads: 5 };
    y = graph.attention(q, k, v, &Attention { q_layout: layout, kv_layout: layout, ..Attention::default() })?;
    let y = product(&mut graph, y, 4)?;
    graph.output("y", y)?;
    Ok(graph)
}

fn x() -> HostTensor {
    CaseInput::normal(Dtype::F32, &[8, 32, 40], 1.0).draw(9)
}

fn runs_allocate_nothing(subject: &Subject) -> Verdict {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut plan = Plan::new(&subject.device, &layer()?)?;
    let (x, wanted) = (x(), plan.run(&[("x", &x())])?.remove("y").expect("the output"));
    let mut y = HostTensor::zeros(wanted.desc().clone());
    let mut run = || -> regard::Result<()> {
        for _ in 0..RUNS / 2 {
            plan.write("x", &x)?;
            plan.submit()?;
            plan.read_into("y", &mut y)?;
            plan.run_into(&[("x", &x)], &mut [("y", &mut y)])?;
        }
        Ok(())
    };
    let rounds = rayon::scope(|_| {
        run()?;
        let rounds = (0..ROUNDS).map(|_| {
            let (result, charged) = allocations(&mut run);
            result.map(|()| charged)
        });
        rounds.collect::<regard::Result<Vec<_>>>()
    })?;
    let charged = rounds.into_iter().min_by_key(|charged| charged.values().sum::<usize>()).expect("there are rounds");
    assert_eq!(y, wanted);
    let total: usize = charged.values().sum();
    let own: BTreeMap<_, _> = charged.iter().filter(|(name, _)| crate_of(name) == "regard").collect();
    println!(
        "{}: {} allocations a run, {} of them the library's",
        subject.name,
        total / RUNS,
        own.values().copied().sum::<usize>() / RUNS
    );
    if subject.device.capabilities().backend == Backend::Cpu {
        let others: Vec<_> = charged.keys().filter(|name| !crate_of(name).starts_with("gemm")).collect();
        assert!(
            others.is_empty(),
            "{}: memory for gemm's packed factors and nothing else, not {others:?}",
            subject.name
        );
    }
    for (name, &count) in own {
        let allowed = ALLOWED.iter().find(|(function, _)| name.contains(function)).map_or(0, |(_, each)| each * RUNS);
        assert!(count <= allowed, "{}: {name} allocates {count} times in {RUNS} runs", subject.name);
    }
    Ok(Completion::Completed)
}

/// Outputs that are returned are allocated, and by nobody else.
fn the_count_sees(subject: &Subject) -> Verdict {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut plan = Plan::new(&subject.device, &layer()?)?;
    let x = x();
    plan.run(&[("x", &x)])?;
    let (outputs, charged) = allocations(|| plan.run(&[("x", &x)]));
    outputs?;
    let own = charged.iter().filter(|(name, _)| crate_of(name) == "regard").map(|(_, count)| count).sum::<usize>();
    assert!(own >= 2, "a name and a tensor at least: {charged:#?}");
    Ok(Completion::Completed)
}

fn one_submission(subject: &Subject) -> Verdict {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut plan = Plan::new(&subject.device, &layer()?)?;
    let (x, mut y) = (x(), HostTensor::zeros(TensorDesc::new(Dtype::F32, [8, 32, 40])));
    let each = u64::from(subject.device.capabilities().backend == Backend::Gpu);
    for _ in 0..3 {
        let before = subject.device.submissions();
        plan.run_into(&[("x", &x)], &mut [("y", &mut y)])?;
        plan.run(&[("x", &x)])?;
        assert_eq!(subject.device.submissions() - before, 2 * each);
    }
    Ok(Completion::Completed)
}

/// Ops whose native kernels make lists at each run: those that carry a state from step to step, and a yardstick.
const WITH_LISTS: [&str; 4] = ["gru", "lstm", "linear_attention", "matrix_chain"];

/// Runs of a case until one allocates nothing. Memory that a thread keeps grows when the thread first gets a share of the work,
/// which may be late.
const ATTEMPTS: usize = 50;

/// Every case of every op on its own.
fn kernels_allocate_nothing(subject: &Subject) -> Verdict {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut found = Vec::new();
    for entry in REGISTRY.iter().filter(|entry| !WITH_LISTS.contains(&entry.name)) {
        for case in (entry.cases)() {
            let mut plan = plan_of(&subject.device, &case)?;
            let mut allocates = None;
            for _ in 0..ATTEMPTS {
                let (result, charged) = rayon::scope(|_| allocations(|| plan.submit()));
                result?;
                allocates = charged.into_keys().find(|name| !crate_of(name).starts_with("gemm"));
                if allocates.is_none() {
                    break;
                }
            }
            found.extend(allocates.map(|function| format!("{} {}: {function}", entry.name, case.name)));
        }
    }
    assert!(found.is_empty(), "these allocate in every run:\n{}", found.join("\n"));
    Ok(Completion::Completed)
}

fn plan_of(device: &Device, case: &Case) -> regard::Result<Plan> {
    let mut graph = Graph::new();
    let names: Vec<String> = (0..case.inputs.len()).map(|index| format!("x{index}")).collect();
    let inputs = names.iter().zip(case.descs()).map(|(name, desc)| graph.input(name, desc));
    let inputs = inputs.collect::<regard::Result<Vec<_>>>()?;
    for (index, output) in graph.add_shared(case.op.clone(), &inputs)?.into_iter().enumerate() {
        graph.output(&format!("y{index}"), output)?;
    }
    let mut plan = Plan::new(device, &graph)?;
    for (name, value) in names.iter().zip(case.draw()) {
        plan.write(name, &value)?;
    }
    Ok(plan)
}
