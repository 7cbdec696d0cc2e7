//! Several tensors seen along the axes of one of them, through strides.

/// Most tensors that one walk visits.
pub const TENSORS: usize = 4;

/// One axis: how many positions, and how many elements lie between two of them in each tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Axis {
    /// Positions.
    pub size: usize,
    /// Elements, 0 where the tensor is broadcast, negative where it is read backwards.
    pub strides: [isize; TENSORS],
}

/// The fewest axes that visit the same elements in the same order, slowest first: none of size 1, and no two that one
/// stride would serve.
pub fn merged(axes: &[Axis]) -> Vec<Axis> {
    let mut merged: Vec<Axis> = Vec::with_capacity(axes.len());
    for &axis in axes.iter().filter(|axis| axis.size != 1) {
        let inner = axis.strides.map(|stride| stride * axis.size as isize);
        match merged.last_mut() {
            Some(outer) if outer.strides == inner => *outer = Axis { size: outer.size * axis.size, ..axis },
            _ => merged.push(axis),
        }
    }
    merged
}

/// Offsets of the element at `index`, counted along `axes` in row-major order, in each tensor.
pub fn offsets(axes: &[Axis], index: usize) -> [isize; TENSORS] {
    let mut rest = index;
    let mut offsets = [0; TENSORS];
    for axis in axes.iter().rev() {
        let position = (rest % axis.size) as isize;
        rest /= axis.size;
        offsets.iter_mut().zip(axis.strides).for_each(|(offset, stride)| *offset += position * stride);
    }
    offsets
}

/// Visits `count` elements from `index` on as runs along the last axis: `run(done, length, offsets of the first)`.
pub fn runs(axes: &[Axis], index: usize, count: usize, mut run: impl FnMut(usize, usize, [isize; TENSORS])) {
    let inner = axes.last().map_or(1, |axis| axis.size);
    let mut done = 0;
    while done < count {
        let length = (inner - (index + done) % inner).min(count - done);
        run(done, length, offsets(axes, index + done));
        done += length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(size: usize, strides: [isize; 2]) -> Axis {
        Axis { size, strides: [strides[0], strides[1], 0, 0] }
    }

    #[test]
    fn merges_what_one_stride_serves() {
        let dense = [axis(2, [12, 12]), axis(1, [0, 0]), axis(3, [4, 4]), axis(4, [1, 1])];
        assert_eq!(merged(&dense), [axis(24, [1, 1])]);
        let bias = [axis(2, [12, 0]), axis(3, [4, 0]), axis(4, [1, 1])];
        assert_eq!(merged(&bias), [axis(6, [4, 0]), axis(4, [1, 1])]);
        assert_eq!(merged(&[axis(1, [0, 0])]), []);
        let backwards = [axis(3, [-4, 4]), axis(4, [-1, 1])];
        assert_eq!(merged(&backwards), [axis(12, [-1, 1])]);
    }

    #[test]
    fn runs_cover_every_element_once() {
        let axes = [axis(5, [3, 0]), axis(3, [1, 1])];
        let mut seen = Vec::new();
        runs(&axes, 2, 9, |done, length, [a, b, ..]| {
            assert_eq!(done, seen.len());
            seen.extend((0..length as isize).map(|i| (a + i, b + i)));
        });
        let wanted: Vec<_> = (2..11).map(|i| (i, i % 3)).collect();
        assert_eq!(seen, wanted);
    }
}
