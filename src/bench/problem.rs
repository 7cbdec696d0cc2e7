//! An attention problem as text: `b=1,h=8,s=1024,d=64,causal`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::attention::{Attention, Strategy};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::mask::{Causal, Masking, Window};
use crate::tensor::{Dtype, TensorDesc};

/// Sizes and options of an attention problem.
///
/// As text, in any order: `b=` batch, `h=` heads, `s=` both lengths, `d=` head_dim, which are needed, and `kvh=` key heads,
/// `sq=` and `skv=` one length each, `dv=` head_dim of the value, `dtype=f32|f16`, `strategy=auto|fused|unfused`,
/// `causal` or `causal=bottom-right` (the last query sees the last key, as in FlashAttention) or `causal=top-left`,
/// `window=LEFT`, `window=LEFT:RIGHT` or `window=:RIGHT` (keys before and after a query's own position; a side left out
/// is unlimited). `Display` gives the shortest such text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Problem {
    /// Sequences.
    pub batch: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; they divide the query heads.
    pub kv_heads: usize,
    /// Queries.
    pub seq_q: usize,
    /// Keys.
    pub seq_kv: usize,
    /// Width of a query and of a key.
    pub head_dim: usize,
    /// Width of a value.
    pub head_dim_v: usize,
    /// Causality and its alignment.
    pub causal: Option<Causal>,
    /// Sliding window.
    pub window: Option<Window>,
    /// How tensors are stored.
    pub dtype: Dtype,
    /// How attention is computed.
    pub strategy: Strategy,
}

/// Elements of the largest tensor; kernels count in 32 bits.
const MAX_ELEMENTS: u128 = u32::MAX as u128;

impl Problem {
    /// Self-attention in f32 without a mask.
    pub const fn new(batch: usize, heads: usize, seq: usize, head_dim: usize) -> Self {
        Self {
            batch,
            heads,
            kv_heads: heads,
            seq_q: seq,
            seq_kv: seq,
            head_dim,
            head_dim_v: head_dim,
            causal: None,
            window: None,
            dtype: Dtype::F32,
            strategy: Strategy::Auto,
        }
    }

    /// The same problem under a causal mask aligned bottom-right.
    #[must_use]
    pub const fn causal(mut self) -> Self {
        self.causal = Some(Causal::BottomRight);
        self
    }

    /// Shapes of q, k and v.
    pub fn shapes(&self) -> [[usize; 4]; 3] {
        [
            [self.batch, self.heads, self.seq_q, self.head_dim],
            [self.batch, self.kv_heads, self.seq_kv, self.head_dim],
            [self.batch, self.kv_heads, self.seq_kv, self.head_dim_v],
        ]
    }

    /// Causality and window as the ops take them.
    pub fn masking(&self) -> Masking {
        Masking { causal: self.causal, window: self.window, ..Masking::default() }
    }

    /// Floating point operations by FlashAttention's formula `batch · heads · 2 · seq_q · avg · (head_dim + head_dim_v)`.
    ///
    /// `avg` is the mean number of visible keys: `seq_kv`, with causality `(max(0, seq_kv − seq_q) + seq_kv) / 2` at
    /// either end of the keys, with a window or a past the exact mean. (flash-attention, `benchmarks/benchmark_attn.py`.)
    pub fn flops(&self) -> u64 {
        let (seq_q, seq_kv) = (self.seq_q as u64, self.seq_kv as u64);
        let twice_scores = match (self.window, self.causal) {
            (Some(_), _) | (_, Some(Causal::Past(_))) => {
                2 * self.masking().band(self.seq_q, self.seq_kv).visible(self.seq_q, self.seq_kv)
            }
            (None, Some(_)) => seq_q.saturating_mul(seq_kv.saturating_sub(seq_q) + seq_kv),
            (None, None) => seq_q.saturating_mul(2 * seq_kv),
        };
        let each = (self.batch * self.heads) as u64 * (self.head_dim + self.head_dim_v) as u64;
        twice_scores.saturating_mul(each)
    }

    /// Options for [`Graph::attention`], with the default scale.
    pub fn attention(&self) -> Attention {
        Attention { causal: self.causal, window: self.window, strategy: self.strategy, ..Attention::default() }
    }

    /// A graph with inputs `q`, `k`, `v` and output `out`.
    ///
    /// # Errors
    /// As [`Graph::attention`], such as a fused problem whose head_dim is too large.
    pub fn graph(&self) -> Result<Graph> {
        let mut graph = Graph::new();
        let [q, k, v] = self.shapes().map(|shape| TensorDesc::new(self.dtype, shape));
        let (q, k, v) = (graph.input("q", q)?, graph.input("k", k)?, graph.input("v", v)?);
        let out = graph.attention(q, k, v, &self.attention())?;
        graph.output("out", out)?;
        Ok(graph)
    }

    fn validate(self) -> Result<Self> {
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(parse(format!("kvh={} key heads do not divide h={} heads", self.kv_heads, self.heads)));
        }
        let output = [self.batch, self.heads, self.seq_q, self.head_dim_v];
        for (name, shape) in ["q", "k", "v", "out"].into_iter().zip(self.shapes().into_iter().chain([output])) {
            let elements = shape.iter().fold(1_u128, |product, &size| product.saturating_mul(size as u128));
            if elements > MAX_ELEMENTS {
                let message = format!("{name} {shape:?} has {elements} elements, at most {MAX_ELEMENTS} are possible");
                return Err(parse(message));
            }
        }
        Ok(self)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b={},h={}", self.batch, self.heads)?;
        if self.kv_heads != self.heads {
            write!(f, ",kvh={}", self.kv_heads)?;
        }
        if self.seq_q == self.seq_kv {
            write!(f, ",s={}", self.seq_q)?;
        } else {
            write!(f, ",sq={},skv={}", self.seq_q, self.seq_kv)?;
        }
        write!(f, ",d={}", self.head_dim)?;
        if self.head_dim_v != self.head_dim {
            write!(f, ",dv={}", self.head_dim_v)?;
        }
        match self.causal {
            None => {}
            Some(Causal::BottomRight) => write!(f, ",causal")?,
            Some(Causal::TopLeft) => write!(f, ",causal=top-left")?,
            Some(Causal::Past(past)) => write!(f, ",causal=past:{past}")?,
        }
        if let Some(Window { left, right, .. }) = self.window {
            let text = |side: Option<i64>| side.map_or_else(String::new, |size| size.to_string());
            match right {
                None => write!(f, ",window={}", text(left))?,
                right => write!(f, ",window={}:{}", text(left), text(right))?,
            }
        }
        if self.dtype != Dtype::F32 {
            write!(f, ",dtype={}", self.dtype)?;
        }
        match self.strategy {
            Strategy::Auto => Ok(()),
            Strategy::Unfused => write!(f, ",strategy=unfused"),
            Strategy::Fused => write!(f, ",strategy=fused"),
        }
    }
}

impl FromStr for Problem {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut fields = Fields::new(text)?;
        let [batch, heads, head_dim] = [fields.size("b")?, fields.size("h")?, fields.size("d")?];
        let (both, seq_q, seq_kv) = (fields.size("s")?, fields.size("sq")?, fields.size("skv")?);
        let missing =
            |key: &str| parse(format!("`{key}=` is missing in `{text}`; b, h, s (or sq and skv), d are needed"));
        let head_dim = head_dim.ok_or_else(|| missing("d"))?;
        let heads = heads.ok_or_else(|| missing("h"))?;
        let sizes = Self::new(batch.ok_or_else(|| missing("b"))?, heads, 1, head_dim);
        Self {
            kv_heads: fields.size("kvh")?.unwrap_or(heads),
            seq_q: seq_q.or(both).ok_or_else(|| missing("s"))?,
            seq_kv: seq_kv.or(both).ok_or_else(|| missing("s"))?,
            head_dim_v: fields.size("dv")?.unwrap_or(head_dim),
            causal: fields.causal()?,
            window: fields.window()?,
            dtype: fields.choice("dtype", &DTYPES)?.unwrap_or(Dtype::F32),
            strategy: fields.choice("strategy", &STRATEGIES)?.unwrap_or_default(),
            ..sizes
        }
        .validate()
    }
}

const KEYS: [&str; 12] = ["b", "h", "kvh", "s", "sq", "skv", "d", "dv", "causal", "window", "dtype", "strategy"];
/// A bare `causal` has the empty value.
const CAUSAL: [(&str, Causal); 3] =
    [("", Causal::BottomRight), ("bottom-right", Causal::BottomRight), ("top-left", Causal::TopLeft)];
const DTYPES: [(&str, Dtype); 2] = [("f32", Dtype::F32), ("f16", Dtype::F16)];
const STRATEGIES: [(&str, Strategy); 3] =
    [("auto", Strategy::Auto), ("fused", Strategy::Fused), ("unfused", Strategy::Unfused)];

/// Keys and values of a problem's text.
struct Fields<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Fields<'a> {
    fn new(text: &'a str) -> Result<Self> {
        let mut fields = BTreeMap::new();
        for part in text.split(',').map(str::trim) {
            let (key, value) = match part.split_once('=') {
                Some((key, "")) => return Err(parse(format!("`{key}=` has no value"))),
                Some(pair) => pair,
                None if part == "causal" => (part, ""),
                None => return Err(parse(format!("`{part}` is not `key=value`; keys are {}", KEYS.join(", ")))),
            };
            if !KEYS.contains(&key) {
                return Err(parse(format!("unknown key `{key}` in `{part}`; keys are {}", KEYS.join(", "))));
            }
            if fields.insert(key, value).is_some() {
                return Err(parse(format!("`{key}` is given twice")));
            }
        }
        Ok(Self(fields))
    }

    fn size(&mut self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.0.get(key) else { return Ok(None) };
        match value.parse() {
            Ok(size) if size > 0 => Ok(Some(size)),
            _ => Err(parse(format!("`{key}={value}` is not a whole number of 1 or more"))),
        }
    }

    fn choice<T: Copy>(&self, key: &str, choices: &[(&str, T)]) -> Result<Option<T>> {
        let Some(value) = self.0.get(key) else { return Ok(None) };
        match choices.iter().find(|(name, _)| name == value) {
            Some((_, choice)) => Ok(Some(*choice)),
            None => {
                let names: Vec<_> = choices.iter().map(|(name, _)| *name).filter(|name| !name.is_empty()).collect();
                Err(parse(format!("`{key}={value}` is not one of {}", names.join(", "))))
            }
        }
    }

    fn causal(&self) -> Result<Option<Causal>> {
        let Some(past) = self.0.get("causal").and_then(|value| value.strip_prefix("past:")) else {
            return self.choice("causal", &CAUSAL);
        };
        let past =
            past.parse().map_err(|_| parse(format!("`causal=past:{past}`: `{past}` is not a number of keys")))?;
        Ok(Some(Causal::Past(past)))
    }

    fn window(&self) -> Result<Option<Window>> {
        let Some(value) = self.0.get("window") else { return Ok(None) };
        let side = |text: &str| match text {
            "" => Ok(None),
            text => match text.parse::<u32>() {
                Ok(size) => Ok(Some(i64::from(size))),
                Err(_) => Err(parse(format!("`window={value}`: `{text}` is not a whole number of 0 or more"))),
            },
        };
        let (left, right) = value.split_once(':').unwrap_or((value, ""));
        Ok(Some(Window { left: side(left)?, right: side(right)?, align: None }))
    }
}

fn parse(message: String) -> Error {
    Error::Parse(format!("problem: {message}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> Problem {
        text.parse().unwrap()
    }

    #[test]
    fn canonical_text_survives() {
        for text in [
            "b=1,h=8,s=1024,d=64",
            "b=1,h=8,s=1024,d=64,causal",
            "b=2,h=8,kvh=2,sq=3,skv=5,d=64,dv=32,causal=top-left,window=4:2,dtype=f16,strategy=unfused",
            "b=1,h=1,s=9,d=4,window=4,strategy=fused",
            "b=1,h=1,s=9,d=4,window=:0",
        ] {
            assert_eq!(problem(text).to_string(), text);
        }
        let spelled = problem(" d=64, skv=7, sq=7, h=8 ,b=1,causal=bottom-right,dv=64,kvh=8,dtype=f32,strategy=auto");
        assert_eq!(spelled, Problem::new(1, 8, 7, 64).causal());
        assert_eq!(problem("b=1,h=1,s=9,sq=1,d=4").to_string(), "b=1,h=1,sq=1,skv=9,d=4");
    }

    #[test]
    fn bad_text_is_named() {
        for (text, expected) in [
            ("", "`` is not `key=value`"),
            ("h=8,s=4,d=64", "`b=` is missing"),
            ("b=1,s=4,d=64", "`h=` is missing"),
            ("b=1,h=8,sq=4,d=64", "`s=` is missing"),
            ("b=1,h=8,s=4", "`d=` is missing"),
            ("b=1,h=8,s=0,d=64", "`s=0` is not a whole number of 1 or more"),
            ("b=1,h=-8,s=4,d=64", "`h=-8` is not a whole"),
            ("b=1,h=8,s=4.5,d=64", "`s=4.5` is not a whole"),
            ("b=1,h=8,s=4,d=", "`d=` has no value"),
            ("b=1,b=1,h=8,s=4,d=4", "`b` is given twice"),
            ("b=1,h=8,s=4,d=64,x=3", "unknown key `x` in `x=3`"),
            ("b=1,h=8,s=4,d=64,fast", "`fast` is not `key=value`"),
            ("b=1,h=8,kvh=3,s=4,d=64", "kvh=3 key heads do not divide h=8"),
            ("b=1,h=8,s=4,d=64,dtype=f64", "`dtype=f64` is not one of f32, f16"),
            ("b=1,h=8,s=4,d=64,causal=left", "`causal=left` is not one of bottom-right, top-left"),
            ("b=1,h=8,s=4,d=64,window=-1", "`-1` is not a whole number of 0"),
            ("b=99999999999,h=8,s=9999999999,d=64", "elements, at most 4294967295"),
            ("b=1,h=8,s=99999999999999999999999,d=64", "is not a whole number"),
        ] {
            let message = text.parse::<Problem>().unwrap_err().to_string();
            assert!(message.contains(expected), "{text}: {message}");
        }
    }

    #[test]
    fn flops_by_hand() {
        assert_eq!(problem("b=1,h=8,s=1024,d=64").flops(), 2_147_483_648);
        assert_eq!(problem("b=1,h=8,s=1024,d=64,causal").flops(), 1_073_741_824);
        // 3 queries, 5 keys: avg = (2 + 5) / 2 = 3.5; 2·4 · 2 · 3 · 3.5 · (8 + 6)
        assert_eq!(problem("b=2,h=4,sq=3,skv=5,d=8,dv=6,causal").flops(), 2352);
        // A past of one key before 2 queries, 4 keys: 2 + 3 scores; 2 · 5 · 4
        assert_eq!(problem("b=1,h=1,sq=2,skv=4,d=2,causal=past:1").flops(), 40);
        // More queries than keys: avg = 5 / 2; 1 · 2 · 7 · 2.5 · 4
        assert_eq!(problem("b=1,h=1,sq=7,skv=5,d=2,causal").flops(), 140);
        // Window of one key to the left and none to the right over 4: 1 + 2 + 2 + 2 keys; 2 · 7 · 4
        assert_eq!(problem("b=1,h=1,s=4,d=2,window=1:0").flops(), 56);
    }

    #[test]
    fn flops_as_others_count_them() {
        // FlashAttention 2, `benchmark_flash_attention.py`: 4 · batch · seq² · heads · head_dim, half of it with causality.
        let fa = |[batch, heads, seq, head_dim]: [u64; 4]| 4 * batch * seq * seq * heads * head_dim;
        assert_eq!(problem("b=32,h=32,s=512,d=64").flops(), fa([32, 32, 512, 64]));
        assert_eq!(problem("b=1,h=16,s=16384,d=128,causal").flops(), fa([1, 16, 16_384, 128]) / 2);
        // FlashAttention 3 and 4, `benchmark_attn.py`: avg = (max(0, 4096 − 1024) + 4096) / 2 = 3584.
        let flops = problem("b=2,h=4,sq=1024,skv=4096,d=192,dv=128,causal").flops();
        assert_eq!(flops, 2 * 4 * 2 * 1024 * 3584 * (192 + 128));
        // Triton's tutorial: two products of 2 · batch · heads · seq² · head_dim.
        assert_eq!(problem("b=4,h=32,s=1024,d=64,dtype=f16").flops(), 2 * 2 * 4 * 32 * 1024 * 1024 * 64);
        // ggml, `test-backend-ops perf -o FLASH_ATTN_EXT`: it prints 503.32 MFLOP and 153.73 GFLOP for these.
        assert_eq!(problem("b=1,h=64,kvh=8,sq=4,skv=7680,d=64,dtype=f16").flops(), 503_316_480);
        assert_eq!(problem("b=1,h=16,s=5776,d=72,dtype=f16").flops(), 153_732_907_008);
    }

    #[test]
    fn graphs_have_the_shapes() {
        let graph = problem("b=2,h=4,kvh=2,sq=3,skv=5,d=8,dv=6").graph().unwrap();
        let (name, desc) = graph.outputs().next().unwrap();
        assert_eq!((name, &desc.shape[..]), ("out", &[2, 4, 3, 6][..]));
    }
}
