//! Sums and maxima over sets of elements.
//!
//! Where the fastest axis is reduced, a task takes whole sets and walks their runs. Where it is kept, a task takes a
//! run of outputs and adds whole runs of elements to them. Both loops are vectorised, and sums are taken in blocks.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::args::{Elements, ElementsMut};
use super::axes::{Axis, offsets, runs};
use super::scratch::{Arena, with_scratch};

/// Fewest elements worth a task of their own.
const MIN_ELEMENTS: usize = 1 << 14;

/// Elements read at a time, and outputs of a task.
const CHUNK: usize = 1024;

/// Elements added up before their sum is added to others.
const BLOCK: usize = 64;

/// Independent partial results of a run, so that additions need not wait for each other.
const LANES: usize = 32;

/// What is done with a set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fold {
    /// The sum over `divisor`.
    Sum {
        /// 1, or the number of elements.
        divisor: f32,
    },
    /// The largest; NaN when one is.
    Max,
}

/// Which elements belong together: one set for each position along `kept`.
#[derive(Debug, Clone, Copy)]
pub struct Sets<'a> {
    /// Merged axes that the output keeps; the first stride is the input's.
    pub kept: &'a [Axis],
    /// Merged axes of a set.
    pub reduced: &'a [Axis],
    /// Elements of a set.
    pub count: usize,
    /// What becomes of it.
    pub fold: Fold,
    /// The result for an empty one.
    pub empty: f32,
}

/// Reduces each set of `input` to one element of `out`.
pub fn reduce(sets: &Sets, input: Elements, out: ElementsMut) {
    match out {
        ElementsMut::F32(out) => chunks(sets, out, |index, out| sets.run(input, index, out)),
        ElementsMut::F16(out) => chunks(sets, out, |index, out| sets.converted(input, index, ElementsMut::F16(out))),
        ElementsMut::BF16(out) => chunks(sets, out, |index, out| sets.converted(input, index, ElementsMut::BF16(out))),
    }
}

/// Outputs as tasks: large enough to be worth it, small enough for all threads to have one.
fn chunks<T: Send>(sets: &Sets, out: &mut [T], task: impl Fn(usize, &mut [T]) + Sync) {
    let share = out.len().div_ceil(rayon::current_num_threads());
    let chunk = share.max(MIN_ELEMENTS.div_ceil(sets.count.max(1))).clamp(1, CHUNK);
    out.par_chunks_mut(chunk).enumerate().for_each(|(index, out)| task(index * chunk, out));
}

impl Sets<'_> {
    fn converted(&self, input: Elements, index: usize, mut out: ElementsMut) {
        let mut values = [0.0; CHUNK];
        let values = &mut values[..out.len()];
        self.run(input, index, values);
        out.write(0, values);
    }

    /// The outputs from `index` on.
    fn run(&self, input: Elements, index: usize, out: &mut [f32]) {
        if self.count == 0 {
            return out.fill(self.empty);
        }
        let columns = self.kept.last().is_some_and(|axis| axis.strides[0] == 1);
        if columns {
            runs(self.kept, index, out.len(), |done, length, offsets| {
                self.columns(input, offsets[0] as usize, &mut out[done..done + length]);
            });
        } else {
            out.iter_mut().zip(index..).for_each(|(out, index)| {
                *out = self.set(input, offsets(self.kept, index)[0] as usize);
            });
        }
        if let Fold::Sum { divisor } = self.fold {
            out.iter_mut().for_each(|out| *out /= divisor);
        }
    }

    /// One set, its elements in runs along the fastest of its axes.
    fn set(&self, input: Elements, origin: usize) -> f32 {
        let fold = self.fold;
        let mut total = start(fold);
        runs(self.reduced, 0, self.count, |_, length, offsets| {
            let from = origin + offsets[0] as usize;
            let contiguous = self.reduced.last().is_none_or(|axis| axis.strides[0] == 1);
            let stride = self.reduced.last().map_or(1, |axis| axis.strides[0] as usize);
            let partial = if !contiguous {
                (0..length).map(|i| f64::from(input.get(from + i * stride))).fold(start(fold), |a, b| join(fold, a, b))
            } else if length >= 8 * MIN_ELEMENTS {
                let pieces = (0..length.div_ceil(MIN_ELEMENTS)).into_par_iter().map(|piece| {
                    let first = piece * MIN_ELEMENTS;
                    contiguous_run(fold, input, from + first, (length - first).min(MIN_ELEMENTS))
                });
                pieces.reduce(|| start(fold), |a, b| join(fold, a, b))
            } else {
                contiguous_run(fold, input, from, length)
            };
            total = join(fold, total, partial);
        });
        total as f32
    }

    /// Sets that lie side by side.
    fn columns(&self, input: Elements, origin: usize, out: &mut [f32]) {
        let arch = Arch::new();
        out.fill(start(self.fold) as f32);
        with_scratch(|lines| {
            let mut arena = Arena::new(lines, 8 * out.len(), 2);
            let (row, block): (&mut [f32], &mut [f32]) = (arena.take(out.len()), arena.take(out.len()));
            for first in (0..self.count).step_by(BLOCK) {
                block.fill(start(self.fold) as f32);
                for position in first..(first + BLOCK).min(self.count) {
                    let from = origin + offsets(self.reduced, position)[0] as usize;
                    let row = match input {
                        Elements::F32(data) => &data[from..][..out.len()],
                        _ => {
                            input.read(from, row);
                            &*row
                        }
                    };
                    arch.dispatch(Join { fold: self.fold, from: row, into: block });
                }
                arch.dispatch(Join { fold: self.fold, from: block, into: out });
            }
        });
    }
}

fn start(fold: Fold) -> f64 {
    if fold == Fold::Max { f64::NEG_INFINITY } else { 0.0 }
}

/// Of two partial results.
fn join(fold: Fold, a: f64, b: f64) -> f64 {
    match fold {
        Fold::Sum { .. } => a + b,
        Fold::Max if a.is_nan() || a > b => a,
        Fold::Max => b,
    }
}

/// A run of elements that lie side by side, read in chunks; what the chunks give is joined in f64.
fn contiguous_run(fold: Fold, input: Elements, from: usize, length: usize) -> f64 {
    let arch = Arch::new();
    let mut buffer = [0.0; CHUNK];
    let chunks = (0..length).step_by(CHUNK).map(|first| {
        let count = (length - first).min(CHUNK);
        let data = match input {
            Elements::F32(data) => &data[from + first..][..count],
            _ => {
                input.read(from + first, &mut buffer[..count]);
                &buffer[..count]
            }
        };
        f64::from(arch.dispatch(Chunk { fold, data }))
    });
    chunks.fold(start(fold), |a, b| join(fold, a, b))
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b || a.is_nan() { a } else { b }
}

/// One chunk.
struct Chunk<'a> {
    fold: Fold,
    data: &'a [f32],
}

impl WithSimd for Chunk<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> f32 {
        match self.fold {
            Fold::Sum { .. } => lanes(self.data, 0.0, |a, b| a + b),
            Fold::Max => lanes(self.data, f32::NEG_INFINITY, larger),
        }
    }
}

#[inline(always)]
fn lanes(data: &[f32], start: f32, join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut partial = [start; LANES];
    let (blocks, rest) = data.as_chunks::<LANES>();
    for block in blocks {
        for (partial, &x) in partial.iter_mut().zip(block) {
            *partial = join(*partial, x);
        }
    }
    for (partial, &x) in partial.iter_mut().zip(rest) {
        *partial = join(*partial, x);
    }
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            partial[lane] = join(partial[lane], partial[lane + half]);
        }
        half /= 2;
    }
    partial[0]
}

/// Joins each element of `from` to the one of `into`.
struct Join<'a> {
    fold: Fold,
    from: &'a [f32],
    into: &'a mut [f32],
}

impl WithSimd for Join<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let pairs = self.into.iter_mut().zip(self.from);
        match self.fold {
            Fold::Sum { .. } => pairs.for_each(|(into, &from)| *into += from),
            Fold::Max => pairs.for_each(|(into, &from)| *into = larger(*into, from)),
        }
    }
}
