//! `gather_pages`: a paged cache as one dense tensor.
//!
//! Techniques: `gather_pages_each` (one lane per word), `gather_pages_native`.

use std::sync::Arc;

use crate::capabilities::{Backend, Capabilities};
use crate::case::{Case, CaseInput, Values};
use crate::compare::Tolerance;
use crate::cpu::kernels::args::Pages;
use crate::cpu::kernels::pages::{GatherArgs, gather_pages};
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::op::{Bindings, Cost, CpuKernel, Launch, Op, Rows, Technique, Update, fold, index};
use crate::shader::{Constant, Shader, Source, params, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc, View, ViewMut};

const EACH: Source = wgsl!("gather_pages_each");
const GATHER_ALL: Source = wgsl!("lib/gather_all");
const GATHER_LENGTHS: Source = wgsl!("lib/gather_lengths");
const LENGTHS_BINDING: u32 = 10;

/// Pages `[pages, page_size, kv_heads, width]` and a u32 table `[batch, per_sequence]` into
/// `[batch, kv_heads, per_sequence × page_size, width]`: key j of sequence b is row `j % page_size` of page
/// `table[b][j / page_size]`. A page that does not exist counts as the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GatherPages {
    /// There is a u32 tensor `[batch]`: keys at or past it are zeros, and their pages may be anything.
    pub has_lengths: bool,
}

impl Graph {
    /// Adds [`GatherPages`] of f32, f16, bf16 or i8; `lengths`, u32 `[batch]`, says how many keys exist.
    ///
    /// # Errors
    /// Other ranks or dtypes, pages without rows, a table that names pages where there are none.
    pub fn gather_pages(&mut self, pages: Tensor, table: Tensor, lengths: Option<Tensor>) -> Result<Tensor> {
        let inputs: Vec<Tensor> = [pages, table].into_iter().chain(lengths).collect();
        Ok(self.add(GatherPages { has_lengths: lengths.is_some() }, &inputs)?[0])
    }
}

params! {
    struct GatherPagesParams {
        count: u32, width: u32, keys: u32, heads: u32, page_size: u32, per_sequence: u32, pages: u32,
    }
}

impl Op for GatherPages {
    fn name(&self) -> &'static str {
        "gather_pages"
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let fail = |message: String| Err(Error::shape("gather_pages", message));
        let (pages, table) = match (self.has_lengths, inputs) {
            (false, [pages, table]) | (true, [pages, table, _]) => (pages, table),
            _ => return fail(format!("takes pages, a table and lengths where there are any, got {}", inputs.len())),
        };
        let (&[count, size, heads, width], &[batch, per_sequence]) = (&pages.shape[..], &table.shape[..]) else {
            return fail(format!(
                "takes [pages, page_size, heads, width] and [batch, per_sequence], got {pages} and {table}"
            ));
        };
        if !matches!(pages.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::I8) || table.dtype != Dtype::U32 {
            return fail(format!("takes f32, f16, bf16 or i8 and a u32 table, got {pages} and {table}"));
        }
        if size == 0 || (count == 0 && per_sequence > 0) {
            return fail(format!(
                "the table {table} names {per_sequence} pages for each sequence, the pages are {pages}"
            ));
        }
        if let Some(lengths) = inputs.get(2).filter(|desc| desc.dtype != Dtype::U32 || desc.shape != [batch]) {
            return fail(format!("lengths are {lengths}, they must be u32 [{batch}]"));
        }
        Ok(vec![TensorDesc::new(pages.dtype, [batch, heads, per_sequence * size, width])])
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        let [pages, table] = [0, 1].map(|tensor| inputs[tensor].to_f64());
        let lengths = inputs.get(2).map(|lengths| lengths.to_f64());
        let (&[count, size, heads, width], &[batch, per_sequence]) = (inputs[0].shape(), inputs[1].shape()) else {
            unreachable!("the graph accepted these ranks")
        };
        let keys = per_sequence * size;
        vec![rows.compute(&[batch, heads, keys, width], |row, out| {
            let (b, head, key) = (row / keys / heads, row / keys % heads, row % keys);
            if lengths.as_ref().is_some_and(|lengths| key >= lengths[b] as usize) {
                return out.fill(0.0);
            }
            let page = (table[b * per_sequence + key / size] as usize).min(count - 1);
            let from = ((page * size + key % size) * heads + head) * width;
            out.copy_from_slice(&pages[from..from + width]);
        })]
    }

    /// Pages that no sequence has are not read.
    fn cost(&self, inputs: &[TensorDesc]) -> Cost {
        let Ok(outputs) = self.outputs(inputs) else { return Cost::default() };
        Cost::once(0, &[&outputs[..], &inputs[1..]].concat(), &outputs)
    }

    fn updates(&self) -> &'static [Update] {
        &[]
    }

    fn check(&self, inputs: &[TensorDesc], data: &[Option<&HostTensor>]) -> Result<()> {
        let Some(table) = data[1].and_then(HostTensor::as_u32) else { return Ok(()) };
        let lengths = data.get(2).copied().flatten().and_then(HostTensor::as_u32);
        let (count, size, per_sequence) = (inputs[0].shape[0], inputs[0].shape[1], inputs[1].shape[1]);
        for (at, &page) in table.iter().enumerate() {
            let (sequence, entry) = (at / per_sequence, at % per_sequence);
            let exists = lengths.is_none_or(|lengths| entry * size < lengths[sequence] as usize);
            if exists && page as usize >= count {
                let message = format!("table[{sequence}, {entry}] is page {page}, there are {count}");
                return Err(Error::shape("gather_pages", message));
            }
        }
        Ok(())
    }

    fn techniques(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Vec<Technique> {
        match capabilities.backend {
            Backend::Cpu => native(inputs),
            Backend::Gpu => self.each(inputs, capabilities).map(Technique::Gpu).into_iter().collect(),
        }
    }
}

fn native(inputs: &[TensorDesc]) -> Vec<Technique> {
    let (pages, per_sequence) = (inputs[0].clone(), inputs[1].shape[1]);
    let run = move |inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]| {
        let table = bytemuck::cast_slice(inputs[1].bytes);
        let args = GatherArgs {
            pages: Pages { table, per_sequence, size: pages.shape[1], count: pages.shape[0] },
            heads: pages.shape[2],
            row_bytes: pages.shape[3] * pages.dtype.size(),
            lengths: inputs.get(2).map(|lengths| bytemuck::cast_slice(lengths.bytes)),
        };
        gather_pages(&args, inputs[0].bytes, outputs[0].bytes);
    };
    vec![Technique::Cpu(CpuKernel { name: "gather_pages_native", run: Arc::new(run) })]
}

impl GatherPages {
    fn each(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Option<Launch> {
        let (pages, output) = (&inputs[0], self.outputs(inputs).ok()?.remove(0));
        let per_word = 4 / pages.dtype.size();
        let mut bindings = Bindings::in_order(2, 1);
        bindings.inputs.extend(self.has_lengths.then_some(LENGTHS_BINDING));
        let libraries = vec![if self.has_lengths { GATHER_LENGTHS } else { GATHER_ALL }];
        let shader = Shader { main: EACH, libraries, constants: vec![("PER_WORD", Constant::U32(index(per_word)))] };
        let params = GatherPagesParams {
            count: index(output.len()),
            width: index(output.shape[3]),
            keys: index(output.shape[2]),
            heads: index(output.shape[1]),
            page_size: index(pages.shape[1]),
            per_sequence: index(inputs[1].shape[1]),
            pages: index(pages.shape[0]),
        };
        let workgroups = fold(output.len().div_ceil(per_word * 256), capabilities);
        Some(Launch { shader, params: params.into(), workgroups, bindings })
    }
}

/// Every dtype, rows that fill words and rows that do not, a width of 1 as of scales, pages taken twice and pages that do not
/// exist, lengths, zero sizes.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::I8] {
        for (pages, table) in [
            ([5, 16, 2, 24], [2, 3]),
            ([3, 1, 1, 1], [1, 1]),
            ([7, 16, 3, 5], [3, 2]),
            ([4, 7, 1, 3], [1, 3]),
            ([9, 16, 2, 1], [2, 4]),
            ([0, 16, 2, 8], [2, 0]),
            ([2, 16, 2, 0], [1, 2]),
        ] {
            for has_lengths in [false, true] {
                cases.push(case(dtype, pages, table, has_lengths.then_some([20, 0, 99])));
            }
        }
    }
    cases
}

fn case(dtype: Dtype, pages: [usize; 4], table: [usize; 2], lengths: Option<[u32; 3]>) -> Case {
    let given = |tensor: HostTensor| CaseInput { desc: tensor.desc().clone(), values: Values::Given(tensor) };
    // Past the end now and then.
    let entries = (0..table[0] * table[1]).map(|at| (at * 5 % (pages[0] + 1)) as u32).collect();
    let counted = (0..pages.iter().product()).map(|at: usize| (at * 89 % 255) as f32 - 127.0).collect();
    let data = HostTensor::f32(&pages, counted).expect("as many as the shape says").cast(dtype);
    let mut inputs = vec![given(data), given(HostTensor::u32(&table, entries).expect("as many as the shape says"))];
    let counts = lengths.map(|lengths| lengths[..table[0]].to_vec());
    inputs.extend(counts.map(|counts| given(HostTensor::u32(&table[..1], counts).expect("one for each"))));
    let name = format!("{dtype} {pages:?} by {table:?}{}", if lengths.is_some() { ", lengths" } else { "" });
    Case::new(name, GatherPages { has_lengths: lengths.is_some() }, inputs, Tolerance::of_scale(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checked_run_names_the_page() {
        let descs = [TensorDesc::new(Dtype::F32, [2, 4, 1, 1]), TensorDesc::new(Dtype::U32, [1, 3])];
        let table = HostTensor::u32(&[1, 3], vec![1, 0, 9]).unwrap();
        let check = |has_lengths, data: &[Option<&HostTensor>]| GatherPages { has_lengths }.check(&descs, data);
        let message = check(false, &[None, Some(&table)]).unwrap_err().to_string();
        assert_eq!(message, "gather_pages: table[0, 2] is page 9, there are 2");
        let lengths = HostTensor::u32(&[1], vec![8]).unwrap();
        check(true, &[None, Some(&table), Some(&lengths)]).unwrap();
    }
}
