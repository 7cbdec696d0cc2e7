//! What the WGSL techniques share: library files, bindings and params.

use super::{AttentionFused, MAX_HEAD_DIM};
use crate::capabilities::Capabilities;
use crate::mask::Fill;
use crate::op::{Bindings, Launch, Op, fold, index};
use crate::ops::masks::Checked;
use crate::ops::operands::{Paging, Sizes};
use crate::ops::{BF16, INT8, SINKS_BINDING, SINKS_DENSE, SINKS_NONE};
use crate::shader::{Constant, Params, Shader, Source, params, wgsl};
use crate::tensor::{Dtype, TensorDesc};

pub(super) const ROWS: Source = wgsl!("lib/attention_rows");
const SCORES: Source = wgsl!("lib/attention_scores");
const Q_PLAIN: Source = wgsl!("lib/q_plain");
const Q_VECTORS: Source = wgsl!("lib/q_vectors");
const Q_BF16: Source = wgsl!("lib/q_bf16");
const KV_PLAIN: Source = wgsl!("lib/kv_plain");
const KV_VECTORS: Source = wgsl!("lib/kv_vectors");
const KV_BF16: Source = wgsl!("lib/kv_bf16");
const KV_INT8: Source = wgsl!("lib/kv_int8");
const O_PLAIN: Source = wgsl!("lib/o_plain");
const O_VECTORS: Source = wgsl!("lib/o_vectors");
const O_BF16: Source = wgsl!("lib/o_bf16");
const O_BF16_ODD: Source = wgsl!("lib/o_bf16_odd");
const ROWS_DENSE: Source = wgsl!("lib/rows_dense");
const ROWS_PAGED: Source = wgsl!("lib/rows_paged");
pub(in crate::ops) const LSE_NONE: Source = wgsl!("lib/lse_none");
pub(in crate::ops) const LSE_DENSE: Source = wgsl!("lib/lse_dense");
pub(super) const SKIP_NONE: Source = wgsl!("lib/skip_none");
pub(super) const SKIP_MASKED: Source = wgsl!("lib/skip_masked");

// Bindings of the optional tensors, as in these files.
const TABLE_BINDING: u32 = 18;
const SCALES_BINDINGS: [u32; 2] = [19, 20];
pub(in crate::ops) const LSE_BINDING: u32 = 21;

params! {
    struct AttentionParams {
        batch: u32, heads: u32, kv_heads: u32, seq_q: u32, seq_kv: u32, scale: f32, fill: f32, excluded: f32,
        softcap: f32, q_batch: u32, q_head: u32, q_row: u32, kv_batch: u32, kv_head: u32, kv_row: u32,
        page_size: u32, per_sequence: u32, pages: u32, band_follows: u32, mask_keys: u32, bias_keys: u32,
        band_lower: i32, band_upper: i32, visit_lower: i32, visit_upper: i32,
        mask_batch: u32, mask_head: u32, mask_query: u32, mask_key: u32,
        bias_batch: u32, bias_head: u32, bias_query: u32, bias_key: u32,
        position: i32, slope_sequence: u32, sequences: u32, parts: u32, rows_per_head: u32,
        o_batch: u32, o_row: u32, k_first: u32, v_first: u32,
    }
}

/// What a technique adds to what all have.
pub(in crate::ops) struct Kernel {
    pub main: Source,
    /// Library files of its own.
    pub libraries: Vec<Source>,
    /// Query rows of a tile.
    pub queries: usize,
    /// Keys of a tile.
    pub keys: usize,
    /// Constants of its own.
    pub constants: Vec<(&'static str, Constant)>,
    /// Rounds of loops that a lane takes for a tile of keys, at most. Each loop's last look at its condition counts as one; loops of
    /// up to eight rounds over registers do not count, as compilers unroll them.
    pub rounds: usize,
    /// Workgroups that divide the keys of a tile of rows among them.
    pub shares: usize,
}

/// How lanes come by what they keep in workgroup memory.
#[derive(Debug, Clone, Copy)]
pub(in crate::ops) struct Staging {
    lanes: usize,
    /// Rounds of the loop that makes a vector of four elements, where there is one.
    of_a_vector: usize,
}

impl Staging {
    pub fn new(inputs: &[TensorDesc], sizes: &Sizes, lanes: usize) -> Self {
        let stored = inputs[..2].iter().all(|desc| matches!(desc.dtype, Dtype::F32 | Dtype::F16));
        let whole = sizes.head_dim.is_multiple_of(4) && sizes.head_dim_v.is_multiple_of(4);
        Self { lanes, of_a_vector: if stored && whole { 0 } else { 5 } }
    }

    /// Rounds of a loop that lanes share, each of which takes so many vectors.
    pub fn rounds(self, all: usize, vectors: usize) -> usize {
        all.div_ceil(self.lanes) * (1 + vectors * self.of_a_vector) + 1
    }
}

/// The library file that stores four elements of rows of an output, and the constant that it has.
pub(in crate::ops) fn output_files(
    dtype: Dtype,
    [width, rows]: [usize; 2],
) -> (Vec<Source>, Option<(&'static str, Constant)>) {
    match dtype {
        Dtype::BF16 => (vec![BF16, if width.is_multiple_of(2) { O_BF16 } else { O_BF16_ODD }], None),
        _ => (
            vec![if fits_vectors(width, rows) { O_VECTORS } else { O_PLAIN }],
            Some(("OElem", Constant::Scalar(dtype))),
        ),
    }
}

/// Whether rows are whole vectors. The buffer of an empty tensor has no room for one.
fn fits_vectors(width: usize, rows: usize) -> bool {
    width.is_multiple_of(4) && width > 0 && rows > 0
}

impl AttentionFused {
    /// The launch of a kernel whose constants are among others those of every tile; none where the device lacks something.
    pub(super) fn fused(&self, inputs: &[TensorDesc], capabilities: &Capabilities, kernel: Kernel) -> Option<Launch> {
        self.fused_into(inputs[0].dtype, inputs, capabilities, kernel)
    }

    /// The same for an output of another dtype than the queries'.
    pub(in crate::ops) fn fused_into(
        &self,
        output: Dtype,
        inputs: &[TensorDesc],
        capabilities: &Capabilities,
        kernel: Kernel,
    ) -> Option<Launch> {
        let sizes = self.sizes(inputs).ok()?;
        let checked = self.checked(&sizes, inputs).ok()?;
        if sizes.head_dim.max(sizes.head_dim_v) > MAX_HEAD_DIM
            || !capabilities.completes(self.rounds(&sizes, &checked, &kernel))
        {
            return None;
        }
        let mut bindings = Bindings::in_order(3, 1);
        let (mut libraries, mut constants) = self.storage(output, inputs, &sizes, &mut bindings);
        let (rules, rule_constants) = checked.link(&mut bindings);
        libraries.extend([ROWS, SCORES, if self.skips() { SKIP_MASKED } else { SKIP_NONE }]);
        libraries.extend(kernel.libraries);
        libraries.extend(rules);
        let (partition, parts) = checked.parts(kernel.queries);
        libraries.push(partition);
        let heads_per_tile = self.heads_per_tile(&sizes, kernel.queries);
        constants.extend(rule_constants);
        constants.extend(kernel.constants);
        constants.extend([
            ("HEAD_DIM", Constant::U32(index(sizes.head_dim))),
            ("VALUE_DIM", Constant::U32(index(sizes.head_dim_v))),
            ("GUARDED", Constant::Bool(!checked.sees_all())),
            ("BASE_2", Constant::Bool(self.in_base_2())),
            ("BANDED", Constant::Bool(self.is_banded())),
            ("HEADS_PER_TILE", Constant::U32(index(heads_per_tile))),
            ("QUERIES", Constant::U32(index(kernel.queries))),
            ("KEYS", Constant::U32(index(kernel.keys))),
        ]);
        let shader = Shader { main: kernel.main, libraries, constants };
        if (shader.needs_f16() && !capabilities.f16) || bindings.count() > capabilities.storage_buffers {
            return None;
        }
        let nothing = self.outputs(inputs).is_ok_and(|outputs| outputs.iter().all(TensorDesc::is_empty));
        let workgroups =
            if nothing { [0; 3] } else { fold(sizes.batch * sizes.heads / heads_per_tile * parts, capabilities) };
        let scale = if self.in_base_2() { self.scale * std::f32::consts::LOG2_E } else { self.scale };
        let params = self.params(&sizes, &checked, kernel.queries, scale);
        Some(Launch { shader, params, workgroups, bindings })
    }

    /// Rounds of loops that a lane takes on its way over the keys, at most. Lengths may be all there is.
    fn rounds(&self, sizes: &Sizes, checked: &Checked, kernel: &Kernel) -> usize {
        let band = checked.own_visit();
        let seen = usize::try_from(band.upper.saturating_sub(band.lower)).unwrap_or(0).saturating_add(kernel.queries);
        let tiles = seen.min(sizes.seq_kv.div_ceil(kernel.shares)).div_ceil(kernel.keys) + 1;
        // A lane has at most 16 pairs of a row and a key to look at, and one row of a page to look up, but for the smallest tiles.
        let [skips, pages] = [self.skips(), self.operands.has_pages].map(usize::from);
        tiles * (1 + kernel.rounds + 66 * skips + 9 * pages)
    }

    /// Whether tiles are skipped that a dense mask hides.
    pub(super) fn skips(&self) -> bool {
        self.rule.has_mask && self.rule.masking.fill == Fill::Exclude
    }

    /// Whether scores are products times the scale, between −inf for those that take no part.
    fn is_banded(&self) -> bool {
        let rule = &self.rule;
        rule.softcap.is_none() && !(rule.has_slopes || rule.has_bias || rule.has_mask)
    }

    /// Whether the scale can have the factor log2(e), which the largest numbers that a tensor or a fill may hold cannot.
    fn in_base_2(&self) -> bool {
        let rule = &self.rule;
        let others = rule.softcap.is_some() || rule.has_slopes || rule.has_bias || self.has_sinks;
        !others && rule.masking.fill == Fill::Exclude
    }

    /// How many heads that read one key head are rows of one tile: as many as fit, where queries are few, so that a decoding step
    /// reads its keys once. Packed sequences have their own numbers of queries, which only the device knows.
    pub(super) fn heads_per_tile(&self, sizes: &Sizes, queries: usize) -> usize {
        if self.rule.has_q_starts || sizes.seq_q == 0 || sizes.kv_heads == 0 {
            return 1;
        }
        let group = sizes.heads / sizes.kv_heads;
        (1..=group).rev().find(|&heads| group.is_multiple_of(heads) && heads * sizes.seq_q <= queries).unwrap_or(1)
    }

    /// Query rows that could be in one tile.
    pub(in crate::ops) fn rows_of_a_tile(&self, sizes: &Sizes) -> usize {
        match self.rule.has_q_starts {
            true => sizes.seq_q,
            false => sizes.seq_q * sizes.heads.checked_div(sizes.kv_heads).unwrap_or(1),
        }
    }

    /// Library files and constants for how tensors are stored; bindings of the optional ones are added.
    pub(super) fn storage(
        &self,
        output: Dtype,
        inputs: &[TensorDesc],
        sizes: &Sizes,
        bindings: &mut Bindings,
    ) -> (Vec<Source>, Vec<(&'static str, Constant)>) {
        let mut constants = Vec::new();
        let mut libraries = vec![
            if self.operands.has_pages { ROWS_PAGED } else { ROWS_DENSE },
            if self.has_sinks { SINKS_DENSE } else { SINKS_NONE },
            if self.returns_lse { LSE_DENSE } else { LSE_NONE },
        ];
        let (q, k) = (inputs[0].dtype, inputs[1].dtype);
        let [rows, keys] = [sizes.batch * sizes.heads * sizes.seq_q, inputs[1].shape.iter().product()];
        let kv_vectors = fits_vectors(sizes.head_dim, keys) && fits_vectors(sizes.head_dim_v, keys);
        match q {
            Dtype::BF16 => libraries.push(Q_BF16),
            _ => {
                libraries.push(if fits_vectors(sizes.head_dim, rows) { Q_VECTORS } else { Q_PLAIN });
                constants.push(("QElem", Constant::Scalar(q)));
            }
        }
        let (files, constant) = output_files(output, [sizes.head_dim_v, rows]);
        libraries.extend(files);
        constants.extend(constant);
        match k {
            Dtype::BF16 => libraries.push(KV_BF16),
            Dtype::I8 => libraries.extend([KV_INT8, INT8]),
            _ => {
                libraries.push(if kv_vectors { KV_VECTORS } else { KV_PLAIN });
                constants.push(("KvElem", Constant::Scalar(k)));
            }
        }
        libraries.extend((output != Dtype::BF16 && [q, k].contains(&Dtype::BF16)).then_some(BF16));
        bindings.inputs.extend(self.operands.has_scales.then_some(SCALES_BINDINGS).into_iter().flatten());
        bindings.inputs.extend(self.operands.has_pages.then_some(TABLE_BINDING));
        bindings.inputs.extend(self.has_sinks.then_some(SINKS_BINDING));
        bindings.outputs.extend(self.returns_lse.then_some(LSE_BINDING));
        (libraries, constants)
    }

    /// Of tiles of so many query rows, and of products that this scale multiplies.
    pub(super) fn params(&self, sizes: &Sizes, checked: &Checked, queries: usize, scale: f32) -> Params {
        let rule = checked.params();
        let visit = checked.own_visit();
        let [q_batch, q_head, q_row] = sizes.q_strides(&self.operands).map(index);
        let [o_batch, _, o_row] = sizes.output_strides(&self.operands).map(index);
        let [_, k_first, v_first] = self.operands.first_rows().map(index);
        let [kv_batch, kv_head, kv_row] = sizes.kv_strides(&self.operands).map(index);
        // Shaders divide by the size of a page.
        let pages = sizes.pages.unwrap_or(Paging { count: 1, size: 1, per_sequence: 0 });
        let [mask_batch, mask_head, mask_query, mask_key] = rule.mask;
        let [bias_batch, bias_head, bias_query, bias_key] = rule.bias;
        let params = AttentionParams {
            batch: index(sizes.batch),
            heads: index(sizes.heads),
            kv_heads: index(sizes.kv_heads),
            seq_q: index(sizes.seq_q),
            seq_kv: index(sizes.seq_kv),
            scale,
            fill: rule.fill,
            excluded: rule.excluded,
            softcap: rule.softcap,
            q_batch,
            q_head,
            q_row,
            kv_batch,
            kv_head,
            kv_row,
            page_size: index(pages.size),
            per_sequence: index(pages.per_sequence),
            pages: index(pages.count),
            band_follows: rule.band_follows,
            mask_keys: rule.mask_keys,
            bias_keys: rule.bias_keys,
            band_lower: rule.band.lower as i32,
            band_upper: rule.band.upper as i32,
            visit_lower: visit.lower as i32,
            visit_upper: visit.upper as i32,
            mask_batch,
            mask_head,
            mask_query,
            mask_key,
            bias_batch,
            bias_head,
            bias_query,
            bias_key,
            position: rule.position,
            slope_sequence: rule.slope_sequence,
            sequences: rule.sequences,
            parts: index(checked.parts(queries).1),
            rows_per_head: index(sizes.seq_q),
            o_batch,
            o_row,
            k_first,
            v_first,
        };
        params.into()
    }
}
