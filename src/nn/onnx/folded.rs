//! Arrays that are known while a graph is built, and what subgraphs compute of them: sizes, positions, constants. In f64, which
//! holds every size exactly.

use serde_json::{Map, Value};

/// Most elements of an array.
const MOST: usize = 1 << 26;
/// ONNX's numbers of types, as `Cast` takes them.
const FLOATS: [i64; 4] = [1, 10, 11, 16];
const INTEGERS: [i64; 2] = [6, 7];
const BOOL: i64 = 9;

/// Why something is not known.
pub(super) type Folding<T> = std::result::Result<T, String>;

/// What elements are: quotients of integers are integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Float,
    Integer,
    Bool,
}

/// An array.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Folded {
    pub kind: Kind,
    pub shape: Vec<usize>,
    pub data: Vec<f64>,
}

impl Folded {
    /// A vector of sizes.
    pub fn sizes(sizes: &[usize]) -> Self {
        Self { kind: Kind::Integer, shape: vec![sizes.len()], data: sizes.iter().map(|&size| size as f64).collect() }
    }

    /// An initializer: `dtype`, `shape` and `values`.
    pub fn read(initializer: &Value) -> Option<Self> {
        let kind = match initializer["dtype"].as_str()? {
            "F16" | "BF16" | "F32" | "F64" => Kind::Float,
            "I32" | "I64" => Kind::Integer,
            "BOOL" => Kind::Bool,
            _ => return None,
        };
        let size = |size: &Value| size.as_u64().and_then(|size| usize::try_from(size).ok());
        let shape: Vec<usize> = initializer["shape"].as_array()?.iter().map(size).collect::<Option<_>>()?;
        let number = |value: &Value| value.as_f64().or_else(|| value.as_bool().map(|value| f64::from(u8::from(value))));
        let data: Vec<f64> = initializer["values"].as_array()?.iter().map(number).collect::<Option<_>>()?;
        (count(&shape).ok()? == data.len()).then_some(Self { kind, shape, data })
    }

    /// The only element.
    pub fn scalar(&self) -> Option<f64> {
        if let [number] = self.data[..] { Some(number) } else { None }
    }

    /// A function of the elements of some arrays, which broadcast as in numpy.
    pub fn each<const N: usize>(inputs: [&Self; N], kind: Kind, f: impl Fn([f64; N]) -> f64) -> Folding<Self> {
        let rank = inputs.iter().map(|input| input.shape.len()).max().unwrap_or(0);
        let mut shape = vec![1; rank];
        for input in inputs {
            let skipped = rank - input.shape.len();
            for (size, &own) in shape[skipped..].iter_mut().zip(&input.shape) {
                match (*size, own) {
                    (1, own) => *size = own,
                    (size, own) if own == 1 || own == size => {}
                    _ => return Err(format!("{:?} does not broadcast to {shape:?}", input.shape)),
                }
            }
        }
        let element = |index: usize| {
            f(inputs.map(|input| {
                let (mut rest, mut offset, mut stride) = (index, 0, 1);
                for (axis, &size) in shape.iter().enumerate().rev() {
                    let skipped = rank - input.shape.len();
                    let own = if axis < skipped { 1 } else { input.shape[axis - skipped] };
                    offset += if own == 1 { 0 } else { rest % size * stride };
                    stride *= own;
                    rest /= size;
                }
                input.data[offset]
            }))
        };
        let data = (0..count(&shape)?).map(element).collect();
        Ok(Self { kind, shape, data })
    }

    fn cast(&self, to: i64) -> Folding<Self> {
        let (kind, f): Unary = match to {
            to if FLOATS.contains(&to) => (Kind::Float, |x| x),
            to if INTEGERS.contains(&to) => (Kind::Integer, f64::trunc),
            BOOL => (Kind::Bool, |x| truth(x != 0.0)),
            _ => return Err(format!("`Cast` to type {to} is unknown")),
        };
        Self::each([self], kind, |[x]| f(x))
    }

    /// As numpy's `take` along an axis.
    fn gather(&self, axis: i64, indices: &Self) -> Folding<Self> {
        let axis = place(axis, self.shape.len())?;
        let (before, size, after) = (&self.shape[..axis], self.shape[axis], &self.shape[axis + 1..]);
        let indices_at = indices.data.iter().map(|&index| place(index as i64, size)).collect::<Folding<Vec<_>>>()?;
        let shape = [before, &indices.shape, after].concat();
        count(&shape)?;
        let (outer, inner) = (before.iter().product::<usize>(), after.iter().product::<usize>());
        let rows = (0..outer).flat_map(|outer| indices_at.iter().map(move |index| (outer * size + index) * inner));
        let data = rows.flat_map(|start| &self.data[start..start + inner]).copied().collect();
        Ok(Self { kind: self.kind, shape, data })
    }

    fn range(bounds: [&Self; 3]) -> Folding<Self> {
        let wrong = || "`Range` takes three numbers, of which the last is not 0".to_owned();
        let [start, limit, step] = bounds.map(Self::scalar);
        let (Some(start), Some(limit), Some(step)) = (start, limit, step) else { return Err(wrong()) };
        let length = ((limit - start) / step).ceil().max(0.0);
        if step == 0.0 || length.is_nan() || length > MOST as f64 {
            return Err(wrong());
        }
        let data: Vec<f64> = (0..length as usize).map(|index| start + index as f64 * step).collect();
        Ok(Self { kind: bounds[0].kind, shape: vec![data.len()], data })
    }

    /// −1 stands for what is left, 0 for the size that there was.
    fn reshape(&self, shape: &Self) -> Folding<Self> {
        let known = |(axis, &size): (usize, &f64)| match size {
            0.0 => self.shape.get(axis).copied(),
            -1.0 => Some(1),
            size => Some(size as usize),
        };
        let wrong = || format!("{:?} cannot be reshaped to {:?}", self.shape, shape.data);
        let mut sizes: Vec<usize> =
            shape.data.iter().enumerate().map(known).collect::<Option<_>>().ok_or_else(wrong)?;
        if let Some(rest) = shape.data.iter().position(|&size| size == -1.0) {
            sizes[rest] = self.data.len() / count(&sizes)?.max(1);
        }
        if count(&sizes)? != self.data.len() {
            return Err(wrong());
        }
        Ok(Self { shape: sizes, ..self.clone() })
    }

    fn unsqueeze(&self, axes: &Self) -> Folding<Self> {
        let rank = self.shape.len() + axes.data.len();
        let mut places = axes.data.iter().map(|&axis| place(axis as i64, rank)).collect::<Folding<Vec<_>>>()?;
        places.sort_unstable();
        let mut shape = self.shape.clone();
        for axis in places {
            if axis > shape.len() {
                return Err(format!("`Unsqueeze` names an axis twice in {:?}", axes.data));
            }
            shape.insert(axis, 1);
        }
        Ok(Self { shape, ..self.clone() })
    }
}

/// What a function gives, and the function.
type Unary = (Kind, fn(f64) -> f64);
type Binary = (Kind, fn(f64, f64) -> f64);

/// What an operator gives for arrays.
pub(super) fn apply(operator: &str, attributes: &Map<String, Value>, inputs: &[&Folded]) -> Folding<Folded> {
    let known: &[&str] = match operator {
        "Cast" => &["to"],
        "Gather" => &["axis"],
        _ => &[],
    };
    if let Some(name) = attributes.keys().find(|name| !known.contains(&name.as_str())) {
        return Err(format!("`{operator}` with the attribute `{name}` is not supported"));
    }
    let integer = |name: &str, default: i64| attributes.get(name).map_or(Some(default), Value::as_i64);
    match (operator, inputs) {
        ("Identity", [x]) => Ok((*x).clone()),
        ("Shape", [x]) => Ok(Folded::sizes(&x.shape)),
        ("Cast", [x]) => x.cast(integer("to", 0).unwrap_or(0)),
        ("Gather", [x, indices]) => x.gather(integer("axis", 0).ok_or("`axis` is no integer")?, indices),
        ("Range", &[start, limit, step]) => Folded::range([start, limit, step]),
        ("Reshape", [x, shape]) => x.reshape(shape),
        ("Unsqueeze", [x, axes]) => x.unsqueeze(axes),
        ("Where", &[condition, a, b]) if a.kind == b.kind => {
            Folded::each([condition, a, b], a.kind, |[condition, a, b]| if condition != 0.0 { a } else { b })
        }
        (_, &[x]) => {
            let (kind, f) = unary(operator, x.kind).ok_or_else(|| unsupported(operator, inputs))?;
            Folded::each([x], kind, |[x]| f(x))
        }
        (_, &[a, b]) if a.kind == b.kind => {
            let (kind, f) = binary(operator, a.kind).ok_or_else(|| unsupported(operator, inputs))?;
            Folded::each([a, b], kind, |[a, b]| f(a, b))
        }
        _ => Err(unsupported(operator, inputs)),
    }
}

fn unsupported(operator: &str, inputs: &[&Folded]) -> String {
    let kinds: Vec<Kind> = inputs.iter().map(|input| input.kind).collect();
    format!("`{operator}` of {kinds:?} is not supported")
}

fn unary(operator: &str, kind: Kind) -> Option<Unary> {
    Some(match (operator, kind) {
        ("Abs", Kind::Float | Kind::Integer) => (kind, f64::abs),
        ("Neg", Kind::Float | Kind::Integer) => (kind, |x| -x),
        ("Relu", Kind::Float | Kind::Integer) => (kind, |x| x.max(0.0)),
        ("Exp", Kind::Float) => (kind, f64::exp),
        ("Log", Kind::Float) => (kind, f64::ln),
        ("Sqrt", Kind::Float) => (kind, f64::sqrt),
        ("Floor", Kind::Float) => (kind, f64::floor),
        ("Sigmoid", Kind::Float) => (kind, |x| 1.0 / (1.0 + (-x).exp())),
        ("Tanh", Kind::Float) => (kind, f64::tanh),
        ("Not", Kind::Bool) => (kind, |x| 1.0 - x),
        _ => return None,
    })
}

fn binary(operator: &str, kind: Kind) -> Option<Binary> {
    Some(match (operator, kind) {
        ("Add", Kind::Float | Kind::Integer) => (kind, |a, b| a + b),
        ("Sub", Kind::Float | Kind::Integer) => (kind, |a, b| a - b),
        ("Mul", Kind::Float | Kind::Integer) => (kind, |a, b| a * b),
        ("Div", Kind::Float) => (kind, |a, b| a / b),
        ("Div", Kind::Integer) => (kind, |a, b| (a / b).trunc()),
        ("Pow", Kind::Float) => (kind, f64::powf),
        ("Min", Kind::Float | Kind::Integer) => (kind, f64::min),
        ("Max", Kind::Float | Kind::Integer) => (kind, f64::max),
        ("Less", Kind::Float | Kind::Integer) => (Kind::Bool, |a, b| truth(a < b)),
        ("LessOrEqual", Kind::Float | Kind::Integer) => (Kind::Bool, |a, b| truth(a <= b)),
        ("Greater", Kind::Float | Kind::Integer) => (Kind::Bool, |a, b| truth(a > b)),
        ("GreaterOrEqual", Kind::Float | Kind::Integer) => (Kind::Bool, |a, b| truth(a >= b)),
        ("Equal", _) => (Kind::Bool, |a, b| truth(a == b)),
        ("And", Kind::Bool) => (kind, f64::min),
        ("Or", Kind::Bool) => (kind, f64::max),
        _ => return None,
    })
}

fn truth(is: bool) -> f64 {
    f64::from(u8::from(is))
}

/// An index from the front of so many, which may be given from the back.
fn place(index: i64, of: usize) -> Folding<usize> {
    let from_front = if index < 0 { index.saturating_add(of as i64) } else { index };
    let place = usize::try_from(from_front).ok().filter(|&place| place < of);
    place.ok_or_else(|| format!("{index} is none of {of}"))
}

fn count(shape: &[usize]) -> Folding<usize> {
    let count = shape.iter().try_fold(1, |count: usize, &size| count.checked_mul(size)).filter(|&count| count <= MOST);
    count.ok_or_else(|| format!("{shape:?} has more than {MOST} elements"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn array(kind: Kind, shape: &[usize], data: &[f64]) -> Folded {
        Folded { kind, shape: shape.to_vec(), data: data.to_vec() }
    }

    fn applied(operator: &str, inputs: &[&Folded]) -> Folding<Folded> {
        apply(operator, &Map::new(), inputs)
    }

    #[test]
    fn arrays_by_hand() {
        let integers = |shape: &[usize], data: &[f64]| array(Kind::Integer, shape, data);
        let scalar = |number| integers(&[], &[number]);
        let range = applied("Range", &[&scalar(5.0), &scalar(-2.0), &scalar(-3.0)]).unwrap();
        assert_eq!(range, integers(&[3], &[5.0, 2.0, -1.0]));
        let column = applied("Reshape", &[&range, &integers(&[2], &[-1.0, 1.0])]).unwrap();
        assert_eq!(column, applied("Unsqueeze", &[&range, &integers(&[1], &[-1.0])]).unwrap());
        let table = applied("Sub", &[&column, &integers(&[2], &[0.0, 4.0])]).unwrap();
        assert_eq!(table, integers(&[3, 2], &[5.0, 1.0, 2.0, -2.0, -1.0, -5.0]));
        assert_eq!(applied("Div", &[&table, &scalar(2.0)]).unwrap().data, [2.0, 0.0, 1.0, -1.0, 0.0, -2.0]);
        let axis = json!({ "axis": 1 });
        let picked = apply("Gather", axis.as_object().unwrap(), &[&table, &scalar(-1.0)]).unwrap();
        assert_eq!(picked, integers(&[3], &[1.0, -2.0, -5.0]));
        let negative = applied("Less", &[&table, &scalar(0.0)]).unwrap();
        assert_eq!(negative, array(Kind::Bool, &[3, 2], &[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]));
        let chosen = applied("Where", &[&negative, &scalar(7.0), &table]).unwrap();
        assert_eq!(chosen.data, [5.0, 1.0, 2.0, 7.0, 7.0, 7.0]);
        assert_eq!(applied("Shape", &[&table]).unwrap().data, [3.0, 2.0]);
    }

    #[test]
    fn what_means_nothing_is_refused() {
        let (one, two) = (array(Kind::Integer, &[], &[1.0]), array(Kind::Integer, &[2], &[3.0, 4.0]));
        let float = array(Kind::Float, &[3], &[1.0; 3]);
        for (operator, inputs, message) in [
            ("Add", &[&one, &float][..], "`Add` of [Integer, Float] is not supported"),
            ("Exp", &[&one], "`Exp` of [Integer] is not supported"),
            ("Add", &[&float, &array(Kind::Float, &[2], &[1.0; 2])], "[2] does not broadcast to [3]"),
            ("Gather", &[&two, &array(Kind::Integer, &[], &[2.0])], "2 is none of 2"),
            ("Gather", &[&one, &one], "0 is none of 0"),
            ("Reshape", &[&float, &two], "[3] cannot be reshaped to [3.0, 4.0]"),
            ("Range", &[&one, &one, &array(Kind::Integer, &[], &[0.0])], "`Range` takes three numbers"),
            ("Range", &[&one, &array(Kind::Float, &[], &[1e12]), &one], "`Range` takes three numbers"),
            ("Unsqueeze", &[&one, &array(Kind::Integer, &[2], &[1.0, 1.0])], "names an axis twice"),
            ("Cast", &[&one], "`Cast` to type 0"),
        ] {
            let error = applied(operator, inputs).unwrap_err();
            assert!(error.contains(message), "{operator}: {error}");
        }
        assert!(apply("Add", json!({ "axis": 1 }).as_object().unwrap(), &[&one, &one]).is_err());
    }
}
