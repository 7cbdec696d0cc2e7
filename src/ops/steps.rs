//! The mask or the lengths of a recurrent op: among its inputs, in its shader, in a checked run.

use crate::error::{Error, Result};
use crate::shader::{Source, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc};

const STEPS_ALL: Source = wgsl!("lib/steps_all");
const STEPS_MASK: Source = wgsl!("lib/steps_mask");
const STEPS_LENGTHS: Source = wgsl!("lib/steps_lengths");

/// Where the libraries bind a mask or lengths.
pub(super) const STEPS_BINDING: u32 = 10;

/// Where a mask and lengths are among the inputs. One of them at most.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepPlaces {
    pub mask: Option<usize>,
    pub lengths: Option<usize>,
}

impl StepPlaces {
    /// Both at once would need a buffer more than WebGPU guarantees.
    pub fn exclusive(&self, op: &'static str) -> Result<()> {
        match self.mask.and(self.lengths) {
            Some(_) => Err(Error::option(op, "a mask and lengths exclude each other; a mask can say both")),
            None => Ok(()),
        }
    }

    /// Dtype and shape.
    pub fn fit(&self, op: &'static str, inputs: &[TensorDesc], [batch, steps]: [usize; 2]) -> Result<()> {
        for (at, name, wanted) in [
            (self.mask, "mask", TensorDesc::new(Dtype::Bool, [batch, steps])),
            (self.lengths, "lengths", TensorDesc::new(Dtype::U32, [batch])),
        ] {
            if let Some(desc) = at.map(|at| &inputs[at]).filter(|desc| **desc != wanted) {
                return Err(Error::shape(op, format!("{name} is {desc}, it must be {wanted}")));
            }
        }
        Ok(())
    }

    /// Lengths of more steps than there are.
    pub fn check(&self, op: &'static str, steps: usize, data: &[Option<&HostTensor>]) -> Result<()> {
        let lengths = self.lengths.and_then(|at| data.get(at).copied().flatten()).and_then(HostTensor::as_u32);
        match lengths.unwrap_or_default().iter().enumerate().find(|(_, length)| **length as usize > steps) {
            Some((sequence, length)) => {
                Err(Error::shape(op, format!("sequence {sequence} has length {length}, there are {steps} steps")))
            }
            None => Ok(()),
        }
    }

    /// What the shader asks which steps take place.
    pub fn library(&self) -> Source {
        match (self.mask, self.lengths) {
            (None, None) => STEPS_ALL,
            (Some(_), _) => STEPS_MASK,
            (None, Some(_)) => STEPS_LENGTHS,
        }
    }
}
