//! ONNX's `Einsum`, every opset, of one or two operands: diagonals, sums, transposes, and one matrix product. Computed in f32
//! or f16; f64 is rounded to f32.

use safetensors::Dtype as StoredDtype;

use super::OnnxNode;
use super::builder::{Attributes, Builder, Slots};
use crate::attention::Strategy;
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::nn::golden::GoldenGraph;
use crate::ops::{AxisSlice, MatMul, ReducedAxes, Reduction};
use crate::tensor::Dtype;

const SLOTS: Slots = Slots { inputs: &["Inputs 0", "Inputs 1"], required: 1, outputs: 1 };

pub(super) fn lacking(node: &OnnxNode) -> Option<String> {
    let operands = node.inputs.len();
    (operands > SLOTS.inputs.len()).then(|| format!("{operands} operands; 1 and 2 are supported"))
}

pub(super) fn build(node: &OnnxNode, _: Strategy) -> Result<GoldenGraph> {
    let mut builder = Builder::new(node, &SLOTS)?;
    let mut attributes = Attributes::of(node);
    let equation = attributes.any_text("equation")?.ok_or_else(|| node.fail("attribute `equation` is missing"))?;
    attributes.finish()?;
    let slots: Vec<usize> = (0..node.inputs.len()).collect();
    let wide = slots.iter().all(|&slot| builder.required(slot).is_ok_and(|stored| stored.dtype == StoredDtype::F64));
    let dtype = if wide { Dtype::F32 } else { builder.one_float_dtype(&slots)? };
    let ranks: Vec<usize> = slots.iter().map(|&slot| Ok(builder.shape(slot)?.len())).collect::<Result<_>>()?;
    let equation = Equation::parse(equation, &ranks).ok_or_else(|| {
        node.fail(format!("attribute `equation` is `{equation}`, which does not fit ranks {ranks:?}"))
    })?;
    let mut operands = Vec::new();
    for (slot, labels) in equation.operands.iter().enumerate() {
        let tensor = builder.float(slot, dtype)?;
        operands.push(Labelled { tensor, labels: labels.clone() }.diagonal(&mut builder.graph)?);
    }
    let y = match operands.as_slice() {
        [one] => one.summed(&mut builder.graph, &equation.result)?,
        [a, b] => product(&mut builder.graph, [a, b], &equation.result)?,
        _ => return Err(node.fail("one or two operands were expected")),
    };
    let y = y.ordered(&mut builder.graph, &equation.result)?;
    builder.output(0, y)?;
    Ok(builder.finish())
}

/// What an axis is called. Those of an ellipsis have numbers from 1, counted from the right: '\u{1}' is its last.
type Label = char;

/// An equation with its ellipses written out.
#[derive(Debug, PartialEq, Eq)]
struct Equation {
    operands: Vec<Vec<Label>>,
    result: Vec<Label>,
}

impl Equation {
    /// `None` where the text is no equation, or not one of operands with so many axes.
    fn parse(text: &str, ranks: &[usize]) -> Option<Self> {
        let text: String = text.chars().filter(|character| *character != ' ').collect();
        let (operands, result) = match text.split_once("->") {
            Some((operands, result)) => (operands, Some(result)),
            None => (&text[..], None),
        };
        let terms: Vec<&str> = operands.split(',').collect();
        if terms.len() != ranks.len() {
            return None;
        }
        let mut most = 0;
        let mut expanded = Vec::new();
        for (term, &rank) in terms.iter().zip(ranks) {
            let dots = rank.checked_sub(term.replacen("...", "", 1).len())?;
            most = most.max(dots);
            expanded.push(written_out(term, dots).filter(|labels| labels.len() == rank)?);
        }
        let result = match result {
            Some(result) => written_out(result, most)?,
            // The ellipsis, then what appears once, in alphabetical order.
            None => {
                let all: Vec<Label> = expanded.concat();
                let mut once: Vec<Label> = all
                    .iter()
                    .copied()
                    .filter(|label| all.iter().filter(|other| *other == label).count() == 1)
                    .collect();
                once.retain(Label::is_ascii_alphabetic);
                once.sort_unstable();
                [written_out("...", most)?, once].concat()
            }
        };
        let repeated = (1..result.len()).any(|at| result[..at].contains(&result[at]));
        let known = result.iter().all(|label| expanded.iter().any(|labels| labels.contains(label)));
        (!repeated && known).then_some(Self { operands: expanded, result })
    }
}

/// Labels of a term whose ellipsis stands for so many axes.
fn written_out(term: &str, dots: usize) -> Option<Vec<Label>> {
    let ellipsis: String = (1..=dots).rev().map(|number| char::from_u32(number as u32)).collect::<Option<_>>()?;
    let labels: Vec<Label> = term.replacen("...", &ellipsis, 1).chars().collect();
    // Control characters in the text itself would pass for those of an ellipsis.
    let letters = term.replacen("...", "", 1).chars().all(|label| label.is_ascii_alphabetic());
    letters.then_some(labels)
}

/// A tensor whose axes have names.
#[derive(Debug, Clone)]
struct Labelled {
    tensor: Tensor,
    labels: Vec<Label>,
}

impl Labelled {
    /// The same without a second axis of any name, of which only equal coordinates count.
    fn diagonal(mut self, graph: &mut Graph) -> Result<Self> {
        while let Some(second) = (1..self.labels.len()).find(|&at| self.labels[..at].contains(&self.labels[at])) {
            let label = self.labels[second];
            let mut order: Vec<usize> = (0..self.labels.len()).filter(|&at| self.labels[at] != label).collect();
            let others = order.len();
            let same: Vec<usize> = (0..self.labels.len()).filter(|&at| self.labels[at] == label).collect();
            order.extend(&same);
            let turned = graph.transpose(self.tensor, &order)?;
            let mut shape = graph.desc(turned)?.shape.clone();
            // Two of them at a time, as one axis of which every n + 1st element is on the diagonal.
            let (rows, columns) = (shape[shape.len() - 2], shape[shape.len() - 1]);
            shape.truncate(shape.len() - 2);
            shape.push(rows * columns);
            if rows != columns {
                return Err(unequal(label, [rows, columns]));
            }
            let flat = graph.reshape(turned, &shape)?;
            let every = AxisSlice { axis: shape.len() - 1, start: 0, end: i64::MAX, step: columns as i64 + 1 };
            self.tensor = graph.slice(flat, &[every])?;
            self.labels = order[..others + same.len() - 1].iter().map(|&at| self.labels[at]).collect();
        }
        Ok(self)
    }

    /// Sums over every axis that is none of these.
    fn summed(&self, graph: &mut Graph, kept: &[Label]) -> Result<Self> {
        let axes: Vec<usize> = (0..self.labels.len()).filter(|&at| !kept.contains(&self.labels[at])).collect();
        if axes.is_empty() {
            return Ok(self.clone());
        }
        let tensor = graph.reduce(self.tensor, Reduction::Sum, &axes, ReducedAxes::Dropped)?;
        let labels = self.labels.iter().copied().filter(|label| kept.contains(label)).collect();
        Ok(Self { tensor, labels })
    }

    /// The tensor with its axes in this order, of which it has each.
    fn ordered(&self, graph: &mut Graph, labels: &[Label]) -> Result<Tensor> {
        let place = |label| self.labels.iter().position(|own| *own == label);
        let order: Vec<usize> = labels.iter().filter_map(|&label| place(label)).collect();
        if order.iter().copied().eq(0..order.len()) { Ok(self.tensor) } else { graph.transpose(self.tensor, &order) }
    }

    fn size(&self, graph: &Graph, label: Label) -> Result<Option<usize>> {
        let Some(axis) = self.labels.iter().position(|own| *own == label) else { return Ok(None) };
        Ok(Some(graph.desc(self.tensor)?.shape[axis]))
    }

    /// The same without the axes of size 1 that the other operand has larger: they broadcast.
    fn without_ones(&self, graph: &mut Graph, other: &Self) -> Result<Self> {
        let mut kept = Vec::new();
        for (axis, &label) in self.labels.iter().enumerate() {
            let broadcast =
                graph.desc(self.tensor)?.shape[axis] == 1 && other.size(graph, label)?.is_some_and(|n| n != 1);
            kept.extend((!broadcast).then_some(axis));
        }
        let desc = graph.desc(self.tensor)?;
        let shape: Vec<usize> = kept.iter().map(|&axis| desc.shape[axis]).collect();
        let labels = kept.iter().map(|&axis| self.labels[axis]).collect();
        Ok(Self { tensor: graph.reshape(self.tensor, &shape)?, labels })
    }
}

/// One matrix product: axes of both operands are batches where the result has them, and summed over where it has not.
fn product(graph: &mut Graph, [a, b]: [&Labelled; 2], result: &[Label]) -> Result<Labelled> {
    let (a, b) = (&a.without_ones(graph, b)?, &b.without_ones(graph, a)?);
    let wanted = |other: &Labelled| [result, &other.labels].concat();
    let (a, b) = (&a.summed(graph, &wanted(b))?, &b.summed(graph, &wanted(a))?);
    let both = |kept: bool| -> Vec<Label> {
        a.labels.iter().copied().filter(|label| b.labels.contains(label) && result.contains(label) == kept).collect()
    };
    let (batch, inner) = (both(true), both(false));
    let only = |own: &Labelled, other: &Labelled| -> Vec<Label> {
        own.labels.iter().copied().filter(|label| !other.labels.contains(label)).collect()
    };
    let (rows, columns) = (only(a, b), only(b, a));
    let sizes = |graph: &Graph, from: &Labelled, labels: &[Label]| -> Result<Vec<usize>> {
        labels.iter().map(|&label| Ok(from.size(graph, label)?.unwrap_or(1))).collect()
    };
    for &label in batch.iter().chain(&inner) {
        let [of_a, of_b] = [sizes(graph, a, &[label])?[0], sizes(graph, b, &[label])?[0]];
        if of_a != of_b {
            return Err(unequal(label, [of_a, of_b]));
        }
    }
    let outer = [sizes(graph, a, &batch)?, sizes(graph, a, &rows)?, sizes(graph, b, &columns)?];
    let inner_size = sizes(graph, a, &inner)?.iter().product();
    let [batches, row_count, column_count]: [usize; 3] = outer.each_ref().map(|sizes| sizes.iter().product());
    let left = a.ordered(graph, &[&batch[..], &rows, &inner].concat())?;
    let left = graph.reshape(left, &[batches, row_count, inner_size])?;
    let right = b.ordered(graph, &[&batch[..], &inner, &columns].concat())?;
    let right = graph.reshape(right, &[batches, inner_size, column_count])?;
    let y = graph.matmul(left, right, None, MatMul::default())?;
    Ok(Labelled { tensor: graph.reshape(y, &outer.concat())?, labels: [batch, rows, columns].concat() })
}

fn unequal(label: Label, [one, other]: [usize; 2]) -> Error {
    Error::shape("einsum", format!("axes `{}` have sizes {one} and {other}", label.escape_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::plan::Plan;
    use crate::tensor::HostTensor;

    #[test]
    fn equations_are_written_out() {
        let parse = |text, ranks: &[usize]| {
            let equation = Equation::parse(text, ranks)?;
            let words = |labels: &Vec<Label>| labels.iter().map(|label| label.escape_default().to_string()).collect();
            Some((equation.operands.iter().map(words).collect::<Vec<String>>(), words(&equation.result)))
        };
        let found = |operands: &[&str], result: &str| {
            Some((operands.iter().map(|text| (*text).to_owned()).collect(), result.to_owned()))
        };
        assert_eq!(parse("i,i", &[1, 1]), found(&["i", "i"], ""));
        assert_eq!(parse("b a", &[2]), found(&["ba"], "ab"));
        assert_eq!(parse("...ii ->...i", &[3]), found(&["\\u{1}ii"], "\\u{1}i"));
        assert_eq!(parse("...i,...j", &[2, 3]), found(&["\\u{1}i", "\\u{2}\\u{1}j"], "\\u{2}\\u{1}ij"));
        for (text, ranks) in [
            ("ij", &[3][..]),
            ("i,j", &[1]),
            ("i->j", &[1]),
            ("i->ii", &[1]),
            ("i1", &[2]),
            ("......i", &[3]),
            ("", &[1]),
        ] {
            assert_eq!(Equation::parse(text, ranks), None, "{text}");
        }
    }

    /// Every equation against its definition: all labels walked, products of one element of each operand summed.
    #[test]
    fn products_by_the_definition() {
        let cases: [(&str, &[usize], &[usize]); 9] = [
            ("bij,bjk->bik", &[2, 3, 4], &[2, 4, 5]),
            ("ij,kj->ki", &[3, 4], &[2, 4]),
            ("i,j->ij", &[3], &[4]),
            ("ij,ij->", &[3, 4], &[3, 4]),
            ("ij,jk->k", &[3, 4], &[4, 2]),
            ("iij,j->i", &[3, 3, 2], &[2]),
            ("iii,i->i", &[3, 3, 3], &[3]),
            ("ij,ij->ij", &[3, 1], &[1, 4]),
            ("ba,cb->ca", &[1, 3], &[2, 4]),
        ];
        for (text, a, b) in cases {
            let value = |shape: &[usize], seed: usize| {
                let count = shape.iter().product::<usize>();
                HostTensor::f32(shape, (0..count).map(|at| ((at * 7 + seed) % 11) as f32 - 5.0).collect()).unwrap()
            };
            let (a, b) = (value(a, 1), value(b, 4));
            let equation = Equation::parse(text, &[a.shape().len(), b.shape().len()]).unwrap();
            let mut graph = Graph::new();
            let operands = [(&a, "a"), (&b, "b")].map(|(value, name)| graph.weight(name, value.clone()).unwrap());
            let [x, y] = [0, 1].map(|at| {
                let labelled = Labelled { tensor: operands[at], labels: equation.operands[at].clone() };
                labelled.diagonal(&mut graph).unwrap()
            });
            let y = product(&mut graph, [&x, &y], &equation.result).unwrap();
            let y = y.ordered(&mut graph, &equation.result).unwrap();
            graph.output("y", y).unwrap();
            let got = &Plan::new(&Device::cpu(), &graph).unwrap().run(&[]).unwrap()["y"];
            let (shape, wanted) = by_definition(&equation, [&a, &b]);
            assert_eq!(got.shape(), shape, "{text}");
            for (got, wanted) in got.to_f64().into_iter().zip(wanted) {
                assert!((got - wanted).abs() < 1e-4, "{text}: {got} {wanted}");
            }
        }
    }

    fn by_definition(equation: &Equation, operands: [&HostTensor; 2]) -> (Vec<usize>, Vec<f64>) {
        let mut labels = equation.operands.concat();
        labels.sort_unstable();
        labels.dedup();
        let size = |label: &Label| {
            let sizes = equation.operands.iter().zip(operands).flat_map(|(labels, operand)| {
                labels.iter().zip(operand.shape()).filter(move |(own, _)| *own == label).map(|(_, &size)| size)
            });
            sizes.max().unwrap()
        };
        let sizes: Vec<usize> = labels.iter().map(size).collect();
        let shape: Vec<usize> = equation.result.iter().map(size).collect();
        let mut result = vec![0.0; shape.iter().product()];
        for step in 0..sizes.iter().product::<usize>() {
            let (mut rest, mut at) = (step, vec![0; labels.len()]);
            for axis in (0..labels.len()).rev() {
                at[axis] = rest % sizes[axis];
                rest /= sizes[axis];
            }
            let index = |own: &[Label], shape: &[usize]| {
                own.iter().zip(shape).fold(0, |index, (label, &size)| {
                    let at = at[labels.iter().position(|other| other == label).unwrap()];
                    index * size + if size == 1 { 0 } else { at }
                })
            };
            let terms = equation.operands.iter().zip(operands);
            let term: f64 = terms.map(|(own, operand)| operand.to_f64()[index(own, operand.shape())]).product();
            result[index(&equation.result, &shape)] += term;
        }
        (shape, result)
    }
}
