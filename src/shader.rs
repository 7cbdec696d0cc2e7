//! Shaders as values: a kernel file, library files, and the constants that the host sets.
//!
//! A kernel is plain WGSL with working defaults. A line that ends in `// host` declares a constant or an alias
//! whose value the launch sets by name; nothing else of the text changes. The [`Shader`] value is the pipeline key.

use crate::error::{Error, Result};
use crate::precision::Precision;
use crate::tensor::Dtype;

/// Library files with this beginning name the cooperative matrices of a size.
const COOPERATIVE: &str = "lib/matrices_";

/// The constant of kernels that round operands of other types to f16 when it is true.
pub(crate) const ROUNDS: &str = "ROUNDS";

/// A WGSL file that is part of the crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Source {
    /// File name without its ending, which for a kernel is op and technique.
    pub name: &'static str,
    /// The text.
    pub text: &'static str,
}

/// The [`Source`] of a file under `shaders/`, named without its ending.
macro_rules! wgsl {
    ($name:literal) => {
        $crate::shader::Source {
            name: $name,
            text: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $name, ".wgsl")),
        }
    };
}
pub(crate) use wgsl;

/// A value that the host puts into a shader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Constant {
    /// `const NAME: u32 = 64u;`
    U32(u32),
    /// `const NAME: bool = true;`
    Bool(bool),
    /// `alias Name = f16;`
    Scalar(Dtype),
}

impl Constant {
    fn wgsl(self) -> String {
        match self {
            Self::U32(value) => format!("{value}u"),
            Self::Bool(value) => value.to_string(),
            Self::Scalar(dtype) => dtype.to_string(),
        }
    }
}

/// One specialised kernel. Equal values are one pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Shader {
    /// The kernel's file; its name is the technique's name.
    pub main: Source,
    /// Files from `shaders/lib` that the kernel calls.
    pub libraries: Vec<Source>,
    /// Exactly the names that have a `// host` line in these files.
    pub constants: Vec<(&'static str, Constant)>,
}

impl Shader {
    /// Whether the device needs `SHADER_F16`.
    pub fn needs_f16(&self) -> bool {
        self.needs_cooperative() || self.constants.iter().any(|(_, constant)| *constant == Constant::Scalar(Dtype::F16))
    }

    /// Whether the device needs cooperative matrices, whose factors are f16, and subgroups.
    pub fn needs_cooperative(&self) -> bool {
        self.libraries.iter().any(|library| library.name.starts_with(COOPERATIVE))
    }

    /// Whether operands of other types are rounded to f16.
    pub fn precision(&self) -> Precision {
        let rounds = self.constants.contains(&(ROUNDS, Constant::Bool(true)));
        if rounds { Precision::Half } else { Precision::Full }
    }

    /// Whether the device needs `SUBGROUP`. naga takes subgroup operations as they are; browsers want `enable subgroups;`.
    pub fn needs_subgroups(&self) -> bool {
        self.main.text.contains("@builtin(subgroup_")
    }

    /// The WGSL that the device compiles.
    ///
    /// # Errors
    /// When the constants and the `// host` lines are not the same set of names.
    pub fn text(&self) -> Result<String> {
        let fail = |message: String| Error::Shader { shader: self.main.name, message };
        let mut text = String::from(if self.needs_f16() { "enable f16;\n" } else { "" });
        text.push_str(if self.needs_cooperative() { "enable wgpu_cooperative_matrix;\n" } else { "" });
        let mut set = Vec::new();
        for line in self.libraries.iter().chain([&self.main]).flat_map(|source| source.text.lines()) {
            match host_name(line) {
                None => text.push_str(line),
                Some((name, declaration)) => {
                    let (_, constant) = (self.constants.iter().find(|(constant, _)| *constant == name))
                        .ok_or_else(|| fail(format!("`{name}` is a host line and the launch does not set it")))?;
                    text.push_str(&format!("{declaration}= {};", constant.wgsl()));
                    set.push(name);
                }
            }
            text.push('\n');
        }
        match self.constants.iter().find(|(name, _)| !set.contains(name)) {
            Some((name, _)) => Err(fail(format!("the launch sets `{name}` and no host line declares it"))),
            None => Ok(text),
        }
    }
}

/// Name and declaration (up to the equals sign) of a line that the host replaces.
fn host_name(line: &str) -> Option<(&str, &str)> {
    line.trim_end().strip_suffix("// host")?;
    let (declaration, _) = line.split_once('=')?;
    let name = declaration.split_whitespace().nth(1)?;
    Some((name.trim_end_matches(':'), declaration))
}

/// Bytes of a uniform buffer together with the names and types that they were made from.
#[derive(Debug, Clone, PartialEq)]
pub struct Params {
    /// Little-endian fields, padded to 16 bytes.
    pub bytes: Vec<u8>,
    /// Name and WGSL type of each field, for the test that compares them with the shader's `struct Params`.
    pub layout: &'static [(&'static str, &'static str)],
}

/// Declares the uniform buffer of an op: fields in the order of the shader's `struct Params`, each `u32`, `i32` or
/// `f32`, or an array `[[u32; 4]; N]` of vectors, which the shader spells `array<vec4<u32>, N>` and which must come
/// first.
macro_rules! params {
    (struct $name:ident { $($field:ident: $kind:ty),* $(,)? }) => {
        #[repr(C)]
        #[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
        struct $name { $($field: $kind),* }

        impl From<$name> for $crate::shader::Params {
            fn from(params: $name) -> Self {
                let mut bytes = bytemuck::bytes_of(&params).to_vec();
                bytes.resize(bytes.len().next_multiple_of(16), 0);
                Self { bytes, layout: &[$((stringify!($field), stringify!($kind))),*] }
            }
        }
    };
}
pub(crate) use params;

#[cfg(test)]
mod tests {
    use super::*;

    const MAIN: Source = Source {
        name: "demo",
        text: "const SIZE: u32 = 4u; // host\nalias Elem = f32; // host\nconst TWICE = 2u * SIZE;",
    };

    fn shader(constants: Vec<(&'static str, Constant)>) -> Shader {
        Shader { main: MAIN, libraries: Vec::new(), constants }
    }

    #[test]
    fn replaces_host_lines_only() {
        let constants = vec![("SIZE", Constant::U32(9)), ("Elem", Constant::Scalar(Dtype::F16))];
        let text = shader(constants).text().unwrap();
        assert_eq!(text, "enable f16;\nconst SIZE: u32 = 9u;\nalias Elem = f16;\nconst TWICE = 2u * SIZE;\n");
    }

    #[test]
    fn names_must_match_both_ways() {
        let elem = ("Elem", Constant::Scalar(Dtype::F32));
        assert!(shader(vec![elem]).text().unwrap_err().to_string().contains("`SIZE` is a host line"));
        let extra = vec![elem, ("SIZE", Constant::U32(1)), ("OTHER", Constant::Bool(true))];
        assert!(shader(extra).text().unwrap_err().to_string().contains("sets `OTHER`"));
    }
}
