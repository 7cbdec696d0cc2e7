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
/// The position of query `i` among the keys is that of [`Causal`] where that is set, else `align`, else bottom-right as in
/// FlashAttention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Window {
    /// Keys before the query's own position.
    pub left: Option<i64>,
    /// Keys after the query's own position.
    pub right: Option<i64>,
    /// Where the first query stands; nothing else than what causality says, where that is set.
    pub align: Option<Causal>,
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

/// A distance from a query to a key, `j - i`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// The distance, or what is added to it.
    pub at: i64,
    /// To `at` comes by how many a sequence's keys outnumber its queries. Lengths are data, so this is known as late as they are.
    pub follows: bool,
}

/// A band whose ends may depend on lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Least `j - i`; `None` is unlimited.
    pub lower: Option<Bound>,
    /// Greatest `j - i`; `None` is unlimited.
    pub upper: Option<Bound>,
}

impl Bound {
    /// The distance in a sequence of so many queries and keys.
    pub fn resolve(self, queries: usize, keys: usize) -> i64 {
        self.at + if self.follows { keys as i64 - queries as i64 } else { 0 }
    }
}

impl Bounds {
    /// Without bounds.
    pub const NONE: Self = Self { lower: None, upper: None };

    /// The band in a sequence of so many queries and keys.
    pub fn band(&self, queries: usize, keys: usize) -> Band {
        let resolve = |bound: Option<Bound>, otherwise| bound.map_or(otherwise, |bound| bound.resolve(queries, keys));
        Band { lower: resolve(self.lower, Band::FULL.lower), upper: resolve(self.upper, Band::FULL.upper) }
    }
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

    /// Number of keys from the first to the last that some query has inside.
    pub fn span(&self, seq_q: usize, seq_kv: usize) -> usize {
        match seq_q.checked_sub(1) {
            None => 0,
            Some(last) => self.keys(last, seq_kv).end - self.keys(0, seq_kv).start.min(self.keys(last, seq_kv).end),
        }
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
        if let Some(Window { left, right, align }) = self.window {
            for (side, size) in [("left", left), ("right", right)] {
                if let Some(size) = size.filter(|&size| size < 0) {
                    return Err(Error::option(op, format!("window {side} is {size}, it must be 0 or more")));
                }
            }
            if let (Some(align), Some(causal)) = (align, self.causal)
                && align != causal
            {
                return Err(Error::option(op, format!("the window stands {align:?} and causality {causal:?}")));
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
        self.bounds().band(seq_q, seq_kv)
    }

    /// What causality and window leave, whatever the lengths.
    pub fn bounds(&self) -> Bounds {
        let window = self.window.unwrap_or_default();
        let own = self.position();
        let moved = |by: i64| Bound { at: own.at + by.clamp(-UNLIMITED / 4, UNLIMITED / 4), ..own };
        // Causality shows nothing ahead of the query, so a window cannot show more.
        let upper = if self.causal.is_some() { Some(own) } else { window.right.map(moved) };
        Bounds { lower: window.left.map(|left| moved(-left)), upper }
    }

    /// Where query 0 stands among the keys: what windows and ALiBi measure distances from.
    pub fn position(&self) -> Bound {
        let align = self.causal.or(self.window.and_then(|window| window.align));
        match align.unwrap_or(Causal::BottomRight) {
            Causal::TopLeft => Bound { at: 0, follows: false },
            Causal::Past(past) => Bound { at: i64::from(past).min(UNLIMITED / 4), follows: false },
            Causal::BottomRight => Bound { at: 0, follows: true },
        }
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
        assert_eq!((top_left.visible(2, 4), top_left.span(2, 4), top_left.span(0, 4)), (3, 2, 0));
        let past = masking(Causal::Past(1)).band(2, 4);
        assert_eq!([past.keys(0, 4), past.keys(1, 4)], [0..2, 0..3]);
    }

    #[test]
    fn windows_by_hand() {
        let window = Some(Window { left: Some(1), right: Some(0), align: None });
        let band = Masking { window, ..Masking::default() }.band(4, 4);
        assert_eq!((0..4).map(|i| band.keys(i, 4)).collect::<Vec<_>>(), [0..1, 0..2, 1..3, 2..4]);
        assert_eq!((band.span(4, 4), band.span(1, 4)), (4, 1));
        assert!(!band.is_full(4, 4));
        assert!(Band::FULL.is_full(9, 9));
        assert!(
            Masking { window: Some(Window { left: Some(-1), ..Window::default() }), ..Masking::default() }
                .validate("x")
                .is_err()
        );
    }
}
