//! Attention over some of the axes of a tensor, as `keras.layers.MultiHeadAttention` has it.

use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::tensor::HostTensor;

/// Which axes of `[batch, .., features]` are attended over, jointly; the others but the last count as batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttendedAxes {
    rank: usize,
    axes: Vec<usize>,
}

impl AttendedAxes {
    /// All axes between batch and features.
    ///
    /// # Errors
    /// A rank below 3.
    pub fn all(rank: usize) -> Result<Self> {
        Self::new(rank, &(1..rank.saturating_sub(1)).collect::<Vec<_>>())
    }

    /// These axes of a tensor of this rank.
    ///
    /// # Errors
    /// No axis, one given twice, the first or last, or one that is not there.
    pub fn new(rank: usize, axes: &[usize]) -> Result<Self> {
        let inner = |axis: &usize| (1..rank.saturating_sub(1)).contains(axis);
        let repeated = axes.iter().enumerate().any(|(at, axis)| axes[..at].contains(axis));
        if axes.is_empty() || repeated || !axes.iter().all(inner) {
            let message = format!("axes {axes:?} are attended, of rank {rank} it may be those between first and last");
            return Err(Error::option("multi_head_attention", message));
        }
        Ok(Self { rank, axes: axes.to_vec() })
    }

    /// `[batch, .., features]` into `[batch × .., seq, features]`.
    ///
    /// # Errors
    /// A tensor of another rank.
    pub fn fold(&self, graph: &mut Graph, x: Tensor) -> Result<Tensor> {
        let shape = graph.desc(x)?.shape.clone();
        self.check(&shape)?;
        let x = permute(graph, x, &self.order())?;
        let features = shape[self.rank - 1];
        graph.reshape(x, &[self.product(&shape, &self.batch()), self.product(&shape, &self.axes), features])
    }

    /// A result `[batch × .., seq, features]` in the order of the axes of the query, whose shape is given.
    ///
    /// # Errors
    /// A shape that does not fit.
    pub fn unfold(&self, graph: &mut Graph, y: Tensor, query: &[usize]) -> Result<Tensor> {
        self.check(query)?;
        let features = graph.desc(y)?.row_length();
        let order = self.order();
        let mut shape: Vec<usize> = order.iter().map(|&axis| query[axis]).collect();
        shape[self.rank - 1] = features;
        let y = graph.reshape(y, &shape)?;
        let mut inverse = vec![0; self.rank];
        order.iter().enumerate().for_each(|(at, &axis)| inverse[axis] = at);
        permute(graph, y, &inverse)
    }

    /// Scores `[batch × .., heads, seq_q, seq_kv]` as Keras returns them: `[batch, .., heads, query axes, key axes]`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn unfold_scores(&self, graph: &mut Graph, scores: Tensor, [query, key]: [&[usize]; 2]) -> Result<Tensor> {
        self.check(query)?;
        self.check(key)?;
        let heads = graph.desc(scores)?.shape.get(1).copied().unwrap_or(0);
        let batch = self.batch();
        let sizes = |shape: &[usize], axes: &[usize]| axes.iter().map(|&axis| shape[axis]).collect::<Vec<_>>();
        let shape = [sizes(query, &batch), vec![heads], sizes(query, &self.axes), sizes(key, &self.axes)].concat();
        graph.reshape(scores, &shape)
    }

    /// Keras' boolean masks, true where a key takes part, joined and in the shape of folded scores. They broadcast against
    /// each other, and axes that they lack, heads at least, are put before those of the query.
    ///
    /// # Errors
    /// Masks that do not broadcast to the scores; names both shapes.
    pub fn mask(&self, masks: &[HostTensor], [query, key]: [&[usize]; 2]) -> Result<Option<HostTensor>> {
        let Some((first, others)) = masks.split_first() else { return Ok(None) };
        let mut joined = (first.shape().to_vec(), truth(first));
        for mask in others {
            joined = conjunction((&joined.0, &joined.1), (mask.shape(), &truth(mask)))?;
        }
        let (mut shape, data) = joined;
        let attended = self.axes.len();
        let batch = self.batch();
        let size = |shape: &[usize], axes: &[usize]| axes.iter().map(|&axis| shape[axis]).collect::<Vec<_>>();
        let mut full = [size(query, &batch), vec![1], size(query, &self.axes), size(key, &self.axes)].concat();
        let fail = |shape: &[usize]| {
            Error::shape("multi_head_attention", format!("masks are {shape:?} together, scores are {full:?}"))
        };
        if shape.len() < 2 * attended || shape.len() > full.len() {
            return Err(fail(&shape));
        }
        let leading = shape.len() - 2 * attended;
        let missing = full.len() - shape.len();
        shape.splice(leading..leading, std::iter::repeat_n(1, missing));
        if shape.iter().zip(&full).enumerate().any(|(at, (&got, &all))| got != all && got != 1 && at != batch.len()) {
            return Err(fail(&shape));
        }
        full[batch.len()] = shape[batch.len()];
        if shape[..batch.len()].iter().all(|&size| size == 1) {
            full[..batch.len()].fill(1);
        }
        let data = spread(&shape, &data, &full);
        let product = |sizes: &[usize]| sizes.iter().product();
        let (rows, keys) = full.split_at(full.len() - attended);
        let (rows, queries) = rows.split_at(rows.len() - attended);
        let folded = [product(&rows[..batch.len()]), rows[batch.len()], product(queries), product(keys)];
        HostTensor::bool(&folded, data).map(Some)
    }

    /// Axes that count as batch.
    fn batch(&self) -> Vec<usize> {
        (0..self.rank - 1).filter(|axis| !self.axes.contains(axis)).collect()
    }

    fn order(&self) -> Vec<usize> {
        [self.batch(), self.axes.clone(), vec![self.rank - 1]].concat()
    }

    fn product(&self, shape: &[usize], axes: &[usize]) -> usize {
        axes.iter().map(|&axis| shape[axis]).product()
    }

    fn check(&self, shape: &[usize]) -> Result<()> {
        if shape.len() == self.rank {
            return Ok(());
        }
        let message = format!("axes {:?} of rank {} are attended, got {shape:?}", self.axes, self.rank);
        Err(Error::shape("multi_head_attention", message))
    }
}

fn permute(graph: &mut Graph, x: Tensor, order: &[usize]) -> Result<Tensor> {
    if order.is_sorted() { Ok(x) } else { graph.transpose(x, order) }
}

fn truth(mask: &HostTensor) -> Vec<bool> {
    mask.to_f64().into_iter().map(|x| x != 0.0).collect()
}

/// Both masks at once, broadcast as in numpy.
fn conjunction(a: (&[usize], &[bool]), b: (&[usize], &[bool])) -> Result<(Vec<usize>, Vec<bool>)> {
    let rank = a.0.len().max(b.0.len());
    let padded = |shape: &[usize]| [vec![1; rank - shape.len()], shape.to_vec()].concat();
    let (left, right) = (padded(a.0), padded(b.0));
    if left.iter().zip(&right).any(|(&x, &y)| x != y && x != 1 && y != 1) {
        let message = format!("masks {:?} and {:?} do not broadcast", a.0, b.0);
        return Err(Error::shape("multi_head_attention", message));
    }
    let shape: Vec<usize> = left.iter().zip(&right).map(|(&x, &y)| if x == 1 { y } else { x }).collect();
    let data = spread(&left, a.1, &shape).into_iter().zip(spread(&right, b.1, &shape)).map(|(x, y)| x && y).collect();
    Ok((shape, data))
}

/// A mask repeated along the axes where it has size 1.
fn spread(shape: &[usize], data: &[bool], full: &[usize]) -> Vec<bool> {
    let element = |mut position: usize| {
        let (mut offset, mut stride) = (0, 1);
        for (&size, &all) in shape.iter().zip(full).rev() {
            offset += if size == 1 { 0 } else { position % all * stride };
            position /= all;
            stride *= size;
        }
        data[offset]
    };
    (0..full.iter().product()).map(element).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Dtype, TensorDesc};

    #[test]
    fn what_is_folded_unfolds() {
        let axes = AttendedAxes::new(4, &[1]).unwrap();
        let mut graph = Graph::new();
        let x = graph.input("x", TensorDesc::new(Dtype::F32, [2, 3, 4, 5])).unwrap();
        let folded = axes.fold(&mut graph, x).unwrap();
        assert_eq!(graph.desc(folded).unwrap().shape, [8, 3, 5]);
        let y = axes.unfold(&mut graph, folded, &[2, 3, 4, 5]).unwrap();
        assert_eq!(graph.desc(y).unwrap().shape, [2, 3, 4, 5]);
        let scores = graph.input("scores", TensorDesc::new(Dtype::F32, [8, 6, 3, 3])).unwrap();
        let scores = axes.unfold_scores(&mut graph, scores, [&[2, 3, 4, 5]; 2]).unwrap();
        assert_eq!(graph.desc(scores).unwrap().shape, [2, 4, 6, 3, 3]);
    }

    #[test]
    fn masks_join_and_fold() {
        let axes = AttendedAxes::all(3).unwrap();
        let mask = |shape: &[usize], data: &[u8]| {
            HostTensor::bool(shape, data.iter().map(|&x| x == 1).collect()).expect("the data fits")
        };
        let rows = mask(&[1, 2, 2], &[1, 0, 1, 1]);
        let keys = mask(&[2, 1, 2], &[1, 1, 0, 1]);
        let joined = axes.mask(&[rows, keys], [&[2, 2, 7], &[2, 2, 7]]).unwrap().unwrap();
        assert_eq!(joined, mask(&[2, 1, 2, 2], &[1, 0, 1, 1, 0, 0, 0, 1]));
        let wrong = mask(&[3, 2], &[1; 6]);
        let message = axes.mask(&[wrong], [&[2, 2, 7], &[2, 2, 7]]).unwrap_err().to_string();
        assert_eq!(message, "multi_head_attention: masks are [1, 1, 3, 2] together, scores are [2, 1, 2, 2]");
        let wide = AttendedAxes::all(4).unwrap();
        let keys = mask(&[2, 1, 1, 2], &[1, 0, 0, 1]);
        let joined = wide.mask(&[keys], [&[1, 2, 1, 7], &[1, 1, 2, 7]]).unwrap().unwrap();
        assert_eq!(joined, mask(&[1, 1, 2, 2], &[1, 0, 0, 1]));
    }

    #[test]
    fn axes_that_cannot_be_attended_are_refused() {
        for axes in [&[][..], &[0], &[3], &[1, 1], &[9]] {
            assert!(AttendedAxes::new(4, axes).is_err(), "{axes:?}");
        }
        assert!(AttendedAxes::all(2).is_err());
    }
}
