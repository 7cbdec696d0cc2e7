//! Cases of `append_kv`, and its definition worked out by hand.

use super::AppendKv;
use crate::case::{Case, CaseInput, Values};
use crate::compare::Tolerance;
use crate::ops::operands::Layout;
use crate::ops::rotation::{NormRule, Pairs};
use crate::ops::{EPSILON_F16, EPSILON_F32};
use crate::tensor::{Dtype, HostTensor};

/// One case before it is drawn.
#[derive(Clone)]
struct Draft {
    name: &'static str,
    batch: usize,
    kv_heads: usize,
    seq_new: usize,
    capacity: usize,
    head_dim: usize,
    head_dim_v: usize,
    layout: Layout,
    /// Of the new rows, the cache, the angles and the weight.
    dtypes: [Dtype; 4],
    lengths: &'static [u32],
    new_lengths: Option<&'static [u32]>,
    /// Pages that there are, rows of each, and which each sequence has.
    pages: Option<(usize, usize, &'static [u32])>,
    /// Shape of the angles.
    angles: Option<(&'static [usize], Pairs)>,
    /// Whether the norm has a weight.
    norm: Option<bool>,
}

/// Rows and capacity around the edges, odd sizes, layouts, dtypes, pages, padding, lengths and pages that are out of range,
/// zero sizes.
pub(in crate::ops) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtypes in [
        [Dtype::F32; 4],
        [Dtype::F16; 4],
        [Dtype::F32, Dtype::F16, Dtype::F32, Dtype::F32],
        [Dtype::F16, Dtype::F32, Dtype::F16, Dtype::F32],
        [Dtype::F32, Dtype::I8, Dtype::F32, Dtype::F32],
        [Dtype::F16, Dtype::I8, Dtype::F32, Dtype::F16],
    ] {
        let aligned = drafts().into_iter().filter(|draft| dtypes[1] != Dtype::I8 || draft.takes_levels());
        cases.extend(aligned.map(|draft| Draft { dtypes, ..draft }.case()));
    }
    cases
}

fn drafts() -> Vec<Draft> {
    let plain = Draft {
        name: "plain",
        batch: 3,
        kv_heads: 2,
        seq_new: 5,
        capacity: 16,
        head_dim: 16,
        head_dim_v: 12,
        layout: Layout::HeadsFirst,
        dtypes: [Dtype::F32; 4],
        lengths: &[0, 7, 11],
        new_lengths: None,
        pages: None,
        angles: None,
        norm: None,
    };
    let plain = || plain.clone();
    let pages: &[u32] = &[6, 2, 4, 0, 1, 7, 3, 5, 8];
    let paged = || Draft { name: "paged", pages: Some((9, 5, pages)), capacity: 15, lengths: &[0, 4, 8], ..plain() };
    let turned = || Draft { name: "turned", angles: Some((&[16, 8], Pairs::Halves)), ..plain() };
    let merged = Layout::Merged { heads: 2 };
    vec![
        plain(),
        Draft { name: "one row", seq_new: 1, lengths: &[0, 9, 15], ..plain() },
        Draft { name: "odd widths", head_dim: 33, head_dim_v: 7, kv_heads: 3, ..plain() },
        Draft { name: "wide", head_dim: 132, head_dim_v: 260, batch: 1, lengths: &[2], ..plain() },
        Draft { name: "one element", head_dim: 1, head_dim_v: 1, batch: 1, kv_heads: 1, lengths: &[3], ..plain() },
        Draft { name: "seq first", layout: Layout::SeqFirst, ..plain() },
        Draft { name: "merged", layout: merged, new_lengths: Some(&[5, 0, 3]), ..plain() },
        Draft { name: "padded", new_lengths: Some(&[2, 5, 1]), ..plain() },
        Draft { name: "past the end", lengths: &[13, 16, u32::MAX], new_lengths: Some(&[u32::MAX, 2, 1]), ..plain() },
        turned(),
        Draft { name: "turned in part", angles: Some((&[16, 3], Pairs::Interleaved)), norm: Some(true), ..turned() },
        Draft { name: "turned past the end", angles: Some((&[9, 8], Pairs::Halves)), norm: Some(false), ..turned() },
        Draft { name: "own angles", angles: Some((&[3, 5, 8], Pairs::Interleaved)), layout: merged, ..turned() },
        Draft { name: "normed", norm: Some(true), layout: Layout::SeqFirst, ..plain() },
        paged(),
        Draft { name: "paged, padded, turned", new_lengths: Some(&[3, 0, 9]), norm: Some(true), ..paged() },
        Draft { name: "paged and full", lengths: &[12, 15, 99], angles: Some((&[15, 4], Pairs::Halves)), ..paged() },
        Draft { name: "a page too many", batch: 1, lengths: &[3], pages: Some((4, 5, &[0, 99, 2])), ..paged() },
        Draft { name: "nothing new", seq_new: 0, lengths: &[3, 16, 17], ..plain() },
        Draft { name: "no heads", kv_heads: 0, ..plain() },
        Draft { name: "no batch", batch: 0, lengths: &[], ..plain() },
        Draft { name: "no room", capacity: 0, ..plain() },
        Draft { name: "no width", head_dim: 0, head_dim_v: 0, ..plain() },
    ]
}

impl Draft {
    fn takes_levels(&self) -> bool {
        self.head_dim.is_multiple_of(4) && self.head_dim_v.is_multiple_of(4)
    }

    fn case(self) -> Case {
        let [dtype, cache, angle, weight] = self.dtypes;
        let numbers = |shape: &[usize], data: &[u32]| {
            let tensor = HostTensor::u32(shape, data.to_vec()).expect("one for each");
            CaseInput { desc: tensor.desc().clone(), values: Values::Given(tensor) }
        };
        let dims = [self.head_dim, self.head_dim_v];
        let outer = match self.pages {
            Some((count, size, _)) => [count, size, self.kv_heads],
            None => [self.batch, self.kv_heads, self.capacity],
        };
        let mut inputs: Vec<CaseInput> =
            dims.iter().map(|dim| CaseInput::normal(dtype, &self.new_shape(*dim), 1.0)).collect();
        let deviation = if cache == Dtype::I8 { 40.0 } else { 1.0 };
        inputs.extend(dims.iter().map(|dim| CaseInput::normal(cache, &[&outer[..], &[*dim]].concat(), deviation)));
        inputs.push(numbers(&[self.batch], self.lengths));
        if cache == Dtype::I8 {
            inputs.extend([CaseInput::normal(Dtype::F32, &outer, 0.01), CaseInput::normal(Dtype::F32, &outer, 0.01)]);
        }
        inputs.extend(self.pages.map(|(_, _, table)| numbers(&[self.batch, table.len() / self.batch], table)));
        inputs.extend(self.new_lengths.map(|new| numbers(&[self.batch], new)));
        let angles = self.angles.map(|(shape, _)| CaseInput::normal(angle, shape, 1.0));
        inputs.extend(angles.into_iter().flat_map(|angles| [angles.clone(), angles]));
        inputs.extend((self.norm == Some(true)).then(|| CaseInput::normal(weight, &[self.head_dim], 1.0)));
        let op = AppendKv {
            layout: self.layout,
            quantised: cache == Dtype::I8,
            paged: self.pages.is_some(),
            counted: self.new_lengths.is_some(),
            rotary: self.angles.map(|(_, pairs)| pairs),
            key_norm: self.norm.map(|has_weight| NormRule { epsilon: 1e-6, has_weight }),
        };
        Case::new(format!("{} {dtype} into {cache}", self.name), op, inputs, self.tolerance())
    }

    fn new_shape(&self, dim: usize) -> Vec<usize> {
        let Self { batch, kv_heads, seq_new, .. } = *self;
        match self.layout {
            Layout::HeadsFirst => vec![batch, kv_heads, seq_new, dim],
            Layout::SeqFirst => vec![batch, seq_new, kv_heads, dim],
            Layout::Merged { heads } | Layout::Joined { heads, .. } => vec![batch, seq_new, heads * dim],
        }
    }

    /// Of floats and of scales. Turning takes three roundings, a norm those of a root of √head_dim and two products, a scale one.
    fn tolerance(&self) -> Tolerance {
        let turned = if self.angles.is_some() { 4.0 } else { 0.0 };
        let normed = if self.norm.is_some() { 8.0 + (self.head_dim as f64).sqrt() } else { 0.0 };
        let scaled = if self.dtypes[1] == Dtype::I8 { 4.0 } else { 0.0 };
        let storage = if self.dtypes[1] == Dtype::F16 { EPSILON_F16 } else { 0.0 };
        Tolerance::of_scale((turned + normed + scaled) * EPSILON_F32 + storage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::{Op, Rows};
    use crate::tensor::TensorDesc;

    fn floats(shape: &[usize], first: usize) -> HostTensor {
        let len: usize = shape.iter().product();
        HostTensor::f32(shape, (first..first + len).map(|x| x as f32).collect()).unwrap()
    }

    fn numbers(data: &[u32]) -> HostTensor {
        HostTensor::u32(&[data.len()], data.to_vec()).unwrap()
    }

    fn descs(inputs: &[&HostTensor]) -> Vec<TensorDesc> {
        inputs.iter().map(|input| input.desc().clone()).collect()
    }

    #[test]
    fn reference_by_hand() {
        // Two sequences, one head, room for three rows of one element.
        let (k, v) = (floats(&[2, 1, 2, 1], 10), floats(&[2, 1, 2, 1], 20));
        let cache = HostTensor::zeros(TensorDesc::new(Dtype::F32, [2, 1, 3, 1]));
        let lengths = numbers(&[1, 2]);
        let op = AppendKv::default();
        let out = op.reference(&[&k, &v, &cache, &cache, &lengths], Rows::All);
        assert_eq!(out[0].as_f64().unwrap(), [0.0, 10.0, 11.0, 0.0, 0.0, 12.0]);
        assert_eq!(out[1].as_f64().unwrap(), [0.0, 20.0, 21.0, 0.0, 0.0, 22.0]);
        assert_eq!(out[2].as_f64().unwrap(), [3.0, 3.0]);
        let counted = AppendKv { counted: true, ..op };
        let out = counted.reference(&[&k, &v, &cache, &cache, &lengths, &numbers(&[1, 0])], Rows::All);
        assert_eq!(out[0].as_f64().unwrap(), [0.0, 10.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(out[2].as_f64().unwrap(), [2.0, 2.0]);
    }

    #[test]
    fn pages_by_hand() {
        // Three pages of two rows; the sequence has page 2, then page 0.
        let (k, v) = (floats(&[1, 1, 2, 1], 10), floats(&[1, 1, 2, 1], 20));
        let cache = HostTensor::zeros(TensorDesc::new(Dtype::F32, [3, 2, 1, 1]));
        let table = numbers(&[2, 0]).reshape(&[1, 2]).unwrap();
        let op = AppendKv { paged: true, ..AppendKv::default() };
        let out = op.reference(&[&k, &v, &cache, &cache, &numbers(&[1]), &table], Rows::All);
        assert_eq!(out[0].as_f64().unwrap(), [11.0, 0.0, 0.0, 0.0, 0.0, 10.0]);
        let error = |lengths: &[u32], pages: &[u32]| {
            let table = numbers(pages).reshape(&[1, 2]).unwrap();
            let lengths = numbers(lengths);
            let inputs = [&k, &v, &cache, &cache, &lengths, &table];
            let data: Vec<_> = inputs.iter().map(|tensor| tensor.as_u32().map(|_| *tensor)).collect();
            op.check(&descs(&inputs), &data).map_err(|error| error.to_string())
        };
        assert_eq!(error(&[1], &[2, 0]), Ok(()));
        assert_eq!(error(&[2], &[99, 0]), Ok(()), "a page that is not written is nobody's business");
        assert_eq!(error(&[0], &[3, 0]).unwrap_err(), "append_kv: page 0 of sequence 0 is 3, the cache has 3");
        let expected = "append_kv: sequence 0 has 3 keys and 2 more come, the cache holds 4";
        assert_eq!(error(&[3], &[2, 0]).unwrap_err(), expected);
        assert_eq!(
            error(&[1], &[1, 1]).unwrap_err(),
            "append_kv: page 1 would get rows of sequence 0 and of sequence 0"
        );
    }

    #[test]
    fn levels_by_hand() {
        let k = HostTensor::f32(&[1, 1, 1, 4], vec![254.0, -3.0, 1.0, 0.0]).unwrap();
        let v = HostTensor::f32(&[1, 1, 1, 4], vec![0.0; 4]).unwrap();
        let cache = HostTensor::i8(&[1, 1, 1, 4], vec![9; 4]).unwrap();
        let scales = floats(&[1, 1, 1], 9);
        let op = AppendKv { quantised: true, ..AppendKv::default() };
        let out = op.reference(&[&k, &v, &cache, &cache, &numbers(&[0]), &scales, &scales], Rows::All);
        assert_eq!(out[0].as_f64().unwrap(), [127.0, -2.0, 0.0, 0.0]);
        assert_eq!(out[1].as_f64().unwrap(), [0.0; 4]);
        assert_eq!((out[3].as_f64().unwrap(), out[4].as_f64().unwrap()), (&[2.0][..], &[0.0][..]));
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let f32s = |shape: &[usize]| TensorDesc::new(Dtype::F32, shape);
        let lengths = TensorDesc::new(Dtype::U32, [2]);
        let (new, cache) = (f32s(&[2, 3, 4, 8]), f32s(&[2, 3, 9, 8]));
        let refused = |op: AppendKv, inputs: &[&TensorDesc], part: &str| {
            let inputs: Vec<_> = inputs.iter().map(|&desc| desc.clone()).collect();
            let error = op.outputs(&inputs).unwrap_err().to_string();
            assert!(error.starts_with("append_kv: ") && error.contains(part), "{error}");
        };
        let plain = AppendKv::default();
        refused(plain, &[&new, &new], "takes 5 tensors with these options, got 2");
        refused(plain, &[&new, &f32s(&[2, 3, 5, 8]), &cache, &cache, &lengths], "they may differ in head_dim only");
        refused(plain, &[&new, &new, &f32s(&[2, 4, 9, 8]), &cache, &lengths], "must be [2, 3, capacity, 8]");
        refused(plain, &[&new, &new, &cache, &f32s(&[2, 3, 8, 8]), &lengths], "must be [2, 3, capacity, 8]");
        refused(plain, &[&new, &new, &cache, &cache, &f32s(&[2])], "lengths is f32 [2], it must be u32 [2]");
        let levels = TensorDesc::new(Dtype::I8, [2, 3, 9, 8]);
        refused(plain, &[&new, &new, &levels, &levels, &lengths], "both must be f32 or f16, or i8 with scales");
        let quantised = AppendKv { quantised: true, ..plain };
        let (scales, short) = (f32s(&[2, 3, 9]), f32s(&[2, 3, 8]));
        refused(quantised, &[&new, &new, &cache, &cache, &lengths, &scales, &scales], "both must be i8, having scales");
        let message = "the value scales are f32 [2, 3, 8], they must be f32 [2, 3, 9]";
        refused(quantised, &[&new, &new, &levels, &levels, &lengths, &scales, &short], message);
        let odd = f32s(&[2, 3, 4, 6]);
        let odd_levels = TensorDesc::new(Dtype::I8, [2, 3, 9, 6]);
        let message = "a multiple of 4, got 6";
        refused(quantised, &[&odd, &odd, &odd_levels, &odd_levels, &lengths, &scales, &scales], message);
        let paged = AppendKv { paged: true, ..plain };
        let table = TensorDesc::new(Dtype::U32, [3, 2]);
        refused(paged, &[&new, &new, &cache, &cache, &lengths, &table], "must be [pages, page_size, 3, 8]");
        let pages = f32s(&[7, 16, 3, 8]);
        refused(
            paged,
            &[&new, &new, &pages, &pages, &lengths, &table],
            "block_table is u32 [3, 2], it must be u32 [2,",
        );
    }
}
