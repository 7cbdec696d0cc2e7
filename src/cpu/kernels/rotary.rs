//! Rotary embedding of rows.

use super::args::{Elements, ElementsMut};
use super::rms_norm::{Norm, each_row};
use super::scratch::{Arena, with_scratch};

/// Turns pairs of a row's elements by the angles of its position.
#[derive(Debug, Clone, Copy)]
pub struct Turn<'a> {
    /// Cosines, a row of `pairs` for each position.
    pub cosines: Elements<'a>,
    /// Sines likewise.
    pub sines: Elements<'a>,
    /// Pairs that turn.
    pub pairs: usize,
    /// Whether pair p is elements 2p and 2p + 1, and not p and p + pairs.
    pub interleaved: bool,
}

impl Turn<'_> {
    /// Turns a row by the angles in this row of the tables.
    pub fn apply(&self, angles: usize, row: &mut [f32]) {
        let Self { cosines, sines, pairs, .. } = *self;
        let at = angles * pairs;
        if let (Elements::F32(cosines), Elements::F32(sines)) = (cosines, sines) {
            return self.turn(&cosines[at..][..pairs], &sines[at..][..pairs], row);
        }
        with_scratch(|lines| {
            let mut arena = Arena::new(lines, 8 * pairs, 2);
            let (wide_cosines, wide_sines): (&mut [f32], &mut [f32]) = (arena.take(pairs), arena.take(pairs));
            cosines.read(at, wide_cosines);
            sines.read(at, wide_sines);
            self.turn(wide_cosines, wide_sines, row);
        });
    }

    fn turn(&self, cosines: &[f32], sines: &[f32], row: &mut [f32]) {
        let turned = |a: &mut f32, b: &mut f32, cosine: f32, sine: f32| {
            (*a, *b) = (*a * cosine - *b * sine, *b * cosine + *a * sine);
        };
        let angles = cosines.iter().zip(sines);
        if self.interleaved {
            for (pair, (&cosine, &sine)) in row.as_chunks_mut().0.iter_mut().zip(angles) {
                let [a, b] = pair;
                turned(a, b, cosine, sine);
            }
        } else {
            let (first, second) = row.split_at_mut(cosines.len());
            for ((a, b), (&cosine, &sine)) in first.iter_mut().zip(second).zip(angles) {
                turned(a, b, cosine, sine);
            }
        }
    }
}

/// Which row of the angles a row has.
#[derive(Debug, Clone, Copy)]
pub enum Angles<'a> {
    /// Row i has position i.
    Counted,
    /// `[batch, seq]`.
    Given(&'a [u32]),
    /// Row i comes i after so many others, `[batch]`.
    After(&'a [u32]),
    /// The angles are those of the rows themselves, `[batch, seq]`.
    PerToken,
}

/// Rows of heads to turn.
#[derive(Debug, Clone, Copy)]
pub struct RotaryArgs<'a> {
    /// Rows of `head_dim`, in the order of their layout.
    pub x: Elements<'a>,
    /// Heads of a position.
    pub heads: usize,
    /// Positions of a batch element.
    pub seq: usize,
    /// Rows from one position to the next.
    pub step: usize,
    /// Elements of a row.
    pub head_dim: usize,
    /// Comes first.
    pub norm: Option<Norm<'a>>,
    /// The angles.
    pub turn: Turn<'a>,
    /// Positions that the angles are of. Larger ones count as the last.
    pub positions: usize,
    /// Which of them a row has.
    pub angles: Angles<'a>,
}

/// Writes the turned rows to `y`, which is as long as `x`.
pub fn rotary(args: RotaryArgs, y: ElementsMut) {
    let RotaryArgs { x, heads, seq, step, head_dim, norm, turn, positions, angles } = args;
    each_row(head_dim, y, |row, out| {
        let (batch, i) = (row / (heads * seq), row / step % seq);
        let position = match angles {
            Angles::Counted => i,
            Angles::Given(positions) => positions[batch * seq + i] as usize,
            Angles::After(lengths) => lengths[batch] as usize + i,
            Angles::PerToken => batch * seq + i,
        };
        x.read(row * head_dim, out);
        if let Some(norm) = norm {
            norm.apply(out);
        }
        turn.apply(position.min(positions - 1), out);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_turn_by_hand() {
        let turn = |interleaved, row: &mut [f32]| {
            let (cosines, sines) = (Elements::F32(&[0.0, 1.0]), Elements::F32(&[1.0, 0.0]));
            Turn { cosines, sines, pairs: 2, interleaved }.apply(0, row);
        };
        let mut halves = [1.0, 2.0, 3.0, 4.0, 5.0];
        turn(false, &mut halves);
        assert_eq!(halves, [-3.0, 2.0, 1.0, 4.0, 5.0]);
        let mut interleaved = [1.0, 2.0, 3.0, 4.0, 5.0];
        turn(true, &mut interleaved);
        assert_eq!(interleaved, [-2.0, 1.0, 3.0, 4.0, 5.0]);
    }
}
