//! What becomes of a product's elements before they are stored.

use super::MatMulParams;
use crate::cpu::kernels::elementwise as kernel;
use crate::error::{Error, Result};
use crate::op::Bindings;
use crate::ops::elementwise::{FUNCTIONS, Operand, Step, encode, value};
use crate::shader::{Constant, Source, wgsl};
use crate::tensor::{Dtype, TensorDesc};

const CHAIN: Source = wgsl!("lib/chain");
const NONE: Source = wgsl!("lib/epilogue_none");
const STEPS: Source = wgsl!("lib/epilogue_steps");
const RESIDUAL_NONE: Source = wgsl!("lib/residual_none");
const RESIDUAL_DENSE: Source = wgsl!("lib/residual_dense");
const RESIDUAL_BINDING: u32 = 11;

/// The code of a step that is not there, as in the shader.
const NO_STEP: u32 = u32::MAX;

/// Up to two element-wise steps after a product and its bias.
///
/// In them, the product is the value that steps change, and [`Operand::Input`]`(1)` is the residual: a tensor of the result's
/// shape that follows the product's other inputs.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Epilogue {
    steps: [Option<Step>; Self::MOST],
}

impl Epilogue {
    /// Most steps.
    pub const MOST: usize = 2;

    /// These steps; `None` where they are too many.
    pub fn of(steps: &[Step]) -> Option<Self> {
        let mut epilogue = Self::default();
        for (at, step) in steps.iter().enumerate() {
            *epilogue.steps.get_mut(at)? = Some(*step);
        }
        Some(epilogue)
    }

    /// In their order.
    pub fn steps(&self) -> impl Iterator<Item = Step> {
        self.steps.into_iter().flatten()
    }

    /// Whether some step takes the residual.
    pub fn has_residual(&self) -> bool {
        let takes = |step| matches!(step, Step::Binary(_, Operand::Input(_)) | Step::Reversed(_, Operand::Input(_)));
        self.steps().any(takes)
    }

    /// Refuses steps that mean nothing, and a residual that is not of the result's shape.
    pub(super) fn check(&self, residual: Option<&TensorDesc>, shape: &[usize]) -> Result<()> {
        for (number, step) in self.steps().enumerate() {
            step.check(number, 2)?;
            if let Step::Binary(_, Operand::Input(0)) | Step::Reversed(_, Operand::Input(0)) = step {
                let message = format!("step {number}: the operand is input 0, the product; the residual is input 1");
                return Err(Error::option("matmul", message));
            }
        }
        match residual.filter(|residual| residual.shape != shape) {
            None => Ok(()),
            Some(residual) => {
                Err(Error::shape("matmul", format!("the residual is {residual}, the product has shape {shape:?}")))
            }
        }
    }

    /// For the reference.
    pub(super) fn value(&self, product: f64, residual: f64) -> f64 {
        value(&self.steps().collect::<Vec<_>>(), &[product, residual])
    }

    /// As native kernels know them.
    pub(super) fn native(&self) -> Vec<kernel::Step> {
        self.steps().map(|step| step.lower()).collect()
    }

    /// Library files; what they need is added to the constants and bindings.
    pub(super) fn link(
        &self,
        residual: Option<Dtype>,
        constants: &mut Vec<(&'static str, Constant)>,
        bindings: &mut Bindings,
    ) -> Vec<Source> {
        let residuals = match residual {
            None => RESIDUAL_NONE,
            Some(dtype) => {
                constants.push(("ResidualElem", Constant::Scalar(dtype)));
                bindings.inputs.push(RESIDUAL_BINDING);
                RESIDUAL_DENSE
            }
        };
        if self.steps().next().is_none() {
            return vec![residuals, NONE];
        }
        let code = |at: usize| Constant::U32(self.steps[at].map_or(NO_STEP, |step| encode(&step.lower())[0]));
        constants.extend([("STEP_0", code(0)), ("STEP_1", code(1))]);
        vec![residuals, FUNCTIONS, CHAIN, STEPS]
    }

    /// The same params with the steps.
    pub(super) fn params(&self, params: MatMulParams) -> MatMulParams {
        let mut epilogue = [[0; 4]; Self::MOST];
        epilogue.iter_mut().zip(self.steps()).for_each(|(to, step)| *to = encode(&step.lower()));
        MatMulParams { epilogue, ..params }
    }
}
