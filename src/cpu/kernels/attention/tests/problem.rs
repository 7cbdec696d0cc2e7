//! Problems for tests, and attention's definition in f64.

use super::random::Random;
use super::storage::{Order, Placed, Storage, Stored};
use crate::cpu::kernels::args::*;
use crate::cpu::kernels::attention::attention_on;
use crate::mask::{Bound, Bounds, Fill};
use pulp::Arch;

/// An owned problem. Masks, bias and slopes are as the kernel gets them, everything else is the definition's.
#[derive(Clone)]
pub struct Problem {
    pub shape: AttentionShape,
    pub scale: f32,
    /// Where it is not zero, rows lie in (batch, row, head) order, and each row's stride is larger by it.
    pub padding: usize,
    /// `[batch, heads, rows, width]`; the batch is 1 where sequences are packed.
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    pub q_storage: Storage,
    pub kv_storage: Storage,
    /// For each row, where keys and values are quantised.
    pub scales: [Vec<f32>; 2],
    /// Rows of a page.
    pub page_size: Option<usize>,
    pub softcap: Option<f32>,
    pub q_lengths: Option<Vec<u32>>,
    pub lengths: Option<Vec<u32>>,
    pub q_starts: Option<Vec<u32>>,
    pub kv_starts: Option<Vec<u32>>,
    pub bounds: Bounds,
    pub slopes: Option<(Vec<f32>, [usize; 2], Bound)>,
    pub bool_mask: Option<Dense<Vec<u8>>>,
    pub bias: Option<Dense<Vec<f32>>>,
    pub bias_storage: Storage,
    pub fill: Fill,
    pub sinks: Option<Vec<f32>>,
}

/// Output, `[batch, heads, seq_q, head_dim_v]`, and logarithms of the denominators.
pub struct Answer<T> {
    pub out: Vec<T>,
    pub log_sums: Vec<T>,
}

/// A sequence as the definition has it.
pub struct Sequence {
    pub queries: usize,
    pub keys: usize,
    pub kv_batch: usize,
    pub kv_row: usize,
}

impl Problem {
    /// As many batch elements of q and of k as there are sequences.
    pub fn new(random: &mut Random, shape: AttentionShape) -> Self {
        let AttentionShape { batch, heads, kv_heads, seq_q, seq_kv, head_dim, head_dim_v } = shape;
        Self {
            shape,
            scale: 1.0 / (head_dim.max(1) as f32).sqrt(),
            padding: 0,
            q: random.values(batch * heads * seq_q * head_dim),
            k: random.values(batch * kv_heads * seq_kv * head_dim),
            v: random.values(batch * kv_heads * seq_kv * head_dim_v),
            q_storage: Storage::F32,
            kv_storage: Storage::F32,
            scales: [Vec::new(), Vec::new()],
            page_size: None,
            softcap: None,
            q_lengths: None,
            lengths: None,
            q_starts: None,
            kv_starts: None,
            bounds: Bounds::NONE,
            slopes: None,
            bool_mask: None,
            bias: None,
            bias_storage: Storage::F32,
            fill: Fill::Exclude,
            sinks: None,
        }
    }

    pub fn q_batch(&self) -> usize {
        if self.q_starts.is_some() { 1 } else { self.shape.batch }
    }

    pub fn kv_batch(&self) -> usize {
        if self.kv_starts.is_some() { 1 } else { self.shape.batch }
    }

    pub fn sequence(&self, s: usize) -> Sequence {
        let AttentionShape { seq_q, seq_kv, .. } = self.shape;
        let clamped = |starts: &[u32], rows: usize| [s, s + 1].map(|s| rows.min(starts[s] as usize));
        let length = |lengths: &Option<Vec<u32>>, rows: usize| {
            lengths.as_ref().map_or(rows, |lengths| rows.min(lengths[s] as usize))
        };
        let queries = match &self.q_starts {
            None => length(&self.q_lengths, seq_q),
            Some(starts) => {
                let [first, end] = clamped(starts, seq_q);
                end.saturating_sub(first)
            }
        };
        let (keys, kv_batch, kv_row) = match &self.kv_starts {
            None => (length(&self.lengths, seq_kv), s, 0),
            Some(starts) => {
                let [first, end] = clamped(starts, seq_kv);
                (end.saturating_sub(first), 0, first)
            }
        };
        Sequence { queries, keys, kv_batch, kv_row }
    }

    /// Sequence and query of a row of q.
    fn query(&self, b: usize, row: usize) -> Option<(usize, usize)> {
        match &self.q_starts {
            None => (row < self.sequence(b).queries).then_some((b, row)),
            Some(starts) => {
                let s = (0..self.shape.batch).find(|&s| (starts[s] as usize..starts[s + 1] as usize).contains(&row))?;
                Some((s, row - starts[s] as usize))
            }
        }
    }

    /// The definition. NaN in a key or value that a row does not see is never touched.
    pub fn reference(&self) -> Answer<f64> {
        let AttentionShape { heads, kv_heads, seq_q, seq_kv, head_dim, head_dim_v, .. } = self.shape;
        let mut answer = Answer { out: Vec::new(), log_sums: Vec::new() };
        for (b, h, r) in (0..self.q_batch() * heads * seq_q).map(|r| (r / seq_q / heads, r / seq_q % heads, r % seq_q))
        {
            let mut row = vec![0.0; head_dim_v];
            let Some((s, i)) = self.query(b, r) else {
                answer.out.extend(row);
                answer.log_sums.push(f64::NEG_INFINITY);
                continue;
            };
            let sequence = self.sequence(s);
            let first_key = (sequence.kv_batch * kv_heads + h / (heads / kv_heads)) * seq_kv + sequence.kv_row;
            let query = &self.q[((b * heads + h) * seq_q + r) * head_dim..][..head_dim];
            let scores = (0..sequence.keys).map(|j| {
                let key = || &self.k[(first_key + j) * head_dim..][..head_dim];
                let dot = || query.iter().zip(key()).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
                self.score(&sequence, [s, h, i, j], [b, h, r, sequence.kv_row + j], dot)
            });
            let scores: Vec<Option<f64>> = scores.collect();
            let sink = self.sinks.as_ref().map_or(f64::NEG_INFINITY, |sinks| f64::from(sinks[h]));
            let max = scores.iter().flatten().copied().fold(sink, f64::max);
            let mut sum = if sink == f64::NEG_INFINITY { 0.0 } else { (sink - max).exp() };
            for (j, score) in scores.iter().enumerate() {
                let Some(score) = score else { continue };
                let weight = (score - max).exp();
                sum += weight;
                for (x, &v) in row.iter_mut().zip(&self.v[(first_key + j) * head_dim_v..]) {
                    *x += weight * f64::from(v);
                }
            }
            answer.out.extend(row.iter().map(|x| if sum == 0.0 { 0.0 } else { x / sum }));
            answer.log_sums.push(if sum == 0.0 { f64::NEG_INFINITY } else { max + sum.ln() });
        }
        answer
    }

    /// What goes into the softmax, if anything does, given the product of query and key. These are given in their
    /// sequence and in the tensors.
    fn score(
        &self,
        sequence: &Sequence,
        [s, h, i, j]: [usize; 4],
        [b, _, row, key]: [usize; 4],
        dot: impl Fn() -> f64,
    ) -> Option<f64> {
        let at = |s: [usize; 4]| b * s[0] + h * s[1] + row * s[2] + key * s[3];
        let more_keys = sequence.keys as i64 - sequence.queries as i64;
        let place = |bound: Bound| bound.at + if bound.follows { more_keys } else { 0 };
        let distance = j as i64 - i as i64;
        let hidden = self.bounds.upper.is_some_and(|upper| distance > place(upper))
            || self.bounds.lower.is_some_and(|lower| distance < place(lower))
            || self.bool_mask.as_ref().is_some_and(|mask| key >= mask.keys || mask.data[at(mask.strides)] == 0);
        if hidden {
            return match self.fill {
                Fill::Exclude => None,
                Fill::Assign(value) => Some(f64::from(value)),
            };
        }
        let bias = match &self.bias {
            None => 0.0,
            Some(bias) if key >= bias.keys => f32::NEG_INFINITY,
            Some(bias) => bias.data[at(bias.strides)],
        };
        if bias == f32::NEG_INFINITY {
            return None;
        }
        let score = dot() * f64::from(self.scale);
        // A bias near f32::MIN swallows the score in f32, and so it must here.
        if bias < -1e30 && !score.is_nan() {
            return Some(f64::from(bias));
        }
        let capped = self.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh());
        let penalty = self.slopes.as_ref().map_or(0.0, |(slopes, strides, position)| {
            f64::from(slopes[s * strides[0] + h * strides[1]]) * (distance - place(*position)).abs() as f64
        });
        Some(capped - penalty + f64::from(bias))
    }

    pub fn run(&self, arch: Arch) -> Answer<f32> {
        let AttentionShape { heads, kv_heads, seq_q, seq_kv, head_dim, head_dim_v, .. } = self.shape;
        let q_order = Order { storage: self.q_storage, padding: self.padding, page_size: None };
        let kv_order = Order { storage: self.kv_storage, padding: self.padding, page_size: self.page_size };
        let rows = [self.q_batch(), heads, seq_q];
        let [q_sizes, out_sizes] = [head_dim, head_dim_v].map(|width| [rows[0], heads, seq_q, width]);
        let [k_sizes, v_sizes] = [head_dim, head_dim_v].map(|width| [self.kv_batch(), kv_heads, seq_kv, width]);
        let q = Placed::new(&self.q, &[], q_sizes, q_order);
        let k = Placed::new(&self.k, &self.scales[0], k_sizes, kv_order);
        let v = Placed::new(&self.v, &self.scales[1], v_sizes, kv_order);
        let strides = Placed::new(&[], &[], out_sizes, q_order).strides;
        let len = rows[0] * strides[0] + 3;
        let mut out = Stored::new(&vec![GUARD; len], self.q_storage);
        let mut log_sums = vec![GUARD; rows.iter().product()];
        let bias = Stored::new(self.bias.as_ref().map_or(&[], |bias| bias.data.as_slice()), self.bias_storage);
        let table = self.wild_table(&k);
        let args = AttentionArgs {
            shape: self.shape,
            scale: self.scale,
            q: q.operand(&[]),
            k: k.operand(&table),
            v: v.operand(&table),
            masking: self.masking(bias.elements()),
            sinks: self.sinks.as_deref(),
            share: Share::WHOLE,
        };
        attention_on(arch, &args, out.elements_mut(), strides, Some(&mut log_sums));
        let (data, guard) = (out.elements(), GUARD);
        let mut of_rows = vec![false; len];
        let mut answer = Vec::new();
        for row in 0..log_sums.len() {
            let at = [row / seq_q / heads, row / seq_q % heads, row % seq_q];
            let offset: usize = at.iter().zip(strides).map(|(at, stride)| at * stride).sum();
            of_rows[offset..][..head_dim_v].fill(true);
            answer.extend((offset..offset + head_dim_v).map(|index| data.get(index)));
        }
        assert!((0..len).all(|index| of_rows[index] || data.get(index) == guard), "wrote between rows");
        Answer { out: answer, log_sums }
    }

    /// The table, with the last page under many names, and with anything for pages that no key is in.
    fn wild_table(&self, keys: &Placed) -> Vec<u32> {
        let Some(size) = self.page_size else { return Vec::new() };
        let per_sequence = self.shape.seq_kv / size;
        let wild = |(entry, &page): (usize, &u32)| {
            let past_the_end = entry % per_sequence * size >= self.sequence(entry / per_sequence).keys;
            let last = page as usize + 1 == keys.page_count();
            if past_the_end || last { u32::MAX - entry as u32 } else { page }
        };
        keys.table.iter().enumerate().map(wild).collect()
    }

    pub fn masking<'a>(&'a self, bias: Elements<'a>) -> Masking<'a> {
        let packed = |q_starts| Packed { q_starts, kv_starts: self.kv_starts.as_deref() };
        let slopes = |(data, strides, position): &'a (Vec<f32>, [usize; 2], Bound)| Slopes {
            data,
            strides: *strides,
            position: *position,
        };
        Masking {
            softcap: self.softcap,
            q_lengths: self.q_lengths.as_deref(),
            lengths: self.lengths.as_deref(),
            packed: self.q_starts.as_deref().map(packed),
            bounds: self.bounds,
            slopes: self.slopes.as_ref().map(slopes),
            bool_mask: self.bool_mask.as_ref().map(|mask| mask.with(mask.data.as_slice())),
            bias: self.bias.as_ref().map(|mask| mask.with(bias)),
            fill: self.fill,
        }
    }

    pub fn check(&self, arch: Arch) {
        self.compare(&self.run(arch));
    }

    /// f32 within 4e-6 of the largest value: the sum of 256 products of numbers below one errs by about 1e-6. Scores
    /// far from zero are rounded more.
    pub fn compare(&self, got: &Answer<f32>) {
        let want = self.reference();
        let slope =
            self.slopes.iter().flat_map(|(slopes, ..)| slopes).fold(0.0, |max: f32, slope| max.max(slope.abs()));
        let distance = self.shape.seq_q + 2 * self.shape.seq_kv + 100;
        let error = 4e-6 + 1.2e-7 * f64::from(slope) * distance as f64;
        self.compare_numbers("output", &got.out, &want.out, error + self.q_storage.error());
        self.compare_numbers("log-sum-exp", &got.log_sums, &want.log_sums, error);
    }

    fn compare_numbers(&self, what: &str, got: &[f32], want: &[f64], tolerance: f64) {
        assert_eq!(got.len(), want.len());
        for (index, (&got, &want)) in got.iter().zip(want).enumerate() {
            let same = if want.is_finite() {
                (f64::from(got) - want).abs() <= tolerance * want.abs().max(1.0)
            } else {
                got.is_nan() == want.is_nan() && (got.is_nan() || f64::from(got) == want)
            };
            assert!(same, "{:?}: {what}[{index}] is {got}, not {want}", self.options());
        }
    }

    /// What a failure prints.
    fn options(&self) -> impl std::fmt::Debug {
        let dense = [self.bool_mask.as_ref().map(|mask| mask.keys), self.bias.as_ref().map(|bias| bias.keys)];
        let lengths = [&self.q_lengths, &self.lengths, &self.q_starts, &self.kv_starts].map(Clone::clone);
        let storage = [self.q_storage, self.kv_storage, self.bias_storage];
        let others = (self.sinks.clone(), self.slopes.clone(), storage, self.page_size, self.padding);
        (self.shape, self.softcap, lengths, self.bounds, dense, self.fill, others)
    }
}

/// What is where nothing is to be written.
const GUARD: f32 = 768.0;

/// All of a mask but its elements.
impl<T> Dense<T> {
    fn with<U>(&self, data: U) -> Dense<U> {
        Dense { data, strides: self.strides, keys: self.keys }
    }
}

/// Every instruction set of this machine.
pub fn archs() -> Vec<Arch> {
    let mut archs = vec![Arch::Scalar, Arch::new()];
    #[cfg(target_arch = "x86_64")]
    archs.extend(pulp::x86::V3::try_new().map(Arch::V3));
    archs
}

pub fn shape(heads: [usize; 3], seq: [usize; 2], dims: [usize; 2]) -> AttentionShape {
    let [batch, heads, kv_heads] = heads;
    AttentionShape { batch, heads, kv_heads, seq_q: seq[0], seq_kv: seq[1], head_dim: dims[0], head_dim_v: dims[1] }
}

/// A distance that lengths do not move.
pub fn at(distance: i64) -> Option<Bound> {
    Some(Bound { at: distance, follows: false })
}
