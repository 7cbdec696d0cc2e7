//! What happens to a score between the product and the softmax, for every op that does it: the options and tensors, checked,
//! and as kernels see them.

use crate::cpu::kernels::args::{self as native, Elements};
use crate::error::{Error, Result};
use crate::mask::{Band, Fill, Masking};
use crate::op::{Bindings, index};
use crate::ops::EXCLUDED;
use crate::ops::sequences::{KEYS_ALL, Queries, SEQUENCE, check_ends, check_lengths, check_starts, sequences_between};
use crate::shader::{Constant, Source, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc, View};

const ALLOW_ALL: Source = wgsl!("lib/allow_all");
const ALLOW_BAND: Source = wgsl!("lib/allow_band");
const ALLOW_DENSE: Source = wgsl!("lib/allow_dense");
const BAND_SHIFT: Source = wgsl!("lib/band_shift");
const BIAS_NONE: Source = wgsl!("lib/bias_none");
const BIAS_DENSE: Source = wgsl!("lib/bias_dense");
const KEYS_LENGTHS: Source = wgsl!("lib/keys_lengths");
const KEYS_PACKED: Source = wgsl!("lib/keys_packed");
const PARTS_EACH: Source = wgsl!("lib/parts_each");
const PARTS_PACKED: Source = wgsl!("lib/parts_packed");
const SLOPES_NONE: Source = wgsl!("lib/slopes_none");
const SLOPES_DENSE: Source = wgsl!("lib/slopes_dense");
const SOFTCAP_NONE: Source = wgsl!("lib/softcap_none");
const SOFTCAP_TANH: Source = wgsl!("lib/softcap_tanh");

// Bindings of the optional tensors, as in these files; those of queries are in `sequences`.
const MASK_BINDING: u32 = 10;
const BIAS_BINDING: u32 = 11;
const LENGTHS_BINDING: u32 = 12;
const SLOPES_BINDING: u32 = 13;
const KV_STARTS_BINDING: u32 = 16;

/// What happens to a scaled score: softcap, then slopes, then bias, then mask; and which scores there are.
///
/// Its tensors follow an op's own inputs, in the order of the fields.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ScoreRule {
    /// A score s becomes `c · tanh(s / c)`. Finite and larger than zero.
    pub softcap: Option<f32>,
    /// Causality, window and fill.
    pub masking: Masking,
    /// There is a boolean mask, true where a key takes part.
    pub has_mask: bool,
    /// There is an additive mask, f32 or f16.
    pub has_bias: bool,
    /// There is a u32 tensor `[batch]`: keys at or past it do not exist. Bottom-right causality and windows count from it.
    pub has_lengths: bool,
    /// There are slopes, f32 `[heads]` or `[sequences, heads]`: a score falls by `slope × |j − i − position|`.
    pub has_slopes: bool,
    /// There is a u32 tensor `[batch]`: queries at or past it do not exist, and their rows are −inf whatever the fill.
    pub has_q_lengths: bool,
    /// There is a u32 tensor `[sequences + 1]`: the one batch element of the queries holds several sequences, of which the
    /// s-th has the rows from start s up to start s + 1.
    pub has_q_starts: bool,
    /// The same for keys. Without it, the s-th of packed query sequences looks at batch element s of the keys.
    pub has_kv_starts: bool,
}

/// The tensors of a rule: descriptions, data, or whatever there is one of for each.
struct Tensors<'a, T> {
    mask: Option<&'a T>,
    bias: Option<&'a T>,
    lengths: Option<&'a T>,
    slopes: Option<&'a T>,
    queries: Queries<&'a T>,
    kv_starts: Option<&'a T>,
}

impl ScoreRule {
    /// Number of tensors that follow the op's own.
    pub(super) fn tensors(&self) -> usize {
        self.has().into_iter().filter(|&has| has).count()
    }

    fn has(&self) -> [bool; 7] {
        let queries = [self.has_q_lengths, self.has_q_starts];
        let [q_lengths, q_starts] = queries;
        [self.has_mask, self.has_bias, self.has_lengths, self.has_slopes, q_lengths, q_starts, self.has_kv_starts]
    }

    /// Which is which among the tensors that follow the op's own.
    fn split<'a, T>(&self, tensors: &'a [T]) -> Tensors<'a, T> {
        let mut rest = tensors.iter();
        let found = self.has().map(|has| if has { rest.next() } else { None });
        let [mask, bias, lengths, slopes, q_lengths, q_starts, kv_starts] = found;
        Tensors { mask, bias, lengths, slopes, queries: Queries { lengths: q_lengths, starts: q_starts }, kv_starts }
    }

    /// Lengths of the keys among those that follow the op's own, where they are known.
    pub(super) fn lengths<'a>(&self, data: &[Option<&'a HostTensor>]) -> Option<&'a HostTensor> {
        self.split(data).lengths.copied().flatten()
    }

    /// Query lengths and query starts among those that follow the op's own.
    pub(super) fn queries<'a, T>(&self, tensors: &'a [T]) -> [Option<&'a T>; 2] {
        let Queries { lengths, starts } = self.split(tensors).queries;
        [lengths, starts]
    }

    /// Whether a score may come out as another, or not at all.
    pub(crate) fn changes(&self, seq_q: usize, seq_kv: usize) -> bool {
        self.tensors() > 0 || self.softcap.is_some() || !self.masking.band(seq_q, seq_kv).is_full(seq_q, seq_kv)
    }

    /// Whether packed queries look at keys that are not packed, so that no one matrix holds all scores.
    pub(crate) fn reads_batched_keys(&self) -> bool {
        self.has_q_starts && !self.has_kv_starts
    }

    /// Refuses options that contradict themselves, in the name of `op`.
    fn validate(&self, op: &'static str) -> Result<()> {
        self.masking.validate(op)?;
        if let Some(softcap) = self.softcap.filter(|softcap| !(softcap.is_finite() && *softcap > 0.0)) {
            return Err(Error::option(op, format!("softcap is {softcap}, it must be finite and larger than zero")));
        }
        if self.has_kv_starts && !self.has_q_starts {
            return Err(Error::option(
                op,
                "kv_starts packs the keys, and q_starts does not say how queries are packed",
            ));
        }
        if self.has_kv_starts && self.has_lengths {
            return Err(Error::option(
                op,
                "kv_starts says how long packed sequences are, kv_lengths cannot say it too",
            ));
        }
        Ok(())
    }

    /// Refuses tensors and keys that do not fit scores `[batch, heads, seq_q, seq_kv]`, in the name of `op`.
    pub(crate) fn check_fit(
        &self,
        op: &'static str,
        scores: [usize; 4],
        kv_batch: usize,
        tensors: &[TensorDesc],
    ) -> Result<()> {
        Checked::new(op, *self, scores, tensors)?.check_key_batch(op, kv_batch)
    }

    /// What a checked run asks of lengths and starts: `data` are the tensors that follow the op's own, as [`Op::check`] has them.
    ///
    /// [`Op::check`]: crate::op::Op::check
    pub(super) fn check(
        &self,
        op: &'static str,
        [seq_q, seq_kv]: [usize; 2],
        data: &[Option<&HostTensor>],
    ) -> Result<()> {
        let Tensors { lengths, queries, kv_starts, .. } = self.split(data);
        check_ends(op, "kv_lengths", lengths.copied().flatten(), ("seq_kv", seq_kv))?;
        check_ends(op, "q_lengths", queries.lengths.copied().flatten(), ("seq_q", seq_q))?;
        check_starts(op, "q_starts", queries.starts.copied().flatten(), ("seq_q", seq_q))?;
        check_starts(op, "kv_starts", kv_starts.copied().flatten(), ("seq_kv", seq_kv))
    }
}

/// A shape with ones in front, up to rank 4.
pub(super) fn to_rank_4(shape: &[usize]) -> [usize; 4] {
    let mut padded = [1; 4];
    padded[4 - shape.len()..].copy_from_slice(shape);
    padded
}

/// A rule whose tensors fit scores of these sizes.
pub(super) struct Checked {
    rule: ScoreRule,
    seq_q: usize,
    seq_kv: usize,
    sequences: usize,
    bias: Option<Dtype>,
    mask_strides: [usize; 4],
    bias_strides: [usize; 4],
    mask_keys: usize,
    bias_keys: usize,
    slope_sequence: usize,
}

/// The fields that every kernel with a rule has in its params.
pub(super) struct RuleParams {
    pub band: Band,
    pub fill: f32,
    pub excluded: f32,
    pub softcap: f32,
    pub band_follows: u32,
    pub mask_keys: u32,
    pub bias_keys: u32,
    pub mask: [u32; 4],
    pub bias: [u32; 4],
    pub position: i32,
    pub slope_sequence: u32,
    pub sequences: u32,
}

impl Checked {
    /// Checks options and tensors in the name of `op`. Scores are `[batch, heads, seq_q, seq_kv]`, the batch that of the queries.
    pub fn new(op: &'static str, rule: ScoreRule, scores: [usize; 4], tensors: &[TensorDesc]) -> Result<Self> {
        rule.validate(op)?;
        let Tensors { mask, bias, lengths, slopes, queries, kv_starts } = rule.split(tensors);
        if let Some(mask) = mask.filter(|mask| mask.dtype != Dtype::Bool) {
            return Err(Error::shape(op, format!("the boolean mask is {mask}; a float mask is a bias")));
        }
        if let Some(bias) = bias.filter(|bias| !bias.dtype.is_device_float()) {
            return Err(Error::shape(op, format!("the bias is {bias}, it must be f32 or f16")));
        }
        let sequences = queries.sequences(op, scores[0])?;
        if let (Some(kv_starts), Some(q_starts)) = (kv_starts, queries.starts)
            && sequences_between(op, "kv_starts", kv_starts)? != sequences
        {
            return Err(Error::shape(op, format!("kv_starts is {kv_starts}, q_starts is {q_starts}")));
        }
        if let Some(lengths) = lengths {
            check_lengths(op, "kv_lengths", lengths, sequences)?;
        }
        let strides = |role: &str, desc: Option<&TensorDesc>| match desc {
            None => Ok(([0; 4], scores[3])),
            Some(desc) => broadcast_strides(&desc.shape, scores).ok_or_else(|| {
                Error::shape(op, format!("{role} {:?} does not broadcast to scores {scores:?}", desc.shape))
            }),
        };
        let (mask_strides, mask_keys) = strides("mask", mask)?;
        let (bias_strides, bias_keys) = strides("bias", bias)?;
        let [_, heads, seq_q, seq_kv] = scores;
        let slope_sequence = slopes.map_or(Ok(0), |desc| slope_stride(op, desc, [sequences, heads]))?;
        let bias = bias.map(|bias| bias.dtype);
        Ok(Self {
            rule,
            seq_q,
            seq_kv,
            sequences,
            bias,
            mask_strides,
            bias_strides,
            mask_keys,
            bias_keys,
            slope_sequence,
        })
    }

    /// How many sequences there are: batch elements, or packed ones.
    pub fn sequences(&self) -> usize {
        self.sequences
    }

    /// Refuses keys of another batch than the sequences have, in the name of `op`.
    pub fn check_key_batch(&self, op: &'static str, kv_batch: usize) -> Result<()> {
        let (wanted, why) = match (self.rule.has_q_starts, self.rule.has_kv_starts) {
            (_, true) => (1, format!("kv_starts divides a batch of 1, the key has batch {kv_batch}")),
            (true, false) => {
                (self.sequences, format!("key has batch {kv_batch}, q_starts has {} sequences", self.sequences))
            }
            (false, false) => (self.sequences, format!("key has batch {kv_batch}, query has {}", self.sequences)),
        };
        if kv_batch == wanted { Ok(()) } else { Err(Error::shape(op, why)) }
    }

    /// Whether every query looks at every key, so that no weight is zero on purpose.
    pub fn sees_all(&self) -> bool {
        let rule = ScoreRule { has_slopes: false, ..self.rule };
        self.full_band() && rule.tensors() == 0
    }

    /// The band that a kernel's loop over the keys may keep to, in sequences as long as the tensors.
    pub fn visit(&self) -> Band {
        self.visits(self.band())
    }

    fn visits(&self, band: Band) -> Band {
        match self.rule.masking.fill {
            Fill::Exclude => band,
            Fill::Assign(_) => Band::FULL,
        }
    }

    /// The same for native kernels; `tensors` are those that follow the op's own.
    pub fn native<'a>(&self, tensors: &[View<'a>]) -> native::Masking<'a> {
        let Tensors { mask, bias, lengths, slopes, queries, kv_starts } = self.rule.split(tensors);
        let u32s = |view: &View<'a>| -> &'a [u32] { bytemuck::cast_slice(view.bytes) };
        let (strides, keys) = (self.mask_strides, self.mask_keys);
        let bool_mask = mask.map(|mask| native::Dense { data: mask.bytes, strides, keys });
        let (strides, keys) = (self.bias_strides, self.bias_keys);
        let packed = |starts| native::Packed { q_starts: u32s(starts), kv_starts: kv_starts.map(u32s) };
        native::Masking {
            softcap: self.rule.softcap,
            q_lengths: queries.lengths.map(u32s),
            lengths: lengths.map(u32s),
            packed: queries.starts.map(packed),
            bounds: self.rule.masking.bounds(),
            slopes: slopes.map(|slopes| native::Slopes {
                data: bytemuck::cast_slice(slopes.bytes),
                strides: [self.slope_sequence, 1],
                position: self.rule.masking.position(),
            }),
            bool_mask,
            bias: bias.map(|bias| native::Dense { data: Elements::of(bias), strides, keys }),
            fill: self.rule.masking.fill,
        }
    }

    /// Library files and constants; the tensors' bindings are added to the inputs.
    pub fn link(&self, bindings: &mut Bindings) -> (Vec<Source>, Vec<(&'static str, Constant)>) {
        let rule = &self.rule;
        let allow = match (rule.has_mask, self.full_band()) {
            (true, _) => ALLOW_DENSE,
            (false, false) => ALLOW_BAND,
            (false, true) => ALLOW_ALL,
        };
        let keys = match (rule.has_lengths, rule.has_kv_starts) {
            (_, true) => KEYS_PACKED,
            (true, false) => KEYS_LENGTHS,
            (false, false) => KEYS_ALL,
        };
        bindings.inputs.extend(rule.has_mask.then_some(MASK_BINDING));
        bindings.inputs.extend(rule.has_bias.then_some(BIAS_BINDING));
        bindings.inputs.extend(rule.has_lengths.then_some(LENGTHS_BINDING));
        bindings.inputs.extend(rule.has_slopes.then_some(SLOPES_BINDING));
        let there = |has: bool| has.then_some(());
        let queries = Queries { lengths: there(rule.has_q_lengths), starts: there(rule.has_q_starts) }.link(bindings);
        bindings.inputs.extend(rule.has_kv_starts.then_some(KV_STARTS_BINDING));
        let libraries = vec![
            EXCLUDED,
            SEQUENCE,
            queries,
            keys,
            BAND_SHIFT,
            allow,
            if rule.has_slopes { SLOPES_DENSE } else { SLOPES_NONE },
            if rule.has_bias { BIAS_DENSE } else { BIAS_NONE },
            if rule.softcap.is_some() { SOFTCAP_TANH } else { SOFTCAP_NONE },
        ];
        (libraries, self.bias.map(|dtype| ("BiasElem", Constant::Scalar(dtype))).into_iter().collect())
    }

    /// The library file that divides the rows of one batch element among workgroups of `height` rows, and into how many parts at
    /// most.
    pub fn parts(&self, height: usize) -> (Source, usize) {
        match self.rule.has_q_starts {
            // Each sequence, and what lies before and behind all of them, may have one part that is not full.
            true => (PARTS_PACKED, self.seq_q / height + self.sequences + 2),
            false => (PARTS_EACH, self.seq_q.div_ceil(height)),
        }
    }

    pub fn params(&self) -> RuleParams {
        let position = self.rule.masking.position();
        RuleParams {
            band: self.own_band(),
            fill: match self.rule.masking.fill {
                Fill::Exclude => f32::NEG_INFINITY,
                Fill::Assign(value) => value,
            },
            excluded: f32::NEG_INFINITY,
            softcap: self.rule.softcap.unwrap_or(1.0),
            band_follows: u32::from(position.follows),
            mask_keys: index(self.mask_keys),
            bias_keys: index(self.bias_keys),
            mask: self.mask_strides.map(index),
            bias: self.bias_strides.map(index),
            position: position.at as i32,
            slope_sequence: index(self.slope_sequence),
            sequences: index(self.sequences),
        }
    }

    /// As [`Checked::visit`], before it moves with lengths.
    pub fn own_visit(&self) -> Band {
        self.visits(self.own_band())
    }

    /// The band where as many queries as keys exist. Both its ends follow lengths or neither does, as they count from one position.
    fn own_band(&self) -> Band {
        self.rule.masking.band(0, 0)
    }

    fn band(&self) -> Band {
        self.rule.masking.band(self.seq_q, self.seq_kv)
    }

    fn full_band(&self) -> bool {
        self.band().is_full(self.seq_q, self.seq_kv)
    }
}

/// Slopes from one sequence to the next.
fn slope_stride(op: &'static str, desc: &TensorDesc, [sequences, heads]: [usize; 2]) -> Result<usize> {
    match desc.shape[..] {
        [each] if desc.dtype == Dtype::F32 && each == heads => Ok(0),
        [all, each] if desc.dtype == Dtype::F32 && [all, each] == [sequences, heads] => Ok(heads),
        _ => Err(Error::shape(op, format!("slopes are {desc}, they must be f32 [{heads}] or [{sequences}, {heads}]"))),
    }
}

/// Elements from one position to the next along each axis of `scores`, zero where the mask has size 1; and the number of keys
/// that the mask covers, which may be fewer than there are.
fn broadcast_strides(shape: &[usize], scores: [usize; 4]) -> Option<([usize; 4], usize)> {
    if shape.len() > 4 {
        return None;
    }
    let shape = to_rank_4(shape);
    let mut strides = [0; 4];
    let mut step = 1;
    for axis in (0..4).rev() {
        if shape[axis] != 1 {
            let covers_some_keys = axis == 3 && shape[axis] < scores[axis];
            if shape[axis] != scores[axis] && !covers_some_keys {
                return None;
            }
            strides[axis] = step;
        }
        step *= shape[axis];
    }
    Some((strides, if shape[3] == 1 { scores[3] } else { shape[3] }))
}
