//! `score_mod` of `FlexAttention`: a subgraph of scores `[batch, heads, seq_q, seq_kv]`.
//!
//! What depends on sizes and constants only, such as positions, slopes and masks made of them, is folded into arrays. What is
//! left must be a chain: each step takes the score as the step before left it, and an array at most.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::folded::{Folded, Folding, Kind, apply};
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::ops::{Binary, Operand, Step, Unary};
use crate::tensor::{Dtype, HostTensor};

/// A step of the chain.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Change {
    /// `f(score)`.
    Unary(Unary),
    /// `f(score, array)`.
    Binary(Binary, Folded),
    /// `f(array, score)`.
    Reversed(Binary, Folded),
}

/// The chain of a subgraph over scores of these sizes; differences, sums and masks that follow one another are one sum.
///
/// # Errors
/// Why it is none.
pub(super) fn read(subgraph: &Value, sizes: [usize; 4]) -> Folding<Vec<Change>> {
    let mut score = only(&subgraph["inputs"])?;
    let mut earlier = BTreeSet::from([score]);
    let mut folded = BTreeMap::new();
    for (name, initializer) in subgraph["initializers"].as_object().into_iter().flatten() {
        let array = Folded::read(initializer).ok_or_else(|| format!("`{name}` holds no numbers of a known type"))?;
        folded.insert(name.as_str(), array);
    }
    let (mut changes, none) = (Vec::new(), Map::new());
    for node in list(&subgraph["nodes"])? {
        let operator = text(&node["op"])?;
        let names = list(&node["inputs"])?.iter().map(text).collect::<Folding<Vec<_>>>()?;
        let output = only(&node["outputs"])?;
        let attributes = node["attributes"].as_object().unwrap_or(&none);
        // Every score has the same shape.
        if operator == "Shape" && attributes.is_empty() && names.len() == 1 && earlier.contains(names[0]) {
            folded.insert(output, Folded::sizes(&sizes));
            continue;
        }
        let arrays: Vec<Option<&Folded>> = names.iter().map(|name| folded.get(name)).collect();
        if let Some(arrays) = arrays.iter().copied().collect::<Option<Vec<_>>>() {
            let array = apply(operator, attributes, &arrays)?;
            folded.insert(output, array);
            continue;
        }
        if let Some((name, _)) = names.iter().zip(&arrays).find(|(name, array)| array.is_none() && **name != score) {
            return Err(format!("`{operator}` takes `{name}`, which is neither the score at that point nor known"));
        }
        let known = operator == "Cast" && attributes.keys().eq(["to"]);
        if !attributes.is_empty() && !known {
            return Err(format!("`{operator}` of the score has attributes"));
        }
        for change in changed(operator, &arrays)? {
            push(&mut changes, change, sizes)?;
        }
        score = output;
        earlier.insert(output);
    }
    if only(&subgraph["outputs"])? != score {
        return Err("the result is not the score as the last step left it".into());
    }
    Ok(changes)
}

/// What an operator makes of the score, which is `None` among its inputs.
fn changed(operator: &str, inputs: &[Option<&Folded>]) -> Folding<Vec<Change>> {
    let unsupported = || format!("`{operator}` of the score and {} others is not supported", inputs.len() - 1);
    let change = match *inputs {
        // Scores are f32 throughout.
        [None] if matches!(operator, "Identity" | "Cast") => return Ok(Vec::new()),
        [None] => Change::Unary(unary(operator).ok_or_else(unsupported)?),
        [None, Some(array)] => Change::Binary(binary(operator).ok_or_else(unsupported)?, array.clone()),
        [Some(array), None] => Change::Reversed(binary(operator).ok_or_else(unsupported)?, array.clone()),
        [Some(kept), None, Some(other)] if operator == "Where" => return chosen(kept, other),
        [Some(left_out), Some(other), None] if operator == "Where" => {
            return chosen(&apply("Not", &Map::new(), &[left_out])?, other);
        }
        _ => return Err(unsupported()),
    };
    Ok(vec![change])
}

/// The score where it is kept, else another number: times 1 or 0, plus 0 or the other number; −∞ takes no product.
fn chosen(kept: &Folded, other: &Folded) -> Folding<Vec<Change>> {
    let excludes = other.data.iter().all(|&other| other == f64::NEG_INFINITY);
    let other = Folded::each([kept, other], Kind::Float, |[kept, other]| if kept != 0.0 { 0.0 } else { other })?;
    let kept = Folded { kind: Kind::Float, ..kept.clone() };
    let product = (!excludes).then_some(Change::Binary(Binary::Mul, kept));
    Ok(product.into_iter().chain([Change::Binary(Binary::Add, other)]).collect())
}

/// Adds a step, to a sum that is there if it is one too.
fn push(changes: &mut Vec<Change>, change: Change, sizes: [usize; 4]) -> Folding<()> {
    let change = match change {
        Change::Reversed(commutes @ (Binary::Add | Binary::Mul), array) => Change::Binary(commutes, array),
        Change::Binary(Binary::Sub, array) => {
            Change::Binary(Binary::Add, Folded::each([&array], array.kind, |[x]| -x)?)
        }
        other => other,
    };
    if let Change::Binary(_, array) | Change::Reversed(_, array) = &change {
        let fits = |(&own, &size): (&usize, &usize)| own == 1 || own == size;
        if array.shape.len() > sizes.len() || !array.shape.iter().rev().zip(sizes.iter().rev()).all(fits) {
            return Err(format!("{:?} does not broadcast to the score's {sizes:?}", array.shape));
        }
    }
    match (changes.last_mut(), change) {
        (Some(Change::Binary(Binary::Add, sum)), Change::Binary(Binary::Add, array)) => {
            *sum = Folded::each([sum, &array], Kind::Float, |[a, b]| a + b)?;
        }
        (_, change) => changes.push(change),
    }
    Ok(())
}

/// The chain over f32 scores of the sizes that it was read for. A dispatch takes one array and the steps up to the next.
pub(super) fn add(graph: &mut Graph, mut scores: Tensor, changes: &[Change]) -> Result<Tensor> {
    let (mut operands, mut steps) = (Vec::new(), Vec::new());
    for change in changes {
        let mut operand = |array: &Folded| match array.scalar() {
            Some(number) => Ok(Operand::Scalar(number as f32)),
            None => {
                if !operands.is_empty() {
                    let inputs = [vec![scores], std::mem::take(&mut operands)].concat();
                    scores = graph.elementwise(&inputs, &std::mem::take(&mut steps))?;
                }
                operands.push(graph.constant(tensor(array)?)?);
                Ok::<_, Error>(Operand::Input(1))
            }
        };
        let step = match change {
            Change::Unary(f) => Step::Unary(*f),
            Change::Binary(f, array) => Step::Binary(*f, operand(array)?),
            Change::Reversed(f, array) => Step::Reversed(*f, operand(array)?),
        };
        steps.push(step);
    }
    graph.elementwise(&[vec![scores], operands].concat(), &steps)
}

/// The array as f32.
pub(super) fn tensor(array: &Folded) -> Result<HostTensor> {
    Ok(HostTensor::f64(&array.shape, array.data.clone())?.cast(Dtype::F32))
}

fn unary(operator: &str) -> Option<Unary> {
    Some(match operator {
        "Abs" => Unary::Abs,
        "Exp" => Unary::Exp,
        "Neg" => Unary::Neg,
        "Relu" => Unary::Relu,
        "Sigmoid" => Unary::Sigmoid,
        "Tanh" => Unary::Tanh,
        _ => return None,
    })
}

fn binary(operator: &str) -> Option<Binary> {
    Some(match operator {
        "Add" => Binary::Add,
        "Div" => Binary::Div,
        "Max" => Binary::Max,
        "Min" => Binary::Min,
        "Mul" => Binary::Mul,
        "Sub" => Binary::Sub,
        _ => return None,
    })
}

fn list(value: &Value) -> Folding<&[Value]> {
    value.as_array().map(Vec::as_slice).ok_or_else(|| format!("{value} is no list"))
}

fn text(value: &Value) -> Folding<&str> {
    value.as_str().ok_or_else(|| format!("{value} is no text"))
}

/// The only name of a list.
fn only(value: &Value) -> Folding<&str> {
    match list(value)? {
        [name] => text(name),
        names => Err(format!("{} names where one was expected", names.len())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A subgraph from `output = Operator(inputs)` lines, with the initializers that most tests need.
    fn subgraph(lines: &[&str]) -> Value {
        let node = |line: &&str| {
            let (output, call) = line.split_once(" = ").unwrap();
            let (operator, inputs) = call.trim_end_matches(')').split_once('(').unwrap();
            let inputs: Vec<&str> = inputs.split(", ").collect();
            let attributes = if operator == "Cast" { json!({ "to": 1 }) } else { json!({}) };
            json!({ "op": operator, "inputs": inputs, "outputs": [output], "attributes": attributes })
        };
        let integer = |values: &[i64], shape: &[usize]| json!({ "dtype": "I64", "shape": shape, "values": values });
        json!({
            "inputs": ["s"],
            "outputs": [lines.last().unwrap().split(' ').next().unwrap()],
            "nodes": lines.iter().map(node).collect::<Vec<_>>(),
            "initializers": {
                "zero": integer(&[0], &[]), "one": integer(&[1], &[]), "two": integer(&[2], &[]), "three": integer(&[3], &[]),
                "column": integer(&[-1, 1], &[2]),
                "half": { "dtype": "F32", "shape": [], "values": [0.5] },
                "slopes": { "dtype": "F32", "shape": [2, 1, 1], "values": [0.5, 0.25] },
            }
        })
    }

    /// Distances `d` of two queries from three keys, and whether a key is not after its query, `past`.
    const DISTANCES: [&str; 8] = [
        "shape = Shape(s)",
        "queries = Gather(shape, two)",
        "keys = Gather(shape, three)",
        "row = Range(zero, queries, one)",
        "i = Reshape(row, column)",
        "j = Range(zero, keys, one)",
        "d = Sub(i, j)",
        "past = GreaterOrEqual(i, j)",
    ];
    const SIZES: [usize; 4] = [1, 2, 2, 3];

    fn with_distances(lines: &[&str]) -> Folding<Vec<Change>> {
        read(&subgraph(&[&DISTANCES[..], lines].concat()), SIZES)
    }

    fn array(shape: &[usize], data: &[f64]) -> Folded {
        Folded { kind: Kind::Float, shape: shape.to_vec(), data: data.to_vec() }
    }

    #[test]
    fn positions_become_one_bias() {
        // Slopes over distances, and what is after the query left out.
        let lines = ["f = Cast(d)", "b = Mul(slopes, f)", "t = Sub(s, b)", "u = Add(half, t)"];
        let bias = [0.5, 1.0, 1.5, 0.0, 0.5, 1.0, 0.5, 0.75, 1.0, 0.25, 0.5, 0.75];
        let wanted = Change::Binary(Binary::Add, array(&[2, 2, 3], &bias));
        assert_eq!(with_distances(&lines), Ok(vec![wanted]));
    }

    #[test]
    fn choices_are_products_and_sums() {
        let kept = array(&[2, 3], &[1.0, 0.0, 0.0, 1.0, 1.0, 0.0]);
        let other = array(&[2, 3], &[0.0, 0.5, 0.5, 0.0, 0.0, 0.5]);
        let wanted = vec![Change::Binary(Binary::Mul, kept), Change::Binary(Binary::Add, other)];
        assert_eq!(with_distances(&["t = Where(past, s, half)"]), Ok(wanted.clone()));
        assert_eq!(with_distances(&["after = Not(past)", "t = Where(after, half, s)"]), Ok(wanted));
        let low = ["z = Cast(zero)", "n = Log(z)", "t = Where(past, s, n)"];
        let low_bias =
            array(&[2, 3], &[0.0, 1.0, 1.0, 0.0, 0.0, 1.0].map(|x| if x == 1.0 { f64::NEG_INFINITY } else { x }));
        assert_eq!(with_distances(&low), Ok(vec![Change::Binary(Binary::Add, low_bias)]));
    }

    #[test]
    fn chains_keep_their_order() {
        let number = array(&[], &[0.5]);
        let wanted = vec![
            Change::Binary(Binary::Div, number.clone()),
            Change::Unary(Unary::Tanh),
            Change::Reversed(Binary::Sub, number),
        ];
        assert_eq!(with_distances(&["t = Div(s, half)", "u = Tanh(t)", "v = Sub(half, u)"]), Ok(wanted));
    }

    #[test]
    fn what_is_no_chain_is_refused() {
        for (lines, message) in [
            (&["t = Mul(s, s)"][..], "`Mul` of the score and 1 others is not supported"),
            (&["t = Tanh(s)", "u = Add(s, half)"], "`Add` takes `s`, which is neither the score at that point"),
            (&["t = Add(s, x)"], "`Add` takes `x`"),
            (&["t = Sin(s)"], "`Sin` of the score and 0 others is not supported"),
            (&["t = Tanh(s)", "f = Cast(d)"], "the result is not the score"),
            (&["t = Add(s, slopes)", "u = Sin(half)", "v = Add(t, u)"], "`Sin` of [Float] is not supported"),
            (&["t = Add(s, shape)"], "[4] does not broadcast to the score's [1, 2, 2, 3]"),
        ] {
            let error = with_distances(lines).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
        assert!(read(&json!({}), SIZES).is_err());
        assert!(read(&json!(3), SIZES).is_err());
    }

    #[test]
    fn a_dispatch_takes_one_array() {
        let mut graph = Graph::new();
        let scores = graph.input("s", crate::tensor::TensorDesc::new(Dtype::F32, SIZES)).unwrap();
        let lines = ["f = Cast(d)", "t = Mul(s, f)", "u = Tanh(t)", "v = Add(u, f)", "w = Div(v, half)"];
        let y = add(&mut graph, scores, &with_distances(&lines).unwrap()).unwrap();
        graph.output("y", y).unwrap();
        let s = HostTensor::f32(&SIZES, vec![0.25; 12]).unwrap();
        let got = crate::reference::run(&graph, &[("s", &s)]).unwrap().remove("y").unwrap();
        let distances = [0.0_f64, -1.0, -2.0, 1.0, 0.0, -1.0];
        for (got, d) in got.to_f64().into_iter().zip(distances.into_iter().chain(distances)) {
            assert!((got - ((0.25 * d).tanh() + d) / 0.5).abs() < 1e-12, "{got}, {d}");
        }
    }
}
