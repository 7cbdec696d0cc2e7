//! The one trait, and what a technique is.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use rayon::prelude::*;

use crate::capabilities::Capabilities;
use crate::error::Result;
use crate::precision::Precision;
use crate::shader::{Params, Shader};
use crate::tensor::{HostTensor, TensorDesc, View, ViewMut};

/// One operation: what it computes, what that costs, and every way to run it.
///
/// No method has a default body, so an op without a reference does not compile.
pub trait Op: Any + fmt::Debug + Send + Sync {
    /// Name as users write it, such as `matmul`.
    fn name(&self) -> &'static str;

    /// Descriptions of the outputs.
    ///
    /// # Errors
    /// Every way in which inputs and options do not fit; a graph that was built holds only ops that accepted.
    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>>;

    /// The definition, in f64 and plain loops. Outputs are f64; rows outside `rows` are NaN.
    /// Inputs come as the kernel sees them. Shares no helper with `techniques`.
    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor>;

    /// Exact work for these shapes.
    fn cost(&self, inputs: &[TensorDesc]) -> Cost;

    /// Outputs that are inputs changed in place. Such an input is gone afterwards, and the graph refuses to read it again.
    fn updates(&self) -> &'static [Update];

    /// What a checked run asks of data that shapes do not say: `data` holds the inputs that are u32, `None` for the others.
    /// An unchecked run does not ask, and stays inside its buffers whatever they hold.
    ///
    /// # Errors
    /// Lengths, positions or pages outside of what the other inputs have.
    fn check(&self, inputs: &[TensorDesc], data: &[Option<&HostTensor>]) -> Result<()>;

    /// Every way that works on this device, best first.
    fn techniques(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Vec<Technique>;
}

/// An output that takes over the memory of an input of the same description.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Update {
    /// Index among the outputs.
    pub output: usize,
    /// Index among the inputs.
    pub input: usize,
}

/// Which rows of an output the reference computes, a row being one run along the last axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// All of them.
    All,
    /// Rows 0, n, 2n, …; for problems whose whole reference would take minutes.
    Every(usize),
}

impl Rows {
    /// An f64 tensor of this shape whose rows are computed by `row(index, elements)`, rows left out being NaN.
    pub fn compute(self, shape: &[usize], row: impl Fn(usize, &mut [f64]) + Sync) -> HostTensor {
        let desc = TensorDesc::new(crate::tensor::Dtype::F64, shape);
        let mut data = vec![f64::NAN; desc.len()];
        let step = match self {
            Self::All => 1,
            Self::Every(step) => step.max(1),
        };
        let rows = data.par_chunks_mut(desc.row_length().max(1)).enumerate();
        rows.filter(|(index, _)| index % step == 0).for_each(|(index, elements)| row(index, elements));
        HostTensor::f64(shape, data).expect("the data was made for this shape")
    }
}

/// Work of one op.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// Floating point operations; a fused multiply-add is two, and masked scores that are skipped count nothing.
    pub flops: u64,
    /// Bytes that must be read at least once.
    pub read: u64,
    /// Bytes that must be written.
    pub written: u64,
}

impl Cost {
    /// Each tensor moved once.
    pub fn once(flops: u64, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Self {
        let bytes = |descs: &[TensorDesc]| descs.iter().map(TensorDesc::bytes).sum();
        Self { flops, read: bytes(inputs), written: bytes(outputs) }
    }

    /// Bytes read and written.
    pub fn bytes(&self) -> u64 {
        self.read + self.written
    }
}

impl std::ops::Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { flops: self.flops + other.flops, read: self.read + other.read, written: self.written + other.written }
    }
}

/// One way to run an op.
#[derive(Debug, Clone)]
pub enum Technique {
    /// A WGSL kernel.
    Gpu(Launch),
    /// A native kernel.
    Cpu(CpuKernel),
}

impl Technique {
    /// Op and technique, such as `matmul_tiled`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Gpu(launch) => launch.shader.main.name,
            Self::Cpu(kernel) => kernel.name,
        }
    }

    /// What the driver compiles: nothing for a native kernel, nor for a shader that cannot be written down, which fails where it is
    /// run.
    pub fn wgsl(&self) -> Option<String> {
        match self {
            Self::Gpu(launch) => launch.shader.text().ok(),
            Self::Cpu(_) => None,
        }
    }

    /// How exactly it multiplies.
    pub fn precision(&self) -> Precision {
        match self {
            Self::Gpu(launch) => launch.shader.precision(),
            Self::Cpu(_) => Precision::Full,
        }
    }
}

/// One dispatch, as plain data.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch {
    /// The pipeline.
    pub shader: Shader,
    /// Contents of `@binding(0)`.
    pub params: Params,
    /// Workgroups in x, y and z, each at most the device's limit; a zero means there is nothing to do.
    pub workgroups: [u32; 3],
    /// Where each tensor is bound.
    pub bindings: Bindings,
}

/// Binding numbers of an op's tensors in its shader's `@group(0)`.
///
/// An input that is changed in place has the number of its output: they are one binding, which the shader may write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bindings {
    /// One number for each input, in graph order.
    pub inputs: Vec<u32>,
    /// One number for each output.
    pub outputs: Vec<u32>,
}

impl Bindings {
    /// Inputs from 1, then outputs.
    pub fn in_order(inputs: u32, outputs: u32) -> Self {
        Self { inputs: (1..=inputs).collect(), outputs: (inputs + 1..=inputs + outputs).collect() }
    }

    /// Storage buffers that the shader binds.
    pub fn count(&self) -> u32 {
        let own = (0..self.inputs.len()).filter(|&input| !self.is_updated(input)).count();
        index(own + self.outputs.len())
    }

    /// Whether this input has no binding of its own, being changed in place.
    pub fn is_updated(&self, input: usize) -> bool {
        self.outputs.contains(&self.inputs[input])
    }
}

/// A native kernel over the bytes of its tensors. An input that is changed in place comes as an output that holds its bytes;
/// among the inputs it has none.
#[derive(Clone)]
pub struct CpuKernel {
    /// Op and technique, such as `matmul_native`.
    pub name: &'static str,
    /// Computes every element of the outputs.
    pub run: Arc<CpuFunction>,
}

/// What a technique on its own is given, for checking it: the inputs, and the outputs with the bytes that they hold before.
#[derive(Debug, Clone)]
pub(crate) struct Trial<'a> {
    pub inputs: &'a [HostTensor],
    /// Description, and the bytes before, which go on behind the tensor's end.
    pub outputs: Vec<(TensorDesc, Vec<u8>)>,
    /// Outputs that hold an input's bytes before.
    pub updates: &'static [Update],
}

/// Reads the inputs, writes the outputs.
pub type CpuFunction = dyn Fn(&[View<'_>], &mut [ViewMut<'_>]) + Send + Sync;

impl fmt::Debug for CpuKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CpuKernel({})", self.name)
    }
}

/// A size as kernels count. A plan refuses tensors of 2³² elements or more before anything runs.
pub(crate) fn index(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

/// `count` workgroups as a grid that respects the limit per dimension; kernels number them x first.
pub(crate) fn fold(count: usize, capabilities: &Capabilities) -> [u32; 3] {
    let limit = capabilities.workgroups as usize;
    if count <= limit {
        return [index(count), 1, 1];
    }
    let rows = count.div_ceil(limit);
    [index(count.div_ceil(rows)), index(rows), 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folded_grids_cover_and_respect_the_limit() {
        let capabilities = Capabilities::baseline();
        for count in [0, 1, 65_535, 65_536, 65_537, 1_000_003, 70_000_000] {
            let [x, y, z] = fold(count, &capabilities).map(|n| n as usize);
            assert!(x <= 65_535 && y <= 65_535 && z == 1, "{count}");
            assert!(x * y >= count && x * y < count + y.max(1), "{count}: {x} x {y}");
        }
    }

    #[test]
    fn rows_left_out_are_nan() {
        let tensor = Rows::Every(2).compute(&[3, 1], |row, out| out[0] = row as f64);
        let data = tensor.as_f64().unwrap();
        assert!(data[0] == 0.0 && data[1].is_nan() && data[2] == 2.0);
    }
}
