//! Random problems over all options.

use super::problem::{Problem, shape};
use super::storage::Storage;
use crate::cpu::kernels::args::{AttentionShape, Dense};
use crate::mask::{Bound, Fill};

/// xorshift, Marsaglia 2003.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % below
    }

    /// True once in `times`.
    pub fn one_in(&mut self, times: usize) -> bool {
        self.next(times) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.next(from.len())]
    }

    pub fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.next(20_001) as f32 * 1e-4 - 1.0).collect()
    }

    /// Lengths up to and beyond `rows`.
    fn lengths(&mut self, count: usize, rows: usize) -> Vec<u32> {
        let mut length = || if self.one_in(20) { u32::MAX } else { self.next(rows + 3) as u32 };
        (0..count).map(|_| length()).collect()
    }

    /// Starts that do not decrease, and may leave rows at both ends and some beyond the end.
    fn starts(&mut self, count: usize, rows: usize) -> Vec<u32> {
        let mut starts: Vec<u32> = (0..=count).map(|_| self.next(rows + 2) as u32).collect();
        starts.sort_unstable();
        if self.one_in(2) {
            (starts[0], starts[count]) = (0, rows as u32);
        }
        starts
    }

    fn distance(&mut self, span: usize) -> Bound {
        Bound { at: self.next(2 * span) as i64 - span as i64, follows: self.one_in(2) }
    }
}

/// A problem of plain tensors around the sizes of tiles and vectors.
pub fn random_sizes(random: &mut Random) -> Problem {
    let lengths = [1, 2, 3, 7, 8, 9, 15, 16, 17, 33, 48, 49, 129];
    let dims = [1, 3, 5, 8, 16, 40, 64, 80, 128, 256];
    let heads = random.pick(&[[1, 1, 1], [2, 3, 3], [1, 4, 2], [2, 6, 1], [1, 8, 2]]);
    let seq = [random.pick(&lengths), random.pick(&[1, 5, 16, 33, 127, 128, 129, 300])];
    let same = random.pick(&dims);
    let dims = [same, random.pick(&[same, same, 24, 7])];
    Problem::new(random, shape(heads, seq, dims))
}

/// Many of these take no time.
pub fn small_sizes(random: &mut Random) -> AttentionShape {
    let heads = random.pick(&[[1, 1, 1], [2, 2, 2], [3, 4, 2], [2, 3, 1], [5, 2, 1]]);
    let seq = [1 + random.next(24), 1 + random.next(40)];
    let dims = random.pick(&[[1, 1], [4, 4], [8, 8], [16, 16], [5, 3], [16, 24], [20, 7]]);
    shape(heads, seq, dims)
}

/// A problem of these sizes with each option, or none, in every combination.
pub fn random_options(random: &mut Random, mut shape: AttentionShape) -> Problem {
    let page_size = if random.one_in(3) { Some(random.pick(&[1, 4, 16, 128])) } else { None };
    if let Some(size) = page_size {
        shape.seq_kv = shape.seq_kv.next_multiple_of(size);
    }
    let mut problem = Problem::new(random, shape);
    problem.page_size = page_size;
    with_random_lengths(&mut problem, random);
    with_random_storage(&mut problem, random);
    with_random_masks(&mut problem, random);
    if random.one_in(3) {
        problem.sinks = Some(random.values(shape.heads));
        let head = random.next(shape.heads);
        problem.sinks.as_mut().unwrap()[head] = random.pick(&[f32::NEG_INFINITY, 5.0, -20.0]);
    }
    if random.one_in(3) {
        poison_at_random(&mut problem, random);
    }
    problem
}

/// Lengths, or packed sequences, and NaN in rows that are then not there.
fn with_random_lengths(problem: &mut Problem, random: &mut Random) {
    let AttentionShape { batch, heads, kv_heads, seq_q, seq_kv, head_dim, head_dim_v } = problem.shape;
    let packed = random.one_in(3);
    if packed {
        problem.q_starts = Some(random.starts(batch, seq_q));
        problem.q.truncate(heads * seq_q * head_dim);
    } else if random.one_in(3) {
        problem.q_lengths = Some(random.lengths(batch, seq_q));
    }
    if packed && problem.page_size.is_none() && random.one_in(2) {
        let mut starts = random.starts(batch, seq_kv);
        if random.one_in(4) {
            starts.reverse();
            starts.swap(0, batch / 2);
        }
        problem.kv_starts = Some(starts);
        problem.k.truncate(kv_heads * seq_kv * head_dim);
        problem.v.truncate(kv_heads * seq_kv * head_dim_v);
    } else if random.one_in(2) {
        problem.lengths = Some(random.lengths(batch, seq_kv));
    }
    let mut exists = vec![false; problem.kv_batch() * seq_kv];
    for s in 0..batch {
        let sequence = problem.sequence(s);
        exists[sequence.kv_batch * seq_kv + sequence.kv_row..][..sequence.keys].fill(true);
    }
    for row in (0..problem.kv_batch() * kv_heads * seq_kv)
        .filter(|row| !exists[row / seq_kv / kv_heads * seq_kv + row % seq_kv])
    {
        problem.k[row * head_dim..][..head_dim].fill(f32::NAN);
        problem.v[row * head_dim_v..][..head_dim_v].fill(f32::NAN);
    }
}

/// Precision and order of the tensors.
fn with_random_storage(problem: &mut Problem, random: &mut Random) {
    use Storage::{BF16, F16, F32, I8};
    problem.padding = random.pick(&[0, 0, 3]);
    problem.q_storage = random.pick(&[F32, F32, F16, BF16]);
    problem.kv_storage = random.pick(&[F32, F32, F16, BF16, I8]);
    problem.bias_storage = random.pick(&[F32, F16, BF16]);
    problem.store();
}

impl Problem {
    /// Rounds q, k and v to what their storage can hold.
    pub fn store(&mut self) {
        self.q.iter_mut().for_each(|x| *x = self.q_storage.round(*x));
        let widths = [self.shape.head_dim, self.shape.head_dim_v];
        for (data, (scales, width)) in [&mut self.k, &mut self.v].into_iter().zip(self.scales.iter_mut().zip(widths)) {
            data.iter_mut().for_each(|x| *x = self.kv_storage.round(*x));
            if self.kv_storage != Storage::I8 || width == 0 {
                continue;
            }
            for row in data.chunks_exact_mut(width) {
                let scale = row.iter().fold(0.0, |max: f32, x| if x.is_nan() { *x } else { max.max(x.abs()) }) / 127.0;
                scales.push(scale);
                let level = |x: f32| if scale > 0.0 { (x / scale).round_ties_even() } else { 0.0 };
                row.iter_mut().for_each(|x| *x = level(*x) * scale);
            }
        }
    }

    /// Strides of a contiguous mask over `keys` keys that broadcasts along the axes whose bit in `kept` is clear, and
    /// its length.
    fn mask_strides(&self, kept: usize, keys: usize) -> ([usize; 4], usize) {
        let sizes = [self.q_batch(), self.shape.heads, self.shape.seq_q, keys];
        let (mut strides, mut len) = ([0; 4], 1);
        for axis in (0..4).rev().filter(|axis| kept >> axis & 1 == 1) {
            strides[axis] = len;
            len *= sizes[axis];
        }
        (strides, len)
    }

    pub fn add_bool_mask(&mut self, random: &mut Random, kept: usize, keys: usize) {
        let (strides, len) = self.mask_strides(kept, keys);
        // Now and then whole rows or blocks are hidden.
        let kinds: &[u8] = if random.one_in(4) { &[0, 0, 0, 0, 0, 0, 0, 1] } else { &[0, 1, 1, 255] };
        let data = (0..len).map(|_| random.pick(kinds)).collect();
        self.bool_mask = Some(Dense { data, strides, keys });
    }

    fn add_bias(&mut self, random: &mut Random, kept: usize, keys: usize) {
        let lowest = random.pick(&[-2.0, f32::NEG_INFINITY, f32::MIN]);
        let (strides, len) = self.mask_strides(kept, keys);
        let mut data = random.values(len);
        for x in &mut data {
            *x = self.bias_storage.round(if random.one_in(4) { lowest } else { *x });
        }
        self.bias = Some(Dense { data, strides, keys });
    }
}

/// Everything that changes a score.
pub fn with_random_masks(problem: &mut Problem, random: &mut Random) {
    let AttentionShape { batch, heads, seq_kv, .. } = problem.shape;
    problem.softcap = random.pick(&[None, None, Some(0.3), Some(30.0)]);
    problem.bounds.upper = random.one_in(2).then(|| random.distance(20));
    problem.bounds.lower = random.one_in(3).then(|| random.distance(60));
    if random.one_in(3) {
        let strides = random.pick(&[[0, 1], [heads, 1]]);
        let slopes = random.values(batch * heads).iter().map(|slope| slope * 0.25).collect();
        problem.slopes = Some((slopes, strides, random.distance(10)));
    }
    if random.one_in(3) {
        let (kept, keys) = (random.next(16), random.pick(&[seq_kv, seq_kv, seq_kv / 2, 0]));
        problem.add_bool_mask(random, kept, keys);
    }
    if random.one_in(3) {
        let (kept, keys) = (random.next(16), random.pick(&[seq_kv, seq_kv, seq_kv - 1, seq_kv / 3]));
        problem.add_bias(random, kept, keys);
    }
    problem.fill = random.pick(&[Fill::Exclude, Fill::Exclude, Fill::Assign(-1e9), Fill::Assign(0.5)]);
}

/// NaN in some keys and values that exist; rows that may not see them must not.
fn poison_at_random(problem: &mut Problem, random: &mut Random) {
    let widths = [problem.shape.head_dim, problem.shape.head_dim_v];
    for (tensor, data) in [&mut problem.k, &mut problem.v].into_iter().enumerate() {
        let width = widths[tensor];
        if random.one_in(2) {
            continue;
        }
        for _ in 0..2 {
            let row = random.next(data.len() / width);
            let one = random.next(width);
            if problem.kv_storage == Storage::I8 {
                problem.scales[tensor][row] = f32::NAN;
                data[row * width..][..width].fill(f32::NAN);
            }
            data[row * width + one] = f32::NAN;
        }
    }
}
