//! `append_kv`: new rows of keys and values go into a cache behind those that each sequence has, in place; keys are normed and
//! turned by their positions on the way where that is asked for.
//!
//! Techniques: `append_kv_row` (one workgroup per row), `append_kv_native`.

mod cases;
mod definition;
mod launch;
mod lowering;
mod native;

use std::sync::Arc;

use crate::capabilities::{Backend, Capabilities};
use crate::error::{Error, Result};
use crate::graph::{Graph, Lowering, Tensor};
use crate::op::{Cost, Op, Rows, Technique, Update};
use crate::ops::operands::Layout;
use crate::ops::rotation::{AngleTable, Angles, HeadNorm, HeadSizes, NormRule, Pairs};
use crate::shader::{Source, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc};

pub(super) use cases::cases;
use lowering::TurnFirst;

const ROW: Source = wgsl!("append_kv_row");
const NEW_ROWS_ALL: Source = wgsl!("lib/new_rows_all");
const NEW_ROWS_COUNTED: Source = wgsl!("lib/new_rows_counted");
const CACHE_DENSE: Source = wgsl!("lib/cache_dense");
const CACHE_PAGED: Source = wgsl!("lib/cache_paged");
const STORE_FLOATS: Source = wgsl!("lib/store_floats");
const STORE_LEVELS: Source = wgsl!("lib/store_levels");

const OP: &str = "append_kv";

/// A cache of keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvCache {
    /// f32, f16 or i8 `[batch, kv_heads, capacity, head_dim]`, or with a block table `[pages, page_size, kv_heads, head_dim]`.
    pub keys: Tensor,
    /// Like the keys, of a head_dim of their own.
    pub values: Tensor,
    /// How many rows each sequence has, u32 `[batch]`.
    pub lengths: Tensor,
    /// Of i8 keys and values: f32 of their shapes without the last axis. An element is its level times its row's scale.
    pub scales: Option<[Tensor; 2]>,
    /// Of pages: u32 `[batch, per_sequence]`. Row r of a sequence is row `r % page_size` of page `block_table[r / page_size]`.
    pub block_table: Option<Tensor>,
}

/// Options of [`Graph::append_kv`].
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct AppendOptions {
    /// Axes of the new keys and values.
    pub layout: Layout,
    /// How many of the new rows each sequence gets, from the first on, u32 `[batch]`; all by default.
    pub new_lengths: Option<Tensor>,
    /// Rotary embedding of the new keys by the positions that they get.
    pub rotary: Option<Angles>,
    /// RMSNorm of each new key, before it turns.
    pub key_norm: Option<HeadNorm>,
}

/// Appends `k` and `v` to `keys` and `values` at `lengths`. After these five come, as the options have them: scales of keys and of
/// values, block table, new lengths, cosines, sines, the norm's weight. Outputs: keys, values, lengths, scales.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct AppendKv {
    /// Axes of `k` and `v`.
    pub layout: Layout,
    /// The cache holds levels and scales.
    pub quantised: bool,
    /// The cache lies in pages.
    pub paged: bool,
    /// New lengths say how many of the new rows are there.
    pub counted: bool,
    /// Keys turn, these elements together.
    pub rotary: Option<Pairs>,
    /// Keys are normed first.
    pub key_norm: Option<NormRule>,
}

impl Graph {
    /// Adds [`AppendKv`]: row i of `k` and `v`, f32 or f16 `[batch, kv_heads, seq_new, head_dim]` or another layout, becomes row
    /// `lengths + i` of the cache, in place. Use what this returns: the same memory, and lengths that count the new rows.
    ///
    /// Where keys and values are inputs of the graph, a run leaves them changed for the next. The lengths are another tensor than
    /// those given: a loop keeps them by [`Graph::assign`].
    ///
    /// Rows that the cache has no room for are not written, and the lengths end at the capacity, unless a checked run refuses
    /// them.
    ///
    /// # Errors
    /// Shapes that do not fit, a cache that is a weight or was changed before, options that mean nothing.
    pub fn append_kv(&mut self, cache: &KvCache, k: Tensor, v: Tensor, options: &AppendOptions) -> Result<KvCache> {
        let AppendOptions { layout, new_lengths, rotary, key_norm } = *options;
        let op = AppendKv {
            layout,
            quantised: cache.scales.is_some(),
            paged: cache.block_table.is_some(),
            counted: new_lengths.is_some(),
            rotary: rotary.map(|angles| angles.pairs),
            key_norm: key_norm.map(|norm| norm.rule()),
        };
        let mut inputs = vec![k, v, cache.keys, cache.values, cache.lengths];
        inputs.extend(cache.scales.into_iter().flatten());
        inputs.extend(cache.block_table.into_iter().chain(new_lengths));
        inputs.extend(rotary.into_iter().flat_map(|angles| [angles.cos, angles.sin]));
        inputs.extend(key_norm.and_then(|norm| norm.weight));
        let turns_first = TurnFirst { cache: *cache, options: *options, inputs: inputs.clone() };
        let turns = rotary.is_some() || key_norm.is_some();
        let lowerings = turns.then(|| Arc::new(turns_first) as Arc<dyn Lowering>).into_iter().collect();
        let outputs = self.add_lowerable(op, &inputs, lowerings)?;
        Ok(KvCache {
            keys: outputs[0],
            values: outputs[1],
            lengths: outputs[2],
            scales: cache.scales.map(|_| [outputs[3], outputs[4]]),
            block_table: cache.block_table,
        })
    }
}

impl Op for AppendKv {
    fn name(&self) -> &'static str {
        OP
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        self.checked(inputs)?;
        let scales = if self.quantised { 5..7 } else { 5..5 };
        Ok([2, 3, 4].into_iter().chain(scales).map(|input| inputs[input].clone()).collect())
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        definition::append(self, inputs, rows)
    }

    /// Bytes of the new rows, which is what the cache gets; new lengths are data and count as if all rows were there. Three
    /// operations for each element that turns, four for each that is normed, three for each that is quantised.
    fn cost(&self, inputs: &[TensorDesc]) -> Cost {
        let Ok(Checked { k, v, table, .. }) = self.checked(inputs) else { return Cost::default() };
        let rows = (k.batch * k.heads * k.seq) as u64;
        let (keys, both) = (rows * k.head_dim as u64, rows * (k.head_dim + v.head_dim) as u64);
        let turning = table.map_or(0, |table| 6 * rows * table.pairs as u64);
        let normed = if self.key_norm.is_some() { 4 * keys } else { 0 };
        let (levels, scales) = if self.quantised { (3 * both, 8 * rows) } else { (0, 0) };
        let bytes = |tensors: &[&TensorDesc]| tensors.iter().map(|tensor| tensor.bytes()).sum::<u64>();
        let small: Vec<_> = self.split(inputs).small().collect();
        Cost {
            flops: turning + normed + levels,
            read: bytes(&[&inputs[0], &inputs[1]]) + bytes(&small),
            written: both * inputs[2].dtype.size() as u64 + scales + inputs[4].bytes(),
        }
    }

    fn updates(&self) -> &'static [Update] {
        const ALL: [Update; 4] = [
            Update { output: 0, input: 2 },
            Update { output: 1, input: 3 },
            Update { output: 3, input: 5 },
            Update { output: 4, input: 6 },
        ];
        if self.quantised { &ALL } else { &[ALL[0], ALL[1]] }
    }

    fn check(&self, inputs: &[TensorDesc], data: &[Option<&HostTensor>]) -> Result<()> {
        let checked = self.checked(inputs)?;
        let tensors = self.split(data);
        let numbers = |tensor: &Option<&HostTensor>| tensor.and_then(HostTensor::as_u32).map(<[u32]>::to_vec);
        let Some(lengths) = numbers(tensors.lengths) else { return Ok(()) };
        let new = tensors.new_lengths.and_then(numbers);
        let spans: Vec<[u64; 2]> = (lengths.iter().enumerate())
            .map(|(b, &length)| [u64::from(length), new.as_ref().map_or(checked.k.seq as u64, |new| new[b].into())])
            .collect();
        for (b, &[length, new]) in spans.iter().enumerate() {
            let fail = |message: String| Err(Error::shape(OP, format!("sequence {b} {message}")));
            if new > checked.k.seq as u64 {
                return fail(format!("brings {new} rows, k has {}", checked.k.seq));
            }
            if length + new > checked.capacity as u64 {
                let capacity = checked.capacity;
                return fail(format!("has {length} keys and {new} more come, the cache holds {capacity}"));
            }
            if let Some(table) = checked.table.filter(|_| new > 0) {
                table.check(OP, b, length + new - 1)?;
            }
        }
        match (checked.pages, tensors.block_table.and_then(numbers)) {
            (Some(pages), Some(table)) => pages.check(&spans, &table),
            _ => Ok(()),
        }
    }

    fn techniques(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Vec<Technique> {
        let Ok(checked) = self.checked(inputs) else { return Vec::new() };
        match capabilities.backend {
            Backend::Cpu => vec![Technique::Cpu(native::kernel(*self, checked))],
            Backend::Gpu => self.row(inputs, &checked, capabilities).map(Technique::Gpu).into_iter().collect(),
        }
    }
}

/// What belongs to the inputs, by name.
struct Tensors<'a, T> {
    k: &'a T,
    v: &'a T,
    keys: &'a T,
    values: &'a T,
    lengths: &'a T,
    scales: Option<[&'a T; 2]>,
    block_table: Option<&'a T>,
    new_lengths: Option<&'a T>,
    angles: Option<[&'a T; 2]>,
    weight: Option<&'a T>,
}

impl<'a, T> Tensors<'a, T> {
    /// What is read besides the new rows.
    fn small(&self) -> impl Iterator<Item = &'a T> {
        let angles = self.angles.into_iter().flatten();
        [self.lengths].into_iter().chain(self.block_table).chain(self.new_lengths).chain(angles).chain(self.weight)
    }
}

/// What the shape rule found.
#[derive(Debug, Clone, Copy)]
struct Checked {
    k: HeadSizes,
    v: HeadSizes,
    /// Rows that the cache has for a sequence.
    capacity: usize,
    pages: Option<PageSizes>,
    table: Option<AngleTable>,
}

#[derive(Debug, Clone, Copy)]
struct PageSizes {
    count: usize,
    size: usize,
    per_sequence: usize,
}

impl PageSizes {
    /// Refuses a page that does not exist, or that two sequences would write, among those that get new rows.
    fn check(&self, spans: &[[u64; 2]], table: &[u32]) -> Result<()> {
        let mut writers = std::collections::HashMap::new();
        for (b, &[length, new]) in spans.iter().enumerate() {
            let written = (length as usize / self.size)..(length + new).div_ceil(self.size as u64) as usize;
            for entry in written.filter(|_| new > 0) {
                let page = table[b * self.per_sequence + entry];
                if page as usize >= self.count {
                    let message = format!("page {entry} of sequence {b} is {page}, the cache has {}", self.count);
                    return Err(Error::shape(OP, message));
                }
                if let Some(other) = writers.insert(page, b) {
                    let message = format!("page {page} would get rows of sequence {other} and of sequence {b}");
                    return Err(Error::shape(OP, message));
                }
            }
        }
        Ok(())
    }
}

impl AppendKv {
    fn has_weight(&self) -> bool {
        self.key_norm.is_some_and(|norm| norm.has_weight)
    }

    fn count(&self) -> usize {
        let flags = [self.paged, self.counted, self.has_weight()].into_iter().filter(|&flag| flag).count();
        5 + 2 * usize::from(self.quantised) + 2 * usize::from(self.rotary.is_some()) + flags
    }

    /// As many inputs as [`AppendKv::count`] says.
    fn split<'a, T>(&self, inputs: &'a [T]) -> Tensors<'a, T> {
        let mut rest = inputs.iter();
        let mut one = || rest.next().expect("the inputs were counted");
        Tensors {
            k: one(),
            v: one(),
            keys: one(),
            values: one(),
            lengths: one(),
            scales: self.quantised.then(|| [one(), one()]),
            block_table: self.paged.then(&mut one),
            new_lengths: self.counted.then(&mut one),
            angles: self.rotary.map(|_| [one(), one()]),
            weight: self.has_weight().then(&mut one),
        }
    }

    fn checked(&self, inputs: &[TensorDesc]) -> Result<Checked> {
        if inputs.len() != self.count() {
            let message = format!("takes {} tensors with these options, got {}", self.count(), inputs.len());
            return Err(Error::shape(OP, message));
        }
        let tensors = self.split(inputs);
        let k = HeadSizes::new(OP, "k", tensors.k, self.layout)?;
        let v = HeadSizes::new(OP, "v", tensors.v, self.layout)?;
        if tensors.k.dtype != tensors.v.dtype || (HeadSizes { head_dim: k.head_dim, ..v }) != k {
            let message = format!("k is {} and v is {}, they may differ in head_dim only", tensors.k, tensors.v);
            return Err(Error::shape(OP, message));
        }
        self.check_dtypes(&tensors, [&k, &v])?;
        let (capacity, pages) = self.check_cache(&tensors, [&k, &v])?;
        for (name, tensor) in [("lengths", Some(tensors.lengths)), ("new_lengths", tensors.new_lengths)] {
            if let Some(tensor) = tensor.filter(|desc| desc.dtype != Dtype::U32 || desc.shape != [k.batch]) {
                return Err(Error::shape(OP, format!("{name} is {tensor}, it must be u32 [{}]", k.batch)));
            }
        }
        let table = tensors.angles.map(|angles| AngleTable::new(OP, angles, &k)).transpose()?;
        if let Some(norm) = self.key_norm {
            norm.check(OP, tensors.weight, k.head_dim)?;
        }
        Ok(Checked { k, v, capacity, pages, table })
    }

    fn check_dtypes(&self, tensors: &Tensors<'_, TensorDesc>, sizes: [&HeadSizes; 2]) -> Result<()> {
        let fail = |message: String| Err(Error::shape(OP, message));
        let (keys, values) = (tensors.keys, tensors.values);
        let stores = match self.quantised {
            true => keys.dtype == Dtype::I8,
            false => keys.dtype.is_device_float(),
        };
        if !stores || keys.dtype != values.dtype {
            let wanted = if self.quantised { "i8, having scales" } else { "f32 or f16, or i8 with scales" };
            return fail(format!("the caches are {keys} and {values}, both must be {wanted}"));
        }
        if let Some(odd) = sizes.iter().find(|sizes| self.quantised && !sizes.head_dim.is_multiple_of(4)) {
            return fail(format!("an i8 cache takes a head_dim that is a multiple of 4, got {}", odd.head_dim));
        }
        for (name, scales, cache) in tensors.scales.iter().flat_map(|[k, v]| [("key", *k, keys), ("value", *v, values)])
        {
            let wanted = &cache.shape[..cache.rank().saturating_sub(1)];
            if scales.dtype != Dtype::F32 || scales.shape != wanted {
                return fail(format!("the {name} scales are {scales}, they must be f32 {wanted:?}"));
            }
        }
        Ok(())
    }

    /// Rows that the cache has for a sequence, and its pages.
    fn check_cache(
        &self,
        tensors: &Tensors<'_, TensorDesc>,
        [k, v]: [&HeadSizes; 2],
    ) -> Result<(usize, Option<PageSizes>)> {
        let fail = |message: String| Err(Error::shape(OP, message));
        let (keys, values) = (tensors.keys, tensors.values);
        let fits = |outer: [usize; 2], heads: usize| {
            keys.shape == [outer[0], outer[1], heads, k.head_dim]
                && values.shape == [outer[0], outer[1], heads, v.head_dim]
        };
        let Some(table) = tensors.block_table else {
            let capacity = keys.shape.get(2).copied().unwrap_or(0);
            if !fits([k.batch, k.heads], capacity) {
                let [batch, heads] = [k.batch, k.heads];
                return fail(format!(
                    "the caches are {keys} and {values}, for k and v they must be [{batch}, {heads}, capacity, {}] and \
                     [{batch}, {heads}, capacity, {}]",
                    k.head_dim, v.head_dim
                ));
            }
            return Ok((capacity, None));
        };
        let (count, size) = (keys.shape.first().copied().unwrap_or(0), keys.shape.get(1).copied().unwrap_or(0));
        if count == 0 || size == 0 || !fits([count, size], k.heads) {
            return fail(format!(
                "the caches are {keys} and {values}, for k and v they must be [pages, page_size, {}, {}] and \
                 [pages, page_size, {}, {}]",
                k.heads, k.head_dim, k.heads, v.head_dim
            ));
        }
        match table.shape[..] {
            [batch, per_sequence] if table.dtype == Dtype::U32 && batch == k.batch => {
                Ok((per_sequence.saturating_mul(size), Some(PageSizes { count, size, per_sequence })))
            }
            _ => fail(format!("block_table is {table}, it must be u32 [{}, pages of a sequence]", k.batch)),
        }
    }
}
