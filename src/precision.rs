//! How exactly an op multiplies.

/// Which roundings an op's products may take beyond those of storage. Sums are f32 in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// Operands are multiplied as they are stored.
    #[default]
    Full,
    /// Operands of other types may be rounded to f16 first, for units that multiply f16 only: 11 bits, and a magnitude over
    /// 65,504 becomes infinite.
    Half,
}
