//! Tuning: every technique for every distinct node of a graph, checked, timed, and the fastest kept for later plans.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crate::bench::{Bench, CacheState, Definition, Line, Refusal, Settings, Task};
use crate::case::{CaseInput, Values};
use crate::compare::Tolerance;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::graph::{Graph, Lowering, Tensor};
use crate::op::{Op, Technique};
use crate::plan::PlanOptions;
use crate::schedule::Schedule;
use crate::tensor::{Dtype, HostTensor, TensorDesc};
use crate::tuned::offered;
pub use crate::tuned::{Candidate, Entry, Problem, TuningFile};

/// A technique is taken in the place of the first only if it is faster by more than this share: what is nearer is noise.
const MARGIN: f64 = 0.05;

/// For each candidate. Runs that take longer are measured three times.
const SETTINGS: Settings = Settings {
    warm_up: Duration::from_millis(50),
    budget: Duration::from_millis(250),
    least_runs: 3,
    runs: None,
    // As between the other layers of a model.
    cache: CacheState::Cold,
    longest_run: Some(Duration::from_secs(10)),
    total: None,
};

/// What [`Device::tune`] found.
#[derive(Debug, Clone, PartialEq)]
pub struct Tuning {
    /// Problems that there was a choice for.
    pub entries: Vec<Entry>,
    /// How many distinct problems of the graph have one technique only.
    pub without_choice: usize,
    /// Why the choices could not be kept for other processes; plans of this one have them all the same.
    pub not_kept: Option<Error>,
}

/// A node on its own.
struct Single {
    op: Arc<dyn Op>,
    inputs: Vec<TensorDesc>,
    lowerings: Vec<Arc<dyn Lowering>>,
}

impl Device {
    /// Runs every technique that the device offers for each distinct node of the graph, checks it against the reference, times it,
    /// and has the plans that are built on this device from then on take the fastest: where op, options, sizes (about), dtypes
    /// and shader text are the same. What [`PlanOptions::techniques`] asks for still wins. The choices are kept with the compiled
    /// pipelines ([`DeviceOptions::cache`](crate::DeviceOptions::cache)). Takes up to a second for each technique and problem.
    ///
    /// # Errors
    /// A graph that the device cannot run at all; a lost device.
    pub fn tune(&self, graph: &Graph) -> Result<Tuning> {
        let bench = Bench::new(self.clone(), SETTINGS)?;
        let mut tuner = Tuner { device: self, bench, seen: HashSet::new(), entries: Vec::new(), without_choice: 0 };
        // Whole lowerings first: which nodes there are depends on them.
        for node in graph.nodes.iter().filter(|node| !node.lowerings.is_empty()) {
            let inputs = node.inputs.iter().map(|&input| graph.desc(input).cloned()).collect::<Result<_>>()?;
            tuner.tune(&Single { op: node.op.clone(), inputs, lowerings: node.lowerings.clone() })?;
        }
        let mut not_kept = self.tuned.add(&tuner.entries).err();
        let schedule = Schedule::tuned(graph, self.capabilities(), &PlanOptions::default(), &self.tuned.table())?;
        for step in schedule.steps {
            let inputs = step.inputs.into_iter().map(|operand| operand.desc).collect();
            tuner.tune(&Single { op: step.op, inputs, lowerings: Vec::new() })?;
        }
        let Tuner { entries, without_choice, .. } = tuner;
        not_kept = self.tuned.add(&entries).err().or(not_kept);
        Ok(Tuning { entries, without_choice, not_kept })
    }

    /// The file with this device's tuning, and why it is not used where it is not.
    pub fn tuning_file(&self) -> TuningFile {
        self.tuned.file()
    }
}

struct Tuner<'a> {
    device: &'a Device,
    bench: Bench,
    seen: HashSet<Problem>,
    entries: Vec<Entry>,
    without_choice: usize,
}

impl Tuner<'_> {
    fn tune(&mut self, node: &Single) -> Result<()> {
        let problem = Problem::new(&*node.op, &node.inputs, &node.lowerings);
        // A step does not say what might have been in its place, and was measured with that.
        let alone = Problem::new(&*node.op, &node.inputs, &[]);
        if self.seen.contains(&problem) {
            return Ok(());
        }
        self.seen.extend([problem.clone(), alone]);
        let techniques = node.op.techniques(&node.inputs, self.device.capabilities());
        let offered = offered(&techniques, &node.lowerings);
        if offered.len() < 2 {
            self.without_choice += 1;
            return Ok(());
        }
        let mut candidates = Vec::new();
        for (technique, shader) in offered {
            let halves = techniques.iter().find(|other| other.name() == technique).is_some_and(is_half);
            let line = self.bench.run(&node.task(technique, halves)?)?;
            candidates.push(candidate(technique, shader, line));
        }
        let Some(chosen) = fastest(&candidates) else { return Ok(()) };
        self.entries.push(Entry { problem, chosen: chosen.to_owned(), candidates });
        Ok(())
    }
}

fn is_half(technique: &Technique) -> bool {
    technique.precision() == crate::precision::Precision::Half
}

/// What a bench line says of a technique. A wrong result has no time, so that it cannot win.
fn candidate(technique: &str, shader: String, line: Line) -> Candidate {
    let milliseconds = line.timing.map(|timing| timing.median_ms);
    Candidate { technique: technique.into(), shader, milliseconds, wrong: line.failed, skipped: line.skipped }
}

/// The first candidate that was timed, unless another is faster by more than the margin.
fn fastest(candidates: &[Candidate]) -> Option<&str> {
    let timed = || candidates.iter().filter_map(|candidate| Some((candidate, candidate.milliseconds?)));
    let (first, time) = timed().next()?;
    let (best, least) = timed().min_by(|a, b| a.1.total_cmp(&b.1))?;
    Some(if least < time * (1.0 - MARGIN) { &best.technique } else { &first.technique })
}

impl Single {
    /// The node as a graph of its own, with one way to compute it.
    fn task(&self, technique: &str, halves: bool) -> Result<Task> {
        let mut graph = Graph::new();
        let inputs: Vec<(String, CaseInput)> =
            self.drawn().into_iter().enumerate().map(|(at, input)| (format!("in{at}"), input)).collect();
        let tensors: Vec<Tensor> =
            inputs.iter().map(|(name, input)| graph.input(name, input.desc.clone())).collect::<Result<_>>()?;
        let outputs = graph.add_node(self.op.clone(), &tensors, self.lowerings.clone())?;
        graph.output("out", outputs[0])?;
        let result = graph.desc(outputs[0])?.clone();
        let flops = self.op.cost(&self.inputs).flops;
        Ok(Task {
            suite: "tune".into(),
            problem: Problem::new(&*self.op, &self.inputs, &self.lowerings).to_string(),
            graph,
            inputs,
            definition: Definition::Op { op: self.op.clone(), work: flops / 2 },
            tolerance: tolerance(flops, &self.inputs, &result, halves),
            flops: None,
            options: PlanOptions::technique(self.op.name(), technique),
            refusal: Refusal::Skip,
        })
    }

    /// Inputs that mean something: normal floats, masks that hide nothing, lengths and positions as large as the op's check lets
    /// them be, so that kernels have all their work to do.
    fn drawn(&self) -> Vec<CaseInput> {
        let given = |values: HostTensor| CaseInput { desc: values.desc().clone(), values: Values::Given(values) };
        let whole = self.whole_numbers();
        let draw = |(desc, whole): (&TensorDesc, Option<HostTensor>)| match (desc.dtype, whole) {
            (_, Some(whole)) => given(whole),
            (Dtype::Bool | Dtype::I8, None) => {
                let levels = (0..desc.len()).map(|at| ((at * 89 % 255) as f64 - 127.0).abs() + 1.0).collect();
                given(HostTensor::f64(&desc.shape, levels).expect("as many as the shape says").cast(desc.dtype))
            }
            _ => CaseInput::normal(desc.dtype, &desc.shape, 1.0),
        };
        self.inputs.iter().zip(whole).map(draw).collect()
    }

    /// Values for inputs of whole numbers; `None` for the others. Each takes the first of a few patterns that the op accepts beside
    /// what the others have: all as large as some axis, rising to it, all one less; else zeros.
    fn whole_numbers(&self) -> Vec<Option<HostTensor>> {
        let is_whole = |desc: &&TensorDesc| desc.dtype == Dtype::U32;
        let mut values: Vec<Option<HostTensor>> =
            self.inputs.iter().map(|desc| is_whole(&desc).then(|| HostTensor::zeros(desc.clone()))).collect();
        let mut sizes: Vec<usize> = self.inputs.iter().flat_map(|desc| desc.shape.iter().copied()).collect();
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        sizes.dedup();
        for at in 0..self.inputs.len() {
            let desc = &self.inputs[at];
            if values[at].is_none() {
                continue;
            }
            let patterns = sizes.iter().flat_map(|&size| {
                let steps = desc.len().saturating_sub(1).max(1);
                [
                    HostTensor::u32(&desc.shape, vec![size as u32; desc.len()]),
                    HostTensor::u32(&desc.shape, (0..desc.len()).map(|i| (i * size / steps) as u32).collect()),
                    HostTensor::u32(&desc.shape, vec![size.saturating_sub(1) as u32; desc.len()]),
                ]
            });
            let zeros = values[at].take();
            values[at] = patterns.flatten().find(|pattern| self.accepts(&values, at, pattern)).or(zeros);
        }
        values
    }

    fn accepts(&self, values: &[Option<HostTensor>], at: usize, pattern: &HostTensor) -> bool {
        let mut data: Vec<Option<&HostTensor>> = values.iter().map(Option::as_ref).collect();
        data[at] = Some(pattern);
        self.op.check(&self.inputs, &data).is_ok()
    }
}

/// How far a right result may be off, whatever the op. An element takes n operations, whose roundings add up to about √n of its
/// scale, or to ten times that where terms are larger than sums; storage rounds once, and where factors are rounded to f16 each
/// product does. What is wrong is off by its scale.
fn tolerance(flops: u64, inputs: &[TensorDesc], result: &TensorDesc, halves: bool) -> Tolerance {
    const F32: f64 = 1.0 / (1 << 24) as f64;
    let rounding = |dtype: Dtype| match dtype {
        Dtype::F16 => 1.0 / f64::from(1 << 11),
        Dtype::BF16 => 1.0 / f64::from(1 << 8),
        _ => 0.0,
    };
    let operations = flops as f64 / result.len().max(1) as f64;
    let storage = inputs.iter().chain([result]).map(|desc| rounding(desc.dtype)).fold(0.0, f64::max);
    let products = if halves { 8.0 * rounding(Dtype::F16) } else { 0.0 };
    let of_scale = 10.0 * (8.0 + operations.sqrt()) * F32 + 2.0 * storage + products;
    // A quotient between two levels may become either.
    let absolute = if matches!(result.dtype, Dtype::I8) { 1.0 } else { 0.0 };
    Tolerance { absolute, ..Tolerance::of_scale(of_scale) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::Attention;

    fn of(technique: &str, milliseconds: Option<f64>) -> Candidate {
        Candidate { technique: technique.into(), shader: String::new(), milliseconds, wrong: None, skipped: None }
    }

    #[test]
    fn the_first_stays_unless_another_is_clearly_faster() {
        assert_eq!(fastest(&[of("a", Some(1.0)), of("b", Some(0.96))]), Some("a"));
        assert_eq!(fastest(&[of("a", Some(1.0)), of("b", Some(0.9)), of("c", Some(0.8))]), Some("c"));
        assert_eq!(fastest(&[of("a", None), of("b", Some(9.0))]), Some("b"));
        assert_eq!(fastest(&[of("a", None)]), None);
    }

    #[test]
    fn lengths_are_as_large_as_they_may_be() {
        let mut graph = Graph::new();
        let [q, k, v] = ["q", "k", "v"].map(|name| {
            let seq = if name == "q" { 1 } else { 50 };
            graph.input(name, TensorDesc::new(Dtype::F32, [3, 2, seq, 64])).unwrap()
        });
        let lengths = graph.input("lengths", TensorDesc::new(Dtype::U32, [3])).unwrap();
        let options = Attention { kv_lengths: Some(lengths), ..Attention::default() };
        graph.attention(q, k, v, &options).unwrap();
        let node = &graph.nodes[0];
        let inputs = node.inputs.iter().map(|&input| graph.desc(input).unwrap().clone()).collect();
        let single = Single { op: node.op.clone(), inputs, lowerings: Vec::new() };
        let lengths: Vec<_> = single.whole_numbers().into_iter().flatten().collect();
        assert_eq!(lengths, [HostTensor::u32(&[3], vec![50; 3]).unwrap()]);
    }
}
