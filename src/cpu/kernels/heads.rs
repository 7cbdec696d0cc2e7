//! Moving the head axis: `[batch, seq, heads × head_dim]` to and from `[batch, heads, seq, head_dim]`.
//!
//! A row of one head is contiguous in both layouts, so the copies move bytes and serve every element type.

use rayon::prelude::*;

/// Sizes of a tensor whose heads are split or merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadsShape {
    /// Independent sequences.
    pub batch: usize,
    /// Positions of a sequence.
    pub seq: usize,
    /// Heads.
    pub heads: usize,
    /// Bytes of one head at one position: `head_dim` times the size of an element.
    pub row_bytes: usize,
}

impl HeadsShape {
    fn bytes(&self) -> usize {
        self.batch * self.seq * self.heads * self.row_bytes
    }
}

/// Fewest bytes worth a task of their own.
const MIN_BYTES: usize = 1 << 16;

/// Copies `[batch, seq, heads, row]` into `[batch, heads, seq, row]`.
pub fn split_heads(shape: HeadsShape, merged: &[u8], split: &mut [u8]) {
    let HeadsShape { seq, heads, row_bytes, .. } = shape;
    if shape.bytes() == 0 {
        return;
    }
    let head_bytes = seq * row_bytes;
    let chunks = split.par_chunks_exact_mut(head_bytes).enumerate();
    chunks.with_min_len(MIN_BYTES.div_ceil(head_bytes)).for_each(|(index, out)| {
        let (batch, head) = (index / heads, index % heads);
        let first = (batch * seq * heads + head) * row_bytes;
        for (position, row) in out.chunks_exact_mut(row_bytes).enumerate() {
            row.copy_from_slice(&merged[first + position * heads * row_bytes..][..row_bytes]);
        }
    });
}

/// Copies `[batch, heads, seq, row]` into `[batch, seq, heads, row]`.
pub fn merge_heads(shape: HeadsShape, split: &[u8], merged: &mut [u8]) {
    let HeadsShape { seq, heads, row_bytes, .. } = shape;
    if shape.bytes() == 0 {
        return;
    }
    let position_bytes = heads * row_bytes;
    let chunks = merged.par_chunks_exact_mut(position_bytes).enumerate();
    chunks.with_min_len(MIN_BYTES.div_ceil(position_bytes)).for_each(|(index, out)| {
        let (batch, position) = (index / seq, index % seq);
        let first = (batch * heads * seq + position) * row_bytes;
        for (head, row) in out.chunks_exact_mut(row_bytes).enumerate() {
            row.copy_from_slice(&split[first + head * seq * row_bytes..][..row_bytes]);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(batch: usize, seq: usize, heads: usize, head_dim: usize) {
        let count = batch * seq * heads * head_dim;
        let merged: Vec<u32> = (0..count as u32).collect();
        let mut split = vec![u32::MAX; count];
        let shape = HeadsShape { batch, seq, heads, row_bytes: 4 * head_dim };
        split_heads(shape, bytemuck::cast_slice(&merged), bytemuck::cast_slice_mut(&mut split));
        for (index, &value) in merged.iter().enumerate() {
            let (d, h) = (index % head_dim, index / head_dim % heads);
            let (s, b) = (index / head_dim / heads % seq, index / head_dim / heads / seq);
            assert_eq!(split[((b * heads + h) * seq + s) * head_dim + d], value);
        }
        let mut back = vec![u32::MAX; count];
        merge_heads(shape, bytemuck::cast_slice(&split), bytemuck::cast_slice_mut(&mut back));
        assert_eq!(back, merged);
    }

    #[test]
    fn four_byte_elements() {
        for (batch, seq, heads, head_dim) in
            [(1, 1, 1, 1), (2, 3, 5, 7), (3, 129, 4, 64), (1, 1, 8, 40), (0, 3, 2, 1), (2, 0, 2, 3), (2, 2, 2, 0)]
        {
            check(batch, seq, heads, head_dim);
        }
    }

    #[test]
    fn two_byte_elements() {
        let merged: Vec<u16> = (0..12).collect();
        let mut split = [0u16; 12];
        let shape = HeadsShape { batch: 1, seq: 2, heads: 2, row_bytes: 6 };
        split_heads(shape, bytemuck::cast_slice(&merged), bytemuck::cast_slice_mut(&mut split));
        assert_eq!(split, [0, 1, 2, 6, 7, 8, 3, 4, 5, 9, 10, 11]);
    }
}
