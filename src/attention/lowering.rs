//! The unfused path in place of a fused kernel that a device does not have.

use super::{Attention, Returns, Strategy};
use crate::capabilities::Capabilities;
use crate::error::Result;
use crate::graph::{Graph, Lowering, Tensor, renamed};
use crate::op::Technique;
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
    pub fn of(options: &Attention, inputs: &[Tensor], returns: Returns) -> Self {
        let options = Attention { strategy: Strategy::Unfused, ..*options };
        Self { options, inputs: inputs.to_vec(), returns }
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
