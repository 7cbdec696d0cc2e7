//! `attention_split`: attention over shares of the keys, each on its own, for the few query rows of a decoding step; what
//! [`attention_combine`](super::AttentionCombine) makes one result of. Together they are the lowering `split` of
//! `attention_fused`.
//!
//! Techniques: `attention_split` (a workgroup for each share and up to eight rows, keys through workgroup memory),
//! `attention_split_direct` (keys read where they lie: first on drivers that run shaders on the host), `attention_split_lanes` (a
//! row to a lane, all of which read the same key: first on such drivers that load it once), `attention_split_native` (see
//! `src/cpu/kernels/attention.rs`).
//!
//! One query row with 32 heads on 8 key heads, 8 sequences, 4,096 keys, head_dim 64 in f32, on two cores of an AMD EPYC:
//! `attention_split_direct` takes 59.7 ms on Mesa 26's lavapipe, `attention_split_lanes` 26.4, of which more than half waits for
//! memory. Mesa 22.3 loads for each lane: 119 ms, and 185 for `attention_split_lanes` in one pass.
//!
//! On Mesa 26's lavapipe, one query row with 32 heads on 8 key heads, 8 sequences, 4,096 keys, head_dim 128 in f32, on two cores of
//! a busy machine, in turns: `attention_split_direct` in two shares, combined, 416 and 456 ms; `attention_lanes` in one pass
//! 571 and 597, `attention_subgroup` 1,190 and 1,070, `attention_fused` 1,610 and 1,940. A plan therefore has it for few rows
//! also where one share is enough.
//!
//! How many shares: as many as make the most of a device, FlashAttention's rule (arXiv:2307.08691 and its decoding kernel): one
//! where the workgroups of a single pass fill four fifths of what is resident, else the least number whose last round of
//! workgroups is nearly as full as that of the best number.
//!
//! What to expect of one query row with four heads on a key head, head_dim 128, on a GPU like an H200 (67 TFLOP/s in f32, copies
//! of 4.3 TB/s, 228 KiB and 65,536 registers to a processor). **Estimates from the tiles' sizes; none is measured**:
//!
//! | cache | f32 | f16, bf16 | i8 |
//! |---|---|---|---|
//! | operations per byte of the cache | 2 | 4 | 8 |
//! | workgroup memory, bytes | 12,416 | 12,416 | 12,416 |
//! | registers of a lane, four rows | 80 | 80 | 90 |
//! | workgroups of 64 lanes resident on a processor | 12 | 12 | 11 |
//! | bytes that loads under way have, of a processor | 96 KiB | 48 KiB | 24 KiB |
//! | bound | copies | copies | copies, if conversions hide |
//!
//! Eight rows double the operations, add 50 registers and 3 KiB.

mod cases;
mod lowering;
mod native;

pub(super) use cases::cases;
pub(crate) use lowering::Split;

use crate::capabilities::{Backend, Capabilities};
use crate::error::{Error, Result};
use crate::op::{Cost, Launch, Op, Rows, Technique, Update, index};
use crate::ops::BLOCKS;
use crate::ops::attention_fused::{AttentionFused, Kernel, Staging, shares};
use crate::ops::masks::ScoreRule;
use crate::ops::operands::{Operands, Sizes};
use crate::shader::{Constant, Source, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc};

const SPLIT: Source = wgsl!("attention_split");
const DIRECT: Source = wgsl!("attention_split_direct");
const LANES: Source = wgsl!("attention_split_lanes");
const WALK: Source = wgsl!("lib/attention_shares");
const SHARES: Source = wgsl!("lib/shares");

/// Keys of a tile, which those of a share are a multiple of.
const KEYS: usize = 64;

/// Most rows of a workgroup.
const MAX_ROWS: usize = 8;

/// Largest head dimension at which a lane holds a row of q and one of o.
const MAX_LANE_WIDTH: usize = 128;

/// Attention as [`AttentionFused`] computes it, without sinks, over each of `splits` shares of the keys alone: partial results, f32
/// `[splits, batch, heads, seq_q, head_dim_v]`, each divided by its own sum of exponentials, and the logarithms of those
/// sums, f32 `[splits, batch, heads, seq_q]`, −inf where a row sees nothing of a share, or is no query.
///
/// Share s of the n keys that a sequence has, by its length or its starts, are those from `s · c` up to `(s + 1) · c`, as far as
/// they exist, where c is `⌈n / splits⌉` rounded up to a multiple of 64. Inputs are those of [`AttentionFused`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionSplit {
    /// Multiplies q · kᵀ. Finite.
    pub scale: f32,
    /// What happens to a scaled score.
    pub rule: ScoreRule,
    /// How q, k and v are stored; results are heads first whatever the layout.
    pub operands: Operands,
    /// Number of shares, at least one.
    pub splits: usize,
}

impl Op for AttentionSplit {
    fn name(&self) -> &'static str {
        "attention_split"
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        if self.splits == 0 {
            return Err(Error::option("attention_split", "splits is 0, it must be at least 1"));
        }
        self.attention().outputs(inputs)?;
        let sizes = self.attention().sizes(inputs)?;
        let rows = [self.splits, sizes.batch, sizes.heads, sizes.seq_q];
        let partials = TensorDesc::new(Dtype::F32, [&rows[..], &[sizes.head_dim_v]].concat());
        Ok(vec![partials, TensorDesc::new(Dtype::F32, rows)])
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        shares(&self.attention(), self.splits, inputs, rows)
    }

    /// That of attention, but for what is written.
    fn cost(&self, inputs: &[TensorDesc]) -> Cost {
        let outputs = self.outputs(inputs).unwrap_or_default();
        let written = outputs.iter().map(TensorDesc::bytes).sum();
        Cost { written, ..self.attention().cost(inputs) }
    }

    fn updates(&self) -> &'static [Update] {
        &[]
    }

    fn check(&self, inputs: &[TensorDesc], data: &[Option<&HostTensor>]) -> Result<()> {
        self.attention().check(inputs, data)
    }

    fn techniques(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Vec<Technique> {
        match capabilities.backend {
            Backend::Cpu => self.native(inputs).into_iter().collect(),
            Backend::Gpu => {
                let [staged, direct] = [self.staged(inputs, capabilities), self.direct(inputs, capabilities)];
                let lanes = self.lanes(inputs, capabilities);
                let order = match (capabilities.software, capabilities.loads_once()) {
                    (true, true) => [lanes, direct, staged],
                    (true, false) => [direct, lanes, staged],
                    (false, _) => [staged, direct, lanes],
                };
                order.into_iter().flatten().map(Technique::Gpu).collect()
            }
        }
    }
}

impl AttentionSplit {
    /// What each share is computed by.
    fn attention(&self) -> AttentionFused {
        let Self { scale, rule, operands, .. } = *self;
        let attention = AttentionFused { scale, rule, operands, ..AttentionFused::default() };
        AttentionFused { returns_lse: true, ..attention }
    }

    /// Keys through workgroup memory.
    fn staged(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Option<Launch> {
        let sizes = self.attention().sizes(inputs).ok()?;
        // Queries of all dimensions stay in workgroup memory too; 16 KiB have room for both.
        let chunk = if self.queries(&sizes) * sizes.head_dim > 1024 { 16 } else { 32 };
        let team = value_parts(&sizes).clamp(4, 64);
        let constants = vec![("TEAM", Constant::U32(team)), ("CHUNK", Constant::U32(chunk))];
        let walk = Walk { lanes: KEYS, team: team as usize, chunk: Some(chunk as usize) };
        self.launch(
            inputs,
            capabilities,
            Kernel { constants, ..self.kernel(SPLIT, &sizes, walk.rounds(inputs, &sizes)) },
        )
    }

    /// Keys where they lie. All lanes take one key's value together, so that they read one weight.
    fn direct(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Option<Launch> {
        let sizes = self.attention().sizes(inputs).ok()?;
        let lanes = value_parts(&sizes).clamp(8, 64);
        let constants = vec![("TEAM", Constant::U32(lanes)), ("LANES", Constant::U32(lanes))];
        let walk = Walk { lanes: lanes as usize, team: lanes as usize, chunk: None };
        self.launch(
            inputs,
            capabilities,
            Kernel { constants, ..self.kernel(DIRECT, &sizes, walk.rounds(inputs, &sizes)) },
        )
    }

    /// Whole rows to a lane.
    fn lanes(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Option<Launch> {
        let sizes = self.attention().sizes(inputs).ok()?;
        let widths = [sizes.head_dim, sizes.head_dim_v];
        if widths.iter().any(|&width| width > MAX_LANE_WIDTH) {
            return None;
        }
        let alone = Staging::new(inputs, &sizes, 1);
        let rounds = widths.iter().map(|width| alone.rounds(width.div_ceil(4), 4)).sum();
        let kernel =
            Kernel { libraries: vec![SHARES], queries: MAX_ROWS, keys: 4, ..self.kernel(LANES, &sizes, rounds) };
        self.launch(inputs, capabilities, kernel)
    }

    /// Query rows of a workgroup: there is room for eight up to a width.
    fn queries(&self, sizes: &Sizes) -> usize {
        if self.attention().rows_of_a_tile(sizes) <= 4 || sizes.head_dim > 256 { 4 } else { MAX_ROWS }
    }

    /// What techniques have in common; `rounds` as in [`Kernel`].
    fn kernel(&self, main: Source, sizes: &Sizes, rounds: usize) -> Kernel {
        Kernel {
            main,
            libraries: vec![SHARES, WALK, BLOCKS],
            queries: self.queries(sizes),
            keys: KEYS,
            constants: Vec::new(),
            rounds,
            shares: self.splits,
        }
    }

    fn launch(&self, inputs: &[TensorDesc], capabilities: &Capabilities, kernel: Kernel) -> Option<Launch> {
        let splits = index(self.splits);
        if splits > capabilities.workgroups {
            return None;
        }
        let mut launch = self.attention().fused_into(Dtype::F32, inputs, capabilities, kernel)?;
        launch.workgroups[2] *= splits;
        Some(launch)
    }
}

/// How lanes share a tile of keys.
struct Walk {
    lanes: usize,
    /// Lanes that take one key's value together.
    team: usize,
    /// Dimensions of keys that are staged together; none where keys are read where they lie.
    chunk: Option<usize>,
}

impl Walk {
    /// Rounds of loops that a lane takes for a tile.
    fn rounds(&self, inputs: &[TensorDesc], sizes: &Sizes) -> usize {
        let [alone, together] = [1, self.lanes].map(|lanes| Staging::new(inputs, sizes, lanes));
        let products = match self.chunk {
            Some(chunk) => {
                sizes.head_dim.div_ceil(chunk) * (1 + together.rounds(KEYS * chunk / 4, 1) + chunk / 4 + 1) + 1
            }
            None => 2 + alone.rounds(sizes.head_dim.div_ceil(4), 1),
        };
        let slots = KEYS / self.lanes;
        let maxima = (KEYS / 8 * 2).div_ceil(self.lanes) + 1 + 9;
        let teams = self.lanes / self.team;
        // Where a value is NaN or infinite a tile is added up twice.
        let sums = alone.rounds(KEYS / (4 * teams), 4) + alone.rounds(KEYS / teams, 1);
        let values = sizes.head_dim_v.div_ceil(4 * self.team) * (1 + sums) + 1;
        slots * (1 + products) + 1 + maxima + slots + 1 + values
    }
}

/// Vectors of a value, as a power of two.
fn value_parts(sizes: &Sizes) -> u32 {
    index(sizes.head_dim_v.div_ceil(4).next_power_of_two())
}
