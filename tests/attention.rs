//! `Graph::attention`: fused = unfused = reference on every device, over a table of problems and over random ones.

mod common;
#[path = "common/embed.rs"]
mod embed;
#[path = "common/problem.rs"]
mod problem;
#[path = "common/problems.rs"]
mod problems;
#[path = "common/random.rs"]
mod random;
#[path = "common/turns.rs"]
mod turns;

use std::process::ExitCode;

use common::{Subject, Verdict, each_device, each_of, run};
use libtest_mimic::{Completion, Trial};
use problem::{Pages, Problem, check, check_split, draw, graph, problem};
use problems::problems;
use regard::capabilities::Backend;
use regard::{
    Attention, Causal, Device, Dtype, Fill, Graph, HostTensor, Layout, Plan, PlanOptions, Strategy, Window, reference,
};
use turns::in_turn;

fn main() -> ExitCode {
    let mut trials = Vec::new();
    for (number, problem) in problems().into_iter().enumerate() {
        // On a GPU each problem takes its turn in one storage, as its kernels differ there in how they load and store alone.
        let half = problem.deviation == 1.0;
        let turn = if half && number % 2 == 1 { Dtype::F16 } else { Dtype::F32 };
        for dtype in if half { &[Dtype::F32, Dtype::F16][..] } else { &[Dtype::F32] } {
            let name = format!("{dtype} {}", problem.name);
            let problem = Problem { name: name.clone(), dtype: *dtype, kv_dtype: *dtype, ..problem.clone() };
            let backends = if *dtype == turn { &[Backend::Cpu, Backend::Gpu][..] } else { &[Backend::Cpu] };
            let each = each_of(backends, &name, move |subject| {
                if !problem.fits(&subject.device) {
                    return Ok(Completion::ignored_with("the device has no f16 in shaders"));
                }
                check(&subject.device, &problem).map_err(|why| format!("{why}, on {}", subject.name))?;
                Ok(Completion::Completed)
            });
            trials.extend(in_turn(number, each));
        }
    }
    trials.extend(each_device("NaN and infinity that are masked out stay out", masked_poison_stays_out));
    trials.extend(each_device("fully masked rows are zero or uniform", fully_masked_rows));
    trials.extend(each_device("wide heads are computed unfused", wide_heads_are_unfused));
    trials.push(Trial::test("a visible NaN is an error of the comparison", a_visible_nan_is_seen));
    trials.extend(each_device("rows that do not exist are zeros", rows_that_do_not_exist));
    trials.extend(each_device("packed sequences are as each alone", packed_is_each_alone));
    trials.extend(each_device("steps leave the output alone", steps_leave_the_output_alone));
    trials.extend(each_device("random problems", random::check_some));
    trials.extend(each_device("split: decoding steps", decoding_steps_split));
    trials.extend(each_device("split: where it wins", few_queries_over_many_keys_are_split));
    trials.extend(each_device("split: random problems", random::check_shares));
    trials.extend(each_of(&[Backend::Gpu], "random problems, eight storage buffers", random::check_poor));
    trials.push(Trial::test("random problems have every option", random::have_every_option));
    run(trials)
}

fn run_once(device: &Device, graph: &Graph, inputs: &[(&str, &HostTensor)]) -> Result<HostTensor, regard::Error> {
    Ok(Plan::new(device, graph)?.run(inputs)?.remove("y").expect("an output y"))
}

/// The same output whether masked keys and values are finite or not; a native kernel may sum in another order then.
fn masked_poison_stays_out(subject: &Subject) -> Verdict {
    let causal = Attention { causal: Some(Causal::TopLeft), ..Attention::default() };
    let window =
        Attention { window: Some(Window { left: Some(30), right: Some(0), align: None }), ..Attention::default() };
    let sizes = [1, 2, 1, 20, 40, 16, 16];
    let masks = [problem("causal", sizes, causal), problem("window", [1, 2, 1, 20, 20, 16, 16], window)];
    let boolean = Problem { mask: Some(vec![1, 40]), ..problem("boolean", sizes, Attention::default()) };
    let additive =
        Problem { bias: Some((Dtype::F32, vec![1, 40])), ..problem("additive", sizes, Attention::default()) };
    let lengths = Problem { kv_lengths: Some(vec![32]), ..problem("lengths", sizes, Attention::default()) };
    let packed = Problem {
        q_starts: Some(vec![0, 11, 20]),
        kv_starts: Some(vec![0, 32, 40]),
        ..problem("packed", sizes, Attention::default())
    };
    for problem in masks.into_iter().chain([boolean, additive, lengths, packed]) {
        let mut inputs = draw(&problem);
        let seq_kv = problem.k[2];
        // The keys from `hidden` on are masked out for the queries before it; all of them where the mask is a tensor.
        let hidden = seq_kv - 8;
        for (name, tensor) in &mut inputs {
            match *name {
                "mask" => *tensor = HostTensor::bool(&[1, seq_kv], (0..seq_kv).map(|key| key < hidden).collect())?,
                "bias" => {
                    let bias = (0..seq_kv).map(|key| if key < hidden { 0.5 } else { f32::NEG_INFINITY });
                    *tensor = HostTensor::f32(&[1, seq_kv], bias.collect())?;
                }
                _ => {}
            }
        }
        // Queries that see none of them.
        let visible = problem.q_starts.as_ref().map_or(problem.q[2].min(hidden), |starts| starts[1] as usize);
        for strategy in [Strategy::Fused, Strategy::Unfused] {
            let graph = graph(&problem, strategy);
            let output = |inputs: &[(&'static str, HostTensor)]| {
                let inputs: Vec<(&str, &HostTensor)> = inputs.iter().map(|(name, tensor)| (*name, tensor)).collect();
                run_once(&subject.device, &graph, &inputs)
            };
            let clean = output(&inputs)?;
            let mut poisoned = inputs.clone();
            for (name, tensor) in poisoned.iter_mut().filter(|(name, _)| ["k", "v"].contains(name)) {
                let mut data = tensor.as_f32().expect("f32").to_vec();
                for (key, row) in data.chunks_mut(16).enumerate().skip(hidden) {
                    row[key % 16] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][key % 3];
                }
                *tensor = HostTensor::f32(tensor.shape(), data).map_err(|error| format!("{name}: {error}"))?;
            }
            let got = output(&poisoned)?;
            let (got, clean) = (got.as_f32().expect("f32"), clean.as_f32().expect("f32"));
            for head in 0..2 {
                let rows = head * problem.q[2] * 16..(head * problem.q[2] + visible) * 16;
                let at = format!("{}, {strategy:?} on {}, head {head}", problem.name, subject.name);
                let near = got[rows.clone()].iter().zip(&clean[rows]).all(|(got, clean)| (got - clean).abs() <= 1e-5);
                assert!(near, "{at}");
            }
        }
    }
    Ok(Completion::Completed)
}

fn fully_masked_rows(subject: &Subject) -> Verdict {
    let empty =
        Problem { mask: Some(vec![7, 9]), ..problem("empty rows", [1, 1, 1, 7, 9, 4, 3], Attention::default()) };
    let mut inputs = draw(&empty);
    // Rows 2 and 5 look at nothing.
    inputs[3].1 = HostTensor::bool(&[7, 9], (0..63).map(|i| ![2, 5].contains(&(i / 9))).collect())?;
    let v = inputs[2].1.as_f32().expect("f32").to_vec();
    let mean = |d: usize| v.iter().skip(d).step_by(3).sum::<f32>() / 9.0;
    for (fill, wanted) in [(Fill::Exclude, [0.0; 3]), (Fill::Assign(-1e9), [mean(0), mean(1), mean(2)])] {
        for strategy in [Strategy::Fused, Strategy::Unfused] {
            let problem = Problem { options: Attention { fill, ..Attention::default() }, ..empty.clone() };
            let inputs: Vec<(&str, &HostTensor)> = inputs.iter().map(|(name, tensor)| (*name, tensor)).collect();
            let got = run_once(&subject.device, &graph(&problem, strategy), &inputs)?;
            for row in [2, 5] {
                let got = &got.as_f32().expect("f32")[row * 3..][..3];
                let near = got.iter().zip(wanted).all(|(got, wanted)| (got - wanted).abs() <= 1e-6);
                assert!(near, "{strategy:?} {fill:?} on {}, row {row}: {got:?}, wanted {wanted:?}", subject.name);
            }
        }
    }
    Ok(Completion::Completed)
}

fn wide_heads_are_unfused(subject: &Subject) -> Verdict {
    let options = PlanOptions::default();
    let native = subject.device.capabilities().backend == Backend::Cpu;
    for (head_dim, head_dim_v, narrow) in [(512, 512, true), (513, 16, false), (16, 513, false)] {
        let problem = problem("wide", [1, 1, 1, 4, 4, head_dim, head_dim_v], Attention::default());
        let ops = |options: &PlanOptions| -> regard::Result<Vec<_>> {
            let steps = Plan::preview(&subject.device, &graph(&problem, Strategy::Auto), options)?.steps;
            Ok(steps.iter().map(|step| step.op).collect())
        };
        let unfused = vec!["matmul", "softmax", "matmul"];
        let wanted = if narrow || native { vec!["attention_fused"] } else { unfused.clone() };
        assert_eq!(ops(&options)?, wanted, "head_dim {head_dim} and {head_dim_v}");
        let forced = PlanOptions::technique("attention_fused", "unfused");
        assert_eq!(ops(&forced)?, unfused);
        let fused = Plan::preview(&subject.device, &graph(&problem, Strategy::Fused), &options);
        assert_eq!(fused.is_ok(), narrow || native, "head_dim {head_dim} and {head_dim_v}");
    }
    Ok(Completion::Completed)
}

/// Few queries over shares of the keys: grouped heads, lengths, pages, every cache, windows, sinks, the sums, packed queries.
fn decoding_steps_split(subject: &Subject) -> Verdict {
    let plain = Attention::default();
    let causal = Attention { causal: Some(Causal::BottomRight), ..plain };
    let window = Attention { window: Some(Window { left: Some(70), right: Some(0), align: None }), ..causal };
    let seq_first = Attention { q_layout: Layout::SeqFirst, kv_layout: Layout::SeqFirst, ..causal };
    let merged = Attention { q_layout: Layout::Merged { heads: 4 }, kv_layout: Layout::Merged { heads: 2 }, ..causal };
    let sinks = Some(vec![0.5, f32::NEG_INFINITY, 4.0, -2.0]);
    let sizes = |seq_q| [2, 4, 2, seq_q, 300, 16, 20];
    let lengths = |problem: Problem, lengths: [u32; 2]| Problem { kv_lengths: Some(lengths.to_vec()), ..problem };
    let table = vec![4, 0, 8, 2, 6, 1, 3, 5, 7, 9, 10, 11];
    let pages = |size| Some(Pages { size, count: 12, table: table[..600 / size].to_vec() });
    let stored = |problem: Problem, dtype, kv_dtype| Problem { dtype, kv_dtype, ..problem };
    let one = problem("one query", sizes(1), plain);
    let three = lengths(problem("three queries, lengths, causal", sizes(3), causal), [230, 77]);
    let mut problems = vec![
        one.clone(),
        problem("eight heads on one", [2, 8, 1, 1, 300, 64, 64], plain),
        problem("five heads on one", [1, 5, 1, 1, 300, 24, 24], plain),
        Problem { lse: true, ..problem("two queries, the sums", sizes(2), causal) },
        Problem { lse: true, sinks: sinks.clone(), ..three.clone() },
        lengths(Problem { sinks: sinks.clone(), ..problem("a sequence without keys", sizes(1), causal) }, [0, 299]),
        Problem {
            q_lengths: Some(vec![2, 0]),
            lse: true,
            sinks,
            ..problem("sinks where rows do not exist", sizes(3), plain)
        },
        lengths(problem("window", sizes(2), window), [300, 130]),
        problem("seq-first", sizes(2), seq_first),
        problem("merged", sizes(2), merged),
        Problem { pages: pages(50), ..lengths(problem("pages", sizes(1), plain), [120, 300]) },
        Problem { pages: pages(100), ..lengths(problem("pages, three queries", sizes(3), causal), [120, 300]) },
        Problem { mask: Some(vec![2, 1, 1, 300]), ..problem("boolean", sizes(1), plain) },
        Problem {
            bias: Some((Dtype::F32, vec![4, 1, 300])),
            slopes: Some(vec![4]),
            ..lengths(problem("everything", sizes(2), Attention { softcap: Some(3.0), ..window }), [300, 130])
        },
        Problem { q_starts: Some(vec![0, 1, 3]), ..problem("packed queries", [2, 4, 2, 3, 300, 16, 20], causal) },
        Problem { deviation: 30.0, ..problem("scores of thousands", [1, 2, 1, 1, 300, 64, 64], plain) },
        problem("wide heads", [1, 2, 1, 1, 140, 512, 512], plain),
    ];
    problems.iter_mut().filter(|problem| problem.q_starts.is_some()).for_each(|problem| problem.q[0] = 1);
    for (dtype, kv_dtype) in
        [(Dtype::F16, Dtype::F16), (Dtype::BF16, Dtype::BF16), (Dtype::F32, Dtype::I8), (Dtype::F16, Dtype::I8)]
    {
        let name = format!("{dtype}, cache of {kv_dtype}");
        problems.push(Problem { name: name.clone(), ..stored(three.clone(), dtype, kv_dtype) });
        let paged = Problem { pages: pages(50), ..lengths(one.clone(), [120, 300]) };
        problems.push(Problem { name: name + " in pages", ..stored(paged, dtype, kv_dtype) });
    }
    let fitting = problems.iter().filter(|problem| problem.fits(&subject.device));
    for problem in fitting {
        let has_shares = check_split(&subject.device, problem).map_err(|why| format!("{}: {why}", problem.name))?;
        assert!(has_shares || subject.device.capabilities().storage_buffers < 12, "{} has no shares", problem.name);
    }
    Ok(Completion::Completed)
}

/// A plan takes shares by itself where queries are few and keys many, one where that is enough for the device, on GPUs only.
fn few_queries_over_many_keys_are_split(subject: &Subject) -> Verdict {
    let gpu = subject.device.capabilities().backend == Backend::Gpu;
    let assigned = Attention { fill: Fill::Assign(-1e9), ..Attention::default() };
    let plain = Attention::default();
    for (name, sizes, options, split) in [
        ("a step", [1, 4, 2, 1, 4096, 8, 8], plain, gpu),
        ("few keys", [1, 4, 2, 1, 256, 8, 8], plain, false),
        ("many queries", [1, 4, 2, 64, 4096, 8, 8], plain, false),
        ("many workgroups", [64, 64, 64, 1, 1024, 1, 1], plain, gpu),
        ("assigned", [1, 4, 2, 1, 4096, 8, 8], assigned, false),
    ] {
        let graph = graph(&problem(name, sizes, options), Strategy::Auto);
        let plan = Plan::preview(&subject.device, &graph, &PlanOptions::default())?;
        let ops: Vec<_> = plan.steps.iter().map(|step| step.op).collect();
        let wanted = if split { &["attention_split", "attention_combine"][..] } else { &["attention_fused"] };
        assert_eq!(ops, wanted, "{name} on {}", subject.name);
        assert_eq!(plan.to_string().contains("for attention_fused"), split, "{plan}");
        if name == "many workgroups" && gpu {
            assert_eq!(plan.steps[0].outputs[0].shape[0], 1, "one share is enough: {plan}");
        }
    }
    Ok(Completion::Completed)
}

/// The control of the test above: a NaN that takes part does reach the output, in the reference too.
fn a_visible_nan_is_seen() -> Result<(), libtest_mimic::Failed> {
    let problem = problem("visible", [1, 1, 1, 2, 2, 1, 1], Attention::default());
    let [q, k] = [vec![1.0, 1.0], vec![1.0, 1.0]].map(|data| HostTensor::f32(&[1, 1, 2, 1], data).expect("2 elements"));
    let v = HostTensor::f32(&[1, 1, 2, 1], vec![f32::NAN, 1.0])?;
    let got = reference::run(&graph(&problem, Strategy::Unfused), &[("q", &q), ("k", &k), ("v", &v)])?;
    assert!(got["y"].as_f64().expect("f64").iter().all(|x| x.is_nan()));
    Ok(())
}

/// Whatever the fill, and whatever their queries hold.
fn rows_that_do_not_exist(subject: &Subject) -> Verdict {
    let packed = Problem {
        q_starts: Some(vec![3, 7, 7]),
        kv_starts: Some(vec![0, 20, 41]),
        ..problem("packed", [1, 2, 1, 35, 41, 8, 8], Attention::default())
    };
    let lengths = Problem { q_starts: None, kv_starts: None, q_lengths: Some(vec![7]), ..packed.clone() };
    let served = Problem { kv_starts: None, k: vec![2, 2, 41, 8], v: vec![2, 2, 41, 8], ..packed.clone() };
    for (problem, exist) in [(packed, 3..7), (lengths, 0..7), (served, 3..7)] {
        let mut inputs = draw(&problem);
        let mut q = inputs[0].1.as_f32().expect("f32").to_vec();
        let exists = |at: usize| exist.contains(&(at / 8 % 35));
        q.iter_mut().enumerate().filter(|(at, _)| !exists(*at)).for_each(|(_, x)| *x = f32::NAN);
        inputs[0].1 = HostTensor::f32(&problem.q, q)?;
        let inputs: Vec<(&str, &HostTensor)> = inputs.iter().map(|(name, tensor)| (*name, tensor)).collect();
        for (fill, strategy) in [(Fill::Exclude, Strategy::Fused), (Fill::Assign(-1e9), Strategy::Unfused)] {
            let problem = Problem { options: Attention { fill, ..problem.options }, ..problem.clone() };
            let got = run_once(&subject.device, &graph(&problem, strategy), &inputs)?;
            let got = got.as_f32().expect("f32");
            let right = got.iter().enumerate().all(|(at, x)| if exists(at) { x.is_finite() } else { *x == 0.0 });
            assert!(right, "{}, {strategy:?} {fill:?} on {}: {got:?}", problem.name, subject.name);
        }
    }
    Ok(Completion::Completed)
}

/// Rows `from` up to `to` of each head of batch element `batch`, as a batch of 1.
fn cut(tensor: &HostTensor, batch: usize, [from, to]: [usize; 2]) -> HostTensor {
    let [_, heads, seq, width] = tensor.shape()[..] else { panic!("rank 4") };
    let data = tensor.as_f32().expect("f32");
    let rows = |head: usize| ((batch * heads + head) * seq + from) * width..((batch * heads + head) * seq + to) * width;
    let data = (0..heads).flat_map(|head| data[rows(head)].to_vec()).collect();
    HostTensor::f32(&[1, heads, to - from, width], data).expect("as many rows as there are")
}

/// A definition that knows of no packing.
fn packed_is_each_alone(subject: &Subject) -> Verdict {
    let options = Attention { causal: Some(Causal::BottomRight), ..Attention::default() };
    let starts = [vec![0, 2, 9, 40_u32], vec![0, 30, 31, 60_u32]];
    let q_starts = Some(starts[0].clone());
    let packed = problem("packed", [1, 2, 1, 40, 60, 8, 8], options);
    let packed = Problem { q_starts: q_starts.clone(), kv_starts: Some(starts[1].clone()), ..packed };
    let mut served = Problem { q_starts, ..problem("packed queries", [3, 2, 1, 40, 37, 8, 8], options) };
    served.q[0] = 1;
    for problem in [packed, served] {
        let inputs = draw(&problem);
        let named: Vec<(&str, &HostTensor)> = inputs.iter().map(|(name, tensor)| (*name, tensor)).collect();
        let strategies = [Strategy::Fused, Strategy::Unfused];
        let got = strategies.map(|strategy| run_once(&subject.device, &graph(&problem, strategy), &named));
        let got = got.into_iter().collect::<Result<Vec<_>, _>>()?;
        for s in 0..3 {
            let range = |starts: &[u32]| [starts[s] as usize, starts[s + 1] as usize];
            let (kv_batch, keys) = if problem.kv_starts.is_some() { (0, range(&starts[1])) } else { (s, [0, 37]) };
            let q = cut(&inputs[0].1, 0, range(&starts[0]));
            let [k, v] = [1, 2].map(|index: usize| cut(&inputs[index].1, kv_batch, keys));
            let sizes = [1, 2, 1, q.shape()[2], keys[1] - keys[0], 8, 8];
            let alone = graph(&problem::problem("alone", sizes, options), Strategy::Unfused);
            let wanted = reference::run(&alone, &[("q", &q), ("k", &k), ("v", &v)])?.remove("y").expect("an output y");
            for (got, strategy) in got.iter().zip(strategies) {
                let got = cut(got, 0, range(&starts[0])).to_f64();
                let near = got.iter().zip(wanted.to_f64()).all(|(got, wanted)| (got - wanted).abs() <= 1e-5);
                assert!(near, "{}, {strategy:?}, sequence {s} on {}", problem.name, subject.name);
            }
        }
    }
    Ok(Completion::Completed)
}

/// The main output is what it is without the stages beside it, to the bit.
fn steps_leave_the_output_alone(subject: &Subject) -> Verdict {
    let options = Attention { causal: Some(Causal::TopLeft), ..Attention::default() };
    let problem = problem("steps", [1, 2, 1, 21, 35, 16, 16], options);
    let inputs = draw(&problem);
    let inputs: Vec<(&str, &HostTensor)> = inputs.iter().map(|(name, tensor)| (*name, tensor)).collect();
    for strategy in [Strategy::Auto, Strategy::Unfused] {
        let mut with_steps = Graph::new();
        let mut input = |at: usize| with_steps.input(inputs[at].0, inputs[at].1.desc().clone()).expect("a new name");
        let qkv = [0, 1, 2].map(&mut input);
        let steps = with_steps.attention_steps(qkv, &Attention { strategy, ..options })?;
        let outputs = [("y", steps.output), ("weights", steps.weights), ("lse", steps.lse)];
        outputs.into_iter().try_for_each(|(name, tensor)| with_steps.output(name, tensor))?;
        let got = Plan::new(&subject.device, &with_steps)?.run(&inputs)?;
        // Scores that are looked at are masked in a step of their own, and its softmax may add up in another order.
        let apart = PlanOptions { rewrites: regard::Rewrites::NONE, ..PlanOptions::default() };
        let wanted = Plan::with_options(&subject.device, &graph(&problem, strategy), &apart)?.run(&inputs)?;
        assert_eq!(got["y"], wanted["y"], "{strategy:?} on {}", subject.name);
    }
    Ok(Completion::Completed)
}
