//! `embedding`: rows of a table, picked by numbers.
//!
//! Techniques: `embedding_each` (one lane per element), `embedding_native`.

use std::sync::Arc;

use crate::capabilities::{Backend, Capabilities};
use crate::case::{Case, CaseInput, Values};
use crate::compare::Tolerance;
use crate::cpu::kernels::gather::embedding;
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::op::{Bindings, Cost, CpuKernel, Launch, Op, Rows, Technique, Update, fold, index};
use crate::shader::{Constant, Shader, Source, params, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc, View, ViewMut};

const EACH: Source = wgsl!("embedding_each");

/// `table[ids]`: a table `[rows, width]` of f32 or f16 and u32 ids of any shape into `[ids.., width]`.
///
/// A checked run refuses an id past the end; an unchecked one takes the last row for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Embedding;

impl Graph {
    /// Adds [`Embedding`]: table `[rows, width]` and ids `[..]` into `[.., width]`.
    ///
    /// # Errors
    /// A table that is not f32 or f16 of rank 2, ids that are not u32, ids without a row to pick.
    pub fn embedding(&mut self, table: Tensor, ids: Tensor) -> Result<Tensor> {
        Ok(self.add(Embedding, &[table, ids])?[0])
    }
}

params! {
    struct EmbeddingParams { count: u32, rows: u32, width: u32 }
}

impl Op for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let fail = |message: String| Err(Error::shape("embedding", message));
        let [table, ids] = inputs else { return fail(format!("takes a table and ids, got {} tensors", inputs.len())) };
        if table.rank() != 2 || !table.dtype.is_device_float() {
            return fail(format!("the table is f32 or f16 [rows, width], got {table}"));
        }
        if ids.dtype != Dtype::U32 {
            return fail(format!("ids are u32, got {ids}"));
        }
        if table.shape[0] == 0 && !ids.is_empty() {
            return fail(format!("the table has no row, {table}, and there are ids, {ids}"));
        }
        let mut shape = ids.shape.clone();
        shape.push(table.shape[1]);
        Ok(vec![TensorDesc::new(table.dtype, shape)])
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        let (table, ids) = (inputs[0].to_f64(), inputs[1].to_f64());
        let mut shape = inputs[1].shape().to_vec();
        shape.push(inputs[0].shape()[1]);
        let last = inputs[0].shape()[0] as f64 - 1.0;
        let result = rows.compute(&shape, |row, out| {
            let start = ids[row].min(last) as usize * out.len();
            out.copy_from_slice(&table[start..start + out.len()]);
        });
        vec![result]
    }

    /// The rows that are picked, not the whole table.
    fn cost(&self, inputs: &[TensorDesc]) -> Cost {
        let output = self.outputs(inputs).unwrap_or_default();
        let written = output.iter().map(TensorDesc::bytes).sum();
        Cost { flops: 0, read: inputs[1].bytes() + written, written }
    }

    fn updates(&self) -> &'static [Update] {
        &[]
    }

    fn check(&self, inputs: &[TensorDesc], data: &[Option<&HostTensor>]) -> Result<()> {
        let Some(ids) = data.get(1).copied().flatten() else { return Ok(()) };
        let rows = inputs[0].shape[0];
        let values = ids.as_u32().unwrap_or_default();
        let Some(position) = values.iter().position(|&id| id as usize >= rows) else { return Ok(()) };
        let mut at = vec![0; ids.shape().len()];
        let mut rest = position;
        for (at, size) in at.iter_mut().zip(ids.shape()).rev() {
            *at = rest % size;
            rest /= size;
        }
        Err(Error::shape("embedding", format!("id {} at {at:?} is past the table's {rows} rows", values[position])))
    }

    fn techniques(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Vec<Technique> {
        match capabilities.backend {
            Backend::Cpu => self.native(inputs),
            Backend::Gpu => self.each(inputs, capabilities).map(Technique::Gpu).into_iter().collect(),
        }
    }
}

impl Embedding {
    fn native(&self, inputs: &[TensorDesc]) -> Vec<Technique> {
        let (rows, row_bytes) = (inputs[0].shape[0], inputs[0].shape[1] * inputs[0].dtype.size());
        let run = move |inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]| {
            let ids = bytemuck::cast_slice(inputs[1].bytes);
            embedding(rows, row_bytes, inputs[0].bytes, ids, outputs[0].bytes);
        };
        vec![Technique::Cpu(CpuKernel { name: "embedding_native", run: Arc::new(run) })]
    }

    fn each(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Option<Launch> {
        let (table, ids) = (&inputs[0], &inputs[1]);
        if table.dtype == Dtype::F16 && !capabilities.f16 {
            return None;
        }
        let constants = vec![("Elem", Constant::Scalar(table.dtype))];
        let shader = Shader { main: EACH, libraries: Vec::new(), constants };
        let count = ids.len() * table.shape[1];
        let params = EmbeddingParams { count: index(count), rows: index(table.shape[0]), width: index(table.shape[1]) };
        let workgroups = fold(count.div_ceil(256), capabilities);
        Some(Launch { shader, params: params.into(), workgroups, bindings: Bindings::in_order(2, 1) })
    }
}

/// One row, one id, primes, widths around the 256 lanes, ids of rank 0 to 3, zero sizes, ids past the end, and more
/// than 65,535 workgroups.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [Dtype::F32, Dtype::F16] {
        for (rows, width, ids) in [
            (1, 1, &[1][..]),
            (7, 5, &[]),
            (13, 255, &[3]),
            (13, 256, &[2, 5]),
            (13, 257, &[2, 3, 2]),
            (1009, 64, &[67]),
            (5, 0, &[3]),
            (5, 3, &[0, 2]),
            (0, 3, &[0]),
        ] {
            cases.push(case(dtype, rows, width, ids, 1.0));
        }
        cases.push(case(dtype, 100, 33, &[40], 1e4));
    }
    cases.push(case(Dtype::F32, 3, 4096, &[4100], 1.0));
    cases
}

/// Ids are scattered, and every fifth may be past the end.
fn case(dtype: Dtype, rows: usize, width: usize, ids: &[usize], deviation: f32) -> Case {
    let count: usize = ids.iter().product();
    let id = |i: usize| if i % 5 == 4 { u32::MAX - i as u32 } else { (i * 7919 % (rows + 1)) as u32 };
    let values = HostTensor::u32(ids, (0..count).map(id).collect()).expect("as many ids as the shape says");
    let ids = CaseInput { desc: values.desc().clone(), values: Values::Given(values) };
    let name = format!("{dtype} [{rows}, {width}] ids {:?} deviation {deviation}", ids.desc.shape);
    let inputs = vec![CaseInput::normal(dtype, &[rows, width], deviation), ids];
    Case::new(name, Embedding, inputs, Tolerance::of_scale(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_by_hand() {
        let table = HostTensor::f32(&[3, 2], vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        let ids = HostTensor::u32(&[2, 2], vec![2, 0, 1, 9]).unwrap();
        let y = Embedding.reference(&[&table, &ids], Rows::All).remove(0);
        assert_eq!(y.shape(), [2, 2, 2]);
        assert_eq!(y.as_f64().unwrap(), [4.0, 5.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    }

    #[test]
    fn refusals_name_both_sides() {
        let table = TensorDesc::new(Dtype::F32, [3, 2]);
        let ids = HostTensor::u32(&[2, 2], vec![2, 0, 3, 9]).unwrap();
        let descs = [table.clone(), ids.desc().clone()];
        let error = Embedding.check(&descs, &[None, Some(&ids)]).unwrap_err().to_string();
        assert_eq!(error, "embedding: id 3 at [1, 0] is past the table's 3 rows");
        let good = HostTensor::u32(&[2, 2], vec![2, 0, 1, 2]).unwrap();
        assert!(Embedding.check(&descs, &[None, Some(&good)]).is_ok());
        let refusal = |inputs: &[TensorDesc]| Embedding.outputs(inputs).unwrap_err().to_string();
        assert_eq!(refusal(&[table.clone(), table.clone()]), "embedding: ids are u32, got f32 [3, 2]");
        let none = TensorDesc::new(Dtype::F32, [0, 2]);
        let wanted = "embedding: the table has no row, f32 [0, 2], and there are ids, u32 [2, 2]";
        assert_eq!(refusal(&[none, ids.desc().clone()]), wanted);
        let flat = TensorDesc::new(Dtype::F32, [6]);
        assert_eq!(refusal(&[flat, descs[1].clone()]), "embedding: the table is f32 or f16 [rows, width], got f32 [6]");
    }
}
