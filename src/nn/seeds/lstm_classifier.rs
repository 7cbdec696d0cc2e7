//! The LSTM classifier of seed document 002, "U-stage day 9".

use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::nn::{Linear, LstmWeights};
use crate::ops::{AxisSlice, LstmOptions};

/// Stacked LSTM layers from a state of zeros, and a linear layer on the last step.
///
/// Three layers by default in the original, two as printed.
#[derive(Debug, Clone, PartialEq)]
pub struct LstmClassifier {
    /// First to last; at least one.
    pub layers: Vec<LstmWeights>,
    /// `[ydim, hdim]`.
    pub head: Linear,
}

/// Every tensor that the model computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LstmClassifierTensors {
    /// h of the last layer after each step, `[batch, steps, hdim]`.
    pub sequence: Tensor,
    /// The last step of that, `[batch, hdim]`.
    pub last: Tensor,
    /// h of each layer after the last step, `[layers, batch, hdim]`.
    pub hidden: Tensor,
    /// c of each layer after the last step, `[layers, batch, hdim]`.
    pub cells: Tensor,
    /// The result, `[batch, ydim]`.
    pub output: Tensor,
}

impl LstmClassifier {
    /// Adds the model: `x` `[batch, steps, xdim]`.
    ///
    /// # Errors
    /// Sizes that do not fit, no layer, no step.
    pub fn add(&self, graph: &mut Graph, x: Tensor) -> Result<LstmClassifierTensors> {
        let mut sequence = x;
        let mut states: Option<[Tensor; 2]> = None;
        for layer in &self.layers {
            let outputs = graph.lstm(sequence, layer, &LstmOptions::default())?;
            sequence = outputs.sequence;
            let mut state = [outputs.last_h, outputs.last_c];
            for tensor in &mut state {
                let shape = [&[1], &graph.desc(*tensor)?.shape[..]].concat();
                *tensor = graph.reshape(*tensor, &shape)?;
            }
            states = Some(match states {
                None => state,
                Some([h, c]) => [graph.concat(h, state[0], 0)?, graph.concat(c, state[1], 0)?],
            });
        }
        let Some([hidden, cells]) = states else {
            return Err(Error::option("lstm", "there is no layer, at least one was expected"));
        };
        let desc = graph.desc(sequence)?.clone();
        let &[batch, steps, width] = &desc.shape[..] else {
            return Err(Error::shape("lstm", format!("the sequence is {desc}, rank 3 was expected")));
        };
        if steps == 0 {
            return Err(Error::shape("lstm", format!("x is {}, there is no last step", graph.desc(x)?)));
        }
        let last = graph.slice(sequence, &[AxisSlice { axis: 1, start: -1, end: i64::MAX, step: 1 }])?;
        let last = graph.reshape(last, &[batch, width])?;
        let output = self.head.add(graph, last)?;
        Ok(LstmClassifierTensors { sequence, last, hidden, cells, output })
    }
}
