//! An attention problem as a graph, with its inputs, and the check that every strategy gives what the definition says.

use regard::capabilities::Backend;
use regard::case::{CaseInput, Values};
use regard::compare::{NanMeans, Tolerance, compare};
use regard::{
    Attention, Device, Dtype, Fill, Graph, HostTensor, Layout, Plan, PlanOptions, Strategy, Tensor, TensorDesc,
    reference,
};

/// Keys and values in pages of a pool.
#[derive(Debug, Clone)]
pub struct Pages {
    pub size: usize,
    /// How many the pool has.
    pub count: usize,
    /// Of `[batch, per_sequence]`.
    pub table: Vec<u32>,
}

/// An attention problem. Shapes of q, k and v are heads first, in whatever layout the options and pages store them. Masks are
/// shapes, their values are drawn.
#[derive(Debug, Clone)]
pub struct Problem {
    pub name: String,
    pub dtype: Dtype,
    pub kv_dtype: Dtype,
    pub q: Vec<usize>,
    pub k: Vec<usize>,
    pub v: Vec<usize>,
    pub pages: Option<Pages>,
    pub mask: Option<Vec<usize>>,
    pub bias: Option<(Dtype, Vec<usize>)>,
    pub kv_lengths: Option<Vec<u32>>,
    pub q_lengths: Option<Vec<u32>>,
    pub q_starts: Option<Vec<u32>>,
    pub kv_starts: Option<Vec<u32>>,
    pub slopes: Option<Vec<usize>>,
    pub sinks: Option<Vec<f32>>,
    /// The logarithm of the softmax's denominator is asked for too.
    pub lse: bool,
    pub options: Attention,
    pub deviation: f32,
}

/// `[batch, heads, kv_heads, seq_q, seq_kv, head_dim, head_dim_v]` without masks.
pub fn problem(name: &str, sizes: [usize; 7], options: Attention) -> Problem {
    let [batch, heads, kv_heads, seq_q, seq_kv, head_dim, head_dim_v] = sizes;
    Problem {
        name: name.into(),
        dtype: Dtype::F32,
        kv_dtype: Dtype::F32,
        q: vec![batch, heads, seq_q, head_dim],
        k: vec![batch, kv_heads, seq_kv, head_dim],
        v: vec![batch, kv_heads, seq_kv, head_dim_v],
        pages: None,
        mask: None,
        bias: None,
        kv_lengths: None,
        q_lengths: None,
        q_starts: None,
        kv_starts: None,
        slopes: None,
        sinks: None,
        lse: false,
        options,
        deviation: 1.0,
    }
}

impl Problem {
    /// Whether the device has what it is stored in.
    pub fn fits(&self, device: &Device) -> bool {
        device.capabilities().f16 || ![self.dtype, self.kv_dtype].contains(&Dtype::F16)
    }

    /// Every strategy that takes it on this device.
    fn strategies(&self, device: &Device) -> Vec<Strategy> {
        match self.fuses(device) {
            true => vec![Strategy::Unfused, Strategy::Fused, Strategy::Auto],
            false => vec![Strategy::Unfused, Strategy::Auto],
        }
    }

    /// Whether the device has a fused kernel for it.
    pub fn fuses(&self, device: &Device) -> bool {
        let graph = graph(self, Strategy::Fused);
        let bound = graph.inputs().count() + graph.outputs().count();
        let wide = self.q.last().max(self.v.last()) > Some(&512);
        let gpu = device.capabilities().backend == Backend::Gpu;
        bound <= device.capabilities().storage_buffers as usize && !(wide && gpu)
    }

    /// Whether shares of its keys can be computed on their own on the device: `attention_split` has no sinks, and one output more.
    pub fn splits(&self, device: &Device) -> bool {
        let graph = graph(self, Strategy::Fused);
        let bound = graph.inputs().count() - usize::from(self.sinks.is_some()) + 2;
        self.options.fill == Fill::Exclude && bound <= device.capabilities().storage_buffers as usize
    }

    /// Inputs that are not drawn from a distribution.
    fn given(&self) -> Vec<(&'static str, HostTensor)> {
        let u32s = [
            ("kv_lengths", &self.kv_lengths),
            ("q_lengths", &self.q_lengths),
            ("q_starts", &self.q_starts),
            ("kv_starts", &self.kv_starts),
        ];
        let u32s = u32s.into_iter().filter_map(|(name, data)| {
            let data = data.clone()?;
            Some((name, HostTensor::u32(&[data.len()], data).expect("as many as there are")))
        });
        let sinks = self
            .sinks
            .iter()
            .map(|sinks| ("sinks", HostTensor::f32(&[sinks.len()], sinks.clone()).expect("as many as there are")));
        let slopes = self.slopes.iter().map(|shape| {
            let slope = |at: usize| [0.5, 0.125, -0.25, 0.0, 0.0625][at % 5];
            let data = (0..shape.iter().product()).map(slope).collect();
            ("slopes", HostTensor::f32(shape, data).expect("as many as the shape says"))
        });
        let table = self.pages.iter().map(|pages| {
            let shape = [self.k[0], self.k[2] / pages.size];
            ("block_table", HostTensor::u32(&shape, pages.table.clone()).expect("an entry for each page"))
        });
        u32s.chain(sinks).chain(slopes).chain(table).collect()
    }

    /// Shape of keys or values where they lie.
    fn stored(&self, shape: &[usize]) -> Vec<usize> {
        match &self.pages {
            Some(pages) => vec![pages.count, pages.size, shape[1], shape[3]],
            None => stored(self.options.kv_layout, shape),
        }
    }

    /// Scales of i8 keys or values.
    fn scales(&self, shape: &[usize]) -> CaseInput {
        let mut rows = self.stored(shape);
        match (self.options.kv_layout, rows.last_mut()) {
            (Layout::Merged { heads }, Some(width)) if self.pages.is_none() => *width = heads,
            (Layout::Joined { heads, kv_heads }, Some(width)) if self.pages.is_none() => *width = heads + 2 * kv_heads,
            _ => drop(rows.pop()),
        }
        CaseInput::normal(Dtype::F32, &rows, SCALES)
    }
}

/// Deviations of levels and of their scales; four times their product is the deviation of a row that is far out.
const LEVELS: f32 = 60.0;
const SCALES: f32 = 0.015;

fn stored(layout: Layout, shape: &[usize]) -> Vec<usize> {
    match (layout, shape) {
        (Layout::HeadsFirst, shape) => shape.to_vec(),
        (Layout::SeqFirst, &[batch, heads, seq, width]) => vec![batch, seq, heads, width],
        (Layout::Merged { .. }, &[batch, heads, seq, width]) => vec![batch, seq, heads * width],
        (Layout::Joined { heads, kv_heads }, &[batch, _, seq, width]) => {
            vec![batch, seq, (heads + 2 * kv_heads) * width]
        }
        (layout, shape) => panic!("{shape:?} has no layout {layout:?}"),
    }
}

/// The problem as a graph with this strategy.
pub fn graph(problem: &Problem, strategy: Strategy) -> Graph {
    let mut graph = Graph::new();
    let inputs: Vec<(&str, Tensor)> = (drawn(problem).iter())
        .map(|(name, input)| (*name, input.desc.clone()))
        .chain(problem.given().iter().map(|(name, tensor)| (*name, tensor.desc().clone())))
        .map(|(name, desc)| (name, graph.input(name, desc).expect("a new name")))
        .collect();
    let tensor = |name: &str| inputs.iter().find(|(found, _)| *found == name).map(|(_, tensor)| *tensor);
    let options = Attention {
        mask: tensor("mask"),
        bias: tensor("bias"),
        kv_lengths: tensor("kv_lengths"),
        q_lengths: tensor("q_lengths"),
        q_starts: tensor("q_starts"),
        kv_starts: tensor("kv_starts"),
        slopes: tensor("slopes"),
        sinks: tensor("sinks"),
        kv_scales: tensor("k_scales").zip(tensor("v_scales")).map(|(k, v)| [k, v]),
        block_table: tensor("block_table"),
        strategy,
        ..problem.options
    };
    let [q, k, v] = [0, 1, 2].map(|index: usize| inputs[index].1);
    let y = match problem.lse {
        false => graph.attention(q, k, v, &options).expect("shapes that fit"),
        true => {
            let (y, lse) = graph.attention_lse(q, k, v, &options).expect("shapes that fit");
            graph.output("lse", lse).expect("a new name");
            y
        }
    };
    graph.output("y", y).expect("a new name");
    graph
}

/// Inputs that are drawn, by name; q, k and v come first.
fn drawn(problem: &Problem) -> Vec<(&'static str, CaseInput)> {
    let quantised = problem.kv_dtype == Dtype::I8;
    let kv = |shape, deviation| {
        let deviation = if quantised { LEVELS } else { deviation };
        CaseInput::normal(problem.kv_dtype, &problem.stored(shape), deviation)
    };
    let q = stored(problem.options.q_layout, &problem.q);
    let mut inputs = vec![
        ("q", CaseInput::normal(problem.dtype, &q, problem.deviation)),
        ("k", kv(&problem.k, problem.deviation)),
        ("v", kv(&problem.v, 1.0)),
    ];
    if quantised {
        inputs.extend([("k_scales", problem.scales(&problem.k)), ("v_scales", problem.scales(&problem.v))]);
    }
    inputs.extend(problem.mask.iter().map(|shape| {
        let values = Values::Mask { keep: 0.7, empty_rows: true };
        ("mask", CaseInput { desc: TensorDesc::new(Dtype::Bool, shape.clone()), values })
    }));
    inputs.extend(problem.bias.iter().map(|(dtype, shape)| {
        let values = Values::Bias { excluded: 0.2 };
        ("bias", CaseInput { desc: TensorDesc::new(*dtype, shape.clone()), values })
    }));
    inputs
}

/// Seeded inputs by name.
pub fn draw(problem: &Problem) -> Vec<(&'static str, HostTensor)> {
    let drawn = drawn(problem).into_iter().zip(1..).map(|((name, input), seed)| (name, input.draw(seed)));
    drawn.chain(problem.given()).collect()
}

/// By how much a score is off: √head_dim roundings of terms of `deviation²`, twice over for two strategies, and of a slope times
/// a distance. Each weight is off by as much, relatively. Keys of levels deviate by up to four times their levels and scales.
fn score_error(problem: &Problem) -> f64 {
    let head_dim = *problem.q.last().expect("rank 2 or more") as f64;
    let sloped = if problem.slopes.is_some() { 100.0 } else { 0.0 };
    let keys = if problem.kv_dtype == Dtype::I8 { 4.0 * LEVELS * SCALES } else { problem.deviation };
    f64::from(problem.deviation * keys) * 10.0 * (2.0 + head_dim.sqrt()) + sloped
}

/// Sums and exp add a few roundings, storage in fewer bits one, which may go the other way than the reference's.
fn tolerance(problem: &Problem, output: &str) -> Tolerance {
    let rounding = (-24.0_f64).exp2();
    let error = (score_error(problem) + 32.0) * rounding;
    match output {
        "lse" => Tolerance { of_scale: 0.0, relative: 2.0 * rounding, absolute: error },
        _ => {
            let storage = match problem.dtype {
                Dtype::F16 => 2.0 * (-11.0_f64).exp2(),
                Dtype::BF16 => 2.0 * (-8.0_f64).exp2(),
                _ => 0.0,
            };
            Tolerance::of_scale(error + storage)
        }
    }
}

/// Every strategy's definition gives the same, and every strategy gives it on the device.
pub fn check(device: &Device, problem: &Problem) -> Result<(), String> {
    let inputs = draw(problem);
    let inputs: Vec<(&str, &HostTensor)> = inputs.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let strategies = problem.strategies(device);
    let Some(&first) = strategies.first() else { return Ok(()) };
    let definition = |strategy| reference::run(&graph(problem, strategy), &inputs).map_err(|error| error.to_string());
    let wanted = definition(first)?;
    if strategies[1] != Strategy::Auto {
        let other = definition(strategies[1])?;
        for (name, wanted) in &wanted {
            // Both are f64 from end to end; they differ by roundings and by the scale, which is f32 in both.
            let tolerance = Tolerance { of_scale: 1e-12, relative: 0.0, absolute: 1e-12 };
            compared(&format!("{name} of the other reference"), &other[name], wanted, tolerance)?;
        }
    }
    for strategy in strategies {
        let graph = graph(problem, strategy);
        let mut plan = Plan::new(device, &graph).map_err(|error| error.to_string())?;
        let got = plan.run(&inputs).map_err(|error| error.to_string())?;
        for (name, wanted) in &wanted {
            let wanted = wanted.cast(if name == "y" { problem.dtype } else { Dtype::F64 });
            compared(&format!("{name}, {strategy:?}"), &got[name], &wanted, tolerance(problem, name))?;
        }
    }
    Ok(())
}

/// Shares of the keys, combined, give what the definition says, where the problem has shares; says whether it has.
pub fn check_split(device: &Device, problem: &Problem) -> Result<bool, String> {
    if !problem.splits(device) {
        return Ok(false);
    }
    let inputs = draw(problem);
    let inputs: Vec<(&str, &HostTensor)> = inputs.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let graph = graph(problem, Strategy::Auto);
    let wanted = reference::run(&graph, &inputs).map_err(|error| error.to_string())?;
    let options = PlanOptions::technique("attention_fused", "split");
    let mut plan = Plan::with_options(device, &graph, &options).map_err(|error| error.to_string())?;
    let steps = plan.describe().steps;
    let ops: Vec<_> = steps.iter().map(|step| (step.op, step.instead_of)).collect();
    let two = ["attention_split", "attention_combine"].map(|op| (op, Some("attention_fused")));
    assert_eq!(ops, two, "{}", problem.name);
    let got = plan.run(&inputs).map_err(|error| error.to_string())?;
    for (name, wanted) in &wanted {
        let wanted = wanted.cast(if name == "y" { problem.dtype } else { Dtype::F64 });
        compared(&format!("{name}, split"), &got[name], &wanted, tolerance(problem, name))?;
    }
    Ok(true)
}

fn compared(what: &str, got: &HostTensor, wanted: &HostTensor, tolerance: Tolerance) -> Result<(), String> {
    let comparison = compare(got, wanted, tolerance, NanMeans::Nan);
    if comparison.passed() { Ok(()) } else { Err(format!("{what}: {comparison}")) }
}
