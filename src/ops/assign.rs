//! `assign`: a tensor takes another's value, in place. So a loop keeps what it has computed, such as the lengths of a cache.
//!
//! Techniques: `assign_fours` (four vectors of four words per lane, where that comes out even), `assign_words` (one word of four
//! bytes per lane), `assign_native`.

use std::sync::Arc;

use rayon::prelude::*;

use crate::capabilities::{Backend, Capabilities};
use crate::case::{Case, CaseInput, Values};
use crate::compare::Tolerance;
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::op::{Bindings, Cost, CpuKernel, Launch, Op, Rows, Technique, Update, fold, index};
use crate::shader::{Shader, Source, params, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc, View, ViewMut};

const FOURS: Source = wgsl!("assign_fours");
const WORDS: Source = wgsl!("assign_words");

/// The first tensor takes the value of the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assign;

impl Graph {
    /// Adds [`Assign`]: `target` takes the value of `value`, in place, and is to be read as what this returns. Where `target` is
    /// an input, the next run finds it so: `graph.assign(lengths, cache.lengths)` advances a loop.
    ///
    /// # Errors
    /// Two shapes or dtypes; a target that is a weight, that an output keeps, or that was changed in place before.
    pub fn assign(&mut self, target: Tensor, value: Tensor) -> Result<Tensor> {
        Ok(self.add(Assign, &[target, value])?[0])
    }
}

params! {
    struct FoursParams { fours: u32 }
}

params! {
    struct AssignParams { words: u32, last_mask: u32 }
}

impl Op for Assign {
    fn name(&self) -> &'static str {
        "assign"
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        match inputs {
            [target, value] if target == value => Ok(vec![target.clone()]),
            [target, value] => {
                Err(Error::shape("assign", format!("the target is {target}, the value is {value}; they must be alike")))
            }
            _ => Err(Error::shape("assign", format!("takes two tensors, got {}", inputs.len()))),
        }
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        let value = inputs[1].to_f64();
        vec![rows.compute(inputs[1].shape(), |row, out| {
            out.copy_from_slice(&value[row * out.len()..(row + 1) * out.len()]);
        })]
    }

    fn cost(&self, inputs: &[TensorDesc]) -> Cost {
        Cost::once(0, &inputs[1..], &inputs[..1])
    }

    fn updates(&self) -> &'static [Update] {
        &[Update { output: 0, input: 0 }]
    }

    fn check(&self, _: &[TensorDesc], _: &[Option<&HostTensor>]) -> Result<()> {
        Ok(())
    }

    fn techniques(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Vec<Technique> {
        match capabilities.backend {
            Backend::Cpu => {
                let run = |inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]| copy(inputs[1].bytes, outputs[0].bytes);
                vec![Technique::Cpu(CpuKernel { name: "assign_native", run: Arc::new(run) })]
            }
            Backend::Gpu => {
                let words = Some(words(&inputs[0], capabilities));
                fours(&inputs[0], capabilities).into_iter().chain(words).map(Technique::Gpu).collect()
            }
        }
    }
}

/// Fewest bytes worth a thread of their own.
const PIECE: usize = 1 << 20;

/// In one piece for each thread, so that those of large tensors are long enough for stores that go past the caches.
fn copy(from: &[u8], to: &mut [u8]) {
    let piece = from.len().div_ceil(rayon::current_num_threads()).max(PIECE);
    to.par_chunks_mut(piece).zip(from.par_chunks(piece)).for_each(|(to, from)| to.copy_from_slice(from));
}

/// Bytes of a vector.
const FOUR: u64 = 16;

fn fours(target: &TensorDesc, capabilities: &Capabilities) -> Option<Launch> {
    let fours = usize::try_from(target.bytes() / FOUR).unwrap_or(usize::MAX);
    (target.bytes().is_multiple_of(FOUR) && fours > 0).then(|| Launch {
        shader: Shader { main: FOURS, libraries: Vec::new(), constants: Vec::new() },
        params: FoursParams { fours: index(fours) }.into(),
        workgroups: fold(fours.div_ceil(1024), capabilities),
        bindings: Bindings { inputs: vec![2, 1], outputs: vec![2] },
    })
}

fn words(target: &TensorDesc, capabilities: &Capabilities) -> Launch {
    let bytes = usize::try_from(target.bytes()).unwrap_or(usize::MAX);
    let words = bytes.div_ceil(4);
    let last_mask = match bytes % 4 {
        0 => u32::MAX,
        rest => (1 << (8 * rest)) - 1,
    };
    let params = AssignParams { words: index(words), last_mask };
    Launch {
        shader: Shader { main: WORDS, libraries: Vec::new(), constants: Vec::new() },
        params: params.into(),
        workgroups: fold(words.div_ceil(256), capabilities),
        bindings: Bindings { inputs: vec![2, 1], outputs: vec![2] },
    }
}

/// Every size of element, ends within a word, nothing, more than one workgroup of words and of vectors.
pub(super) fn cases() -> Vec<Case> {
    let case = |dtype: Dtype, shape: &[usize]| {
        let input = |first: u32| {
            let numbers = HostTensor::u32(shape, (first..).take(shape.iter().product()).collect());
            let values = match dtype {
                Dtype::Bool => Values::Mask { keep: 0.5, empty_rows: false },
                Dtype::U32 => Values::Given(numbers.expect("one for each")),
                _ => Values::Normal(30.0),
            };
            CaseInput { desc: TensorDesc::new(dtype, shape), values }
        };
        Case::new(format!("{dtype} {shape:?}"), Assign, vec![input(7), input(1000)], Tolerance::of_scale(0.0))
    };
    vec![
        case(Dtype::F32, &[1]),
        case(Dtype::F32, &[3, 257]),
        case(Dtype::F32, &[2, 0, 3]),
        case(Dtype::F32, &[]),
        case(Dtype::U32, &[3]),
        case(Dtype::U32, &[4]),
        case(Dtype::F32, &[3, 1372]),
        case(Dtype::BF16, &[3, 5]),
        case(Dtype::BF16, &[1024]),
        case(Dtype::I8, &[1]),
        case(Dtype::I8, &[3, 342]),
        case(Dtype::I8, &[1027]),
        case(Dtype::Bool, &[5]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_is_the_value() {
        let [target, value] = [[1, 2], [3, 4]].map(|data| HostTensor::u32(&[2], data.to_vec()).unwrap());
        assert_eq!(Assign.reference(&[&target, &value], Rows::All)[0].as_f64().unwrap(), [3.0, 4.0]);
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let desc = |dtype, shape: &[usize]| TensorDesc::new(dtype, shape);
        let error = Assign.outputs(&[desc(Dtype::F32, &[2]), desc(Dtype::U32, &[2])]).unwrap_err();
        assert_eq!(error.to_string(), "assign: the target is f32 [2], the value is u32 [2]; they must be alike");
        assert!(Assign.outputs(&[desc(Dtype::F32, &[2])]).is_err());
    }
}
