//! Queries, keys and values as they lie in memory: layouts, storage, pages, and the sizes that follow from them.

use std::fmt;

use crate::error::{Error, Result};
use crate::ops::masks::to_rank_4;
use crate::tensor::{Dtype, TensorDesc};

/// Order of the axes of queries, keys, values or outputs. All are read and written where they lie, by strides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Layout {
    /// `[batch, heads, seq, head_dim]`; ranks 2 and 3 leave out the leading axes.
    #[default]
    HeadsFirst,
    /// `[batch, seq, heads, head_dim]`; rank 3 leaves out the batch.
    SeqFirst,
    /// `[batch, seq, heads × head_dim]`.
    Merged {
        /// Number of heads; divides the last axis.
        heads: usize,
    },
    /// `[batch, seq, (heads + 2 × kv_heads) × head_dim]`: at each position the heads of the query, then those of the key, then
    /// those of the value, as one product projects them. Each operand is its own columns of the tensor that is given for it,
    /// and the output of such a query is [`Layout::Merged`]. For operands of attention only.
    Joined {
        /// Heads of the query; 0 where a row holds key and value only.
        heads: usize,
        /// Heads of the key, and as many of the value.
        kv_heads: usize,
    },
}

/// How the operands of attention are stored.
///
/// The tensors are q, k and v, then the two scales, then the block table, as far as there are any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Operands {
    /// Of queries and outputs.
    pub q_layout: Layout,
    /// Of keys and values.
    pub kv_layout: Layout,
    /// Keys and values are i8: element = level × scale of its row, f32 scales of the same shape without `head_dim`.
    pub has_scales: bool,
    /// Keys and values are `[pages, page_size, kv_heads, head_dim]`, and a u32 tensor `[batch, per_sequence]` says which pages
    /// a sequence has: key j lies in row `j % page_size` of page `table[b][j / page_size]`.
    pub has_pages: bool,
}

/// Sizes of an attention problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub batch: usize,
    pub heads: usize,
    /// Sequences of keys.
    pub kv_batch: usize,
    pub kv_heads: usize,
    pub seq_q: usize,
    pub seq_kv: usize,
    pub head_dim: usize,
    pub head_dim_v: usize,
    pub pages: Option<Paging>,
}

/// Sizes of a paged cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Paging {
    /// Pages that exist.
    pub count: usize,
    /// Rows of a page.
    pub size: usize,
    /// Entries of one sequence in the block table.
    pub per_sequence: usize,
}

/// Which operand a tensor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Query,
    Key,
    Value,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Query => "query",
            Self::Key => "key",
            Self::Value => "value",
        })
    }
}

impl Layout {
    /// Heads of a row of `[batch, seq, heads × head_dim]`, of all operands that share it.
    pub(crate) fn heads_of_row(self) -> Option<usize> {
        match self {
            Self::HeadsFirst | Self::SeqFirst => None,
            Self::Merged { heads } => Some(heads),
            Self::Joined { heads, kv_heads } => Some(heads.saturating_add(kv_heads.saturating_mul(2))),
        }
    }

    /// Layout of the output for a query of this one.
    pub(super) fn output(self) -> Self {
        match self {
            Self::Joined { heads, .. } => Self::Merged { heads },
            own => own,
        }
    }

    /// Batch, heads, positions and width of a head.
    fn axes(self, role: Role, desc: &TensorDesc) -> Result<[usize; 4]> {
        let fail = |message: String| Err(Error::shape("attention", message));
        match (self, &desc.shape[..]) {
            (Self::HeadsFirst, shape) if (2..=4).contains(&shape.len()) => Ok(to_rank_4(shape)),
            (Self::HeadsFirst, _) => fail(format!("{role} has rank 2 to 4, got {desc}")),
            (Self::SeqFirst, &[batch, seq, heads, width]) => Ok([batch, heads, seq, width]),
            (Self::SeqFirst, &[seq, heads, width]) => Ok([1, heads, seq, width]),
            (Self::SeqFirst, _) => fail(format!("{role} is [batch, seq, heads, head_dim], got {desc}")),
            (Self::Merged { heads }, &[batch, seq, width]) => match width.checked_rem(heads) {
                Some(0) => Ok([batch, heads, seq, width / heads]),
                _ => fail(format!("{role} has width {width}, which {heads} heads do not divide")),
            },
            (Self::Merged { .. }, _) => fail(format!("{role} is [batch, seq, heads × head_dim], got {desc}")),
            (Self::Joined { heads, kv_heads }, &[batch, seq, width]) => {
                match self.heads_of_row().and_then(|all| Some((width.checked_rem(all)?, width / all))) {
                    Some((0, each)) if role == Role::Query => Ok([batch, heads, seq, each]),
                    Some((0, each)) => Ok([batch, kv_heads, seq, each]),
                    _ => fail(format!("{role} has width {width}, which {heads} + 2 × {kv_heads} heads do not divide")),
                }
            }
            (Self::Joined { .. }, _) => {
                fail(format!("{role} is [batch, seq, (heads + 2 × kv_heads) × head_dim], got {desc}"))
            }
        }
    }

    /// Rows of `head_dim` elements from one batch, head and position to the next.
    fn strides(self, heads: usize, seq: usize) -> [usize; 3] {
        match self {
            Self::HeadsFirst => [heads * seq, seq, 1],
            Self::SeqFirst | Self::Merged { .. } => [heads * seq, 1, heads],
            Self::Joined { heads, kv_heads } => {
                let all = heads + 2 * kv_heads;
                [all * seq, 1, all]
            }
        }
    }
}

impl Operands {
    /// Number of tensors.
    pub fn tensors(&self) -> usize {
        3 + 2 * usize::from(self.has_scales) + usize::from(self.has_pages)
    }

    /// The block table among the tensors.
    pub(super) fn table<'a, T>(&self, tensors: &'a [T]) -> Option<&'a T> {
        self.has_pages.then(|| &tensors[self.tensors() - 1])
    }

    /// The row of `head_dim` elements where q, k and v begin, each in its tensor.
    pub(crate) fn first_rows(&self) -> [usize; 3] {
        match self.kv_layout {
            Layout::Joined { heads, kv_heads } => [0, heads, heads + kv_heads],
            Layout::HeadsFirst | Layout::SeqFirst | Layout::Merged { .. } => [0; 3],
        }
    }

    /// Cuts the descriptions of joined operands down to what is read of them.
    pub(super) fn narrow(&self, sizes: &Sizes, tensors: &mut [TensorDesc]) {
        let mut narrow = |tensor: usize, layout: Layout, width: usize| {
            if let (Layout::Joined { .. }, [_, _, row]) = (layout, &mut tensors[tensor].shape[..]) {
                *row = width;
            }
        };
        narrow(0, self.q_layout, sizes.heads * sizes.head_dim);
        narrow(1, self.kv_layout, sizes.kv_heads * sizes.head_dim);
        narrow(2, self.kv_layout, sizes.kv_heads * sizes.head_dim_v);
        if self.has_scales {
            narrow(3, self.kv_layout, sizes.kv_heads);
            narrow(4, self.kv_layout, sizes.kv_heads);
        }
    }

    /// Sizes of tensors that fit each other; there must be as many as [`Operands::tensors`] says.
    pub(crate) fn sizes(&self, tensors: &[TensorDesc]) -> Result<Sizes> {
        let fail = |message: String| Err(Error::shape("attention", message));
        let [q, k, v] = [&tensors[0], &tensors[1], &tensors[2]];
        self.storage([q, k, v])?;
        let [batch, heads, seq_q, head_dim] = self.q_layout.axes(Role::Query, q)?;
        let paging = self.table(tensors).map(|table| paging(table, k)).transpose()?;
        let [[k_batch, kv_heads, seq_k, k_dim], [v_batch, v_heads, v_seq, head_dim_v]] = self.kv_axes([k, v])?;
        for (what, value, key) in
            [("batch", v_batch, k_batch), ("kv_heads", v_heads, kv_heads), ("seq_kv", v_seq, seq_k)]
        {
            if value != key {
                return fail(format!("value has {what} {value}, key has {key}"));
            }
        }
        if k_dim != head_dim {
            return fail(format!("key has head_dim {k_dim}, query has {head_dim}"));
        }
        if heads != 0 && (kv_heads == 0 || heads % kv_heads != 0) {
            return fail(format!("query has {heads} heads, which {kv_heads} key heads do not divide"));
        }
        self.scales(&tensors[1..])?;
        let (kv_batch, seq_kv, pages) = match paging {
            Some((kv_batch, pages)) => (kv_batch, pages.size * pages.per_sequence, Some(pages)),
            None => (k_batch, seq_k, None),
        };
        Ok(Sizes { batch, heads, kv_batch, kv_heads, seq_q, seq_kv, head_dim, head_dim_v, pages })
    }

    fn kv_axes(&self, kv: [&TensorDesc; 2]) -> Result<[[usize; 4]; 2]> {
        let [k, v] = kv;
        let fail = |message: String| Err(Error::shape("attention", message));
        if k.rank() != v.rank() {
            return fail(format!("key and value have one rank, key is {k}, value is {v}"));
        }
        if !self.has_pages {
            return Ok([self.kv_layout.axes(Role::Key, k)?, self.kv_layout.axes(Role::Value, v)?]);
        }
        if self.kv_layout != Layout::HeadsFirst {
            let message = format!("pages have a layout of their own, kv_layout is {:?}", self.kv_layout);
            return Err(Error::option("attention", message));
        }
        Ok([Layout::SeqFirst.axes(Role::Key, k)?, Layout::SeqFirst.axes(Role::Value, v)?])
    }

    /// Dtypes that kernels can read, and ranks that say what they mean.
    fn storage(&self, [q, k, v]: [&TensorDesc; 3]) -> Result<()> {
        let fail = |message: String| Err(Error::shape("attention", message));
        let float = |desc: &TensorDesc| matches!(desc.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16);
        if !float(q) {
            return fail(format!("query is f32, f16 or bf16, got {q}"));
        }
        if k.dtype != v.dtype || !(float(k) || k.dtype == Dtype::I8) {
            return fail(format!("key and value are both f32, f16, bf16 or i8, key is {k}, value is {v}"));
        }
        if self.has_scales != (k.dtype == Dtype::I8) {
            let given = if self.has_scales { "given" } else { "missing" };
            return fail(format!("kv_scales belong to i8; they are {given}, and key is {k}"));
        }
        if self.q_layout == self.kv_layout && !self.has_pages && k.rank() != q.rank() {
            return fail(format!("query and key have one rank, query is {q}, key is {k}"));
        }
        Ok(())
    }

    /// `tensors` starts with k and v.
    fn scales(&self, tensors: &[TensorDesc]) -> Result<()> {
        if !self.has_scales {
            return Ok(());
        }
        for (role, of, scales) in [("key", &tensors[0], &tensors[2]), ("value", &tensors[1], &tensors[3])] {
            let mut shape = of.shape.clone();
            match (self.kv_layout.heads_of_row(), shape.last_mut()) {
                // A row is one head's, also where the heads share an axis.
                (Some(heads), Some(width)) if !self.has_pages => *width = heads,
                _ => drop(shape.pop()),
            }
            if scales.dtype != Dtype::F32 || scales.shape != shape {
                let message = format!("the scales of {role} are {scales}, they must be f32 {shape:?} for {role} {of}");
                return Err(Error::shape("attention", message));
            }
        }
        Ok(())
    }
}

/// Sequences, and what their pages are.
fn paging(table: &TensorDesc, k: &TensorDesc) -> Result<(usize, Paging)> {
    let fail = |message: String| Err(Error::shape("attention", message));
    let &[count, size, _, _] = &k.shape[..] else {
        return fail(format!("pages are [pages, page_size, kv_heads, head_dim], key is {k}"));
    };
    let &[sequences, per_sequence] = &table.shape[..] else {
        return fail(format!("block_table is u32 [batch, per_sequence], got {table}"));
    };
    if table.dtype != Dtype::U32 {
        return fail(format!("block_table is u32 [batch, per_sequence], got {table}"));
    }
    if size == 0 || (count == 0 && per_sequence > 0) {
        return fail(format!("block_table {table} has {per_sequence} pages for each sequence, key is {k}"));
    }
    Ok((sequences, Paging { count, size, per_sequence }))
}

impl Sizes {
    /// Shape of all scores.
    pub fn scores(&self) -> [usize; 4] {
        [self.batch, self.heads, self.seq_q, self.seq_kv]
    }

    /// Rows of q from one batch, head and position to the next.
    pub fn q_strides(&self, operands: &Operands) -> [usize; 3] {
        operands.q_layout.strides(self.heads, self.seq_q)
    }

    /// Rows of the output from one batch, head and position to the next; of heads as of q's.
    pub fn output_strides(&self, operands: &Operands) -> [usize; 3] {
        operands.q_layout.output().strides(self.heads, self.seq_q)
    }

    /// Rows of k and v, and their scales, from one batch (or page), head and position to the next.
    pub fn kv_strides(&self, operands: &Operands) -> [usize; 3] {
        match self.pages {
            Some(Paging { size, .. }) => Layout::SeqFirst.strides(self.kv_heads, size),
            None => operands.kv_layout.strides(self.kv_heads, self.seq_kv),
        }
    }

    /// Shape of a tensor with one element for each row of the output: `q`'s leading axes, heads first.
    pub fn rows_shape(&self, operands: &Operands, q: &TensorDesc) -> Vec<usize> {
        let all = [self.batch, self.heads, self.seq_q];
        match operands.q_layout {
            Layout::Merged { .. } | Layout::Joined { .. } => all.to_vec(),
            Layout::HeadsFirst | Layout::SeqFirst => all[4 - q.rank()..].to_vec(),
        }
    }

    /// Shape of the output for this `q`.
    pub fn output_shape(&self, operands: &Operands, q: &TensorDesc) -> Vec<usize> {
        let mut shape = q.shape.clone();
        let heads = operands.q_layout.output().heads_of_row().unwrap_or(1);
        *shape.last_mut().expect("queries have an axis") = heads * self.head_dim_v;
        shape
    }
}
