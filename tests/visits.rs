//! How many elements of keys and values `attention_fused` loads, counted by the kernel itself: the library file that reads
//! them is exchanged for one that counts.

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
use regard::ops::{AttentionFused, ScoreRule};
use regard::shader::Source;
use regard::{Causal, Dtype, Graph, HostTensor, Plan, Result, TensorDesc, Window};

/// What a trial is called, and what it does.
type Named = (&'static str, fn(&Subject) -> Verdict);

fn main() -> ExitCode {
    let tests: [Named; 5] = [
        ("all keys, and each of them once for each tile of queries", dense),
        ("causality at 4096 leaves at most 60 % of the key tiles", causal),
        ("a window of 256 at 16384 leaves under 5 %", window),
        ("a decoding step reads what the lengths say", lengths),
        ("tiles that a boolean mask hides are not read", masked),
    ];
    let counts = tests.into_iter().flat_map(|(name, test)| each_of(&[Backend::Gpu], name, test));
    run(counts.chain(each_device("the kernel that counts computes attention", computes)).collect())
}

const HEAD_DIM: usize = 16;
/// Query rows and keys of a tile of `attention_fused`.
const TILE: u64 = 32;

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
",
};
const COUNTER_BINDING: u32 = 30;

/// `attention_fused` with one output more: how many elements of k and of v were read.
#[derive(Debug)]
struct Counted(AttentionFused);

impl Op for Counted {
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
                let plain = launch.shader.libraries.iter_mut().find(|library| library.name == "lib/kv_plain");
                *plain.expect("f32 keys are read by kv_plain") = COUNTED;
                launch.bindings.outputs.push(COUNTER_BINDING);
                Technique::Gpu(launch)
            }
            Technique::Cpu(kernel) => Technique::Cpu(CpuKernel {
                name: kernel.name,
                // It counts nothing, and knows of no second output.
                run: Arc::new(move |inputs, outputs| (kernel.run)(inputs, &mut outputs[..1])),
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

    fn values(&self) -> Vec<HostTensor> {
        let [batch, heads, kv_heads, seq_q, seq_kv] = self.sizes;
        let normal = |heads, seq| CaseInput::normal(Dtype::F32, &[batch, heads, seq, HEAD_DIM], 1.0);
        let qkv = [normal(heads, seq_q), normal(kv_heads, seq_kv), normal(kv_heads, seq_kv)];
        qkv.iter().zip(1..).map(|(input, seed)| input.draw(seed)).chain(self.tensors.clone()).collect()
    }

    /// The output, and how many elements of k and of v were read.
    fn run(&self, subject: &Subject) -> Result<[HostTensor; 2]> {
        let values = self.values();
        let names: Vec<String> = (0..values.len()).map(|index| format!("input {index}")).collect();
        let mut graph = Graph::new();
        let inputs = names.iter().zip(&values).map(|(name, value)| graph.input(name, value.desc().clone()));
        let inputs = inputs.collect::<Result<Vec<_>>>()?;
        let outputs = graph.add(Counted(self.op()), &inputs)?;
        graph.output("y", outputs[0])?;
        graph.output("loads", outputs[1])?;
        let given: Vec<_> = names.iter().map(String::as_str).zip(&values).collect();
        let mut outputs = Plan::new(&subject.device, &graph)?.run(&given)?;
        Ok(["y", "loads"].map(|name| outputs.remove(name).expect("it was named")))
    }

    /// Rows of k and of v that were read, elements divided by the size of a row.
    fn rows_read(&self, subject: &Subject) -> std::result::Result<[u64; 2], libtest_mimic::Failed> {
        let [_, loads] = self.run(subject)?;
        let loads = loads.as_u32().expect("the counters are u32");
        assert!(loads.iter().all(|load| load % HEAD_DIM as u32 == 0), "{loads:?}: whole rows are read");
        Ok([0, 1].map(|tensor| u64::from(loads[tensor]) / HEAD_DIM as u64))
    }

    /// What would be read if every tile of queries read every key.
    fn all(&self) -> u64 {
        let [batch, heads, _, seq_q, seq_kv] = self.sizes;
        (batch * heads) as u64 * (seq_q as u64).div_ceil(TILE) * seq_kv as u64
    }
}

fn computes(subject: &Subject) -> Verdict {
    let problem = Problem::new([2, 4, 2, 3, 70], Masking { causal: Some(Causal::BottomRight), ..Masking::default() });
    let values = problem.values();
    let wanted = problem.op().reference(&values.iter().collect::<Vec<_>>(), Rows::All).remove(0);
    let [y, _] = problem.run(subject)?;
    let comparison = compare(&y, &wanted, Tolerance::of_scale(1e-5), NanMeans::Nan);
    assert!(comparison.passed(), "{comparison}");
    Ok(Completion::Completed)
}

fn dense(subject: &Subject) -> Verdict {
    for sizes in [[1, 1, 1, 32, 32], [2, 3, 3, 70, 101], [1, 2, 1, 33, 7]] {
        let problem = Problem::new(sizes, Masking::default());
        assert_eq!(problem.rows_read(subject)?, [problem.all(); 2], "{sizes:?}");
    }
    Ok(Completion::Completed)
}

fn causal(subject: &Subject) -> Verdict {
    for causal in [Causal::TopLeft, Causal::BottomRight] {
        let masking = Masking { causal: Some(causal), ..Masking::default() };
        let problem = Problem::new([1, 1, 1, 4096, 4096], masking);
        let share = share(&problem, subject)?;
        assert!(share <= 0.6, "{causal:?}: {share}");
        // Half of the tiles, and the diagonal's.
        assert!((share - 0.5).abs() < 0.01, "{causal:?}: {share}");
    }
    Ok(Completion::Completed)
}

fn window(subject: &Subject) -> Verdict {
    for right in [Some(0), Some(256)] {
        let window = Some(Window { left: Some(256), right, align: None });
        let problem = Problem::new([1, 1, 1, 16_384, 16_384], Masking { window, ..Masking::default() });
        let share = share(&problem, subject)?;
        assert!(share < 0.05, "right {right:?}: {share}");
    }
    Ok(Completion::Completed)
}

fn share(problem: &Problem, subject: &Subject) -> std::result::Result<f64, libtest_mimic::Failed> {
    let [k, v] = problem.rows_read(subject)?;
    assert_eq!(k, v);
    Ok(k as f64 / problem.all() as f64)
}

fn lengths(subject: &Subject) -> Verdict {
    let lengths = [10, 100, 1000];
    for (heads, kv_heads) in [(2, 2), (8, 2), (8, 1)] {
        let mut problem = Problem::new([3, heads, kv_heads, 1, 1024], Masking::default());
        problem.rule.has_lengths = true;
        problem.tensors.push(HostTensor::u32(&[3], lengths.to_vec())?);
        let wanted = kv_heads as u64 * u64::from(lengths.iter().sum::<u32>());
        for read in problem.rows_read(subject)? {
            assert!(read as f64 <= 1.1 * wanted as f64, "{heads} heads on {kv_heads}: {read} rows, {wanted} exist");
        }
    }
    Ok(Completion::Completed)
}

/// A mask of blocks of 64 × 64, every other of which is hidden.
fn masked(subject: &Subject) -> Verdict {
    let mut problem = Problem::new([1, 2, 2, 256, 256], Masking::default());
    problem.rule.has_mask = true;
    let seen = (0..256 * 256).map(|at| (at / 256 / 64 + at % 256 / 64) % 2 == 0);
    problem.tensors.push(HostTensor::bool(&[256, 256], seen.collect())?);
    assert_eq!(problem.rows_read(subject)?, [problem.all() / 2; 2]);
    // The control: a mask of single keys hides no tile.
    problem.tensors = vec![
        CaseInput {
            desc: TensorDesc::new(Dtype::Bool, [256, 256]),
            values: Values::Mask { keep: 0.5, empty_rows: false },
        }
        .draw(1),
    ];
    assert_eq!(problem.rows_read(subject)?, [problem.all(); 2]);
    Ok(Completion::Completed)
}
