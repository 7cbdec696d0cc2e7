//! What every specialised shader must keep, checked by naga without a GPU.

use naga::proc::Layouter;
use naga::valid::{Capabilities as Features, ValidationFlags, Validator};
use naga::{AddressSpace, GlobalVariable, Module, Scalar, ScalarKind, StorageAccess, TypeInner};
use regard::capabilities::Capabilities;
use regard::op::Launch;

/// Parses and validates the launch's shader and compares it with what the host believes of it.
pub fn check(launch: &Launch, capabilities: &Capabilities) -> Result<(), String> {
    let text = launch.shader.text().map_err(|error| error.to_string())?;
    let module = naga::front::wgsl::parse_str(&text).map_err(|error| error.emit_to_string(&text))?;
    let f16 = launch.shader.needs_f16();
    if f16 && !capabilities.f16 {
        return Err("it needs f16, which these capabilities lack".into());
    }
    let subgroups = launch.shader.needs_subgroups();
    if subgroups && capabilities.subgroups.is_none() {
        return Err("it needs subgroups, which these capabilities lack".into());
    }
    let matrices = launch.shader.needs_cooperative();
    if matrices && capabilities.matrix_edge().is_none() {
        return Err("it needs cooperative matrices, which these capabilities lack".into());
    }
    let mut features = Features::empty();
    features.set(Features::SHADER_FLOAT16, f16);
    features.set(Features::SUBGROUP, subgroups || matrices);
    features.set(Features::COOPERATIVE_MATRIX, matrices);
    (Validator::new(ValidationFlags::all(), features).validate(&module))
        .map_err(|error| error.emit_to_string(&text))?;
    workgroup(&module, capabilities)?;
    params(&module, launch)?;
    bindings(&module, launch)?;
    grid(launch, capabilities)
}

/// One entry point, and it fits the limits.
fn workgroup(module: &Module, capabilities: &Capabilities) -> Result<(), String> {
    let [entry] = &module.entry_points[..] else { return Err("there must be one entry point".into()) };
    let invocations: u32 = entry.workgroup_size.iter().product();
    if entry.name != "main" || invocations == 0 || invocations > capabilities.invocations {
        let limit = capabilities.invocations;
        return Err(format!("`{}` has {invocations} invocations, the limit is {limit}", entry.name));
    }
    let mut layouter = Layouter::default();
    layouter.update(module.to_ctx()).map_err(|error| error.to_string())?;
    let variables = module.global_variables.iter().map(|(_, variable)| variable);
    let shared = variables.filter(|variable| variable.space == AddressSpace::WorkGroup);
    // Each variable starts at a multiple of 16, as drivers lay them out at worst.
    let bytes: u32 = shared.map(|variable| layouter[variable.ty].size.next_multiple_of(16)).sum();
    match capabilities.workgroup_memory {
        limit if bytes > limit => Err(format!("{bytes} bytes of workgroup memory, the limit is {limit}")),
        _ => Ok(()),
    }
}

/// `struct Params` has the fields of the host's, in order, and the bytes hold them.
fn params(module: &Module, launch: &Launch) -> Result<(), String> {
    let found = module.types.iter().find(|(_, ty)| ty.name.as_deref() == Some("Params"));
    let Some((_, naga::Type { inner: TypeInner::Struct { members, span }, .. })) = found else {
        return Err("there is no `struct Params`".into());
    };
    let types: Vec<(String, u32)> = members.iter().map(|member| described(module, member.ty)).collect();
    let names = members.iter().map(|member| member.name.as_deref().unwrap_or_default());
    let declared: Vec<(&str, &str)> = names.zip(types.iter().map(|(name, _)| name.as_str())).collect();
    if declared != launch.params.layout {
        return Err(format!("the shader's params are {declared:?}, the host's are {:?}", launch.params.layout));
    }
    let ends = types.iter().scan(0, |end, (_, bytes)| Some(std::mem::replace(end, *end + bytes)));
    let packed = members.iter().zip(ends).all(|(member, offset)| member.offset == offset);
    let bytes = launch.params.bytes.len();
    match packed && bytes >= *span as usize && bytes.is_multiple_of(16) {
        true => Ok(()),
        false => Err(format!("params have {bytes} bytes for a struct of {span}")),
    }
}

/// A field's type as the host spells it, and its bytes.
fn described(module: &Module, ty: naga::Handle<naga::Type>) -> (String, u32) {
    match module.types[ty].inner {
        TypeInner::Array { base, size: naga::ArraySize::Constant(count), stride } => {
            (format!("[{}; {count}]", described(module, base).0), stride * count.get())
        }
        TypeInner::Vector { size, scalar: kind } => {
            (format!("[{}; {}]", scalar(&TypeInner::Scalar(kind)), size as u32), 4 * size as u32)
        }
        ref inner => (scalar(inner).to_owned(), 4),
    }
}

fn scalar(inner: &TypeInner) -> &'static str {
    match inner {
        TypeInner::Scalar(Scalar { kind: ScalarKind::Uint, width: 4 }) => "u32",
        TypeInner::Scalar(Scalar { kind: ScalarKind::Sint, width: 4 }) => "i32",
        TypeInner::Scalar(Scalar { kind: ScalarKind::Float, width: 4 }) => "f32",
        _ => "neither u32, i32 nor f32",
    }
}

/// Binding 0 is the uniform, the launch's inputs are read-only, its outputs (and inputs that are changed in place) are written,
/// and there is nothing else.
fn bindings(module: &Module, launch: &Launch) -> Result<(), String> {
    let read = AddressSpace::Storage { access: StorageAccess::LOAD };
    let write = AddressSpace::Storage { access: StorageAccess::LOAD | StorageAccess::STORE };
    let mut expected = vec![(0, AddressSpace::Uniform)];
    let own = (0..launch.bindings.inputs.len()).filter(|&input| !launch.bindings.is_updated(input));
    expected.extend(own.map(|input| (launch.bindings.inputs[input], read)));
    expected.extend(launch.bindings.outputs.iter().map(|&number| (number, write)));
    let variables = module.global_variables.iter().map(|(_, variable)| variable);
    let mut declared: Vec<(u32, AddressSpace)> = variables.filter_map(binding).collect();
    expected.sort_by_key(|(number, _)| *number);
    declared.sort_by_key(|(number, _)| *number);
    match declared == expected {
        true => Ok(()),
        false => Err(format!("the shader binds {declared:?}, the launch {expected:?}")),
    }
}

/// Number and space; group 1 and up count as numbers that no launch has.
fn binding(variable: &GlobalVariable) -> Option<(u32, AddressSpace)> {
    let binding = variable.binding?;
    Some((binding.binding + 1000 * binding.group, variable.space))
}

fn grid(launch: &Launch, capabilities: &Capabilities) -> Result<(), String> {
    match launch.workgroups.iter().all(|&size| size <= capabilities.workgroups) {
        true => Ok(()),
        false => Err(format!("the grid is {:?}, the limit is {}", launch.workgroups, capabilities.workgroups)),
    }
}
