//! How many elements of keys and values `attention_fused` and `attention_split` load, counted by the kernel itself: the library
//! file that reads them is exchanged for one that counts.

mod common;

use std::process::ExitCode;
use std::sync::Arc;

use common::{Subject, Verdict, each_device, each_of, run};
use libtest_mimic::Completion;
use regard::capabilities::{Backend, Capabilities};
use regard::case::{CaseInput, Values};
use regard::compare::{NanMeans, Tolerance, compare};
use regard::mask::Masking;
use regard::op::{Cost, CpuKernel, Op, Rows, Technique, Update};
use regard::ops::{AttentionFused, AttentionSplit, ScoreRule};
use regard::shader::{Constant, Source};
use regard::{Causal, Dtype, Graph, HostTensor, Plan, PlanOptions, Result, TensorDesc, Window};

/// What a trial is called, and what it does.
type Named = (&'static str, fn(&Subject) -> Verdict);

fn main() -> ExitCode {
    let tests: [Named; 6] = [
        ("all keys, and each of them once for each tile of queries", dense),
        ("causality at 4096 leaves at most 60 % of the key tiles", causal),
        ("a window of 256 at 16384 leaves under 5 %", window),
        ("a decoding step reads what the lengths say", lengths),
        ("a window of a decoding step in shares is all that is read", window_of_shares),
        ("tiles that a boolean mask hides are not read", masked),
    ];
    let counts = tests.into_iter().flat_map(|(name, test)| each_of(&[Backend::Gpu], name, test));
    run(counts.chain(each_device("the kernel that counts computes attention", computes)).collect())
}

const HEAD_DIM: usize = 16;

/// Techniques of `attention_split` on a GPU.
const SPLIT: [&str; 2] = ["attention_split", "attention_split_direct"];
const COUNTED: Source = Source {
    name: "lib/kv_counted",
    text: "
alias KvElem = f32; // host
@group(0) @binding(2) var<storage, read> k: array<KvElem>;
@group(0) @binding(3) var<storage, read> v: array<KvElem>;
@group(0) @binding(30) var<storage, read_write> loads: array<atomic<u32>, 2>;

fn k_at(row: u32, d: u32) -> f32 {
    atomicAdd(&loads[0], 1u);
    return f32(k[row * HEAD_DIM + d]);
}

fn v_at(row: u32, d: u32) -> f32 {
    atomicAdd(&loads[1], 1u);
    return f32(v[row * VALUE_DIM + d]);
}

fn k_four(row: u32, d: u32) -> vec4<f32> {
    return vec4(k_at(row, d), k_at(row, d + 1u), k_at(row, d + 2u), k_at(row, d + 3u));
}

fn v_four(row: u32, d: u32) -> vec4<f32> {
    return vec4(v_at(row, d), v_at(row, d + 1u), v_at(row, d + 2u), v_at(row, d + 3u));
}
",
};
const COUNTER_BINDING: u32 = 30;

/// `attention_fused` or `attention_split` with one output more: how many elements of k and of v were read.
#[derive(Debug)]
struct Counted<T>(T);

impl<T: Op> Op for Counted<T> {
    fn name(&self) -> &'static str {
        "attention_counted"
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let mut outputs = self.0.outputs(inputs)?;
        outputs.push(TensorDesc::new(Dtype::U32, [2]));
        Ok(outputs)
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        self.0.reference(inputs, rows)
    }

    fn cost(&self, inputs: &[TensorDesc]) -> Cost {
        self.0.cost(inputs)
    }

    fn updates(&self) -> &'static [Update] {
        &[]
    }

    fn check(&self, inputs: &[TensorDesc], data: &[Option<&HostTensor>]) -> Result<()> {
        self.0.check(inputs, data)
    }

    fn techniques(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Vec<Technique> {
        let counted = |technique| match technique {
            Technique::Gpu(mut launch) => {
                let vectors = launch.shader.libraries.iter_mut().find(|library| library.name == "lib/kv_vectors");
                *vectors.expect("rows of 16 f32 are read by kv_vectors") = COUNTED;
                launch.bindings.outputs.push(COUNTER_BINDING);
                Technique::Gpu(launch)
            }
            Technique::Cpu(kernel) => Technique::Cpu(CpuKernel {
                name: kernel.name,
                // It counts nothing, and knows of no output more.
                run: Arc::new(move |inputs, outputs| {
                    let (_, own) = outputs.split_last_mut().expect("the counters are an output");
                    (kernel.run)(inputs, own)
                }),
            }),
        };
        self.0.techniques(inputs, capabilities).into_iter().map(counted).collect()
    }
}

/// `[batch, heads, kv_heads, seq_q, seq_kv]` with a rule and its tensors.
struct Problem {
    sizes: [usize; 5],
    rule: ScoreRule,
    tensors: Vec<HostTensor>,
}

impl Problem {
    fn new(sizes: [usize; 5], masking: Masking) -> Self {
        Self { sizes, rule: ScoreRule { masking, ..ScoreRule::default() }, tensors: Vec::new() }
    }

    fn op(&self) -> AttentionFused {
        AttentionFused { scale: 0.25, rule: self.rule, ..AttentionFused::default() }
    }

    fn split(&self) -> AttentionSplit {
        let AttentionFused { scale, rule, operands, .. } = self.op();
        AttentionSplit { scale, rule, operands, splits: 5 }
    }

    fn values(&self) -> Vec<HostTensor> {
        let [batch, heads, kv_heads, seq_q, seq_kv] = self.sizes;
        let normal = |heads, seq| CaseInput::normal(Dtype::F32, &[batch, heads, seq, HEAD_DIM], 1.0);
        let qkv = [normal(heads, seq_q), normal(kv_heads, seq_kv), normal(kv_heads, seq_kv)];
        qkv.iter().zip(1..).map(|(input, seed)| input.draw(seed)).chain(self.tensors.clone()).collect()
    }

    /// Names of the techniques that are offered, with the query rows of their tiles.
    fn techniques(&self, subject: &Subject) -> Vec<(&'static str, u64)> {
        let descs: Vec<TensorDesc> = self.values().iter().map(|value| value.desc().clone()).collect();
        let queries = |technique: &Technique| match technique {
            Technique::Gpu(launch) => match launch.shader.constants.iter().find(|(name, _)| *name == "QUERIES") {
                Some((_, Constant::U32(queries))) => u64::from(*queries),
                _ => panic!("{} does not say how many rows a tile has", technique.name()),
            },
            Technique::Cpu(_) => 1,
        };
        let offered = self.op().techniques(&descs, subject.device.capabilities());
        offered.iter().map(|technique| (technique.name(), queries(technique))).collect()
    }

    /// The output, and how many elements of k and of v were read.
    fn run(&self, subject: &Subject, technique: &str) -> Result<[HostTensor; 2]> {
        let values = self.values();
        let names: Vec<String> = (0..values.len()).map(|index| format!("input {index}")).collect();
        let mut graph = Graph::new();
        let inputs = names.iter().zip(&values).map(|(name, value)| graph.input(name, value.desc().clone()));
        let inputs = inputs.collect::<Result<Vec<_>>>()?;
        let outputs = match technique.starts_with("attention_split") {
            true => graph.add(Counted(self.split()), &inputs)?,
            false => graph.add(Counted(self.op()), &inputs)?,
        };
        graph.output("y", outputs[0])?;
        graph.output("loads", outputs[outputs.len() - 1])?;
        let given: Vec<_> = names.iter().map(String::as_str).zip(&values).collect();
        let options = PlanOptions::technique("attention_counted", technique);
        let mut outputs = Plan::with_options(&subject.device, &graph, &options)?.run(&given)?;
        Ok(["y", "loads"].map(|name| outputs.remove(name).expect("it was named")))
    }

    /// Rows of k and of v that were read, elements divided by the size of a row.
    fn rows_read(&self, subject: &Subject, technique: &str) -> std::result::Result<[u64; 2], libtest_mimic::Failed> {
        let [_, loads] = self.run(subject, technique)?;
        let loads = loads.as_u32().expect("the counters are u32");
        assert!(loads.iter().all(|load| load % HEAD_DIM as u32 == 0), "{loads:?}: whole rows are read");
        Ok([0, 1].map(|tensor| u64::from(loads[tensor]) / HEAD_DIM as u64))
    }

    /// What would be read if every tile of queries read every key.
    fn all(&self, queries: u64) -> u64 {
        let [batch, heads, _, seq_q, seq_kv] = self.sizes;
        (batch * heads) as u64 * (seq_q as u64).div_ceil(queries) * seq_kv as u64
    }
}

fn computes(subject: &Subject) -> Verdict {
    let problem = Problem::new([2, 4, 2, 3, 70], Masking { causal: Some(Causal::BottomRight), ..Masking::default() });
    let values = problem.values();
    let wanted = problem.op().reference(&values.iter().collect::<Vec<_>>(), Rows::All).remove(0);
    for (technique, _) in problem.techniques(subject) {
        let [y, _] = problem.run(subject, technique)?;
        let comparison = compare(&y, &wanted, Tolerance::of_scale(1e-5), NanMeans::Nan);
        assert!(comparison.passed(), "{technique}: {comparison}");
    }
    Ok(Completion::Completed)
}

fn dense(subject: &Subject) -> Verdict {
    // Queries of two heads on one, but too many for one tile.
    for sizes in [[1, 1, 1, 32, 32], [2, 3, 3, 70, 101], [1, 2, 1, 130, 7]] {
        let problem = Problem::new(sizes, Masking::default());
        for (technique, queries) in problem.techniques(subject) {
            assert_eq!(problem.rows_read(subject, technique)?, [problem.all(queries); 2], "{technique}: {sizes:?}");
        }
    }
    Ok(Completion::Completed)
}

fn causal(subject: &Subject) -> Verdict {
    for causal in [Causal::TopLeft, Causal::BottomRight] {
        let masking = Masking { causal: Some(causal), ..Masking::default() };
        let problem = Problem::new([1, 1, 1, 4096, 4096], masking);
        for (technique, share) in shares(&problem, subject)? {
            assert!(share <= 0.6, "{technique}, {causal:?}: {share}");
            // Half of the tiles, and the diagonal's.
            assert!((share - 0.5).abs() < 0.02, "{technique}, {causal:?}: {share}");
        }
    }
    Ok(Completion::Completed)
}

fn window(subject: &Subject) -> Verdict {
    for right in [Some(0), Some(256)] {
        let window = Some(Window { left: Some(256), right, align: None });
        let problem = Problem::new([1, 1, 1, 16_384, 16_384], Masking { window, ..Masking::default() });
        for (technique, share) in shares(&problem, subject)? {
            assert!(share < 0.05, "{technique}, right {right:?}: {share}");
        }
    }
    Ok(Completion::Completed)
}

/// Which share of all keys each technique reads.
fn shares(
    problem: &Problem,
    subject: &Subject,
) -> std::result::Result<Vec<(&'static str, f64)>, libtest_mimic::Failed> {
    let share = |(technique, queries)| {
        let [k, v] = problem.rows_read(subject, technique)?;
        assert_eq!(k, v, "{technique}");
        Ok((technique, k as f64 / problem.all(queries) as f64))
    };
    problem.techniques(subject).into_iter().map(share).collect()
}

fn lengths(subject: &Subject) -> Verdict {
    let lengths = [10, 100, 1000];
    for (heads, kv_heads) in [(2, 2), (8, 2), (8, 1)] {
        let mut problem = Problem::new([3, heads, kv_heads, 1, 1024], Masking::default());
        problem.rule.has_lengths = true;
        problem.tensors.push(HostTensor::u32(&[3], lengths.to_vec())?);
        let wanted = kv_heads as u64 * u64::from(lengths.iter().sum::<u32>());
        let techniques = problem.techniques(subject).into_iter().map(|(technique, _)| technique);
        for technique in techniques.chain(SPLIT) {
            for read in problem.rows_read(subject, technique)? {
                let few = read as f64 <= 1.1 * wanted as f64;
                assert!(few, "{technique}, {heads} heads on {kv_heads}: {read} rows, {wanted} exist");
            }
        }
    }
    Ok(Completion::Completed)
}

/// From the tile that the window begins in up to the last key, once for the four heads of each key head.
fn window_of_shares(subject: &Subject) -> Verdict {
    let window = Some(Window { left: Some(255), right: Some(0), align: None });
    let masking = Masking { causal: Some(Causal::BottomRight), window, ..Masking::default() };
    let problem = Problem::new([1, 8, 2, 1, 16_384], masking);
    for technique in SPLIT {
        assert_eq!(problem.rows_read(subject, technique)?, [2 * 256; 2], "{technique}");
    }
    Ok(Completion::Completed)
}

/// A mask of blocks of 128 × 128, every other of which is hidden.
fn masked(subject: &Subject) -> Verdict {
    let mut problem = Problem::new([1, 2, 2, 256, 256], Masking::default());
    problem.rule.has_mask = true;
    let seen = (0..256 * 256).map(|at| (at / 256 / 128 + at % 256 / 128) % 2 == 0);
    problem.tensors.push(HostTensor::bool(&[256, 256], seen.collect())?);
    for (technique, queries) in problem.techniques(subject) {
        assert_eq!(problem.rows_read(subject, technique)?, [problem.all(queries) / 2; 2], "{technique}");
    }
    // The control: a mask of single keys hides no tile.
    problem.tensors = vec![
        CaseInput {
            desc: TensorDesc::new(Dtype::Bool, [256, 256]),
            values: Values::Mask { keep: 0.5, empty_rows: false },
        }
        .draw(1),
    ];
    for (technique, queries) in problem.techniques(subject) {
        assert_eq!(problem.rows_read(subject, technique)?, [problem.all(queries); 2], "{technique}");
    }
    Ok(Completion::Completed)
}
