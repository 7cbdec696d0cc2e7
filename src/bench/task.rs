//! A problem made ready to be checked and timed.

use std::sync::Arc;

use super::problem::Problem;
use super::{EPSILON_F16, EPSILON_F32};
use crate::case::CaseInput;
use crate::compare::Tolerance;
use crate::error::Result;
use crate::graph::Graph;
use crate::op::{Op, Rows};
use crate::ops::{AttentionFused, ScoreRule};
use crate::plan::PlanOptions;
use crate::reference;
use crate::tensor::{Dtype, HostTensor};

/// Multiplications of the definition that take about two seconds on two cores; plain loops over f64 do a few 10⁸ a second.
const WHOLE_REFERENCE: u64 = 400_000_000;

/// What runs, on which inputs, and what must come out.
#[derive(Debug, Clone)]
pub struct Task {
    /// Suite that it belongs to.
    pub suite: String,
    /// The problem in canonical text.
    pub problem: String,
    /// What runs; its one output is `out`.
    pub graph: Graph,
    /// Name and distribution of each graph input, drawn with seeds 1, 2, ….
    pub inputs: Vec<(String, CaseInput)>,
    /// What the result must be.
    pub definition: Definition,
    /// How far it may be off.
    pub tolerance: Tolerance,
    /// Operations by the published formula; `None` where the exact count is the formula.
    pub flops: Option<u64>,
    /// Forced techniques.
    pub options: PlanOptions,
    /// What to do when the device cannot run it.
    pub refusal: Refusal,
}

/// Where the expected result comes from.
#[derive(Debug, Clone)]
pub enum Definition {
    /// The reference of one op on the graph's inputs, whatever ops the graph is made of.
    Op {
        /// The op.
        op: Arc<dyn Op>,
        /// Multiplications that its reference takes.
        work: u64,
    },
    /// The references of the graph's own ops, one after the other.
    Graph,
}

/// What it means that a device cannot run a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// A skip with its reason: the task is one of a suite.
    Skip,
    /// An error: the user asked for this very problem or technique.
    Fail,
}

impl Task {
    /// An attention problem. Its definition is that of fused attention, whatever the strategy.
    ///
    /// # Errors
    /// As [`Problem::graph`].
    pub fn attention(suite: &str, problem: &Problem) -> Result<Self> {
        let scale = (1.0 / (problem.head_dim as f64).sqrt()) as f32;
        let rule = ScoreRule { masking: problem.masking(), ..ScoreRule::default() };
        let op = AttentionFused { scale, rule, ..AttentionFused::default() };
        let shapes = problem.shapes();
        let rows = problem.batch * problem.heads * problem.seq_q;
        let each_row = problem.seq_kv * (problem.head_dim + problem.head_dim_v);
        let inputs = ["q", "k", "v"].into_iter().zip(shapes);
        Ok(Self {
            suite: suite.to_owned(),
            problem: problem.to_string(),
            graph: problem.graph()?,
            inputs: inputs.map(|(name, shape)| (name.into(), CaseInput::normal(problem.dtype, &shape, 1.0))).collect(),
            definition: Definition::Op { op: Arc::new(op), work: (rows as u64).saturating_mul(each_row as u64) },
            tolerance: attention_tolerance(problem),
            flops: Some(problem.flops()),
            options: PlanOptions::default(),
            refusal: Refusal::Skip,
        })
    }

    /// The inputs' values, the same at every call.
    pub fn draw(&self) -> Vec<HostTensor> {
        self.inputs.iter().zip(1..).map(|((_, input), seed)| input.draw(seed)).collect()
    }

    /// Rows of the result that are checked: all of them when that takes about two seconds at most.
    pub fn rows(&self) -> Rows {
        match &self.definition {
            Definition::Op { work, .. } if *work > WHOLE_REFERENCE => Rows::Every(stride(*work)),
            _ => Rows::All,
        }
    }

    /// The expected result, f64; rows that are not checked are NaN.
    ///
    /// # Errors
    /// As [`reference::run`].
    pub fn expected(&self, inputs: &[HostTensor]) -> Result<HostTensor> {
        let mut outputs = match &self.definition {
            Definition::Op { op, .. } => op.reference(&inputs.iter().collect::<Vec<_>>(), self.rows()),
            Definition::Graph => {
                let names = self.inputs.iter().map(|(name, _)| name.as_str());
                let named: Vec<_> = names.zip(inputs).collect();
                reference::run(&self.graph, &named)?.into_values().collect()
            }
        };
        Ok(outputs.remove(0))
    }
}

/// Every n-th row with n odd, so that sampled rows fall on every position within a kernel's tile of 2ⁿ rows.
fn stride(work: u64) -> usize {
    work.div_ceil(WHOLE_REFERENCE) as usize | 1
}

/// A score of two normal vectors, scaled, has deviation 1 and reaches 5; it is off by about √head_dim roundings of that size,
/// and each weight relatively by as much. Sums over the keys add √seq_kv roundings, exp and the rest a few, storage one.
fn attention_tolerance(problem: &Problem) -> Tolerance {
    let storage = if problem.dtype == Dtype::F16 { EPSILON_F16 } else { 0.0 };
    let scores = 10.0 * (2.0 + (problem.head_dim as f64).sqrt());
    Tolerance::of_scale((scores + (problem.seq_kv as f64).sqrt() + 32.0) * EPSILON_F32 + storage)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(text: &str) -> Task {
        Task::attention("problem", &text.parse().unwrap()).unwrap()
    }

    #[test]
    fn large_problems_are_sampled() {
        assert_eq!(task("b=1,h=1,s=100,d=64").rows(), Rows::All);
        // 8 · 1024 · 1024 · 128 multiplications are 2.7 times the limit.
        assert_eq!(task("b=1,h=8,s=1024,d=64").rows(), Rows::Every(3));
        assert_eq!(stride(8 * WHOLE_REFERENCE), 9);
    }

    #[test]
    fn both_strategies_have_one_definition() {
        let expected = |strategy: &str| {
            let task = task(&format!("b=1,h=2,kvh=1,sq=3,skv=5,d=4,causal,strategy={strategy}"));
            let inputs = task.draw();
            let named: Vec<_> = task.inputs.iter().map(|(name, _)| name.as_str()).zip(&inputs).collect();
            let graph = reference::run(&task.graph, &named).unwrap().remove("out").unwrap();
            (task.expected(&inputs).unwrap().to_f64(), graph.to_f64())
        };
        let (fused, fused_graph) = expected("fused");
        let (unfused, unfused_graph) = expected("unfused");
        assert_eq!(fused, fused_graph);
        assert_eq!(fused, unfused);
        // The unfused graph keeps its scale and its intermediates in f64 too; only the order of sums differs.
        assert!(fused.iter().zip(&unfused_graph).all(|(a, b)| (a - b).abs() < 1e-12));
    }
}
