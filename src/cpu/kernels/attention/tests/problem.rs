//! Problems for tests, and attention's definition in f64.

use crate::cpu::kernels::args::*;
use crate::cpu::kernels::attention::attention_on;
use crate::mask::{Band, Fill};
use half::f16;
use pulp::Arch;

/// xorshift, Marsaglia 2003.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % below
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.next(from.len())]
    }

    pub fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.next(20_001) as f32 * 1e-4 - 1.0).collect()
    }
}

/// An owned problem. Where `padding`, added to each row's stride, is not zero, rows lie in (batch, row, head) order.
#[derive(Clone)]
pub struct Problem {
    pub shape: AttentionShape,
    pub scale: f32,
    pub padding: usize,
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    pub softcap: Option<f32>,
    pub lengths: Option<Vec<u32>>,
    /// Least and greatest `j - i`.
    pub lower: Option<isize>,
    pub upper: Option<isize>,
    pub anchor: BandAnchor,
    pub bool_mask: Option<Dense<Vec<u8>>>,
    pub bias: Option<Dense<Vec<f32>>>,
    pub fill: Fill,
}

impl Problem {
    pub fn new(random: &mut Random, shape: AttentionShape) -> Self {
        let AttentionShape { batch, heads, kv_heads, seq_q, seq_kv, head_dim, head_dim_v } = shape;
        Self {
            shape,
            scale: 1.0 / (head_dim.max(1) as f32).sqrt(),
            padding: 0,
            q: random.values(batch * heads * seq_q * head_dim),
            k: random.values(batch * kv_heads * seq_kv * head_dim),
            v: random.values(batch * kv_heads * seq_kv * head_dim_v),
            softcap: None,
            lengths: None,
            lower: None,
            upper: None,
            anchor: BandAnchor::Fixed,
            bool_mask: None,
            bias: None,
            fill: Fill::Exclude,
        }
    }

    /// Strides of a contiguous mask over `keys` keys that broadcasts along the axes whose bit in `kept` is clear, and
    /// its length.
    fn mask_strides(&self, kept: usize, keys: usize) -> ([usize; 4], usize) {
        let sizes = [self.shape.batch, self.shape.heads, self.shape.seq_q, keys];
        let (mut strides, mut len) = ([0; 4], 1);
        for axis in (0..4).rev().filter(|axis| kept >> axis & 1 == 1) {
            strides[axis] = len;
            len *= sizes[axis];
        }
        (strides, len)
    }

    pub fn with_bool_mask(mut self, random: &mut Random, kept: usize, keys: usize) -> Self {
        let (strides, len) = self.mask_strides(kept, keys);
        let data = (0..len).map(|_| random.pick(&[0, 1, 1, 255])).collect();
        self.bool_mask = Some(Dense { data, strides, keys });
        self
    }

    pub fn with_bias(mut self, random: &mut Random, kept: usize, keys: usize, lowest: f32) -> Self {
        let (strides, len) = self.mask_strides(kept, keys);
        let mut data = random.values(len);
        for x in &mut data {
            if random.next(4) == 0 {
                *x = lowest;
            }
        }
        self.bias = Some(Dense { data, strides, keys });
        self
    }

    /// The definition. NaN in a key or value that a row does not see is never touched.
    pub fn reference(&self) -> Vec<f64> {
        let AttentionShape { batch, heads, kv_heads, seq_q, seq_kv, head_dim, head_dim_v } = self.shape;
        let mut out = Vec::new();
        for (b, h, i) in (0..batch * heads * seq_q).map(|r| (r / seq_q / heads, r / seq_q % heads, r % seq_q)) {
            let kv = b * kv_heads + h / (heads / kv_heads);
            let query = &self.q[((b * heads + h) * seq_q + i) * head_dim..][..head_dim];
            let scores: Vec<Option<f64>> = (0..seq_kv)
                .map(|j| {
                    let key = || &self.k[(kv * seq_kv + j) * head_dim..][..head_dim];
                    self.score([b, h, i, j], || {
                        query.iter().zip(key()).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
                    })
                })
                .collect();
            let max = scores.iter().flatten().copied().fold(f64::NEG_INFINITY, f64::max);
            let (mut sum, mut row) = (0.0, vec![0.0; head_dim_v]);
            for (j, score) in scores.iter().enumerate() {
                let Some(score) = score else { continue };
                let weight = (score - max).exp();
                sum += weight;
                for (x, &v) in row.iter_mut().zip(&self.v[(kv * seq_kv + j) * head_dim_v..]) {
                    *x += weight * f64::from(v);
                }
            }
            out.extend(row.iter().map(|x| if sum == 0.0 { 0.0 } else { x / sum }));
        }
        out
    }

    /// What goes into the softmax, if anything does, given the product of query and key.
    fn score(&self, [b, h, i, j]: [usize; 4], dot: impl Fn() -> f64) -> Option<f64> {
        let seq_kv = self.shape.seq_kv;
        let length = self.lengths.as_ref().map_or(seq_kv, |lengths| seq_kv.min(lengths[b] as usize));
        if j >= length {
            return None;
        }
        let at = |s: [usize; 4]| b * s[0] + h * s[1] + i * s[2] + j * s[3];
        let moved = if self.anchor == BandAnchor::Length { length as isize - seq_kv as isize } else { 0 };
        let distance = j as isize - i as isize - moved;
        let hidden = self.upper.is_some_and(|upper| distance > upper)
            || self.lower.is_some_and(|lower| distance < lower)
            || self.bool_mask.as_ref().is_some_and(|mask| j >= mask.keys || mask.data[at(mask.strides)] == 0);
        if hidden {
            return match self.fill {
                Fill::Exclude => None,
                Fill::Assign(value) => Some(f64::from(value)),
            };
        }
        let bias = match &self.bias {
            None => 0.0,
            Some(bias) if j >= bias.keys => f32::NEG_INFINITY,
            Some(bias) => bias.data[at(bias.strides)],
        };
        if bias == f32::NEG_INFINITY {
            return None;
        }
        // A bias near f32::MIN swallows the score in f32, and so it must here.
        if bias < -1e30 {
            return Some(f64::from(bias));
        }
        let score = dot() * f64::from(self.scale);
        let capped = self.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh());
        Some(capped + f64::from(bias))
    }

    /// Strides and a strided copy of `[batch, heads, rows, width]` data.
    fn lay_out(&self, data: &[f32], [batch, heads, rows, width]: [usize; 4]) -> (Vec<f32>, [usize; 3]) {
        if self.padding == 0 {
            return (data.to_vec(), [heads * rows * width, rows * width, width]);
        }
        let row = heads * width + self.padding;
        let mut strided = vec![f32::NAN; batch * rows * row];
        for (index, values) in data.chunks(width.max(1)).enumerate() {
            let (b, h, i) = (index / rows / heads, index / rows % heads, index % rows);
            strided[(b * rows + i) * row + h * width..][..values.len()].copy_from_slice(values);
        }
        (strided, [rows * row, width, row])
    }

    pub fn run(&self, arch: Arch, half: bool) -> Vec<f32> {
        let AttentionShape { batch, heads, kv_heads, seq_q, seq_kv, head_dim, head_dim_v } = self.shape;
        let (q, q_strides) = self.lay_out(&self.q, [batch, heads, seq_q, head_dim]);
        let (k, k_strides) = self.lay_out(&self.k, [batch, kv_heads, seq_kv, head_dim]);
        let (v, v_strides) = self.lay_out(&self.v, [batch, kv_heads, seq_kv, head_dim_v]);
        let empty = vec![f32::NAN; batch * heads * seq_q * head_dim_v];
        let (mut out, out_strides) = self.lay_out(&empty, [batch, heads, seq_q, head_dim_v]);
        let guard = out.len();
        out.extend([777.0; 3]);
        let bias = self.bias.as_ref().map_or(Vec::new(), |bias| bias.data.clone());
        let halves = [&q, &k, &v, &bias, &out].map(|x| to_half(x));
        let mut half_out = halves[4].clone();
        let pick = |single, index: usize| {
            if half { Elements::F16(&halves[index]) } else { Elements::F32(single) }
        };
        let args = AttentionArgs {
            shape: self.shape,
            scale: self.scale,
            q: Operand { data: pick(&q, 0), strides: q_strides },
            k: Operand { data: pick(&k, 1), strides: k_strides },
            v: Operand { data: pick(&v, 2), strides: v_strides },
            masking: self.masking(pick(&bias, 3)),
        };
        if half {
            attention_on(arch, &args, ElementsMut::F16(&mut half_out), out_strides);
            out = half_out.iter().map(|x| x.to_f32()).collect();
        } else {
            attention_on(arch, &args, ElementsMut::F32(&mut out), out_strides);
        }
        assert_eq!(out[guard..], [777.0; 3]);
        let at = |r: usize, c: usize| {
            let [b, h, i] = [r / seq_q / heads, r / seq_q % heads, r % seq_q];
            out[b * out_strides[0] + h * out_strides[1] + i * out_strides[2] + c]
        };
        (0..batch * heads * seq_q).flat_map(|r| (0..head_dim_v).map(move |c| (r, c))).map(|(r, c)| at(r, c)).collect()
    }

    pub fn masking<'a>(&'a self, bias: Elements<'a>) -> Masking<'a> {
        let full = Band::FULL;
        let bound = |bound: Option<isize>, none| bound.map_or(none, |bound| bound as i64);
        Masking {
            softcap: self.softcap,
            lengths: self.lengths.as_deref(),
            band: Band { lower: bound(self.lower, full.lower), upper: bound(self.upper, full.upper) },
            band_anchor: self.anchor,
            bool_mask: self.bool_mask.as_ref().map(|mask| mask.with(mask.data.as_slice())),
            bias: self.bias.as_ref().map(|mask| mask.with(bias)),
            fill: self.fill,
        }
    }

    /// f32 within 4e-6 of the largest value: the sum of 256 products of numbers below one errs by about 1e-6.
    pub fn check(&self, arch: Arch) {
        self.compare(&self.run(arch, false), 4e-6);
    }

    /// What a failure prints.
    fn options(&self) -> impl std::fmt::Debug {
        let dense = [self.bool_mask.as_ref().map(|mask| mask.keys), self.bias.as_ref().map(|bias| bias.keys)];
        let band = (self.lower, self.upper, self.anchor);
        (self.shape, self.softcap, self.lengths.clone(), band, dense, self.fill)
    }

    pub fn compare(&self, got: &[f32], tolerance: f64) {
        let want = self.reference();
        assert_eq!(got.len(), want.len());
        for (index, (&got, &want)) in got.iter().zip(&want).enumerate() {
            let same = if want.is_finite() {
                (f64::from(got) - want).abs() <= tolerance
            } else {
                got.is_nan() == want.is_nan() && (got.is_nan() || f64::from(got) == want)
            };
            assert!(same, "{:?}: [{index}] is {got}, not {want}", self.options());
        }
    }
}

/// All of a mask but its elements.
impl<T> Dense<T> {
    fn with<U>(&self, data: U) -> Dense<U> {
        Dense { data, strides: self.strides, keys: self.keys }
    }
}

fn to_half(x: &[f32]) -> Vec<f16> {
    x.iter().map(|&x| f16::from_f32(x)).collect()
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
