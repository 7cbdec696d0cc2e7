//! The unfused path in place of a fused kernel that a device does not have.

use std::sync::Arc;

use super::{Attention, Returns, Strategy};
use crate::capabilities::Capabilities;
use crate::error::Result;
use crate::graph::{Graph, Lowering, Tensor, renamed};
use crate::op::Technique;
use crate::ops::ScoreRule;
use crate::tensor::TensorDesc;

/// What [`Strategy::Auto`] has besides the fused kernel.
#[derive(Debug)]
pub(super) struct Unfuse {
    options: Attention,
    /// Of the fused node, among them the options' tensors.
    inputs: Vec<Tensor>,
    returns: Returns,
}

impl Unfuse {
    /// `None` where only a fused kernel computes what the options say.
    pub fn of(options: &Attention, rule: &ScoreRule, inputs: &[Tensor], returns: Returns) -> Option<Arc<dyn Lowering>> {
        let options = Attention { strategy: Strategy::Unfused, ..*options };
        let unfuse = Self { options, inputs: inputs.to_vec(), returns };
        (!rule.reads_batched_keys()).then(|| Arc::new(unfuse) as Arc<dyn Lowering>)
    }
}

impl Lowering for Unfuse {
    fn name(&self) -> &'static str {
        "unfused"
    }

    fn wins(&self, inputs: &[TensorDesc], offered: &[Technique], capabilities: &Capabilities) -> bool {
        offered.is_empty() && capabilities.has_types(inputs)
    }

    fn build(&self, graph: &mut Graph, inputs: &[Tensor], _capabilities: &Capabilities) -> Result<Vec<Tensor>> {
        let options = self.options.map(|tensor| renamed(tensor, &self.inputs, inputs));
        let [q, k, v] = [inputs[0], inputs[1], inputs[2]];
        match self.returns {
            Returns::Output => Ok(vec![graph.attention(q, k, v, &options)?]),
            Returns::OutputAndSums => {
                let (output, lse) = graph.attention_lse(q, k, v, &options)?;
                Ok(vec![output, lse])
            }
        }
    }
}
