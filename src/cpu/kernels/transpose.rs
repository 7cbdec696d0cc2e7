//! Another order of axes. Bytes are moved, so it serves every element type.

use bytemuck::Pod;
use rayon::prelude::*;

/// Fewest elements worth a task of their own.
const MIN_ELEMENTS: usize = 1 << 14;

/// Rows and columns of a block: of four bytes, its rows are a line of memory each.
const BLOCK: usize = 16;

/// Sizes of the result's axes, slowest first, and what lies in the input between two neighbours along each, in elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransposeShape {
    /// Sizes.
    pub sizes: Vec<usize>,
    /// Strides in the input.
    pub strides: Vec<usize>,
}

/// Copies `x` into `y`; an element has `size` bytes.
///
/// # Panics
///
/// When `size` is none of 1, 2, 4 and 8.
pub fn transpose(shape: &TransposeShape, size: usize, x: &[u8], y: &mut [u8]) {
    match size {
        1 => rows::<u8>(shape, x, y),
        2 => rows::<u16>(shape, bytemuck::cast_slice(x), bytemuck::cast_slice_mut(y)),
        4 => rows::<u32>(shape, bytemuck::cast_slice(x), bytemuck::cast_slice_mut(y)),
        8 => rows::<u64>(shape, bytemuck::cast_slice(x), bytemuck::cast_slice_mut(y)),
        _ => panic!("transpose: no element has {size} bytes"),
    }
}

fn rows<T: Pod + Send + Sync>(shape: &TransposeShape, x: &[T], y: &mut [T]) {
    if y.is_empty() {
        return;
    }
    match (&shape.sizes[..], &shape.strides[..]) {
        ([], _) | (_, []) => y.copy_from_slice(x),
        ([outer @ .., height, width], [outer_strides @ .., 1, stride]) if *stride != 1 => {
            let planes = y.par_chunks_exact_mut(height * width).enumerate();
            planes.with_min_len(MIN_ELEMENTS.div_ceil(height * width)).for_each(|(index, y)| {
                plane(&x[place(outer, outer_strides, index)..], *stride, *width, y);
            });
        }
        ([outer @ .., width], [outer_strides @ .., stride]) => {
            let rows = y.par_chunks_exact_mut(*width).enumerate().with_min_len(MIN_ELEMENTS.div_ceil(*width));
            rows.for_each(|(index, out)| {
                let x = &x[place(outer, outer_strides, index)..];
                match stride {
                    1 => out.copy_from_slice(&x[..*width]),
                    _ => out.iter_mut().zip(x.iter().step_by(*stride)).for_each(|(out, x)| *out = *x),
                }
            });
        }
    }
}

/// Rows and columns change places, block by block: a whole row of the result would read as many lines of memory as it is long,
/// and lose them all to the next row's. 4096 × 4096 took 795 ms by rows on two busy cores, and 115 so.
fn plane<T: Pod + Send + Sync>(x: &[T], stride: usize, width: usize, y: &mut [T]) {
    let bands = y.par_chunks_mut(BLOCK * width).enumerate().with_min_len(MIN_ELEMENTS.div_ceil(BLOCK * width));
    bands.for_each(|(band, y)| {
        for first in (0..width).step_by(BLOCK) {
            let columns = first..width.min(first + BLOCK);
            for (row, out) in (band * BLOCK..).zip(y.chunks_exact_mut(width)) {
                for column in columns.clone() {
                    out[column] = x[column * stride + row];
                }
            }
        }
    });
}

/// Where in the input a position of the result's outer axes starts.
fn place(sizes: &[usize], strides: &[usize], mut index: usize) -> usize {
    let mut place = 0;
    for (size, stride) in sizes.iter().zip(strides).rev() {
        place += index % size * stride;
        index /= size;
    }
    place
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_of_element() {
        let shape = TransposeShape { sizes: vec![3, 2], strides: vec![1, 3] };
        let x: Vec<u64> = (0..6).collect();
        let want = [0, 3, 1, 4, 2, 5];
        let mut y = [9u64; 6];
        transpose(&shape, 8, bytemuck::cast_slice(&x), bytemuck::cast_slice_mut(&mut y));
        assert_eq!(y, want);
        let x: Vec<u8> = (0..6).collect();
        let mut y = [9u8; 6];
        transpose(&shape, 1, &x, &mut y);
        assert_eq!(y, want.map(|x| x as u8));
        let x: Vec<u16> = (0..6).collect();
        let mut y = [9u16; 6];
        transpose(&shape, 2, bytemuck::cast_slice(&x), bytemuck::cast_slice_mut(&mut y));
        assert_eq!(y, want.map(|x| x as u16));
    }

    #[test]
    fn nothing_and_one_element() {
        let mut y = [9u8; 1];
        transpose(&TransposeShape { sizes: Vec::new(), strides: Vec::new() }, 1, &[4], &mut y);
        assert_eq!(y, [4]);
        transpose(&TransposeShape { sizes: vec![0, 3], strides: vec![1, 0] }, 1, &[], &mut []);
    }
}
