//! Loops come to their end: each technique of the ops in [`growing`], at the largest size at which a driver that ends loops after so
//! many rounds is offered it. On other devices the same sizes are so many more cases.

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
    AttentionFused, AttentionSplit, Conv2d, Counted, Gru, ImageLayout, LayerNorm, LinearAttention, LocallyConnected,
    LogSumExp, Lstm, MaskedSoftmax, MatMul, MaxPoolIndices, NormRule, Operands, Padding, Pool2d, PoolKind, Reduce,
    ReducedAxes, Reduction, RmsNorm, Rounding, ScoreRule, Softmax, Statistics, Window2d,
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
    op: fn(usize) -> Arc<dyn Op>,
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
            op: (self.op)(size),
            inputs,
            tolerance: Tolerance::of_scale(2e-4),
        }
    }

    fn technique(&self, size: usize, name: &str, capabilities: &Capabilities) -> Option<Technique> {
        let case = self.case(size);
        let techniques = case.op.techniques(&case.descs(), capabilities);
        techniques.into_iter().find(|technique| technique.name() == name)
    }
}

fn attention(queries: usize, keys: usize, width: usize) -> Vec<Input> {
    let of = |rows: usize| (Dtype::F32, vec![1, 1, rows, width], 1.0);
    vec![of(queries), of(keys), of(keys)]
}

fn growing() -> Vec<Growing> {
    let fused: fn(usize) -> Arc<dyn Op> = |_| Arc::new(AttentionFused { scale: 0.1, ..AttentionFused::default() });
    let split: fn(usize) -> Arc<dyn Op> = |_| {
        Arc::new(AttentionSplit { scale: 0.1, rule: ScoreRule::default(), operands: Operands::default(), splits: 1 })
    };
    let row: fn(usize) -> Vec<Input> = |length| vec![(Dtype::F32, vec![1, length], 1.0)];
    let images: fn(usize) -> Vec<Input> = |columns| vec![(Dtype::F32, vec![1, 1, 1, columns + 2], 1.0)];
    vec![
        Growing { name: "attention, a row, width 64", op: fused, inputs: |keys| attention(1, keys, 64), step: 16 },
        Growing { name: "attention, a row, width 128", op: fused, inputs: |keys| attention(1, keys, 128), step: 16 },
        Growing { name: "attention, a row, width 63", op: fused, inputs: |keys| attention(1, keys, 63), step: 16 },
        Growing { name: "attention, 70 rows, width 64", op: fused, inputs: |keys| attention(70, keys, 64), step: 16 },
        Growing {
            name: "attention, 130 rows, width 128",
            op: fused,
            inputs: |keys| attention(130, keys, 128),
            step: 16,
        },
        Growing {
            name: "attention, bf16",
            op: fused,
            inputs: |keys| attention(1, keys, 64).into_iter().map(|(_, shape, x)| (Dtype::BF16, shape, x)).collect(),
            step: 16,
        },
        Growing { name: "a share of attention", op: split, inputs: |keys| attention(3, keys, 64), step: 16 },
        Growing {
            name: "product of rows",
            op: |_| Arc::new(MatMul::default()),
            inputs: |k| vec![(Dtype::F32, vec![5, k], 1.0), (Dtype::F32, vec![k, 3], 1.0)],
            step: 16,
        },
        Growing {
            name: "product of many rows",
            op: |_| Arc::new(MatMul { transpose_b: true, ..MatMul::default() }),
            inputs: |k| vec![(Dtype::F32, vec![40, k], 1.0), (Dtype::F32, vec![36, k], 1.0)],
            step: 16,
        },
        Growing {
            name: "lstm",
            op: |_| Arc::new(Lstm::default()),
            inputs: |steps| vec![(Dtype::F32, vec![1, steps, 4 * 40], 1.0), (Dtype::F32, vec![40, 4 * 40], 0.1)],
            step: 1,
        },
        Growing {
            name: "gru",
            op: |_| Arc::new(Gru::default()),
            inputs: |steps| vec![(Dtype::F32, vec![1, steps, 3 * 40], 1.0), (Dtype::F32, vec![40, 3 * 40], 0.1)],
            step: 1,
        },
        Growing {
            name: "linear attention",
            op: |_| {
                Arc::new(LinearAttention {
                    heads: 2,
                    kv_heads: 1,
                    scale: None,
                    has_past: false,
                    has_decay: false,
                    has_beta: false,
                })
            },
            inputs: |seq| [2, 1, 1].map(|heads| (Dtype::F32, vec![1, seq, heads * 40], 0.1)).to_vec(),
            step: 1,
        },
        Growing {
            name: "sum",
            op: |_| Arc::new(Reduce { reduction: Reduction::Sum, axes: vec![1], reduced: ReducedAxes::Kept }),
            inputs: row,
            step: 256,
        },
        Growing { name: "softmax", op: |_| Arc::new(Softmax { scale: 1.0, has_sinks: false }), inputs: row, step: 256 },
        Growing {
            name: "mask and softmax",
            op: |_| Arc::new(MaskedSoftmax { rule: ScoreRule::default(), has_sinks: false }),
            inputs: |length| vec![(Dtype::F32, vec![1, 1, 1, length], 1.0)],
            step: 256,
        },
        Growing { name: "logarithm of a sum", op: |_| Arc::new(LogSumExp::default()), inputs: row, step: 256 },
        Growing {
            name: "layer norm",
            op: |_| Arc::new(LayerNorm { axis: 1, epsilon: 1e-5, statistics: Statistics::Omit }),
            inputs: |length| vec![(Dtype::F32, vec![1, length], 1.0), (Dtype::F32, vec![length], 1.0)],
            step: 256,
        },
        Growing {
            name: "norm by the mean square",
            op: |_| Arc::new(RmsNorm { rule: NormRule { epsilon: 1e-5, has_weight: false } }),
            inputs: row,
            step: 256,
        },
        Growing {
            name: "convolution of many channels",
            op: |_| Arc::new(Conv2d::default()),
            inputs: |channels| {
                vec![(Dtype::F32, vec![1, channels, 2, 3], 1.0), (Dtype::F32, vec![5, channels, 1, 1], 1.0)]
            },
            step: 8,
        },
        Growing {
            name: "convolution of many columns",
            op: |_| Arc::new(Conv2d::default()),
            inputs: |columns| {
                vec![(Dtype::F32, vec![1, 1, 2, columns + 1], 1.0), (Dtype::F32, vec![3, 1, 1, columns], 1.0)]
            },
            step: 8,
        },
        Growing {
            name: "convolution of many rows",
            op: |_| Arc::new(Conv2d::default()),
            inputs: |rows| vec![(Dtype::F32, vec![1, 3, rows + 1, 1], 1.0), (Dtype::F32, vec![2, 3, rows, 1], 1.0)],
            step: 8,
        },
        Growing {
            name: "locally connected",
            op: |_| Arc::new(LocallyConnected { kernel: [1, 1], stride: [1, 1] }),
            inputs: |channels| {
                vec![(Dtype::F32, vec![1, 1, 2, channels], 1.0), (Dtype::F32, vec![2, channels, 3], 1.0)]
            },
            step: 8,
        },
        Growing {
            name: "averages",
            op: |columns| Arc::new(pool(PoolKind::Average(Counted::Image), [1, columns])),
            inputs: images,
            step: 64,
        },
        Growing { name: "maxima", op: |columns| Arc::new(pool(PoolKind::Max, [1, columns])), inputs: images, step: 64 },
        Growing {
            name: "maxima of rows",
            op: |rows| Arc::new(pool(PoolKind::Max, [rows, 1])),
            inputs: |rows| vec![(Dtype::F32, vec![1, 1, rows + 2, 1], 1.0)],
            step: 64,
        },
        Growing {
            name: "places of maxima",
            op: |columns| {
                let Pool2d { layout, window, padding, rounding, .. } = pool(PoolKind::Max, [1, columns]);
                Arc::new(MaxPoolIndices { layout, window, padding, rounding })
            },
            inputs: images,
            step: 64,
        },
    ]
}

fn pool(kind: PoolKind, kernel: [usize; 2]) -> Pool2d {
    let window = Window2d { kernel, stride: [1, 1], dilation: [1, 1] };
    let (layout, padding, rounding) = (ImageLayout::Nchw, Padding::default(), Rounding::default());
    Pool2d { kind, layout, window, padding, rounding }
}

/// Each technique that a limited driver is offered, at the largest size at which it is.
fn at_its_largest(subject: &Subject, growing: &Growing) -> Verdict {
    let own = subject.device.capabilities();
    let limited = Capabilities { loop_rounds: own.loop_rounds.or(Some(ROUNDS)), ..own.clone() };
    let least = growing.case(growing.step);
    let techniques = least.op.techniques(&least.descs(), &limited);
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
