//! Tensors of tests as kernels get them: in some precision, order and pages, with NaN wherever nothing is to be read.

use crate::cpu::kernels::args::{Elements, ElementsMut, Operand, Pages, Quantised};
use half::{bf16, f16};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    F32,
    F16,
    BF16,
    I8,
}

impl Storage {
    /// What is left of a number. Quantised ones have to fit already.
    pub fn round(self, x: f32) -> f32 {
        match self {
            Self::F32 | Self::I8 => x,
            Self::F16 => f16::from_f32(x).to_f32(),
            Self::BF16 => bf16::from_f32(x).to_f32(),
        }
    }

    /// Half a unit in the last place of an output below one.
    pub fn error(self) -> f64 {
        match self {
            Self::F32 | Self::I8 => 0.0,
            Self::F16 => 2.45e-4,
            Self::BF16 => 1.96e-3,
        }
    }
}

/// Elements of a tensor.
#[derive(Clone)]
pub enum Stored {
    F32(Vec<f32>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
    I8 { levels: Vec<i8>, scales: Vec<f32>, row: usize },
}

impl Stored {
    pub fn new(data: &[f32], storage: Storage) -> Self {
        match storage {
            Storage::F16 => Self::F16(data.iter().map(|&x| f16::from_f32(x)).collect()),
            Storage::BF16 => Self::BF16(data.iter().map(|&x| bf16::from_f32(x)).collect()),
            Storage::F32 | Storage::I8 => Self::F32(data.to_vec()),
        }
    }

    pub fn elements(&self) -> Elements<'_> {
        match self {
            Self::F32(data) => Elements::F32(data),
            Self::F16(data) => Elements::F16(data),
            Self::BF16(data) => Elements::BF16(data),
            Self::I8 { levels, scales, row } => Elements::I8(Quantised { data: levels, scales, row: *row }),
        }
    }

    pub fn elements_mut(&mut self) -> ElementsMut<'_> {
        match self {
            Self::F32(data) => ElementsMut::F32(data),
            Self::F16(data) => ElementsMut::F16(data),
            Self::BF16(data) => ElementsMut::BF16(data),
            Self::I8 { .. } => unreachable!("outputs are not quantised"),
        }
    }
}

/// A tensor `[batch, heads, rows, width]` in memory.
pub struct Placed {
    pub data: Stored,
    pub strides: [usize; 3],
    /// Where it lies in pages: their size, how many a batch element has, how many there are, and which.
    pages: Option<(usize, usize, usize)>,
    pub table: Vec<u32>,
}

/// How it lies there.
#[derive(Clone, Copy)]
pub struct Order {
    pub storage: Storage,
    /// Where it is not zero, heads of a row lie together, and each row or page is followed by as many elements, or rows
    /// of quantised ones.
    pub padding: usize,
    /// Rows of a page.
    pub page_size: Option<usize>,
}

impl Placed {
    /// `scales` has one for each row of quantised data.
    pub fn new(data: &[f32], scales: &[f32], [batch, heads, rows, width]: [usize; 4], order: Order) -> Self {
        let Order { storage, padding, page_size } = order;
        let quantised = storage == Storage::I8;
        let padding = if quantised { padding * width } else { padding };
        // Pages, or batch elements, of so many rows.
        let (pieces, size) = match page_size {
            None => (batch, rows),
            Some(size) => (batch * rows / size + 2, size),
        };
        let strides = match (padding, page_size) {
            (0, _) => [heads * size * width, size * width, width],
            (_, None) => [rows * (heads * width + padding), width, heads * width + padding],
            (_, Some(_)) => [size * heads * width + padding, width, heads * width],
        };
        // Pages lie in the opposite order, and two that nobody has come first.
        let piece_of = |b: usize, row: usize| match page_size {
            None => b,
            Some(_) => pieces - 1 - (b * rows + row) / size,
        };
        // Plain tensors may lack rows at the end.
        let plain = padding == 0 && page_size.is_none();
        let mut flat = vec![f32::NAN; if plain { data.len() } else { pieces * strides[0] }];
        let mut flat_scales = vec![f32::NAN; if quantised { flat.len().div_ceil(width.max(1)) } else { 0 }];
        for (index, values) in data.chunks(width.max(1)).enumerate() {
            let (b, h, row) = (index / rows / heads, index / rows % heads, index % rows);
            let offset = piece_of(b, row) * strides[0] + h * strides[1] + row % size * strides[2];
            let scale = if quantised { scales[index] } else { 1.0 };
            for (to, &x) in flat[offset..].iter_mut().zip(values) {
                *to = if scale > 0.0 { x / scale } else { 0.0 };
            }
            if quantised {
                flat_scales[offset / width] = scale;
            }
        }
        let data = if quantised {
            let levels = flat.iter().map(|level| level.round() as i8).collect();
            Stored::I8 { levels, scales: flat_scales, row: width.max(1) }
        } else {
            Stored::new(&flat, storage)
        };
        let table = (0..batch * rows / size.max(1)).map(|page| (pieces - 1).saturating_sub(page) as u32).collect();
        Self { data, strides, pages: page_size.map(|size| (size, rows / size, pieces)), table }
    }

    pub fn operand<'a>(&'a self, table: &'a [u32]) -> Operand<'a> {
        let pages = self.pages.map(|(size, per_sequence, count)| Pages { table, per_sequence, size, count });
        Operand { data: self.data.elements(), strides: self.strides, pages }
    }

    pub fn page_count(&self) -> usize {
        self.pages.map_or(0, |(_, _, count)| count)
    }
}
