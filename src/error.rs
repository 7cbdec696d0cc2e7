//! The one error type of the crate.

/// Everything a caller can do wrong, and everything a device can refuse.
///
/// Messages name the op first, then both sides: `attention: key has head_dim 64, query has 80`.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Shapes or dtypes of an op's inputs do not fit each other. Raised while the graph is built.
    #[error("{op}: {message}")]
    Shape {
        /// The op that refused.
        op: &'static str,
        /// Both sides, in words.
        message: String,
    },
    /// An option of an op has a value that means nothing, such as a NaN scale.
    #[error("{op}: {message}")]
    Option {
        /// The op that refused.
        op: &'static str,
        /// The option, its value and what would be accepted.
        message: String,
    },
    /// A graph that does not hang together: names used twice, tensors of another graph, no outputs.
    #[error("graph: {0}")]
    Graph(String),
    /// Inputs of a plan that are missing, given twice, or of another shape than the plan's.
    #[error("plan: {0}")]
    Plan(String),
    /// A technique was asked for by name and the device cannot run it.
    #[error("{op}: technique `{technique}` is not offered on this device: {reason}")]
    Unsupported {
        /// The op.
        op: &'static str,
        /// The technique that was forced.
        technique: String,
        /// What is missing, or what is offered instead.
        reason: String,
    },
    /// A tensor needs a larger buffer than the device can bind.
    #[error("plan: {tensor} needs {needed} bytes in one buffer and the device binds at most {allowed}; {hint}")]
    TooLarge {
        /// Which tensor, by name or by op.
        tensor: String,
        /// Bytes that it needs.
        needed: u64,
        /// Bytes that one binding may have on this device.
        allowed: u64,
        /// What would fit.
        hint: String,
    },
    /// No adapter fits what was asked for.
    #[error("device: {0}")]
    NoAdapter(String),
    /// The device reported an error.
    #[error("device: {0}")]
    Device(String),
    /// The device is gone; build a new [`Device`](crate::Device) and new plans on it.
    #[error("device lost: {0}")]
    DeviceLost(String),
    /// A file is not what it should be.
    #[error("{path}: {message}")]
    File {
        /// The file as it was named.
        path: String,
        /// What is wrong with it.
        message: String,
    },
    /// A shader and the constants that its launch sets do not agree.
    #[error("shader {shader}: {message}")]
    Shader {
        /// File name of the shader, without its ending.
        shader: &'static str,
        /// The constant that is missing or unknown.
        message: String,
    },
    /// Text that a user wrote, such as a problem or a suite name, does not parse.
    #[error("{0}")]
    Parse(String),
}

/// Result with the crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn shape(op: &'static str, message: impl Into<String>) -> Self {
        Self::Shape { op, message: message.into() }
    }

    pub(crate) fn option(op: &'static str, message: impl Into<String>) -> Self {
        Self::Option { op, message: message.into() }
    }
}
