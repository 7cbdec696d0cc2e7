//! `attention_combine`: attention out of attention over shares of the keys, which [`AttentionSplit`](super::AttentionSplit) computes.
//!
//! Techniques: `attention_combine` (four elements of a row to a lane), `attention_combine_native`.
//!
//! It reads each partial result once, two operations for each element, so on any GPU bytes are what counts: with s shares
//! of n keys, s / n of what the split reads. No workgroup memory; about 24 registers to a lane (an estimate), so that as many
//! workgroups are resident as a processor takes.

mod cases;

use std::sync::Arc;

pub(super) use cases::cases;

use crate::capabilities::{Backend, Capabilities};
use crate::cpu::kernels::args::ElementsMut;
use crate::cpu::kernels::combine::{Shares, combine};
use crate::error::{Error, Result};
use crate::op::{Bindings, Cost, CpuKernel, Launch, Op, Rows, Technique, Update, fold, index};
use crate::ops::attention_fused::{LSE_BINDING, LSE_DENSE, LSE_NONE, output_files};
use crate::ops::definition;
use crate::ops::operands::Layout;
use crate::ops::sequences::{KEYS_ALL, Queries, SEQUENCE, check_ends, check_starts};
use crate::ops::sinks::check_sinks;
use crate::ops::{EXCLUDED, SINKS_BINDING, SINKS_DENSE, SINKS_NONE};
use crate::shader::{Constant, Shader, Source, params, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc, View, ViewMut};

const COMBINE: Source = wgsl!("attention_combine");

/// Lanes of a workgroup, as in the shader.
const LANES: usize = 64;

/// `Σ wₛ · oₛ / (Σ wₛ + exp(sink))` with `wₛ = exp(lseₛ)`, over partial results o, f32 `[splits, batch, heads, seq_q, head_dim_v]`,
/// and lse, f32 `[splits, batch, heads, seq_q]`.
///
/// A share of −inf takes no part, and without any that does a row is zeros. Its other tensors follow these two in the order of the
/// fields; lengths or starts only matter to the second output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionCombine {
    /// Of the output: f32, f16 or bf16.
    pub dtype: Dtype,
    /// Of the output, all axes there; not [`Layout::Joined`].
    pub layout: Layout,
    /// There are sinks, f32 `[heads]`: one more score for every row of a head, which has no value.
    pub has_sinks: bool,
    /// There is a u32 tensor `[batch]`: rows at or past it are no queries.
    pub has_q_lengths: bool,
    /// There is a u32 tensor `[sequences + 1]`: rows before the first and behind the last of them are no queries.
    pub has_q_starts: bool,
    /// There is a second output: the logarithm of the divisor, f32 `[batch, heads, seq_q]`, −inf for a row that is no query.
    pub returns_lse: bool,
}

params! {
    struct CombineParams {
        rows: u32, heads: u32, seq_q: u32, seq_kv: u32, sequences: u32, splits: u32, o_batch: u32, o_head: u32, o_row: u32,
        excluded: f32,
    }
}

impl Op for AttentionCombine {
    fn name(&self) -> &'static str {
        "attention_combine"
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let fail = |message: String| Err(Error::shape("attention_combine", message));
        let expected = 2 + self.has().into_iter().filter(|&has| has).count();
        if inputs.len() != expected {
            return fail(format!("takes {expected} tensors with these options, got {}", inputs.len()));
        }
        let (partials, sums) = (&inputs[0], &inputs[1]);
        let &[splits, batch, heads, seq_q, width] = &partials.shape[..] else {
            return fail(format!("partial results are [splits, batch, heads, seq_q, head_dim_v], got {partials}"));
        };
        if [partials, sums].iter().any(|desc| desc.dtype != Dtype::F32) || sums.shape != [splits, batch, heads, seq_q] {
            return fail(format!("partial results are {partials}, their sums {sums}; both are f32 of one shape"));
        }
        if splits == 0 {
            return fail(format!("there is no partial result in {partials}"));
        }
        if !matches!(self.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return fail(format!("the output is f32, f16 or bf16, not {}", self.dtype));
        }
        let shape = match self.layout {
            Layout::HeadsFirst => vec![batch, heads, seq_q, width],
            Layout::SeqFirst => vec![batch, seq_q, heads, width],
            Layout::Merged { heads: merged } if merged == heads => vec![batch, seq_q, heads * width],
            layout => return fail(format!("an output of {heads} heads has no layout {layout:?}")),
        };
        let (sinks, queries) = self.split(inputs);
        if let Some(sinks) = sinks {
            check_sinks("attention_combine", sinks, &TensorDesc::new(Dtype::F32, [batch, heads, seq_q, 0]))?;
        }
        queries.sequences("attention_combine", batch)?;
        let lse = self.returns_lse.then(|| TensorDesc::new(Dtype::F32, [batch, heads, seq_q]));
        Ok([TensorDesc::new(self.dtype, shape)].into_iter().chain(lse).collect())
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        let &[splits, batch, heads, seq_q, width] = inputs[0].shape() else { return Vec::new() };
        let (partials, sums) = (inputs[0].to_f64(), inputs[1].to_f64());
        let (sinks, queries) = self.split(inputs);
        let sinks = sinks.map(|sinks| sinks.to_f64());
        let queries = definition::Rows::new(seq_q, queries.lengths.copied(), queries.starts.copied());
        let row_of = |[b, head, i]: [usize; 3]| (b * heads + head) * seq_q + i;
        // Maximum and sum of exponentials relative to it.
        let total = |at: [usize; 3]| {
            let sink = sinks.as_ref().map_or(f64::NEG_INFINITY, |sinks| sinks[at[1]]);
            let scores = (0..splits).map(|share| sums[share * batch * heads * seq_q + row_of(at)]);
            let terms: Vec<f64> = scores.chain([sink]).filter(|&score| score != f64::NEG_INFINITY).collect();
            let maximum = terms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            (maximum, terms.iter().map(|score| (score - maximum).exp()).sum::<f64>())
        };
        let attend = |at: [usize; 3], out: &mut [f64]| {
            out.fill(0.0);
            let (maximum, total) = total(at);
            for share in 0..splits {
                let row = share * batch * heads * seq_q + row_of(at);
                if sums[row] != f64::NEG_INFINITY {
                    let weight = (sums[row] - maximum).exp() / total;
                    out.iter_mut().zip(&partials[row * width..]).for_each(|(out, partial)| *out += weight * partial);
                }
            }
        };
        let output = match self.layout {
            Layout::SeqFirst => rows.compute(&[batch, seq_q, heads, width], |row, out| {
                attend([row / heads / seq_q, row % heads, row / heads % seq_q], out);
            }),
            Layout::Merged { .. } => rows.compute(&[batch, seq_q, heads * width], |row, out| {
                for head in 0..heads {
                    attend([row / seq_q, head, row % seq_q], &mut out[head * width..(head + 1) * width]);
                }
            }),
            _ => rows.compute(&[batch, heads, seq_q, width], |row, out| {
                attend([row / seq_q / heads, row / seq_q % heads, row % seq_q], out);
            }),
        };
        let lse = self.returns_lse.then(|| {
            rows.compute(&[batch, heads, seq_q], |row, out| {
                for (i, out) in out.iter_mut().enumerate() {
                    let (maximum, total) = total([row / heads, row % heads, i]);
                    let exists = queries.query(row / heads, i).is_some();
                    *out = if exists && total != 0.0 { maximum + total.ln() } else { f64::NEG_INFINITY };
                }
            })
        });
        [output].into_iter().chain(lse).collect()
    }

    /// Two operations for each element of a partial result.
    fn cost(&self, inputs: &[TensorDesc]) -> Cost {
        let outputs = self.outputs(inputs).unwrap_or_default();
        Cost::once(2 * inputs[0].len() as u64, inputs, &outputs)
    }

    fn updates(&self) -> &'static [Update] {
        &[]
    }

    fn check(&self, inputs: &[TensorDesc], data: &[Option<&HostTensor>]) -> Result<()> {
        let seq_q = inputs[0].shape[3];
        let (_, Queries { lengths, starts }) = self.split(data);
        check_ends("attention_combine", "q_lengths", lengths.copied().flatten(), ("seq_q", seq_q))?;
        check_starts("attention_combine", "q_starts", starts.copied().flatten(), ("seq_q", seq_q))
    }

    fn techniques(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Vec<Technique> {
        match capabilities.backend {
            Backend::Cpu => vec![self.native(&inputs[0])],
            Backend::Gpu => self.each(inputs, capabilities).map(Technique::Gpu).into_iter().collect(),
        }
    }
}

impl AttentionCombine {
    fn has(&self) -> [bool; 3] {
        [self.has_sinks, self.has_q_lengths, self.has_q_starts]
    }

    /// Which is which among all inputs.
    fn split<'a, T>(&self, inputs: &'a [T]) -> (Option<&'a T>, Queries<&'a T>) {
        let mut rest = inputs[2..].iter();
        let [sinks, lengths, starts] = self.has().map(|has| if has { rest.next() } else { None });
        (sinks, Queries { lengths, starts })
    }

    /// Rows of the output from one batch, head and query to the next.
    fn strides(&self, heads: usize, seq_q: usize) -> [usize; 3] {
        match self.layout {
            Layout::HeadsFirst => [heads * seq_q, seq_q, 1],
            _ => [heads * seq_q, 1, heads],
        }
    }

    fn native(&self, partials: &TensorDesc) -> Technique {
        let op = *self;
        let shape: [usize; 5] = partials.shape[..].try_into().expect("the op took it");
        let run = move |inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]| {
            let (sinks, queries) = op.split(inputs);
            let queries = queries.map(|view| bytemuck::cast_slice::<u8, u32>(view.bytes));
            let [_, _, heads, seq_q, _] = shape;
            let shares = Shares {
                shape,
                partials: bytemuck::cast_slice(inputs[0].bytes),
                sums: bytemuck::cast_slice(inputs[1].bytes),
                sinks: sinks.map(|sinks| bytemuck::cast_slice(sinks.bytes)),
            };
            let (output, lse) = outputs.split_at_mut(1);
            let mut lse: Option<&mut [f32]> = lse.first_mut().map(|lse| bytemuck::cast_slice_mut(lse.bytes));
            combine(&shares, ElementsMut::of(&mut output[0]), op.strides(heads, seq_q), lse.as_deref_mut());
            for (head, lse) in lse.into_iter().flat_map(|lse| lse.chunks_mut(seq_q.max(1))).enumerate() {
                let existing = queries.rows(head / heads, seq_q);
                lse[..existing.start].fill(f32::NEG_INFINITY);
                lse[existing.end..].fill(f32::NEG_INFINITY);
            }
        };
        Technique::Cpu(CpuKernel { name: "attention_combine_native", run: Arc::new(run) })
    }

    fn each(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Option<Launch> {
        let &[splits, batch, heads, seq_q, width] = &inputs[0].shape[..] else { return None };
        let mut bindings = Bindings { inputs: vec![1, 2], outputs: vec![4] };
        let (_, queries) = self.split(inputs);
        let sequences = queries.sequences("attention_combine", batch).ok()?;
        let (output, constant) = output_files(self.dtype, [width, batch * heads * seq_q]);
        bindings.inputs.extend(self.has_sinks.then_some(SINKS_BINDING));
        let mut libraries = vec![
            EXCLUDED,
            if self.has_sinks { SINKS_DENSE } else { SINKS_NONE },
            if self.returns_lse { LSE_DENSE } else { LSE_NONE },
            SEQUENCE,
            queries.link(&mut bindings),
            KEYS_ALL,
        ];
        libraries.extend(output);
        bindings.outputs.extend(self.returns_lse.then_some(LSE_BINDING));
        let constants = constant.into_iter().chain([("VALUE_DIM", Constant::U32(index(width)))]).collect();
        let shader = Shader { main: COMBINE, libraries, constants };
        if (shader.needs_f16() && !capabilities.f16) || bindings.count() > capabilities.storage_buffers {
            return None;
        }
        let rows = batch * heads * seq_q;
        let [o_batch, o_head, o_row] = self.strides(heads, seq_q).map(index);
        let params = CombineParams {
            rows: index(rows),
            heads: index(heads),
            seq_q: index(seq_q),
            seq_kv: 0,
            sequences: index(sequences),
            splits: index(splits),
            o_batch,
            o_head,
            o_row,
            excluded: f32::NEG_INFINITY,
        };
        let lanes = rows * width.div_ceil(4).max(1);
        let nothing = width == 0 && !self.returns_lse;
        let workgroups = if nothing { [0; 3] } else { fold(lanes.div_ceil(LANES), capabilities) };
        Some(Launch { shader, params: params.into(), workgroups, bindings })
    }
}
