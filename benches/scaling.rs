//! Whether the CPU backend's time grows as its work does, with its threads' number, and its memory as plans say.
//!
//! `cargo bench --bench scaling`. Least times of several rounds, the sizes in turns, on a machine that should do nothing else.
//! Each plan's result is compared with the reference at its smallest size. Wanted: attention from 1,024 to 16,384 positions within
//! 15 % of the quadratic law, decoding over 1,024 to 131,072 keys within 15 % of the linear one, 1.85 times the speed on two
//! threads, and resident memory within 5 % of what the plan and the host's own tensors take. A line says what was found, whether
//! it is what was wanted or not.

use std::time::Instant;

use rayon::ThreadPoolBuilder;
use regard::case::CaseInput;
use regard::compare::{NanMeans, Tolerance, compare};
use regard::{Attention, Device, Dtype, Graph, HostTensor, Plan, TensorDesc, reference};

const ROUNDS: usize = 7;
/// Each timing repeats short runs for at least this long.
const LEAST_SECONDS: f64 = 0.02;

/// Sizes of an attention problem; one batch, key heads as many as heads.
#[derive(Debug, Clone, Copy)]
struct Problem {
    heads: usize,
    seq_q: usize,
    seq_kv: usize,
    head_dim: usize,
}

impl Problem {
    fn graph(&self) -> regard::Result<Graph> {
        let mut graph = Graph::new();
        let shape = |seq| TensorDesc::new(Dtype::F32, [1, self.heads, seq, self.head_dim]);
        let q = graph.input("q", shape(self.seq_q))?;
        let [k, v] = [graph.input("k", shape(self.seq_kv))?, graph.input("v", shape(self.seq_kv))?];
        let y = graph.attention(q, k, v, &Attention::default())?;
        graph.output("y", y)?;
        Ok(graph)
    }

    fn inputs(&self) -> [HostTensor; 3] {
        let seqs = [(1, self.seq_q), (2, self.seq_kv), (3, self.seq_kv)];
        seqs.map(|(seed, seq)| CaseInput::normal(Dtype::F32, &[1, self.heads, seq, self.head_dim], 1.0).draw(seed))
    }

    /// A plan that has its inputs.
    fn plan(&self) -> regard::Result<Plan> {
        let mut plan = Plan::new(&Device::cpu(), &self.graph()?)?;
        for (name, value) in ["q", "k", "v"].into_iter().zip(&self.inputs()) {
            plan.write(name, value)?;
        }
        Ok(plan)
    }

    fn check(&self) -> regard::Result<()> {
        let (graph, inputs) = (self.graph()?, self.inputs());
        let named: Vec<_> = ["q", "k", "v"].into_iter().zip(&inputs).collect();
        let got = Plan::new(&Device::cpu(), &graph)?.run(&named)?;
        let wanted = reference::run(&graph, &named)?;
        let comparison = compare(&got["y"], &wanted["y"], Tolerance::of_scale(2e-5), NanMeans::Nan);
        assert!(comparison.passed(), "{self:?}: {comparison}");
        Ok(())
    }
}

fn main() -> regard::Result<()> {
    println!("{}", Device::cpu().name());
    let prefill = |seq| Problem { heads: 2, seq_q: seq, seq_kv: seq, head_dim: 64 };
    let sizes = [1024, 2048, 4096, 8192, 16_384];
    law("attention, 2 heads of 64", &sizes, prefill, |seq| (seq * seq) as f64)?;
    let decode = |keys| Problem { heads: 8, seq_q: 1, seq_kv: keys, head_dim: 64 };
    let sizes = [1024, 4096, 16_384, 65_536, 131_072];
    law("decoding, 8 heads of 64", &sizes, decode, |keys| keys as f64)?;
    threads(prefill(4096))?;
    memory(Problem { heads: 8, seq_q: 4096, seq_kv: 65_536, head_dim: 64 })
}

/// Least times of each size beside the law's, which goes through the smallest.
fn law(
    name: &str,
    sizes: &[usize],
    problem: impl Fn(usize) -> Problem,
    work: impl Fn(usize) -> f64,
) -> regard::Result<()> {
    problem(sizes[0]).check()?;
    let mut plans = sizes.iter().map(|&size| problem(size).plan()).collect::<regard::Result<Vec<_>>>()?;
    let mut least = vec![f64::INFINITY; sizes.len()];
    for _ in 0..ROUNDS {
        for (plan, least) in plans.iter_mut().zip(&mut least) {
            *least = least.min(seconds(plan)?);
        }
    }
    println!("\n{name}");
    for (&size, &time) in sizes.iter().zip(&least) {
        let of_law = time / (least[0] * work(size) / work(sizes[0]));
        println!("  {size:>7}  {:>10.3} ms  {of_law:>6.3} of the law", 1e3 * time);
    }
    Ok(())
}

/// Seconds of a run: the mean over as many as take a while.
fn seconds(plan: &mut Plan) -> regard::Result<f64> {
    let (start, mut runs) = (Instant::now(), 0);
    while runs == 0 || start.elapsed().as_secs_f64() < LEAST_SECONDS {
        plan.submit()?;
        runs += 1;
    }
    Ok(start.elapsed().as_secs_f64() / f64::from(runs))
}

fn threads(problem: Problem) -> regard::Result<()> {
    let pool = |threads| ThreadPoolBuilder::new().num_threads(threads).build().expect("threads can be had");
    let pools = [pool(1), pool(2)];
    let mut plans = [problem.plan()?, problem.plan()?];
    let mut least = [f64::INFINITY; 2];
    for _ in 0..ROUNDS {
        for ((pool, plan), least) in pools.iter().zip(&mut plans).zip(&mut least) {
            *least = least.min(pool.install(|| seconds(plan))?);
        }
    }
    let [one, two] = least.map(|time| 1e3 * time);
    println!("\nthreads, attention of {} positions", problem.seq_q);
    println!("  one {one:.3} ms, two {two:.3} ms: {:.3} times the speed", one / two);
    Ok(())
}

/// What the process grows by as a plan is made and run, beside what the plan says.
fn memory(problem: Problem) -> regard::Result<()> {
    // Threads with their stacks and working memory are there before.
    Problem { seq_q: 256, seq_kv: 256, ..problem }.plan()?.submit()?;
    let Some(before) = resident_bytes() else {
        println!("\nmemory: this system has no /proc/self/status");
        return Ok(());
    };
    let inputs = problem.inputs();
    let mut plan = Plan::new(&Device::cpu(), &problem.graph()?)?;
    for (name, value) in ["q", "k", "v"].into_iter().zip(&inputs) {
        plan.write(name, value)?;
    }
    let described = plan.describe().peak_bytes();
    plan.submit()?;
    let result = plan.read("y")?;
    let host: u64 = inputs.iter().chain([&result]).map(|tensor| tensor.desc().bytes()).sum();
    let grown = resident_bytes().unwrap_or(before) - before;
    println!("\nmemory, attention of {} queries over {} keys", problem.seq_q, problem.seq_kv);
    println!(
        "  resident {grown} bytes more; the plan's {described} and the host tensors' {host}: {:.4} of them",
        grown as f64 / (described + host) as f64
    );
    Ok(())
}

fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}
