//! Working memory of a task, kept per thread so that a task allocates nothing once its thread is warm.

use bytemuck::{Pod, Zeroable};
use std::cell::RefCell;

/// One cache line. Vectors carved from lines start on a line, so no vector load crosses one.
#[derive(Clone, Copy, Zeroable, Pod)]
#[repr(C, align(64))]
pub struct Line([f32; 16]);

thread_local! {
    /// Of tasks inside others, the innermost first.
    static KEPT: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `task` with this thread's working memory, whose contents are left over from earlier tasks.
///
/// A task that runs inside another on the same thread gets memory of its own.
pub fn with_scratch<R>(task: impl FnOnce(&mut Vec<Line>) -> R) -> R {
    let mut lines = KEPT.with_borrow_mut(Vec::pop).unwrap_or_default();
    let result = task(&mut lines);
    KEPT.with_borrow_mut(|kept| kept.push(lines));
    result
}

/// Hands out pieces of working memory.
pub struct Arena<'a>(&'a mut [Line]);

impl<'a> Arena<'a> {
    /// An arena of `bytes` bytes plus a line for each of `pieces`, growing `lines` when needed.
    pub fn new(lines: &'a mut Vec<Line>, bytes: usize, pieces: usize) -> Self {
        let wanted = bytes.div_ceil(size_of::<Line>()) + pieces;
        if lines.len() < wanted {
            lines.resize(wanted, Line::zeroed());
        }
        // No more than was asked for, so that a count that is too low fails every time.
        Self(&mut lines[..wanted])
    }

    /// `count` values with arbitrary contents, starting on a cache line.
    #[inline(always)]
    pub fn take<T: Pod>(&mut self, count: usize) -> &'a mut [T] {
        let lines = (count * size_of::<T>()).div_ceil(size_of::<Line>());
        let (head, tail) = std::mem::take(&mut self.0).split_at_mut(lines);
        self.0 = tail;
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(head);
        bytemuck::cast_slice_mut(&mut bytes[..count * size_of::<T>()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_disjoint_and_aligned() {
        let mut lines = Vec::new();
        let mut arena = Arena::new(&mut lines, 4 * (3 + 40 + 1), 3);
        let pieces = [arena.take::<f32>(3), arena.take::<f32>(40), arena.take::<f32>(1)];
        for (i, piece) in pieces.into_iter().enumerate() {
            assert_eq!(piece.as_ptr().align_offset(64), 0);
            piece.fill(i as f32);
        }
    }

    #[test]
    fn a_nested_task_has_its_own_memory() {
        with_scratch(|outer| {
            Arena::new(outer, 64, 0).take::<f32>(4).fill(1.0);
            with_scratch(|inner| Arena::new(inner, 64, 0).take::<f32>(4).fill(2.0));
            assert_eq!(Arena::new(outer, 64, 0).take::<f32>(4), [1.0; 4]);
        });
        // Each finds its own again.
        with_scratch(|outer| {
            assert_eq!(Arena::new(outer, 64, 0).take::<f32>(4), [1.0; 4]);
            with_scratch(|inner| assert_eq!(Arena::new(inner, 64, 0).take::<f32>(4), [2.0; 4]));
        });
    }
}
