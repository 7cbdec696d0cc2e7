//! Many threads on one device, each with a plan of its own: the same results as alone, no buffer made, no memory that grows.

mod common;

use std::process::ExitCode;
use std::sync::{Barrier, Mutex, PoisonError};

use common::{Subject, Verdict, each_device, run};
use libtest_mimic::{Completion, Failed};
use regard::case::CaseInput;
use regard::ops::MatMul;
use regard::{Attention, Causal, Dtype, Error, Graph, HostTensor, Plan, Result, TensorDesc};

const THREADS: usize = 16;
/// Runs of each thread, of which the first warm up the allocator.
const RUNS: usize = 1000;
const WARM_UP: usize = 200;
/// What the process may grow by in the runs after: 12,800 runs that lose a kilobyte each lose 12 MiB.
const GROWTH: u64 = 8 << 20;

fn main() -> ExitCode {
    run(each_device("sixteen threads", sixteen_threads))
}

/// A small problem, another one for each thread: sizes and ops differ.
fn graph(thread: usize) -> Result<Graph> {
    let mut graph = Graph::new();
    let (seq, width) = (8 + thread, 16);
    let x = graph.input("x", TensorDesc::new(Dtype::F32, [1, 2, seq, width]))?;
    let y = match thread % 4 {
        0 => graph.attention(x, x, x, &Attention { causal: Some(Causal::TopLeft), ..Attention::default() })?,
        1 => graph.softmax(x, 0.5)?,
        2 => {
            let w = graph.weight("w", CaseInput::normal(Dtype::F32, &[width, width], 0.3).draw(thread as u64))?;
            let h = graph.matmul(x, w, None, MatMul::default())?;
            graph.softmax(h, 1.0)?
        }
        _ => graph.transpose(x, &[0, 1, 3, 2])?,
    };
    graph.output("y", y)?;
    Ok(graph)
}

fn sixteen_threads(subject: &Subject) -> Verdict {
    // The resident size is the whole process's.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let device = &subject.device;
    let plans = (0..THREADS).map(|thread| Plan::new(device, &graph(thread)?)).collect::<Result<Vec<_>>>()?;
    let (buffers, barrier) = (device.buffers_created(), Barrier::new(THREADS + 1));
    let sizes = std::thread::scope(|scope| {
        let run = |(thread, mut plan): (usize, Plan)| {
            let (barrier, seed) = (&barrier, thread as u64);
            scope.spawn(move || {
                let input = CaseInput::normal(Dtype::F32, &[1, 2, 8 + thread, 16], 1.0).draw(seed);
                // Errors wait until every thread is through, for all of them meet at the barrier.
                let first = plan.run(&[("x", &input)]).map(|mut outputs| outputs.remove("y").expect("the output"));
                let mut run = |count| runs(&mut plan, &input, first.as_ref().map_err(Clone::clone)?, count);
                let warm_up = run(WARM_UP);
                barrier.wait();
                barrier.wait();
                let rest = run(RUNS - WARM_UP);
                barrier.wait();
                barrier.wait();
                Ok::<_, Error>(warm_up? + rest?)
            })
        };
        let threads: Vec<_> = plans.into_iter().enumerate().map(run).collect();
        barrier.wait();
        let before = resident_bytes();
        barrier.wait();
        barrier.wait();
        let after = resident_bytes();
        barrier.wait();
        for (thread, handle) in threads.into_iter().enumerate() {
            let differ = handle.join().expect("no thread panics")?;
            assert_eq!(differ, 0, "results of thread {thread} on {}", subject.name);
        }
        Ok::<_, Failed>(before.zip(after))
    })?;
    assert_eq!(device.buffers_created(), buffers, "a run makes no buffer");
    if let Some((before, after)) = sizes {
        let grown = after.saturating_sub(before);
        assert!(grown <= GROWTH, "{} grew from {before} to {after} bytes", subject.name);
    }
    Ok(Completion::Completed)
}

/// How many runs gave something else than the first.
fn runs(plan: &mut Plan, x: &HostTensor, first: &HostTensor, count: usize) -> Result<usize> {
    let (mut differ, mut y) = (0, HostTensor::zeros(first.desc().clone()));
    for _ in 0..count {
        plan.run_into(&[("x", x)], &mut [("y", &mut y)])?;
        differ += usize::from(y != *first);
    }
    Ok(differ)
}

/// Memory of the process that is in use; `None` where the system does not say so in `/proc`.
fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}
