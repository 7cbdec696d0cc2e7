//! Which queries and keys there are and which belong together, as tensors say it: lengths of batch elements, and starts of packed
//! sequences.

use std::ops::{Deref, Range};

use crate::error::{Error, Result};
use crate::op::Bindings;
use crate::shader::{Source, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc};

pub(super) const SEQUENCE: Source = wgsl!("lib/sequence");
pub(super) const KEYS_ALL: Source = wgsl!("lib/keys_all");
const QUERIES_ALL: Source = wgsl!("lib/queries_all");
const QUERIES_LENGTHS: Source = wgsl!("lib/queries_lengths");
const QUERIES_PACKED: Source = wgsl!("lib/queries_packed");

// Bindings of the optional tensors, as in these files.
const Q_LENGTHS_BINDING: u32 = 14;
const Q_STARTS_BINDING: u32 = 15;

/// What says which rows are queries, as descriptions, as data, or only whether it is there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Queries<T> {
    /// u32 `[batch]`.
    pub lengths: Option<T>,
    /// u32 `[sequences + 1]`.
    pub starts: Option<T>,
}

impl<T> Queries<T> {
    /// The library file that finds a row's sequence; the tensors' bindings are added to the inputs.
    pub fn link(&self, bindings: &mut Bindings) -> Source {
        bindings.inputs.extend(self.lengths.is_some().then_some(Q_LENGTHS_BINDING));
        bindings.inputs.extend(self.starts.is_some().then_some(Q_STARTS_BINDING));
        match (&self.lengths, &self.starts) {
            (_, Some(_)) => QUERIES_PACKED,
            (Some(_), None) => QUERIES_LENGTHS,
            (None, None) => QUERIES_ALL,
        }
    }
}

impl<'a, T> Queries<&'a T> {
    /// What else there is of the same tensors.
    pub fn map<U>(self, of: impl Fn(&'a T) -> U) -> Queries<U> {
        Queries { lengths: self.lengths.map(&of), starts: self.starts.map(&of) }
    }
}

impl<T: Deref<Target = [u32]>> Queries<T> {
    /// Which of a batch element's rows are queries. Those between two starts always are, even where starts decrease.
    pub fn rows(&self, batch: usize, seq_q: usize) -> Range<usize> {
        let inside = |row: u32| seq_q.min(row as usize);
        match (&self.lengths, &self.starts) {
            (_, Some(starts)) => {
                let first = inside(starts.first().copied().unwrap_or(0));
                first..first.max(inside(starts.iter().copied().max().unwrap_or(0)))
            }
            (Some(lengths), None) => 0..inside(lengths[batch]),
            (None, None) => 0..seq_q,
        }
    }

    /// Which rows are those of one of the packed sequences: where starts decrease, not those that one before it has passed.
    pub fn own_rows(&self, sequence: usize, seq_q: usize) -> Range<usize> {
        let Some(starts) = &self.starts else { return self.rows(sequence, seq_q) };
        let inside = |&start: &u32| seq_q.min(start as usize);
        let end = inside(&starts[sequence + 1]);
        let passed = starts[..=sequence].iter().map(inside).max().unwrap_or(0);
        passed.min(end)..end
    }
}

impl Queries<&TensorDesc> {
    /// The batch of the queries whose scores have this one: 1 where each packed sequence has a batch element of scores.
    pub fn batch(&self, scores: usize) -> usize {
        match self.starts {
            Some(starts) if starts.shape == [scores + 1] => 1,
            _ => scores,
        }
    }

    /// The number of sequences in so many batch elements, in the name of `op`.
    pub fn sequences(&self, op: &'static str, batch: usize) -> Result<usize> {
        if self.lengths.is_some() && self.starts.is_some() {
            return Err(Error::option(op, "q_starts says how long packed sequences are, q_lengths cannot say it too"));
        }
        if let Some(desc) = self.lengths {
            check_lengths(op, "q_lengths", desc, batch)?;
        }
        let Some(desc) = self.starts else { return Ok(batch) };
        if batch != 1 {
            return Err(Error::shape(op, format!("q_starts divides a batch of 1, the query has batch {batch}")));
        }
        sequences_between(op, "q_starts", desc)
    }
}

/// Lengths are u32, one for each sequence.
pub(super) fn check_lengths(op: &'static str, role: &str, desc: &TensorDesc, sequences: usize) -> Result<()> {
    match desc.dtype == Dtype::U32 && desc.shape == [sequences] {
        true => Ok(()),
        false => Err(Error::shape(op, format!("{role} is {desc}, it must be u32 [{sequences}]"))),
    }
}

/// How many sequences lie between these starts.
pub(super) fn sequences_between(op: &'static str, role: &str, desc: &TensorDesc) -> Result<usize> {
    match desc.shape[..] {
        [starts] if starts > 0 && desc.dtype == Dtype::U32 => Ok(starts - 1),
        _ => Err(Error::shape(op, format!("{role} is {desc}, it must be u32 [sequences + 1]"))),
    }
}

/// What a checked run asks of lengths or ends of sequences along an axis of this name and size.
pub(super) fn check_ends(
    op: &'static str,
    role: &str,
    ends: Option<&HostTensor>,
    (axis, size): (&str, usize),
) -> Result<()> {
    let ends = ends.and_then(HostTensor::as_u32).unwrap_or_default();
    match ends.iter().enumerate().find(|&(_, &end)| end as usize > size) {
        None => Ok(()),
        Some((at, end)) => Err(Error::option(op, format!("{role}[{at}] is {end}, {axis} is {size}"))),
    }
}

/// What a checked run asks of starts along an axis of this name and size.
pub(super) fn check_starts(
    op: &'static str,
    role: &str,
    starts: Option<&HostTensor>,
    axis: (&str, usize),
) -> Result<()> {
    let values = starts.and_then(HostTensor::as_u32).unwrap_or_default();
    if let Some(at) = values.windows(2).position(|pair| pair[1] < pair[0]) {
        let [before, after] = [values[at], values[at + 1]];
        let message = format!("{role}[{}] is {after}, {role}[{at}] is {before}; starts do not decrease", at + 1);
        return Err(Error::option(op, message));
    }
    check_ends(op, role, starts, axis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_are_queries() {
        let lengths = |lengths: &[u32]| Queries { lengths: Some(lengths.to_vec()), starts: None };
        assert_eq!([lengths(&[3, 99]).rows(0, 5), lengths(&[3, 99]).rows(1, 5)], [0..3, 0..5]);
        let starts = |starts: &[u32]| Queries { lengths: None, starts: Some(starts.to_vec()) };
        assert_eq!(
            [starts(&[1, 3, 2]).rows(0, 5), starts(&[9]).rows(0, 5), starts(&[4, 2]).rows(0, 5)],
            [1..3, 5..5, 4..4]
        );
        let decreasing = starts(&[1, 3, 2, 99]);
        assert_eq!([0, 1, 2].map(|sequence| decreasing.own_rows(sequence, 5)), [1..3, 2..2, 3..5]);
    }
}
