//! Cases: problems with seeded inputs, made once by each op and used by tests, `verify` and benches alike.

use std::sync::Arc;

use half::f16;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, Normal};

use crate::compare::Tolerance;
use crate::op::Op;
use crate::tensor::{Dtype, HostTensor, TensorDesc};

/// How an input of a case is drawn.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// Normal with this standard deviation, rounded to the dtype.
    Normal(f32),
    /// True with this probability. An axis-last row whose number is a multiple of 7 is all false when `empty_rows` is set.
    Mask {
        /// Probability of true.
        keep: f64,
        /// Leave every seventh row without a true.
        empty_rows: bool,
    },
    /// Normal(1), and −inf with this probability.
    Bias {
        /// Probability of −inf.
        excluded: f64,
    },
    /// These very values.
    Given(HostTensor),
}

/// One input: what it is and how it is drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct CaseInput {
    /// Dtype and shape.
    pub desc: TensorDesc,
    /// The distribution.
    pub values: Values,
}

impl CaseInput {
    /// A normal input with this standard deviation.
    pub fn normal(dtype: Dtype, shape: &[usize], deviation: f32) -> Self {
        Self { desc: TensorDesc::new(dtype, shape), values: Values::Normal(deviation) }
    }

    /// Draws the values; equal seeds give equal values.
    pub fn draw(&self, seed: u64) -> HostTensor {
        let mut rng = StdRng::seed_from_u64(seed);
        let len = self.desc.len();
        let tensor = match &self.values {
            Values::Given(tensor) => Ok(tensor.clone()),
            Values::Normal(deviation) => self.floats((0..len).map(|_| normal(&mut rng) * deviation).collect()),
            Values::Bias { excluded } => self.floats(
                (0..len)
                    .map(|_| if rng.random_bool(*excluded) { f32::NEG_INFINITY } else { normal(&mut rng) })
                    .collect(),
            ),
            Values::Mask { keep, empty_rows } => {
                let row = self.desc.row_length().max(1);
                let kept = |i: usize, draw: bool| draw && !(*empty_rows && (i / row).is_multiple_of(7));
                HostTensor::bool(&self.desc.shape, (0..len).map(|i| kept(i, rng.random_bool(*keep))).collect())
            }
        };
        tensor.expect("the values were drawn for this shape")
    }

    fn floats(&self, data: Vec<f32>) -> crate::Result<HostTensor> {
        match self.desc.dtype {
            Dtype::F16 => HostTensor::f16(&self.desc.shape, data.into_iter().map(f16::from_f32).collect()),
            dtype => Ok(HostTensor::f32(&self.desc.shape, data)?.cast(dtype)),
        }
    }
}

fn normal(rng: &mut StdRng) -> f32 {
    Normal::new(0.0, 1.0).expect("a deviation of 1 is legal").sample(rng)
}

/// A problem for one op.
#[derive(Debug, Clone)]
pub struct Case {
    /// Shape and options in words, unique within the op.
    pub name: String,
    /// The op with its options.
    pub op: Arc<dyn Op>,
    /// Its inputs.
    pub inputs: Vec<CaseInput>,
    /// What every technique must keep.
    pub tolerance: Tolerance,
}

impl Case {
    /// A case whose shapes the op accepts.
    pub fn new(name: impl Into<String>, op: impl Op + 'static, inputs: Vec<CaseInput>, tolerance: Tolerance) -> Self {
        Self { name: name.into(), op: Arc::new(op), inputs, tolerance }
    }

    /// Descriptions of the inputs.
    pub fn descs(&self) -> Vec<TensorDesc> {
        self.inputs.iter().map(|input| input.desc.clone()).collect()
    }

    /// Whether a tensor on either side is f16, which not every GPU has in shaders.
    pub fn has_f16(&self) -> bool {
        let outputs = self.op.outputs(&self.descs()).unwrap_or_default();
        self.descs().iter().chain(&outputs).any(|desc| desc.dtype == Dtype::F16)
    }

    /// The inputs' values, the same at every call.
    pub fn draw(&self) -> Vec<HostTensor> {
        self.inputs.iter().zip(1..).map(|(input, seed)| input.draw(seed)).collect()
    }
}
