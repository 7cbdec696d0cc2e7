//! What a user can do wrong while a graph is built, without a device: a table of (input, expected message).

#[path = "common/bad_rules.rs"]
mod bad_rules;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use regard::ops::{AttentionFused, MatMul, MergeHeads, ScoreMasks, Softmax};
use regard::{Attention, Causal, Dtype, Fill, Graph, HostTensor, Result, Strategy, Tensor, TensorDesc, Window};

fn main() -> ExitCode {
    let mut trials: Vec<Trial> = bad_graphs()
        .into_iter()
        .chain(bad_rules::bad_rules())
        .map(|(name, build, expected)| {
            Trial::test(format!("graph/{name}"), move || refused(build(&mut Graph::new()).map(drop), expected))
        })
        .collect();
    for (name, build, expected) in bad_tensors() {
        trials.push(Trial::test(format!("tensor/{name}"), move || refused(build().map(drop), expected)));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// The whole message: op first, both sides named.
fn refused(result: Result<()>, expected: &str) -> std::result::Result<(), Failed> {
    match result {
        Err(error) if error.to_string() == expected => Ok(()),
        Err(error) => Err(format!("wanted: {expected}\n   got: {error}").into()),
        Ok(()) => Err(format!("nothing was refused; wanted: {expected}").into()),
    }
}

type Build = Box<dyn Fn(&mut Graph) -> Result<Tensor> + Send>;

type BadGraph = (&'static str, Build, &'static str);

/// An unnamed tensor of a graph under test.
fn tensor(graph: &mut Graph, dtype: Dtype, shape: &[usize]) -> Tensor {
    let name = format!("t{}", graph.inputs().count());
    graph.input(&name, TensorDesc::new(dtype, shape)).expect("a new name")
}

/// Attention on f32 shapes with these options and masks.
fn attends(shapes: [&'static [usize]; 3], options: Attention) -> Build {
    Box::new(move |graph| {
        let [q, k, v] = shapes.map(|shape| tensor(graph, Dtype::F32, shape));
        graph.attention(q, k, v, &options)
    })
}

/// Attention of `[1, 2, 5, 8]` over `[1, 2, 7, 8]` with a mask or bias of this dtype and shape.
fn masks(dtype: Dtype, shape: &'static [usize], bias: bool) -> Build {
    Box::new(move |graph| {
        let [q, k, v] = [5, 7, 7].map(|seq| tensor(graph, Dtype::F32, &[1, 2, seq, 8]));
        let given = Some(tensor(graph, dtype, shape));
        let (mask, bias) = if bias { (None, given) } else { (given, None) };
        graph.attention(q, k, v, &Attention { mask, bias, ..Attention::default() })
    })
}

/// A product of f32 shapes.
fn product(a: &'static [usize], b: &'static [usize], bias: Option<&'static [usize]>, options: MatMul) -> Build {
    Box::new(move |graph| {
        let [a, b] = [a, b].map(|shape| tensor(graph, Dtype::F32, shape));
        let bias = bias.map(|shape| tensor(graph, Dtype::F32, shape));
        graph.matmul(a, b, bias, options)
    })
}

/// Attention with key lengths of this dtype and shape.
fn lengths(dtype: Dtype, shape: &'static [usize]) -> Build {
    Box::new(move |graph| {
        let [q, k, v] = [5, 7, 7].map(|seq| tensor(graph, Dtype::F32, &[1, 2, seq, 8]));
        let kv_lengths = Some(tensor(graph, dtype, shape));
        graph.attention(q, k, v, &Attention { kv_lengths, ..Attention::default() })
    })
}

/// An op of one tensor.
fn one(dtype: Dtype, shape: &'static [usize], build: fn(&mut Graph, Tensor) -> Result<Tensor>) -> Build {
    Box::new(move |graph| {
        let x = tensor(graph, dtype, shape);
        build(graph, x)
    })
}

fn bad_graphs() -> Vec<BadGraph> {
    let plain = Attention::default();
    let window = |left, right| Attention { window: Some(Window { left, right, align: None }), ..plain };
    let unfused = Attention { strategy: Strategy::Unfused, ..plain };
    let qkv: [&[usize]; 3] = [&[1, 2, 5, 8], &[1, 2, 7, 8], &[1, 2, 7, 8]];
    let matmul = MatMul::default();
    let f32s = Dtype::F32;
    vec![
        (
            "head_dim of key",
            attends([&[1, 2, 5, 80], &[1, 2, 7, 64], &[1, 2, 7, 8]], plain),
            "attention: key has head_dim 64, query has 80",
        ),
        (
            "batch of key",
            attends([&[3, 2, 5, 8], &[1, 2, 7, 8], &[1, 2, 7, 8]], plain),
            "attention: key has batch 1, query has 3",
        ),
        (
            "batch of value",
            attends([&[1, 2, 5, 8], &[1, 2, 7, 8], &[3, 2, 7, 8]], plain),
            "attention: value has batch 3, key has 1",
        ),
        (
            "heads of value",
            attends([&[1, 2, 5, 8], &[1, 2, 7, 8], &[1, 1, 7, 8]], plain),
            "attention: value has kv_heads 1, key has 2",
        ),
        (
            "length of value",
            attends([&[1, 2, 5, 8], &[1, 2, 7, 8], &[1, 2, 6, 8]], plain),
            "attention: value has seq_kv 6, key has 7",
        ),
        (
            "the same, unfused",
            attends([&[1, 2, 5, 8], &[1, 2, 7, 8], &[1, 2, 6, 8]], unfused),
            "attention: value has seq_kv 6, key has 7",
        ),
        (
            "heads not divisible",
            attends([&[1, 6, 5, 8], &[1, 4, 7, 8], &[1, 4, 7, 8]], plain),
            "attention: query has 6 heads, which 4 key heads do not divide",
        ),
        (
            "no key heads",
            attends([&[1, 6, 5, 8], &[1, 0, 7, 8], &[1, 0, 7, 8]], plain),
            "attention: query has 6 heads, which 0 key heads do not divide",
        ),
        ("rank 1", attends([&[8], &[8], &[8]], plain), "attention: query has rank 2 to 4, got f32 [8]"),
        ("rank 5", attends([&[1, 1, 2, 5, 8]; 3], plain), "attention: query has rank 2 to 4, got f32 [1, 1, 2, 5, 8]"),
        (
            "two ranks",
            attends([&[1, 2, 5, 8], &[2, 7, 8], &[1, 2, 7, 8]], plain),
            "attention: query and key have one rank, query is f32 [1, 2, 5, 8], key is f32 [2, 7, 8]",
        ),
        (
            "two dtypes",
            Box::new(|graph| {
                let [q, k, v] = [Dtype::F32, Dtype::F16, Dtype::F32].map(|dtype| tensor(graph, dtype, &[1, 2, 7, 8]));
                graph.attention(q, k, v, &Attention::default())
            }),
            "attention: key and value are both f32, f16, bf16 or i8, key is f16 [1, 2, 7, 8], value is f32 [1, 2, 7, 8]",
        ),
        (
            "NaN scale",
            attends(qkv, Attention { scale: Some(f32::NAN), ..plain }),
            "attention: scale is NaN, it must be finite",
        ),
        (
            "infinite scale, unfused",
            attends(qkv, Attention { scale: Some(f32::INFINITY), ..unfused }),
            "attention: scale is inf, it must be finite",
        ),
        (
            "NaN scale of a fused op",
            Box::new(|graph| {
                let [q, k, v] = [(); 3].map(|()| tensor(graph, Dtype::F32, &[7, 8]));
                let op = AttentionFused { scale: f32::NAN, ..AttentionFused::default() };
                Ok(graph.add(op, &[q, k, v])?[0])
            }),
            "attention: scale is NaN, it must be finite",
        ),
        (
            "negative window to the left",
            attends(qkv, window(Some(-1), None)),
            "attention: window left is -1, it must be 0 or more",
        ),
        (
            "negative window to the right",
            attends(qkv, window(Some(3), Some(-7))),
            "attention: window right is -7, it must be 0 or more",
        ),
        (
            "negative window, unfused",
            attends(qkv, Attention { strategy: Strategy::Unfused, ..window(Some(-1), None) }),
            "attention: window left is -1, it must be 0 or more",
        ),
        (
            "NaN to assign",
            attends(qkv, Attention { fill: Fill::Assign(f32::NAN), causal: Some(Causal::TopLeft), ..plain }),
            "attention: the value assigned to masked scores is NaN",
        ),
        (
            "softcap of zero",
            attends(qkv, Attention { softcap: Some(0.0), ..plain }),
            "attention: softcap is 0, it must be finite and larger than zero",
        ),
        ("lengths of floats", lengths(Dtype::F32, &[1]), "attention: kv_lengths is f32 [1], it must be u32 [1]"),
        ("lengths of another batch", lengths(Dtype::U32, &[2]), "attention: kv_lengths is u32 [2], it must be u32 [1]"),
        (
            "mask of another length",
            masks(Dtype::Bool, &[5, 8], false),
            "attention: mask [5, 8] does not broadcast to scores [1, 2, 5, 7]",
        ),
        (
            "mask of rank 5",
            masks(Dtype::Bool, &[1, 1, 2, 5, 7], false),
            "attention: mask [1, 1, 2, 5, 7] does not broadcast to scores [1, 2, 5, 7]",
        ),
        (
            "mask of floats",
            masks(Dtype::F32, &[5, 7], false),
            "attention: the boolean mask is f32 [5, 7]; a float mask is a bias",
        ),
        (
            "bias of another length",
            masks(Dtype::F32, &[3, 5, 7], true),
            "attention: bias [3, 5, 7] does not broadcast to scores [1, 2, 5, 7]",
        ),
        (
            "boolean bias",
            masks(Dtype::Bool, &[5, 7], true),
            "attention: the bias is bool [5, 7], it must be f32 or f16",
        ),
        (
            "inner sizes",
            product(&[3, 4], &[5, 6], None, matmul),
            "matmul: a has 4 columns (f32 [3, 4]), b has 5 rows (f32 [5, 6])",
        ),
        (
            "inner sizes, transposed",
            product(&[3, 4], &[5, 6], None, MatMul { transpose_b: true, ..matmul }),
            "matmul: a has 4 columns (f32 [3, 4]), b has 6 rows (f32 [5, 6])",
        ),
        (
            "batch axes",
            product(&[2, 3, 4], &[3, 4, 6], None, matmul),
            "matmul: batch axes [2] of a and [3] of b do not broadcast",
        ),
        (
            "factor of rank 1",
            product(&[4], &[4, 6], None, matmul),
            "matmul: factors need rank 2 or more, a is f32 [4], b is f32 [4, 6]",
        ),
        (
            "bias of another length than n",
            product(&[3, 4], &[4, 6], Some(&[4]), matmul),
            "matmul: bias is f32 [4], the product has 6 columns",
        ),
        (
            "alpha",
            product(&[3, 4], &[4, 6], None, MatMul { alpha: f32::INFINITY, ..matmul }),
            "matmul: alpha is inf, it must be finite",
        ),
        (
            "four tensors",
            Box::new(|graph| {
                let [a, b, c, d] = [(); 4].map(|()| tensor(graph, Dtype::F32, &[4, 4]));
                Ok(graph.add(MatMul::default(), &[a, b, c, d])?[0])
            }),
            "matmul: takes two factors and a bias, got 4 tensors",
        ),
        (
            "one factor",
            one(f32s, &[4, 4], |graph, x| Ok(graph.add(MatMul::default(), &[x])?[0])),
            "matmul: takes two factors and a bias, got 1 tensors",
        ),
        (
            "softmax of a scalar",
            one(f32s, &[], |graph, x| graph.softmax(x, 1.0)),
            "softmax: takes f32 or f16 of rank 1 or more, got f32 []",
        ),
        (
            "softmax of booleans",
            one(Dtype::Bool, &[4], |graph, x| graph.softmax(x, 1.0)),
            "softmax: takes f32 or f16 of rank 1 or more, got bool [4]",
        ),
        (
            "softmax scale",
            one(f32s, &[4], |graph, x| graph.softmax(x, f32::NAN)),
            "softmax: scale is NaN, it must be finite",
        ),
        (
            "softmax of two",
            one(f32s, &[4], |graph, x| Ok(graph.add(Softmax { scale: 1.0, has_sinks: false }, &[x, x])?[0])),
            "softmax: takes one tensor, got 2",
        ),
        (
            "masked scores of rank 5",
            one(f32s, &[1; 5], |graph, x| graph.mask_scores(x, &ScoreMasks::default())),
            "mask_scores: scores are f32 or f16 of rank 2 to 4, got f32 [1, 1, 1, 1, 1]",
        ),
        (
            "heads that do not divide",
            one(f32s, &[2, 3, 10], |graph, x| graph.split_heads(x, 4)),
            "split_heads: width 10 is not divisible by 4 heads",
        ),
        (
            "no heads",
            one(f32s, &[2, 3, 10], |graph, x| graph.split_heads(x, 0)),
            "split_heads: width 10 is not divisible by 0 heads",
        ),
        (
            "heads of rank 2",
            one(f32s, &[3, 10], |graph, x| graph.split_heads(x, 2)),
            "split_heads: takes [batch, seq, width], got f32 [3, 10]",
        ),
        (
            "merging rank 3",
            one(f32s, &[2, 3, 10], |graph, x| Ok(graph.add(MergeHeads, &[x])?[0])),
            "merge_heads: takes [batch, heads, seq, head_dim], got f32 [2, 3, 10]",
        ),
        (
            "reshape",
            one(f32s, &[2, 3], |graph, x| graph.reshape(x, &[2, 4])),
            "reshape: [2, 3] has 6 elements, [2, 4] has 8",
        ),
        (
            "a name twice",
            one(f32s, &[2], |graph, _| graph.input("t0", TensorDesc::new(Dtype::F32, [3]))),
            "graph: two inputs or weights are named `t0`",
        ),
        (
            "a weight named as an input",
            one(f32s, &[2], |graph, _| graph.weight("t0", HostTensor::f32(&[1], vec![0.0])?)),
            "graph: two inputs or weights are named `t0`",
        ),
        (
            "no name",
            Box::new(|graph| graph.input("", TensorDesc::new(Dtype::F32, [3]))),
            "graph: an input or weight needs a name",
        ),
        (
            "f64",
            Box::new(|graph| graph.input("x", TensorDesc::new(Dtype::F64, [3]))),
            "graph: f64 [3] cannot be stored on a device; cast it to f32 or f16",
        ),
        (
            "more than any memory",
            Box::new(|graph| graph.input("x", TensorDesc::new(Dtype::F32, [1 << 40, 1 << 40]))),
            "graph: f32 [1099511627776, 1099511627776] is larger than any memory",
        ),
        (
            "a product larger than any memory",
            product(&[1 << 31, 1], &[1, 1 << 31], None, matmul),
            "graph: f32 [2147483648, 2147483648] is larger than any memory",
        ),
        (
            "an output's name twice",
            one(f32s, &[2], |graph, x| {
                graph.output("y", x)?;
                graph.output("y", x).map(|()| x)
            }),
            "graph: two outputs are named `y`",
        ),
        (
            "an output of another graph",
            one(f32s, &[2], |_, x| Graph::new().output("y", x).map(|()| x)),
            "graph: a tensor of another graph was used",
        ),
        (
            "a tensor of another graph",
            one(f32s, &[2], |_, x| Graph::new().softmax(x, 1.0)),
            "graph: a tensor of another graph was used",
        ),
        (
            "a mask of another graph",
            Box::new(|graph| {
                let [q, k, v] = [(); 3].map(|()| tensor(graph, Dtype::F32, &[7, 8]));
                let mask = Some(tensor(&mut Graph::new(), Dtype::Bool, &[7, 7]));
                graph.attention(q, k, v, &Attention { mask, ..Attention::default() })
            }),
            "graph: a tensor of another graph was used",
        ),
        (
            "a tensor that only a clone has",
            one(f32s, &[2], |graph, x| {
                let later = graph.clone().softmax(x, 1.0)?;
                graph.softmax(later, 1.0)
            }),
            "graph: a tensor of another graph was used",
        ),
    ]
}

type BadTensor = (&'static str, fn() -> Result<HostTensor>, &'static str);

fn bad_tensors() -> Vec<BadTensor> {
    vec![
        ("too few elements", || HostTensor::f32(&[2, 3], vec![0.0; 5]), "tensor: f32 [2, 3] has 6 elements, got 5"),
        (
            "too few bytes",
            || HostTensor::from_bytes(TensorDesc::new(Dtype::F16, [3]), &[0; 5]),
            "tensor: f16 [3] needs 6 bytes, got 5",
        ),
        (
            "a bool of 2",
            || HostTensor::from_bytes(TensorDesc::new(Dtype::Bool, [1]), &[2]),
            "tensor: a bool is 0 or 1, got 2",
        ),
        ("reshape", || HostTensor::bool(&[2], vec![true; 2])?.reshape(&[3]), "tensor: bool [3] has 3 elements, got 2"),
    ]
}
