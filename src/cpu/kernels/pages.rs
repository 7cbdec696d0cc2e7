//! Rows out of the pages of a cache.

use rayon::prelude::*;

use super::args::Pages;

/// Copies `[pages, page_size, heads, row]` into `[batch, heads, keys, row]` by a block table; rows are bytes. Keys at or past
/// `lengths` are zero and not read.
#[derive(Debug, Clone, Copy)]
pub struct GatherArgs<'a> {
    /// Where each key lies.
    pub pages: Pages<'a>,
    /// Heads of a key.
    pub heads: usize,
    /// Bytes of one head of a key.
    pub row_bytes: usize,
    /// How many keys of each sequence exist.
    pub lengths: Option<&'a [u32]>,
}

/// As [`GatherArgs`] says.
pub fn gather_pages(args: &GatherArgs<'_>, x: &[u8], y: &mut [u8]) {
    let GatherArgs { pages, heads, row_bytes, lengths } = *args;
    let keys = pages.per_sequence * pages.size;
    if y.is_empty() {
        return;
    }
    y.par_chunks_exact_mut(keys * row_bytes).enumerate().for_each(|(at, y)| {
        let (batch, head) = (at / heads, at % heads);
        let length = lengths.map_or(keys, |lengths| keys.min(lengths[batch] as usize));
        let (exist, rest) = y.split_at_mut(length * row_bytes);
        rest.fill(0);
        for (key, row) in exist.chunks_exact_mut(row_bytes).enumerate() {
            let page = pages.table[batch * pages.per_sequence + key / pages.size] as usize;
            let from = (page.min(pages.count - 1) * pages.size + key % pages.size) * heads + head;
            row.copy_from_slice(&x[from * row_bytes..][..row_bytes]);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_by_hand() {
        let x: Vec<u8> = (0..12).collect(); // three pages of two rows, two heads of one byte
        let pages = Pages { table: &[2, 0], per_sequence: 2, size: 2, count: 3 };
        let mut y = [99; 8];
        gather_pages(&GatherArgs { pages, heads: 2, row_bytes: 1, lengths: Some(&[3]) }, &x, &mut y);
        assert_eq!(y, [8, 10, 0, 0, 9, 11, 1, 0]);
        gather_pages(
            &GatherArgs { pages: Pages { table: &[7, 1], ..pages }, heads: 2, row_bytes: 1, lengths: None },
            &x,
            &mut y,
        );
        assert_eq!(y, [8, 10, 4, 6, 9, 11, 5, 7]);
    }
}
