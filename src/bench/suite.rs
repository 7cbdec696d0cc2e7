//! Suites of problems by name.

use std::str::FromStr;
use std::time::Duration;

use super::EPSILON_F32;
use super::kernels;
use super::problem::Problem;
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
    /// Each op alone at a size that fills a device, each technique on a line of its own.
    Kernels,
    /// A multi-head attention layer with its projections, batch 128, sequence 32, width 200, 5 heads.
    Layer,
    /// That layer, and the attention of models in use: all-MiniLM-L6-v2, BERT-base, GPT-2, Llama 3 8B.
    Layers,
    /// Decoding steps over 1,024 to 65,536 keys: whether time grows as the keys do.
    Decode,
}

/// Each suite with its name.
const NAMES: [(&str, Suite); 5] = [
    ("quick", Suite::Quick),
    ("kernels", Suite::Kernels),
    ("layer", Suite::Layer),
    ("layers", Suite::Layers),
    ("decode", Suite::Decode),
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

    /// Seconds after which what is left of the suite is skipped.
    pub fn total(self) -> Option<Duration> {
        (self == Self::Quick).then_some(Duration::from_secs(90))
    }

    /// The suite's problems for a device, small ones first. `strategy` overrides that of every attention problem.
    ///
    /// # Errors
    /// A strategy that some problem does not allow.
    pub fn tasks(self, capabilities: &Capabilities, strategy: Option<Strategy>) -> Result<Vec<Task>> {
        match self {
            Self::Quick => self.attention(&quick(), strategy),
            Self::Kernels => kernels::tasks(capabilities),
            Self::Layer => Ok(vec![layer(strategy.unwrap_or_default())?]),
            Self::Decode => self.attention(&decode(), strategy),
            Self::Layers => {
                let mut tasks = vec![layer(strategy.unwrap_or_default())?];
                tasks.extend(self.attention(&models(), strategy)?);
                Ok(tasks)
            }
        }
    }

    /// A task for each problem, without those that `strategy` makes the same.
    fn attention(self, problems: &[Problem], strategy: Option<Strategy>) -> Result<Vec<Task>> {
        let mut problems = problems.to_vec();
        if let Some(strategy) = strategy {
            problems.iter_mut().for_each(|problem| problem.strategy = strategy);
        }
        let mut seen = std::collections::HashSet::new();
        problems.retain(|problem| seen.insert(*problem));
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

/// Short and long sequences, both head dimensions in use, causality, half storage, decoding, and one way that stores scores.
const fn quick() -> [Problem; 9] {
    let base = Problem::new(1, 8, 1024, 64);
    let decode = Problem { kv_heads: 8, seq_q: 1, ..Problem::new(8, 32, 4096, 128) };
    [
        Problem::new(8, 12, 128, 64),
        base,
        base.causal(),
        Problem { dtype: Dtype::F16, ..base },
        Problem { strategy: Strategy::Unfused, ..base },
        Problem { batch: 1, ..decode },
        decode,
        Problem::new(1, 4, 2048, 128).causal(),
        Problem::new(1, 4, 2048, 128),
    ]
}

/// One query for each of 32 heads on 8 key heads; the most keys are 128 MiB, which every device binds.
fn decode() -> [Problem; 7] {
    let step = Problem { kv_heads: 8, seq_q: 1, ..Problem::new(1, 32, 1024, 64) };
    std::array::from_fn(|doubled| Problem { seq_kv: 1024 << doubled, ..step })
}

/// all-MiniLM-L6-v2 on 32 sentences of 32 tokens, BERT-base on 8 of 512, GPT-2 on 1,024 tokens, Llama 3 8B on a prompt of 2,048 and
/// on one token after 8,192.
const fn models() -> [Problem; 5] {
    let llama = Problem { kv_heads: 8, ..Problem::new(1, 32, 2048, 128) };
    [
        Problem::new(32, 12, 32, 32),
        Problem::new(8, 12, 512, 64),
        Problem::new(1, 12, 1024, 64).causal(),
        llama.causal(),
        Problem { seq_q: 1, seq_kv: 8192, ..llama },
    ]
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
        suite: Suite::Layer.name(),
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
        assert!("fast".parse::<Suite>().unwrap_err().to_string().contains("quick, kernels, layer, layers, decode"));
    }

    #[test]
    fn a_strategy_overrides_and_equal_problems_merge() {
        let tasks = Suite::Quick.tasks(&Capabilities::baseline(), Some(Strategy::Unfused)).unwrap();
        assert_eq!(tasks.len(), quick().len() - 1);
        assert!(tasks.iter().all(|task| task.problem.ends_with("strategy=unfused")));
    }
}
