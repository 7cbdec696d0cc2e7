//! Suites of problems by name.

use std::str::FromStr;
use std::time::Duration;

use super::EPSILON_F32;
use super::kernels;
use super::problem::Problem;
use super::suites;
use super::task::{Definition, Refusal, Task};
use crate::attention::{Attention, Strategy};
use crate::capabilities::Capabilities;
use crate::case::CaseInput;
use crate::compare::Tolerance;
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::nn::{AppendedKeys, Linear, MultiHeadAttention, Projections, WeightOrder};
use crate::plan::PlanOptions;
use crate::tensor::Dtype;

/// A named set of problems.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Suite {
    /// A handful of attention problems; ends within two minutes on two CPU cores.
    #[default]
    Quick,
    /// FlashAttention's axes: 16,384 tokens in sequences of 512 to 16,384, head_dim 64, 128 and 256, causal and not, f16 and f32.
    Fa,
    /// Axes of Triton's tutorial: batch 4, 32 heads, 1,024 to 16,384 tokens, head_dim 64 and 128, causal and not, f16.
    Triton,
    /// The catalogue of cubek-attention, f16.
    Cubek,
    /// Decoding steps: 1,024 to 131,072 keys, batches of 1 to 64, 1 to 8 query heads on each key head.
    Decode,
    /// What fused and unfused attention allocate as sequences grow.
    Memory,
    /// Each op alone at a size that fills a device, each technique on a line of its own.
    Kernels,
    /// A multi-head attention layer with its projections, batch 128, sequence 32, width 200, 5 heads.
    Layer,
    /// That layer, and the attention of models in use: all-MiniLM-L6-v2, BERT-base, GPT-2, Llama 3 8B.
    Layers,
    /// How long a program waits for its first result of the layer: [`latency`](super::latency).
    Latency,
}

/// Each suite with its name.
const NAMES: [(&str, Suite); 10] = [
    ("quick", Suite::Quick),
    ("fa", Suite::Fa),
    ("triton", Suite::Triton),
    ("cubek", Suite::Cubek),
    ("decode", Suite::Decode),
    ("memory", Suite::Memory),
    ("kernels", Suite::Kernels),
    ("layer", Suite::Layer),
    ("layers", Suite::Layers),
    ("latency", Suite::Latency),
];

impl Suite {
    /// Name as users write it.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(_, suite)| *suite == self).expect("every suite has a name").0
    }

    /// Names of all suites.
    pub fn names() -> impl Iterator<Item = &'static str> {
        NAMES.iter().map(|(name, _)| *name)
    }

    /// Time for the suite, in which every line must fit that it has: the largest sweeps end within ten minutes with all that is around
    /// them, the quick one within two.
    pub fn total(self) -> Option<Duration> {
        match self {
            Self::Quick => Some(Duration::from_secs(90)),
            Self::Fa | Self::Triton => Some(Duration::from_secs(9 * 60)),
            _ => None,
        }
    }

    /// A problem whose one run takes longer is skipped. In the sweeps, a line of such runs is a sixth of the suite's time.
    pub fn longest_run(self) -> Duration {
        match self {
            Self::Fa | Self::Triton => Duration::from_secs(20),
            Self::Cubek => Duration::from_secs(8),
            _ => Duration::from_millis(1500),
        }
    }

    /// The suite's problems for a device, small ones first. `strategy` overrides that of every attention problem.
    ///
    /// # Errors
    /// A strategy that some problem does not allow.
    pub fn tasks(self, capabilities: &Capabilities, strategy: Option<Strategy>) -> Result<Vec<Task>> {
        match self {
            Self::Quick => self.attention(suites::quick(), strategy),
            Self::Fa => self.attention(suites::fa(), strategy),
            Self::Triton => self.attention(suites::triton(), strategy),
            Self::Cubek => self.attention(suites::cubek(), strategy),
            Self::Decode => self.attention(suites::decode(), strategy),
            Self::Memory => self.attention(suites::memory(), strategy),
            Self::Kernels => kernels::tasks(capabilities),
            Self::Layer | Self::Latency => Ok(vec![layer(strategy.unwrap_or_default())?]),
            Self::Layers => {
                let mut tasks = vec![layer(strategy.unwrap_or_default())?];
                tasks.extend(self.attention(suites::models(), strategy)?);
                Ok(tasks)
            }
        }
    }

    /// A task for each problem, without those that `strategy` makes the same.
    fn attention(self, mut problems: Vec<Problem>, strategy: Option<Strategy>) -> Result<Vec<Task>> {
        if let Some(strategy) = strategy {
            problems.iter_mut().for_each(|problem| problem.strategy = strategy);
        }
        let mut seen = std::collections::HashSet::new();
        problems.retain(|problem| seen.insert(*problem));
        // What is too much for a device comes after what is not.
        if matches!(self, Self::Fa | Self::Triton) {
            problems.sort_by_key(Problem::flops);
        }
        problems.iter().map(|problem| Task::attention(self.name(), problem)).collect()
    }
}

impl FromStr for Suite {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match NAMES.iter().find(|(name, _)| *name == text) {
            Some((_, suite)) => Ok(*suite),
            None => {
                let names: Vec<_> = Self::names().collect();
                Err(Error::Parse(format!("suite: `{text}` is not one of {}", names.join(", "))))
            }
        }
    }
}

/// The layer of `seeds/002`: `MultiHeadedAttention(d_feat=200, n_head=5)` on `[128, 32, 200]`, q = k = v, scale 1/√200.
fn layer(strategy: Strategy) -> Result<Task> {
    const BATCH: usize = 128;
    const SEQ: usize = 32;
    const WIDTH: usize = 200;
    const HEADS: usize = 5;
    let mut graph = Graph::new();
    let src = CaseInput::normal(Dtype::F32, &[BATCH, SEQ, WIDTH], 1.0);
    let input = graph.input("src", src.desc.clone())?;
    let mut seed = 100;
    let mut linear = |name: &str| -> Result<Linear> {
        // The deviation of PyTorch's `nn.Linear`: uniform within ±1/√width.
        let deviation = (1.0 / (3.0 * WIDTH as f64).sqrt()) as f32;
        let mut weight = |part: &str, shape: &[usize]| -> Result<Tensor> {
            seed += 1;
            graph.weight(&format!("{name}.{part}"), CaseInput::normal(Dtype::F32, shape, deviation).draw(seed))
        };
        let [weight, bias] = [weight("weight", &[WIDTH, WIDTH])?, weight("bias", &[WIDTH])?];
        Ok(Linear { weight, bias: Some(bias), order: WeightOrder::OutIn })
    };
    let layer = MultiHeadAttention {
        heads: HEADS,
        kv_heads: HEADS,
        projections: Projections::Separate([linear("query")?, linear("key")?, linear("value")?]),
        output: linear("output")?,
        appended: AppendedKeys::default(),
        attention: Attention { scale: Some((1.0 / (WIDTH as f64).sqrt()) as f32), strategy, ..Attention::default() },
    };
    let tensors = layer.add(&mut graph, [input; 3])?;
    graph.output("out", tensors.output)?;
    let options = match strategy {
        Strategy::Auto => "",
        Strategy::Fused => ",strategy=fused",
        Strategy::Unfused => ",strategy=unfused",
    };
    // Three stages of sums of up to 200 terms, each off by about √200 + 2 roundings of its scale, twice for the tails.
    let tolerance = Tolerance::of_scale(6.0 * (2.0 + (WIDTH as f64).sqrt()) * EPSILON_F32);
    Ok(Task {
        suite: Suite::Layer.name().into(),
        problem: format!("multi_head_attention b={BATCH},s={SEQ},width={WIDTH},h={HEADS}{options}"),
        graph,
        inputs: vec![("src".into(), src)],
        definition: Definition::Graph,
        tolerance,
        flops: None,
        options: PlanOptions::default(),
        refusal: Refusal::Skip,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_and_suites_build() {
        for name in Suite::names() {
            let suite: Suite = name.parse().unwrap();
            assert_eq!(suite.name(), name);
            let tasks = suite.tasks(&Capabilities::baseline_f16(), None).unwrap();
            assert!(!tasks.is_empty(), "{name}");
            assert!(tasks.iter().all(|task| task.graph.outputs().map(|(name, _)| name).eq(["out"])), "{name}");
        }
        assert!(
            "fast"
                .parse::<Suite>()
                .unwrap_err()
                .to_string()
                .contains("quick, fa, triton, cubek, decode, memory, kernels, layer, layers")
        );
    }

    #[test]
    fn a_strategy_overrides_and_equal_problems_merge() {
        let tasks = Suite::Quick.tasks(&Capabilities::baseline(), Some(Strategy::Unfused)).unwrap();
        assert_eq!(tasks.len(), suites::quick().len() - 1);
        assert!(tasks.iter().all(|task| task.problem.ends_with("strategy=unfused")));
    }
}
