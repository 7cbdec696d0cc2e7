//! The steps of a chain as users write them.

use std::fmt;

use crate::cpu::kernels::elementwise::{self as kernel, Argument, Combine, Function};
use crate::error::{Error, Result};

/// One step of an [`Elementwise`](super::Elementwise): what becomes of the value x.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Step {
    /// `f(x)`.
    Unary(Unary),
    /// `f(x, operand)`.
    Binary(Binary, Operand),
    /// `f(operand, x)`.
    Reversed(Binary, Operand),
}

/// The other side of a binary step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Operand {
    /// The input with this number, broadcast.
    Input(usize),
    /// A number other than NaN.
    Scalar(f32),
}

/// A function of one number. NaN gives NaN. Parameters are finite.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Unary {
    /// `max(x, 0)`.
    Relu,
    /// `x`, or `alpha · x` where x is negative.
    LeakyRelu {
        /// Slope of the negative side.
        alpha: f32,
    },
    /// `x`, or `alpha · (eˣ − 1)` where x is negative.
    Elu {
        /// Minus the limit of the negative side.
        alpha: f32,
    },
    /// `x · (1 + erf(x / √2)) / 2`.
    Gelu,
    /// `x · (1 + tanh(√(2/π) · (x + 0.044715 x³))) / 2`.
    GeluTanh,
    /// `x · sigmoid(x)`.
    Silu,
    /// `x · sigmoid(beta · x)`.
    Swish {
        /// Steepness.
        beta: f32,
    },
    /// Hyperbolic tangent.
    Tanh,
    /// `1 / (1 + e^−x)`.
    Sigmoid,
    /// `alpha · x + beta`, at least 0 and at most 1.
    HardSigmoid {
        /// Slope.
        alpha: f32,
        /// Value at 0.
        beta: f32,
    },
    /// `eˣ`.
    Exp,
    /// Natural logarithm; −∞ at 0, NaN below.
    Log,
    /// Square root; NaN below 0.
    Sqrt,
    /// `1 / √x`; ∞ at 0, NaN below.
    Rsqrt,
    /// `−x`.
    Neg,
    /// `|x|`.
    Abs,
    /// Error function.
    Erf,
    /// `ln(1 + eˣ)`.
    Softplus,
    /// `1 / x`.
    Reciprocal,
    /// At least `min` and at most `max`, either of which may be infinite.
    Clamp {
        /// Lower bound.
        min: f32,
        /// Upper bound, not below the lower one.
        max: f32,
    },
}

/// A function of two numbers. NaN on either side gives NaN, in `Min`, `Max` and `Pow` too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binary {
    /// `a + b`.
    Add,
    /// `a − b`.
    Sub,
    /// `a · b`.
    Mul,
    /// `a / b`.
    Div,
    /// The smaller.
    Min,
    /// The larger.
    Max,
    /// `aᵇ`; NaN for a negative `a` unless `b` is an integer.
    Pow,
}

impl Step {
    /// The input that it takes.
    pub(crate) fn input(&self) -> Option<usize> {
        match *self {
            Self::Binary(_, Operand::Input(input)) | Self::Reversed(_, Operand::Input(input)) => Some(input),
            _ => None,
        }
    }

    /// The same with another number for that input.
    pub(crate) fn with_input(&self, number: impl Fn(usize) -> usize) -> Self {
        match *self {
            Self::Binary(f, Operand::Input(input)) => Self::Binary(f, Operand::Input(number(input))),
            Self::Reversed(f, Operand::Input(input)) => Self::Reversed(f, Operand::Input(number(input))),
            other => other,
        }
    }

    /// Refuses parameters that mean nothing and inputs that are not there.
    pub(in crate::ops) fn check(&self, number: usize, inputs: usize) -> Result<()> {
        let fail = |message: String| Err(Error::option("elementwise", format!("step {number}: {message}")));
        match *self {
            Self::Unary(Unary::Clamp { min, max }) if !(min <= max) => {
                fail(format!("min is {min} and max is {max}, min must not be above max"))
            }
            Self::Unary(unary) => match unary.parameters().into_iter().find(|(_, value)| !value.is_finite()) {
                Some((name, value)) => fail(format!("{name} is {value}, it must be finite")),
                None => Ok(()),
            },
            Self::Binary(_, Operand::Scalar(scalar)) | Self::Reversed(_, Operand::Scalar(scalar))
                if scalar.is_nan() =>
            {
                fail("the scalar is NaN".into())
            }
            Self::Binary(_, Operand::Input(input)) | Self::Reversed(_, Operand::Input(input)) if input >= inputs => {
                fail(format!("the operand is input {input}, there are {inputs} inputs"))
            }
            _ => Ok(()),
        }
    }

    /// The step as kernels know it: fewer functions, with parameters.
    pub(in crate::ops) fn lower(&self) -> kernel::Step {
        match *self {
            Self::Unary(unary) => unary.lower(),
            Self::Binary(binary, operand) => kernel::Step::With(binary.lower(), operand.lower()),
            Self::Reversed(binary, operand) => {
                let reversed = match binary.lower() {
                    Combine::Sub => Combine::ReversedSub,
                    Combine::Div => Combine::ReversedDiv,
                    Combine::Pow => Combine::ReversedPow,
                    symmetric => symmetric,
                };
                kernel::Step::With(reversed, operand.lower())
            }
        }
    }
}

/// Such as `gelu`, `leaky_relu`, `add` or `sub from 1`.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, order, operand) = match self {
            Self::Unary(unary) => (format!("{unary:?}"), "", None),
            Self::Binary(binary, operand) => (format!("{binary:?}"), "", Some(operand)),
            Self::Reversed(binary, operand) => (format!("{binary:?}"), " from", Some(operand)),
        };
        // The name of a variant without its fields.
        let name = name.split([' ', '{']).next().unwrap_or_default();
        for (at, letter) in name.char_indices() {
            let word = if at > 0 && letter.is_ascii_uppercase() { "_" } else { "" };
            write!(f, "{word}{}", letter.to_ascii_lowercase())?;
        }
        match operand {
            Some(Operand::Scalar(scalar)) => write!(f, "{order} {scalar}"),
            _ => write!(f, "{order}"),
        }
    }
}

impl Operand {
    fn lower(self) -> Argument {
        match self {
            Self::Input(input) => Argument::Input(input),
            Self::Scalar(scalar) => Argument::Scalar(scalar),
        }
    }
}

impl Unary {
    fn parameters(self) -> Vec<(&'static str, f32)> {
        match self {
            Self::LeakyRelu { alpha } | Self::Elu { alpha } => vec![("alpha", alpha)],
            Self::Swish { beta } => vec![("beta", beta)],
            Self::HardSigmoid { alpha, beta } => vec![("alpha", alpha), ("beta", beta)],
            _ => Vec::new(),
        }
    }

    fn lower(self) -> kernel::Step {
        let scalar = |combine, scalar| kernel::Step::With(combine, Argument::Scalar(scalar));
        let function = match self {
            Self::Relu => return scalar(Combine::Max, 0.0),
            Self::Neg => return scalar(Combine::Mul, -1.0),
            Self::Reciprocal => return scalar(Combine::ReversedDiv, 1.0),
            Self::LeakyRelu { alpha } => Function::LeakyRelu(alpha),
            Self::Elu { alpha } => Function::Elu(alpha),
            Self::Gelu => Function::Gelu,
            Self::GeluTanh => Function::GeluTanh,
            Self::Silu => Function::Swish(1.0),
            Self::Swish { beta } => Function::Swish(beta),
            Self::Tanh => Function::Tanh,
            Self::Sigmoid => Function::Sigmoid,
            Self::HardSigmoid { alpha, beta } => Function::HardSigmoid(alpha, beta),
            Self::Exp => Function::Exp,
            Self::Log => Function::Log,
            Self::Sqrt => Function::Sqrt,
            Self::Rsqrt => Function::Rsqrt,
            Self::Abs => Function::Abs,
            Self::Erf => Function::Erf,
            Self::Softplus => Function::Softplus,
            Self::Clamp { min, max } => Function::Clamp(min, max),
        };
        kernel::Step::Map(function)
    }
}

impl Binary {
    fn lower(self) -> Combine {
        match self {
            Self::Add => Combine::Add,
            Self::Sub => Combine::Sub,
            Self::Mul => Combine::Mul,
            Self::Div => Combine::Div,
            Self::Min => Combine::Min,
            Self::Max => Combine::Max,
            Self::Pow => Combine::Pow,
        }
    }
}

/// A step as `elementwise_each` reads it: code, operand, and the bits of two parameters.
pub(in crate::ops) fn encode(step: &kernel::Step) -> [u32; 4] {
    let map = |code, p: f32, q: f32| [code, 0, p.to_bits(), q.to_bits()];
    match *step {
        kernel::Step::Map(function) => match function {
            Function::LeakyRelu(alpha) => map(0, alpha, 0.0),
            Function::Elu(alpha) => map(1, alpha, 0.0),
            Function::Gelu => map(2, 0.0, 0.0),
            Function::GeluTanh => map(3, 0.0, 0.0),
            Function::Swish(beta) => map(4, beta, 0.0),
            Function::Tanh => map(5, 0.0, 0.0),
            Function::Sigmoid => map(6, 0.0, 0.0),
            Function::HardSigmoid(alpha, beta) => map(7, alpha, beta),
            Function::Exp => map(8, 0.0, 0.0),
            Function::Log => map(9, 0.0, 0.0),
            Function::Sqrt => map(10, 0.0, 0.0),
            Function::Rsqrt => map(11, 0.0, 0.0),
            Function::Abs => map(12, 0.0, 0.0),
            Function::Erf => map(13, 0.0, 0.0),
            Function::Softplus => map(14, 0.0, 0.0),
            Function::Clamp(low, high) => map(15, low, high),
        },
        kernel::Step::With(combine, argument) => {
            let code = match combine {
                Combine::Add => 16,
                Combine::Sub => 17,
                Combine::ReversedSub => 18,
                Combine::Mul => 19,
                Combine::Div => 20,
                Combine::ReversedDiv => 21,
                Combine::Min => 22,
                Combine::Max => 23,
                Combine::Pow => 24,
                Combine::ReversedPow => 25,
            };
            match argument {
                Argument::Input(input) => [code, input as u32, 0, 0],
                Argument::Scalar(scalar) => [code, u32::MAX, scalar.to_bits(), 0],
            }
        }
    }
}
