//! What `append_kv` means.

use super::AppendKv;
use crate::op::Rows;
use crate::ops::operands::Layout;
use crate::ops::rotation::RowDefinition;
use crate::tensor::HostTensor;

/// A new row: batch, head and number.
type New = [usize; 3];

/// What a new row becomes on its way.
type Becomes<'a> = dyn Fn(New) -> Vec<f64> + Sync + 'a;

/// Keys, values, lengths and scales after the append.
pub(super) fn append(op: &AppendKv, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
    let tensors = op.split(inputs);
    let [k, v] = [tensors.k, tensors.v].map(|tensor| NewRows::new(op, inputs, tensor));
    let lengths = tensors.lengths.to_f64();
    let angles = tensors.angles.map(|[cos, sin]| (cos.shape(), cos.to_f64(), sin.to_f64()));
    let definition = RowDefinition {
        norm: op.key_norm.map(|norm| (norm.epsilon, tensors.weight.map(|weight| weight.to_f64()))),
        turning: angles.as_ref().map_or(0, |(shape, ..)| shape[shape.len() - 1]),
        rotation: op.rotary.zip(angles.clone()).map(|(pairs, (_, cos, sin))| (cos, sin, pairs)),
    };
    let key = |new @ [b, _, i]: New| {
        let angles = match &angles {
            Some(([positions, _], ..)) => (lengths[b] as usize + i).min(positions - 1),
            _ => b * k.seq + i,
        };
        definition.apply(k.get(new), angles)
    };
    let value = |new: New| v.get(new).to_vec();
    let (places, after) = places(op, inputs, &k);
    let caches: [(&HostTensor, &Becomes<'_>); 2] = [(tensors.keys, &key), (tensors.values, &value)];
    let mut outputs: Vec<HostTensor> = caches
        .iter()
        .map(|(cache, new)| {
            let before = cache.to_f64();
            rows.compute(cache.shape(), |row, out| match places[row] {
                None => out.copy_from_slice(&before[row * out.len()..(row + 1) * out.len()]),
                Some(place) => out.copy_from_slice(&stored(op, new(place)).0),
            })
        })
        .collect();
    outputs.push(HostTensor::f64(&[lengths.len()], after).expect("one for each"));
    for (scales, (_, new)) in tensors.scales.into_iter().flatten().zip(caches) {
        let mut data = scales.to_f64();
        for (scale, place) in data.iter_mut().zip(&places) {
            *scale = place.map_or(*scale, |place| stored(op, new(place)).1);
        }
        outputs.push(HostTensor::f64(scales.shape(), data).expect("as many as before"));
    }
    outputs
}

/// The new row that each row of the caches gets, if any, and the lengths afterwards.
fn places(op: &AppendKv, inputs: &[&HostTensor], k: &NewRows) -> (Vec<Option<New>>, Vec<f64>) {
    let tensors = op.split(inputs);
    let cache = tensors.keys.shape();
    let capacity = tensors.block_table.map_or(cache[2], |table| table.shape()[1] * cache[1]);
    let table = tensors.block_table.map(|table| table.to_f64());
    let mut places = vec![None; cache[..3].iter().product()];
    let mut after = Vec::new();
    for (b, length) in tensors.lengths.to_f64().into_iter().enumerate() {
        let new = tensors.new_lengths.map_or(k.seq, |new| (new.to_f64()[b] as usize).min(k.seq));
        let length = length as usize;
        after.push((length + new).min(capacity) as f64);
        for (head, i) in (0..k.heads).flat_map(|head| (0..new).map(move |i| (head, i))) {
            let position = length + i;
            if position >= capacity {
                continue;
            }
            let row = match &table {
                None => (b * k.heads + head) * capacity + position,
                Some(table) => {
                    let page = table[b * (capacity / cache[1]) + position / cache[1]] as usize;
                    (page.min(cache[0] - 1) * cache[1] + position % cache[1]) * k.heads + head
                }
            };
            places[row] = Some([b, head, i]);
        }
    }
    (places, after)
}

/// A row as the cache stores it, and its scale.
fn stored(op: &AppendKv, row: Vec<f64>) -> (Vec<f64>, f64) {
    if !op.quantised {
        return (row, 0.0);
    }
    let scale = row.iter().fold(0.0, |largest: f64, x| largest.max(x.abs())) / 127.0;
    let level = |x: &f64| if scale == 0.0 { 0.0 } else { (x / scale).round_ties_even().clamp(-127.0, 127.0) };
    (row.iter().map(level).collect(), scale)
}

/// New keys or values, whatever their layout.
struct NewRows {
    data: Vec<f64>,
    layout: Layout,
    heads: usize,
    seq: usize,
    head_dim: usize,
}

impl NewRows {
    fn new(op: &AppendKv, inputs: &[&HostTensor], tensor: &HostTensor) -> Self {
        let cache = op.split(inputs).keys.shape();
        let heads = cache[if op.paged { 2 } else { 1 }];
        let shape = tensor.shape();
        let axis = |from_the_end: usize| if shape.len() < from_the_end { 1 } else { shape[shape.len() - from_the_end] };
        let (seq, head_dim) = match op.layout {
            Layout::HeadsFirst => (axis(2), axis(1)),
            Layout::SeqFirst => (axis(3), axis(1)),
            Layout::Merged { heads } | Layout::Joined { heads, .. } => (axis(2), axis(1) / heads),
        };
        Self { data: tensor.to_f64(), layout: op.layout, heads, seq, head_dim }
    }

    fn get(&self, [b, head, i]: New) -> &[f64] {
        let row = match self.layout {
            Layout::HeadsFirst => (b * self.heads + head) * self.seq + i,
            Layout::SeqFirst | Layout::Merged { .. } | Layout::Joined { .. } => (b * self.seq + i) * self.heads + head,
        };
        &self.data[row * self.head_dim..(row + 1) * self.head_dim]
    }
}
