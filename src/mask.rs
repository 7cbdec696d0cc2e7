//! What a query may look at: causality, windows, and what a masked score becomes.
//!
//! Key `j` takes part for query `i` when `lower <= j - i <= upper` (the band), the boolean mask says true,
//! and the additive mask is not −inf.

use crate::error::{Error, Result};

/// Where the causal diagonal lies when there are more keys than queries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Causal {
    /// `j <= i`: the first query sees the first key (PyTorch `is_causal`, Keras).
    TopLeft,
    /// `j <= i + seq_kv - seq_q`: the last query sees the last key (FlashAttention, ONNX with a past).
    BottomRight,
    /// `j <= i + past`: so many keys come before the first query's own.
    Past(u32),
}

/// How far a query sees around its own position; `None` is unlimited.
///
/// The position of query `i` among the keys is that of [`Causal`] where that is set, else bottom-right as in FlashAttention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Window {
    /// Keys before the query's own position.
    pub left: Option<i64>,
    /// Keys after the query's own position.
    pub right: Option<i64>,
}

/// What a masked score becomes.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Fill {
    /// −inf: weight zero, and a fully masked row gives zeros (PyTorch, ONNX, FlashAttention).
    #[default]
    Exclude,
    /// This value, which stays in the softmax; a fully masked row is then uniform over all keys.
    Assign(f32),
}

/// The masking options that are not tensors.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Masking {
    /// Causality and its alignment.
    pub causal: Option<Causal>,
    /// Sliding window.
    pub window: Option<Window>,
    /// What a masked score becomes.
    pub fill: Fill,
}

/// Key `j` lies inside for query `i` when `lower <= j - i <= upper`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Band {
    /// Least `j - i`.
    pub lower: i64,
    /// Greatest `j - i`.
    pub upper: i64,
}

/// Beyond any sequence, and far enough from the ends of i32 for kernels to add a position to it.
const UNLIMITED: i64 = 1 << 30;

impl Band {
    /// The band without bounds.
    pub const FULL: Self = Self { lower: -UNLIMITED, upper: UNLIMITED };

    /// Whether every key lies inside for every query.
    pub fn is_full(&self, seq_q: usize, seq_kv: usize) -> bool {
        self.lower <= 1 - seq_q.max(1) as i64 && self.upper >= seq_kv as i64 - 1
    }

    /// Keys of query `i` as a half-open range within `0..seq_kv`.
    pub fn keys(&self, i: usize, seq_kv: usize) -> std::ops::Range<usize> {
        let clamp = |x: i64| x.clamp(0, seq_kv as i64) as usize;
        let start = clamp(i as i64 + self.lower);
        start..clamp(i as i64 + self.upper + 1).max(start)
    }

    /// Number of (query, key) pairs inside.
    pub fn visible(&self, seq_q: usize, seq_kv: usize) -> u64 {
        (0..seq_q).map(|i| self.keys(i, seq_kv).len() as u64).sum()
    }
}

impl Masking {
    /// Refuses options that contradict themselves, in the name of `op`.
    ///
    /// # Errors
    /// A negative window or a NaN to assign.
    pub fn validate(&self, op: &'static str) -> Result<()> {
        if let Some(Window { left, right }) = self.window {
            for (side, size) in [("left", left), ("right", right)] {
                if let Some(size) = size.filter(|&size| size < 0) {
                    return Err(Error::option(op, format!("window {side} is {size}, it must be 0 or more")));
                }
            }
        }
        match self.fill {
            Fill::Assign(value) if value.is_nan() => {
                Err(Error::option(op, "the value assigned to masked scores is NaN"))
            }
            _ => Ok(()),
        }
    }

    /// The band that causality and window leave for these lengths.
    pub fn band(&self, seq_q: usize, seq_kv: usize) -> Band {
        let bottom_right = seq_kv as i64 - seq_q as i64;
        let offset = match self.causal {
            Some(Causal::TopLeft) => 0,
            Some(Causal::Past(past)) => i64::from(past).min(UNLIMITED / 2),
            Some(Causal::BottomRight) | None => bottom_right,
        };
        let mut band = Band::FULL;
        if self.causal.is_some() {
            band.upper = offset;
        }
        if let Some(Window { left, right }) = self.window {
            let reach = |size: i64| size.min(UNLIMITED / 2);
            band.lower = left.map_or(band.lower, |left| offset - reach(left));
            band.upper = right.map_or(band.upper, |right| band.upper.min(offset + reach(right)));
        }
        band
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causal_bands_by_hand() {
        let masking = |causal| Masking { causal: Some(causal), ..Masking::default() };
        let top_left = masking(Causal::TopLeft).band(2, 4);
        assert_eq!([top_left.keys(0, 4), top_left.keys(1, 4)], [0..1, 0..2]);
        let bottom_right = masking(Causal::BottomRight).band(2, 4);
        assert_eq!([bottom_right.keys(0, 4), bottom_right.keys(1, 4)], [0..3, 0..4]);
        let past_the_keys = masking(Causal::BottomRight).band(4, 2);
        assert_eq!([past_the_keys.keys(0, 2), past_the_keys.keys(3, 2)], [0..0, 0..2]);
        assert_eq!(top_left.visible(2, 4), 3);
        let past = masking(Causal::Past(1)).band(2, 4);
        assert_eq!([past.keys(0, 4), past.keys(1, 4)], [0..2, 0..3]);
    }

    #[test]
    fn windows_by_hand() {
        let window = Some(Window { left: Some(1), right: Some(0) });
        let band = Masking { window, ..Masking::default() }.band(4, 4);
        assert_eq!((0..4).map(|i| band.keys(i, 4)).collect::<Vec<_>>(), [0..1, 0..2, 1..3, 2..4]);
        assert!(!band.is_full(4, 4));
        assert!(Band::FULL.is_full(9, 9));
        assert!(
            Masking { window: Some(Window { left: Some(-1), right: None }), ..Masking::default() }
                .validate("x")
                .is_err()
        );
    }
}
