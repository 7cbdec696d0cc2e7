//! Loops come to their end: each technique of the ops in [`growing`], at the largest size at which a driver that ends loops after so
//! many rounds is offered it. On other devices the same sizes are so many more cases. What windows and rows of norms take is
//! bounded too, and not run here.

mod common;
#[path = "common/turns.rs"]
mod turns;

use std::process::ExitCode;
use std::sync::Arc;

use common::{Subject, Verdict, each_device, each_of, run};
use libtest_mimic::Completion;
use regard::capabilities::{Backend, Capabilities};
use regard::case::{Case, CaseInput};
use regard::compare::Tolerance;
use regard::op::{Op, Technique};
use regard::ops::{
    AttentionFused, AttentionSplit, Gru, LinearAttention, Lstm, MatMul, Operands, Reduce, ReducedAxes, Reduction,
    ScoreRule, Softmax,
};
use regard::verify::Prepared;
use regard::{Attention, Device, Dtype, Graph, HostTensor, Plan, TensorDesc};
use turns::in_turn;

/// What Mesa's software device is taken to allow before version 25.
const ROUNDS: usize = 48_000;

fn main() -> ExitCode {
    let trials = growing().into_iter().enumerate().flat_map(|(number, growing)| {
        let name = growing.name;
        in_turn(number, each_of(&[Backend::Gpu], name, move |subject| at_its_largest(subject, &growing)))
    });
    let lowered = each_device("attention over more keys than one kernel walks", more_keys);
    run(trials.chain(lowered).collect())
}

/// Dtype, shape and deviation.
type Input = (Dtype, Vec<usize>, f32);

/// An op with inputs of a size that grows.
struct Growing {
    name: &'static str,
    op: Arc<dyn Op>,
    inputs: fn(usize) -> Vec<Input>,
    /// Sizes are multiples of this.
    step: usize,
}

impl Growing {
    fn case(&self, size: usize) -> Case {
        let inputs = (self.inputs)(size).into_iter();
        let inputs = inputs.map(|(dtype, shape, deviation)| CaseInput::normal(dtype, &shape, deviation)).collect();
        Case {
            name: format!("{} {size}", self.name),
            op: self.op.clone(),
            inputs,
            tolerance: Tolerance::of_scale(2e-4),
        }
    }

    fn technique(&self, size: usize, name: &str, capabilities: &Capabilities) -> Option<Technique> {
        let techniques = self.op.techniques(&self.case(size).descs(), capabilities);
        techniques.into_iter().find(|technique| technique.name() == name)
    }
}

fn attention(queries: usize, keys: usize, width: usize) -> Vec<Input> {
    let of = |rows: usize| (Dtype::F32, vec![1, 1, rows, width], 1.0);
    vec![of(queries), of(keys), of(keys)]
}

fn growing() -> Vec<Growing> {
    let fused = || -> Arc<dyn Op> { Arc::new(AttentionFused { scale: 0.1, ..AttentionFused::default() }) };
    let split: Arc<dyn Op> =
        Arc::new(AttentionSplit { scale: 0.1, rule: ScoreRule::default(), operands: Operands::default(), splits: 1 });
    let product = |transpose_b| -> Arc<dyn Op> { Arc::new(MatMul { transpose_b, ..MatMul::default() }) };
    vec![
        Growing { name: "attention, a row, width 64", op: fused(), inputs: |keys| attention(1, keys, 64), step: 16 },
        Growing { name: "attention, a row, width 128", op: fused(), inputs: |keys| attention(1, keys, 128), step: 16 },
        Growing { name: "attention, a row, width 63", op: fused(), inputs: |keys| attention(1, keys, 63), step: 16 },
        Growing { name: "attention, 70 rows, width 64", op: fused(), inputs: |keys| attention(70, keys, 64), step: 16 },
        Growing {
            name: "attention, 130 rows, width 128",
            op: fused(),
            inputs: |keys| attention(130, keys, 128),
            step: 16,
        },
        Growing {
            name: "attention, bf16",
            op: fused(),
            inputs: |keys| attention(1, keys, 64).into_iter().map(|(_, shape, x)| (Dtype::BF16, shape, x)).collect(),
            step: 16,
        },
        Growing { name: "a share of attention", op: split, inputs: |keys| attention(3, keys, 64), step: 16 },
        Growing {
            name: "product of rows",
            op: product(false),
            inputs: |k| vec![(Dtype::F32, vec![5, k], 1.0), (Dtype::F32, vec![k, 3], 1.0)],
            step: 16,
        },
        Growing {
            name: "product of many rows",
            op: product(true),
            inputs: |k| vec![(Dtype::F32, vec![40, k], 1.0), (Dtype::F32, vec![36, k], 1.0)],
            step: 16,
        },
        Growing {
            name: "lstm",
            op: Arc::new(Lstm::default()),
            inputs: |steps| vec![(Dtype::F32, vec![1, steps, 4 * 40], 1.0), (Dtype::F32, vec![40, 4 * 40], 0.1)],
            step: 1,
        },
        Growing {
            name: "gru",
            op: Arc::new(Gru::default()),
            inputs: |steps| vec![(Dtype::F32, vec![1, steps, 3 * 40], 1.0), (Dtype::F32, vec![40, 3 * 40], 0.1)],
            step: 1,
        },
        Growing {
            name: "linear attention",
            op: Arc::new(LinearAttention {
                heads: 2,
                kv_heads: 1,
                scale: None,
                has_past: false,
                has_decay: false,
                has_beta: false,
            }),
            inputs: |seq| [2, 1, 1].map(|heads| (Dtype::F32, vec![1, seq, heads * 40], 0.1)).to_vec(),
            step: 1,
        },
        Growing {
            name: "sum",
            op: Arc::new(Reduce { reduction: Reduction::Sum, axes: vec![1], reduced: ReducedAxes::Kept }),
            inputs: |length| vec![(Dtype::F32, vec![1, length], 1.0)],
            step: 256,
        },
        Growing {
            name: "softmax",
            op: Arc::new(Softmax { scale: 1.0, has_sinks: false }),
            inputs: |length| vec![(Dtype::F32, vec![1, length], 1.0)],
            step: 256,
        },
    ]
}

/// Each technique that a limited driver is offered, at the largest size at which it is.
fn at_its_largest(subject: &Subject, growing: &Growing) -> Verdict {
    let own = subject.device.capabilities();
    let limited = Capabilities { loop_rounds: own.loop_rounds.or(Some(ROUNDS)), ..own.clone() };
    let techniques = growing.op.techniques(&growing.case(growing.step).descs(), &limited);
    let mut limits = 0;
    for name in techniques.iter().map(Technique::name) {
        let offered = |steps: usize| growing.technique(steps * growing.step, name, &limited).is_some();
        // A tensor has no more than a quarter of a binding's bytes at this number of steps.
        let mut end = 1;
        while end * growing.step < 1 << 23 && offered(end) {
            end *= 2;
        }
        if offered(end) {
            continue;
        }
        limits += 1;
        let (mut least, mut most) = (end / 2, end);
        while most - least > 1 {
            let middle = least.midpoint(most);
            if offered(middle) { least = middle } else { most = middle }
        }
        let size = least * growing.step;
        let prepared = Prepared::new(growing.case(size));
        let technique = growing.technique(size, name, own).expect("a device without a limit is offered it too");
        let outcome = prepared.check(&subject.device, &technique);
        if outcome.failed() {
            return Err(format!("{name}, {} {size}: {outcome}", growing.name).into());
        }
    }
    if limits == 0 {
        return Err(format!("{}: no technique has a limit", growing.name).into());
    }
    Ok(Completion::Completed)
}

/// So many keys that a limited driver is offered no kernel that walks them alone, for more rows than a decoding step has.
fn more_keys(subject: &Subject) -> Verdict {
    let [queries, keys, width] = [20, 40_000, 128];
    let mut graph = Graph::new();
    let shapes = [[1, 1, queries, width], [1, 1, keys, width], [1, 1, keys, width]];
    let tensors = ["q", "k", "v"].map(|name| name.to_owned());
    let mut inputs = Vec::new();
    for (name, shape) in tensors.iter().zip(shapes) {
        inputs.push(graph.input(name, TensorDesc::new(Dtype::F32, shape))?);
    }
    let o = graph.attention(inputs[0], inputs[1], inputs[2], &Attention::default())?;
    graph.output("o", o)?;
    let drawn: Vec<HostTensor> =
        shapes.iter().zip(1..).map(|(shape, seed)| CaseInput::normal(Dtype::F32, shape, 1.0).draw(seed)).collect();
    let run = |device: &Device| -> Result<HostTensor, regard::Error> {
        let mut plan = Plan::new(device, &graph)?;
        for (name, tensor) in tensors.iter().zip(&drawn) {
            plan.write(name, tensor)?;
        }
        plan.submit()?;
        plan.read("o")
    };
    let [got, expected] = [run(&subject.device)?, run(&Device::cpu())?].map(|tensor| tensor.to_f64());
    let worst = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    // Some 40,000 numbers with deviation 1 have a mean of about 0.005.
    if worst < 1e-5 { Ok(Completion::Completed) } else { Err(format!("off by {worst:.1e}").into()) }
}
