//! BERT's encoder over packed sequences: the tokens of all sentences lie one after another, without padding.
//!
//! Source: Devlin et al., arXiv:1810.04805; tensor names as in Hugging Face's `BertModel`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::config::Config;
use crate::attention::Attention;
use crate::error::Result;
use crate::graph::{Graph, Tensor};
use crate::nn::{
    AppendedKeys, Linear, MultiHeadAttention, Norm, NormOrder, Projections, TransformerEncoderLayer, WeightOrder,
};
use crate::ops::{Binary, Layout};
use crate::tensor::{Dtype, HostTensor, TensorDesc};
use crate::weights::WeightFile;

const WORDS: &str = "embeddings.word_embeddings.weight";
const POSITIONS: &str = "embeddings.position_embeddings.weight";
const TOKEN_TYPES: &str = "embeddings.token_type_embeddings.weight";
/// Where query, key and value are projected; here, all three in one product.
const JOINED: &str = "attention.self";
/// What `BertModel`'s names start with inside of models that contain one.
const INSIDE: &str = "bert.";

/// Names of a graph's inputs: u32 `[tokens]`, u32 `[tokens]` and u32 `[sentences + 1]`.
pub(super) const IDS: &str = "ids";
pub(super) const PLACES: &str = "positions";
pub(super) const STARTS: &str = "starts";
/// Name of an output: `[sentences, hidden]`.
pub(super) const POOLED: &str = "pooled";

/// An encoder's weights, which every graph shares.
#[derive(Debug)]
pub(super) struct Bert {
    pub config: Config,
    weights: BTreeMap<String, Arc<HostTensor>>,
}

/// What a graph is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Packed {
    /// Tokens of all sentences together.
    pub tokens: usize,
    pub sentences: usize,
}

/// Which states a graph returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum States {
    /// Their means over each sentence.
    Pooled,
    /// Those before each layer and after the last, `[tokens, hidden]`, named by [`state`].
    All,
}

/// Name of the states after so many layers.
pub(super) fn state(layers: usize) -> String {
    format!("state.{layers}")
}

impl Bert {
    /// Reads the weights that the configuration asks for, as this float.
    ///
    /// # Errors
    /// A tensor that is missing, is no float or has another shape; names file, tensor and both shapes.
    pub fn read(path: &Path, config: Config, dtype: Dtype) -> Result<Self> {
        let file = WeightFile::open(path)?;
        let prefix = if file.shape(&format!("{INSIDE}{WORDS}")).is_ok() { INSIDE } else { "" };
        let mut reader = Reader { file, prefix, dtype, weights: BTreeMap::new() };
        let Config { hidden, inner, vocabulary, positions, token_types, .. } = config;
        reader.take(WORDS, &[vocabulary, hidden])?;
        reader.positions([positions, hidden], token_types)?;
        reader.norm("embeddings.LayerNorm", hidden)?;
        for layer in 0..config.layers {
            let name = |part: &str| format!("encoder.layer.{layer}.{part}");
            reader.joined(&name(JOINED), ["query", "key", "value"], hidden)?;
            reader.linear(&name("attention.output.dense"), [hidden, hidden])?;
            reader.norm(&name("attention.output.LayerNorm"), hidden)?;
            reader.linear(&name("intermediate.dense"), [inner, hidden])?;
            reader.linear(&name("output.dense"), [hidden, inner])?;
            reader.norm(&name("output.LayerNorm"), hidden)?;
        }
        Ok(Self { config, weights: reader.weights })
    }

    /// The encoder for batches of this size.
    ///
    /// # Errors
    /// None, for weights that were read by this configuration.
    pub fn graph(&self, packed: Packed, states: States) -> Result<Graph> {
        let Packed { tokens, sentences } = packed;
        let mut graph = Graph::new();
        let ids = graph.input(IDS, TensorDesc::new(Dtype::U32, [tokens]))?;
        let places = graph.input(PLACES, TensorDesc::new(Dtype::U32, [tokens]))?;
        let starts = graph.input(STARTS, TensorDesc::new(Dtype::U32, [sentences + 1]))?;
        let words = self.weight(&mut graph, WORDS)?;
        let words = graph.embedding(words, ids)?;
        let positions = self.weight(&mut graph, POSITIONS)?;
        let positions = graph.embedding(positions, places)?;
        let sum = graph.binary(words, positions, Binary::Add)?;
        let x = self.norm(&mut graph, "embeddings.LayerNorm")?.add(&mut graph, sum)?;
        let mut x = graph.reshape(x, &[1, tokens, self.config.hidden])?;
        for layer in 0..self.config.layers {
            self.returned(&mut graph, states, layer, x)?;
            x = self.layer(&mut graph, layer, starts)?.add(&mut graph, x)?.output;
        }
        self.returned(&mut graph, states, self.config.layers, x)?;
        if states == States::Pooled {
            let pooled = self.mean(&mut graph, x, starts, sentences)?;
            graph.output(POOLED, pooled)?;
        }
        Ok(graph)
    }

    /// The mean of each sentence's rows, `[sentences, hidden]`: what attention gives a query of zeros, which finds all keys of
    /// its sentence alike.
    fn mean(&self, graph: &mut Graph, x: Tensor, starts: Tensor, sentences: usize) -> Result<Tensor> {
        let Config { hidden, heads, .. } = self.config;
        let dtype = graph.desc(x)?.dtype;
        let zeros = HostTensor::zeros(TensorDesc::new(dtype, [1, sentences, hidden]));
        let queries = graph.constant(zeros)?;
        let each = (0..=sentences).map(|sentence| sentence as u32).collect();
        let each = graph.constant(HostTensor::u32(&[sentences + 1], each)?)?;
        let merged = Layout::Merged { heads };
        let options = Attention {
            q_starts: Some(each),
            kv_starts: Some(starts),
            q_layout: merged,
            kv_layout: merged,
            ..Attention::default()
        };
        let means = graph.attention(queries, x, x, &options)?;
        graph.reshape(means, &[sentences, hidden])
    }

    fn returned(&self, graph: &mut Graph, states: States, layers: usize, x: Tensor) -> Result<()> {
        if states == States::Pooled {
            return Ok(());
        }
        let shape = graph.desc(x)?.shape[1..].to_vec();
        let x = graph.reshape(x, &shape)?;
        graph.output(&state(layers), x)
    }

    fn layer(&self, graph: &mut Graph, layer: usize, starts: Tensor) -> Result<TransformerEncoderLayer> {
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        let attention = MultiHeadAttention {
            heads: self.config.heads,
            kv_heads: self.config.heads,
            projections: Projections::Joined(self.linear(graph, &name(JOINED))?),
            output: self.linear(graph, &name("attention.output.dense"))?,
            appended: AppendedKeys::default(),
            attention: Attention { q_starts: Some(starts), kv_starts: Some(starts), ..Attention::default() },
        };
        Ok(TransformerEncoderLayer {
            attention,
            feed_forward: [
                self.linear(graph, &name("intermediate.dense"))?,
                self.linear(graph, &name("output.dense"))?,
            ],
            activation: self.config.activation,
            norms: [
                self.norm(graph, &name("attention.output.LayerNorm"))?,
                self.norm(graph, &name("output.LayerNorm"))?,
            ],
            norm_order: NormOrder::Last,
        })
    }

    fn linear(&self, graph: &mut Graph, name: &str) -> Result<Linear> {
        let weight = self.weight(graph, &format!("{name}.weight"))?;
        let bias = self.weight(graph, &format!("{name}.bias"))?;
        Ok(Linear { weight, bias: Some(bias), order: WeightOrder::OutIn })
    }

    fn norm(&self, graph: &mut Graph, name: &str) -> Result<Norm> {
        let scale = self.weight(graph, &format!("{name}.weight"))?;
        let bias = Some(self.weight(graph, &format!("{name}.bias"))?);
        Ok(Norm { scale, bias, epsilon: self.config.epsilon })
    }

    fn weight(&self, graph: &mut Graph, name: &str) -> Result<Tensor> {
        graph.weight(name, self.weights[name].clone())
    }
}

/// Weights on their way from the file.
struct Reader {
    file: WeightFile,
    prefix: &'static str,
    dtype: Dtype,
    weights: BTreeMap<String, Arc<HostTensor>>,
}

impl Reader {
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<()> {
        let value = self.file.floats(&format!("{}{name}", self.prefix), shape, self.dtype)?;
        self.weights.insert(name.to_owned(), Arc::new(value));
        Ok(())
    }

    fn linear(&mut self, name: &str, [outputs, inputs]: [usize; 2]) -> Result<()> {
        self.take(&format!("{name}.weight"), &[outputs, inputs])?;
        self.take(&format!("{name}.bias"), &[outputs])
    }

    fn norm(&mut self, name: &str, width: usize) -> Result<()> {
        self.take(&format!("{name}.weight"), &[width])?;
        self.take(&format!("{name}.bias"), &[width])
    }

    /// Several square maps as one, one after another.
    fn joined(&mut self, name: &str, parts: [&str; 3], width: usize) -> Result<()> {
        for (kind, shape) in [("weight", &[width, width][..]), ("bias", &[width])] {
            let mut bytes = Vec::new();
            for part in parts {
                let part = format!("{}{name}.{part}.{kind}", self.prefix);
                bytes.extend_from_slice(self.file.floats(&part, shape, self.dtype)?.bytes());
            }
            let mut all = TensorDesc::new(self.dtype, shape);
            all.shape[0] *= parts.len();
            let joined = HostTensor::from_bytes(all, &bytes)?;
            self.weights.insert(format!("{name}.{kind}"), Arc::new(joined));
        }
        Ok(())
    }

    /// The position table, to whose rows that of token type 0 is added: a sentence encoder knows no other type.
    fn positions(&mut self, shape: [usize; 2], token_types: usize) -> Result<()> {
        let read = |name: &str, shape: &[usize]| self.file.floats(&format!("{}{name}", self.prefix), shape, Dtype::F64);
        let [rows, types] = [read(POSITIONS, &shape)?, read(TOKEN_TYPES, &[token_types, shape[1]])?];
        let first = types.to_f64();
        let sums =
            rows.to_f64().chunks_exact(shape[1]).flat_map(|row| row.iter().zip(&first).map(|(x, y)| x + y)).collect();
        let table = HostTensor::f64(&shape, sums)?.cast(self.dtype);
        self.weights.insert(POSITIONS.to_owned(), Arc::new(table));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capabilities::Capabilities;
    use crate::ops::Unary;
    use crate::schedule::{PlanOptions, Schedule};

    const CONFIG: Config = Config {
        hidden: 8,
        heads: 2,
        layers: 1,
        inner: 12,
        vocabulary: 5,
        positions: 16,
        token_types: 2,
        epsilon: 1e-12,
        activation: Unary::Gelu,
    };

    #[test]
    fn attention_is_two_products_and_one_step() {
        let mut weights = BTreeMap::new();
        let mut add = |name: &str, shape: &[usize]| {
            weights.insert(name.to_owned(), Arc::new(HostTensor::zeros(TensorDesc::new(Dtype::F32, shape))));
        };
        add(WORDS, &[5, 8]);
        add(POSITIONS, &[16, 8]);
        let layer = "encoder.layer.0";
        let maps = [(JOINED, [24, 8]), ("attention.output.dense", [8, 8]), ("intermediate.dense", [12, 8])];
        for (name, shape) in maps.into_iter().chain([("output.dense", [8, 12])]) {
            add(&format!("{layer}.{name}.weight"), &shape);
            add(&format!("{layer}.{name}.bias"), &shape[..1]);
        }
        let norms = ["attention.output.LayerNorm", "output.LayerNorm"].map(|name| format!("{layer}.{name}"));
        for name in norms.into_iter().chain(["embeddings.LayerNorm".into()]) {
            add(&format!("{name}.weight"), &[8]);
            add(&format!("{name}.bias"), &[8]);
        }
        let bert = Bert { config: CONFIG, weights };
        let graph = bert.graph(Packed { tokens: 6, sentences: 2 }, States::Pooled).unwrap();
        let schedule = Schedule::new(&graph, &Capabilities::baseline(), &PlanOptions::default()).unwrap();
        let ops: Vec<_> = schedule.steps.iter().map(|step| step.op.name()).collect();
        let first = ops.iter().position(|op| *op == "matmul").unwrap();
        assert_eq!(ops[first..first + 3], ["matmul", "attention_fused", "matmul"]);
        // The means over sentences are the other attention, and nothing copies heads for either.
        assert_eq!(ops.last(), Some(&"attention_fused"));
        let copies = ["split_heads", "merge_heads", "slice", "concat", "transpose"];
        assert!(ops.iter().all(|op| !copies.contains(op)), "{ops:?}");
    }
}
