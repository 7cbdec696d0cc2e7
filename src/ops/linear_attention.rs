//! `linear_attention`: attention without softmax, as a recurrence over one state for each key head.
//!
//! Techniques: `linear_attention_columns` (a workgroup walks the positions with some columns of a state),
//! `linear_attention_native`.

mod cases;

use std::sync::Arc;

use crate::capabilities::{Backend, Capabilities};
use crate::cpu::kernels::args::{Elements, ElementsMut};
use crate::cpu::kernels::linear_attention::{LinearAttentionArgs, LinearShape, linear_attention};
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::op::{Bindings, Cost, CpuKernel, Launch, Op, Rows, Technique, Update, fold, index};
use crate::shader::{Constant, Shader, Source, params, wgsl};
use crate::tensor::{HostTensor, TensorDesc, View, ViewMut};

pub(super) use cases::cases;

const COLUMNS: Source = wgsl!("linear_attention_columns");
const DECAY_NONE: Source = wgsl!("lib/decay_none");
const DECAY_DENSE: Source = wgsl!("lib/decay_dense");
const RATE_NONE: Source = wgsl!("lib/rate_none");
const RATE_DENSE: Source = wgsl!("lib/rate_dense");
const PAST_NONE: Source = wgsl!("lib/past_none");
const PAST_DENSE: Source = wgsl!("lib/past_dense");

// Bindings of the optional tensors, as in these files.
const DECAY_BINDING: u32 = 10;
const RATE_BINDING: u32 = 11;
const PAST_BINDING: u32 = 12;

/// Columns of a state in one workgroup, as in the shader.
const COLUMNS_EACH: usize = 16;
/// The largest head_dim whose keys and queries leave room in 16 KiB of workgroup memory.
const MAX_HEAD_DIM: usize = 1024;

/// For each position t, with the state S `[head_dim, head_dim_v]` of a key head: `S ← exp(decay_t) · S`, then
/// `S ← S + k_t ⊗ v_t`, or with beta `S ← S + beta_t · k_t ⊗ (v_t − Sᵀ k_t)`, then `y_t = scale · Sᵀ q_t`.
///
/// Inputs: q `[batch, seq, heads × head_dim]`, k `[batch, seq, kv_heads × head_dim]`, v `[batch, seq, kv_heads × head_dim_v]`, then
/// those that there are of the past state `[batch, kv_heads, head_dim, head_dim_v]`, decay `[batch, seq, kv_heads]` or
/// `[batch, seq, kv_heads × head_dim]` and beta `[batch, seq, kv_heads]` or `[batch, seq, 1]`. Outputs: y
/// `[batch, seq, heads × head_dim_v]` and the state after the last position, in the dtype of the past one, or else of q.
///
/// Source: ONNX's `LinearAttention`; Yang et al., arXiv:2412.06464, for its gated delta rule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinearAttention {
    /// Query heads; a multiple of `kv_heads`. Query head h reads the state of key head `h / (heads / kv_heads)`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Factor on the result; `1 / √head_dim` by default.
    pub scale: Option<f32>,
    /// The state does not start as zeros.
    pub has_past: bool,
    /// The state decays.
    pub has_decay: bool,
    /// A value is first freed of what the state recalls for its key (the delta rule).
    pub has_beta: bool,
}

/// Tensors of [`Graph::linear_attention`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinearTensors {
    /// Queries, keys and values.
    pub qkv: [Tensor; 3],
    /// The state to start from.
    pub past_state: Option<Tensor>,
    /// Logarithm of what the state is multiplied by.
    pub decay: Option<Tensor>,
    /// The update rate.
    pub beta: Option<Tensor>,
}

impl Graph {
    /// Adds [`LinearAttention`], whose `has_` fields are taken from the tensors. Returns the result and the last state.
    ///
    /// # Errors
    /// Heads that do not divide, shapes or dtypes that do not fit, head_dim above 1024, a scale that is not finite.
    pub fn linear_attention(&mut self, tensors: &LinearTensors, op: LinearAttention) -> Result<[Tensor; 2]> {
        let LinearTensors { qkv, past_state, decay, beta } = *tensors;
        let (has_past, has_decay, has_beta) = (past_state.is_some(), decay.is_some(), beta.is_some());
        let op = LinearAttention { has_past, has_decay, has_beta, ..op };
        let inputs: Vec<Tensor> = qkv.into_iter().chain(past_state).chain(decay).chain(beta).collect();
        let outputs = self.add(op, &inputs)?;
        Ok([outputs[0], outputs[1]])
    }
}

params! {
    struct LinearAttentionParams {
        count: u32, blocks: u32, kv_heads: u32, group: u32, seq: u32, head_dim: u32, head_dim_v: u32,
        decay_width: u32, decay_head: u32, decay_key: u32, beta_width: u32, scale: f32,
    }
}

impl Op for LinearAttention {
    fn name(&self) -> &'static str {
        "linear_attention"
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let LinearShape { batch, seq, kv_heads, head_dim, head_dim_v, .. } = self.shape(inputs)?;
        let state = self.optional(inputs)[0].map_or(inputs[0].dtype, |past| past.dtype);
        Ok(vec![
            TensorDesc::new(inputs[0].dtype, [batch, seq, self.heads * head_dim_v]),
            TensorDesc::new(state, [batch, kv_heads, head_dim, head_dim_v]),
        ])
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        let data: Vec<Vec<f64>> = inputs.iter().map(|input| input.to_f64()).collect();
        let [past, decay, beta] = self.optional(&data);
        let &[batch, seq, width] = inputs[0].shape() else { unreachable!("the graph accepted rank 3") };
        let (kv_heads, group) = (self.kv_heads, self.heads / self.kv_heads);
        let (n, m) = (width / self.heads, inputs[2].shape()[2] / kv_heads);
        let scale = self.scale.map_or(1.0 / (n as f64).sqrt(), f64::from);
        let mut states = past.cloned().unwrap_or_else(|| vec![0.0; batch * kv_heads * n * m]);
        let mut y = vec![0.0; batch * seq * self.heads * m];
        for (owner, s) in states.chunks_mut((n * m).max(1)).enumerate() {
            for t in 0..seq {
                let row = (owner / kv_heads * seq + t) * kv_heads + owner % kv_heads;
                let (k, mut v) = (&data[1][row * n..(row + 1) * n], data[2][row * m..(row + 1) * m].to_vec());
                for i in 0..n * m {
                    s[i] *= decay.map_or(1.0, |decay| decay[(row * n + i / m) * decay.len() / data[1].len()].exp());
                }
                if let Some(beta) = beta {
                    let rate = beta[row * beta.len() / (batch * seq * kv_heads)];
                    let recalled = |j: usize| (0..n).map(|i| s[i * m + j] * k[i]).sum::<f64>();
                    (0..m).for_each(|j| v[j] = rate * (v[j] - recalled(j)));
                }
                (0..n * m).for_each(|i| s[i] += k[i / m] * v[i % m]);
                for (i, y) in y[row * group * m..(row + 1) * group * m].iter_mut().enumerate() {
                    let q = &data[0][(row * group + i / m) * n..][..n];
                    *y = scale * (0..n).map(|d| q[d] * s[d * m + i % m]).sum::<f64>();
                }
            }
        }
        let pick = |data: Vec<f64>, shape: &[usize]| {
            rows.compute(shape, |row, out| {
                let length = out.len();
                out.copy_from_slice(&data[row * length..][..length]);
            })
        };
        vec![pick(y, &[batch, seq, self.heads * m]), pick(states, &[batch, kv_heads, n, m])]
    }

    /// Three operations for each element of the state, two more with the delta rule, and two for each of its query heads.
    fn cost(&self, inputs: &[TensorDesc]) -> Cost {
        let (Ok(shape), Ok(outputs)) = (self.shape(inputs), self.outputs(inputs)) else { return Cost::default() };
        let each = 3 + 2 * usize::from(self.has_beta) + 2 * shape.group;
        let states = shape.batch * shape.seq * shape.kv_heads * shape.head_dim * shape.head_dim_v;
        Cost::once((states * each) as u64, inputs, &outputs)
    }

    fn updates(&self) -> &'static [Update] {
        &[]
    }

    fn check(&self, _: &[TensorDesc], _: &[Option<&HostTensor>]) -> Result<()> {
        Ok(())
    }

    fn techniques(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Vec<Technique> {
        let Ok(shape) = self.shape(inputs) else { return Vec::new() };
        match capabilities.backend {
            Backend::Cpu => self.native(shape),
            Backend::Gpu => self.columns(shape, inputs, capabilities).map(Technique::Gpu).into_iter().collect(),
        }
    }
}

impl LinearAttention {
    /// Past state, decay and beta among the inputs.
    fn optional<'a, T>(&self, inputs: &'a [T]) -> [Option<&'a T>; 3] {
        let mut rest = inputs.iter().skip(3);
        [self.has_past, self.has_decay, self.has_beta].map(|has| if has { rest.next() } else { None })
    }

    fn shape(&self, inputs: &[TensorDesc]) -> Result<LinearShape> {
        let fail = |message: String| Err(Error::shape("linear_attention", message));
        let optional = [self.has_past, self.has_decay, self.has_beta].map(usize::from);
        if inputs.len() != 3 + optional.iter().sum::<usize>() {
            return fail(format!(
                "takes q, k, v and {} more, got {} tensors",
                optional.iter().sum::<usize>(),
                inputs.len()
            ));
        }
        let Self { heads, kv_heads, .. } = *self;
        if kv_heads == 0 || heads == 0 || heads % kv_heads != 0 {
            return fail(format!("{heads} heads are no multiple of {kv_heads} key heads"));
        }
        let (q, k, v) = (&inputs[0], &inputs[1], &inputs[2]);
        let ([batch, seq, q_width], [_, _, v_width]) = (&q.shape[..], &v.shape[..]) else {
            return fail(format!("takes [batch, seq, heads x head_dim], got q {q} and v {v}"));
        };
        if q_width % heads != 0 || v_width % kv_heads != 0 {
            return fail(format!("q {q} is not of {heads} heads, or v {v} not of {kv_heads}"));
        }
        let (head_dim, head_dim_v) = (q_width / heads, v_width / kv_heads);
        if head_dim > MAX_HEAD_DIM {
            return fail(format!("head_dim is {head_dim}, at most {MAX_HEAD_DIM} is taken"));
        }
        let shape = LinearShape { batch: *batch, seq: *seq, kv_heads, group: heads / kv_heads, head_dim, head_dim_v };
        let [past, decay, beta] = self.optional(inputs);
        let of = |width: usize| vec![*batch, *seq, width];
        let state = vec![vec![*batch, kv_heads, head_dim, head_dim_v]];
        let expected = [
            ("k", Some(k), vec![of(kv_heads * head_dim)]),
            ("v", Some(v), vec![of(kv_heads * head_dim_v)]),
            ("the past state", past, state),
            ("decay", decay, vec![of(kv_heads), of(kv_heads * head_dim)]),
            ("beta", beta, vec![of(kv_heads), of(1)]),
        ];
        for (role, desc, shapes) in expected {
            if let Some(desc) = desc.filter(|desc| !shapes.contains(&desc.shape)) {
                return fail(format!("{role} is {desc}, {shapes:?} was expected beside q {q} of {heads} heads"));
            }
        }
        self.check_types(inputs)?;
        Ok(shape)
    }

    /// One dtype, but for the state.
    fn check_types(&self, inputs: &[TensorDesc]) -> Result<()> {
        let past = self.optional(inputs)[0];
        let others = inputs.iter().filter(|desc| !past.is_some_and(|past| std::ptr::eq(past, *desc)));
        let float = |desc: &TensorDesc| desc.dtype.is_device_float();
        if let Some(desc) = others.clone().find(|desc| !float(desc) || desc.dtype != inputs[0].dtype) {
            return Err(Error::shape(
                "linear_attention",
                format!("takes all f32 or all f16, got {} and {desc}", inputs[0]),
            ));
        }
        if let Some(past) = past.filter(|past| !float(past)) {
            return Err(Error::shape("linear_attention", format!("the past state is {past}, it must be f32 or f16")));
        }
        match self.scale.filter(|scale| !scale.is_finite()) {
            Some(scale) => Err(Error::option("linear_attention", format!("scale is {scale}, it must be finite"))),
            None => Ok(()),
        }
    }

    fn factor(&self, shape: &LinearShape) -> f32 {
        self.scale.unwrap_or((1.0 / (shape.head_dim.max(1) as f64).sqrt()) as f32)
    }

    fn native(&self, shape: LinearShape) -> Vec<Technique> {
        let (op, scale) = (*self, self.factor(&shape));
        let run = move |inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]| {
            let [q, k, v] = [0, 1, 2].map(|input| Elements::of(&inputs[input]));
            let [past, decay, beta] = op.optional(inputs).map(|view| view.map(Elements::of));
            let args = LinearAttentionArgs { shape, scale, q, k, v, past, decay, beta };
            let [y, present] = outputs else { unreachable!("the op has two outputs") };
            linear_attention(&args, &mut ElementsMut::of(y), &mut ElementsMut::of(present));
        };
        vec![Technique::Cpu(CpuKernel { name: "linear_attention_native", run: Arc::new(run) })]
    }

    fn columns(&self, shape: LinearShape, inputs: &[TensorDesc], capabilities: &Capabilities) -> Option<Launch> {
        let [past, decay, beta] = self.optional(inputs);
        // With few rows, lanes that share a column would have nothing to do.
        let parts = if shape.head_dim <= 32 { 4 } else { 16 };
        let constants = vec![
            ("PARTS", Constant::U32(parts as u32)),
            ("SLICE", Constant::U32(shape.head_dim.div_ceil(parts).max(1) as u32)),
            ("DELTA", Constant::Bool(self.has_beta)),
            ("Elem", Constant::Scalar(inputs[0].dtype)),
            ("StateElem", Constant::Scalar(past.unwrap_or(&inputs[0]).dtype)),
        ];
        let mut bindings = Bindings::in_order(3, 2);
        let optional = [(past, PAST_BINDING), (decay, DECAY_BINDING), (beta, RATE_BINDING)];
        bindings.inputs.extend(optional.iter().filter(|(desc, _)| desc.is_some()).map(|(_, binding)| binding));
        let libraries = vec![
            if past.is_some() { PAST_DENSE } else { PAST_NONE },
            if decay.is_some() { DECAY_DENSE } else { DECAY_NONE },
            if beta.is_some() { RATE_DENSE } else { RATE_NONE },
        ];
        let shader = Shader { main: COLUMNS, libraries, constants };
        // Lanes load rows, add up their slices of the state and each other's sums: for a key twice, for each query once.
        let [loads, slices, sums] =
            [shape.head_dim.div_ceil(16 * parts), shape.head_dim.div_ceil(parts), parts].map(|n| n + 1);
        let rounds = shape.seq * (slices + (1 + shape.group) * (loads + slices + sums + 1) + 1);
        if (shader.needs_f16() && !capabilities.f16) || !capabilities.completes(rounds) {
            return None;
        }
        let params = self.params(&shape, [decay, beta]);
        let workgroups = fold(params.count as usize, capabilities);
        Some(Launch { shader, params: params.into(), workgroups, bindings })
    }

    fn params(&self, shape: &LinearShape, [decay, beta]: [Option<&TensorDesc>; 2]) -> LinearAttentionParams {
        let &LinearShape { batch, seq, kv_heads, group, head_dim, head_dim_v } = shape;
        let blocks = head_dim_v.div_ceil(COLUMNS_EACH);
        let decay_width = decay.map_or(0, TensorDesc::row_length);
        let each_key = usize::from(decay_width == kv_heads * head_dim);
        LinearAttentionParams {
            count: index(batch * kv_heads * blocks),
            blocks: index(blocks),
            kv_heads: index(kv_heads),
            group: index(group),
            seq: index(seq),
            head_dim: index(head_dim),
            head_dim_v: index(head_dim_v),
            decay_width: index(decay_width),
            decay_head: index(decay_width / kv_heads),
            decay_key: index(each_key),
            beta_width: index(beta.map_or(1, TensorDesc::row_length)),
            scale: self.factor(shape),
        }
    }
}
